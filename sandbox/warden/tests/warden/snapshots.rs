//! Snapshots over their life: taken, restored, refused, removed, and never a reason for a call to fail.

use crate::harness::{MODEL, Warden, spec};
use appliance_types::Tier;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use sandbox_kernel::{
    pidfd::Pid,
    trace::{Registers, Tracee},
};
use sandbox_wire::warden::{Call, ExitCause, Reply, RunnerSpec, SnapshotEntry, WardenError};
use std::{fs, os::unix::fs::PermissionsExt};

const MEMORY: u64 = 64 << 20;
/// The granularity of the format, bytes.
const PAGE: usize = 4096;

fn probe(warden: &mut Warden) -> RunnerSpec {
    spec(warden.add(MODEL, None).unwrap().digest, "", MEMORY)
}

/// Wakes an instance, has it answer, stops it, and says where its function was found.
fn round(warden: &mut Warden) -> Tier {
    let mut runner = warden.wake();
    assert_eq!(runner.ask("say hello").as_deref(), Some("ok ()"));
    assert_eq!(warden.stop(runner.awake.instance), Ok(Reply::Stopped));
    assert_eq!(warden.exited(runner.awake.instance), ExitCause::Stopped);
    runner.awake.tier
}

fn store(warden: &mut Warden) {
    let function = "probe".parse().unwrap();
    assert_eq!(warden.call(Call::Store { function }), Ok(Reply::Stored));
}

