//! The queue between server and ledger: a SOCK_SEQPACKET pair, one record a packet.
//!
//! It lives in the kernel, and the supervisor keeps both ends open, so it outlives either process. It holds at least
//! about a thousand records; past that [`Sender::send`] says [`SendError::Full`] and does not wait, since a core of the
//! server serves many clients. The server counts what it could not hand over.

use appliance_types::Record;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair,
        sockopt::{SndBuf, SndBufForce},
    },
};
use sandbox_wire::frame::{FrameError, decode_packet, encode_packet};
use std::os::fd::{AsRawFd, OwnedFd};

/// Longest packet; a record needs about a third of it.
pub(crate) const PACKET_BYTES_MAX: usize = 1024;
/// Room of the queue, bytes, the kernel's bookkeeping of about 1 KiB a packet included.
const QUEUE_BYTES: usize = 2 << 20;

/// Why a record was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The ledger lags behind, or is not running. Count it; the record is lost.
    #[error("the ledger's queue is full")]
    Full,
    /// The other end is closed: the supervisor is gone too.
    #[error("the ledger's queue is closed: {0}")]
    Closed(Errno),
    /// It is no packet.
    #[error("record does not fit a packet: {0}")]
    Unfit(#[from] FrameError),
}

/// The server's end. Shared by all cores: the kernel keeps packets whole.
#[derive(Debug)]
pub struct Sender(OwnedFd);

impl Sender {
    /// A sender on the first socket of [`pair`].
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Queues a record, at once or not at all.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, record: &Record) -> Result<(), SendError> {
        let packet = encode_packet(record, PACKET_BYTES_MAX)?;
        match send(self.0.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => Err(SendError::Full),
            Err(errno) => Err(SendError::Closed(errno)),
        }
    }
}

/// Makes the queue: the server's end and the ledger's.
///
/// # Errors
/// The kernel's.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (server, ledger) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // Past the system's limit for root; others get what the limit allows.
    setsockopt(&server, SndBufForce, &QUEUE_BYTES).or_else(|_| setsockopt(&server, SndBuf, &QUEUE_BYTES))?;
    Ok((server, ledger))
}

/// What the queue gave.
#[derive(Debug)]
pub(crate) enum Taken {
    Record(Box<Record>),
    Malformed(FrameError),
    Empty,
    Closed,
}

/// Takes what is queued, without waiting.
pub(crate) fn take(socket: &OwnedFd) -> nix::Result<Taken> {
    let mut packet = [0; PACKET_BYTES_MAX];
    match recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
        Ok(0) | Err(Errno::ECONNRESET) => Ok(Taken::Closed),
        Ok(length) => Ok(match decode_packet(&packet[..length]) {
            Ok(record) => Taken::Record(Box::new(record)),
            Err(error) => Taken::Malformed(error),
        }),
        Err(Errno::EAGAIN) => Ok(Taken::Empty),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;

    #[test]
    fn a_full_queue_refuses_and_loses_nothing() {
        let (server, ledger) = pair().unwrap();
        let sender = Sender::new(server);
        let queued = (0..).find(|number| sender.send(&record(*number)) == Err(SendError::Full)).unwrap();
        assert!(queued > 100, "{queued}");
        for number in 0..queued {
            let Taken::Record(taken) = take(&ledger).unwrap() else { panic!("{number} is missing") };
            assert_eq!(*taken, record(number));
        }
        assert!(matches!(take(&ledger), Ok(Taken::Empty)));
        assert_eq!(sender.send(&record(0)), Ok(()));
    }

    #[test]
    fn a_closed_queue_says_so() {
        let (server, ledger) = pair().unwrap();
        drop(ledger);
        assert!(matches!(Sender::new(server).send(&record(1)), Err(SendError::Closed(_))));
        let (server, ledger) = pair().unwrap();
        drop(server);
        assert!(matches!(take(&ledger), Ok(Taken::Closed)));
    }

    #[test]
    fn garbage_is_told_from_a_record() {
        let (server, ledger) = pair().unwrap();
        send(server.as_raw_fd(), &[0xff; 9], MsgFlags::empty()).unwrap();
        assert!(matches!(take(&ledger), Ok(Taken::Malformed(_))));
    }
}
