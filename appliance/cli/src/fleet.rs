//! `ember fleet`: many boxes of one owner. Asks no server but the boxes' telemetry listeners; what it does is
//! `appliance/fleet`.

use crate::{
    args::{Fleet, FleetArgs, FleetExport, FleetPull, Listing},
    error::Error,
    output,
};
use appliance_fleet::{
    Address, BoxName, By, Discovery, Enrolled, Member, Outcome, Progress, Pulled, Roster, Settings, Standing, Store,
    Sums, Usage, certificate_days, enrol, pull, renew_client, targets, unix_ms,
};
use appliance_price::calendar;
use appliance_report::Focus;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

const FOLDER: &str = "ember-fleet";
const FOLDER_VARIABLE: &str = "EMBER_FLEET";
const DATABASE: &str = "fleet.db";
/// Most that a box may tell in one pull: more than it gives in 15 minutes, 240 pages of 48 KiB a minute.
const BOX_BYTES_MAX: u64 = 256 << 20;

pub(crate) fn command(args: FleetArgs, ca: Option<PathBuf>) -> Result<(), Error> {
    let named = || env::var_os(FOLDER_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = args.fleet.or_else(named).unwrap_or_else(|| FOLDER.into());
    let database = |db: Option<PathBuf>| db.unwrap_or_else(|| folder.join(DATABASE));
    match args.command {
        Fleet::Enrol { name, host, listing } => enrolled(&folder, &name, &host, listing),
        Fleet::Add { name, address, cert, key } => add(&folder, name, address, [ca, cert, key]),
        Fleet::Rm { name } => rm(&folder, &name),
        Fleet::Ls { db, listing } => ls(&Roster::open(&folder)?, &database(db), listing),
        Fleet::Pull(pull) => pulled(&Roster::open(&folder)?, &database(pull.db.clone()), &pull),
        Fleet::Usage { by, since, db, listing } => usage(&there(&database(db))?, by.into(), since, listing),
        Fleet::Report { db, listing } => report(&Roster::open(&folder)?, &database(db), listing),
        Fleet::Export(export) => exported(&there(&database(export.db.clone()))?, &export),
        Fleet::Accept { name, db } => accept(&mut there(&database(db))?, &name),
        Fleet::Sd { listen: None } => output::line(&format!("{:#}", targets(&Roster::open(&folder)?))),
        Fleet::Sd { listen: Some(address) } => serve(address, &folder),
    }
}

fn enrolled(folder: &Path, name: &BoxName, hosts: &[String], listing: Listing) -> Result<(), Error> {
    let Enrolled { folder: given, machine_toml, made_authority } = enrol(folder, name, hosts, SystemTime::now())?;
    if made_authority {
        output::note(&format!(
            "made a fleet CA in {}: keep a copy of ca.key where nobody else gets it",
            folder.display()
        ));
    }
    let value = json!({ "box": name, "folder": given, "machine_toml": machine_toml });
    output::print(listing, &value, || {
        let (given, toml) = (given.display(), machine_toml.display());
        Ok(format!(
            "{name} is enrolled\n  a Linux host: copy {given} to DIR/telemetry/fleet, and start emberd with --telemetry-listen\n  an appliance: put {toml} into its machine.toml\n  then: ember fleet add {name} https://HOST:9443"
        ))
    })
}

fn add(folder: &Path, name: BoxName, address: Address, files: [Option<PathBuf>; 3]) -> Result<(), Error> {
    let absolute = |path: PathBuf| fs::canonicalize(&path).map_err(|source| Error::Read { path, source });
    let [ca, cert, key] = files.map(|file| file.map(absolute).transpose());
    let mut roster = Roster::open(folder)?;
    let member = Member { name, address, ca: ca?, cert: cert?, key: key? };
    if let Some(missing) = roster.credentials(&member).into_iter().find(|path| !path.exists()) {
        return Err(Error::NoCredentials { path: missing });
    }
    let (name, address) = (member.name.clone(), member.address.to_string());
    roster.put(member)?;
    output::note(&format!("{name} is pulled from {address}: `ember fleet pull`"));
    Ok(())
}

fn rm(folder: &Path, name: &BoxName) -> Result<(), Error> {
    Roster::open(folder)?.remove(name)?;
    output::note(&format!("{name} is pulled no more; what was pulled of it stays"));
    Ok(())
}

/// The database, which must be there.
fn there(path: &Path) -> Result<Store, Error> {
    if !path.exists() {
        return Err(Error::NothingPulled { path: path.into() });
    }
    Ok(Store::open(path)?)
}

/// What the database knows of boxes, if there is one.
fn standings(path: &Path) -> Result<BTreeMap<String, Standing>, Error> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    Ok(Store::open(path)?.standings()?.into_iter().map(|standing| (standing.name.clone(), standing)).collect())
}

