//! What a sandboxed process is, seen from outside, and what it can do, tried from inside.

use crate::harness::Warden;
use appliance_types::Tier;
use sandbox_kernel::pidfd::{Pid, Pidfd};
use sandbox_warden::UID_BASE;
use sandbox_wire::warden::{ExitCause, WardenError};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Fields of `/proc/PID/status`.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

fn link(pid: impl std::fmt::Display, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap().to_string_lossy().into_owned()
}

#[test]
fn its_identity_is_its_slots_and_it_may_nothing() {
    let mut warden = Warden::start();
    let runners = [warden.wake(), warden.wake()];
    for (runner, id) in runners.iter().zip(UID_BASE..) {
        let status = status(warden.pid(runner.awake.instance));
        let expected = [
            ("Uid", format!("{id} {id} {id} {id}")),
            ("Gid", format!("{id} {id} {id} {id}")),
            ("Groups", String::new()),
            ("CapInh", "0000000000000000".into()),
            ("CapPrm", "0000000000000000".into()),
            ("CapEff", "0000000000000000".into()),
            ("CapBnd", "0000000000000000".into()),
            ("CapAmb", "0000000000000000".into()),
            ("NoNewPrivs", "1".into()),
            ("Seccomp", "2".into()),
            ("SigBlk", "0000000000000000".into()),
        ];
        for (name, value) in expected {
            assert_eq!(status[name], value, "{name}");
        }
        assert!(status["NSpid"].ends_with(" 1"), "it is the init of its pid namespace");
    }
}

const NAMESPACES: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];

#[test]
fn instances_share_no_namespace_with_one_another() {
    let mut warden = Warden::start();
    let runners = [warden.wake(), warden.wake(), warden.wake(), warden.wake()];
    let tiers = runners.each_ref().map(|runner| runner.awake.tier);
    assert_eq!(tiers, [Tier::Cold, Tier::Parked, Tier::Parked, Tier::Parked]);
    let pids = runners.each_ref().map(|runner| warden.pid(runner.awake.instance));
    for namespace in NAMESPACES {
        let links: BTreeSet<_> = pids.iter().map(|pid| link(pid, &format!("ns/{namespace}"))).collect();
        assert_eq!(links.len(), pids.len(), "{namespace}: {links:?}");
    }
}

#[test]
fn it_shares_no_namespace_with_the_host() {
    let mut warden = Warden::start();
    let runner = warden.wake();
    let pid = warden.pid(runner.awake.instance);
    for namespace in NAMESPACES {
        let name = format!("ns/{namespace}");
        assert_ne!(link(pid, &name), link("self", &name), "{namespace}");
    }
    let maps = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!(maps("uid_map").split_whitespace().collect::<Vec<_>>(), ["65534", &UID_BASE.to_string(), "1"]);
    assert_eq!(maps("gid_map"), maps("uid_map"));
    let devices = maps("net/dev");
    assert_eq!(devices.lines().filter(|line| line.contains(':')).count(), 1, "only lo: {devices}");
}

#[test]
fn it_holds_four_descriptors() {
    let mut warden = Warden::start();
    let runner = warden.wake();
    let pid = warden.pid(runner.awake.instance);
    let mut held: Vec<(u32, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().parse().unwrap())
        .map(|number: u32| (number, link(pid, &format!("fd/{number}"))))
        .collect();
    held.sort();
    assert_eq!(held[0], (0, "/dev/null".into()));
    assert_eq!(held[1], (1, "/dev/null".into()));
    assert!(held[2].1.starts_with("pipe:"), "{held:?}");
    assert!(held[3].1.starts_with("socket:"), "{held:?}");
    assert_eq!(held.len(), 4, "{held:?}");
}

#[test]
fn its_root_is_empty_and_read_only_but_for_the_model() {
    let mut warden = Warden::start();
    let mut runner = warden.wake();
    let pid = warden.pid(runner.awake.instance);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    for path in [" / / ", " /model.gguf "] {
        let line = mounts.lines().find(|line| line.contains(path)).unwrap();
        assert!(line.contains(" ro,nosuid,nodev,noexec"), "{line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
    let names = fs::read_dir(format!("/proc/{pid}/root")).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["model.gguf"]);
    for (order, answer) in [
        ("read /model.gguf", "ok 24"),
        ("read /", "error PermissionDenied"),
        ("read /etc/passwd", "error NotFound"),
        ("read /proc/self/status", "error NotFound"),
        ("environment", r#"[("GGML_NO_BACKTRACE", "1")]"#),
    ] {
        assert_eq!(runner.ask(order).unwrap(), answer, "{order}");
    }
}

#[test]
fn its_limits_are_in_force() {
    let mut warden = Warden::start();
    let mut runner = warden.wake();
    let pid = warden.pid(runner.awake.instance);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for (name, max) in
        [("Max core file size", 0), ("Max file size", 0), ("Max open files", 16), ("Max locked memory", 0)]
    {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let numbers: Vec<u64> = line[name.len()..].split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers, [max, max], "{line}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
    // Two that compute and eight to spare, of which one is the main thread.
    assert_eq!(runner.ask("threads").unwrap(), "9");
    assert_eq!(runner.ask("read /model.gguf").unwrap(), "ok 24", "it goes on");
}

#[test]
fn one_that_takes_too_much_memory_dies_alone() {
    let mut warden = Warden::start();
    let (mut good, mut greedy) = (warden.wake(), warden.wake());
    assert_eq!(greedy.ask("hog"), None);
    let cause = ExitCause::OutOfMemory { limit_bytes: 64 << 20 };
    assert_eq!(warden.exited(greedy.awake.instance), cause);
    assert_eq!(good.ask("read /model.gguf").unwrap(), "ok 24");
    let loading = warden.try_wake("hog", 16 << 20).err().unwrap();
    assert_eq!(loading, WardenError::DiedLoading { cause: ExitCause::OutOfMemory { limit_bytes: 16 << 20 } });
    assert_eq!(warden.wake_cold().ask("read /model.gguf").unwrap(), "ok 24");
}

#[test]
fn every_end_is_told_once_and_with_its_cause() {
    let mut warden = Warden::start();
    let mut ended = |order: &str| {
        let mut runner = warden.wake();
        assert_eq!(runner.ask(order), None);
        warden.exited(runner.awake.instance)
    };
    assert_eq!(ended("exit 7"), ExitCause::Exit(7));
    assert_eq!(ended("exit 0"), ExitCause::Exit(0));
    assert!(matches!(ended("abort"), ExitCause::Signal(_)));
    let killed = warden.wake();
    Pidfd::open(Pid::from_raw(warden.pid(killed.awake.instance))).unwrap().kill().unwrap();
    assert_eq!(warden.exited(killed.awake.instance), ExitCause::Signal(9));
    assert_eq!(warden.groups(), 0);
}
