//! Memory is promised before it is used: functions that together need thrice what there is take turns, and what can never
//! fit is refused when it is deployed.

use serde_json::{Value, json};
use std::{collections::BTreeMap, thread};
use tests::{Ember, Function, Random, chat};

const FUNCTIONS: usize = 10;
const CLIENTS: usize = 6;
const REQUESTS_EACH: usize = 8;
/// A third of what the functions need: 10 × 320 MiB and a model of 94 MiB.
const MEMORY: &str = "memory = \"1100MiB\"\n";

fn name(function: usize) -> String {
    format!("f{function}")
}

fn function(function: usize) -> Function {
    let limited = Function::named(&name(function)).limit("memory = \"320MiB\"").limit("context = 512");
    // An answer that shares its batch may differ by what rounding makes of it.
    limited.limit("cpus = 1").scale("concurrency = 1").system(&format!("You are number {function}."))
}

fn request(function: usize) -> Value {
    chat(&name(function), "Who are you?", json!({"max_tokens": 8, "temperature": 0}))
}

#[test]
fn ten_functions_in_a_third_of_their_memory_all_answer() {
    let mut ember = Ember::start_with(MEMORY);
    for number in 0..FUNCTIONS {
        ember = ember.with(&function(number));
    }
    let clients = (0..CLIENTS).map(|client| {
        let (ember, mut random) = (ember.client(), Random::seeded(client as u64));
        thread::spawn(move || {
            let chosen = std::iter::repeat_with(|| random.below(FUNCTIONS)).take(REQUESTS_EACH);
            let ask = |number| (number, ember.ask(&request(number)).expect(200).json()["choices"].clone());
            chosen.map(ask).collect::<Vec<_>>()
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut said: BTreeMap<usize, Value> = BTreeMap::new();
    for client in clients {
        for (number, answer) in client.join().unwrap() {
            assert_eq!(
                *said.entry(number).or_insert_with(|| answer.clone()),
                answer,
                "{} says one thing",
                name(number)
            );
        }
    }
    assert_eq!(said.len(), FUNCTIONS);
    let log = ember.log();
    assert!(log.contains("gives way"), "they do not all fit");
    for wrong in ["memory limit", "not woken", "gone while", "WARN", "ERROR"] {
        assert!(!log.contains(wrong), "{wrong}: {log}");
    }
    ember.stop();
}

#[test]
fn what_can_never_fit_is_not_deployed() {
    let ember = Ember::start_with("memory = \"300MiB\"\n");
    let refused = ember.deploy(&function(1)).refused();
    let reason = "an instance of the function needs 573 MiB with its model, and functions have 300 MiB on this machine";
    assert!(refused.contains(reason), "{refused}");
    assert!(ember.client().get("/ember/v1/functions/f1").status == 404);
    ember.stop();
}
