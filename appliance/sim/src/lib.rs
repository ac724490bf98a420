//! What scaling policies cost on a trace of requests: the server's own scheduler on a clock of its own, with a warden and
//! runners that only take time.
//!
//! ```text
//!  CSV ──▶ trace ──┐                     ┌── policy: ours, fixed times, plain KPA
//!  seed ─▶ synthetic ─▶ requests ─▶ world ─▶ appliance_pool::simulate (the scheduler) ─▶ report: table, SVG
//!                                        └── costs: wakes by tier, memory by tier, rates of a model
//! ```
//!
//! Invariants: the same requests, costs and policy give the same report; no clock is read but for its beginning, nothing
//! sleeps. A trace may name the keys that call: they take turns, as in the server. Every policy has the same wakes to fall back to, so that only its times differ. Left out: that requests which
//! share an instance slow each other down, disks, crashes, models that functions share.

mod chart;
mod costs;
mod policy;
mod report;
mod synthetic;
mod trace;
mod turns;
mod world;

pub use chart::svg;
pub use costs::{Costs, Machine};
pub use policy::{Named, all as policies};
pub use report::{KeyReport, Report, Tally};
pub use synthetic::Synthetic;
pub use trace::{Request, Trace, TraceError};
pub use turns::{Waits, waits};

/// What a policy costs on a trace.
pub fn simulate(trace: &Trace, machine: &Machine, costs: &Costs, policy: &Named) -> Report {
    world::run(trace, machine, costs, policy, turns::Order::Turns)
}
