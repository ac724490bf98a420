//! What is made of the ledger for others: a file that FOCUS's own validator accepts, reports that agree with the records, a
//! ledger that is proved and indexed anew without a server.

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{
    Ember, Run, assistant, chat,
    tree::{program, root},
    until,
};

/// `focus-validator` as `make focus` installs it, and the folder from which it finds its lists.
fn validator() -> (PathBuf, PathBuf) {
    let home = root().join("target/focus");
    let packages = fs::read_dir(home.join("lib")).into_iter().flatten().flatten();
    let packages = packages.map(|python| python.path().join("site-packages")).find(|path| path.is_dir());
    (home.join("bin/focus-validator"), packages.expect("the validator is not there: run `make focus`"))
}

/// What the validator says of a file.
fn verdict(file: &Path) -> String {
    let (program, folder) = validator();
    let output = Command::new(program).arg("--data-file").arg(file).current_dir(folder).output();
    let output = output.expect("start the validator");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The values of a column, of a file in which no field before it has a comma.
fn column(csv: &str, name: &str) -> Vec<String> {
    let mut lines = csv.lines().map(|line| line.split(','));
    let index = lines.next().expect("a header").position(|column| column == name).expect("the column");
    lines.map(|mut fields| fields.nth(index).expect("the field").to_owned()).collect()
}

/// Decimals as nano-units.
fn nanos(text: &str) -> i64 {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, decimals) = digits.split_once('.').expect("a decimal");
    sign * format!("{whole}{decimals:0<9}").parse::<i64>().expect("digits")
}

fn sum(records: &[Value], field: &str) -> u64 {
    records.iter().map(|record| record[field].as_u64().expect("a number")).sum()
}

/// Three keys, of which one is stopped by its budget, and how many requests they made.
fn trade(ember: &Ember) -> usize {
    let client = |arguments: &[&str]| {
        let key = ember.run(&[&["key", "create", "--name"], arguments].concat()).ok();
        ember.client().with_key(key.trim())
    };
    let app = client(&["app", "--project", "shop"]);
    for _ in 0..2 {
        app.ask(&chat("assistant", "Hello.", json!({"max_tokens": 4}))).expect(200);
    }
    client(&["other"]).ask(&chat("assistant", "Hello there.", json!({"max_tokens": 8}))).expect(200);
    let poor = client(&["poor", "--budget", "0.00001/month"]);
    let endless = json!({"max_tokens": 900, "logit_bias": {"2": -100}});
    poor.ask_streamed(&chat("assistant", "Write a very long story.", endless)).for_each(drop);
    4
}

fn emberd(arguments: &[&str]) -> Run {
    Run::of(Command::new(program("emberd")).args(arguments))
}

#[test]
fn what_was_charged_is_exported_reported_and_proved() {
    let mut ember = Ember::serving(&assistant());
    let requests = trade(&ember);
    let records = until("the ledger has all", || Some(ember.ledger()).filter(|records| records.len() == requests));
    let charged = sum(&records, "cost_nanos");
    exported(&ember, charged);
    reported(&ember, &records);

    // A server that does not run: its ledger is proved, and its index made anew, for those who go on with it.
    let data = ember.data().display().to_string();
    emberd(&["ledger", "rebuild", "--data", &data]).refused();
    ember.kill();
    let proved = emberd(&["ledger", "verify", "--data", &data, "--json"]).json();
    assert_eq!((&proved["damage"], &proved["torn"]), (&json!([]), &json!(null)), "{proved}");
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        let _ = fs::remove_file(ember.data().join("ledger").join(name));
    }
    let rebuilt = emberd(&["ledger", "rebuild", "--data", &data, "--json"]).json();
    assert_eq!(rebuilt["indexed"], proved["entries"]);
    let sound = flip(&ember.data().join("ledger/00000001.log"));
    let damaged = emberd(&["ledger", "verify", "--data", &data]);
    assert!(damaged.stdout.contains("damage: 00000001.log, byte "), "{}", damaged.stdout);
    damaged.refused();
    fs::write(ember.data().join("ledger/00000001.log"), sound).expect("mend the segment");

    ember.start_again();
    let rows = ember.run(&["usage", "--by", "project", "--json"]).json();
    let shop = rows.as_array().expect("rows").iter().find(|row| row["group"] == "shop").expect("the project");
    assert_eq!(shop["requests"], 2, "{rows}");
    ember.stop();
}

