//! The ledger's process: takes records off the queue and appends them.
//!
//! ```text
//!  open and verify ─▶ wait ─▶ take what is queued, up to a batch ─▶ append, sync ─▶ wait …
//!                      │ SIGTERM or end of the queue
//!                      └─▶ take all that is queued, append, sync ─▶ end
//! ```
//!
//! An error of the file is final: the process ends with it, and is started again to verify the file anew. The records
//! of the batch at hand are lost then, and counted in the error; those still queued are not. Must run in a process that
//! has no other thread that takes SIGTERM.

use crate::{
    line,
    log::{BATCH_BYTES_MAX, Log, LogError, Recovery},
    queue::{Taken, take},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Why the process ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be taken over.
    #[error(transparent)]
    Open(LogError),
    /// A batch was not written.
    #[error("{records} records lost: {source}")]
    Append {
        /// Records of the batch.
        records: usize,
        /// What the file said.
        source: LogError,
    },
    /// The queue or the signals cannot be waited for.
    #[error("{action}: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

/// Appends records from `socket`, the second of [`crate::pair`], to the file in `folder`, until SIGTERM or until the
/// other end is closed everywhere.
///
/// # Errors
/// [`LedgerError`].
pub fn run(folder: &Path, socket: OwnedFd) -> Result<(), LedgerError> {
    let stop = stop_signal().map_err(kernel("watch SIGTERM"))?;
    let (mut log, recovery) = Log::open(folder).map_err(LedgerError::Open)?;
    report(&recovery);
    let mut batch = Batch::default();
    loop {
        let stopping = wait(&stop, &socket).map_err(kernel("wait for records"))?;
        loop {
            let next = batch.fill(&socket).map_err(kernel("receive a record"))?;
            batch.write(&mut log)?;
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

/// Waits until there is something to take, and tells whether it is to be the last.
fn wait(stop: &SignalFd, socket: &OwnedFd) -> nix::Result<bool> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(fds[0].any().unwrap_or(true)),
        }
    }
}

fn report(recovery: &Recovery) {
    let Recovery { records, cut_bytes, corrupt } = recovery;
    if *cut_bytes > 0 {
        tracing::warn!(cut_bytes, "cut a torn tail off the ledger");
    }
    if corrupt.lines > 0 {
        tracing::error!(lines = corrupt.lines, offsets = ?corrupt.offsets, "the ledger holds corrupt lines");
    }
    tracing::info!(records, "ledger verified");
}

/// Why a batch is not filled further.
enum Next {
    Full,
    Empty,
    Closed,
}

/// Lines that are written and synced together.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    records: usize,
}

impl Batch {
    fn fill(&mut self, socket: &OwnedFd) -> nix::Result<Next> {
        while self.lines.len() + line::LINE_BYTES_MAX <= BATCH_BYTES_MAX {
            match take(socket)? {
                Taken::Record(record) => {
                    self.lines.extend_from_slice(&line::encode(&record));
                    self.records += 1;
                }
                Taken::Malformed(error) => tracing::error!(%error, "the server sent no record"),
                Taken::Empty => return Ok(Next::Empty),
                Taken::Closed => return Ok(Next::Closed),
            }
        }
        Ok(Next::Full)
    }

    fn write(&mut self, log: &mut Log) -> Result<(), LedgerError> {
        if self.records > 0 {
            log.append(&self.lines).map_err(|source| LedgerError::Append { records: self.records, source })?;
        }
        self.lines.clear();
        self.records = 0;
        Ok(())
    }
}
