//! Everything at once, for as long as wanted: callers ask, stream, leave and set deadlines, while runners are killed and
//! functions woken, parked, stopped and deployed anew in less memory than they need.
//!
//! ```text
//!  deploy ─▶ load ─▶ rest: what is held? ─▶ load ─▶ rest: no more is held ─▶ the ledger agrees ─▶ all answer ─▶ stop
//! ```
//!
//! Every request ends in exactly one way, which its caller was told and the ledger has. What is drawn is the same in
//! every run, what meets what is not, and nothing is asserted of times. Short in `make test`; the long form, which says
//! what it has done:
//!
//! `EMBER_SOAK_SECONDS=1200 cargo test --release --locked --workspace --test soak -- --nocapture`
//!
//! Left out: kills of server, warden and ledger, after which a connection may break off: `faults.rs`.

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use tests::{Client, Ember, Function, Process, Random, Raw, Reply, Role, Run, Stream, chat, until};

const SECONDS: u64 = 15;
const CALLERS: u64 = 6;
/// Three instances of 320 MiB and the model of 94 MiB, where the functions have five.
const MEMORY: &str = "memory = \"1100MiB\"\n";
const CHATS: [&str; 3] = ["wide", "twin", "quick"];
const VECTORS: &str = "vectors";
const SYSTEMS: [&str; 2] = ["You are brief.", "You are a pirate. Answer as one."];
/// The server's memory after the load, over that after the first load. What a burst took stays with the allocator, and a
/// later burst may be larger; a KiB lost with each request is more than this in the long form.
const GROWTH_MAX: f64 = 1.5;

/// What a caller may be told in place of an answer, and the ledger's word for it; none where no function was reached.
const ERRORS: [(u16, &str, Option<&str>); 5] = [
    (400, "context_length_exceeded", Some("refused")),
    (404, "model_not_found", None),
    (502, "runner_failed", Some("runner_failed")),
    (503, "unavailable", Some("refused")),
    (504, "deadline_exceeded", Some("deadline_exceeded")),
];
const OUTCOMES: [&str; 5] = ["completed", "refused", "cancelled", "deadline_exceeded", "runner_failed"];

