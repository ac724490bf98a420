//! The threads beside the one that appends: one keeps the index, one answers.
//!
//! ```text
//!  append ─ note ─▶ mark, the newest only ─▶ index thread: catch up, rest ─▶ index.db ◀─ answer thread ◀─▶ server
//! ```
//!
//! Appending waits for neither. An index that fails is reported and tried again; the segments go on. The socket's ends
//! both outlive this process, so the first thing said on it is [`Said::Ready`]: who waits for an answer of the last life
//! learns that none will come.

use crate::{
    disk::Disk,
    index::{Index, IndexError, Reader},
    log::Log,
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
    thread,
    time::Duration,
};

/// Rest between two looks at the segments: what is indexed together costs less.
const REST: Duration = Duration::from_millis(100);

/// What there is to be indexed.
#[derive(Clone, Copy, Debug)]
struct Mark {
    oldest: u64,
    end: Position,
}

/// Tells the index how far the log has come.
#[derive(Debug)]
pub struct Indexer(flume::Sender<Mark>);

impl Indexer {
    /// Starts keeping the index in `folder`, and answering on `socket` where there is one.
    ///
    /// # Errors
    /// The kernel's: no threads left.
    pub fn start(folder: &Path, socket: Option<OwnedFd>) -> io::Result<Self> {
        let (sender, marks) = flume::bounded(1);
        let path = folder.to_owned();
        thread::Builder::new().name("ledger-index".into()).spawn(move || follow(&path, &marks))?;
        if let Some(socket) = socket {
            let path = folder.to_owned();
            thread::Builder::new().name("ledger-answers".into()).spawn(move || answer_all(&path, &socket))?;
        }
        Ok(Self(sender))
    }

    /// Says how far the log has come; never waits. What is not taken while the index is busy is covered by a later
    /// call, so call it after appends and now and then.
    pub fn note<D: Disk>(&self, log: &Log<D>) {
        // Full: a mark waits already. Disconnected: the thread told why it ended.
        let _ = self.0.try_send(Mark { oldest: log.oldest(), end: log.end() });
    }
}

fn follow(folder: &Path, marks: &flume::Receiver<Mark>) {
    let mut index = None;
    for mark in marks {
        if let Err(error) = advance(&mut index, folder, mark) {
            tracing::error!(%error, "the ledger's index is behind");
            index = None;
            thread::sleep(10 * REST);
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

fn answer_all(folder: &Path, socket: &OwnedFd) {
    let mut answers = Answers { folder: folder.to_owned(), reader: None };
    let mut buffer = vec![0; ASK_BYTES_MAX];
    let mut said = say(socket, &Said::Ready);
    while said.is_ok() {
        match receive_packet(socket, &mut buffer) {
            Ok(Some(packet)) => match decode_packet(&buffer[..packet.length]) {
                Ok(Ask { id, query }) => said = say(socket, &Said::Answer { id, answer: answers.ask(&query) }),
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
