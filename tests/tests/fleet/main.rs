//! A fleet: what boxes have metered is in its database exactly once, whatever is cut, killed or restarted; who lies, forks or
//! comes back from an old disk is told, and changes nothing that was known.

mod haproxy;
mod prometheus;
mod shop;

use appliance_edge::authority::{Identity, issue_client};
use appliance_fleet::{Flag, Outcome, Roster, Settings, Standing, Store};
use appliance_ledger::signed::PageCursor;
use appliance_types::Record;
use serde_json::{Value, json};
use shop::{Lie, Mall, Shop};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};
use tests::{Client, Ember, Function, Random, Run, chat, tree, until};

/// A fleet's owner, in a folder of their own.
struct Owner(tempfile::TempDir);

impl Owner {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("fleet")
    }

    /// `ember fleet`, to run.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tree::program("ember"));
        command.arg("fleet").args(arguments).env("EMBER_FLEET", self.folder());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--json"]].concat()).json()
    }

    /// Enrols a box, and says what it is given.
    fn enrol(&self, name: &str) -> PathBuf {
        let enrolled = self.json(&["enrol", name, "--host", "127.0.0.1"]);
        PathBuf::from(enrolled["folder"].as_str().unwrap())
    }

    fn store(&self) -> Store {
        Store::open(&self.folder().join("fleet.db")).unwrap()
    }

    /// How a box stands in the database.
    #[track_caller]
    fn standing(&self, name: &str) -> Standing {
        let standings = self.store().standings().unwrap();
        standings.into_iter().find(|standing| standing.name == name).unwrap_or_else(|| panic!("{name} was never asked"))
    }

    /// The records of a box in the database, by request.
    fn records(&self, name: &str) -> Vec<Record> {
        let mut records = Vec::new();
        self.store().records(name, 0, |record| records.push(record.clone())).unwrap();
        records.sort_by_key(|record| record.request.bits());
        records
    }

    /// The flags of a box, and when each was first seen.
    fn flags(&self, name: &str) -> Vec<(Flag, u64)> {
        self.standing(name).flags.iter().map(|row| (row.flag, row.since_unix_ms)).collect()
    }

    fn flag_words(&self, name: &str) -> Vec<Flag> {
        self.flags(name).into_iter().map(|(flag, _)| flag).collect()
    }

    /// Begins a pull, and kills it within so many ms; whether that ended it.
    fn killed_pull(&self, random: &mut Random, ms_max: usize) -> bool {
        let mut pull = self.command(&["pull"]);
        let mut pull = pull.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(random.below(ms_max) as u64));
        pull.kill().unwrap();
        pull.wait().unwrap().signal().is_some()
    }

    /// Adds simulated boxes, each with some requests behind it.
    fn shops(&self, mall: &Mall, count: u64, requests: u64) -> Vec<Shop> {
        let shop = |number| {
            let name = format!("shop-{number:02}");
            let given = self.enrol(&name);
            let mut shop = Shop::new(mall, &name, number, &given, &self.0.path().join(&name));
            self.run(&["add", &name, &format!("https://{}", shop.wire.address)]).ok();
            shop.serve(requests + number);
            shop
        };
        (0..count).map(shop).collect()
    }

    /// All of each shop is here once.
    #[track_caller]
    fn has_all_of<'s>(&self, shops: impl IntoIterator<Item = &'s Shop>) {
        for shop in shops {
            assert_eq!(self.records(&shop.name), shop.ends(), "{}", shop.name);
        }
    }

    /// What is here of each shop is what its ledger has before the cursor, no more and no less.
    #[track_caller]
    fn has_what_its_cursors_say(&self, shops: &[Shop]) {
        let here: BTreeMap<_, _> =
            self.store().standings().unwrap().into_iter().map(|standing| (standing.name.clone(), standing)).collect();
        for shop in shops {
            let Some(standing) = here.get(&shop.name) else { continue };
            let PageCursor(cursor) = PageCursor::try_from(standing.cursor.clone()).unwrap();
            assert_eq!(standing.records as usize, shop.ended_before(cursor), "{} at {}", shop.name, standing.cursor);
        }
    }
}

/// Gives a box what its fleet made for it.
fn give(given: &Path, folder: &Path) {
    let to = folder.join("data/telemetry/fleet");
    fs::create_dir_all(&to).unwrap();
    for file in ["ca.pem", "server.pem", "server.key", "name"] {
        fs::copy(given.join(file), to.join(file)).unwrap();
    }
}

