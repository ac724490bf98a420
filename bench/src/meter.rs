//! S9: the meter's producer side, time a record, ours ÷ the crate `rtrb`.
//!
//! Both sides publish records of 128 bytes to a consumer on another core, in bursts that fit the ring and are timed; between
//! bursts the consumer catches up. It takes what there is and then is busy for [`BUSY`], as the ledger is with its sync;
//! what a record costs where it chases every single one, which is the price of moving cache lines, is noted beside. Ours are entries as a server makes them: a request opened and
//! closed is six records, encoded, numbered, summed and written to sealed memory that another process could map, with the
//! close's room set aside. The peer pushes 128 bytes that are ready, within one process, unsummed.

use crate::{
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave, median},
    process::pin,
};
use appliance_meter::{Consumer, Item, Producer, RECORD_BYTES, RECORDS, bell, create, entry::ENTRY_RECORDS};
use appliance_types::{Outcome, Record, RequestId};
use rtrb::RingBuffer;
use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const ROUNDS: usize = 21;
const BURSTS: usize = 40;
/// What a consumer does between two looks.
const BUSY: Duration = Duration::from_micros(100);
const REQUEST_RECORDS: u64 = 2 * ENTRY_RECORDS;
/// Requests of a burst: with them the ring is not full.
const REQUESTS: u64 = RECORDS / REQUEST_RECORDS - 2;
/// What a record may cost, ns.
const RECORD_NS_MAX: f64 = 50.0;

pub(crate) struct ProducerSide;

impl Figure for ProducerSide {
    fn name(&self) -> &'static str {
        "S9"
    }

    fn title(&self) -> &'static str {
        "the meter's producer side, time a record of 128 bytes, ours ÷ rtrb"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(1.5)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let rounds = context.rounds(ROUNDS);
        let bursts = if context.smoke { 1 } else { BURSTS };
        let cores = appliance_runtime::available_cores().map_err(Error::setup)?;
        let (Some(first), Some(last)) = (cores.first().copied(), cores.last().copied()) else {
            return Err(Error::setup("this process may run on no core"));
        };
        let both = |busy| {
            let (mut ours, mut peer) = (Ours::start(last, busy)?, Peer::start(last, busy)?);
            let samples = interleave(rounds, || Ok(ours.record_ns(bursts)), || Ok(peer.record_ns(bursts)))?;
            Ok::<_, Error>((samples, ours.taken_ns()))
        };
        let measured = in_thread(first, || Ok((both(BUSY)?, both(Duration::ZERO)?)));
        let (((ours, peer), taken_ns), (chased, _)) = measured?;
        let ns = median(&ours);
        let verdict = if ns <= RECORD_NS_MAX { "ok" } else { "MISS" };
        let entry_ns = ns * ENTRY_RECORDS as f64;
        let notes = vec![
            format!("{ns:.1} ns a record (bar {RECORD_NS_MAX:.0}) {verdict}, {entry_ns:.0} ns an entry"),
            format!("chased by the consumer: {:.1} ns, rtrb {:.1} ns", median(&chased.0), median(&chased.1)),
            format!("the consumer takes a record in {taken_ns:.1} ns, checked, three as an entry with its names"),
        ];
        notes.iter().for_each(|note| eprintln!("S9: {note}"));
        let ours = Side { label: "appliance-meter: entries encoded, summed, published".into(), samples: ours };
        let peer = Side { label: "rtrb: 128 bytes pushed".into(), samples: peer };
        Ok(Measured { notes, ..Measured::new("ns a record", ours, peer) })
    }
}

/// Runs `measure` in a thread of its own on `core`, so that pinning it pins nothing else.
fn in_thread<T: Send>(core: usize, measure: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| pin(core).and_then(|()| measure()));
        thread.join().unwrap_or_else(|_| Err(Error::setup("the bench's thread panicked")))
    })
}

/// What producer and consumer tell each other beside the ring.
#[derive(Default)]
struct Progress {
    /// Records that were taken.
    taken: AtomicU64,
    ends: AtomicBool,
}

impl Progress {
    fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    /// Waits until the consumer has taken so many.
    fn await_taken(&self, records: u64) {
        while self.taken.load(Acquire) < records {
            thread::yield_now();
        }
    }
}