fn function(name: &str, system: &str) -> Function {
    let small = Function::named(name).limit("memory = \"320MiB\"").limit("context = 512").limit("timeout = \"20s\"");
    let brief = small.scale("keep_warm = \"1s\"").scale("park = \"3s\"").scale("queue = 4");
    let function = brief.scale("queue_timeout = \"10s\"");
    if name == VECTORS {
        return function.limit("cpus = 1").scale("concurrency = 1").task("embedding");
    }
    let function = function.system(system);
    match name {
        "wide" => function.limit("cpus = 2").scale("concurrency = 2"),
        "twin" => function.limit("cpus = 1").scale("concurrency = 1").scale("max = 2"),
        _ => function.limit("cpus = 1").scale("concurrency = 2"),
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    CHATS.into_iter().chain([VECTORS])
}

/// How a request ended, as its caller saw it.
#[derive(Clone, Copy, Debug)]
enum End {
    /// In an answer or a typed error, for which the ledger has this word.
    Outcome(&'static str),
    /// In a typed error, before it reached a function.
    Nowhere,
    /// The caller left.
    Left,
}

/// A request that ended.
struct Ended {
    kind: &'static str,
    /// None where the caller left before it was told.
    id: Option<String>,
    end: End,
}

/// One who asks, one request after the other.
struct Caller {
    client: Client,
    address: SocketAddr,
    ca_pem: Vec<u8>,
    key: String,
    random: Random,
}

/// A kind of request: what it is called, and how it is made.
type Kind = (&'static str, fn(&mut Caller) -> (Option<String>, End));
const KINDS: [Kind; 11] = [
    ("whole", |caller| whole(caller.plainly().ask(&caller.story()))),
    ("stream", |caller| streamed(&caller.plainly(), &caller.story(), usize::MAX)),
    ("left", |caller| streamed(&caller.plainly(), &caller.story(), caller.random.below(6))),
    ("hung up", Caller::hang_up),
    ("deadline", |caller| whole(caller.in_a_hurry().ask(&caller.story()))),
    ("deadline, stream", |caller| streamed(&caller.in_a_hurry(), &caller.story(), usize::MAX)),
    ("batch", |caller| whole(caller.in_no_hurry().ask(&caller.story()))),
    ("batch, stream", |caller| streamed(&caller.in_no_hurry(), &caller.story(), usize::MAX)),
    ("vectors", |caller| {
        whole(caller.client.post("/v1/embeddings", &json!({"model": VECTORS, "input": ["a cat", "tax law"]})))
    }),
    ("tokens", |caller| {
        let model = caller.random.one_of(&CHATS);
        whole(caller.client.post("/tokenize", &json!({"model": model, "content": "Once upon a time"})))
    }),
    ("wrong", |caller| {
        let wrong = [chat("nobody", "Hello.", json!({})), chat("quick", &"many words ".repeat(600), json!({}))];
        whole(caller.client.ask(&wrong[caller.random.below(2)]))
    }),
];

impl Caller {
    fn new(ember: &Ember, seed: u64) -> Self {
        let random = Random::seeded(seed);
        Self {
            client: ember.client(),
            address: ember.address(),
            ca_pem: ember.ca_pem(),
            key: ember.admin_key(),
            random,
        }
    }

    /// Asks until it is over, and for each kind of request once at least.
    fn ask(mut self, over: &AtomicBool) -> Vec<Ended> {
        let mut ended = Vec::new();
        loop {
            for (kind, make) in self.random.shuffled(&KINDS) {
                let (id, end) = make(&mut self);
                ended.push(Ended { kind, id, end });
                if over.load(Ordering::Relaxed) && ended.len() >= KINDS.len() {
                    return ended;
                }
            }
        }
    }

    /// A chat with any function, of any length.
    fn story(&mut self) -> Value {
        let with = json!({"max_tokens": 1 + self.random.below(48), "cache_prompt": self.random.below(2) == 0});
        chat(self.random.one_of(&CHATS), "Tell me a story.", with)
    }

    fn plainly(&self) -> Client {
        self.client.clone()
    }

    fn in_a_hurry(&mut self) -> Client {
        let ms = 1 + self.random.below(1500);
        self.client.with_header("x-ember-deadline-ms", &ms.to_string())
    }

    fn in_no_hurry(&self) -> Client {
        self.client.with_header("x-ember-class", "batch")
    }

    /// Sends a request, and closes the connection before anything came back.
    fn hang_up(&mut self) -> (Option<String>, End) {
        let (body, key) = (self.story().to_string(), &self.key);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut raw = Raw::connect(self.address, &self.ca_pem);
        assert!(raw.send(head + &body));
        thread::sleep(Duration::from_millis(self.random.below(300) as u64));
        (None, End::Left)
    }
}

/// What a whole reply says.
fn whole(reply: Reply) -> (Option<String>, End) {
    let id = reply.header("x-request-id").to_owned();
    let end = match reply.status {
        200 => End::Outcome(if reply.json().is_object() { "completed" } else { "no reply" }),
        status => typed(Some(status), &reply.error(status)),
    };
    (Some(id), end)
}

/// Asks for a stream and reads so many events of it.
fn streamed(client: &Client, request: &Value, events_max: usize) -> (Option<String>, End) {
    match client.try_stream("/v1/chat/completions", request) {
        Err(reply) => whole(*reply),
        Ok(mut stream) => (Some(id(&stream)), read(&mut stream, events_max)),
    }
}

fn read(stream: &mut Stream, events_max: usize) -> End {
    for _ in 0..events_max {
        match stream.next() {
            Some(event) if !event["error"].is_null() => {
                assert!(stream.next().is_none() && !stream.is_done(), "nothing comes after {event}");
                return typed(None, &event["error"]);
            }
            Some(_) => {}
            None => {
                assert!(stream.is_done(), "{}: the stream broke off", id(stream));
                return End::Outcome("completed");
            }
        }
    }
    End::Left
}

fn id(stream: &Stream) -> String {
    stream.headers["x-request-id"].to_str().expect("an id is text").to_owned()
}

/// An error that callers were told to expect; in a stream it has no status.
fn typed(status: Option<u16>, error: &Value) -> End {
    let is = |(of, code, _): &&(u16, &str, _)| error["code"] == **code && status.is_none_or(|status| status == *of);
    let (_, _, outcome) = ERRORS.iter().find(is).unwrap_or_else(|| panic!("nobody expects {status:?} {error}"));
    outcome.map_or(End::Nowhere, End::Outcome)
}

/// What an operator may do, or what may happen.
type Act = (&'static str, fn(&mut Ember, &mut Random) -> Option<Run>);
const ACTS: [Act; 7] = [
    ("kill", kill),
    ("kill", kill),
    ("wake", |ember, random| Some(ember.run(&["wake", any(random)]))),
    ("park", |ember, random| Some(ember.run(&["park", any(random)]))),
    ("stop", |ember, random| Some(ember.run(&["stop", any(random)]))),
    ("deploy", |ember, random| Some(ember.deploy(&function(any(random), random.one_of(&SYSTEMS))))),
    ("kill in a deploy", |ember, random| {
        let manifest = ember.manifest(&function(any(random), random.one_of(&SYSTEMS)));
        let mut command = ember.command(&["deploy", &manifest]);
        let deploy = thread::spawn(move || Run::of(&mut command));
        for _ in 0..2 {
            pause(random);
            kill(ember, random);
        }
        Some(deploy.join().expect("a run that ends"))
    }),
];

fn pause(random: &mut Random) {
    thread::sleep(Duration::from_millis(random.below(500) as u64));
}

fn any(random: &mut Random) -> &'static str {
    random.one_of(&names().collect::<Vec<_>>())
}

/// Kills any runner, if there is one.
fn kill(ember: &mut Ember, random: &mut Random) -> Option<Run> {
    let runners = ember.processes(Role::Runner);
    if !runners.is_empty() {
        runners[random.below(runners.len())].end();
    }
    None
}

/// Acts for so long, and in every way once at least; ends early where a caller has.
fn operate(ember: &mut Ember, mut random: Random, time: Duration, is_over: impl Fn() -> bool) {
    let began = Instant::now();
    loop {
        for (name, act) in random.shuffled(&ACTS) {
            if let Some(run) = act(ember, &mut random).filter(|run| run.code != 0) {
                let said = run.refused();
                assert!(!said.contains("(500)"), "{name}: {said}");
                eprintln!("{name} was refused: {}", said.trim());
            }
            pause(&mut random);
            if is_over() {
                return;
            }
        }
        if began.elapsed() >= time {
            return;
        }
    }
}

/// Tells callers that it is over, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everything at once for so long.
fn load(ember: &mut Ember, seed: u64, time: Duration) -> Vec<Ended> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let callers = (0..CALLERS).map(|number| Caller::new(ember, seed + number));
        let callers: Vec<_> = callers.collect();
        let callers: Vec<_> = callers.into_iter().map(|caller| scope.spawn(|| caller.ask(&over))).collect();
        let ending = Over(&over);
        operate(ember, Random::seeded(seed), time, || callers.iter().any(|caller| caller.is_finished()));
        drop(ending);
        callers.into_iter().flat_map(|caller| caller.join().expect("every request ends in one typed way")).collect()
    })
}

