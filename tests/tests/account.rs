//! Bills and the box's own account add up to what instances lived, after whatever happened to them. For as long as wanted:
//! `EMBER_ACCOUNT_ROUNDS=200 cargo test --release --locked --workspace --test account -- --nocapture` prints both sides.

use serde_json::{Value, json};
use std::{env, thread};
use tests::{Ember, Function, Role, chat, text_of, until};

/// Rounds of load, unless the environment says more.
const ROUNDS: u32 = 3;

fn long(function: &str, tokens: u32) -> Value {
    chat(function, "Tell me a story.", json!({"max_tokens": tokens, "logit_bias": {"2": -100}}))
}

fn system(ember: &Ember) -> Vec<Value> {
    ember.client().get("/ember/v1/instances").json()["system"].as_array().expect("a list").clone()
}

fn sum(values: &[Value], parts: &[&str], unit: &str) -> u64 {
    let of =
        |value: &Value, part: &str| if part.is_empty() { value[unit].as_u64() } else { value[part][unit].as_u64() };
    values.iter().flat_map(|value| parts.iter().map(move |part| of(value, part).unwrap_or_default())).sum()
}

/// Overlapping answers, whole and streamed, clients who leave, and a runner that is killed.
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
    let mut ember = Ember::serving(&shared("one")).with(&shared("two"));
    let requests = mix(&mut ember);
    ember.run(&["stop", "one"]);
    ember.run(&["stop", "two"]);
    let ledger = until("the ledger has all", || Some(ember.ledger()).filter(|records| records.len() >= requests));
    assert_eq!(ledger.len(), requests);
    let system = until("all have ended", || {
        let first = system(&ember);
        (sum(&first, &["life"], "us") == sum(&system(&ember), &["life"], "us")).then_some(first)
    });
    let own = ["idle", "provision", "waste"];
    for (unit, billed) in [
        ("us", sum(&ledger, &[""], "share_us") + sum(&ledger, &[""], "wake_share_us")),
        ("cpu_us", sum(&ledger, &[""], "cpu_us")),
        ("reserved_byte_ms", sum(&ledger, &[""], "reserved_byte_ms")),
        ("used_byte_ms", sum(&ledger, &[""], "used_byte_ms")),
    ] {
        let (own, life) = (sum(&system, &own, unit), sum(&system, &["life"], unit));
        let part = |part: &str| sum(&system, &[part], unit);
        println!(
            "{unit}: {billed} billed + {own} own ({} idle, {} provision, {} waste) = {}, machine {life}",
            part("idle"),
            part("provision"),
            part("waste"),
            billed + own,
        );
        assert!(billed > 0 && life > 0, "{unit}: {billed} of {life}");
        assert!((billed + own).abs_diff(life) <= life / 10_000, "{unit}: {billed} + {own} against {life}");
    }
    ember.stop();
}
