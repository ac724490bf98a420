//! How far a connection has come, and by when it must have come further.
//!
//! ```text
//!            handshake_timeout      head_timeout (h1), idle_timeout (h2)
//! accepted ──────────────────▶ open ─────────────────────────▶ request in flight ──▶ closing: linger_timeout
//!                               ▲   first byte: head_timeout (h1)      │
//!                               └──────── idle_timeout ◀───────────────┘ none left
//! ```
//! Besides, whenever the client does not take what is written: `write_timeout`. Every deadline that passes cuts the whole
//! connection. A handler's own time is not limited here.

use crate::{
    Limits,
    clock::{Clock, Deadline},
};
use std::{
    cell::Cell,
    sync::Arc,
    task::{Context, Poll},
};

/// The deadlines of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    clock: Clock,
    limits: Arc<Limits>,
    /// Never armed; passes with any of the others.
    cut: Arc<Deadline>,
    phase: Arc<Deadline>,
    write: Arc<Deadline>,
    in_flight: Cell<u32>,
    head_timed: Cell<bool>,
    /// Bytes taken by the client since the write deadline was armed.
    taken_bytes: Cell<usize>,
    /// HTTP/2 has traffic of its own, so bytes do not mean that a request begins.
    multiplexed: Cell<bool>,
}

impl Pace {
    /// A connection that begins its handshake.
    pub(crate) fn new(clock: Clock, limits: Arc<Limits>) -> Self {
        let cut = clock.deadline();
        let (phase, write) = (clock.deadline_of(&cut), clock.deadline_of(&cut));
        phase.arm(clock.after(limits.handshake_timeout));
        let (in_flight, head_timed) = (Cell::new(0), Cell::new(false));
        let (taken_bytes, multiplexed) = (Cell::new(0), Cell::new(false));
        Self { clock, limits, cut, phase, write, in_flight, head_timed, taken_bytes, multiplexed }
    }

    /// The handshake is done; the first request may come.
    pub(crate) fn opened(&self, multiplexed: bool) {
        self.multiplexed.set(multiplexed);
        let timeout = if multiplexed { self.limits.idle_timeout } else { self.limits.head_timeout };
        self.head_timed.set(!multiplexed);
        self.phase.arm(self.clock.after(timeout));
    }

    /// Bytes came in.
    pub(crate) fn received(&self) {
        if self.is_idle() && !self.head_timed.get() && !self.multiplexed.get() {
            self.head_timed.set(true);
            self.phase.arm(self.clock.after(self.limits.head_timeout));
        }
    }

    /// True when no request is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    pub(crate) fn request_began(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.phase.disarm();
    }

    pub(crate) fn request_ended(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.is_idle() {
            self.head_timed.set(false);
            self.phase.arm(self.clock.after(self.limits.idle_timeout));
        }
    }

    /// The client took `bytes`.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.taken_bytes.set(self.taken_bytes.get().saturating_add(bytes));
        if self.taken_bytes.get() >= self.limits.write_bytes_min {
            self.write.disarm();
        }
    }

    /// The client has taken everything.
    pub(crate) fn flushed(&self) {
        self.write.disarm();
    }

    /// The client does not take what is there for it.
    pub(crate) fn write_blocked(&self) {
        if !self.write.is_armed() {
            self.taken_bytes.set(0);
            self.write.arm(self.clock.after(self.limits.write_timeout));
        }
    }

    /// The last byte is written; the client may take it and go.
    pub(crate) fn closing(&self) {
        self.phase.arm(self.clock.after(self.limits.linger_timeout));
    }

    /// A deadline for one stream of replies.
    pub(crate) fn reply_deadline(&self) -> ReplyDeadline {
        let deadline = self.clock.deadline_of(&self.cut);
        ReplyDeadline { deadline, clock: self.clock.clone(), limits: Arc::clone(&self.limits) }
    }

    /// Ready when any deadline has passed.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.cut.poll_passed(cx)
    }
}

/// Cuts the connection whose client does not take the next item of a stream.
#[derive(Debug)]
pub(crate) struct ReplyDeadline {
    deadline: Arc<Deadline>,
    clock: Clock,
    limits: Arc<Limits>,
}

impl ReplyDeadline {
    /// An item was handed down.
    pub(crate) fn offered(&self) {
        self.deadline.arm(self.clock.after(self.limits.write_timeout));
    }

    /// There is room for the next one.
    pub(crate) fn wanted(&self) {
        self.deadline.disarm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{task::Waker, time::Duration};

    const TICK: Duration = Duration::from_millis(10);

    fn pace() -> Pace {
        let limits = Limits {
            handshake_timeout: 2 * TICK,
            head_timeout: 4 * TICK,
            idle_timeout: 8 * TICK,
            write_timeout: 4 * TICK,
            write_bytes_min: 100,
            ..Limits::default()
        };
        Pace::new(Clock::new(TICK), Arc::new(limits))
    }

    fn ticks_until_cut(pace: &Pace, mut each: impl FnMut(&Pace)) -> Option<u32> {
        (1..=20).find(|_| {
            each(pace);
            pace.clock.advance();
            pace.poll_cut(&mut Context::from_waker(Waker::noop())).is_ready()
        })
    }

    #[test]
    fn each_phase_has_its_time() {
        assert_eq!(ticks_until_cut(&pace(), |_| ()), Some(3), "handshake");
        let (opened, multiplexed, busy, ended) = (pace(), pace(), pace(), pace());
        opened.opened(false);
        assert_eq!(ticks_until_cut(&opened, |_| ()), Some(5), "head");
        multiplexed.opened(true);
        assert_eq!(ticks_until_cut(&multiplexed, Pace::received), Some(9), "idle");
        busy.opened(false);
        busy.request_began();
        assert_eq!(ticks_until_cut(&busy, Pace::received), None, "a handler has its own time");
        ended.request_began();
        ended.request_ended();
        assert_eq!(ticks_until_cut(&ended, |_| ()), Some(9), "idle after a request");
    }

    #[test]
    fn bytes_one_by_one_do_not_prolong_a_head() {
        let pace = pace();
        pace.opened(false);
        pace.request_began();
        pace.request_ended();
        assert_eq!(ticks_until_cut(&pace, Pace::received), Some(5));
    }

    #[test]
    fn a_reader_must_take_enough() {
        let trickle = |pace: &Pace| {
            pace.write_blocked();
            pace.wrote(10);
        };
        let reader = |pace: &Pace| {
            pace.write_blocked();
            pace.wrote(60);
        };
        let busy = || {
            let pace = pace();
            pace.request_began();
            pace
        };
        assert_eq!(ticks_until_cut(&busy(), trickle), Some(5));
        assert_eq!(ticks_until_cut(&busy(), reader), None);
    }

    #[test]
    fn a_stream_that_is_not_asked_for_more_cuts() {
        let pace = pace();
        pace.request_began();
        let deadline = pace.reply_deadline();
        deadline.offered();
        deadline.wanted();
        assert_eq!(ticks_until_cut(&pace, |_| ()), None);
        deadline.offered();
        assert_eq!(ticks_until_cut(&pace, |_| ()), Some(5));
    }
}