fn sum(shops: &[Shop]) -> (u64, u64) {
    let ends: Vec<Record> = shops.iter().flat_map(Shop::ends).collect();
    (ends.len() as u64, ends.iter().map(|record| record.cost_nanos).sum())
}

#[test]
fn fifty_boxes_are_taken_in_once_whatever_is_cut_killed_or_restarted() {
    let (owner, mall, mut random) = (Owner::new(), Mall::open(), Random::seeded(7));
    let count = std::env::var("EMBER_FLEET_BOXES").map_or(50, |count| count.parse().unwrap());
    let mut shops = owner.shops(&mall, count, 120);
    for shop in shops.iter().step_by(3) {
        shop.wire.cut(Some(shop.wire.address.port().into()));
    }
    let mut killed = 0;
    for round in 0..24 {
        killed += u32::from(owner.killed_pull(&mut random, 400));
        if owner.folder().join("fleet.db").exists() {
            owner.has_what_its_cursors_say(&shops);
        }
        for _ in 0..3 {
            let at = random.below(shops.len());
            shops[at].serve(5);
        }
        if round % 3 == 0 {
            let at = random.below(shops.len());
            shops[at].stop();
            shops[at].start();
        }
    }
    assert!(killed > 0, "no pull was killed");
    // Two at once, one of which is killed: who comes second finds the cursor moved, and takes nothing twice.
    let mut beside = owner.command(&["pull"]);
    let mut beside = beside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    owner.killed_pull(&mut random, 200);
    beside.wait().unwrap();
    owner.has_what_its_cursors_say(&shops);

    until("all are pulled through the cuts", || (owner.run(&["pull"]).code == 0).then_some(()));
    owner.has_all_of(&shops);
    for shop in &shops {
        assert!(owner.flag_words(&shop.name).is_empty(), "{}", shop.name);
    }
    let (requests, cost) = sum(&shops);
    for by in ["box", "key", "function", "project", "hour"] {
        let rows = owner.json(&["usage", "--by", by]);
        let of = |field: &str| rows.as_array().unwrap().iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!((of("requests"), of("cost_nanos"), of("tokens_out")), (requests, cost, 7 * requests), "{by}");
    }
    let pulled = owner.json(&["pull", "--jobs", "1"]);
    assert_eq!(pulled.as_array().unwrap().len(), shops.len());
    assert!(pulled.as_array().unwrap().iter().all(|row| row["records"] == 0 && row["outcome"] == "complete"));
    shops.iter_mut().for_each(Shop::stop);
    let refused = owner.run(&["pull", "--jobs", "50"]);
    assert_eq!(refused.code, 69, "nobody answers: {}", refused.stderr);
    owner.has_all_of(&shops);
}

