//! What a request's terms mean in time: how long it may wait and run, where it stands, and whether waiting has a point.
//!
//! Estimates come from the function's measured service times and wakes. What a request is refused for is the least that
//! they allow; what one that waits is told is the likely.

use super::{Failed, Function, FunctionName, Job, Scheduler, State, Terms, Ticket, ToRunner, Waits, Work};
use std::time::{Duration, Instant};

impl Terms {
    /// Until when a request may wait from `now`, where its function lets one wait for `queue_timeout`.
    pub(super) fn wait_until(&self, now: Instant, queue_timeout: Duration) -> Instant {
        let due = now + queue_timeout;
        self.deadline.map_or(due, |deadline| due.min(deadline))
    }
}

impl Job {
    /// The frame that asks a runner for it, cut to what is left of its deadline.
    pub(super) fn message(&self, now: Instant, ticket: Ticket) -> Option<ToRunner> {
        let mut message = self.work.message(ticket)?;
        if let (ToRunner::Generate { generate, .. }, Some(left)) = (&mut message, self.left(now)) {
            generate.deadline_ms = generate.deadline_ms.min(left.as_millis() as u64);
        }
        Some(message)
    }

    /// How long it may run. Only what produces text ends by itself at a deadline.
    pub(super) fn run_limit(&self, now: Instant, timeout: Duration) -> Duration {
        match self.work {
            Work::Generate(_) => self.left(now).map_or(timeout, |left| left.min(timeout)),
            _ => timeout,
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        self.terms.deadline.map(|deadline| deadline.saturating_duration_since(now))
    }
}

impl Scheduler {
    /// Where a submission waits; `None` when it does not.
    pub(super) fn waits(&self, ticket: Ticket) -> Option<Waits> {
        let job = self.jobs.get(&ticket).filter(|job| job.state == State::Waiting)?;
        let function = self.functions.get(&job.function)?;
        let ahead = function.waiting.ahead(&job.place, &job.terms.key);
        let wake = if self.is_up(&job.function) { Duration::ZERO } else { function.wake_p50() };
        Some(Waits { position: ahead + 1, estimate: wake + function.turn_after(ahead) })
    }

    /// Why a request's deadline cannot be met: even if all goes well, it passes before its turn comes.
    pub(super) fn too_late(&self, now: Instant, name: &FunctionName, terms: &Terms) -> Option<Failed> {
        let left = terms.deadline?.saturating_duration_since(now);
        let function = self.functions.get(name)?;
        let estimate = match self.is_up(name) {
            true => {
                let rounds = function.waiting.ahead_of_new(&terms.key, terms.class) as u32 / function.lanes();
                function.service.unwrap_or_default() * rounds
            }
            false if self.is_present(name) => Duration::ZERO,
            false => function.wake_least(),
        };
        let retry_after_s = function.retry_after_s();
        let (estimate_ms, left_ms) = (estimate.as_millis() as u64, left.as_millis() as u64);
        (estimate > left).then_some(Failed::DeadlineTooSoon { estimate_ms, left_ms, retry_after_s })
    }
}

impl Function {
    /// Requests that may run at once.
    fn lanes(&self) -> u32 {
        let instances = u32::try_from(self.config.instances_max).unwrap_or(u32::MAX);
        self.slots.saturating_mul(instances).max(1)
    }

    /// About when a request's turn comes that `ahead` are before.
    fn turn_after(&self, ahead: usize) -> Duration {
        let mean = self.service.unwrap_or(Duration::from_secs(1));
        mean * (u32::try_from(ahead).unwrap_or(u32::MAX) / self.lanes()).saturating_add(1)
    }

    fn wake_p50(&self) -> Duration {
        Duration::from_millis(self.wake_p50_ms().unwrap_or_default())
    }

    fn wake_least(&self) -> Duration {
        Duration::from_millis(self.wakes_ms.iter().copied().min().unwrap_or_default())
    }
}
