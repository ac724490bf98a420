//! The ledger's process: takes entries off the rings and makes them durable.
//!
//! ```text
//!  open and verify ─▶ take a batch, append, sync, release ─▶ … empty ─▶ sleep until the bell rings ─▶ take …
//!                      │                       └─▶ the index, beside it, learns how far the log has come
//!                      │ SIGTERM, or nobody is left who could ring
//!                      └─▶ take all there is ─▶ (nobody is left: what is open is interrupted) ─▶ end
//! ```
//!
//! An error of the log is final: the process ends with it, and is started again to verify it anew. Nothing is lost by
//! that: what was not synced is still in the rings. While the disk is nearly full, the server is told once a second, so that
//! it admits nothing more; at rest nothing here ticks. Must run in a process that has no other thread that takes SIGTERM.

use crate::{
    intake::{Intake, Sink},
    log::{Log, LogError, Space},
    open::Open,
    query::Said,
    reader::{ReadError, entries},
    recover::Recovery,
    segment::Position,
    service::{Indexer, tell},
};
use appliance_meter::{Heard, Hearing, RECORDS, RingError, entry::ENTRY_RECORDS};
use appliance_types::Entry;
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
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Most batches that are taken once the ledger is to end: more than rings can hold.
const LAST_BATCHES_MAX: usize = 1 << 12;
/// How often the next segment, the oldest and the disk are looked at while there is something to do.
const TEND: Duration = Duration::from_secs(1);
const TEND_MS: u16 = 1000;

/// Why the process ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The log cannot be taken over, or a batch was not written; it is still in the rings.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What it holds cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A ring cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The threads beside it cannot be started.
    #[error("start the ledger's threads: {0}")]
    Thread(io::Error),
    /// The bell or the signals cannot be waited for.
    #[error("{action}: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Keeps in `folder` what the rings of all cores tell, and answers what is asked over `questions`, until SIGTERM or until
/// everybody who could ring the bell is gone.
///
/// # Errors
/// [`LedgerError`].
pub fn run(folder: &Path, rings: &[OwnedFd], bell: OwnedFd, questions: Option<OwnedFd>) -> Result<(), LedgerError> {
    let stop = stop_signal().map_err(kernel("watch SIGTERM"))?;
    let bell = Hearing::from(bell);
    // Twice: what is open and what has ended may both be in the rings.
    let requests_max = rings.len() * (2 * RECORDS / ENTRY_RECORDS) as usize;
    let mut books = Books::open(folder, requests_max, questions)?;
    let mut intake = Intake::attach(rings)?;
    loop {
        let more = intake.pass(&mut books)?;
        let low = books.tend()?;
        let rest = match (more || !intake.may_sleep(), low) {
            (true, _) => PollTimeout::ZERO,
            (false, true) => PollTimeout::from(TEND_MS),
            (false, false) => PollTimeout::NONE,
        };
        let stopping = wait(&stop, &bell, rest).map_err(kernel("wait for entries"))?;
        intake.awake();
        let gone = bell.clear().map_err(kernel("hear the bell"))? == Heard::Gone;
        if stopping || gone {
            return end(&mut intake, &mut books, &bell);
        }
    }
}

/// The log, its index, and the requests that have not ended.
struct Books {
    log: Log,
    open: Open,
    indexer: Indexer,
    questions: Option<OwnedFd>,
    tended: Instant,
}

impl Books {
    fn open(folder: &Path, requests_max: usize, questions: Option<OwnedFd>) -> Result<Self, LedgerError> {
        let (log, recovery) = Log::open(folder, unix_ms())?;
        report(&recovery);
        let mut open = Open::new(requests_max);
        // What is damaged has been reported.
        for placed in entries(folder, Position::default())?.flatten() {
            open.note(&placed.entry);
        }
        let ours = questions.as_ref().map(OwnedFd::try_clone).transpose().map_err(LedgerError::Thread)?;
        let indexer = Indexer::start(folder, questions).map_err(LedgerError::Thread)?;
        indexer.note(&log);
        Ok(Self { log, open, indexer, questions: ours, tended: Instant::now() })
    }

    /// Looks after the disk, once a second at most; whether space is low.
    fn tend(&mut self) -> Result<bool, LedgerError> {
        let was_low = self.log.space() == Space::Low;
        if self.tended.elapsed() >= TEND {
            self.tended = Instant::now();
            let low = self.log.tend(unix_ms())? == Space::Low;
            self.indexer.note(&self.log);
            if let Some(socket) = self.questions.as_ref().filter(|_| low || was_low) {
                tell(socket, &Said::Space { low });
            }
        }
        Ok(self.log.space() == Space::Low)
    }

    /// The server is gone for good: what is open will never be closed.
    fn finish(&mut self) -> Result<(), LogError> {
        let ended = self.open.interrupted(|_| true, &self.log);
        self.append(&ended)
    }
}

impl Sink for Books {
    type Error = LogError;

    fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        // What is told again after a crash is known already, and so is what came of it.
        let last = |entry: &Entry| self.log.last(entry.boot, entry.core);
        let fresh: Vec<_> = entries.iter().map(|entry| last(entry).is_none_or(|last| last < entry.sequence)).collect();
        self.log.append(entries)?;
        for (entry, fresh) in entries.iter().zip(fresh) {
            if fresh {
                self.open.note(entry);
            }
        }
        self.indexer.note(&self.log);
        Ok(())
    }

    fn began(&mut self, core: u16, boot: u64) -> Result<(), LogError> {
        let ended = self.open.interrupted(|entry| entry.core == core && entry.boot != boot, &self.log);
        self.append(&ended)
    }
}

/// Takes what is left.
fn end(intake: &mut Intake, books: &mut Books, bell: &Hearing) -> Result<(), LedgerError> {
    for _ in 0..LAST_BATCHES_MAX {
        if !intake.pass(books)? {
            break;
        }
    }
    // It may have been rung before.
    for _ in 0..LAST_BATCHES_MAX {
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO).map_err(kernel("wait for entries"))? {
            0 => break,
            _ if bell.clear().map_err(kernel("hear the bell"))? == Heard::Gone => return Ok(books.finish()?),
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

/// Waits for the bell or SIGTERM, `rest` long at most; tells whether it is to be the last time.
fn wait(stop: &SignalFd, bell: &Hearing, rest: PollTimeout) -> nix::Result<bool> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, rest) {
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

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
