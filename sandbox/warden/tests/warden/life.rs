//! Instances and models over the warden's life: waking, stopping, failing, crashing, and what is left afterwards.

use crate::harness::{MODEL, Warden, spec};
use appliance_types::{ModelDigest, Tier};
use sandbox_kernel::{
    pidfd::{Pid, Pidfd},
    ready::readable,
};
use sandbox_wire::warden::{Call, ExitCause, Reply, WardenError};
use std::{os::fd::AsFd, path::Path};

fn reason(error: Result<impl std::fmt::Debug, WardenError>) -> String {
    error.unwrap_err().to_string()
}

#[test]
fn models_are_added_listed_and_removed() {
    let mut warden = Warden::start();
    let entry = warden.add(MODEL, None).unwrap();
    assert_eq!(warden.add(MODEL, Some(entry.digest)), Ok(entry.clone()));
    assert!(reason(warden.add(b"#!/bin/sh\n", None)).contains("does not begin with `GGUF`"));
    assert!(reason(warden.add(&MODEL[..20], None)).contains("the file ends at byte 20 of 24 or more: truncated"));
    let other = ModelDigest::from_bytes([7; 32]);
    assert!(reason(warden.add(MODEL, Some(other))).contains("its SHA-256 is"));
    assert!(matches!(warden.call(Call::ModelAdd { expected: None }), Err(WardenError::BadRequest { .. })));
    assert_eq!(warden.models(), std::slice::from_ref(&entry));

    let runner = warden.wake();
    let digest = entry.digest;
    let in_use = WardenError::ModelInUse { digest, instances: 1 };
    assert_eq!(warden.call(Call::ModelRemove { digest }), Err(in_use));
    assert_eq!(warden.stop(runner.awake.instance), Ok(Reply::Stopped));
    assert_eq!(warden.call(Call::ModelRemove { digest }), Ok(Reply::ModelRemoved));
    let missing = WardenError::ModelMissing { digest };
    assert_eq!(warden.call(Call::ModelRemove { digest }), Err(missing.clone()));
    assert_eq!(warden.call(Call::Wake(spec(digest, "", 64 << 20))), Err(missing));
}

#[test]
fn an_instance_wakes_is_listed_and_stops() {
    let mut warden = Warden::start();
    let runner = warden.wake();
    let awake = &runner.awake;
    assert_eq!((awake.tier, awake.threads, awake.model.name.as_str()), (Tier::Cold, 2, "probe"));
    assert_eq!(awake.model.weight_bytes, MODEL.len() as u64);
    let Ok(Reply::Instances(listed)) = warden.call(Call::Instances) else { panic!() };
    assert_eq!((listed.len(), listed[0].instance), (1, awake.instance));
    assert!(listed[0].private_bytes > 0 && listed[0].shared_bytes > 0, "{listed:?}");
    assert_eq!(warden.stop(awake.instance), Ok(Reply::Stopped));
    assert_eq!(warden.exited(awake.instance), ExitCause::Stopped);
    warden.left_nothing();
    let missing = WardenError::InstanceMissing { instance: awake.instance };
    assert_eq!(warden.stop(awake.instance), Err(missing));
}

#[test]
fn a_runner_that_does_not_load_says_why_and_leaves_nothing() {
    let mut warden = Warden::start();
    let mut wake = |order: &str| warden.try_wake(order, 64 << 20).err().unwrap();
    assert_eq!(wake("refuse"), WardenError::LoadFailed { reason: "as ordered".into() });
    assert_eq!(wake("fail"), WardenError::DiedLoading { cause: ExitCause::Exit(1) });
    assert!(matches!(wake("garbage"), WardenError::LoadFailed { .. }));
    assert_eq!((warden.groups(), warden.children()), (0, String::new()));
}

#[test]
fn a_runner_that_holds_more_than_it_was_given_is_not_handed_over() {
    let mut warden = Warden::start();
    let error = warden.try_wake("keep", 64 << 20).err().unwrap();
    let (layer, reason) = ("descriptors".to_owned(), "descriptor 4 is not one that was given".to_owned());
    assert_eq!(error, WardenError::Sandbox { layer, reason });
    assert_eq!((warden.groups(), warden.children()), (0, String::new()));
}

#[test]
fn a_runner_that_never_answers_is_given_up() {
    let mut warden = Warden::with_load_timeout(200);
    let error = warden.try_wake("silent", 64 << 20).err().unwrap();
    assert_eq!(error, WardenError::LoadTimeout { limit_ms: 200 });
    assert_eq!((warden.groups(), warden.children()), (0, String::new()));
}

#[test]
fn the_slots_are_the_most() {
    let mut warden = Warden::start();
    let model = warden.add(MODEL, None).unwrap().digest;
    let ids: Vec<_> = (0..65).map(|_| warden.send(Call::Wake(spec(model, "", 32 << 20)), None)).collect();
    let woken: Vec<_> = ids.into_iter().map(|id| warden.woken(id)).collect();
    let refused: Vec<_> = woken.iter().filter_map(|woken| woken.as_ref().err()).collect();
    assert_eq!(refused, [&WardenError::InstancesMax { limit: 64 }]);
}

#[test]
fn fifty_cold_rounds_leave_nothing_behind() {
    let mut warden = Warden::start();
    warden.round_cold();
    let before = warden.descriptors();
    let mut wakes_us: Vec<_> = (0..50).map(|_| warden.round_cold()).collect();
    warden.until(|warden| warden.descriptors() <= before);
    wakes_us.sort_unstable();
    println!("cold wake of the stand-in: median {} us, p90 {} us", wakes_us[25], wakes_us[45]);
}

fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn it_ends_its_instances_when_told_to_end() {
    for end in [Warden::terminate, Warden::hang_up] {
        let mut warden = Warden::start();
        let runner = warden.wake();
        let pid = warden.pid(runner.awake.instance);
        assert!(end(&mut warden).success());
        assert!(!is_alive(pid));
        assert_eq!(warden.groups(), 0);
    }
}

#[test]
fn after_a_crash_runners_die_and_the_next_warden_sweeps() {
    let mut warden = Warden::start();
    let mut runner = warden.wake();
    let process = Pidfd::open(Pid::from_raw(warden.pid(runner.awake.instance))).unwrap();
    let mut warden = warden.crash_and_restart();
    assert_eq!(readable([Some(process.as_fd())], None), Ok([true]), "it has ended");
    assert_eq!(runner.ask("read /model.gguf"), None);
    // Answered once it has swept.
    assert_eq!(warden.models().len(), 1);
    assert_eq!(warden.groups(), 0);
    assert_eq!(warden.wake_cold().ask("read /model.gguf").unwrap(), "ok 24");
}
