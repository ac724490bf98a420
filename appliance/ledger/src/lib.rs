//! The ledger: one checksummed line for each request that ended, in `ledger/requests.log`.
//!
//! ```text
//!  server ── Sender ──▶ SOCK_SEQPACKET queue ──▶ process::run ── append, fdatasync ──▶ requests.log ──▶ read()
//!            never waits      (supervisor keeps            a batch at a time              line.rs
//!                              both ends open)
//! ```
//!
//! Invariants: the sender never waits, it is told [`SendError::Full`] instead; what stands in the file is never changed,
//! but for the tail that a crash tore; every line proves itself by its checksum. A record is durable when its batch was
//! synced; nobody is told when that is. Left out: acknowledgement, chaining of lines, and queries.

pub mod line;
mod log;
mod process;
pub mod query;
mod queue;

pub use log::{Corrupt, FILE_NAME, Log, LogError, ReadError, Records, Recovery, read};
pub use process::{LedgerError, run};
pub use queue::{SendError, Sender, pair};
