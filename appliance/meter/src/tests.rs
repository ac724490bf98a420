//! The whole ring in real memory: crashes of either side, a full ring, two threads, and a hostile server.

use crate::{
    Bell, Consumer, Corrupt, Fault, Fill, Full, Hearing, Item, Producer, RECORDS_MIN, Ticket, Watch, bell, create,
    cursor::Memory,
    entry::{ENTRY_RECORDS, tests::record},
    mapping::Mapping,
    record::RECORD_WORDS,
};
use appliance_types::{Entry, Stage};
use proptest::{collection::vec, prelude::*};
use std::{collections::HashMap, os::fd::OwnedFd, sync::atomic::Ordering::Relaxed, thread};

/// A ring and its bell, as the supervisor holds them.
struct Kept {
    ring: OwnedFd,
    rings: OwnedFd,
    hears: Hearing,
}

impl Kept {
    fn new(records: u64) -> Self {
        let (rings, hears) = bell().unwrap();
        Self { ring: create(records).unwrap(), rings, hears: hears.into() }
    }

    fn producer(&self, boot: u64) -> Producer {
        Producer::attach(&self.ring, self.rings.try_clone().unwrap(), boot).unwrap()
    }

    fn consumer(&self) -> Consumer {
        Consumer::attach(&self.ring, 5).unwrap()
    }

    fn memory(&self) -> Mapping {
        Mapping::new(&self.ring).unwrap()
    }
}

fn all(consumer: &mut Consumer) -> Vec<Result<Item, Corrupt>> {
    std::iter::from_fn(|| consumer.take()).collect()
}

/// What matters of an entry, in one value.
fn word(entry: &Entry) -> (u64, u64, Stage, u64) {
    (entry.boot, entry.sequence, entry.stage, entry.record.came_unix_ms)
}

fn words(items: Vec<Result<Item, Corrupt>>) -> Vec<(u64, u64, Stage, u64)> {
    let entry = |item| match item {
        Ok(Item::Entry(entry)) => Some(word(&entry)),
        Ok(Item::Began { .. }) => None,
        Err(corrupt) => panic!("{corrupt}"),
    };
    items.into_iter().filter_map(entry).collect()
}

#[test]
fn a_watch_sees_what_is_said_and_what_is_taken() {
    let kept = Kept::new(RECORDS_MIN);
    let (watch, mut producer, mut consumer) = (Watch::attach(&kept.ring).unwrap(), kept.producer(1), kept.consumer());
    let capacity = RECORDS_MIN / ENTRY_RECORDS;
    assert_eq!(watch.fill(), Fill { used: 0, capacity });
    let ticket = producer.open(&record(1)).unwrap();
    producer.close(ticket, &record(1));
    assert_eq!(watch.fill(), Fill { used: 2, capacity });
    all(&mut consumer);
    assert_eq!(watch.fill().used, 2, "not durable yet");
    consumer.release();
    assert_eq!(watch.fill(), Fill { used: 0, capacity });
}

#[test]
fn a_request_is_opened_goes_on_and_is_closed() {
    let kept = Kept::new(RECORDS_MIN);
    let (mut producer, mut consumer) = (kept.producer(8), kept.consumer());
    let ticket = producer.open(&record(1)).unwrap();
    assert!(producer.progress(&ticket, &record(2)));
    producer.close(ticket, &record(3));
    let items = all(&mut consumer);
    assert_eq!(items[0], Ok(Item::Began { boot: 8 }));
    assert_eq!(words(items), [(8, 0, Stage::Open, 1), (8, 1, Stage::Progress, 2), (8, 2, Stage::Closed, 3)]);
    assert_eq!(consumer.take(), None);
}

#[test]
fn a_full_ring_refuses_to_open_and_lets_all_close() {
    let kept = Kept::new(64);
    let mut producer = kept.producer(1);
    let mut open = Vec::new();
    while let Ok(ticket) = producer.open(&record(open.len() as u64)) {
        open.push(ticket);
    }
    assert_eq!(open.len(), 10, "the beginning, 6 records for each, and one for the next boot");
    assert!(producer.progress(&open[0], &record(99)).eq(&false));
    let opened = open.len() as u64;
    open.into_iter().for_each(|ticket| producer.close(ticket, &record(0)));
    assert_eq!(producer.open(&record(0)).err(), Some(Full));
    // The next boot has room to say that it begins, but for nothing else.
    let mut next = kept.producer(2);
    assert_eq!(next.open(&record(0)).err(), Some(Full));
    let mut consumer = kept.consumer();
    let items = all(&mut consumer);
    assert_eq!(items.last(), Some(&Ok(Item::Began { boot: 2 })));
    assert_eq!(words(items).len() as u64, 2 * opened);
    assert_eq!(next.open(&record(0)).err(), Some(Full), "taken is not released");
    consumer.release();
    assert!(next.open(&record(0)).is_ok());
}

