//! The meter ring: what one core of the server says of its requests, on its way to the ledger.
//!
//! ```text
//!  Producer ──entry──▶ sealed memfd, made and kept by the supervisor ──▶ Consumer ──▶ log, synced ──▶ release
//!  (a core of the        outlives either side                            (the ledger)
//!   server)  └──────────── a byte in a pipe, when the ledger sleeps ──────────▲
//!
//!  byte 0        128         256        384
//!  ┌─────────────┬───────────┬──────────┬─────────┬─────────┬───┬───────────┐
//!  │ tail        │ waiting   │ head     │ record  │ record  │ … │ record    │   lines of 128 bytes: what one side
//!  │ server's    │ ledger's  │ ledger's │ 0       │ 1       │   │ 2^n - 1   │   writes shares none with the other
//!  └─────────────┴───────────┴──────────┴─────────┴─────────┴───┴───────────┘
//! ```
//! `tail` and `head` count records for ever; a record's place is its number modulo the ring's length, which is known from
//! the file's size, that seals hold. An entry is three records, published at once ([`entry`]); that a boot begins is one.
//! Names travel in the entry: so the ledger needs nothing but the ring, whenever it begins anew.
//!
//! Invariants:
//! - a record is written before the tail passes it, and read before the head does: nothing is lost or overwritten;
//! - an open request has room for its close: [`Producer::close`] cannot fail, whatever the ledger does;
//! - one record stays free for the next boot to say that it begins;
//! - the consumer trusts nothing: it copies a record out, then checks it, and each record is met once. A damaged one is
//!   an error with its position;
//! - handles are neither `Clone` nor `Sync`: there is one of each for a ring, on one thread.
//!
//! ```compile_fail,E0277
//! fn shared<T: Sync>() {}
//! shared::<appliance_meter::Producer>();
//! ```
//! ```compile_fail,E0277
//! fn copied<T: Clone>() {}
//! copied::<appliance_meter::Consumer>();
//! ```
//!
//! Left out: what becomes of an entry, and of a request whose close never came (the ledger).

mod bell;
mod consumer;
mod cursor;
pub mod entry;
#[cfg(test)]
mod explored;
mod mapping;
mod producer;
mod record;
#[cfg(test)]
mod tests;
mod watch;

pub use bell::{Bell, Heard, Hearing, bell};
pub use consumer::{Consumer, Corrupt, Item};
pub use mapping::{RECORDS_MAX, RECORDS_MIN, RingError, create};
pub use producer::{Full, Producer, Ticket};
pub use record::{Fault, RECORD_BYTES};
pub use watch::{Fill, Watch};

/// Records of a core's ring: 2 MiB, for about 2700 requests that the ledger has not taken yet.
pub const RECORDS: u64 = 1 << 14;
