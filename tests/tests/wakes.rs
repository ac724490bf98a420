//! Functions that wake from memory and from disk: they say the same as ever, a snapshot that is no good costs nobody an
//! answer, and nothing is left behind however often they wake.
//!
//! `EMBER_TEST_WAKES=1000 cargo test --release --locked --workspace --test wakes in_a_row` wakes one function so often.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::waitpid,
    },
    unistd::{Pid, sync},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
};
use tests::{Client, Ember, Function, Process, Reply, Role, Run, assistant, chat, until};

const STORY: &str = "Tell me a short story about a lighthouse.";
/// The granularity of a snapshot's file, bytes.
const PAGE: usize = 4096;
const TIMES: usize = 5;
/// How to bring a function to a tier, and the tier.
type To = (fn(&Ember, &str), &'static str);
const TIERS: [To; 2] = [(to_parked, "parked"), (to_stored, "stored")];

fn story(function: &str) -> Value {
    chat(function, STORY, json!({"logprobs": true, "top_logprobs": 2}))
}

/// All that an answer is made of: its words, how likely each was, or its vector.
fn said(reply: &Reply) -> Value {
    let reply = reply.clone().expect(200).json();
    if reply["choices"].is_null() { reply["data"].clone() } else { reply["choices"].clone() }
}

/// Asks, and holds the reply to the tier in which its function was found.
#[track_caller]
fn ask_in(tier: &str, ember: &Ember, path: &str, request: &Value) -> Value {
    let reply = ember.client().post(path, request).expect(200);
    assert_eq!(reply.header("x-ember-tier"), tier);
    let wake_ms: f64 = reply.header("x-ember-wake-ms").parse().expect("a number");
    assert_eq!(wake_ms > 0.0, tier != "running", "{wake_ms} ms from {tier}");
    let usage = reply.json()["usage"]["ember"].clone();
    assert!(usage.is_null() || usage["tier"] == tier, "{usage}");
    let id = reply.header("x-request-id").to_owned();
    let of_this = |record: &Value| record["request"] == *id;
    let record = until("the ledger has the request", || ember.ledger().into_iter().find(of_this));
    assert_eq!(record["tier"], tier, "{record}");
    said(&reply)
}

#[track_caller]
fn chat_in(tier: &str, ember: &Ember, request: &Value) -> Value {
    ask_in(tier, ember, "/v1/chat/completions", request)
}

/// The tier that `ember ls` shows.
fn tier(ember: &Ember, function: &str) -> String {
    let list = ember.client().get("/ember/v1/functions").expect(200).json();
    let row = list["data"].as_array().into_iter().flatten().find(|row| row["name"] == function);
    row.expect("a function that is deployed")["tier"].as_str().expect("a tier").to_owned()
}

fn snapshots(client: &Client) -> Value {
    client.get("/ember/v1/snapshots").expect(200).json()
}

/// Waits until a function's snapshot is on disk.
fn settle(ember: &Ember, function: &str) {
    let is_there = |row: &Value| {
        row["function"] == function && row["current"] == true && row["file_bytes"].as_u64().is_some_and(|b| b > 0)
    };
    let look = || snapshots(&ember.client())["data"].as_array()?.iter().any(is_there).then_some(());
    until(&format!("{function} has a snapshot on disk"), look);
}

fn to_cold(ember: &Ember, function: &str) {
    ember.run(&["stop", function]).ok();
    ember.run(&["snapshot", "rm", function]).ok();
}

fn to_parked(ember: &Ember, function: &str) {
    ember.run(&["park", function]).ok();
}

fn to_stored(ember: &Ember, function: &str) {
    settle(ember, function);
    ember.run(&["stop", function]).ok();
}

/// Has all that is on disk only read from there.
fn drop_page_cache() {
    sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root drops the page cache");
}

/// Asks the same of a function in every tier; the one answer.
fn everywhere(ember: &Ember, function: &str, path: &str, request: &Value) -> Value {
    to_cold(ember, function);
    let first = ask_in("cold", ember, path, request);
    for (to, tier) in TIERS {
        for time in 0..TIMES {
            to(ember, function);
            assert_eq!(ask_in(tier, ember, path, request), first, "{function}, {tier}, {time}");
        }
    }
    to_stored(ember, function);
    drop_page_cache();
    assert_eq!(ask_in("stored", ember, path, request), first, "{function}, from a cold disk");
    assert_eq!(ask_in("running", ember, path, request), first, "{function}, running");
    first
}

#[test]
fn the_same_is_said_from_every_tier() {
    let plain = assistant();
    let pirate = Function::named("pirate").system("You are a pirate. Answer as one.");
    let vectors = Function::named("vectors").task("embedding");
    let ember = Ember::serving(&plain).with(&pirate).with(&vectors);
    let words = everywhere(&ember, "assistant", "/v1/chat/completions", &story("assistant"));
    assert_eq!(words[0]["logprobs"]["content"].as_array().map(Vec::len), Some(24), "{words}");
    let others = everywhere(&ember, "pirate", "/v1/chat/completions", &story("pirate"));
    assert_ne!(words[0]["message"], others[0]["message"], "the system prompt says nothing");
    let request = json!({"model": "vectors", "input": ["a small cat", "tax law"], "encoding_format": "base64"});
    everywhere(&ember, "vectors", "/v1/embeddings", &request);
    ember.stop();
}

/// One thread and one request an instance, so that two requests at once need two instances.
fn narrow(name: &str) -> Function {
    Function::named(name).limit("cpus = 1").scale("concurrency = 1")
}

#[test]
fn instances_of_one_snapshot_say_the_same() {
    let mut ember = Ember::serving(&narrow("assistant").scale("max = 2"));
    to_cold(&ember, "assistant");
    let alone = chat_in("cold", &ember, &story("assistant"));
    for (to, _) in TIERS {
        to(&ember, "assistant");
        let endless = json!({"max_tokens": 1000, "logit_bias": {"2": -100}});
        let mut busy = ember.client().ask_streamed(&chat("assistant", STORY, endless));
        busy.next().expect("the first instance is busy");
        assert_eq!(said(&ember.client().ask(&story("assistant"))), alone);
        assert_eq!(ember.processes(Role::Runner).len(), 2);
        let text = alone[0]["message"]["content"].as_str().expect("words").to_owned();
        let mut sofar = String::new();
        while sofar.len() < text.len() {
            sofar += &tests::text_of(&busy.next().expect("more words"));
        }
        assert!(sofar.starts_with(&text), "{sofar}");
        drop(busy);
    }
    ember.stop();
}

#[test]
fn functions_go_down_by_themselves() {
    let timers = |name: &str, park: &str| {
        let park = format!("park = \"{park}\"");
        Function::named(name).scale("keep_warm = \"1s\"").scale(&park)
    };
    let ember = Ember::serving(&timers("kept", "1h")).with(&timers("brief", "1s"));
    for (function, end) in [("kept", "parked"), ("brief", "stored")] {
        let first = said(&ember.client().ask(&story(function)));
        until(&format!("{function} is {end}"), || (tier(&ember, function) == end).then_some(()));
        assert_eq!(chat_in(end, &ember, &story(function)), first);
    }
    ember.stop();
}

#[test]
fn what_a_cold_wake_left_is_tried_once_nobody_computes_and_written_again() {
    let ember = Ember::serving(&assistant());
    to_cold(&ember, "assistant");
    let request = story("assistant");
    let first = chat_in("cold", &ember, &request);
    let written = |line: &str| until(line, || ember.log().contains(line).then_some(()));
    written("snapshot written function");
    to_parked(&ember, "assistant");
    written("snapshot written again");
    to_stored(&ember, "assistant");
    assert_eq!(chat_in("stored", &ember, &request), first);
    ember.stop();
}

/// Functions in a tier that `ember ps` shows.
fn listed(ember: &Ember, tier: &str) -> Vec<String> {
    let rows = ember.run(&["ps", "--json"]).json();
    let rows = rows.as_array().expect("a list").iter().filter(|row| row["tier"] == tier);
    rows.map(|row| row["function"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn functions_are_moved_by_hand() {
    let ember = Ember::serving(&assistant());
    let moved = |command: &str, says: &str| {
        let run = ember.run(&[command, "assistant"]);
        assert!(run.stderr.contains(says), "{}", run.stderr);
        run.ok();
        [listed(&ember, "running"), listed(&ember, "parked")].concat().len()
    };
    assert_eq!((moved("wake", "is running"), tier(&ember, "assistant")), (1, "running".to_owned()));
    assert_eq!((moved("park", "is parked in"), tier(&ember, "assistant")), (1, "parked".to_owned()));
    assert_eq!((moved("stop", "is stopped"), tier(&ember, "assistant")), (0, "stored".to_owned()));
    for command in ["wake", "park", "stop"] {
        let said = ember.run(&[command, "nobody"]).refused();
        assert!(said.contains("no function `nobody`"), "{said}");
    }

    let run = |command: &str| ember.run(&["snapshot", command, "assistant"]);
    let bytes = fs::metadata(ember.snapshot("assistant")).unwrap().len();
    let rows = ember.run(&["snapshot", "ls", "--json"]).json();
    let needs = rows[0]["needs_bytes"].as_u64().expect("what an instance needs");
    assert!(needs > 64 << 20, "the KV cache alone is more: {rows}");
    let row = json!([{
        "function": "assistant", "file_bytes": bytes, "needs_bytes": needs, "parked_bytes": 0, "current": true,
    }]);
    assert_eq!(rows, row);
    assert!(ember.run(&["snapshot", "ls"]).ok().contains("assistant"));
    assert!(run("verify").ok().starts_with("verified the snapshot of assistant"));
    assert!(run("rm").stderr.contains("no snapshot any more"));
    assert!(run("verify").refused().contains("`ember snapshot create assistant`"));
    assert_eq!(ember.run(&["snapshot", "ls", "--json"]).json(), json!([]));
    assert!(run("create").ok().starts_with("took the snapshot of assistant"));
    run("verify").ok();
    ember.stop();
}

#[test]
fn a_deploy_never_answers_from_what_was_before() {
    let ember = Ember::start();
    let deploy = |function: &Function, options: &[&str]| {
        ember.run(&[&["deploy", &ember.manifest(function)], options].concat()).ok();
    };
    let pirate = assistant().system("You are a pirate. Answer as one.");
    let ask = |tier: &str| chat_in(tier, &ember, &story("assistant"));
    deploy(&assistant(), &[]);
    let first = ask("stored");
    deploy(&pirate, &[]);
    let second = ask("stored");
    assert_ne!(first, second);
    to_parked(&ember, "assistant");
    deploy(&assistant(), &["--no-snapshot"]);
    assert_eq!(ember.run(&["snapshot", "ls", "--json"]).json(), json!([]));
    assert_eq!(ask("cold"), first);
    deploy(&pirate, &["--no-snapshot"]);
    assert_eq!(ask("cold"), second);
    assert_eq!(snapshots(&ember.client())["retired"], 0, "a deploy is no fault");
    ember.stop();
}

/// A snapshot's file, changed.
type Damage = fn(&mut Vec<u8>);

fn damage(file: &Path, how: Damage) {
    let mut bytes = fs::read(file).unwrap();
    how(&mut bytes);
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_snapshot_that_is_no_good_costs_nobody_an_answer() {
    let mut ember = Ember::serving(&assistant());
    let good = chat_in("stored", &ember, &story("assistant"));
    let damages: [Damage; 3] = [
        |bytes| bytes[9] ^= 1,
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        },
        |bytes| bytes.truncate(bytes.len() / 2 / PAGE * PAGE),
    ];
    let mut reasons = BTreeSet::new();
    for how in damages {
        to_stored(&ember, "assistant");
        damage(&ember.snapshot("assistant"), how);
        let refused = ember.run(&["snapshot", "verify", "assistant"]).refused();
        let reason = refused.split_once("the snapshot of assistant is not usable: ").expect("why").1;
        let reason = reason.trim().trim_end_matches(" (409)").to_owned();
        assert_eq!(chat_in("cold", &ember, &story("assistant")), good, "{reason}");
        assert!(ember.log().contains(&reason), "{reason}");
        reasons.insert(reason);
        assert_eq!(snapshots(&ember.client())["retired"], reasons.len());
    }

    to_parked(&ember, "assistant");
    assert_eq!(chat_in("parked", &ember, &story("assistant")), good);
    let restored = ember.process(Role::Runner);
    fault(&restored);
    until("the runner is dead", || (!restored.is_alive()).then_some(()));
    until("its snapshot is retired", || (snapshots(&ember.client())["retired"] == 4).then_some(()));
    assert_eq!(chat_in("cold", &ember, &story("assistant")), good);
    to_stored(&ember, "assistant");
    assert_eq!(chat_in("stored", &ember, &story("assistant")), good);
    ember.stop();
}

/// Makes a process go on where no code is. A signal would not do: it is the first of its namespace.
fn fault(process: &Process) {
    let pid = Pid::from_raw(process.pid);
    ptrace::seize(pid, Options::empty()).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    let mut registers = ptrace::getregs(pid).unwrap();
    (registers.rip, registers.orig_rax) = (0, u64::MAX);
    ptrace::setregs(pid, registers).unwrap();
    ptrace::detach(pid, None).unwrap();
}

/// The answer once there is one, whatever happens before.
fn answer_at_last(ember: &Ember, function: &str) -> Value {
    let ask = || ember.client().try_ask(&story(function)).ok().filter(|reply| reply.status == 200);
    said(&until("the service answers again", ask))
}

/// Names of the files beside a snapshot, sorted.
fn files(ember: &Ember) -> Vec<String> {
    let entries = fs::read_dir(ember.data().join("snapshots")).unwrap().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_warden_killed_over_a_snapshot_leaves_none_that_is_no_good() {
    let mut ember = Ember::serving(&assistant());
    let good = chat_in("stored", &ember, &story("assistant"));
    to_parked(&ember, "assistant");
    ember.process(Role::Warden).kill();
    assert_eq!(answer_at_last(&ember, "assistant"), good);

    type Moment = fn(&mut Ember) -> bool;
    let loading: Moment = |ember| !ember.processes(Role::Runner).is_empty();
    let writing: Moment = |ember| files(ember).iter().any(|name| name.starts_with(".incoming-"));
    for moment in [loading, writing] {
        to_cold(&ember, "assistant");
        let warden = ember.process(Role::Warden);
        let deploy = deploying(&ember, &assistant());
        until("the deploy is under way", || (moment(&mut ember) || deploy.is_finished()).then_some(()));
        warden.kill();
        deploy.join().unwrap();
        assert_eq!(answer_at_last(&ember, "assistant"), good);
        to_stored(&ember, "assistant");
        ember.run(&["snapshot", "verify", "assistant"]).ok();
        assert_eq!(chat_in("stored", &ember, &story("assistant")), good);
        assert_eq!(files(&ember), [".key", "assistant.snap"]);
    }
    ember.stop();
}

/// A deploy on a thread of its own.
fn deploying(ember: &Ember, function: &Function) -> thread::JoinHandle<Run> {
    let manifest = ember.manifest(function);
    let mut command = ember.command(&["deploy", &manifest]);
    thread::spawn(move || Run::of(&mut command))
}

/// A disk of a few pages in place of a folder, in mounts of this thread and of what it starts; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: PathBuf) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("small"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=32k,mode=0700")).unwrap();
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_costs_the_file_and_no_answer() {
    let mut ember = Ember::start();
    // Once it answers, the warden has made its folder.
    assert_eq!(snapshots(&ember.client())["data"], json!([]));
    ember.signal(Signal::SIGTERM);
    ember.has_stopped();
    let disk = SmallDisk::at(ember.data().join("snapshots"));
    ember.start_again();
    let deployed = ember.deploy(&assistant());
    assert!(deployed.stderr.contains("warning: `assistant` has no snapshot"), "{}", deployed.stderr);
    assert!(deployed.stderr.contains("no space for"), "{}", deployed.stderr);
    deployed.ok();
    let first = said(&ember.client().ask(&story("assistant")));
    ember.run(&["stop", "assistant"]).ok();
    assert_eq!(chat_in("cold", &ember, &story("assistant")), first);
    ember.run(&["snapshot", "rm", "assistant"]).ok();
    assert_eq!(files(&ember), [".key"]);
    drop(disk);
    ember.stop();
}

/// Has all of these functions on disk only, and waits until the warden holds no more than it held at rest before.
#[track_caller]
fn at_rest_again(ember: &mut Ember, functions: &[&str], groups: &Path, before: usize) {
    at_rest(ember, functions, groups);
    let warden = ember.process(Role::Warden);
    // A spare that was being restored meanwhile is ended at once.
    until("the warden holds what it held", || (warden.descriptors() <= before).then_some(()));
}

/// Has all of these functions on disk only; the descriptors of the warden then, when nothing is left of any instance.
fn at_rest(ember: &mut Ember, functions: &[&str], groups: &Path) -> usize {
    functions.iter().for_each(|function| to_stored(ember, function));
    until("no runner is left", || ember.processes(Role::Runner).is_empty().then_some(()));
    let folders = || fs::read_dir(groups).map_or(0, |all| all.flatten().filter(|entry| entry.path().is_dir()).count());
    until(&format!("no cgroup is left in {}", groups.display()), || (folders() == 0).then_some(()));
    ember.process(Role::Warden).descriptors()
}

/// The folder that holds the cgroups of all instances; one is up.
fn groups(ember: &mut Ember) -> PathBuf {
    ember.process(Role::Runner).cgroup().parent().expect("an instance's cgroup is in ours").to_owned()
}

#[test]
fn wakes_in_a_row_leave_nothing_behind() {
    let wakes = std::env::var("EMBER_TEST_WAKES").map_or(30, |wakes| wakes.parse().expect("a number"));
    let mut ember = Ember::serving(&assistant());
    let request = chat("assistant", STORY, json!({"max_tokens": 4}));
    let round = |ember: &Ember, wake: usize| {
        let (to, tier) = TIERS[wake % 2];
        to(ember, "assistant");
        chat_in(tier, ember, &request)
    };
    let first = round(&ember, 0);
    let groups = groups(&mut ember);
    assert_eq!(round(&ember, 1), first);
    let before = at_rest(&mut ember, &["assistant"], &groups);
    for wake in 0..wakes {
        assert_eq!(round(&ember, wake), first, "wake {wake}");
    }
    at_rest_again(&mut ember, &["assistant"], &groups, before);
    ember.stop();
}

/// As many instances as that are restored at once, of each of two functions, from one snapshot each.
#[test]
fn eight_wakes_at_once_of_two_functions_leave_nothing_behind() {
    const EACH: usize = 8;
    let functions = ["one", "two"];
    // However long the last takes, the first stays.
    let many = |name: &str| narrow(name).scale("max = 8").scale("keep_warm = \"60s\"");
    let mut ember = Ember::start_with("inference_cores = 16\n").with(&many("one")).with(&many("two"));
    // Long enough that the last is asked before the first is answered, however busy the machine.
    let long = json!({"max_tokens": 64, "logprobs": true, "logit_bias": {"2": -100}});
    let request = |name: &str| chat(name, STORY, long.clone());
    let expected = functions.map(|name| said(&ember.client().ask(&request(name))));
    let groups = groups(&mut ember);
    let before = at_rest(&mut ember, &functions, &groups);
    for (to, _) in TIERS {
        functions.iter().for_each(|function| to(&ember, function));
        let asking = (0..2 * EACH).map(|n| (n % 2, ember.client(), request(functions[n % 2])));
        let threads: Vec<_> = asking
            .map(|(which, client, request)| thread::spawn(move || (which, said(&client.ask(&request)))))
            .collect();
        for thread in threads {
            let (which, answer) = thread.join().unwrap();
            assert_eq!(answer, expected[which]);
        }
        assert_eq!(ember.processes(Role::Runner).len(), 2 * EACH, "each had an instance of its own");
    }
    at_rest_again(&mut ember, &functions, &groups, before);
    ember.stop();
}
