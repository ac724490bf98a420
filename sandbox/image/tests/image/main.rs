//! Captures and restores of a real process: nothing it holds is lost, and nothing is left of what fails.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report, in its helpers too")]

mod capture;
mod device;
mod figures;
mod harness;
mod refuse;
mod restore;
mod sealed;