#[test]
fn who_lies_forks_or_comes_back_from_an_old_disk_is_told_and_changes_nothing() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let mut shops = owner.shops(&mall, 10, 60);
    let old: Vec<_> = shops.iter().map(Shop::image).collect();
    shops.iter_mut().for_each(|shop| shop.serve(100));
    owner.run(&["pull"]).ok();
    let known: Vec<_> = shops.iter().map(Shop::ends).collect();

    shops[0].put_back(&old[0]);
    shops[1].put_back(&old[1]);
    shops[1].serve(300);
    shops[2].lose_its_key();
    for (at, lie) in [(3, Lie::Cost), (4, Lie::LeftOut), (5, Lie::Unsigned), (6, Lie::Nonsense)] {
        shops[at].serve(10);
        shops[at].lie(lie);
    }
    shops[7].clock_is_off(3_600_000);
    shops[8].serve(10);
    shops[9].stop();

    let expected = [
        (0, vec![Flag::RolledBack]),
        (1, vec![Flag::Forked]),
        (2, vec![Flag::Rekeyed]),
        (3, vec![Flag::Lied]),
        (4, vec![Flag::Lied]),
        (5, vec![Flag::Lied]),
        (6, vec![Flag::Lied]),
        (7, vec![Flag::Clock]),
        (8, vec![]),
        (9, vec![]),
    ];
    let first = owner.run(&["pull"]);
    assert_eq!(first.code, 1, "{}", first.stdout);
    let flags: Vec<_> = shops.iter().map(|shop| owner.flags(&shop.name)).collect();
    for (at, words) in &expected {
        assert_eq!(owner.flag_words(&shops[*at].name), *words, "{}", shops[*at].name);
        let here = if *at == 8 { shops[8].ends() } else { known[*at].clone() };
        assert_eq!(owner.records(&shops[*at].name), here, "{}", shops[*at].name);
    }
    assert!(owner.standing("shop-09").error.is_some(), "it does not answer");
    assert_eq!(owner.run(&["pull"]).code, 1);
    assert_eq!(shops.iter().map(|shop| owner.flags(&shop.name)).collect::<Vec<_>>(), flags, "since when stays");
    assert_eq!(owner.standing("shop-01").flags[0].times, 2);
    let report = owner.run(&["report"]).ok();
    assert!(report.contains("shop-00: rolled_back at ") && report.contains("shop-03: lied at "), "{report}");
    assert!(owner.run(&["ls"]).ok().contains("forked"));

    // What passes by itself, and what somebody has to look at.
    shops[7].clock_is_off(0);
    shops[3..7].iter().for_each(|shop| shop.lie(Lie::None));
    shops[9].start();
    assert_eq!(owner.run(&["pull"]).code, 1, "the forked, the old and the strange are still that");
    owner.has_all_of(&shops[3..]);
    assert_eq!((owner.flag_words("shop-07"), owner.flag_words("shop-03")), (vec![], vec![Flag::Lied]));
    for shop in &shops[..7] {
        owner.run(&["accept", &shop.name]).ok();
    }
    owner.run(&["pull"]).ok();
    for (at, shop) in shops.iter().enumerate() {
        // What both its ledgers have is here once, and so is what only the lost one had.
        let mut both = shop.ends();
        both.extend(known[at].iter().filter(|record| !shop.ends().contains(record)).cloned());
        both.sort_by_key(|record| record.request.bits());
        assert_eq!(owner.records(&shop.name), both, "{}", shop.name);
        assert!(owner.flag_words(&shop.name).is_empty(), "{}", shop.name);
    }
    owner.run(&["rm", "shop-09"]).ok();
    assert_eq!(owner.json(&["ls"]).as_array().unwrap().len(), 9);
    assert!(!owner.records("shop-09").is_empty(), "what was pulled stays");
    owner.run(&["accept", "shop-99"]).refused();
}

#[test]
fn amounts_are_never_summed_as_another_currency() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let mut shops = owner.shops(&mall, 3, 5);
    shops.iter().for_each(|shop| shop.charges_in(Some("EUR")));
    shops[2].charges_in(None);
    owner.run(&["pull"]).ok();
    let before = owner.json(&["usage"]);
    let currencies: Vec<_> = before.as_array().unwrap().iter().map(|row| row["currency"].as_str().unwrap()).collect();
    assert_eq!(currencies, ["EUR", "EUR", ""]);

    // One has another key, one its own: neither changes what its amounts are in, and nothing is taken in as that.
    shops[0].lose_its_key();
    for shop in &mut shops[..2] {
        shop.charges_in(Some("USD"));
        shop.serve(3);
    }
    let pulled = owner.run(&["pull"]);
    assert_eq!(pulled.code, 1, "{}", pulled.stdout);
    assert_eq!(
        [owner.flag_words("shop-00"), owner.flag_words("shop-01"), owner.flag_words("shop-02")],
        [vec![Flag::Rekeyed], vec![Flag::Contradicted], vec![]]
    );
    assert_eq!(owner.json(&["usage"]), before);

    // What never told its prices is in no file, and that is said.
    let file = owner.folder().join("focus.csv");
    let exported = owner.run(&["export", "--format", "focus", "--out", file.to_str().unwrap()]);
    assert_eq!(exported.code, 1);
    assert!(exported.stderr.contains("shop-02") && !exported.stderr.contains("shop-01"), "{}", exported.stderr);
    let csv = fs::read_to_string(&file).unwrap();
    assert!(
        csv.contains("shop-01") && csv.contains("EUR") && !csv.contains("shop-02") && !csv.contains("USD"),
        "{csv}"
    );
}

