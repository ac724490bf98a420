//! The ledger: what each request used, on the disk before anyone counts on it, and found again after any crash.
//!
//! ```text
//!  server ──▶ a ring a core ──▶ intake ──▶ process ── Log::append ──▶ 00000001.log, 00000002.log, …
//!             (appliance-meter,   └◀── synced: the room is given back    │ frame.rs, segment.rs
//!              never loses)                                             ▼
//!                                      index.db ◀── service: index thread ◀── reader: entries
//!  server ── Client ◀─ query.rs, a packet each way ─▶ service: answer thread
//! ```
//!
//! Invariants: an entry leaves its ring only when it is on the disk, and what is told again after a crash is known by its
//! number, so that each request has exactly one end; a request whose server died before it is
//! [`Interrupted`](appliance_types::Outcome::Interrupted), with what it had used by its last heartbeat; an entry that
//! [`Log::append`] took is neither lost nor doubled by a crash or a power cut at any byte; what stands in a segment is
//! never changed, but for the tail that a crash tore; each line proves itself by its checksum, and its place by its chain
//! value. What is damaged is reported by segment and offset, and never passed over in silence. Left out: prices.

mod client;
pub mod disk;
pub mod frame;
pub mod index;
mod intake;
mod join;
mod legacy;
pub mod log;
mod open;
mod page;
mod process;
pub mod query;
pub mod reader;
mod recover;
pub mod segment;
mod service;
pub mod signed;
#[cfg(test)]
mod testing;
mod verify;

pub use client::Client;
pub use join::Joiner;
pub use log::{Config, Log, LogError, Space};
pub use process::{LedgerError, run};
pub use reader::{ReadError, entries, records};
pub use recover::Recovery;
pub use segment::{Damage, Position};
pub use service::Indexer;
pub use verify::{Verified, verify};