/// Flips a bit of a line in the midst of a segment; returns what it was.
fn flip(segment: &Path) -> Vec<u8> {
    let sound = fs::read(segment).expect("a segment");
    let used = sound.iter().rposition(|byte| *byte != 0).expect("a line");
    let mut bytes = sound.clone();
    bytes[used / 2] ^= 1;
    fs::write(segment, bytes).expect("damage the segment");
    sound
}

fn exported(ember: &Ember, charged: u64) {
    let file = ember.scratch().join("focus.csv");
    let out = file.display().to_string();
    let done = ember.run(&["usage", "export", "--format", "focus", "--out", &out, "--json"]).json();
    assert_eq!(done["cost_nanos"], charged);
    let csv = fs::read_to_string(&file).expect("the file");
    let billed = column(&csv, "BilledCost").iter().map(|cost| nanos(cost)).sum::<i64>();
    assert_eq!(billed, charged as i64, "{csv}");
    let categories = column(&csv, "ChargeCategory");
    assert!(["Usage", "Credit"].iter().all(|category| categories.iter().any(|found| found == category)), "{csv}");
    assert!(verdict(&file).contains("Validation succeeded."), "{}\n{csv}", verdict(&file));
    // The validator sees what is wrong, or what it says of the other would mean nothing.
    fs::write(&file, csv.replace(",USD,", ",XQX,")).expect("write the file");
    assert!(verdict(&file).contains("Validation failed!"), "{}", verdict(&file));
}

fn reported(ember: &Ember, records: &[Value]) {
    let report = |which: &str| ember.run(&["report", which, "--since", "1h", "--json"]).json();
    let costs = report("cost");
    let rows = costs["data"].as_array().expect("rows");
    assert_eq!((rows.len(), &costs["currency"]), (3, &json!("USD")), "{costs}");
    assert_eq!(sum(rows, "cost_nanos"), sum(records, "cost_nanos"));
    assert_eq!(sum(rows, "tokens_out"), sum(records, "tokens_out"));

    let sizes = report("rightsize")["data"][0].clone();
    let peak = records.iter().map(|record| record["peak_kib"].as_u64().expect("a peak")).max().expect("a record");
    assert_eq!((&sizes["memory_peak_bytes"], &sizes["at_once_peak"]), (&json!(peak << 10), &json!(1)), "{sizes}");
    let reserved = ember.client().get("/ember/v1/functions/assistant").json()["reserved_bytes"].clone();
    assert_eq!((&sizes["memory_bytes"], &sizes["memory_suggested_bytes"]), (&reserved, &reserved), "it was measured");
    assert!(reserved.as_u64().is_some_and(|reserved| (peak << 10..1 << 30).contains(&reserved)), "{sizes}");
    assert_eq!(sizes["concurrency_suggested"], 1);
    assert_eq!(sizes["saving_nanos"], 0, "{sizes}");

    // So few requests an hour pay no instance; that many more do.
    let turns = report("breakeven")["data"][0].clone();
    assert_eq!(
        (&turns["cheaper"], &turns["serverless_nanos"]),
        (&json!("serverless"), &json!(sum(records, "cost_nanos")))
    );
    let rate = |field: &str| turns[field].as_f64().unwrap_or_else(|| panic!("{field} in {turns}"));
    assert!(rate("turns_at_per_hour") > rate("per_hour"), "{turns}");
    for which in ["cost", "rightsize", "breakeven"] {
        assert!(ember.run(&["report", which]).ok().contains("assistant"), "{which}");
    }
}
