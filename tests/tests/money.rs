//! Money: one amount in the receipt, the ledger, the sums and the explanation; and budgets that are never overshot.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{fs, thread};
use tests::{Client, Ember, Function, Reply, assistant, chat, until};

/// What Lambda's list prices make of a record, by hand.
fn by_hand(record: &Value) -> u64 {
    let number = |field: &str| record[field].as_u64().unwrap_or_else(|| panic!("{field} in {record}"));
    let billed_ms = (number("wake_share_us") + number("share_us")).div_ceil(1_000);
    let byte_ms_nanos = u128::from(billed_ms) * u128::from(number("memory_bytes")) * 16_667;
    200 + u64::try_from(byte_ms_nanos.div_ceil(1_000 << 30)).unwrap()
}

/// The record of a request, once the ledger has it.
fn record_of(ember: &Ember, id: &str) -> Value {
    until("the ledger has it", || ember.ledger().into_iter().find(|record| record["request"] == id))
}

/// What the ledger says a key has spent, once it has all of the key's requests.
fn spent(ember: &Ember, key: &str, requests: usize) -> u64 {
    let of_key = || ember.ledger().into_iter().filter(|record| record["key"] == key).collect::<Vec<_>>();
    let records = until("the ledger has all", || Some(of_key()).filter(|records| records.len() == requests));
    records.iter().map(|record| record["cost_nanos"].as_u64().expect("a cost")).sum()
}

/// A client with a new key that may spend so much.
fn poor(ember: &Ember, budget: &str) -> (Client, String) {
    let key = ember.run(&["key", "create", "--name", "app", "--budget", budget]).ok().trim().to_owned();
    (ember.client().with_key(&key), key)
}

/// Puts another price book in force.
fn reprice(ember: &Ember, book: &str) {
    let reloads = |ember: &Ember| ember.log().matches("prices reloaded").count();
    let before = reloads(ember);
    fs::write(ember.data().join("prices.toml"), book).unwrap();
    ember.signal(Signal::SIGHUP);
    until("the prices are reloaded", || (reloads(ember) > before).then_some(()));
}

fn code(reply: &Reply) -> String {
    reply.error(429)["code"].as_str().expect("a code").to_owned()
}

#[test]
fn one_amount_everywhere() {
    let ember = Ember::serving(&assistant());
    let key = ember.run(&["key", "create", "--name", "app"]).ok();
    let reply =
        ember.client().with_key(key.trim()).ask(&chat("assistant", "Hello.", json!({"max_tokens": 4}))).expect(200);
    let receipt = reply.json()["usage"]["ember"].clone();
    let id = receipt["request_id"].as_str().expect("an id").to_owned();
    assert_eq!(reply.header("x-request-id"), id);

    let record = record_of(&ember, &id);
    let cost = by_hand(&record);
    assert_eq!((&receipt["cost_nanos"], &record["cost_nanos"]), (&json!(cost), &json!(cost)), "{record}");
    assert_eq!((&receipt["price_version"], &record["price_version"]), (&json!(1), &json!(1)));

    for (by, group) in [("key", "app"), ("function", "assistant"), ("tier", record["tier"].as_str().unwrap())] {
        let rows = ember.run(&["usage", "--by", by, "--since", "1h", "--json"]).json();
        let row = rows.as_array().unwrap().iter().find(|row| row["group"] == group).unwrap_or_else(|| panic!("{rows}"));
        assert_eq!((&row["cost_nanos"], &row["requests"]), (&json!(cost), &json!(1)), "{by}");
    }
    let explained = ember.run(&["usage", "explain", &id]).ok();
    assert!(explained.contains(&format!("cost     {cost} = ")), "{explained}");
    let document = ember.run(&["usage", "explain", &id, "--json"]).json();
    let lines = document["bill"]["lines"].as_array().unwrap();
    let sum: u64 = lines.iter().map(|line| line["amount_nanos"].as_u64().unwrap()).sum();
    assert_eq!((sum, &document["agrees"], &document["receipt"]["cost_nanos"]), (cost, &json!(true), &json!(cost)));
    let records = ember.client().get("/ember/v1/usage/records?key=app").expect(200).body;
    assert_eq!(records.last(), Some(&b'\n'));
    assert_eq!(serde_json::from_slice::<Value>(&records).unwrap(), record, "a line a record");
    let report = format!("REPORT RequestId: {id} Duration: ");
    let log = until("the report", || Some(ember.log()).filter(|log| log.contains(&report)));
    let peak_mb = record["peak_kib"].as_u64().expect("a peak").div_ceil(1 << 10);
    let reserved_mb = receipt["memory_mib"].as_u64().expect("what was reserved");
    assert!((1..=reserved_mb).contains(&peak_mb) && reserved_mb < 1024, "{record}");
    assert!(log.contains(&format!(" Memory Size: {reserved_mb} MB Max Memory Used: {peak_mb} MB")), "{log}");

    ember.run(&["usage", "explain", "req-00000000000000000000000000000000"]).refused();
    ember.client().get("/ember/v1/usage?by=day").error(400);
    ember.client().with_key(key.trim()).get("/ember/v1/usage").error(403);
    ember.stop();
}