fn listed(warden: &mut Warden) -> Vec<SnapshotEntry> {
    match warden.call(Call::Snapshots) {
        Ok(Reply::Snapshots(entries)) => entries,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_function_goes_down_and_up_the_tiers() {
    let mut warden = Warden::start();
    assert_eq!(listed(&mut warden), []);
    assert_eq!(round(&mut warden), Tier::Cold);
    assert_eq!((round(&mut warden), warden.retired()), (Tier::Parked, Vec::new()));
    warden.settle();
    store(&mut warden);
    assert_eq!(round(&mut warden), Tier::Stored);
    assert_eq!(round(&mut warden), Tier::Parked);
    let entries = listed(&mut warden);
    assert!(matches!(&*entries, [one] if one.current && one.file_bytes > 0 && one.parked_bytes > 0), "{entries:?}");
    store(&mut warden);
    assert_eq!(listed(&mut warden)[0].parked_bytes, 0);
    let function = entries[0].function.clone();
    assert_eq!(warden.call(Call::SnapshotRemove { function }), Ok(Reply::SnapshotRemoved));
    assert_eq!(listed(&mut warden), []);
    assert_eq!(round(&mut warden), Tier::Cold);
    assert_eq!(warden.retired(), []);
}

#[test]
fn snapshots_are_taken_parked_and_verified_by_call() {
    let mut warden = Warden::start();
    let spec = probe(&mut warden);
    let function = spec.function.clone();
    let missing = WardenError::SnapshotMissing { function };
    assert_eq!(warden.call(Call::SnapshotVerify(spec.clone())), Err(missing));
    let Ok(Reply::SnapshotTaken(taken)) = warden.call(Call::SnapshotTake(spec.clone())) else { panic!() };
    assert!(taken.current && taken.file_bytes > 0 && taken.parked_bytes == 0, "{taken:?}");
    assert_eq!(warden.call(Call::SnapshotVerify(spec.clone())), Ok(Reply::SnapshotVerified(taken)));
    let Ok(Reply::Parked(parked)) = warden.call(Call::Park(spec.clone())) else { panic!() };
    assert!(parked.parked_bytes > 0, "{parked:?}");
    assert_eq!(round(&mut warden), Tier::Parked);
    warden.left_nothing();
    let other = RunnerSpec { context_tokens: 65, ..spec };
    let refused = warden.call(Call::SnapshotVerify(other)).unwrap_err();
    assert!(
        matches!(&refused, WardenError::SnapshotInvalid { reason, .. } if reason.contains("manifest")),
        "{refused}"
    );
}

#[test]
fn a_snapshot_that_is_ahead_of_its_manifest_is_let_be() {
    let mut warden = Warden::start();
    let before = probe(&mut warden);
    assert!(warden.call(Call::SnapshotTake(before.clone())).is_ok());
    assert_eq!(round(&mut warden), Tier::Stored);
    // A deploy: the snapshot first, the manifest later.
    let after = RunnerSpec { context_tokens: 65, ..before.clone() };
    let Ok(Reply::SnapshotTaken(taken)) = warden.call(Call::SnapshotTake(after.clone())) else { panic!() };
    assert_eq!(round(&mut warden), Tier::Cold);
    assert!(warden.call(Call::Park(before)).is_ok());
    assert_eq!(warden.call(Call::SnapshotVerify(after.clone())), Ok(Reply::SnapshotVerified(taken)));
    assert_eq!(warden.retired(), []);
    // In force.
    let id = warden.send(Call::Wake(after), None);
    assert_eq!(warden.woken(id).unwrap().awake.tier, Tier::Stored);
    // What was before is now another's, as of any other manifest.
    assert_eq!(round(&mut warden), Tier::Cold);
    assert!(matches!(&*warden.retired(), [(_, reason)] if reason.contains("manifest")));
}

#[test]
fn a_stop_and_a_park_at_once_leave_one_spare() {
    let mut warden = Warden::start();
    let spec = probe(&mut warden);
    for _ in 0..20 {
        let runner = warden.wake();
        let asked =
            [Call::Stop { instance: runner.awake.instance }, Call::Park(spec.clone()), Call::Park(spec.clone())];
        for id in asked.map(|call| warden.send(call, None)) {
            warden.answer(id).0.unwrap();
        }
        // One group for each controller.
        warden.until(|warden| warden.groups() == warden.cgroups().len());
    }
}

#[test]
fn a_runner_that_cannot_load_leaves_no_snapshot() {
    let mut warden = Warden::start();
    let spec = RunnerSpec { system: Some("refuse".into()), ..probe(&mut warden) };
    assert_eq!(warden.call(Call::SnapshotTake(spec)), Err(WardenError::LoadFailed { reason: "as ordered".into() }));
    assert_eq!(listed(&mut warden), []);
    assert_eq!((warden.groups(), warden.children()), (0, String::new()));
}

#[test]
fn a_snapshot_that_fails_its_trial_is_not_kept() {
    let mut warden = Warden::start();
    let spec = RunnerSpec { system: Some("brittle".into()), ..probe(&mut warden) };
    let taken = warden.call(Call::SnapshotTake(spec.clone()));
    let Err(WardenError::CaptureFailed { reason, .. }) = &taken else { panic!("{taken:?}") };
    assert!(reason.starts_with("its trial: it was ended by signal"), "{reason}");
    assert_eq!((listed(&mut warden), warden.retired()), (vec![], vec![]));
    assert_eq!((warden.groups(), warden.children()), (0, String::new()));
    // One taken while a caller waited is tried when it is stopped.
    let runner = warden.try_wake("brittle", MEMORY).unwrap();
    assert_eq!(runner.awake.tier, Tier::Cold);
    assert_eq!(warden.stop(runner.awake.instance), Ok(Reply::Stopped));
    let retired = loop {
        listed(&mut warden);
        if let [(function, reason)] = &*warden.retired() {
            break (function.clone(), reason.clone());
        }
    };
    assert!(retired.0 == "probe" && retired.1.contains("trial"), "{retired:?}");
    assert_eq!(listed(&mut warden), []);
}

#[test]
fn a_trial_that_is_cut_short_says_nothing_against_its_snapshot() {
    let mut warden = Warden::start();
    let runner = warden.try_wake("drowsy", MEMORY).unwrap();
    warden.until(|warden| warden.snapshot().exists());
    assert_eq!(warden.stop(runner.awake.instance), Ok(Reply::Stopped));
    // The trial, which nobody answers.
    warden.until(|warden| warden.groups() == warden.cgroups().len());
    assert!(warden.terminate().success());
    assert!(warden.snapshot().exists());
}

#[test]
fn many_wake_from_two_snapshots_at_once() {
    let mut warden = Warden::start();
    let one = probe(&mut warden);
    let two = RunnerSpec { function: "other".parse().unwrap(), ..one.clone() };
    for spec in [&one, &two] {
        let Ok(Reply::Parked(_)) = warden.call(Call::Park(spec.clone())) else { panic!() };
    }
    let asked: Vec<_> = (0..8).flat_map(|_| [&one, &two]).map(|spec| Call::Wake(spec.clone())).collect();
    let asked: Vec<_> = asked.into_iter().map(|call| warden.send(call, None)).collect();
    let mut runners: Vec<_> = asked.into_iter().map(|id| warden.woken(id).unwrap()).collect();
    for runner in &mut runners {
        assert_eq!(runner.awake.tier, Tier::Parked);
        assert_eq!(runner.ask("say hello").as_deref(), Some("ok ()"));
    }
}

#[test]
fn restored_instances_leave_nothing_behind() {
    let mut warden = Warden::start();
    round(&mut warden);
    warden.settle();
    round(&mut warden);
    warden.left_nothing();
    let before = warden.descriptors();
    assert_eq!(round(&mut warden), Tier::Stored);
    assert!((0..50).all(|_| round(&mut warden) == Tier::Parked));
    warden.left_nothing();
    warden.until(|warden| warden.descriptors() <= before);
}

/// Replaces the snapshot's file, and holds the warden to what it must then do.
fn refused(warden: &mut Warden, bytes: &[u8], what: &str) -> String {
    store(warden);
    fs::remove_file(warden.snapshot()).unwrap();
    fs::write(warden.snapshot(), bytes).unwrap();
    assert_eq!(round(warden), Tier::Cold, "{what}");
    let retired = warden.retired();
    assert!(matches!(&*retired, [(function, _)] if function == "probe"), "{what}: {retired:?}");
    warden.settle();
    retired.into_iter().next().unwrap().1
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << (at % 8);
    flipped
}

#[test]
fn a_corrupt_snapshot_is_refused_retired_and_taken_anew() {
    let mut warden = Warden::start();
    round(&mut warden);
    warden.settle();
    let good = fs::read(warden.snapshot()).unwrap();
    assert_eq!(fs::metadata(warden.snapshot()).unwrap().permissions().mode() & 0o777, 0o400);
    for at in 0..sandbox_snapshot::HEADER_BYTES {
        refused(&mut warden, &flipped(&good, at), &format!("header byte {at}"));
    }
    // A byte of every page: of the description, the table, and every frame.
    for at in (sandbox_snapshot::HEADER_BYTES..good.len()).step_by(PAGE) {
        refused(&mut warden, &flipped(&good, at), &format!("byte {at}"));
    }
    for end in (0..good.len()).step_by(PAGE) {
        refused(&mut warden, &good[..end], &format!("cut at {end}"));
    }
    refused(&mut warden, &[&good[..], &[0; PAGE]].concat(), "a page too long");
    store(&mut warden);
    assert_eq!(round(&mut warden), Tier::Stored);
    assert_eq!(warden.retired(), []);
}

#[test]
fn a_snapshot_of_another_function_or_box_is_refused() {
    let mut warden = Warden::start();
    let other = RunnerSpec { function: "other".parse().unwrap(), ..probe(&mut warden) };
    warden.call(Call::SnapshotTake(other)).unwrap();
    round(&mut warden);
    warden.settle();
    let others = fs::read(warden.snapshots().join("other.snap")).unwrap();
    let reason = refused(&mut warden, &others, "another function's");
    assert!(reason.contains("function"), "{reason}");
    // A box with another key.
    let mut foreign = Warden::start();
    round(&mut foreign);
    foreign.settle();
    let foreign = fs::read(foreign.snapshot()).unwrap();
    refused(&mut warden, &foreign, "another box's");
}

/// Wakes an instance of a function whose weights do not compress, and has it sum them.
fn sum(warden: &mut Warden, spec: &RunnerSpec) -> (Tier, Option<String>, u64) {
    let id = warden.send(Call::Wake(spec.clone()), None);
    let mut runner = warden.woken(id).unwrap();
    let sum = runner.ask("sum");
    let Ok(Reply::Instances(listed)) = warden.call(Call::Instances) else { panic!() };
    assert_eq!(warden.stop(runner.awake.instance), Ok(Reply::Stopped));
    (runner.awake.tier, sum, listed[0].private_bytes)
}

#[test]
fn what_does_not_compress_is_kept_once_for_all_and_mapped_in_place() {
    let mut warden = Warden::start();
    let [one, two] = ["one", "two"].map(|name| RunnerSpec {
        function: name.parse().unwrap(),
        system: Some("weights".into()),
        ..probe(&mut warden)
    });
    let count = |warden: &Warden| fs::read_dir(warden.snapshots().join("raw")).unwrap().count();
    let Ok(Reply::SnapshotTaken(taken)) = warden.call(Call::SnapshotTake(one.clone())) else { panic!() };
    assert!(taken.file_bytes < 1 << 20, "{taken:?}");
    let files = count(&warden);
    assert_eq!(files, 2, "20 MiB in files of at most 16");
    let Ok(Reply::SnapshotTaken(_)) = warden.call(Call::SnapshotTake(two.clone())) else { panic!() };
    assert_eq!(count(&warden), files);

    let (tier, right, _) = sum(&mut warden, &RunnerSpec { function: "cold".parse().unwrap(), ..one.clone() });
    assert_eq!(tier, Tier::Cold);
    for (spec, tier) in [(&one, Tier::Stored), (&one, Tier::Parked), (&two, Tier::Stored)] {
        let (found, sum, private_bytes) = sum(&mut warden, spec);
        assert_eq!((found, &sum, warden.retired()), (tier, &right, Vec::new()));
        assert!(private_bytes < 4 << 20, "weights are shared, and {private_bytes} are private");
    }
    for name in ["one", "two", "cold"] {
        assert_eq!(count(&warden), files);
        let function = name.parse().unwrap();
        assert_eq!(warden.call(Call::SnapshotRemove { function }), Ok(Reply::SnapshotRemoved));
    }
    warden.until(|warden| count(warden) == 0);
}

#[test]
fn a_corrupt_raw_file_is_found_before_it_is_mapped() {
    let mut warden = Warden::start();
    let spec = RunnerSpec { system: Some("weights".into()), ..probe(&mut warden) };
    warden.call(Call::SnapshotTake(spec.clone())).unwrap();
    let (_, right, _) = sum(&mut warden, &spec);
    warden = warden.crash_and_restart();
    let path = fs::read_dir(warden.snapshots().join("raw")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, flipped(&bytes, bytes.len() / 2)).unwrap();
    let (tier, found, _) = sum(&mut warden, &spec);
    assert_eq!((tier, found), (Tier::Cold, right.clone()));
    assert!(warden.retired()[0].1.contains("not those it is named by"));
    let (tier, found, _) = sum(&mut warden, &spec);
    assert_eq!((tier, found), (Tier::Parked, right));
}

/// Makes a process go on where no code is.
fn fault(pid: i32) {
    let mut tracee = Tracee::seize(Pid::from_raw(pid)).unwrap();
    tracee.interrupt().unwrap();
    let nowhere = Registers { rip: 0, orig_rax: u64::MAX, ..tracee.registers().unwrap() };
    tracee.set_registers(nowhere).unwrap();
    tracee.detach().unwrap();
}

#[test]
fn a_restored_instance_that_faults_retires_its_snapshot() {
    let mut warden = Warden::start();
    round(&mut warden);
    let runner = warden.wake();
    assert_eq!(runner.awake.tier, Tier::Parked);
    fault(warden.pid(runner.awake.instance));
    assert_eq!(warden.exited(runner.awake.instance), ExitCause::Signal(11));
    // The exit is told first, the rest with the next answer.
    assert_eq!(round(&mut warden), Tier::Cold);
    let retired = warden.retired();
    assert!(matches!(&*retired, [(_, reason)] if reason.contains("crashed")), "{retired:?}");
    assert_eq!(round(&mut warden), Tier::Parked);
}

#[test]
fn a_full_disk_costs_the_file_and_no_call() {
    // This thread's own mounts, and the warden's: those of the host stay as they are.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let mut warden = Warden::start();
    let spec = probe(&mut warden);
    let folder = warden.snapshots();
    mount(Some("full"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=16k,mode=0700")).unwrap();
    let full = warden.call(Call::SnapshotTake(spec)).unwrap_err();
    assert!(matches!(&full, WardenError::Storage { reason, .. } if reason.contains("space")), "{full}");
    assert_eq!((round(&mut warden), round(&mut warden)), (Tier::Cold, Tier::Parked));
    assert_eq!(listed(&mut warden)[0].file_bytes, 0);
    umount2(&folder, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_warden_killed_at_any_point_leaves_a_whole_snapshot_or_none() {
    let mut warden = Warden::start();
    for spins in 0..20 {
        let spec = probe(&mut warden);
        warden.send(Call::SnapshotTake(spec), None);
        std::thread::sleep(std::time::Duration::from_millis(spins * 4));
        warden = warden.crash_and_restart();
        let tier = round(&mut warden);
        // What it takes itself when it finds none.
        warden.settle();
        let names = fs::read_dir(warden.snapshots()).unwrap().flatten();
        let left: Vec<_> = names.filter(|name| name.file_name().to_string_lossy().starts_with(".incoming")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(matches!(tier, Tier::Cold | Tier::Stored), "{tier}");
        assert_eq!(warden.retired(), []);
    }
}
