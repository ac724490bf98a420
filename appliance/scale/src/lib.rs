//! How many instances a function has, and for how long it is held at each tier. Pure: `now` and values in, decision out.
//!
//! ```text
//!  requests running and waiting ──▶ kpa ───────▶ instances wanted        (stable and panic windows, delay on the way down)
//!  gaps between requests ─▶ gaps ─▶ hold ──────▶ time running, then parked       (what is cheapest by the function's past)
//!  the manifest's windows ────────▶ schedule ──▶ instances kept now, and when that changes next
//! ```
//!
//! Invariants: what is decided lies within the bounds that came with the question; a history takes the same memory however
//! long it is. Left out: which instance, whether there are cores and memory for it (`appliance/admit`), and all waiting.

mod gaps;
pub mod hold;
mod kpa;
pub mod schedule;

pub use gaps::Gaps;
pub use kpa::{Bounds, Kpa, TICK};
