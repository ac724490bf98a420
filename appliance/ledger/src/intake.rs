//! From the rings to the log: takes a batch off all rings, has it made durable, and only then gives its room back.
//!
//! ```text
//!  ring 0 ──┐              ┌─ Began: the batch so far, then the boot
//!  ring 1 ──┼─▶ batch ─────┴─▶ Sink (one sync) ─▶ release all rings
//!  ring n ──┘  at most BATCH_ENTRIES of each, so that no ring waits for another
//! ```
//! What is damaged is logged with its position, some of it at most, and skipped.

use appliance_meter::{Consumer, Item, RingError};
use appliance_types::Entry;
use std::os::fd::OwnedFd;

/// Most entries of one ring in a batch.
const BATCH_ENTRIES: usize = 512;
/// Most damaged records of a batch that are told one by one.
const CORRUPT_TOLD_MAX: usize = 16;

/// What keeps entries.
pub(crate) trait Sink {
    /// Why it cannot go on.
    type Error;

    /// Makes entries durable, in order; those that are already are skipped.
    fn append(&mut self, entries: &[Entry]) -> Result<(), Self::Error>;

    /// A boot begins on a core: what an earlier one left open there will never be closed.
    fn began(&mut self, core: u16, boot: u64) -> Result<(), Self::Error>;
}

/// The ledger's ends of all rings.
#[derive(Debug)]
pub(crate) struct Intake {
    rings: Vec<Consumer>,
    corrupt: u64,
}

impl Intake {
    /// Takes over the rings of the cores, in their order.
    pub(crate) fn attach(rings: &[OwnedFd]) -> Result<Self, RingError> {
        let cores = rings.iter().zip(0..);
        let rings = cores.map(|(ring, core)| Consumer::attach(ring, core)).collect::<Result<_, _>>()?;
        Ok(Self { rings, corrupt: 0 })
    }

    /// Takes a batch; whether there was any.
    pub(crate) fn pass<S: Sink>(&mut self, sink: &mut S) -> Result<bool, S::Error> {
        let (mut batch, mut any, mut told) = (Vec::new(), false, 0);
        for ring in &mut self.rings {
            let core = ring.core();
            for item in std::iter::from_fn(|| ring.take()).take(BATCH_ENTRIES) {
                any = true;
                match item {
                    Ok(Item::Entry(entry)) => batch.push(*entry),
                    Ok(Item::Began { boot }) => {
                        sink.append(&batch)?;
                        batch.clear();
                        sink.began(core, boot)?;
                    }
                    Err(corrupt) => {
                        self.corrupt += 1;
                        told += 1;
                        if told <= CORRUPT_TOLD_MAX {
                            tracing::error!(%corrupt, total = self.corrupt, "the server's ring is damaged");
                        }
                    }
                }
            }
        }
        if any {
            sink.append(&batch)?;
            self.rings.iter_mut().for_each(Consumer::release);
        }
        Ok(any)
    }

    /// Says to all rings that the ledger is about to sleep; whether it may.
    pub(crate) fn may_sleep(&mut self) -> bool {
        let mut empty = true;
        for ring in &mut self.rings {
            empty &= ring.may_sleep();
        }
        empty
    }

    /// Says to all rings that the ledger is awake.
    pub(crate) fn awake(&mut self) {
        self.rings.iter_mut().for_each(Consumer::awake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;
    use appliance_meter::{Producer, bell, create};
    use appliance_types::Stage;

    #[derive(Default)]
    struct Told {
        told: Vec<String>,
        fails: bool,
    }

    impl Sink for Told {
        type Error = ();

        fn append(&mut self, entries: &[Entry]) -> Result<(), ()> {
            if self.fails {
                return Err(());
            }
            let word = |entry: &Entry| match entry.stage {
                Stage::Open => format!("open {}", entry.record.ended_unix_ms),
                Stage::Progress => format!("progress {}", entry.record.ended_unix_ms),
                Stage::Closed => format!("closed {}", entry.record.ended_unix_ms),
            };
            self.told.extend(entries.iter().map(word));
            Ok(())
        }

        fn began(&mut self, core: u16, boot: u64) -> Result<(), ()> {
            self.told.push(format!("boot {boot} on {core}"));
            Ok(())
        }
    }

    #[test]
    fn what_a_boot_left_comes_before_the_next_and_room_only_after_the_sync() {
        let (ring, (rings, _hears)) = (create(16).unwrap(), bell().unwrap());
        let producer = |boot| Producer::attach(&ring, rings.try_clone().unwrap(), boot).unwrap();
        let mut first = producer(1);
        let _ticket = first.open(&record(5)).unwrap();
        let ticket = first.open(&record(6)).unwrap();
        assert!(first.open(&record(7)).is_err());
        first.close(ticket, &record(6));
        let mut second = producer(2);
        let mut intake = Intake::attach(std::slice::from_ref(&ring)).unwrap();
        assert_eq!(intake.pass(&mut Told { fails: true, ..Told::default() }), Err(()));
        assert!(second.open(&record(8)).is_err(), "nothing was released");

        let (mut intake, mut told) = (Intake::attach(std::slice::from_ref(&ring)).unwrap(), Told::default());
        assert_eq!(intake.pass(&mut told), Ok(true));
        assert_eq!(told.told, ["boot 1 on 0", "open 5", "open 6", "closed 6", "boot 2 on 0"]);
        assert!(second.open(&record(8)).is_ok());
        assert_eq!((intake.may_sleep(), intake.pass(&mut told), intake.pass(&mut told)), (false, Ok(true), Ok(false)));
        assert!(intake.may_sleep());
    }
}
