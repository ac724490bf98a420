//! Waiting for what the programs do, with a bound.
//!
//! Where an event can be awaited (a line, an exit, a reply) the harness awaits it. [`until`] is for the rest: states
//! of other processes that announce themselves to nobody.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before the test counts it as hung. Far above what it takes; never a measurement.
pub const HANG: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// What `attempt` gives once it gives something; fails the test when that takes longer than [`HANG`].
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(started.elapsed() < HANG, "waited {HANG:?} until {what}");
        thread::sleep(PAUSE);
    }
}
