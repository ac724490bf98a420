//! The two ends of a ring of fixed records, over any memory of atomic words: the algorithm, without what a record means.
//!
//! ```text
//!  Front:  write the words (relaxed) ─▶ tail (release) ─▶ fence ─▶ waiting? ─▶ ring the bell
//!  Back:   tail (acquire) ─▶ copy the words (relaxed) ─▶ … made durable … ─▶ head (release)
//!          waiting = 1 ─▶ fence ─▶ tail still where it was? ─▶ sleep ─▶ waiting = 0
//! ```
//! Each end keeps its own counter and what it last saw of the other's, so that it reads the other's line only when it
//! must. Of the two fences one comes first in the order that all agree on: so either the front sees that the back waits,
//! or the back sees the new tail. Only the back takes `waiting` down, when it is awake: a front that did would overwrite
//! the next sleep's, and one that is killed between the two would leave a sleeper that nobody wakes. So the bell may be
//! rung a few times too often, never once too few.
//!
//! Every access is atomic, so that whatever the other side does to the memory is no data race here, only wrong words.
//! The memory is a type parameter for the sake of the tests, which have loom try all orders (`explored.rs`).

use std::sync::atomic::{
    AtomicU64,
    Ordering::{self, Acquire, Relaxed, Release, SeqCst},
};

/// An atomic word.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// A fence in the order that all agree on.
    fn fence();
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn fence() {
        std::sync::atomic::fence(SeqCst);
    }
}

/// Memory that both ends have.
pub(crate) trait Memory {
    type Word: Word;
    /// Records that were ever published.
    fn tail(&self) -> &Self::Word;
    /// Not 0 while the back sleeps, or is about to.
    fn waiting(&self) -> &Self::Word;
    /// Records that were ever released.
    fn head(&self) -> &Self::Word;
    /// The words of all records.
    fn data(&self) -> &[Self::Word];
}

/// Words of the place of record `position`, in a ring whose length in records is a power of two.
fn place<M: Memory, const W: usize>(memory: &M, position: u64) -> &[M::Word; W] {
    let (places, _) = memory.data().as_chunks::<W>();
    &places[position as usize & (places.len() - 1)]
}

fn places<M: Memory, const W: usize>(memory: &M) -> u64 {
    (memory.data().len() / W) as u64
}

/// The end that writes.
#[derive(Debug)]
pub(crate) struct Front<M, const W: usize> {
    memory: M,
    tail: u64,
    head_seen: u64,
}

impl<M: Memory, const W: usize> Front<M, W> {
    /// Goes on where the last front ended; `None` where head and tail cannot be.
    pub(crate) fn attach(memory: M) -> Option<Self> {
        let (tail, head_seen) = (memory.tail().load(Acquire), memory.head().load(Acquire));
        (tail.wrapping_sub(head_seen) <= places::<M, W>(&memory)).then_some(Self { memory, tail, head_seen })
    }

    /// The next record's number.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Whether `wanted` records have room. Looks at the other end only if what it knows says no.
    pub(crate) fn has_room(&mut self, wanted: u64) -> bool {
        self.free() >= wanted || {
            let head = self.memory.head().load(Acquire);
            // A head that goes back, or past the tail, is none.
            if self.tail.wrapping_sub(head) <= self.tail.wrapping_sub(self.head_seen) {
                self.head_seen = head;
            }
            self.free() >= wanted
        }
    }

    /// Whether the other end has released all that was published.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.has_room(places::<M, W>(&self.memory))
    }

    fn free(&self) -> u64 {
        places::<M, W>(&self.memory) - self.tail.wrapping_sub(self.head_seen)
    }

    /// Writes a record `ahead` of the tail. There is room for it.
    pub(crate) fn write(&mut self, ahead: u64, record: &[u64; W]) {
        debug_assert!(ahead < self.free(), "no room for record {ahead} ahead of {}", self.tail);
        for (word, value) in place::<M, W>(&self.memory, self.tail.wrapping_add(ahead)).iter().zip(record) {
            word.store(*value, Relaxed);
        }
    }

    /// Publishes the next `records` that were written, and rings `bell` if the other end sleeps.
    pub(crate) fn publish(&mut self, records: u64, bell: impl FnOnce()) {
        self.tail = self.tail.wrapping_add(records);
        self.memory.tail().store(self.tail, Release);
        M::Word::fence();
        if self.memory.waiting().load(Relaxed) != 0 {
            bell();
        }
    }
}

/// The end that reads.
#[derive(Debug)]
pub(crate) struct Back<M, const W: usize> {
    memory: M,
    /// The next record to read; what lies before and was not released stays where it is.
    next: u64,
    tail_seen: u64,
}

impl<M: Memory, const W: usize> Back<M, W> {
    /// Begins with what the last back did not release.
    pub(crate) fn attach(memory: M) -> Self {
        let next = memory.head().load(Acquire);
        Self { memory, next, tail_seen: next }
    }

    /// The next record's number.
    pub(crate) fn position(&self) -> u64 {
        self.next
    }

    /// Records that can be read: the number of those published, or the tail that cannot be.
    pub(crate) fn available(&mut self) -> Result<u64, u64> {
        if self.tail_seen == self.next {
            let tail = self.memory.tail().load(Acquire);
            if tail.wrapping_sub(self.next) > places::<M, W>(&self.memory) {
                return Err(tail);
            }
            self.tail_seen = tail;
        }
        Ok(self.tail_seen.wrapping_sub(self.next))
    }

    /// Copies the record `ahead` of the next, which is available.
    pub(crate) fn copy(&self, ahead: u64) -> [u64; W] {
        let place = place::<M, W>(&self.memory, self.next.wrapping_add(ahead));
        std::array::from_fn(|word| place[word].load(Relaxed))
    }

    /// Goes on `records` further, which are available.
    pub(crate) fn advance(&mut self, records: u64) {
        debug_assert!(records <= self.tail_seen.wrapping_sub(self.next), "past what is available");
        self.next = self.next.wrapping_add(records);
    }

    /// Gives up all there is, and goes on at `tail`.
    pub(crate) fn skip_to(&mut self, tail: u64) {
        (self.next, self.tail_seen) = (tail, tail);
    }

    /// Gives back the room of all records before the next.
    pub(crate) fn release(&mut self) {
        self.memory.head().store(self.next, Release);
    }

    /// Says that this end is about to sleep; whether it may. It is woken by the bell of whatever is published from now on.
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.memory.waiting().store(1, Relaxed);
        M::Word::fence();
        self.memory.tail().load(Acquire) == self.next
    }

    /// Says that this end is awake.
    pub(crate) fn awake(&mut self) {
        self.memory.waiting().store(0, Relaxed);
    }
}
