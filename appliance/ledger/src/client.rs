//! The server's side of the questions: asked from any core, answered to whoever asked.
//!
//! ```text
//!  ask ─▶ pending, packet sent or Busy ─▶ the ledger ─▶ thread `ledger-in` ─▶ whoever asked
//!           │ dropped: forgotten            │ Ready: it was started again ─▶ all pending are Restarted
//! ```
//!
//! A question never waits for room: the socket takes it at once, or the caller is told [`QueryError::Busy`]. An answer may
//! take as long as SQLite does; put a time limit round the call. Numbers begin at random, so that an answer meant for
//! the server's last life finds nobody.

use crate::query::{ANSWER_BYTES_MAX, ASK_BYTES_MAX, Answer, Ask, Query, QueryError, Said};
use nix::sys::socket::{MsgFlags, send};
use sandbox_kernel::socket::receive_packet;
use sandbox_wire::frame::{decode_packet, encode_packet};
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// Most questions that wait for their answers.
const PENDING_MAX: usize = 64;

type Reply = flume::Sender<Result<Answer, QueryError>>;

/// A handle to the ledger's answers, for any core.
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    ids: AtomicU64,
    low: AtomicBool,
    /// None once the ledger and the supervisor are gone.
    pending: Mutex<Option<HashMap<u64, Reply>>>,
}

/// Takes a question back when nobody waits for its answer any more.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Client {
    /// Asks over `socket`, an end of `sandbox_kernel::socket::packet_pair` whose other end
    /// [`crate::Indexer::start`] was given.
    ///
    /// # Errors
    /// The kernel's: no threads left.
    pub fn connect(socket: OwnedFd) -> io::Result<Self> {
        let reader = socket.try_clone()?;
        let first = RandomState::new().build_hasher().finish();
        let shared = Shared {
            socket,
            ids: AtomicU64::new(first),
            low: AtomicBool::new(false),
            pending: Mutex::new(Some(HashMap::new())),
        };
        let shared = Arc::new(shared);
        let for_reader = Arc::downgrade(&shared);
        thread::Builder::new().name("ledger-in".into()).spawn(move || {
            let mut buffer = vec![0; ANSWER_BYTES_MAX];
            while let Ok(Some(packet)) = receive_packet(&reader, &mut buffer) {
                let Some(shared) = for_reader.upgrade() else { return };
                match decode_packet(&buffer[..packet.length]) {
                    Ok(said) => shared.take(said),
                    Err(error) => tracing::error!(%error, "the ledger said what is no answer"),
                }
            }
            if let Some(shared) = for_reader.upgrade() {
                shared.fail(QueryError::Gone, None);
            }
        })?;
        Ok(Self(shared))
    }

    /// Whether the ledger's disk is so full that nothing more may be admitted.
    pub fn is_low(&self) -> bool {
        self.0.low.load(Ordering::Relaxed)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn ask(&self, query: Query) -> Result<Answer, QueryError> {
        let (sender, receiver) = flume::bounded(1);
        let _waiting = self.0.send(query, sender)?;
        receiver.recv_async().await.unwrap_or(Err(QueryError::Gone))
    }
}

impl Shared {
    fn send(&self, query: Query, reply: Reply) -> Result<Waiting<'_>, QueryError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let packet = encode_packet(&Ask { id, query }, ASK_BYTES_MAX);
        let packet = packet.map_err(|error| QueryError::Index { reason: error.to_string() })?;
        let mut pending = self.lock();
        let waiting = pending.as_mut().ok_or(QueryError::Gone)?;
        if waiting.len() >= PENDING_MAX {
            return Err(QueryError::Busy);
        }
        // Under the lock, so that the answer finds its question.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &packet, flags).map_err(|_| QueryError::Busy)?;
        waiting.insert(id, reply);
        Ok(Waiting { shared: self, id })
    }

    fn take(&self, said: Said) {
        match said {
            Said::Space { low } => self.low.store(low, Ordering::Relaxed),
            Said::Ready => self.fail(QueryError::Restarted, Some(HashMap::new())),
            Said::Answer { id, answer } => {
                if let Some(reply) = self.lock().as_mut().and_then(|pending| pending.remove(&id)) {
                    drop(reply.try_send(answer));
                }
            }
        }
    }

    /// Answers all that wait with an error.
    fn fail(&self, error: QueryError, next: Option<HashMap<u64, Reply>>) {
        let pending = std::mem::replace(&mut *self.lock(), next);
        for reply in pending.into_iter().flatten().map(|(_, reply)| reply) {
            drop(reply.try_send(Err(error.clone())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Reply>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.shared.lock().as_mut() {
            pending.remove(&self.id);
        }
    }
}
