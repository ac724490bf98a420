//! What is metered survives: kills of the server and of the ledger lose nothing and double nothing, and a ledger that does
//! not keep up stops what cannot be metered.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tests::{Client, Ember, Raw, Role, assistant, chat, until};

/// Long enough for two heartbeats.
const BEATS: Duration = Duration::from_millis(2500);
/// Kills of the ledger under load, after each of which the supervisor waits longer; more: `EMBER_LEDGER_KILLS=200 cargo test
/// --release --locked --workspace --test metering`. Many at once: `appliance/ledger/tests/process.rs`.
const KILLS: usize = 6;
/// More requests than a ring has room for.
const REQUESTS_MAX: usize = 20_000;

fn records_of(ember: &Ember, id: &str) -> Vec<Value> {
    ember.ledger().into_iter().filter(|record| record["request"] == id).collect()
}

#[test]
fn a_killed_servers_request_is_billed_once_up_to_its_last_heartbeat() {
    let long = assistant().limit("context = 4096").limit("output_tokens = 3000");
    let mut ember = Ember::serving(&long).awake("assistant");
    let endless = chat("assistant", "Tell me a story.", json!({"max_tokens": 3000, "logit_bias": {"2": -100}}));
    let began = Instant::now();
    let mut stream = ember.client().ask_streamed(&endless);
    let id = stream.headers["x-request-id"].to_str().unwrap().to_owned();
    let mut events: u64 = 0;
    while began.elapsed() < BEATS {
        stream.next().expect("the stream runs");
        events += 1;
    }
    assert_eq!(records_of(&ember, &id), [] as [Value; 0]);
    ember.process(Role::Server).kill();
    let lived = began.elapsed();
    events += stream.count() as u64;

    let record = until("the ledger has it", || records_of(&ember, &id).pop());
    assert_eq!((&record["outcome"], &record["function"]), (&json!("interrupted"), &json!("assistant")), "{record}");
    let number = |field: &str| record[field].as_u64().unwrap();
    // A token is an event at most, and the runner was ahead of what we read.
    assert!(number("tokens_out") > 0 && number("tokens_out") <= 2 * events, "{events} events, {record}");
    assert!(number("tokens_in") > 0 && number("prefill_us") > 0 && number("memory_bytes") > 0, "{record}");
    let used_us = number("prefill_us") + number("decode_us");
    assert!(used_us > 0 && u128::from(used_us) <= lived.as_micros(), "{record}");
    assert!(number("ended_unix_ms") > number("came_unix_ms"), "{record}");

    let again =
        until("the service answers again", || ember.client().try_ask(&chat("assistant", "Hi.", json!({}))).ok());
    let next = again.expect(200).header("x-request-id").to_owned();
    until("the ledger has the next", || records_of(&ember, &next).pop());
    assert_eq!(records_of(&ember, &id).len(), 1);
    ember.stop();
}

/// Asks until told to end; the ids of what was answered. While the ledger is down for long, rings fill up.
fn asking(client: Client, ends: Arc<AtomicBool>) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let request = json!({"model": "assistant", "content": "Once upon a time"});
        let mut ids = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let reply = client.post("/tokenize", &request);
            if reply.status != 503 {
                ids.push(reply.expect(200).header("x-request-id").to_owned());
            }
        }
        ids
    })
}

#[test]
fn a_ledger_killed_again_and_again_loses_and_doubles_nothing() {
    let mut ember = Ember::serving(&assistant()).awake("assistant");
    let ends = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..2).map(|_| asking(ember.client(), Arc::clone(&ends))).collect();
    let kills = env::var("EMBER_LEDGER_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    for kill in 0..kills {
        ember.process(Role::Ledger).kill();
        // So that kills fall on starts, on batches, and on sleeps.
        thread::sleep(Duration::from_millis(kill as u64 * 37 % 300));
    }
    ends.store(true, Ordering::Relaxed);
    let ids: Vec<String> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    let data = ember.data();
    let counted = |ember: &Ember| {
        let mut counted: HashMap<String, usize> = HashMap::new();
        for record in ember.ledger() {
            *counted.entry(record["request"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        counted
    };
    until("the ledger has all", || {
        Some(counted(&ember)).filter(|counted| ids.iter().all(|id| counted.contains_key(id)))
    });
    let counted = counted(&ember);
    assert_eq!(counted.values().filter(|count| **count > 1).count(), 0, "doubled");
    assert_eq!(counted.len(), ids.len(), "in {}", data.display());
    println!("{} requests, each once, over {kills} kills", ids.len());
    ember.stop();
}

/// A request that is refused for its length, which is metered, and costs no instance its time.
struct Cheap {
    connection: Raw,
    request: String,
}

impl Cheap {
    fn new(ember: &Ember) -> Self {
        let body = chat("assistant", &"x".repeat(2048), json!({})).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n",
            ember.admin_key(),
            body.len()
        );
        Self { connection: ember.raw(), request: head + &body }
    }

    fn ask(&mut self) -> tests::Reply {
        assert!(self.connection.send(&self.request));
        self.connection.reply().expect("a reply")
    }
}

#[test]
fn a_ledger_that_stands_still_stops_requests_and_then_has_them_all() {
    let mut ember = Ember::serving(&assistant().limit("request_bytes = 1024")).awake("assistant");
    let ledger = ember.process(Role::Ledger);
    ledger.signal(Signal::SIGSTOP);
    let mut cheap = Cheap::new(&ember);
    let mut ids = Vec::new();
    let refused = loop {
        let reply = cheap.ask();
        if reply.status == 503 {
            break reply;
        }
        assert_eq!(reply.status, 413);
        ids.push(reply.header("x-request-id").to_owned());
        assert!(ids.len() < REQUESTS_MAX, "the ring is never full");
    };
    assert!(ids.len() > 2000, "{} requests had room", ids.len());
    let error = refused.error(503);
    assert_eq!((&error["code"], refused.header("retry-after")), (&json!("unavailable"), "1"));
    assert!(error["message"].as_str().unwrap().contains("the ledger lags behind"), "{error}");
    assert_eq!(cheap.ask().status, 503, "still");

    ledger.signal(Signal::SIGCONT);
    let last = until("requests are metered again", || Some(cheap.ask()).filter(|reply| reply.status == 413));
    ids.push(last.header("x-request-id").to_owned());
    let known = || ember.ledger().into_iter().filter_map(|record| record["request"].as_str().map(str::to_owned));
    until("the ledger has the last", || known().find(|id| Some(id) == ids.last()));
    assert_eq!(known().collect::<Vec<_>>(), ids, "all, once, in order, and nothing of what was refused");
    ember.stop();
}
