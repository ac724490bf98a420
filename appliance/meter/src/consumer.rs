//! The ledger's end: entries in order, each checked, and their room given back once they are durable.
//!
//! The server faces the network, so the ring is taken for hostile: its length comes from the sealed size, a record is
//! copied before it is looked at, and each call of [`Consumer::take`] moves on. What is damaged costs itself, not the
//! rest: after a bad record the next one that begins an entry is looked for.

use crate::{
    cursor::Back,
    entry::{self, ENTRY_BYTES, ENTRY_RECORDS, ENTRY_RECORDS_MAX},
    mapping::{Mapping, RingError},
    record::{Fault, Head, PAYLOAD_BYTES, RECORD_WORDS, open},
};
use appliance_types::Entry;
use std::{cell::Cell, marker::PhantomData, os::fd::OwnedFd};

/// What a ring holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A boot of the server begins on this core: no request of an earlier one will go on.
    Began {
        /// The boot.
        boot: u64,
    },
    /// What is said of a request.
    Entry(Box<Entry>),
}

/// A record that cannot be read. The next one can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring of core {core}, record {position}: {fault}")]
pub struct Corrupt {
    /// The ring's core.
    pub core: u16,
    /// The record's number in the ring.
    pub position: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// The ledger's end of a core's ring.
#[derive(Debug)]
pub struct Consumer {
    back: Back<Mapping, RECORD_WORDS>,
    core: u16,
    /// Not `Sync`: one thread at a time.
    alone: PhantomData<Cell<()>>,
}

impl Consumer {
    /// Takes over the ring of `core`, from the first record that was not released. No other consumer may have it.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn attach(ring: &OwnedFd, core: u16) -> Result<Self, RingError> {
        Ok(Self { back: Back::attach(Mapping::new(ring)?), core, alone: PhantomData })
    }

    /// The ring's core.
    pub fn core(&self) -> u16 {
        self.core
    }

    /// The next item; `None` when there is none.
    ///
    /// # Errors
    /// [`Corrupt`]; call again for what follows.
    pub fn take(&mut self) -> Option<Result<Item, Corrupt>> {
        let position = self.back.position();
        let taken = match self.back.available() {
            Ok(0) => return None,
            Ok(available) => self.item(position, available),
            Err(tail) => {
                self.back.skip_to(tail);
                Err((position, Fault::Tail { tail }))
            }
        };
        Some(taken.map_err(|(position, fault)| Corrupt { core: self.core, position, fault }))
    }

    /// Gives back the room of all that was taken: it is durable.
    pub fn release(&mut self) {
        self.back.release();
    }

    /// Says that the ledger is about to sleep; whether it may, because there is nothing to take. The bell wakes it.
    pub fn may_sleep(&mut self) -> bool {
        self.back.may_sleep()
    }

    /// Says that the ledger is awake, and need not be rung for.
    pub fn awake(&mut self) {
        self.back.awake();
    }

    fn item(&mut self, position: u64, available: u64) -> Result<Item, (u64, Fault)> {
        let opened = open(&self.back.copy(0), position);
        let (head, first) = opened.map_err(|fault| {
            self.back.advance(1);
            (position, fault)
        })?;
        match head {
            Head { part: 0, parts: 1, boot } => {
                self.back.advance(1);
                Ok(Item::Began { boot })
            }
            Head { part: 0, parts, .. } if (ENTRY_RECORDS..=ENTRY_RECORDS_MAX).contains(&parts.into()) => {
                self.entry(position, available, head, &first)
            }
            Head { part, parts, .. } => {
                self.back.advance(1);
                Err((position, Fault::Part { part, parts }))
            }
        }
    }

    /// The entry whose first record is at `position`.
    fn entry(
        &mut self,
        position: u64,
        available: u64,
        head: Head,
        first: &[u8; PAYLOAD_BYTES],
    ) -> Result<Item, (u64, Fault)> {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..PAYLOAD_BYTES].copy_from_slice(first);
        let records = u64::from(head.parts);
        for part in 1..records {
            let at = position.wrapping_add(part);
            let expected = Head { part: part as u8, ..head };
            let opened = if part < available { Some(open(&self.back.copy(part), at)) } else { None };
            match opened {
                Some(Ok((found, payload))) if found == expected => {
                    bytes[part as usize * PAYLOAD_BYTES..][..PAYLOAD_BYTES].copy_from_slice(&payload);
                }
                // Another entry may begin here.
                Some(Ok(_)) | None => {
                    self.back.advance(part);
                    return Err((position, Fault::Cut));
                }
                Some(Err(fault)) => {
                    self.back.advance(part + 1);
                    return Err((at, fault));
                }
            }
        }
        self.back.advance(records);
        let entry = entry::decode(&bytes, head.boot, self.core).map_err(|fault| (position, fault))?;
        Ok(Item::Entry(Box::new(entry)))
    }
}
