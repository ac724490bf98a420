//! Reports on what the ledger has. Pure: records, prices and sizes in; rows out.
//!
//! ```text
//!  Record ──▶ Costs ─────────────▶ cost per token, by function and key
//!    │   └──▶ Focus + Book ──────▶ FOCUS 1.0 CSV, whose billed costs add up to what was charged
//!    └─▶ Visit + Size + Book ─┬──▶ rightsize: what a function needs by its peaks, and what that saves
//!                             └──▶ breakeven: pay as used, or keep an instance; and the rate at which that turns
//! ```
//!
//! Invariants: amounts are whole nano-units and add up; what has no known price is told and never guessed. Ratios and
//! rates, which nobody is charged by, may be rounded. Left out: fetching, printing, clocks.

#![forbid(unsafe_code)]

mod breakeven;
mod cost;
mod focus;
mod rightsize;
mod visit;

pub use breakeven::{Breakeven, Cheaper, Provisioned, breakeven};
pub use cost::{Cost, Costs};
pub use focus::Focus;
pub use rightsize::{Rightsize, rightsize};
pub use visit::{Size, Visit};

#[cfg(test)]
mod testing;
