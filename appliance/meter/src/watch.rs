//! A look at a ring from outside: how full it is. Reads two words and touches nothing else, from any thread.

use crate::{
    cursor::Memory,
    entry::ENTRY_RECORDS,
    mapping::{Mapping, RingError},
    record::RECORD_WORDS,
};
use std::{
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError, atomic::Ordering::Acquire},
};

/// How full a ring is, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Said, and not durable yet.
    pub used: u64,
    /// What fits.
    pub capacity: u64,
}

/// A ring that is watched.
#[derive(Debug)]
pub struct Watch(Mutex<Mapping>);

impl Watch {
    /// Maps a ring, to look at it.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn attach(ring: &OwnedFd) -> Result<Self, RingError> {
        Ok(Self(Mutex::new(Mapping::new(ring)?)))
    }

    /// How full it is. Head first: what is released meanwhile makes it look fuller, never emptier than empty.
    pub fn fill(&self) -> Fill {
        let mapping = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let head = mapping.head().load(Acquire);
        let tail = mapping.tail().load(Acquire);
        let capacity = (mapping.data().len() / RECORD_WORDS) as u64 / ENTRY_RECORDS;
        Fill { used: (tail.wrapping_sub(head) / ENTRY_RECORDS).min(capacity), capacity }
    }
}