#[test]
fn a_boot_that_found_no_room_to_begin_says_so_before_its_first_entry() {
    let kept = Kept::new(16);
    let mut open = Vec::new();
    let mut producer = kept.producer(1);
    while let Ok(ticket) = producer.open(&record(0)) {
        open.push(ticket);
    }
    open.into_iter().for_each(|ticket| producer.close(ticket, &record(0)));
    let _boots: Vec<Producer> = (2..9).map(|boot| kept.producer(boot)).collect();
    let mut last = kept.producer(9);
    let mut consumer = kept.consumer();
    all(&mut consumer).into_iter().for_each(|item| drop(item.unwrap()));
    consumer.release();
    let _ticket = last.open(&record(3)).unwrap();
    let items = all(&mut consumer);
    assert_eq!(items[0], Ok(Item::Began { boot: 9 }));
    assert_eq!(words(items), [(9, 0, Stage::Open, 3)]);
}

#[test]
fn the_bell_rings_for_a_sleeper_only_and_tells_when_nobody_is_left() {
    use crate::Heard;
    let kept = Kept::new(RECORDS_MIN);
    let rung = |hears: &Hearing| {
        let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(hears), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() > 0
    };
    let (mut producer, mut consumer) = (kept.producer(1), kept.consumer());
    assert!(rung(&kept.hears), "for what the last boot may have left");
    assert_eq!(kept.hears.clear().unwrap(), Heard::Rung);
    all(&mut consumer);
    consumer.release();
    let ticket = producer.open(&record(1)).unwrap();
    assert!(!rung(&kept.hears));
    assert!(!consumer.may_sleep());
    consumer.awake();
    all(&mut consumer);
    consumer.release();
    assert!(consumer.may_sleep());
    producer.close(ticket, &record(1));
    assert!(rung(&kept.hears));
    let Kept { rings, hears, .. } = kept;
    drop((Bell::from(rings), producer));
    assert_eq!(hears.clear().unwrap(), Heard::Rung);
    assert_eq!(hears.clear().unwrap(), Heard::Gone);
}

#[test]
fn two_threads_hand_over_everything_in_order() {
    const REQUESTS: u64 = 50_000;
    let kept = Kept::new(64);
    let (mut producer, mut consumer) = (kept.producer(1), kept.consumer());
    let server = thread::spawn(move || {
        for number in 0..REQUESTS {
            let ticket = loop {
                match producer.open(&record(number)) {
                    Ok(ticket) => break ticket,
                    Err(Full) => thread::yield_now(),
                }
            };
            producer.close(ticket, &record(number));
        }
    });
    let mut next = 0;
    while next < 2 * REQUESTS {
        for (_, sequence, stage, number) in words(all(&mut consumer)) {
            let expected = if next.is_multiple_of(2) { Stage::Open } else { Stage::Closed };
            assert_eq!((sequence, stage, number), (next, expected, next / 2));
            next += 1;
        }
        consumer.release();
        thread::yield_now();
    }
    server.join().unwrap();
    assert_eq!(consumer.take(), None);
}

#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let kept = Kept::new(RECORDS_MIN);
    let _ticket = kept.producer(1).open(&record(1)).unwrap();
    let memory = kept.memory();
    let bits = (1 + ENTRY_RECORDS as usize) * RECORD_WORDS * 64;
    for bit in 0..bits {
        let flip = || {
            let word = &memory.data()[bit / 64];
            word.store(word.load(Relaxed) ^ 1 << (bit % 64), Relaxed);
        };
        flip();
        let found = all(&mut kept.consumer()).into_iter().find_map(Result::err).unwrap();
        assert_eq!(found.position, (bit / 64 / RECORD_WORDS) as u64, "bit {bit}: {found}");
        assert!(matches!(found.fault, Fault::Checksum { .. }), "bit {bit}: {found}");
        flip();
    }
    assert_eq!(words(all(&mut kept.consumer())), [(1, 0, Stage::Open, 1)]);
}

#[test]
fn what_is_damaged_costs_itself_only() {
    let kept = Kept::new(64);
    let mut producer = kept.producer(1);
    let _tickets: Vec<Ticket> = (0..4).map(|number| producer.open(&record(number)).unwrap()).collect();
    // The second record of the second entry.
    kept.memory().data()[(1 + 3 + 1) * RECORD_WORDS].store(0, Relaxed);
    let items = all(&mut kept.consumer());
    let faults = items.iter().filter_map(|item| item.as_ref().err()).map(|corrupt| corrupt.position);
    assert_eq!(faults.collect::<Vec<_>>(), [5, 6], "the record, and the entry's rest");
    let whole = items.into_iter().filter(Result::is_ok).collect();
    assert_eq!(words(whole).iter().map(|word| word.3).collect::<Vec<_>>(), [0, 2, 3]);
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Progress(usize),
    Close(usize),
    Take(usize),
    /// What was taken is made durable, and released unless the ledger dies in between.
    Sync {
        dies: bool,
    },
    ServerDies,
    LedgerDies,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Open),
        2 => any::<usize>().prop_map(Step::Progress),
        4 => any::<usize>().prop_map(Step::Close),
        3 => (1..9_usize).prop_map(Step::Take),
        3 => prop::bool::weighted(0.2).prop_map(|dies| Step::Sync { dies }),
        1 => Just(Step::ServerDies),
        1 => Just(Step::LedgerDies),
    ]
}

