//! What a request has used of its instances, shared by the scheduler, which adds to it, and by whoever bills.
//!
//! ```text
//!  open ──dispatch──▶ in work ──last message──▶ settled          the bill reads sums that are final
//!    ▲                  │   └──the caller leaves──▶ closed        the bill takes the sums, and claims what passed since
//!    └── begun again ───┘                                        they were made; the scheduler owes it that claim
//! ```
//!
//! Invariants: whatever is taken by the bill is nobody else's, whatever is not taken goes to the box's own account, so that
//! bills and that account add up to the instances' lives. A request that never had a slot is billed nothing.

use sandbox_wire::warden::Spent;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A part of an instance's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Time, µs.
    pub us: u64,
    /// CPU time, µs.
    pub cpu_us: u64,
    /// Memory reserved over time, byte·µs.
    pub reserved_byte_us: u128,
    /// Memory used over time, byte·µs.
    pub used_byte_us: u128,
}

impl From<Spent> for Share {
    fn from(spent: Spent) -> Self {
        let Spent { us, cpu_us, reserved_byte_us, used_byte_us } = spent;
        Self { us, cpu_us, reserved_byte_us, used_byte_us }
    }
}

impl Share {
    pub(crate) fn add(&mut self, more: Share) {
        self.us = self.us.saturating_add(more.us);
        self.cpu_us = self.cpu_us.saturating_add(more.cpu_us);
        self.reserved_byte_us = self.reserved_byte_us.saturating_add(more.reserved_byte_us);
        self.used_byte_us = self.used_byte_us.saturating_add(more.used_byte_us);
    }
}

/// What a request has used, for its bill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Its part of the wakes that it waited for.
    pub wake: Share,
    /// Its part of the time in work.
    pub run: Share,
    /// Most memory that an instance was seen to use while it was this request's, bytes; others' in it included.
    pub peak_bytes: u64,
}

impl Used {
    /// Both together.
    pub fn total(&self) -> Share {
        let mut total = self.wake;
        total.add(self.run);
        total
    }
}

/// The sums of one request.
#[derive(Debug, Default)]
pub struct Tab(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    used: Used,
    has_slot: bool,
    /// Since when what it uses is not in the sums; `None` where it uses nothing.
    since: Option<Since>,
    closed: bool,
    /// Taken by the bill, not yet made good by the instance's account, µs.
    claimed_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    at: Instant,
    in_work: u64,
    reserved_bytes: u64,
}

impl Tab {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code below can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was used until `now`, for the bill; what is used later is not billed. Nothing is left for a second call.
    pub fn close(&self, now: Instant) -> Used {
        let mut state = self.lock();
        if std::mem::replace(&mut state.closed, true) || !state.has_slot {
            return Used::default();
        }
        let tail = state.since.map(|since| since.tail(now)).unwrap_or_default();
        state.claimed_us = tail.us;
        let mut used = std::mem::take(&mut state.used);
        used.run.add(tail);
        used
    }

    /// What was used until `now`, were it to end now.
    pub fn peek(&self, now: Instant) -> Used {
        let state = self.lock();
        let mut used = if state.has_slot { state.used } else { Used::default() };
        used.run.add(state.since.map(|since| since.tail(now)).unwrap_or_default());
        used
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// It has a slot; `false` where nobody pays for it any more.
    pub(crate) fn dispatch(&self) -> bool {
        let mut state = self.lock();
        state.has_slot = !state.closed;
        state.has_slot
    }

    /// Adds its part of a wake, at whose end the instance used so much memory; `false` where nobody pays.
    pub(crate) fn add_wake(&self, share: Share, seen_bytes: u64) -> bool {
        let mut state = self.lock();
        if !state.closed {
            state.used.wake.add(share);
            state.used.peak_bytes = state.used.peak_bytes.max(seen_bytes);
        }
        !state.closed
    }

    /// Adds its part of an interval, at whose end the instance used so much memory; `false` where nobody pays.
    pub(crate) fn add_run(&self, share: Share, seen_bytes: u64) -> bool {
        let mut state = self.lock();
        if !state.closed {
            state.used.run.add(share);
            state.used.peak_bytes = state.used.peak_bytes.max(seen_bytes);
        }
        !state.closed
    }

    /// What the bill took ahead of the sums, once.
    pub(crate) fn claimed_us(&self) -> u64 {
        std::mem::take(&mut self.lock().claimed_us)
    }

    /// From `at` on it is one of `in_work`; of none where that is 0.
    pub(crate) fn runs(&self, at: Instant, in_work: u64, reserved_bytes: u64) {
        self.lock().since = (in_work > 0).then_some(Since { at, in_work, reserved_bytes });
    }

    /// It is not in work any more.
    pub(crate) fn rests(&self) {
        self.lock().since = None;
    }

    /// What it used was for nothing: whoever must bear that is given it.
    pub(crate) fn void(&self) -> Share {
        let mut state = self.lock();
        (state.since, state.has_slot) = (None, false);
        std::mem::take(&mut state.used).total()
    }

    /// What nobody can be billed for: all of it where it never had a slot.
    pub(crate) fn unbilled(&self) -> Share {
        let mut state = self.lock();
        if state.has_slot {
            return Share::default();
        }
        std::mem::take(&mut state.used).total()
    }
}

impl Since {
    fn tail(self, now: Instant) -> Share {
        let us = now.saturating_duration_since(self.at).as_micros() as u64 / self.in_work;
        Share { us, reserved_byte_us: u128::from(us) * u128::from(self.reserved_bytes), ..Share::default() }
    }
}
