//! S9: the meter's producer side, time a record, ours ÷ the crate `rtrb`.
//!
//! Both sides publish records of 128 bytes to a consumer on another core, in bursts that fit the ring and are timed; between
//! bursts the consumer catches up. It takes what there is and then is busy for [`BUSY`], as the ledger is with its sync;
//! what a record costs where it chases every single one, which is the price of moving cache lines, is noted beside. Both
//! carry the same entries, as a server makes them: a request opened and closed is six records, encoded, numbered and
//! summed. Ours go to sealed memory that another process could map, with the close's room set aside; the peer's through
//! rtrb, within one process. What rtrb takes to push 128 bytes that are ready, which is no meter, is noted beside.
//!
//! Noted as well: what the ledger's disk takes, and metering's share of the CPU time of a small HTTPS request.

use crate::{
    edge,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave, median},
    process::pin,
};
use appliance_ledger::Log;
use appliance_meter::{
    Consumer, Item, Producer, RECORD_BYTES, RECORDS, bell, create,
    entry::{ENTRY_RECORDS, sealed},
};
use appliance_types::{Entry, Outcome, Record, RequestId, Stage};
use nix::sys::resource::{UsageWho, getrusage};
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
/// Words of a record.
const WORDS: usize = RECORD_BYTES / 8;
/// Entries that the ledger appends with one sync, and how often.
const APPENDED: u64 = 256;
const APPENDS: u64 = 100;
/// What a record may cost, ns.
const RECORD_NS_MAX: f64 = 50.0;

pub(crate) struct ProducerSide;

impl Figure for ProducerSide {
    fn name(&self) -> &'static str {
        "S9"
    }

    fn title(&self) -> &'static str {
        "the meter's producer side, time a record of 128 bytes, ours ÷ rtrb with the same entries"
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
        let both = |busy, ready| {
            let (mut ours, mut peer) = (Ours::start(last, busy)?, Peer::start(last, busy, ready)?);
            let samples = interleave(rounds, || Ok(ours.record_ns(bursts)), || Ok(peer.record_ns(bursts)))?;
            Ok::<_, Error>((samples, ours.taken_ns()))
        };
        let measured = in_thread(first, || Ok((both(BUSY, false)?, both(Duration::ZERO, false)?, both(BUSY, true)?)));
        let (((ours, peer), taken_ns), (chased, _), (bare, _)) = measured?;
        let durable = Durable::measure(if context.smoke { 1 } else { APPENDS })?;
        let request_us = edge::request_cpu_us(context)?;
        let ns = median(&ours);
        let produced_us = ns * REQUEST_RECORDS as f64 / 1e3;
        let kept_us = (taken_ns * REQUEST_RECORDS as f64 + 2.0 * durable.entry_cpu_ns) / 1e3;
        let share = |us: f64| 100.0 * us / (request_us + produced_us + kept_us);
        let verdict = if ns <= RECORD_NS_MAX { "ok" } else { "MISS" };
        let entry_ns = ns * ENTRY_RECORDS as f64;
        let notes = vec![
            format!("{ns:.1} ns a record (bar {RECORD_NS_MAX:.0}) {verdict}, {entry_ns:.0} ns an entry"),
            format!("chased by the consumer: {:.1} ns, rtrb {:.1} ns", median(&chased.0), median(&chased.1)),
            format!(
                "rtrb pushing 128 bytes that are ready: {:.1} ns, to which ours is {:.2}",
                median(&bare.1),
                median(&bare.0) / median(&bare.1)
            ),
            format!("the consumer takes a record in {taken_ns:.1} ns, checked, three as an entry with its names"),
            format!(
                "the ledger appends {:.0} entries/s durably, {APPENDED} a sync, with {:.1} µs CPU each",
                durable.per_second,
                durable.entry_cpu_ns / 1e3
            ),
            format!(
                "metering is {:.1} % of the CPU time of a small HTTPS request ({request_us:.1} µs at the edge) in the server, {:.1} % with the ledger",
                share(produced_us),
                share(produced_us + kept_us)
            ),
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
        Ok(Self { producer, record: record()?, sent: 0, consuming })
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

/// What the ledger takes to have entries on the disk of the folder for temporary files.
struct Durable {
    per_second: f64,
    entry_cpu_ns: f64,
}

impl Durable {
    fn measure(appends: u64) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(Error::setup)?;
        let (mut log, _) = Log::open(folder.path(), 1).map_err(Error::setup)?;
        let (mut spent, mut cpu) = (Duration::ZERO, Duration::ZERO);
        for append in 0..appends {
            let entries = (append * APPENDED..(append + 1) * APPENDED).map(entry).collect::<Result<Vec<_>, _>>()?;
            let (began, before) = (Instant::now(), thread_cpu()?);
            log.append(&entries).map_err(Error::setup)?;
            spent += began.elapsed();
            cpu += thread_cpu()?.saturating_sub(before);
        }
        let count = (appends * APPENDED) as f64;
        Ok(Self { per_second: count / spent.as_secs_f64(), entry_cpu_ns: cpu.as_nanos() as f64 / count })
    }
}

fn entry(sequence: u64) -> Result<Entry, Error> {
    Ok(Entry { boot: 1, core: 0, sequence, stage: Stage::Closed, record: record()? })
}

fn record() -> Result<Record, Error> {
    let key = "customer-0042".parse().map_err(Error::setup)?;
    let function = "assistant".parse().map_err(Error::setup)?;
    Ok(Record { outcome: Outcome::Completed, ..Record::new(RequestId::from_random(7), key, function) })
}

/// CPU time of this thread.
fn thread_cpu() -> Result<Duration, Error> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).map_err(Error::setup)?;
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() as u64) * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// The peer's ring.
struct Peer {
    producer: rtrb::Producer<[u64; WORDS]>,
    record: Record,
    /// Push what is ready, rather than entries made of the record.
    ready: bool,
    sequence: u64,
    sent: u64,
    consuming: Consuming,
}

impl Peer {
    fn start(core: usize, busy: Duration, ready: bool) -> Result<Self, Error> {
        let (producer, mut consumer) = RingBuffer::<[u64; WORDS]>::new(RECORDS as usize);
        let take = move || std::iter::from_fn(|| consumer.pop().ok()).map(black_box).count() as u64;
        let consuming = Consuming::start(core, busy, take);
        Ok(Self { producer, record: record()?, ready, sequence: 0, sent: 0, consuming })
    }

    fn record_ns(&mut self, bursts: usize) -> f64 {
        let mut spent_ns = 0;
        for _ in 0..bursts {
            let began = Instant::now();
            if self.ready {
                self.push_ready()
            } else {
                self.push_entries()
            }
            spent_ns += began.elapsed().as_nanos();
            self.consuming.progress.await_taken(self.sent);
        }
        spent_ns as f64 / (bursts as u64 * REQUESTS * REQUEST_RECORDS) as f64
    }

    fn push_ready(&mut self) {
        let record = [7; WORDS];
        for _ in 0..REQUESTS * REQUEST_RECORDS {
            self.sent += u64::from(self.producer.push(*black_box(&record)).is_ok());
        }
    }

    fn push_entries(&mut self) {
        for _ in 0..REQUESTS {
            for stage in [Stage::Open, Stage::Closed] {
                for words in sealed(stage, self.sequence, black_box(&self.record), 1, self.sent) {
                    self.sent += u64::from(self.producer.push(words).is_ok());
                }
                self.sequence += 1;
            }
        }
    }
}