/// A server, a ledger, and what should come of what they do.
struct Model {
    kept: Kept,
    producer: Producer,
    consumer: Consumer,
    boot: u64,
    tickets: Vec<Ticket>,
    sent: Vec<(u64, u64, Stage, u64)>,
    batch: Vec<Entry>,
    durable: Vec<(u64, u64, Stage, u64)>,
    last: HashMap<u64, u64>,
    sequence: u64,
    number: u64,
}

impl Model {
    fn new() -> Self {
        let kept = Kept::new(32);
        let (producer, consumer) = (kept.producer(0), kept.consumer());
        Self {
            kept,
            producer,
            consumer,
            boot: 0,
            tickets: Vec::new(),
            sent: Vec::new(),
            batch: Vec::new(),
            durable: Vec::new(),
            last: HashMap::new(),
            sequence: 0,
            number: 0,
        }
    }

    fn sent(&mut self, stage: Stage) {
        self.sent.push((self.boot, self.sequence, stage, self.number));
        self.sequence += 1;
        self.number += 1;
    }

    fn step(&mut self, step: &Step) {
        let record = record(self.number);
        match *step {
            Step::Open => {
                if let Ok(ticket) = self.producer.open(&record) {
                    self.tickets.push(ticket);
                    self.sent(Stage::Open);
                }
            }
            Step::Progress(_) | Step::Close(_) if self.tickets.is_empty() => {}
            Step::Progress(which) => {
                if self.producer.progress(&self.tickets[which % self.tickets.len()], &record) {
                    self.sent(Stage::Progress);
                }
            }
            Step::Close(which) => {
                let ticket = self.tickets.swap_remove(which % self.tickets.len());
                self.producer.close(ticket, &record);
                self.sent(Stage::Closed);
            }
            Step::Take(most) => self.take(most),
            Step::Sync { dies } => {
                self.append();
                if dies {
                    self.consumer = self.kept.consumer();
                } else {
                    self.consumer.release();
                }
            }
            Step::ServerDies => {
                self.boot += 1;
                (self.sequence, self.tickets) = (0, Vec::new());
                self.producer = self.kept.producer(self.boot);
            }
            Step::LedgerDies => {
                self.batch.clear();
                self.consumer = self.kept.consumer();
            }
        }
    }

    fn take(&mut self, most: usize) {
        for item in std::iter::from_fn(|| self.consumer.take()).take(most) {
            if let Item::Entry(entry) = item.expect("nothing is damaged") {
                self.batch.push(*entry);
            }
        }
    }

    /// What a ledger does: it skips what it has.
    fn append(&mut self) {
        for entry in self.batch.drain(..) {
            if self.last.get(&entry.boot).is_none_or(|last| entry.sequence > *last) {
                self.last.insert(entry.boot, entry.sequence);
                self.durable.push(word(&entry));
            }
        }
    }

    fn finish(mut self) {
        self.take(usize::MAX);
        self.append();
        assert_eq!(self.durable, self.sent);
    }
}

proptest! {
    #[test]
    fn crashes_lose_and_double_nothing(steps in vec(step(), 0..200)) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(step));
        model.finish();
    }

    #[test]
    fn a_hostile_server_is_an_error_at_worst(
        entries in 0..4_u64,
        tail in prop_oneof![0..40_u64, any::<u64>()],
        head in prop_oneof![0..4_u64, any::<u64>()],
        words in vec((0..RECORDS_MIN as usize * RECORD_WORDS, any::<u64>()), 0..20),
    ) {
        let kept = Kept::new(RECORDS_MIN);
        let mut producer = kept.producer(1);
        let _tickets: Vec<_> = (0..entries).map_while(|number| producer.open(&record(number)).ok()).collect();
        let memory = kept.memory();
        memory.tail().store(tail, Relaxed);
        memory.head().store(head, Relaxed);
        words.into_iter().for_each(|(at, value)| memory.data()[at].store(value, Relaxed));
        let mut consumer = kept.consumer();
        let calls = std::iter::from_fn(|| consumer.take()).count();
        prop_assert!(calls as u64 <= RECORDS_MIN + 1, "{calls} calls");
        consumer.release();
        prop_assert_eq!(memory.head().load(Relaxed), tail);
    }
}