/// The project is in the records, so neither the end of its key nor another key of that name changes what it has spent.
#[test]
fn a_projects_past_outlives_its_keys() {
    let mut ember = Ember::serving(&assistant());
    let key = |ember: &Ember, project: &str| {
        let key = ember.run(&["key", "create", "--name", "app", "--project", project]).ok();
        ember.client().with_key(key.trim())
    };
    let spent = |ember: &Ember, project: &str| {
        let rows = ember.run(&["budget", "ls", "--json"]).json();
        let row = rows.as_array().unwrap().iter().find(|row| row["of"] == format!("project:{project}"));
        row.unwrap_or_else(|| panic!("{rows}"))["spent_nanos"].as_u64().expect("an amount")
    };
    for project in ["shop", "lab"] {
        ember.run(&["budget", "set", &format!("project:{project}"), "1.00/month"]).ok();
    }
    let reply = key(&ember, "shop").ask(&chat("assistant", "Hello.", json!({"max_tokens": 2}))).expect(200);
    let record = record_of(&ember, reply.json()["usage"]["ember"]["request_id"].as_str().expect("an id"));
    assert_eq!(record["project"], "shop");
    let cost = record["cost_nanos"].as_u64().expect("a cost");
    ember.run(&["key", "revoke", "app"]).ok();
    drop(key(&ember, "lab"));
    ember.kill();
    ember.start_again();
    assert_eq!((spent(&ember, "shop"), spent(&ember, "lab")), (cost, 0));
    ember.stop();
}

#[test]
fn prices_change_by_version_and_old_bills_stay() {
    let ember = Ember::serving(&assistant());
    let ask =
        || ember.client().ask(&chat("assistant", "Hi.", json!({"max_tokens": 2}))).expect(200).json()["usage"].clone();
    let before = ask()["ember"].clone();
    let book = "currency = \"USD\"\n[[book]]\nversion = 7\neffective = 2020-01-01\nrequest = 1000\ngib_second = 0\ntokens_out_1k = 500\n";
    reprice(&ember, book);
    let usage = ask();
    let expected = 1_000 + usage["completion_tokens"].as_u64().unwrap().div_ceil(2);
    let after = usage["ember"].clone();
    assert_eq!((&after["price_version"], &after["cost_nanos"]), (&json!(7), &json!(expected)));
    for receipt in [before, after] {
        let id = receipt["request_id"].as_str().unwrap();
        record_of(&ember, id);
        let document = ember.run(&["usage", "explain", id, "--json"]).json();
        assert_eq!((&document["agrees"], &document["receipt"]), (&json!(true), &receipt));
    }
    fs::write(ember.data().join("prices.toml"), "request = 1\nrequst = 2\n").unwrap();
    ember.signal(Signal::SIGHUP);
    let wrong = "line 2, column 1: unknown key `requst`";
    until("the mistake is told", || ember.log().contains(wrong).then_some(()));
    assert_eq!(ask()["ember"]["price_version"], 7, "the prices in use stay");
    ember.stop();
}

