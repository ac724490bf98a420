//! How instances end, at work or at rest, and what becomes of what they ran.
//!
//! ```text
//!  stop ────────────────▶ Stop ─▶ Exited ─▶ gone; jobs that have said nothing: again, once; the others: failed
//!  blame, hung ─▶ stop ──┘  ▲
//!  lost ─▶ (dying) ─────────┘ outlives, after [`DYING_MAX`]
//! ```

use super::{Effect, Failed, Hold, Scheduler, State, Ticket, Timer};
use sandbox_wire::warden::{ExitCause, InstanceId};
use std::time::{Duration, Instant};

/// Time that a runner whose socket is closed has to end.
pub(super) const DYING_MAX: Duration = Duration::from_secs(5);

impl Scheduler {
    pub(super) fn hung(&mut self, now: Instant, ticket: Ticket) {
        if self.ends_its_pause(now, ticket) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        let State::Running { instance, .. } = job.state else { return };
        // It has had all its time: another instance would give it more than its function allows.
        job.retried = true;
        self.blame(instance, "it did not end a request by its deadline".to_owned());
    }

    /// Ends an instance for what it did.
    pub(super) fn blame(&mut self, id: InstanceId, fault: String) {
        if let Some(instance) = self.instances.get_mut(&id) {
            tracing::warn!(instance = id, function = %instance.function, fault, "instance at fault");
            instance.blame.get_or_insert(fault);
            self.stop(id);
        }
    }

    pub(super) fn stop(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if !std::mem::replace(&mut instance.ending, true) {
            self.effects.push(Effect::Stop(id));
        }
        self.clear_idle(id);
        self.drop_cores(id);
    }

    pub(super) fn lost(&mut self, now: Instant, id: InstanceId, fault: Option<String>) {
        match fault {
            Some(fault) => self.blame(id, fault),
            // It is dying; the warden will tell of what.
            None => {
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.ending = true;
                    instance.dies_by = Some(now + DYING_MAX);
                    self.timers.insert((now + DYING_MAX, Timer::Dying(id)));
                    self.clear_idle(id);
                }
            }
        }
    }

    /// It closed its socket, and lives.
    pub(super) fn outlives(&mut self, id: InstanceId) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.blame.get_or_insert_with(|| "it closed its socket and went on".to_owned());
            self.effects.push(Effect::Stop(id));
        }
    }

    pub(super) fn exited(&mut self, now: Instant, id: InstanceId, cause: &ExitCause) {
        self.clear_idle(id);
        self.drop_cores(id);
        self.deafen(id);
        self.settle(now, id);
        let Some(mut instance) = self.instances.remove(&id) else { return };
        instance.running.iter().for_each(|ticket| instance.account.leave(*ticket));
        if let Some(due) = instance.dies_by {
            self.timers.remove(&(due, Timer::Dying(id)));
        }
        let outgrew = self.outgrew(&instance.function, instance.generation, instance.memory_bytes, cause);
        let at_its_cap = matches!(cause, ExitCause::OutOfMemory { .. }) && outgrew.is_none();
        let crashed = instance.blame.is_some() || !matches!(cause, ExitCause::Stopped);
        let reason = instance.blame.or(outgrew).unwrap_or_else(|| cause.to_string());
        let timeout = self.functions.get(&instance.function).map_or(Duration::ZERO, |f| f.config.timeout);
        for ticket in instance.running {
            let Some(job) = self.jobs.get_mut(&ticket) else { continue };
            // Another instance would give it more time than its function allows.
            let late =
                matches!(job.state, State::Running { since, .. } if now.saturating_duration_since(since) >= timeout);
            if job.cancelled || job.spoke || job.retried || at_its_cap || late {
                self.fail(ticket, Failed::InstanceLost { reason: reason.clone() });
            } else {
                self.retry(now, ticket);
            }
        }
        self.hold(now, &instance.function);
        let current = self.functions.get(&instance.function).is_some_and(|f| f.generation == instance.generation);
        if crashed && current {
            self.ails(now, &instance.function, reason);
        }
    }

    /// Nothing of the answer was seen: another instance may give it.
    pub(super) fn retry(&mut self, now: Instant, ticket: Ticket) {
        let job = self.jobs.get_mut(&ticket).expect("looked up by the caller");
        job.retried = true;
        self.wait_again(now, ticket);
    }

    /// A job without a slot takes its place in the queue again.
    pub(super) fn wait_again(&mut self, now: Instant, ticket: Ticket) {
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        (job.state, job.hold) = (State::Waiting, Hold::None);
        let void = job.tab.void();
        self.books.of(&job.function).waste.add(void);
        let Some(function) = self.functions.get_mut(&job.function) else {
            return self.fail(ticket, Failed::NoFunction);
        };
        function.waiting.restore(job.place, &job.terms.key, ticket);
        let due = job.terms.wait_until(now, function.config.queue_timeout);
        self.set_timer(ticket, Timer::Queue(ticket), due);
    }
}
