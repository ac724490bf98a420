//! How a sleeping ledger is woken: a byte in a pipe, which also tells it when everybody who could ring is gone.

use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{pipe2, read, write},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The end that rings.
#[derive(Debug)]
pub struct Bell(OwnedFd);

/// The end that hears. Readable when it was rung, or when nobody is left who could.
#[derive(Debug)]
pub struct Hearing(OwnedFd);

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was rung, or nothing was.
    Rung,
    /// All who could ring are gone.
    Gone,
}

/// Makes a bell: the end that rings and the end that hears. Neither ever blocks.
///
/// # Errors
/// The kernel's.
pub fn bell() -> io::Result<(OwnedFd, OwnedFd)> {
    let (hears, rings) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((rings, hears))
}

impl From<OwnedFd> for Bell {
    fn from(rings: OwnedFd) -> Self {
        Self(rings)
    }
}

impl From<OwnedFd> for Hearing {
    fn from(hears: OwnedFd) -> Self {
        Self(hears)
    }
}

impl Bell {
    pub(crate) fn ring(&self) {
        // A full pipe rings already; one that nobody hears is of a box that is going down.
        let _heard_or_pointless = write(&self.0, &[0]);
    }
}

impl Hearing {
    /// Takes what was rung so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear(&self) -> io::Result<Heard> {
        let mut rung = [0; 4096];
        match read(&self.0, &mut rung) {
            Ok(0) => Ok(Heard::Gone),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(Heard::Rung),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Hearing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