/// What is held at rest.
#[derive(Debug)]
struct Held {
    warden: Process,
    server: Process,
    warden_descriptors: usize,
    server_descriptors: usize,
    server_bytes: u64,
}

/// Has all functions as they were first, on disk only; what is held then, when nothing is left of any instance.
fn rest(ember: &mut Ember, groups: &Path) -> Held {
    names().for_each(|name| drop(ember.deploy(&function(name, SYSTEMS[0])).ok()));
    names().for_each(|name| drop(ember.run(&["stop", name]).ok()));
    until("no runner is left", || ember.processes(Role::Runner).is_empty().then_some(()));
    let folders = || fs::read_dir(groups).map_or(0, |all| all.flatten().filter(|entry| entry.path().is_dir()).count());
    until(&format!("no cgroup is left in {}", groups.display()), || (folders() == 0).then_some(()));
    let (warden, server) = (ember.process(Role::Warden), ember.process(Role::Server));
    Held {
        warden_descriptors: warden.descriptors(),
        server_descriptors: server.descriptors(),
        server_bytes: server.resident_bytes(),
        warden,
        server,
    }
}

/// Rests, and proves that no more is held than `before`.
fn rest_again(ember: &mut Ember, groups: &Path, before: &Held) {
    let after = rest(ember, groups);
    assert_eq!((&after.warden, &after.server), (&before.warden, &before.server), "neither was begun again");
    let more = |process: &Process, before: usize| process.descriptors() > before;
    until("the warden holds what it held", || (!more(&after.warden, before.warden_descriptors)).then_some(()));
    until("the server holds what it held", || (!more(&after.server, before.server_descriptors)).then_some(()));
    let bytes = (before.server_bytes, after.server_bytes);
    eprintln!("the server's memory: {} KiB, then {} KiB", bytes.0 >> 10, bytes.1 >> 10);
    assert!(bytes.1 as f64 <= bytes.0 as f64 * GROWTH_MAX, "the server's memory grew: {bytes:?}");
}

