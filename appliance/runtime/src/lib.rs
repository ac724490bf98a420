//! The serving executor: the only crate that names glommio, and a seam thin enough for another runtime to stand behind.
//!
//! One executor a core, one thread an executor; nothing migrates, so tasks are `!Send` and share state by `Rc`.
//!
//! ```text
//! run_per_core ─▶ thread per core ─▶ executor ─▶ main future ─▶ spawn / spawn_owned
//!      │                               │
//!      └─ Cores::join ◀────────────────┘ ends when its main future does; tasks still alive are dropped
//! ```
//!
//! Invariants, each a trap of the library that is wrapped here once and held by a test:
//! - a task that panics ends alone: every task is polled under `catch_unwind` ([`spawn`]), or its executor would die;
//! - an executor pins 192 KiB of memory, not 30 MiB ([`run_per_core`]);
//! - the kernel does not interrupt a core for every completion ([`cooperative_rings`]);
//! - waiting for a descriptor never reads from it ([`readable`]);
//! - [`TcpListener::accept`] may be dropped at any await without losing a connection.
//!
//! Left out: signals (block them before the first executor starts), files, and names of hosts.

mod cores;
mod net;
mod readiness;
mod ring;
mod task;
mod time;

pub use cores::{Cores, StartError, available_cores, run_per_core};
pub use net::{TcpListener, TcpStream, UnixStream, listeners};
pub use readiness::readable;
pub use ring::cooperative_rings;
pub use task::{Panicked, Task, catch_unwind, spawn, spawn_owned, unblock};
pub use time::{Elapsed, sleep, timeout};
