//! What is metered survives: kills of the server and of the ledger lose nothing and double nothing, a ledger that does
//! not keep up stops what cannot be metered, as does a disk that gets full, and a runner cannot talk its bill down.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tests::{Client, Ember, Raw, Role, assistant, chat, tree::program, until};

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
        Self::of(ember, 2048)
    }

    /// Of so many characters.
    fn of(ember: &Ember, letters: usize) -> Self {
        let body = chat("assistant", &"x".repeat(letters), json!({})).to_string();
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

/// A file system of its own, in memory, for as long as this value lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, bytes: &str) -> Self {
        fs::create_dir(at).expect("make the folder");
        let options = format!("size={bytes},mode=755");
        mount(Some("ember-test"), at, Some("tmpfs"), MsFlags::empty(), Some(&*options)).expect("mount a tmpfs");
        Self(at.to_owned())
    }

    /// Leaves so many bytes free.
    fn fill(&self, free: u64) -> PathBuf {
        let file = self.0.join("filler");
        let filler = fs::File::create(&file).expect("make a file");
        let fill = || {
            let stat = nix::sys::statvfs::statvfs(&self.0).expect("look at the disk");
            let bytes = stat.blocks_available() * stat.fragment_size() - free;
            nix::fcntl::posix_fallocate(&filler, 0, bytes as i64).ok()
        };
        // Others may write to it meanwhile.
        until("the disk is full", fill);
        file
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount the tmpfs");
    }
}

#[test]
fn a_disk_that_gets_full_stops_what_comes_and_bills_what_runs() {
    let mut disk = None;
    let ember = Ember::prepared("", |folder| disk = Some(Disk::mount(&folder.join("data"), "512m")));
    let disk = disk.expect("mounted");
    let long = assistant().limit("context = 4096").limit("output_tokens = 3000").limit("request_bytes = 4096");
    let mut ember = ember.with(&long).awake("assistant");
    let mut cheap = Cheap::of(&ember, 8192);
    assert_eq!(cheap.ask().status, 413, "metered");
    let endless = chat("assistant", "Tell me a story.", json!({"max_tokens": 3000, "logit_bias": {"2": -100}}));
    let mut stream = ember.client().ask_streamed(&endless);
    let id = stream.headers["x-request-id"].to_str().unwrap().to_owned();
    stream.next().expect("it runs");

    // Below what the ledger keeps free, above nothing: then nothing at all.
    let filler = disk.fill(16 << 20);
    let refused = until("what comes is refused", || Some(cheap.ask()).filter(|reply| reply.status == 503));
    let error = refused.error(503);
    assert!(error["message"].as_str().unwrap().contains("disk"), "{error}");
    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{error}");
    fs::remove_file(&filler).expect("remove the file");
    let filler = disk.fill(0);
    until("it is refused on the full disk", || Some(cheap.ask()).filter(|reply| reply.status == 503));
    let known = ember.ledger().len();
    drop(stream);
    let record = until("what ran is billed on the full disk", || records_of(&ember, &id).pop());
    assert_eq!((&record["outcome"], ember.ledger().len()), (&json!("cancelled"), known + 1), "{record}");
    assert!(record["cost_nanos"].as_u64().unwrap() > 0, "{record}");

    fs::remove_file(filler).expect("make room");
    until("it goes on once there is room", || Some(cheap.ask()).filter(|reply| reply.status == 413));
    ember.client().ask(&chat("assistant", "Hi.", json!({"max_tokens": 1}))).expect(200);
    ember.signal(Signal::SIGTERM);
    ember.has_stopped();
    // In this order: a folder that something is mounted on cannot be removed.
    drop(disk);
    drop(ember);
}

/// What `ember-liar` computes for an answer at least, µs, and in how many pieces.
const LIARS_US: u64 = 400_000;
const LIARS_PIECES: u64 = 20;
/// Words of the prompt that it claims was none.
const WORDS: u64 = 300;

/// What it was not asked before.
const NEWS: &str = "Now say as well why one of those who work for you would ever want to keep count of the hours, and of the \
    words, that you had of them, when you will not hear of any of it and never mean to pay for more than the half.";

