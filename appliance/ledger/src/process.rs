//! The ledger's process: takes entries off the rings and makes them durable.
//!
//! ```text
//!  open and verify ─▶ take a batch, append, sync, release ─▶ … empty ─▶ sleep until the bell rings ─▶ take …
//!                      │ SIGTERM, or nobody is left who could ring
//!                      └─▶ take all there is ─▶ (nobody is left: what is open is interrupted) ─▶ end
//! ```
//!
//! An error of the file is final: the process ends with it, and is started again to verify the file anew. Nothing is lost
//! by that: what was not synced is still in the rings. Must run in a process that has no other thread that takes SIGTERM.

use crate::{
    intake::Intake,
    lines::Lines,
    log::{LogError, Recovery},
};
use appliance_meter::{Heard, Hearing, RECORDS, RingError, entry::ENTRY_RECORDS};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Most batches that are taken once the ledger is to end: more than rings can hold.
const LAST_BATCHES_MAX: usize = 1 << 12;

/// Why the process ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be taken over, or a batch was not written; it is still in the rings.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A ring cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The bell or the signals cannot be waited for.
    #[error("{action}: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes a line in `folder` of each request that ends, as the rings of all cores tell, until SIGTERM or until everybody
/// who could ring the bell is gone.
///
/// # Errors
/// [`LedgerError`].
pub fn run(folder: &Path, rings: &[OwnedFd], bell: OwnedFd) -> Result<(), LedgerError> {
    let stop = stop_signal().map_err(kernel("watch SIGTERM"))?;
    let bell = Hearing::from(bell);
    // Twice: what is open and what has ended may both be in the rings.
    let requests_max = rings.len() * (2 * RECORDS / ENTRY_RECORDS) as usize;
    let (mut lines, recovery) = Lines::open(folder, requests_max)?;
    report(&recovery);
    let mut intake = Intake::attach(rings)?;
    loop {
        let more = intake.pass(&mut lines)?;
        let sleeps = !more && intake.may_sleep();
        let stopping = wait(&stop, &bell, sleeps).map_err(kernel("wait for entries"))?;
        intake.awake();
        let gone = bell.clear().map_err(kernel("hear the bell"))? == Heard::Gone;
        if stopping || gone {
            return end(&mut intake, &mut lines, &bell);
        }
    }
}

/// Takes what is left.
fn end(intake: &mut Intake, lines: &mut Lines, bell: &Hearing) -> Result<(), LedgerError> {
    for _ in 0..LAST_BATCHES_MAX {
        if !intake.pass(lines)? {
            break;
        }
    }
    // It may have been rung before.
    for _ in 0..LAST_BATCHES_MAX {
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO).map_err(kernel("wait for entries"))? {
            0 => break,
            _ if bell.clear().map_err(kernel("hear the bell"))? == Heard::Gone => return Ok(lines.finish()?),
            _ => {}
        }
    }
    Ok(())
}

fn kernel<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> LedgerError {
    move |source| LedgerError::Kernel { action, source: source.into() }
}

fn stop_signal() -> nix::Result<SignalFd> {
    let signals = SigSet::from(Signal::SIGTERM);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}

/// Waits for the bell or SIGTERM, or only looks; tells whether it is to be the last time.
fn wait(stop: &SignalFd, bell: &Hearing, sleeps: bool) -> nix::Result<bool> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, if sleeps { PollTimeout::NONE } else { PollTimeout::ZERO }) {
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
