//! How urgently a core of the server runs.
//!
//! ```text
//!         took more than half of its core in a tick
//!  urgent ───────────────────────────────────────▶ as others
//!         ◀───────────────────────────────────────
//!                    less than a quarter
//! ```
//! What answers and waits is to run the moment that it is woken. By the kernel's fair policy it does so only after a pause:
//! woken again soon after it ran, it waits for the kernel's next tick, 4 ms later, and a refusal, which is woken twice, for
//! two of them. So a core runs by the real-time policy. One that computes would keep inference from computing: while it is
//! flooded with handshakes, or takes a model, it goes by its weight. Left out: how others of the server's threads run, which
//! have as much to do as the cores give them.

use crate::control::Speaker;
use sandbox_kernel::process::thread_cpu_time;
use std::time::{Duration, Instant};

/// The calling thread's. The supervisor sees to it, since the server may not.
#[derive(Debug)]
pub(super) struct Urgency {
    speaker: Speaker,
    is_urgent: bool,
    at: Instant,
    taken: Duration,
}

impl Urgency {
    /// Urgent from now on.
    pub(super) fn begin(speaker: Speaker) -> Self {
        let taken = thread_cpu_time().unwrap_or_default();
        let mut urgency = Self { speaker, is_urgent: false, at: Instant::now(), taken };
        urgency.set(true);
        urgency
    }

    /// Looks at what the thread has taken since it looked last.
    pub(super) fn look(&mut self) {
        let (now, Ok(taken)) = (Instant::now(), thread_cpu_time()) else { return };
        let (passed, took) = (now.saturating_duration_since(self.at), taken.saturating_sub(self.taken));
        (self.at, self.taken) = (now, taken);
        self.set(is_urgent_next(self.is_urgent, took, passed));
    }

    fn set(&mut self, is_urgent: bool) {
        if is_urgent == self.is_urgent {
            return;
        }
        match self.speaker.be_urgent(is_urgent) {
            Ok(()) => self.is_urgent = is_urgent,
            Err(error) => tracing::debug!(%error, "the supervisor does not listen"),
        }
    }
}

/// Whether a thread is to be urgent that was, or was not, while it took `took` of a core's time.
fn is_urgent_next(was: bool, took: Duration, passed: Duration) -> bool {
    if was { took.saturating_mul(2) <= passed } else { took.saturating_mul(4) < passed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_computes_goes_by_weight_until_it_waits_again() {
        let next = |was, took_ms| is_urgent_next(was, Duration::from_millis(took_ms), Duration::from_millis(200));
        assert_eq!([0, 50, 100, 101, 200].map(|took| next(true, took)), [true, true, true, false, false]);
        assert_eq!([0, 49, 50, 101, 200].map(|took| next(false, took)), [true, true, false, false, false]);
    }
}