fn ls(roster: &Roster, database: &Path, listing: Listing) -> Result<(), Error> {
    let standings = standings(database)?;
    let of = |member: &Member| standings.get(member.name.as_str());
    let value = roster.members().iter().map(|member| {
        let standing = of(member);
        json!({
            "name": member.name, "address": member.address, "records": standing.map_or(0, |standing| standing.records),
            "seen_unix_ms": standing.and_then(|standing| standing.seen_unix_ms), "flags": standing.map_or(json!([]), |standing| json!(standing.flags)),
        })
    });
    output::print(listing, &value.collect(), || {
        let rows = roster.members().iter().map(|member| {
            let standing = of(member);
            let records = standing.map_or(0, |standing| standing.records).to_string();
            [member.name.to_string(), member.address.to_string(), records, seen(standing), flags(standing)]
        });
        Ok(output::table(["BOX", "ADDRESS", "RECORDS", "SEEN", "FLAGS"], rows))
    })
}

fn seen(standing: Option<&Standing>) -> String {
    let ago = |at: u64| format!("{} ago", output::seconds(unix_ms().saturating_sub(at) / 1_000));
    standing.and_then(|standing| standing.seen_unix_ms).map_or("never".to_owned(), ago)
}

fn flags(standing: Option<&Standing>) -> String {
    let words: Vec<_> = standing.iter().flat_map(|standing| &standing.flags).map(|row| row.flag.word()).collect();
    if words.is_empty() { output::NONE.to_owned() } else { words.join(" ") }
}

