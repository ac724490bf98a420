//! What lies between server and ledger, as the supervisor keeps it: the meter's rings, and the socket of questions. Made
//! once, given to every server and every ledger, so that what a server has said of its requests outlives it.
//!
//! The bell is given up when the service has ended for good: then the ledger hears that nobody is left, and settles what
//! was never closed.

use crate::control::What;
use appliance_meter::{RECORDS, RingError, bell, create};
use sandbox_kernel::socket::packet_pair;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// One ring a core, the bell, and both ends of the socket.
#[derive(Debug)]
pub(crate) struct Meters {
    rings: Vec<OwnedFd>,
    ringing: Option<OwnedFd>,
    hearing: OwnedFd,
    asking: OwnedFd,
    answering: OwnedFd,
}

impl Meters {
    /// Empty rings for `cores` cores.
    pub(crate) fn new(cores: usize) -> io::Result<Self> {
        let rings = (0..cores).map(|_| create(RECORDS)).collect::<Result<_, RingError>>().map_err(io::Error::other)?;
        let (ringing, hearing) = bell()?;
        let (asking, answering) = packet_pair()?;
        Ok(Self { rings, ringing: Some(ringing), hearing, asking, answering })
    }

    /// What the server gets, in the order of its cores.
    pub(crate) fn for_server(&self) -> impl Iterator<Item = (What, BorrowedFd<'_>)> {
        let bell = self.ringing.iter().map(|bell| (What::Bell, bell.as_fd()));
        self.rings().chain(bell).chain([(What::Questions, self.asking.as_fd())])
    }

    /// What the ledger gets.
    pub(crate) fn for_ledger(&self) -> impl Iterator<Item = (What, BorrowedFd<'_>)> {
        self.rings().chain([(What::Bell, self.hearing.as_fd()), (What::Questions, self.answering.as_fd())])
    }

    /// No server will be started again.
    pub(crate) fn fall_silent(&mut self) {
        self.ringing = None;
    }

    fn rings(&self) -> impl Iterator<Item = (What, BorrowedFd<'_>)> {
        self.rings.iter().map(|ring| (What::Ring, ring.as_fd()))
    }
}
