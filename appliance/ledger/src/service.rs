//! The threads beside the one that appends: one keeps the index, one answers.
//!
//! ```text
//!  append ─ note ─▶ mark, the newest only ─▶ index thread: catch up, rest ─▶ index.db ◀─ answer thread ◀─▶ server
//! ```
//!
//! A question waits until what was on the disk when it came has been indexed, so that who was told that something is
//! durable finds it. Appending waits for neither. An index that fails is reported and tried again; the segments go on. The socket's ends
//! both outlive this process, so the first thing said on it is [`Said::Ready`]: who waits for an answer of the last life
//! learns that none will come.

use crate::{
    disk::Disk,
    index::{Index, IndexError, Reader},
    log::Log,
    page::{self, Extent},
    query::{ANSWER_BYTES_MAX, ASK_BYTES_MAX, Answer, Ask, Query, QueryError, Said},
    segment::Position,
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};
use sandbox_kernel::socket::{PacketError, receive_packet, send_packet};
use sandbox_wire::frame::{decode_packet, encode_packet};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Rest between two looks at the segments: what is indexed together costs less.
const REST: Duration = Duration::from_millis(100);

/// What there is to be indexed.
#[derive(Clone, Copy, Debug)]
struct Mark {
    oldest: u64,
    end: Position,
}

/// Longest that a question waits for the index; past that it is answered from what there is.
const BEHIND_MAX: Duration = Duration::from_secs(2);
const BEHIND_LOOK: Duration = Duration::from_millis(5);

/// How far the log and its index are.
#[derive(Debug, Default)]
struct Progress {
    logged: Mutex<Option<Mark>>,
    /// As [`Position::packed`].
    indexed: AtomicU64,
}

/// Tells the index how far the log has come.
#[derive(Debug)]
pub struct Indexer {
    /// Rung after each change of the mark.
    bell: flume::Sender<()>,
    progress: Arc<Progress>,
}

impl Indexer {
    /// Starts keeping the index in `folder`, and answering on `socket` where there is one.
    ///
    /// # Errors
    /// The kernel's: no threads left.
    pub fn start(folder: &Path, socket: Option<OwnedFd>) -> io::Result<Self> {
        let (bell, rung) = flume::bounded(1);
        let progress = Arc::<Progress>::default();
        let (path, indexed) = (folder.to_owned(), Arc::clone(&progress));
        thread::Builder::new().name("ledger-index".into()).spawn(move || follow(&path, &rung, &indexed))?;
        if let Some(socket) = socket {
            let (path, indexed) = (folder.to_owned(), Arc::clone(&progress));
            thread::Builder::new().name("ledger-answers".into()).spawn(move || answer_all(&path, &socket, &indexed))?;
        }
        Ok(Self { bell, progress })
    }

    /// Says how far the log has come; never waits for the index.
    pub fn note<D: Disk>(&self, log: &Log<D>) {
        *self.progress.logged() = Some(Mark { oldest: log.oldest(), end: log.end() });
        // Full: it has been rung, and not been heard yet. Disconnected: the thread told why it ended.
        let _ = self.bell.try_send(());
    }
}

impl Progress {
    fn logged(&self) -> MutexGuard<'_, Option<Mark>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the index has what the log has now.
    fn wait(&self) {
        let logged = self.logged().map_or(0, |mark| mark.end.packed());
        let until = Instant::now() + BEHIND_MAX;
        while self.indexed.load(Ordering::Acquire) < logged && Instant::now() < until {
            thread::sleep(BEHIND_LOOK);
        }
    }
}

fn follow(folder: &Path, rung: &flume::Receiver<()>, progress: &Progress) {
    let mut index = None;
    for () in rung {
        let Some(mark) = *progress.logged() else { continue };
        match advance(&mut index, folder, mark) {
            Ok(()) => progress.indexed.store(mark.end.packed(), Ordering::Release),
            Err(error) => {
                tracing::error!(%error, "the ledger's index is behind");
                index = None;
                thread::sleep(10 * REST);
            }
        }
        thread::sleep(REST);
    }
}

fn advance(index: &mut Option<Index>, folder: &Path, mark: Mark) -> Result<(), IndexError> {
    let mut current = match index.take() {
        Some(index) => index,
        None => Index::open(folder)?,
    };
    current.catch_up(mark.oldest, mark.end)?;
    *index = Some(current);
    Ok(())
}

fn answer_all(folder: &Path, socket: &OwnedFd, progress: &Progress) {
    let mut answers = Answers { folder: folder.to_owned(), reader: None };
    let mut buffer = vec![0; ASK_BYTES_MAX];
    let mut said = say(socket, &Said::Ready);
    while said.is_ok() {
        match receive_packet(socket, &mut buffer) {
            Ok(Some(packet)) => match decode_packet(&buffer[..packet.length]) {
                Ok(Ask { id, query }) => said = say(socket, &Said::Answer { id, answer: answers.to(&query, progress) }),
                Err(error) => tracing::error!(%error, "the server asked what is no question"),
            },
            Ok(None) => return,
            Err(PacketError::Kernel(error)) => return tracing::error!(%error, "the ledger answers no more"),
            Err(error) => tracing::error!(%error, "the server asked what is no question"),
        }
    }
}

fn say(socket: &OwnedFd, said: &Said) -> Result<(), Errno> {
    let packet = encode_packet(said, ANSWER_BYTES_MAX).or_else(|error| {
        tracing::error!(%error, "an answer does not fit");
        let Said::Answer { id, .. } = said else { return Err(error) };
        let answer = Err(QueryError::Index { reason: error.to_string() });
        encode_packet(&Said::Answer { id: *id, answer }, ANSWER_BYTES_MAX)
    });
    send_packet(socket, &packet.map_err(|_| Errno::EMSGSIZE)?, None)
}

/// Says something that was not asked for, if the other end has room for it.
pub(crate) fn tell(socket: &OwnedFd, said: &Said) {
    let packet = encode_packet(said, ANSWER_BYTES_MAX).expect("it has a few bytes");
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // No room, or nobody: it is said again.
    let _ = send(socket.as_raw_fd(), &packet, flags);
}

struct Answers {
    folder: PathBuf,
    reader: Option<Reader>,
}

impl Answers {
    /// Lines are read from the segments, all else from the index once it has what is on the disk.
    fn to(&mut self, query: &Query, progress: &Progress) -> Result<Answer, QueryError> {
        if let Query::Lines { from } = query {
            let Mark { oldest, end } = progress.logged().ok_or(QueryError::Restarted)?;
            let page = page::read(&self.folder, Extent { oldest, end }, Position::unpacked(*from));
            return page.map(|page| Answer::Lines(Box::new(page)));
        }
        progress.wait();
        self.ask(query)
    }

    /// Opens the index when it is first asked, and again after a fault: it may have been made anew.
    fn ask(&mut self, query: &Query) -> Result<Answer, QueryError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::open(&self.folder)?,
        };
        let answer = reader.ask(query)?;
        self.reader = Some(reader);
        Ok(answer)
    }
}