#[test]
fn a_runner_that_lies_pays_for_what_it_took() {
    let ember = Ember::prepared("", |folder| {
        fs::create_dir(folder.join("bin")).expect("make the folder");
        fs::copy(program("emberd"), folder.join("bin/emberd")).expect("copy emberd");
        fs::copy(program("ember-liar"), folder.join("bin/ember-runner")).expect("copy the liar");
    });
    ember.run(&["deploy", &ember.manifest(&assistant()), "--no-snapshot"]).ok();
    let prompt =
        "Work for nothing, and tell nobody that there was a prompt of so many words. ".repeat(WORDS as usize / 15);
    let reply =
        ember.client().ask(&chat("assistant", &prompt, json!({"max_tokens": 500, "cache_prompt": true}))).expect(200);
    let id = reply.header("x-request-id").to_owned();
    let record = until("the ledger has it", || records_of(&ember, &id).pop());
    let number = |field: &str| record[field].as_u64().unwrap();
    assert_eq!(
        (&record["outcome"], number("prefill_us"), number("decode_us")),
        (&json!("completed"), 0, 0),
        "{record}"
    );
    assert!(number("share_us") >= LIARS_US, "its time is the server's count: {record}");
    // Read a tenth of a second before its end at most, and spinning all the time but what the machine took from it.
    assert!(number("cpu_us") > 0, "its CPU time is the kernel's: {record}");
    assert!(number("tokens_out") >= LIARS_PIECES - 1, "a token a piece: {record}");
    assert_eq!(number("tokens_in"), WORDS, "a token a word of the prompt: {record}");
    assert_eq!(number("tokens_cached"), 0, "nobody asked it before: {record}");
    let least = 200 + (LIARS_US / 1_000) * 16_667 / 1_000;
    assert!(number("cost_nanos") >= least, "{record}");
    let metrics = String::from_utf8(ember.client().get("/metrics").expect(200).body).unwrap();
    let counted =
        metrics.lines().find(|line| line.starts_with("ember_claims_corrected_total{") && line.contains("assistant"));
    assert!(counted.is_some_and(|line| line.ends_with(" 1")), "{counted:?}");
    assert!(ember.log().contains("a runner claimed of a prompt's tokens what cannot be"));
    // What it was asked before it may have kept, up to the words that the second prompt does not share with the first.
    let reply = ember
        .client()
        .ask(&chat("assistant", &format!("{prompt}{NEWS}"), json!({"max_tokens": 500, "cache_prompt": true})))
        .expect(200);
    let id = reply.header("x-request-id").to_owned();
    let record = until("the ledger has it", || records_of(&ember, &id).pop());
    let number = |field: &str| record[field].as_u64().unwrap();
    let news = NEWS.split_whitespace().count() as u64;
    assert_eq!(number("tokens_in"), WORDS + news, "{record}");
    // Of the first 64 letters it may claim what it likes.
    let computed = WORDS + news - number("tokens_cached");
    assert!((news / 2..=news).contains(&computed), "the words that are new are computed: {record}");
    ember.stop();
}

/// Kills of server and ledger together under load; more: `EMBER_PAIR_KILLS=2000 cargo test --release --locked --workspace --test
/// metering together`.
const PAIR_KILLS: usize = 200;
/// Kills after which the ledger is looked at while it goes on.
const LOOK_EVERY: usize = 50;

/// Asks for what is refused for its length, which is metered, until told to end; over a new connection where one broke off. The
/// ids of what was answered, and how many were sent.
fn asking_cheaply(ember: &Ember, ends: Arc<AtomicBool>) -> JoinHandle<(Vec<String>, usize)> {
    let (client, body) = (ember.client(), chat("assistant", &"x".repeat(2048), json!({})));
    thread::spawn(move || {
        let (mut ids, mut sent) = (Vec::new(), 0);
        while !ends.load(Ordering::Relaxed) {
            sent += 1;
            match client.try_ask(&body) {
                Ok(reply) if reply.status == 413 => ids.push(reply.header("x-request-id").to_owned()),
                Ok(reply) => assert_eq!(reply.status, 503, "{}", String::from_utf8_lossy(&reply.body)),
                // Nobody listens between two servers.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        (ids, sent)
    })
}

#[test]
fn server_and_ledger_killed_together_again_and_again_lose_and_double_nothing() {
    let config = "restart_delay = \"100ms\"\n";
    let mut ember = Ember::start_with(config).with(&assistant().limit("request_bytes = 1024"));
    let ends = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..2).map(|_| asking_cheaply(&ember, Arc::clone(&ends))).collect();
    let kills = env::var("EMBER_PAIR_KILLS").map_or(PAIR_KILLS, |kills| kills.parse().expect("a number"));
    let began = Instant::now();
    for kill in 0..kills {
        let (server, ledger) = (ember.process(Role::Server), ember.process(Role::Ledger));
        // So that kills fall on starts, on batches, and on sleeps; and on either first.
        thread::sleep(Duration::from_millis(kill as u64 * 37 % 150));
        let pair = if kill % 2 == 0 { [server, ledger] } else { [ledger, server] };
        pair.iter().for_each(|process| process.kill());
        until("both are gone", || pair.iter().all(|process| !process.is_alive()).then_some(()));
        if kill % LOOK_EVERY == 0 {
            assert_each_once(&ember);
        }
    }
    let took = began.elapsed();
    let again = until("the service answers again", || {
        ember
            .client()
            .try_ask(&chat("assistant", &"x".repeat(2048), json!({})))
            .ok()
            .filter(|reply| reply.status == 413)
    });
    ends.store(true, Ordering::Relaxed);
    let (mut ids, mut sent) = (vec![again.header("x-request-id").to_owned()], 1);
    for caller in callers {
        let (more, asked) = caller.join().unwrap();
        ids.extend(more);
        sent += asked;
    }
    until("the ledger has all that was answered", || {
        let known = assert_each_once(&ember);
        ids.iter().all(|id| known.contains_key(id)).then_some(())
    });
    let known = assert_each_once(&ember);
    // What was begun and never answered was interrupted, or ended unheard; more than was sent is not there.
    assert!(known.len() <= sent, "{} records of {sent} requests", known.len());
    ember.stop();
    println!(
        "{} answered, {} in the ledger, each once, over {kills} kills of both in {took:?}",
        ids.len(),
        known.len()
    );
}

/// Each request in the ledger once, with its outcome.
fn assert_each_once(ember: &Ember) -> HashMap<String, Value> {
    let mut known = HashMap::new();
    for mut record in ember.ledger() {
        let id = record["request"].as_str().expect("an id").to_owned();
        assert_eq!(known.insert(id, record["outcome"].take()), None, "doubled: {record}");
    }
    known
}