#[test]
fn a_pull_that_flagged_a_box_is_no_success() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let mut shops = owner.shops(&mall, 2, 300);
    shops[0].clock_is_off(3_600_000);
    shops[1].forgets();
    let pulled = owner.run(&["pull", "--json"]);
    let rows: Value = serde_json::from_str(&pulled.stdout).unwrap();
    let flags = [0, 1].map(|row| rows[row]["outcome"]["flagged"]["flag"].as_str());
    assert_eq!((pulled.code, flags), (1, [Some("clock"), Some("gap")]), "{rows}");
    owner.has_all_of(&shops[..1]);
    assert!(owner.standing("shop-01").error.is_none() && rows[1]["records"].as_u64() > Some(0), "it is at its end");
    shops[0].clock_is_off(0);
    owner.run(&["pull"]).ok();
    assert_eq!(owner.flag_words("shop-01"), [Flag::Gap], "somebody has to look");
    owner.run(&["accept", "shop-01"]).ok();
    owner.run(&["pull"]).ok();
    assert_eq!(owner.flag_words("shop-01"), []);
}

#[test]
fn what_a_box_tells_in_a_pull_is_bounded_and_the_next_goes_on() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let shops = owner.shops(&mall, 1, 300);
    let settings = Settings { at_once: 1, box_time: Duration::from_secs(60), box_bytes_max: 1 };
    let pull = || {
        let roster = Roster::open(&owner.folder()).unwrap();
        let members = roster.members().to_vec();
        appliance_fleet::pull(&roster, members, &owner.folder().join("fleet.db"), settings, |_| {}).unwrap().remove(0)
    };
    let first = pull();
    assert!(
        first.pages == 1 && matches!(&first.outcome, Outcome::Unreached(why) if why.contains("bytes")),
        "{first:?}"
    );
    until("it is pulled page by page", || (pull().outcome == Outcome::Complete).then_some(()));
    owner.has_all_of(&shops);
}

#[test]
fn a_pull_renews_the_certificate_that_it_shows() {
    let owner = Owner::new();
    owner.enrol("shop-7");
    owner.run(&["add", "shop-7", "https://127.0.0.1:1"]).ok();
    let path = |name: &str| owner.folder().join(name);
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    let authority = Identity { certificate_pem: read("ca.pem"), key_pem: read("ca.key") };
    let old = SystemTime::now() - Duration::from_secs(300 * 24 * 3600);
    let client = issue_client(&authority, "fleet", old).unwrap();
    fs::write(path("client.pem"), &client.certificate_pem).unwrap();
    fs::write(path("client.key"), &client.key_pem).unwrap();
    let report = || owner.run(&["report"]).ok();
    assert!(report().contains("client certificate holds for 96 days") && report().contains("396 d"), "{}", report());
    owner.run(&["pull"]).refused();
    assert!(report().contains("client certificate holds for 396 days"), "{}", report());
    let shown = [read("client.pem"), read("client.key")];
    owner.run(&["pull"]).refused();
    assert_eq!([read("client.pem"), read("client.key")], shown, "once");
}

#[test]
fn a_fault_that_passes_is_no_lie() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let shops = owner.shops(&mall, 1, 5);
    shops[0].lie(Lie::Failing);
    let pulled = owner.run(&["pull", "--json"]);
    assert!(pulled.code == 69 && pulled.stdout.contains("status 500"), "{}", pulled.stdout);
    assert_eq!(owner.flag_words("shop-00"), []);
    shops[0].lie(Lie::None);
    owner.run(&["pull"]).ok();
    owner.has_all_of(&shops);
}

#[test]
fn nobody_is_taken_for_another_box() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let shops = owner.shops(&mall, 2, 5);
    // The second box at the address of the first: its certificate has another name.
    owner.run(&["add", "shop-00", &format!("https://{}", shops[1].wire.address)]).ok();
    let pulled = owner.run(&["pull", "--json"]);
    assert_eq!(pulled.code, 1);
    let rows: Value = serde_json::from_str(&pulled.stdout).unwrap();
    assert!(rows[0]["outcome"]["unreached"].as_str().unwrap().contains("tls"), "{rows}");
    assert_eq!(rows[1]["outcome"], "complete");
    assert_eq!((owner.records("shop-00").len(), owner.records("shop-01").len()), (0, 6));
    // A puller of another fleet is told nothing.
    let stranger = Owner::new();
    stranger.enrol("shop-01");
    let ca = owner.folder().join("ca.pem");
    stranger.run(&["add", "shop-01", &shops[1].wire.address.to_string(), "--ca", ca.to_str().unwrap()]).ok();
    assert_eq!(stranger.run(&["pull"]).code, 69);
    assert!(stranger.records("shop-01").is_empty());
}

