//! The policies that are compared: the server's, and those that it has to be better than.

use appliance_pool::simulate::Policy;
use appliance_scale::hold::{Price, RUNNING_LEAST, Term};
use std::time::Duration;

/// Bounds of the server's own decision: a manifest's defaults.
const RUNNING_MOST: Duration = Duration::from_secs(60);
const PARKED_MOST: Duration = Duration::from_secs(900);
/// Knative's stable window and its grace before the last instance goes.
const KPA_TO_ZERO: Duration = Duration::from_secs(60 + 30);

/// A policy.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What it is called.
    pub name: &'static str,
    /// What holds for all functions.
    pub policy: Policy,
    /// Time running without a request.
    pub running: Term,
    /// Time parked after that.
    pub parked: Term,
}

/// All of them, the server's first.
pub fn all() -> Vec<Named> {
    let s = Duration::from_secs;
    let exactly = |name, running, parked| Named {
        name,
        policy: Policy::default(),
        running: Term::Exactly(running),
        parked: Term::Exactly(parked),
    };
    let ours = Named {
        name: "ember",
        policy: Policy::default(),
        running: Term::Within { least: RUNNING_LEAST, most: RUNNING_MOST },
        parked: Term::Within { least: Duration::ZERO, most: PARKED_MOST },
    };
    // Memory that is worth nothing is held for the longest that it may be.
    let free = Policy { price: Price(0.0), scale_down_delay: Duration::ZERO, ahead_over: Duration::ZERO };
    let kpa = Named {
        name: "kpa",
        policy: free,
        running: Term::Within { least: KPA_TO_ZERO, most: KPA_TO_ZERO },
        parked: Term::Exactly(Duration::ZERO),
    };
    vec![
        ours,
        exactly("fixed 60 s", s(60), Duration::ZERO),
        exactly("fixed 300 s", s(300), Duration::ZERO),
        exactly("fixed 600 s", s(600), Duration::ZERO),
        exactly("60 s + parked 900 s", RUNNING_MOST, PARKED_MOST),
        kpa,
    ]
}
