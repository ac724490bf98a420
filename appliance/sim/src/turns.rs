//! What each key of a trace waits for, by the order in which waiting requests are taken.
//!
//! First come, first served is the server's own queue with all requests under one key.

use crate::{Costs, KeyReport, Machine, Trace, policy, world};
use serde::Serialize;

/// In which order waiting requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The server's: keys take turns.
    Turns,
    /// First come, first served.
    Fifo,
}

/// What the keys of a trace wait for, beside each other and alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Waits {
    /// Keys take turns.
    pub turns: Vec<KeyReport>,
    /// First come, first served.
    pub fifo: Vec<KeyReport>,
    /// Each key without the others.
    pub alone: Vec<KeyReport>,
}

/// Replays a trace under the server's policy; nothing of one that names no keys.
pub fn waits(trace: &Trace, machine: &Machine, costs: &Costs) -> Option<Waits> {
    let ours = policy::all().into_iter().next().filter(|_| !trace.keys.is_empty())?;
    let keys = |trace: &Trace, order| world::run(trace, machine, costs, &ours, order).keys;
    let alone = (0..trace.keys.len()).map(|key| keys(&trace.only(key as u32), Order::Turns).swap_remove(key));
    Some(Waits { turns: keys(trace, Order::Turns), fifo: keys(trace, Order::Fifo), alone: alone.collect() })
}