#[test]
fn a_real_box_is_enrolled_pulled_and_exported() {
    let owner = Owner::new();
    let given = owner.enrol("shop-7");
    let config = "telemetry_listen = \"127.0.0.1:0\"\n";
    let mut ember = Ember::prepared(config, |folder| give(&given, folder)).with(&Function::named("assistant"));
    let address = || fs::read_to_string(ember.data().join("telemetry/address")).unwrap();
    owner.run(&["add", "shop-7", &format!("https://{}", address().trim())]).ok();
    for question in ["One?", "Two?", "Three?"] {
        ember.client().ask(&chat("assistant", question, json!({"max_tokens": 4}))).text();
    }
    until("the ledger has all", || (ember.ledger().len() == 3).then_some(()));
    let pulled = owner.json(&["pull"]);
    assert_eq!((&pulled[0]["records"], &pulled[0]["outcome"]), (&json!(3), &json!("complete")));
    let own = ember.ledger();
    let of = |field: &str| own.iter().map(|record| record[field].as_u64().unwrap()).sum::<u64>();
    let usage = owner.json(&["usage", "--by", "box"]);
    assert_eq!(
        (usage[0]["cost_nanos"].as_u64(), usage[0]["tokens_out"].as_u64()),
        (Some(of("cost_nanos")), Some(of("tokens_out")))
    );
    assert_eq!((&usage[0]["group"], &usage[0]["currency"]), (&json!("shop-7"), &json!("USD")));
    let here: Vec<Value> = owner.records("shop-7").iter().map(|record| serde_json::to_value(record).unwrap()).collect();
    assert!(here.len() == 3 && here.iter().all(|record| own.contains(record)), "{here:?}");

    let file = owner.folder().join("focus.csv");
    owner.run(&["export", "--format", "focus", "--out", file.to_str().unwrap()]).ok();
    let csv = fs::read_to_string(&file).unwrap();
    assert!(csv.lines().skip(1).all(|row| row.contains("shop-7") && !row.contains("unexplained")), "{csv}");
    let report = owner.json(&["report"]);
    assert_eq!((&report[0]["version"], &report[0]["functions"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(1)));

    // It shows itself as the fleet's to whoever scrapes it, and to nobody else.
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (shown, key) = (read(&owner.folder().join("client.pem")), read(&owner.folder().join("client.key")));
    let ca = read(&owner.folder().join("ca.pem"));
    let base = format!("https://{}", address().trim());
    let scraper = Client::with_certificate(&base, ca.as_bytes(), Some([shown.as_str(), key.as_str()]), None);
    scraper.get("/metrics").expect(200);
    assert!(Client::with_certificate(&base, ca.as_bytes(), None, None).try_get("/metrics").is_err());

    ember.kill();
    ember.start_again();
    let again = fs::read_to_string(ember.data().join("telemetry/address")).unwrap();
    owner.run(&["add", "shop-7", &format!("https://{}", again.trim())]).ok();
    ember.client().ask(&chat("assistant", "Four?", json!({"max_tokens": 4}))).text();
    until("the ledger has all", || (ember.ledger().len() == 4).then_some(()));
    assert_eq!(owner.json(&["pull"])[0]["records"], 1);
    assert!(owner.flag_words("shop-7").is_empty());
    ember.stop();
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    let owner = Owner::new();
    for wrong in [
        &["enrol", "Shop 7"][..],
        &["enrol", "shop-7", "--host", "192.0.2.7:9443"],
        &["enrol", "shop-7", "--host", "https://192.0.2.7"],
        &["add", "shop-7", "http://127.0.0.1:1"],
        &["pull", "--jobs", "0"],
        &["usage", "--by", "colour"],
    ] {
        assert_eq!(owner.run(wrong).code, 64, "{wrong:?}");
    }
    let said = owner.run(&["add", "shop-7", "https://127.0.0.1:1"]).refused();
    assert!(said.contains("ca.pem") && said.contains("fleet enrol"), "{said}");
    assert_eq!(owner.run(&["pull"]).code, 64, "there is no box");
    owner.run(&["usage"]).refused();
    assert!(!owner.folder().exists());
}