/// The ledger has each request that reached a function once, with the outcome that its caller saw.
fn assert_accounted(ember: &Ember, ended: &[Ended]) {
    let told: BTreeMap<&str, End> = ended.iter().filter_map(|ended| Some((ended.id.as_deref()?, ended.end))).collect();
    let unknown_max = ended.iter().filter(|ended| ended.id.is_none()).count();
    assert_eq!(told.len() + unknown_max, ended.len(), "no two requests have one id");
    let reached = |end: &End| !matches!(end, End::Nowhere);
    let awaited: BTreeSet<&str> = told.iter().filter(|(_, end)| reached(end)).map(|(id, _)| *id).collect();
    let id = |record: &Value| record["request"].as_str().expect("an id").to_owned();
    let records = until("the ledger has all requests", || {
        let records = ember.ledger();
        let ids: BTreeSet<String> = records.iter().map(id).collect();
        awaited.iter().all(|id| ids.contains(*id)).then_some(records)
    });
    let ids: BTreeSet<String> = records.iter().map(id).collect();
    assert_eq!(ids.len(), records.len(), "one record for each request");
    let mut unknown = 0;
    for record in &records {
        let outcome = record["outcome"].as_str().expect("an outcome");
        match told.get(&*id(record)) {
            Some(End::Outcome(told)) => assert_eq!(outcome, *told, "{record}"),
            Some(End::Nowhere) => panic!("it reached no function: {record}"),
            Some(End::Left) => assert!(OUTCOMES.contains(&outcome), "{record}"),
            None => unknown += 1,
        }
    }
    assert!(unknown <= unknown_max, "{unknown} records of nobody's, and {unknown_max} callers who know no id");
    assert_eq!(records.len(), awaited.len() + unknown);
}

/// How many requests of each kind ended in each way.
fn tell(ended: &[Ended]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    ended.iter().for_each(|ended| *counts.entry(format!("{}: {:?}", ended.kind, ended.end)).or_default() += 1);
    eprintln!("{} requests", ended.len());
    counts.iter().for_each(|(what, count)| eprintln!("{count:6} {what}"));
}

/// The folder that holds the cgroups of all instances, read while a request that is left then keeps one up.
fn groups(ember: &mut Ember) -> (PathBuf, Ended) {
    let long = chat("wide", "Tell me a story.", json!({"max_tokens": 400, "logit_bias": {"2": -100}}));
    let mut stream = ember.client().ask_streamed(&long);
    stream.next().expect("it runs");
    let cgroup = ember.process(Role::Runner).cgroup();
    let ended = Ended { kind: "first", id: Some(id(&stream)), end: End::Left };
    (cgroup.parent().expect("an instance's cgroup is in ours").to_owned(), ended)
}

#[test]
fn every_request_ends_in_one_way_and_all_is_given_back() {
    let seconds = std::env::var("EMBER_SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.parse().expect("a number"));
    let mut ember = Ember::start_with(MEMORY);
    for name in names() {
        ember = ember.with(&function(name, SYSTEMS[0]));
    }
    let (groups, first) = groups(&mut ember);
    let mut ended = vec![first];
    ended.extend(load(&mut ember, 1, Duration::from_secs(seconds.div_ceil(4).min(60))));
    let before = rest(&mut ember, &groups);
    ended.extend(load(&mut ember, 2, Duration::from_secs(seconds)));
    tell(&ended);
    rest_again(&mut ember, &groups, &before);
    assert_accounted(&ember, &ended);
    let log = ember.log();
    assert!(!log.contains("panic") && !log.contains("ERROR"), "{log}");
    for name in CHATS {
        ember.client().ask(&chat(name, "Say hello.", json!({"max_tokens": 4}))).expect(200);
    }
    ember.client().post("/v1/embeddings", &json!({"model": VECTORS, "input": "hello"})).expect(200);
    ember.stop();
}