fn pulled(roster: &Roster, database: &Path, command: &FleetPull) -> Result<(), Error> {
    let members = match command.boxes.is_empty() {
        true => roster.members().to_vec(),
        false => command.boxes.iter().map(|name| roster.member(name).cloned()).collect::<Result<_, _>>()?,
    };
    if members.is_empty() {
        return Err(Error::Usage(format!("no box in `{}`: ember fleet add NAME ADDRESS", roster.folder().display())));
    }
    // A pull is of use without: it says itself when the certificate has run out.
    match renew_client(roster.folder(), SystemTime::now()) {
        Ok(true) => output::note("renewed the fleet's client certificate; Prometheus reads it again by itself"),
        Ok(false) => {}
        Err(error) => output::note(&format!("the fleet's client certificate is not renewed: {error}")),
    }
    let settings = Settings {
        at_once: command.jobs as usize,
        box_time: Duration::from_millis(command.timeout),
        box_bytes_max: BOX_BYTES_MAX,
    };
    let bar = ProgressBar::new(members.len() as u64).with_style(style());
    let (shown, mut records) = (bar.clone(), 0);
    let pulled = pull(roster, members, database, settings, move |progress| match progress {
        Progress::Page(name, fresh) => {
            records += fresh;
            shown.set_message(format!("{records} records, {name}"));
        }
        Progress::Done(_) => shown.inc(1),
    })?;
    bar.finish_and_clear();
    told(&pulled, command.listing)?;
    match pulled.iter().filter(|pulled| pulled.outcome != Outcome::Complete).count() {
        0 => Ok(()),
        failed => Err(Error::Pull {
            failed,
            boxes: pulled.len(),
            unreached: pulled.iter().all(|pulled| matches!(pulled.outcome, Outcome::Unreached(_))),
        }),
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("pulling {bar:30} {pos} of {len} boxes, {msg}")
        .expect("a constant template that a test draws")
}

fn told(pulled: &[Pulled], listing: Listing) -> Result<(), Error> {
    output::print(listing, &json!(pulled), || {
        let rows = pulled.iter().map(|pulled| {
            let (word, detail) = match &pulled.outcome {
                Outcome::Complete => ("complete".to_owned(), String::new()),
                Outcome::Unreached(reason) => ("unreached".to_owned(), reason.clone()),
                Outcome::Flagged { flag, detail } => (flag.to_string(), detail.clone()),
            };
            [pulled.name.to_string(), pulled.records.to_string(), pulled.pages.to_string(), word, detail]
        });
        Ok(output::table(["BOX", "RECORDS", "PAGES", "OUTCOME", ""], rows))
    })
}

fn usage(store: &Store, by: By, since: Option<u64>, listing: Listing) -> Result<(), Error> {
    let mut usage = Usage::new(by, currencies(store)?);
    store.usage(from(since), &mut usage)?;
    let rows = usage.rows();
    output::print(listing, &json!(rows), || {
        let name = match by {
            By::Box => "BOX",
            By::Key => "KEY",
            By::Project => "PROJECT",
            By::Function => "FUNCTION",
            By::Hour => "HOUR",
        };
        let header = [name, "REQUESTS", "IN", "CACHED", "OUT", "WAKE-MS", "WORK-MS", "COST"];
        Ok(output::table(header, rows.iter().map(|row| cells(by, row))))
    })
}

fn cells(by: By, row: &Sums) -> [String; 8] {
    let group = match (by, row.group.parse()) {
        (By::Hour, Ok(start_ms)) => calendar::in_words(start_ms),
        _ if row.group.is_empty() => output::NONE.to_owned(),
        _ => row.group.clone(),
    };
    let counts =
        [row.requests, row.tokens_in, row.tokens_cached, row.tokens_out, row.wake_us / 1_000, row.work_us / 1_000];
    let [requests, tokens_in, cached, tokens_out, wake, work] = counts.map(|count| count.to_string());
    [group, requests, tokens_in, cached, tokens_out, wake, work, output::money(row.cost_nanos, &row.currency)]
}

/// What each box charges in, where it told.
fn currencies(store: &Store) -> Result<BTreeMap<String, String>, Error> {
    let mut currencies = BTreeMap::new();
    for standing in store.standings()? {
        if let Some(book) = store.book(&standing.name)? {
            currencies.insert(standing.name, book.currency().to_string());
        }
    }
    Ok(currencies)
}

fn from(since_ms: Option<u64>) -> u64 {
    since_ms.map_or(0, |since| unix_ms().saturating_sub(since))
}

fn report(roster: &Roster, database: &Path, listing: Listing) -> Result<(), Error> {
    let mut standings = standings(database)?;
    // Of a box that was taken out only what was pulled is of interest.
    let is_member = |name: &str| roster.members().iter().any(|member| member.name.as_str() == name);
    standings.retain(|name, standing| standing.records > 0 || is_member(name));
    for member in roster.members() {
        standings.entry(member.name.to_string()).or_insert_with(|| never(&member.name));
    }
    let (folder, now) = (roster.folder(), SystemTime::now());
    let days = |standing: &Standing| certificate_days(folder, Some(&standing.name.parse().ok()?), now);
    let rows: Vec<_> = standings.into_values().map(|standing| Health { days: days(&standing), standing }).collect();
    output::print(listing, &json!(rows), || {
        let client = certificate_days(folder, None, now);
        let client = client.map(|days| format!("\nthe fleet's client certificate holds for {days} days"));
        Ok(health(&rows) + &client.unwrap_or_default())
    })
}

/// How a box stands, and the certificate that it was given.
#[derive(Serialize)]
struct Health {
    #[serde(flatten)]
    standing: Standing,
    #[serde(rename = "certificate_days")]
    days: Option<u64>,
}

fn never(name: &BoxName) -> Standing {
    Standing {
        name: name.to_string(),
        generation: 0,
        key: None,
        cursor: "0:0".to_owned(),
        records: 0,
        seen_unix_ms: None,
        tried_unix_ms: None,
        error: None,
        skew_ms: None,
        version: None,
        functions: None,
        disk_free_bytes: None,
        started_unix_ms: None,
        flags: Vec::new(),
    }
}

/// A table, and what is wrong in words below it.
fn health(rows: &[Health]) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| output::NONE.to_owned());
    let cells = rows.iter().map(|Health { standing: row, days }| {
        [
            row.name.clone(),
            seen(Some(row)),
            or_none(row.version.clone()),
            or_none(row.functions.map(|count| count.to_string())),
            or_none(row.disk_free_bytes.map(output::bytes)),
            or_none(row.skew_ms.map(|ms| format!("{ms} ms"))),
            or_none(days.map(|days| format!("{days} d"))),
            row.records.to_string(),
            flags(Some(row)),
        ]
    });
    let header = ["BOX", "SEEN", "VERSION", "FUNCTIONS", "DISK FREE", "CLOCK OFF", "CERT", "RECORDS", "FLAGS"];
    let mut text = output::table(header, cells);
    for Health { standing: row, .. } in rows {
        for flag in &row.flags {
            let (name, at, detail) = (&row.name, &flag.at, &flag.detail);
            let (since, times) = (calendar::in_words(flag.since_unix_ms), flag.times);
            text.push_str(&format!("\n{name}: {} at {at} since {since} ({times} times): {detail}", flag.flag));
        }
        if let Some(error) = row.error.as_ref().filter(|_| row.flags.is_empty()) {
            text.push_str(&format!("\n{}: {error}", row.name));
        }
    }
    text
}

