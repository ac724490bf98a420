//! Every way out, tried by an instance of its own: none gets through, and nobody else notices.

use crate::harness::Warden;
use appliance_types::Tier;
use sandbox_kernel::escape::{self, Escape, MEMORY_BOMBS, Outside};
use sandbox_wire::warden::ExitCause;
use std::{collections::BTreeSet, fs, process::Command};

/// How an attempt was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stopped {
    /// The call was refused, with this error.
    Refused(String),
    /// The filter ended the instance.
    Killed,
    /// The memory limit ended it.
    OutOfMemory,
    /// Not at all, or not as it should be.
    No(String),
}

/// The signal by which a filter ends a process.
const SIGSYS: i32 = 31;

/// Has an instance, booted or restored, try a way out.
fn stopped(warden: &mut Warden, tier: Tier, escape: &Escape) -> Stopped {
    let mut runner = if tier == Tier::Cold { warden.wake_cold() } else { warden.wake() };
    assert_eq!(runner.awake.tier, tier);
    let instance = runner.awake.instance;
    let answer = runner.ask(&format!("escape {}", escape.name));
    match (answer, warden.stop(instance)) {
        (Some(answer), Ok(_)) => {
            answer.strip_prefix("refused ").map_or_else(|| Stopped::No(answer.clone()), |e| Stopped::Refused(e.into()))
        }
        // It ended over it, at once or when the answer was out.
        _ => match warden.exited(instance) {
            ExitCause::Signal(SIGSYS) => Stopped::Killed,
            ExitCause::OutOfMemory { .. } if MEMORY_BOMBS.contains(&escape.name) => Stopped::OutOfMemory,
            other => Stopped::No(other.to_string()),
        },
    }
}

/// What an attempt on the host itself would change.
fn host() -> [String; 4] {
    let files = ["/proc/sys/kernel/hostname", "/proc/self/mountinfo", "/proc/swaps", "/proc/modules"];
    files.map(|path| fs::read_to_string(path).unwrap_or_default())
}

#[test]
fn no_way_out_gets_through() {
    let before = host();
    let mut warden = Warden::start();
    let mut neighbour = warden.wake();
    let mut through = Vec::new();
    for (tier, escape) in escape::all().flat_map(|escape| [(Tier::Cold, escape), (Tier::Parked, escape)]) {
        let stopped = stopped(&mut warden, tier, escape);
        println!("{tier:<6} {:<50} {stopped:?}", escape.name);
        assert_eq!(neighbour.ask("read /model.gguf").as_deref(), Some("ok 24"), "after {}", escape.name);
        if matches!(stopped, Stopped::No(_)) {
            through.push((escape.name, stopped));
        }
    }
    assert_eq!(through, []);
    assert_eq!(warden.stop(neighbour.awake.instance), Ok(sandbox_wire::warden::Reply::Stopped));
    warden.left_nothing();
    assert_eq!(host(), before);
}

/// An attempt that fails anywhere proves nothing of the sandbox.
#[test]
fn the_attempts_are_real() {
    let tried: Vec<_> = escape::all().filter(|escape| escape.outside == Outside::Works).collect();
    assert!(tried.len() >= 60, "{}", tried.len());
    let works = |escape: &&&Escape| {
        let status = Command::new(env!("CARGO_BIN_EXE_sandbox-probe")).args(["try", escape.name]).status();
        status.unwrap().success()
    };
    let failed: BTreeSet<_> = tried.iter().filter(|escape| !works(escape)).map(|escape| escape.name).collect();
    assert_eq!(failed, BTreeSet::new());
}
