//! Instances of functions, and the requests that run in them: from an admitted request to a stream of the runner's words.
//!
//! ```text
//!  any core                      the pool's core                                     outside
//!  Pool::submit ──Input──▶ driver ─▶ Scheduler (pure: now + input → effects) ──▶ connection ──▶ runner
//!       ▲                     ▲            │                                      │
//!       │                     └── Input::Said, Lost ◀────────────────────────────┘
//!       │                     └── Input::Woken, Exited ◀── warden client ◀──────────────────── warden
//!       └── Submission: Event::Dispatched, Reply…, Failed ◀── a bounded channel per request
//! ```
//!
//! Invariants: all state is in one [`scheduler::Scheduler`], owned by one task; every submission gets exactly one last
//! event; dropping a [`Submission`] cancels its work, within a token; a runner that breaks protocol loses its instance,
//! nothing else; memory that a runner can make us hold is bounded by what its requests asked for.
//! Left out: manifests and HTTP, budgets.

mod claims;
mod connection;
mod driver;
mod handle;
mod job;
mod pressure;
mod scheduler;
mod seen;
pub mod simulate;
mod tab;
mod warden;

pub use driver::{Resources, run};
pub use handle::{Inputs, Lost, Pool, Reservation, Submission, pool};
pub use job::{
    Dispatched, Event, Failed, FailingView, FunctionConfig, HeldView, InstanceView, JOBS_MAX, QueueView, Terms, View,
    Waits, WakeView, WakesView, Work,
};
pub use scheduler::System;
pub use tab::{Share, Tab, Used};
pub use warden::{Warden, WardenLost};
