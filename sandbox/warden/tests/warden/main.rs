//! The warden as it runs: a process of its own, real sandboxes, real cgroups. Needs root.

// As in any test, a panic in the harness is the report; clippy.toml sees only the tests themselves.
#![allow(clippy::unwrap_used)]

mod escapes;
mod harness;
mod life;
mod sandbox;
mod snapshots;
