//! Memory is promised before it is used: functions that together need thrice what there is take turns, and what can never
//! fit is refused when it is deployed. What is promised is what was measured, and it suffices for the most that may be asked.
//! While the kernel says that memory is short, less is promised.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, thread};
use tests::{Ember, Function, Random, Squeeze, chat, until};

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

/// Three functions whose caps are each nearly all there is, and whose needs are not.
#[test]
fn what_is_reserved_is_what_was_measured() {
    const CAP: u64 = 1 << 30;
    let mut ember = Ember::start_with("memory = \"1700MiB\"\n");
    let names = ["a", "b", "c"];
    for name in names {
        let function = Function::named(name).limit("memory = \"1GiB\"").limit("context = 512").limit("cpus = 1");
        ember = ember
            .with(&function.limit("request_bytes = \"64KiB\"").scale("concurrency = 1").scale("keep_warm = \"60s\""));
    }
    let client = ember.client();
    let reserved = client.get("/ember/v1/functions/a").json()["reserved_bytes"].as_u64().unwrap();
    assert!((64 << 20..CAP / 4).contains(&reserved), "{reserved}");
    for name in names {
        let reply = client.ask(&chat(name, "Hi", json!({"max_tokens": 2}))).expect(200).json();
        assert_eq!(reply["usage"]["ember"]["memory_mib"], reserved >> 20, "{reply}");
    }
    let instances = client.get("/ember/v1/instances").json()["data"].clone();
    let up: Vec<_> = instances.as_array().unwrap().iter().filter(|row| row["tier"] == "running").collect();
    assert_eq!(up.len(), names.len(), "all are up at once: {instances}");
    assert!(up.iter().all(|row| row["reserved_bytes"] == reserved), "{instances}");

    ember.signal(Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    let again = ember.client().get("/ember/v1/functions/a").json()["reserved_bytes"].as_u64();
    assert_eq!(again, Some(reserved), "it is known after a restart");
    ember.stop();
}

/// Whatever may be asked at most: each slot's context full, the longest text, and one that makes the most of a tokenizer.
#[test]
fn what_is_reserved_suffices_for_the_most_that_may_be_asked() {
    const SLOTS: usize = 2;
    let function =
        Function::named("full").limit("memory = \"2GiB\"").limit("context = 512").limit("output_tokens = 512");
    let ember = Ember::start().with(&function.scale(&format!("concurrency = {SLOTS}")));
    let fills = |seed: usize| {
        let prompt = format!("{seed}: {}", "all the rivers run into the sea ".repeat(40));
        let options = json!({"max_tokens": 512, "temperature": 1, "seed": seed, "logprobs": true, "top_logprobs": 20});
        (chat("full", &prompt, options), 200)
    };
    let word = || (json!({"model": "full", "prompt": "a".repeat(1_000_000), "max_tokens": 1}), 400);
    let mixed = || (json!({"model": "full", "prompt": "a1!".repeat(333_000), "max_tokens": 1}), 400);
    for round in [[fills(1), fills(2)], [word(), word()], [mixed(), fills(3)], [word(), fills(4)]] {
        let asked = round.map(|(request, status)| {
            let client = ember.client();
            thread::spawn(move || client.ask(&request).expect(status))
        });
        asked.into_iter().for_each(|asked| drop(asked.join().unwrap()));
    }
    let log = ember.log();
    assert!(!log.contains("memory limit") && !log.contains("reserved for it"), "{log}");
    ember.stop();
}

/// A figure of `/metrics`, bytes.
fn figure(ember: &Ember, name: &str) -> u64 {
    let page = ember.client().get("/metrics").expect(200);
    let text = String::from_utf8(page.body).expect("metrics are text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}")) as u64
}

fn running(ember: &Ember) -> usize {
    let instances = ember.client().get("/ember/v1/instances").json()["data"].clone();
    instances.as_array().expect("a list").iter().filter(|row| row["tier"] == "running").count()
}

/// Real pressure, in a group beside Ember that Ember is told to look at: less of the memory may be promised, and what is idle
/// gives way, until it is over.
#[test]
fn while_memory_is_short_less_of_it_is_promised() {
    let names = ["a", "b", "c", "d"];
    let awake = |ember: Ember| names.iter().fold(ember, |ember, name| ember.awake(name));
    let mut squeeze = Squeeze::prepare();
    let pressure = format!("memory_pressure = \"{}\"\n", squeeze.pressure().display());
    let mut ember = Ember::start_with(&pressure);
    for name in names {
        let kept = Function::named(name).limit("context = 512").limit("cpus = 1").limit("request_bytes = \"64KiB\"");
        let kept = kept.scale("concurrency = 1").scale("keep_warm = \"10m\"").scale("park = \"10m\"");
        ember = ember.with(&kept);
    }
    ember = awake(ember);
    // Nearly all there is will be promised. The length of an image counts as half a reservation until it was decoded.
    let reserved = ember.client().get("/ember/v1/functions/a").json()["reserved_bytes"].as_u64().unwrap();
    let memory = (figure(&ember, "ember_memory_leased_bytes") + reserved / 2).div_ceil(1 << 20);
    fs::write(ember.scratch().join("emberd.toml"), format!("{pressure}memory = \"{memory}MiB\"\n")).unwrap();
    ember.signal(Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    ember = awake(ember);
    let usable = |ember: &Ember| figure(ember, "ember_memory_usable_bytes") >> 20;
    assert_eq!((usable(&ember), running(&ember)), (memory, names.len()));

    squeeze.begin();
    until("less may be promised", || (usable(&ember) < memory).then_some(()));
    until("one gives way", || (running(&ember) < names.len()).then_some(()));
    assert!(ember.log().contains("the kernel reports memory pressure"));
    squeeze.end();
    until("all may be promised", || (usable(&ember) == memory).then_some(()));
    ember = awake(ember);
    assert_eq!(running(&ember), names.len());
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