fn accept(store: &mut Store, name: &BoxName) -> Result<(), Error> {
    if !store.accept(name)? {
        return Err(Error::Usage(format!("nothing was ever pulled of `{name}`")));
    }
    output::note(&format!("the next pull takes the ledger of {name} from its beginning; what was pulled stays"));
    Ok(())
}

/// Writes the file beside its place, and moves it there when it is whole. A box that never told prices is left out and named:
/// what its amounts are in is not known.
fn exported(store: &Store, export: &FleetExport) -> Result<(), Error> {
    let (mut csv, mut count, mut rows, mut priceless) = (String::new(), 0_u64, 0, Vec::new());
    for standing in store.standings()? {
        let Some(book) = store.book(&standing.name)? else {
            let mut any = false;
            store.records(&standing.name, from(export.span.since), |_| any = true)?;
            priceless.extend(any.then_some(standing.name));
            continue;
        };
        let mut focus = Focus::of_region(&book, &export.account, &standing.name);
        store.records(&standing.name, from(export.span.since), |record| {
            focus.add(record);
            count += 1;
        })?;
        rows += focus.len();
        let whole = focus.to_csv();
        let body = whole.split_once("\r\n").map_or("", |(_, body)| body);
        csv.push_str(if csv.is_empty() { &whole } else { body });
    }
    let failed = |source| Error::Write { path: export.out.clone(), source };
    let mut fresh = export.out.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, csv).and_then(|()| fs::rename(&fresh, &export.out)).map_err(failed)?;
    let value = json!({ "file": export.out, "rows": rows, "requests": count });
    output::print(export.span.listing, &value, || {
        Ok(format!("{rows} rows of {count} requests: {}", export.out.display()))
    })?;
    if priceless.is_empty() { Ok(()) } else { Err(Error::NoPrices { boxes: priceless }) }
}

fn serve(address: SocketAddr, folder: &Path) -> Result<(), Error> {
    let discovery = Discovery::open(address, folder)?;
    let address = discovery.address().map_err(Error::Output)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ready http://{address}").and_then(|()| stdout.flush())?;
    drop(stdout);
    discovery
        .serve()
        .map_err(|error| Error::Unreachable { url: format!("http://{address}"), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_fleet::{Flag, FlagRow};

    #[test]
    fn a_report_says_what_is_wrong_in_words() {
        let flag = FlagRow {
            flag: Flag::RolledBack,
            at: "1:900".to_owned(),
            detail: "its ledger ends before what was pulled of it".to_owned(),
            since_unix_ms: 0,
            last_unix_ms: 0,
            times: 3,
        };
        let name = "shop-7".parse().unwrap();
        let text = health(&[
            Health { standing: Standing { flags: vec![flag], ..never(&name) }, days: Some(31) },
            Health { standing: Standing { error: Some("tls: no".into()), ..never(&name) }, days: None },
        ]);
        assert!(text.contains("31 d"), "{text}");
        assert!(text.contains("shop-7: rolled_back at 1:900 since 1970-01-01"), "{text}");
        assert!(text.contains("(3 times): its ledger ends before") && text.ends_with("shop-7: tls: no"), "{text}");
    }

    #[test]
    fn a_bar_is_drawn() {
        let bar = ProgressBar::new(2).with_style(style());
        bar.inc(1);
        assert_eq!(bar.position(), 1);
    }
}