/// 200 at once on a key with money for 20: exactly 20 are served, when all cost the same.
#[test]
fn a_race_for_a_budget_has_as_many_winners_as_there_is_money_for() {
    let ember = Ember::serving(&Function::named("assistant").scale("queue = 256")).awake("assistant");
    reprice(&ember, "request = 1000\ngib_second = 0\n");
    let (app, _) = poor(&ember, "0.00002/day");
    let request = chat("assistant", "Hi.", json!({"max_tokens": 2}));
    let asking: Vec<_> = (0..200)
        .map(|_| {
            let (app, request) = (app.clone(), request.clone());
            thread::spawn(move || app.ask(&request))
        })
        .collect();
    let replies: Vec<_> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    replies.iter().filter(|reply| reply.status != 200).for_each(|reply| drop(reply.error(429)));
    assert_eq!(served, 20);
    assert_eq!(spent(&ember, "app", 200), 20_000, "to the last nano-unit");
    let refused = app.ask(&request);
    assert_eq!(code(&refused), "insufficient_quota");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds <= 86_400));
    let rows = ember.run(&["budget", "ls", "--json"]).json();
    assert_eq!((&rows[0]["spent_nanos"], &rows[0]["reserved_nanos"]), (&json!(20_000), &json!(0)), "{rows}");
    ember.stop();
}

/// The same by the time that each takes, which nobody knows before: what is reserved comes back, and is used by others,
/// until too little is left for any.
#[test]
fn a_race_for_time_never_overshoots() {
    // Each try is a connection of its own, and those that were closed are counted for a moment.
    let ember = Ember::start_with("[limits]\nconnections_per_address = 4096\n");
    let ember = ember.with(&Function::named("assistant").scale("queue = 256")).awake("assistant");
    let request = chat("assistant", "Hi.", json!({"max_tokens": 2}));
    let one = ember.client().ask(&request).expect(200).json()["usage"]["ember"]["cost_nanos"].as_u64().unwrap();
    let budget = 20 * one;
    let (app, _) = poor(&ember, &format!("0.{budget:09}/day"));
    let asking: Vec<_> = (0..200)
        .map(|_| {
            let (app, request) = (app.clone(), request.clone());
            thread::spawn(move || {
                let mut asked = 0;
                until("served, or no money", || {
                    asked += 1;
                    let reply = app.ask(&request);
                    (reply.status == 200 || code(&reply) == "insufficient_quota").then_some(())
                });
                asked
            })
        })
        .collect();
    let requests = asking.into_iter().map(|thread| thread.join().unwrap()).sum();
    let spent = spent(&ember, "app", requests);
    // The least that a request costs is its begin and a millisecond: 200 + 17.
    assert!(spent <= budget && budget - spent < 217, "{spent} of {budget}");
    ember.stop();
}

#[test]
fn an_answer_stops_at_its_budget_and_a_restart_gives_no_money() {
    let long = Function::named("assistant").limit("context = 8192").limit("output_tokens = 100000");
    let mut ember = Ember::serving(&long).awake("assistant");
    let (app, key) = poor(&ember, "0.00001/month");
    let endless = json!({"max_tokens": 100_000, "logit_bias": {"2": -100}, "stream_options": {"include_usage": true}});
    let events: Vec<Value> = app.ask_streamed(&chat("assistant", "Write a very long story.", endless)).collect();
    let last = events.last().expect("an event");
    let receipt = &last["usage"]["ember"];
    assert_eq!(receipt["budget_reached"], true, "{last}");
    assert!(receipt["cost_nanos"].as_u64().is_some_and(|cost| cost <= 10_000), "{receipt}");
    assert!(events.iter().any(|event| event["choices"][0]["finish_reason"] == "length"));
    record_of(&ember, receipt["request_id"].as_str().unwrap());
    let hi = chat("assistant", "Hi.", json!({"max_tokens": 1}));
    let mut requests = 1;
    until("no money is left", || {
        requests += 1;
        let reply = app.ask(&hi);
        (reply.status == 429 && code(&reply) == "insufficient_quota").then_some(())
    });
    assert!(spent(&ember, "app", requests) <= 10_000);
    until("the alarm", || ember.log().contains("a budget is used up").then_some(()));

    ember.kill();
    ember.start_again();
    let app = ember.client().with_key(&key);
    assert_eq!(code(&app.ask(&hi)), "insufficient_quota");
    ember.run(&["budget", "set", "key:app", "1.00/month", "--soft", "0.50"]).ok();
    app.ask(&hi).expect(200);
    ember.run(&["budget", "rm", "key:app"]).ok();
    assert_eq!(code(&app.ask(&hi)), "insufficient_quota", "the key's own holds again");
    ember.run(&["budget", "set", "function:assistant", "0.00/day"]).ok();
    assert_eq!(code(&ember.client().ask(&hi)), "insufficient_quota");
    ember.stop();
}
