//! Sockets between processes of ours: packets that carry at most one descriptor, and streams.
//!
//! A packet is taken whole or refused: one that was cut, or whose descriptors were cut, or that brought more than one,
//! is an error, and whatever descriptors did arrive are closed.
#![allow(unsafe_code)]

use crate::spec::SOCKET;
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockFlag, SockType, UnixAddr,
        getsockname, recv, recvmsg, send, sendmsg, socketpair,
    },
};
use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// `SCM_MAX_FD` of the kernel: most descriptors that a message can carry.
const SCM_MAX_FD: usize = 253;

/// Why no packet could be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The kernel said no.
    #[error("{0}")]
    Kernel(#[from] Errno),
    /// It did not fit the buffer.
    #[error("a packet above {limit} bytes")]
    TooLong {
        /// Bytes that fit.
        limit: usize,
    },
    /// It brought more than one descriptor.
    #[error("a packet with more than one descriptor")]
    TooManyDescriptors,
}

/// A packet: its length in the buffer, and what came along.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the buffer that it fills.
    pub length: usize,
    /// A descriptor that it brought.
    pub descriptor: Option<OwnedFd>,
}

/// Two ends of a socket of whole packets.
///
/// # Errors
/// The kernel's: no descriptors or memory left.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Two ends of a stream of bytes.
///
/// # Errors
/// The kernel's: no descriptors or memory left.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one packet, waiting for room.
///
/// # Errors
/// The kernel's: `EPIPE` when the peer is gone.
pub fn send_packet(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let fds: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let fd = socket.as_fd().as_raw_fd();
    retry(|| sendmsg::<()>(fd, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)).map(drop)
}

/// Takes one packet, waiting for it; `None` when the peer is gone.
///
/// # Errors
/// [`PacketError`]; the packet is lost, the socket can be used on.
pub fn receive_packet(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<Packet>, PacketError> {
    let limit = buffer.len();
    let fd = socket.as_fd().as_raw_fd();
    // Room for as many as a packet can bring: those that do not fit would be lost open.
    let mut control = cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            // The peer went and left something of ours unread.
            Err(Errno::ECONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    // First of all, so that they are closed on every path out.
    let mut descriptors = take_descriptors(&message)?;
    if descriptors.len() > 1 {
        return Err(PacketError::TooManyDescriptors);
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(PacketError::TooLong { limit });
    }
    Ok((message.bytes > 0).then(|| Packet { length: message.bytes, descriptor: descriptors.pop() }))
}

fn take_descriptors<S>(message: &RecvMsg<'_, '_, S>) -> Result<Vec<OwnedFd>, Errno> {
    let mut taken = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: a raw number is all that recvmsg gives. The kernel has just made these descriptors for us, and
            // each is taken once.
            taken.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(taken)
}

/// Writes all bytes to a stream without waiting.
///
/// # Errors
/// `EAGAIN` when they do not fit the socket's buffer (a part may be sent), `EPIPE` when the peer is gone.
pub fn send_now(socket: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    let fd = socket.as_fd().as_raw_fd();
    while !bytes.is_empty() {
        let sent = retry(|| send(fd, bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Reads what a stream holds now; 0 when the peer is gone. Descriptors that the peer attached are not received.
///
/// # Errors
/// `EAGAIN` when it holds nothing.
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let fd = socket.as_fd().as_raw_fd();
    retry(|| recv(fd, buffer, MsgFlags::MSG_DONTWAIT))
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The socket that a sandboxed process is started with, once: it takes the descriptor's ownership on trust. Makes one
/// call, which the filter of a sandbox allows.
///
/// # Errors
/// `ENOTSOCK` or `EBADF` when there is none, `EBUSY` when it was taken before.
pub fn inherited() -> Result<OwnedFd, Errno> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    getsockname::<UnixAddr>(SOCKET)?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: a number is all that an exec leaves. It is that of an open socket, which is given away here only once.
    Ok(unsafe { OwnedFd::from_raw_fd(SOCKET) })
}

/// Room that a socket needs to hold one packet of `bytes`, its bookkeeping included.
///
/// # Errors
/// The kernel's.
pub fn reserve_send_buffer(socket: impl AsFd, bytes: usize) -> Result<(), Errno> {
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &(2 * bytes))
}

/// Ends a socket both ways: whoever waits in it is woken, here and at the peer.
///
/// # Errors
/// The kernel's.
pub fn shut(socket: impl AsFd) -> Result<(), Errno> {
    nix::sys::socket::shutdown(socket.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both)
}

/// Whether a descriptor is a regular file, a pipe or a socket: something that can be read to an end, unlike a device.
///
/// # Errors
/// The kernel's.
pub fn has_an_end(descriptor: impl AsFd) -> Result<bool, Errno> {
    let mode = nix::sys::stat::fstat(descriptor)?.st_mode & libc::S_IFMT;
    Ok([libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK].contains(&mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read, path::Path};

    fn send_raw(socket: &OwnedFd, bytes: &[u8], fds: &[RawFd]) {
        let control = [ControlMessage::ScmRights(fds)];
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None).unwrap();
    }

    fn descriptors_of(path: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == path)).count()
    }

    #[test]
    fn a_packet_carries_one_descriptor_and_no_more() {
        let (here, there) = packet_pair().unwrap();
        let mut buffer = [0; 8];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "text").unwrap();

        send_packet(&here, b"with", Some(file.as_fd())).unwrap();
        let packet = receive_packet(&there, &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..packet.length], b"with");
        let mut text = String::new();
        File::from(packet.descriptor.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");

        send_packet(&here, b"bare", None).unwrap();
        assert!(receive_packet(&there, &mut buffer).unwrap().unwrap().descriptor.is_none());

        let fd = file.as_file().as_raw_fd();
        for count in [2, 3, SCM_MAX_FD] {
            send_raw(&here, b"many", &vec![fd; count]);
            assert_eq!(receive_packet(&there, &mut buffer).unwrap_err(), PacketError::TooManyDescriptors);
        }
        send_packet(&here, b"more than eight", Some(file.as_fd())).unwrap();
        assert_eq!(receive_packet(&there, &mut buffer).unwrap_err(), PacketError::TooLong { limit: 8 });
        assert_eq!(descriptors_of(file.path()), 1, "all that arrived are closed");

        send_packet(&there, b"unread", None).unwrap();
        drop(here);
        assert!(receive_packet(&there, &mut buffer).unwrap().is_none());
        assert!(receive_packet(&there, &mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_stream_neither_waits_nor_signals() {
        let (here, there) = stream_pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive_now(&there, &mut buffer), Err(Errno::EAGAIN));
        assert_eq!(send_now(&here, &vec![0; 64 << 20]), Err(Errno::EAGAIN));
        assert_eq!(receive_now(&there, &mut buffer), Ok(8));
        drop(there);
        assert!(matches!(send_now(&here, b"x"), Err(Errno::EPIPE | Errno::ECONNRESET)));
    }
}
