//! The ledger: what each request used, on the disk before anyone counts on it, and found again after any crash.
//!
//! ```text
//!  server ── Sender ──▶ SOCK_SEQPACKET queue ──▶ process ── Log::append ──▶ 00000001.log, 00000002.log, …
//!            never waits      (supervisor keeps             write, fdatasync      │ frame.rs, segment.rs
//!                              both ends open)                                    ▼
//!                                      index.db ◀── service: index thread ◀── reader: entries ─▶ join: records
//!  server ── Client ◀─ query.rs, a packet each way ─▶ service: answer thread
//! ```
//!
//! Invariants: the sender never waits, it is told [`SendError::Full`] instead; an entry that [`Log::append`] took is
//! neither lost nor doubled by a crash or a power cut at any byte; what stands in a segment is never changed, but for
//! the tail that a crash tore; each line proves itself by its checksum, and its place by its chain value. What is
//! damaged is reported by segment and offset, and never passed over in silence. Left out: prices.

mod client;
pub mod disk;
pub mod frame;
pub mod index;
mod join;
mod legacy;
pub mod log;
mod process;
pub mod query;
mod queue;
pub mod reader;
mod recover;
pub mod segment;
mod service;
#[cfg(test)]
mod testing;

pub use client::Client;
pub use join::Joiner;
pub use log::{Config, Log, LogError, Space};
pub use process::{LedgerError, run};
pub use queue::{SendError, Sender, pair};
pub use reader::{ReadError, entries, records};
pub use recover::Recovery;
pub use segment::{Damage, Position};
pub use service::Indexer;