/// A consumer's thread, which ends with this.
struct Consuming {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Consuming {
    fn start(core: usize, busy: Duration, mut take: impl FnMut() -> u64 + Send + 'static) -> Self {
        let progress = Arc::<Progress>::default();
        let theirs = Arc::clone(&progress);
        let thread = thread::spawn(move || {
            // Where it runs does not change what it does.
            let _pinned = pin(core);
            while !theirs.ends() {
                theirs.taken.fetch_add(take(), Release);
                if busy.is_zero() { thread::yield_now() } else { thread::sleep(busy) }
            }
        });
        Self { progress, thread: Some(thread) }
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.progress.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panic_was_printed = thread.join();
        }
    }
}

/// The meter's ring.
struct Ours {
    producer: Producer,
    record: Record,
    sent: u64,
    consuming: Consuming,
}

impl Ours {
    fn start(core: usize, busy: Duration) -> Result<Self, Error> {
        let (ring, (rings, _hears)) = (create(RECORDS).map_err(Error::setup)?, bell().map_err(Error::setup)?);
        let mut consumer = Consumer::attach(&ring, 0).map_err(Error::setup)?;
        let consuming = Consuming::start(core, busy, move || take(&mut consumer));
        let producer = Producer::attach(&ring, rings, 1).map_err(Error::setup)?;
        let name = || "assistant".parse().map_err(Error::setup);
        let key = "customer-0042".parse().map_err(Error::setup)?;
        let record = Record { outcome: Outcome::Completed, ..Record::new(RequestId::from_random(7), key, name()?) };
        Ok(Self { producer, record, sent: 0, consuming })
    }

    fn record_ns(&mut self, bursts: usize) -> f64 {
        let mut spent_ns = 0;
        for _ in 0..bursts {
            let began = Instant::now();
            self.burst();
            spent_ns += began.elapsed().as_nanos();
            self.consuming.progress.await_taken(self.sent);
        }
        spent_ns as f64 / (bursts as u64 * REQUESTS * REQUEST_RECORDS) as f64
    }

    fn burst(&mut self) {
        for _ in 0..REQUESTS {
            let record = black_box(&self.record);
            if let Ok(ticket) = self.producer.open(record) {
                self.producer.close(ticket, record);
                self.sent += REQUEST_RECORDS;
            }
        }
    }

    /// Time that the consumer needs for a record, when all are there.
    fn taken_ns(&self) -> f64 {
        let (Ok(ring), Ok((rings, _hears))) = (create(RECORDS), bell()) else { return f64::NAN };
        let (Ok(mut consumer), Ok(mut producer)) = (Consumer::attach(&ring, 0), Producer::attach(&ring, rings, 1))
        else {
            return f64::NAN;
        };
        let samples: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                for _ in 0..REQUESTS {
                    if let Ok(ticket) = producer.open(&self.record) {
                        producer.close(ticket, &self.record);
                    }
                }
                let began = Instant::now();
                let taken = take(&mut consumer);
                began.elapsed().as_nanos() as f64 / taken as f64
            })
            .collect();
        median(&samples)
    }
}

/// Takes and releases all there is; how many records of entries that were.
fn take(consumer: &mut Consumer) -> u64 {
    let entries = std::iter::from_fn(|| consumer.take()).filter(|item| matches!(black_box(item), Ok(Item::Entry(_))));
    let records = entries.count() as u64 * ENTRY_RECORDS;
    consumer.release();
    records
}

/// The peer's ring.
struct Peer {
    producer: rtrb::Producer<[u8; RECORD_BYTES]>,
    sent: u64,
    consuming: Consuming,
}

impl Peer {
    fn start(core: usize, busy: Duration) -> Result<Self, Error> {
        let (producer, mut consumer) = RingBuffer::<[u8; RECORD_BYTES]>::new(RECORDS as usize);
        let take = move || std::iter::from_fn(|| consumer.pop().ok()).map(black_box).count() as u64;
        Ok(Self { producer, sent: 0, consuming: Consuming::start(core, busy, take) })
    }

    fn record_ns(&mut self, bursts: usize) -> f64 {
        let mut spent_ns = 0;
        let record = [7; RECORD_BYTES];
        for _ in 0..bursts {
            let began = Instant::now();
            for _ in 0..REQUESTS * REQUEST_RECORDS {
                self.sent += u64::from(self.producer.push(*black_box(&record)).is_ok());
            }
            spent_ns += began.elapsed().as_nanos();
            self.consuming.progress.await_taken(self.sent);
        }
        spent_ns as f64 / (bursts as u64 * REQUESTS * REQUEST_RECORDS) as f64
    }
}
