//! The ring's algorithm under loom: all orders of two threads' steps, and all values that the memory model lets a load
//! see, up to a bound on preemptions. Records of two words, so that one torn or read too early shows.
//!
//! More than `make test` has time for: `EMBER_LOOM_RECORDS=6 LOOM_MAX_PREEMPTIONS=12 cargo test --release --locked -p
//! appliance-meter explored`.

use crate::cursor::{Back, Front, Memory, Word};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};

const PLACES: usize = 2;
const WORDS: usize = 2;
const RECORDS: u64 = 3;
const PREEMPTIONS_MAX: usize = 5;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

struct Shared {
    tail: AtomicU64,
    waiting: AtomicU64,
    head: AtomicU64,
    data: Vec<AtomicU64>,
    bell: AtomicU64,
}

impl Memory for Arc<Shared> {
    type Word = AtomicU64;

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }

    fn waiting(&self) -> &AtomicU64 {
        &self.waiting
    }

    fn head(&self) -> &AtomicU64 {
        &self.head
    }

    fn data(&self) -> &[AtomicU64] {
        &self.data
    }
}

fn shared() -> Arc<Shared> {
    let word = || AtomicU64::new(0);
    let data = (0..PLACES * WORDS).map(|_| word()).collect();
    Arc::new(Shared { tail: word(), waiting: word(), head: word(), data, bell: word() })
}

fn explore(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(PREEMPTIONS_MAX));
    model.check(check);
}

fn records() -> u64 {
    std::env::var("EMBER_LOOM_RECORDS")
        .map_or(RECORDS, |records| records.parse().expect("EMBER_LOOM_RECORDS: a number"))
}

/// Publishes the numbers from 1 on until there is no room; the last that had some.
fn send(shared: &Arc<Shared>, records: u64) -> u64 {
    let mut front = Front::<_, WORDS>::attach(Arc::clone(shared)).unwrap();
    for number in 1..=records {
        if !front.has_room(1) {
            return number - 1;
        }
        front.write(0, &[number; WORDS]);
        front.publish(1, || shared.bell.store(1, Ordering::Release));
    }
    records
}

/// Takes what is there; each record must be whole and the next.
fn take(back: &mut Back<Arc<Shared>, WORDS>, taken: &mut u64) {
    for _ in 0..back.available().unwrap() {
        assert_eq!(back.copy(0), [*taken + 1; WORDS]);
        *taken += 1;
        back.advance(1);
    }
    back.release();
}

#[test]
fn explored_records_arrive_once_whole_and_in_order() {
    let records = records();
    explore(move || {
        let shared = shared();
        let ours = Arc::clone(&shared);
        let sender = thread::spawn(move || send(&ours, records));
        let (mut back, mut taken) = (Back::attach(Arc::clone(&shared)), 0);
        (0..2).for_each(|_| take(&mut back, &mut taken));
        let sent = sender.join().unwrap();
        take(&mut back, &mut taken);
        assert_eq!(taken, sent);
    });
}

#[test]
fn explored_a_sleeper_is_woken() {
    explore(|| {
        let shared = shared();
        let ours = Arc::clone(&shared);
        let sender = thread::spawn(move || send(&ours, 1));
        let mut back = Back::<_, WORDS>::attach(Arc::clone(&shared));
        let sleeps = back.may_sleep();
        sender.join().unwrap();
        let rung = shared.bell.load(Ordering::Acquire) == 1;
        assert!(!sleeps || rung, "asleep, with a record and no bell");
        assert_eq!(back.available(), Ok(1));
    });
}

/// A sleep that was begun twice, as when another ring's bell came in between.
#[test]
fn explored_a_sleeper_that_was_woken_by_another_is_woken_again() {
    explore(|| {
        let shared = shared();
        let ours = Arc::clone(&shared);
        let sender = thread::spawn(move || send(&ours, 2));
        let (mut back, mut taken) = (Back::attach(Arc::clone(&shared)), 0);
        if back.may_sleep() {
            shared.bell.store(0, Ordering::Release);
        }
        back.awake();
        take(&mut back, &mut taken);
        let sleeps = back.may_sleep();
        sender.join().unwrap();
        assert!(taken == 2 || !sleeps || shared.bell.load(Ordering::Acquire) == 1, "asleep at {taken} without a bell");
    });
}

#[test]
fn explored_a_back_that_is_killed_loses_and_overwrites_nothing() {
    explore(|| {
        let shared = shared();
        let ours = Arc::clone(&shared);
        let sender = thread::spawn(move || send(&ours, RECORDS));
        let mut killed = Back::<_, WORDS>::attach(Arc::clone(&shared));
        let seen = killed.available().unwrap();
        drop(killed);
        let (mut back, mut taken) = (Back::attach(Arc::clone(&shared)), 0);
        take(&mut back, &mut taken);
        assert!(taken >= seen);
        let sent = sender.join().unwrap();
        take(&mut back, &mut taken);
        assert_eq!(taken, sent);
    });
}
