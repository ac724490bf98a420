//! What is counted of requests, and how Prometheus is told: per-core shards, merged when somebody asks.
//!
//! ```text
//!  a core: a request ends ─▶ Shard (its own; no other core writes to it) ─┐
//!  a core: …              ─▶ Shard ────────────────────────────────────────┼─ Shards::merged ─▶ Counts ─┐
//!                                                                          ┘                            ├─▶ render ─▶ text
//!  pool, warden, ledger, budgets, rings: looked at when somebody asks ──────────────▶ Standing ────────┘
//! ```
//!
//! Names of requests are OpenTelemetry's for generative AI, as Prometheus writes them; all others begin with `ember_`.
//!
//! Invariants: a request ends in one lock of its own core's shard, which nobody contends but a scrape, for as long as a copy
//! takes; no label holds what a caller chose: functions are those that are deployed, [`FUNCTIONS_MAX`] at most, everything
//! else is a word of ours. Nothing here asks a function for anything, so a scrape neither wakes nor keeps one.
//! Left out: traces, and who may ask (`appliance-daemon`).

mod families;
mod histogram;
mod render;
mod shard;
mod standing;

pub use render::{Format, render};
pub use shard::{Counts, Ended, FUNCTIONS_MAX, Operation, Shard, Shards};
pub use standing::{
    Budget, Connections, Cores, FunctionTier, Instances, Ledger, Memory, Queue, Ring, Snapshots, Standing, Wakes,
};
