//! The ledger's process: takes records off the queue and appends them.
//!
//! ```text
//!  open and verify ─▶ wait ─▶ take what is queued, up to a batch ─▶ append, sync ─▶ wait …
//!                      │ SIGTERM or end of the queue
//!                      └─▶ take all that is queued, append, sync ─▶ end
//! ```
//!
//! An error of the ledger is final: the process ends with it, and is started again to verify it anew. The records
//! of the batch at hand are lost then, and counted in the error; those still queued are not. Must run in a process that
//! has no other thread that takes SIGTERM.

use crate::{
    log::{Log, LogError},
    queue::{Taken, take},
    recover::Recovery,
    service::Indexer,
};
use appliance_types::{Entry, Record, Stage};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Most entries that are written and synced together.
const BATCH_ENTRIES_MAX: usize = 256;
/// How often the next segment, the oldest and the disk are looked at, ms.
const TEND_MS: u16 = 1000;

/// Why the process ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The ledger cannot be taken over, or looked after.
    #[error(transparent)]
    Open(LogError),
    /// A batch was not written.
    #[error("{records} records lost: {source}")]
    Append {
        /// Records of the batch.
        records: usize,
        /// What the ledger said.
        source: LogError,
    },
    /// The threads beside it cannot be started.
    #[error("start the ledger's threads: {0}")]
    Thread(io::Error),
    /// The queue or the signals cannot be waited for.
    #[error("{action}: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

/// Appends records from `socket`, the second of [`crate::pair`], to the ledger in `folder`, until SIGTERM or until the
/// other end is closed everywhere.
///
/// # Errors
/// [`LedgerError`].
pub fn run(folder: &Path, socket: OwnedFd) -> Result<(), LedgerError> {
    let stop = stop_signal().map_err(kernel("watch SIGTERM"))?;
    let (mut log, recovery) = Log::open(folder, unix_ms()).map_err(LedgerError::Open)?;
    report(&recovery);
    let indexer = Indexer::start(folder, None).map_err(LedgerError::Thread)?;
    let mut batch = Batch::new(random());
    loop {
        let stopping = wait(&stop, &socket).map_err(kernel("wait for records"))?;
        log.tend(unix_ms()).map_err(LedgerError::Open)?;
        loop {
            let next = batch.fill(&socket).map_err(kernel("receive a record"))?;
            batch.write(&mut log)?;
            indexer.note(&log);
            match next {
                Next::Full => {}
                Next::Empty if stopping => return Ok(()),
                Next::Empty => break,
                Next::Closed => return Ok(()),
            }
        }
    }
}

fn kernel(action: &'static str) -> impl Fn(Errno) -> LedgerError {
    move |source| LedgerError::Kernel { action, source }
}

fn stop_signal() -> nix::Result<SignalFd> {
    let signals = SigSet::from(Signal::SIGTERM);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}

/// Waits until there is something to take or to tend, and tells whether it is to be the last.
fn wait(stop: &SignalFd, socket: &OwnedFd) -> nix::Result<bool> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(TEND_MS)) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(fds[0].any().unwrap_or(true)),
        }
    }
}

fn report(recovery: &Recovery) {
    if let Some((at, bytes)) = recovery.cut {
        tracing::warn!(%at, bytes, "cut a torn tail off the ledger");
    }
    for damage in &recovery.damage {
        tracing::error!(%damage, places = recovery.damaged, "the ledger is damaged");
    }
    if recovery.imported > 0 || !recovery.not_imported.is_empty() {
        let corrupt = &recovery.not_imported;
        tracing::warn!(records = recovery.imported, ?corrupt, "took in the ledger of an older version");
    }
    tracing::info!(entries = recovery.entries, "ledger verified");
}

/// Why a batch is not filled further.
enum Next {
    Full,
    Empty,
    Closed,
}

/// Entries that are written and synced together.
struct Batch {
    entries: Vec<Entry>,
    boot: u64,
    sequence: u64,
}

impl Batch {
    fn new(boot: u64) -> Self {
        Self { entries: Vec::new(), boot, sequence: 0 }
    }

    fn fill(&mut self, socket: &OwnedFd) -> nix::Result<Next> {
        while self.entries.len() < BATCH_ENTRIES_MAX {
            match take(socket)? {
                Taken::Record(record) => self.push(*record),
                Taken::Malformed(error) => tracing::error!(%error, "the server sent no record"),
                Taken::Empty => return Ok(Next::Empty),
                Taken::Closed => return Ok(Next::Closed),
            }
        }
        Ok(Next::Full)
    }

    /// The queue brings only records of requests that ended; each start of this process numbers them anew.
    fn push(&mut self, record: Record) {
        let Self { boot, sequence, .. } = *self;
        self.entries.push(Entry { boot, core: 0, sequence, stage: Stage::Closed, record });
        self.sequence += 1;
    }

    fn write(&mut self, log: &mut Log) -> Result<(), LedgerError> {
        log.append(&self.entries).map_err(|source| LedgerError::Append { records: self.entries.len(), source })?;
        self.entries.clear();
        Ok(())
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Names a start of this process.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
