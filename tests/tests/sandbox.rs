//! Processes hold what they need and nothing else, seen from outside while they run.

use nix::unistd::Pid;
use std::{collections::BTreeMap, fs, path::Path};
use tests::{Ember, Process, Role, assistant};

/// Uids of ours begin here; runners' begin a thousand further on.
const UID_BASE: u32 = 2_000_000_000;
const RUNNER_UID_BASE: u32 = UID_BASE + 1000;

fn status(process: &Process) -> BTreeMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let fields = status.lines().filter_map(|line| line.split_once(":\t"));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The namespaces of a process that are not this test's.
fn own_namespaces(process: &Process) -> Vec<&'static str> {
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let pid = process.pid.to_string();
    let all = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    all.into_iter().filter(|name| link(&pid, name) != link("self", name)).collect()
}

fn descriptors(process: &Process) -> BTreeMap<String, String> {
    let folder = fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().map(|entry| entry.unwrap());
    let target = |path: &Path| fs::read_link(path).map(|link| link.display().to_string()).unwrap_or_default();
    folder.map(|entry| (entry.file_name().to_string_lossy().into_owned(), target(&entry.path()))).collect()
}

fn assert_powerless(process: &Process, role: Role) {
    let status = status(process);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set].trim_start_matches('0'), "", "{role:?} has {set} {}", status[set]);
    }
    assert_eq!(status["NoNewPrivs"], "1", "{role:?}");
    assert_eq!(status["Groups"], "", "{role:?}");
    let uids: Vec<u32> = status["Uid"].split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|uid| *uid == uids[0] && *uid >= UID_BASE), "{role:?} has uids {uids:?}");
}

#[test]
fn a_runner_is_sealed() {
    let mut ember = Ember::serving(&assistant().limit("memory = \"512MiB\"")).awake("assistant");
    assert_sealed(&ember.process(Role::Runner), &[]);
    ember.run(&["stop", "assistant"]).ok();
    ember.run(&["snapshot", "rm", "assistant"]).ok();
    let mut ember = ember.awake("assistant");
    assert_sealed(&ember.process(Role::Runner), &["model.gguf"]);
    ember.stop();
}

/// Holds a runner to its sandbox, with these files in its root: one that is restored needs none.
fn assert_sealed(runner: &Process, files: &[&str]) {
    assert_powerless(runner, Role::Runner);
    assert!(status(runner)["Uid"].split_whitespace().all(|uid| uid.parse::<u32>().unwrap() >= RUNNER_UID_BASE));
    assert_eq!(own_namespaces(runner), ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]);
    // Landlock cannot be seen from outside; that it holds is shown by the ways out that the warden's tests try.
    let filters = [status(runner)["Seccomp"].clone(), status(runner)["Seccomp_filters"].clone()];
    assert_eq!(filters, ["2", "1"], "one filter, its own");
    let maps = fs::read_to_string(format!("/proc/{}/maps", runner.pid)).unwrap();
    let permissions: Vec<_> = maps.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(permissions.iter().any(|how| how.contains('x')) && permissions.iter().any(|how| how.contains('w')));
    assert!(!permissions.iter().any(|how| how.contains('w') && how.contains('x')), "{maps}");

    let root = Path::new("/proc").join(runner.pid.to_string()).join("root");
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, files, "its root holds the model at most");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", runner.pid)).unwrap();
    let writable = mounts.lines().filter(|line| line.split(' ').nth(5).is_none_or(|how| !how.starts_with("ro")));
    assert_eq!(writable.collect::<Vec<_>>(), [""; 0], "every mount is read-only");

    let held = descriptors(runner);
    let kind = |number: &str| held[number].split(':').next().unwrap().to_owned();
    assert_eq!(["0", "1", "2", "3"].map(kind), ["/dev/null", "/dev/null", "pipe", "socket"]);
    assert_eq!(held.len(), 4, "nothing but these: {held:?}");
    let environment = fs::read(format!("/proc/{}/environ", runner.pid)).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("EMBER"), "no environment of ours");
}

#[test]
fn a_runners_limits_are_the_kernels() {
    let mut ember = Ember::serving(&assistant().limit("memory = \"512MiB\"")).awake("assistant");
    let runner = ember.process(Role::Runner);
    let limit = runner.memory_limit();
    // The manifest's limit, and what the kernel charges to the cgroup for the model's pages and the process itself.
    assert!((512 << 20..(512 << 20) + (16 << 20)).contains(&limit), "{limit}");

    let limits = fs::read_to_string(format!("/proc/{}/limits", runner.pid)).unwrap();
    let soft = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()).unwrap();
    assert_eq!((soft("Max core file size"), soft("Max file size")), ("0", "0"));
    assert!(soft("Max open files").parse::<u32>().unwrap() <= 32);
    ember.stop();
}

#[test]
fn children_have_only_their_own_powers() {
    let mut ember = Ember::serving(&assistant());
    let (server, ledger) = (ember.process(Role::Server), ember.process(Role::Ledger));
    assert_powerless(&server, Role::Server);
    assert_powerless(&ledger, Role::Ledger);
    assert!(!own_namespaces(&server).contains(&"net"), "the server faces the network");
    assert!(own_namespaces(&ledger).contains(&"net"), "the ledger has no network");
    let warden = ember.process(Role::Warden);
    assert!(own_namespaces(&warden).contains(&"net"), "the warden has no network");
    assert_ne!(status(&server)["Uid"], status(&ledger)["Uid"]);

    let (key, mine) = (ember.data().join("tls/server.key").display().to_string(), Pid::this().as_raw());
    let keyless = |process: &Process| descriptors(process).values().all(|target| *target != key);
    assert!(keyless(&warden) && keyless(&ledger), "only the server has the TLS key (seen by {mine})");
    ember.stop();
}
