//! The one descriptor a runner is born with.

#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{FromRawFd, IntoRawFd, RawFd},
        unix::net::UnixStream,
    },
};

/// The stream socket that the parent left open at `descriptor`.
///
/// Call it once, first thing in `main`: it takes the descriptor's ownership on trust.
///
/// # Errors
/// The descriptor is closed, or is not a Unix socket; it is then left alone.
pub fn inherited_socket(descriptor: RawFd) -> io::Result<UnixStream> {
    // SAFETY: needed because no safe call turns a number into a descriptor; it holds because descriptors above stderr that
    // are open at the start of `main` are the parent's gift, which no other value in this process owns, and one that is not
    // a socket is given up below without being closed.
    let socket = unsafe { UnixStream::from_raw_fd(descriptor) };
    match socket.local_addr() {
        Ok(_) => Ok(socket),
        Err(error) => {
            let _ = socket.into_raw_fd();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_sockets_are_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherited_socket(file.as_raw_fd()).is_err());
        assert!(file.metadata().is_ok(), "a descriptor that is no socket stays open");
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(inherited_socket(theirs.into_raw_fd()).is_ok());
        drop(ours);
    }
}
