//! The server's end: an entry when a request opens, while it goes on, and when it has ended.
//!
//! ```text
//!  free ≥ 3 + 3 + 1: open ─▶ Ticket ──┬── progress*, while there is room beyond all that is promised ──┐
//!    │ not                            ▼                                                                │
//!    └▶ Full                     close: takes the room that open promised, and cannot fail  ◀──────────┘
//! ```

use crate::{
    bell::Bell,
    cursor::Front,
    entry,
    mapping::{Mapping, RingError},
    record::{Head, PAYLOAD_BYTES, RECORD_WORDS, seal},
};
use appliance_types::{Record, Stage};
use std::{cell::Cell, marker::PhantomData, os::fd::OwnedFd};

/// The record that says that a boot begins; the next boot finds room for it.
const BEGIN_RECORDS: u64 = 1;

/// There is no room for another request: the ledger has to take some entries first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the meter's ring is full: the ledger lags behind")]
pub struct Full;

/// The room of an open request's close, in records. There is one for each, and only a close takes it back.
#[must_use = "a request that is opened must be closed"]
#[derive(Debug)]
pub struct Ticket(u64);

/// One core's end of its ring.
#[derive(Debug)]
pub struct Producer {
    front: Front<Mapping, RECORD_WORDS>,
    bell: Bell,
    boot: u64,
    /// The next entry's number in this boot.
    sequence: u64,
    /// Records promised to open requests.
    promised: u64,
    /// Whether the ring knows of this boot.
    begun: bool,
    /// Not `Sync`: one thread at a time.
    alone: PhantomData<Cell<()>>,
}

impl Producer {
    /// Takes over a ring for a new boot, after all that is in it. No other producer may have it.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn attach(ring: &OwnedFd, bell: OwnedFd, boot: u64) -> Result<Self, RingError> {
        let front = Front::attach(Mapping::new(ring)?).ok_or(RingError::Inconsistent)?;
        let bell = Bell::from(bell);
        let mut producer = Self { front, bell, boot, sequence: 0, promised: 0, begun: false, alone: PhantomData };
        let _later_if_there_is_no_room = producer.begin(0);
        // Whatever was published before the last boot died, and not rung for.
        producer.bell.ring();
        Ok(producer)
    }

    /// Says that a request has come and begins to use what is billed. Room for its close is set aside.
    ///
    /// # Errors
    /// [`Full`]; the request must not begin.
    pub fn open(&mut self, record: &Record) -> Result<Ticket, Full> {
        let records = entry::records(record);
        self.make_room(2 * records)?;
        self.promised += records;
        self.push(Stage::Open, records, record);
        Ok(Ticket(records))
    }

    /// Says what a request has used until now, if there is room; whether there was. The next one says it all again. Its
    /// names are those it was opened with.
    pub fn progress(&mut self, ticket: &Ticket, record: &Record) -> bool {
        let has_room = self.make_room(ticket.0).is_ok();
        if has_room {
            self.push(Stage::Progress, ticket.0, record);
        }
        has_room
    }

    /// Says that a request has ended, and with what.
    pub fn close(&mut self, ticket: Ticket, record: &Record) {
        self.promised -= ticket.0;
        self.push(Stage::Closed, ticket.0, record);
    }

    /// Whether the ledger has made all durable that was ever said here, by earlier boots too.
    pub fn is_drained(&mut self) -> bool {
        self.begun && self.front.is_empty()
    }

    /// Sees to it that `records` have room beside what is promised and the next boot's beginning, and that this boot has
    /// begun.
    fn make_room(&mut self, records: u64) -> Result<(), Full> {
        self.begin(records + BEGIN_RECORDS)?;
        let wanted = records + self.promised + BEGIN_RECORDS;
        if self.front.has_room(wanted) { Ok(()) } else { Err(Full) }
    }

    fn begin(&mut self, beside: u64) -> Result<(), Full> {
        if self.begun {
            return Ok(());
        }
        if !self.front.has_room(BEGIN_RECORDS + beside) {
            return Err(Full);
        }
        let head = Head { part: 0, parts: 1, boot: self.boot };
        self.front.write(0, &seal(head, self.front.tail(), &[0; PAYLOAD_BYTES]));
        self.front.publish(1, || self.bell.ring());
        self.begun = true;
        Ok(())
    }

    /// There is room: it was made, or promised.
    fn push(&mut self, stage: Stage, records: u64, record: &Record) {
        debug_assert_eq!(records, entry::records(record), "its names are those that it was opened with");
        let sealed = entry::sealed(stage, self.sequence, record, self.boot, self.front.tail());
        self.sequence += 1;
        sealed.zip(0..).for_each(|(words, ahead)| self.front.write(ahead, &words));
        self.front.publish(records, || self.bell.ring());
    }
}
