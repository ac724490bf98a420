//! Bills and the box's own account add up to what the machine gave, after whatever happened: time and memory by the clock of
//! who makes the processes, CPU time by the kernel's count for all of them together, those that are gone included. For as long
//! as wanted: `EMBER_ACCOUNT_ROUNDS=200 cargo test --release --locked --workspace --test account -- --nocapture` prints both sides.

use serde_json::{Value, json};
use std::{env, fs, path::Path, thread};
use tests::{Ember, Function, Role, chat, text_of, until};

/// Rounds of load, unless the environment says more.
const ROUNDS: u32 = 3;
/// The box's own parts of the lives.
const OWN: [&str; 6] = ["idle", "provision", "capture", "trial", "spare", "waste"];

fn long(function: &str, tokens: u32) -> Value {
    chat(function, "Tell me a story.", json!({"max_tokens": tokens, "logit_bias": {"2": -100}}))
}

/// The box's own account and the machine's.
fn account(ember: &Ember) -> Value {
    ember.client().get("/ember/v1/instances").json()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {value}"))
}

/// A part of the account, of all functions.
fn part(account: &Value, part: &str, unit: &str) -> u64 {
    account["system"].as_array().expect("a list").iter().map(|function| number(&function[part], unit)).sum()
}

/// CPU time in the kernel's own file, of either version, µs.
fn kernel_cpu_us(file: &Path) -> u64 {
    let text = fs::read_to_string(file).expect("the kernel counts CPU time");
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(us) => number(us),
        None => number(&text) / 1_000,
    }
}

/// Overlapping answers, whole and streamed, clients who leave, functions moved up and down by hand between them, and a runner
/// that is killed.
fn mix(ember: &mut Ember) -> usize {
    let mut requests = 0;
    let rounds = env::var("EMBER_ACCOUNT_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds {
        thread::scope(|scope| {
            for function in ["one", "two"] {
                for index in 0..4_u32 {
                    let client = ember.client();
                    requests += 1;
                    scope.spawn(move || match (index + round) % 4 {
                        0 => drop(client.ask(&long(function, 24))),
                        1 => drop(client.ask_streamed(&long(function, 60)).take(5).collect::<Vec<_>>()),
                        2 => drop(client.ask_streamed(&long(function, 40)).collect::<Vec<_>>()),
                        _ => drop(client.post("/tokenize", &json!({"model": function, "content": "Hello there."}))),
                    });
                }
            }
        });
        match round % 3 {
            0 => drop(ember.run(&["park", "one"])),
            1 => drop(ember.run(&["stop", "two"])),
            _ => drop(ember.run(&["snapshot", "create", "one"])),
        }
    }
    let mut stream = ember.client().ask_streamed(&long("one", 200));
    stream.by_ref().find(|event| !text_of(event).is_empty()).expect("the stream has begun");
    ember.processes(Role::Runner).iter().for_each(|runner| runner.kill());
    stream.for_each(drop);
    requests + 1
}

#[test]
fn bills_and_the_boxs_own_account_are_the_machine_time() {
    let shared = |name| Function::named(name).scale("concurrency = 4").limit("output_tokens = 300");
    let mut ember = Ember::serving(&shared("one")).awake("one").with(&shared("two"));
    let kernel = ember.processes(Role::Runner).first().expect("`one` is awake").siblings_cpu();
    let requests = mix(&mut ember);
    ember.run(&["stop", "one"]);
    ember.run(&["stop", "two"]);
    let ledger = until("the ledger has all", || Some(ember.ledger()).filter(|records| records.len() >= requests));
    assert_eq!(ledger.len(), requests);
    let account = until("all have ended", || {
        let first = account(&ember);
        (part(&first, "life", "us") == part(&account(&ember), "life", "us")).then_some(first)
    });
    let kernel_us = kernel_cpu_us(&kernel);
    // A record has byte·ms, an account that goes on for years byte·s.
    for (unit, billed, billed_per, machine) in [
        ("us", vec!["share_us", "wake_share_us"], 1, Some(number(&account["machine"], "us"))),
        ("cpu_us", vec!["cpu_us"], 1, Some(kernel_us)),
        ("reserved_byte_s", vec!["reserved_byte_ms"], 1000, Some(number(&account["machine"], "reserved_byte_s"))),
        ("used_byte_s", vec!["used_byte_ms"], 1000, None),
    ] {
        let billed = billed.iter().flat_map(|field| ledger.iter().map(|record| number(record, field))).sum::<u64>();
        let billed = billed / billed_per;
        let own = OWN.map(|name| part(&account, name, unit));
        let kinds: Vec<_> = OWN.iter().zip(own).map(|(name, own)| format!("{name} {own}")).collect();
        let [late, life] = ["late", "life"].map(|name| part(&account, name, unit));
        let sum = billed + own.iter().sum::<u64>();
        println!("{unit}: {billed} billed + {} = {sum}; late {late}", kinds.join(" + "));
        let mut sides = vec![("lives", life)];
        sides.extend(machine.map(|machine| ("machine", machine + late)));
        for (name, side) in sides {
            let percent = (sum as f64 - side as f64) * 100.0 / side as f64;
            println!("  {name} {side}, which is {percent:+.5} % apart");
            assert!(sum.abs_diff(side) <= side / 10_000, "{unit}: {sum} against {name} {side}");
        }
        assert!(billed > 0 && own.iter().all(|own| *own > 0), "{unit}: {billed} billed, {own:?}");
    }
    assert!(number(&account["machine"], "cpu_us").abs_diff(kernel_us) <= kernel_us / 10_000);
    println!("{}", ember.run(&["usage", "machine"]).ok());
    let claims = String::from_utf8(ember.client().get("/metrics").expect(200).body).expect("text");
    let corrected = claims.lines().filter(|line| line.starts_with("ember_claims_corrected_total{"));
    let corrected: Vec<_> = corrected.filter(|line| !line.ends_with(" 0")).collect();
    assert!(corrected.is_empty(), "an honest runner is believed: {corrected:?}");
    ember.stop();
}
