//! The ledger: one checksummed line for each request that ended, in `ledger/requests.log`.
//!
//! ```text
//!  server ──▶ a ring a core ──▶ Intake ──entries──▶ Sink: Lines ── append, fdatasync ──▶ requests.log ──▶ read()
//!             (appliance-meter,   │                   open requests, until they end
//!              never loses)       └◀── synced: the room is given back
//! ```
//!
//! Invariants: an entry leaves its ring only when what comes of it is synced, and what was synced before a crash is told
//! again and skipped, so that each request that ended has exactly one line; what stands in the file is never changed, but
//! for the tail that a crash tore; every line proves itself by its checksum. A request whose boot ended before it did is
//! [`Interrupted`](appliance_types::Outcome::Interrupted), with what it had used by its last heartbeat.
//!
//! Left out: chaining of lines, and queries. Which requests are open is known from the rings and kept in memory, and again
//! from their next heartbeat: where ledger and server are killed within the same second, a request that was open may
//! have no line.

mod intake;
pub mod line;
mod lines;
mod log;
mod process;

pub use log::{Corrupt, FILE_NAME, Log, LogError, ReadError, Records, Recovery, read};
pub use process::{LedgerError, run};
