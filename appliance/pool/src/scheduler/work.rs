//! Which instances' accounts an event ends an interval of. The accounts themselves: [`super::account`].
//!
//! Invariant: an interval ends whenever who is in work in an instance changes, before the change.

use super::{
    Account, Awake, InstanceId, Liver, Scheduler, Spent, Ticket, Wake, Work,
    account::{Born, Sensor, Waiter},
};
use sandbox_wire::runner::FromRunner;
use std::time::{Duration, Instant};

impl Scheduler {
    /// The same, reading instances by `sensor`.
    pub(crate) fn with_sensor(self, sensor: Sensor) -> Self {
        Self { sensor, ..self }
    }

    pub(super) fn settle(&mut self, now: Instant, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.account.settle(now, self.sensor.read(id), self.books.of(&instance.function));
    }

    /// Ends an interval that has become long.
    pub(super) fn settle_due(&mut self, now: Instant, id: InstanceId) {
        if self.instances.get(&id).is_some_and(|instance| instance.account.is_due(now)) {
            self.settle(now, id);
        }
    }

    pub(super) fn settle_all(&mut self, now: Instant) {
        let ids: Vec<_> = self.instances.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(now, id));
    }

    /// The warden's last word of an instance, and its only word of a process that was never one.
    pub(super) fn lived(&mut self, who: Liver, spent: Spent) {
        match who {
            Liver::Instance(id) => {
                let Some(instance) = self.instances.get_mut(&id) else { return };
                instance.account.end(spent, self.books.of(&instance.function));
            }
            Liver::Own { function, purpose } => self.books.of(&function).lived(purpose, spent),
        }
    }

    /// Opens the account of an instance that is up now; those who waited for it bear its wake.
    pub(super) fn open_account(&mut self, now: Instant, wake: &Wake, awake: &Awake) -> Account {
        let waiting = self.functions.get(&wake.function).map(|function| &function.waiting);
        let jobs = waiting.into_iter().flat_map(|waiting| waiting.iter()).filter_map(|ticket| self.jobs.get(&ticket));
        let waiters: Vec<_> = jobs
            .map(|job| Waiter {
                tab: &job.tab,
                came: job.came,
                billed: job.terms.key.is_some() && job.work != Work::Wake,
            })
            .collect();
        // As long as the warden says: what its word took to come here is not the instance's.
        let began = now.checked_sub(Duration::from_micros(awake.wake_us)).unwrap_or(now).max(wake.began);
        let born = Born { began, cpu_before_us: awake.cpu_before_us, reserved_bytes: wake.memory_bytes };
        let reading = self.sensor.read(awake.instance);
        Account::woken(born, now, reading, &waiters, self.books.of(&wake.function))
    }

    /// A job takes a slot.
    pub(super) fn join_work(&mut self, now: Instant, id: InstanceId, ticket: Ticket) {
        self.settle(now, id);
        let (Some(instance), Some(job)) = (self.instances.get_mut(&id), self.jobs.get(&ticket)) else { return };
        let context = self.functions.get(&instance.function).map_or(0, |f| f.config.spec.context_tokens);
        let text_max = match &job.work {
            Work::Generate(generate) => generate.tokens_max.into(),
            _ => 0,
        };
        let billed = job.terms.key.is_some() && job.work != Work::Wake;
        instance.account.join(ticket, &job.tab, billed, context.into(), text_max);
        instance.account.publish(now);
    }

    /// A job has left its slot, or is about to.
    pub(super) fn leave_work(&mut self, now: Instant, id: InstanceId, ticket: Ticket) {
        self.settle(now, id);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.account.leave(ticket);
            instance.account.publish(now);
        }
    }

    pub(super) fn pause_work(&mut self, now: Instant, id: InstanceId, ticket: Ticket, paused: bool) {
        self.settle(now, id);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.account.pause(ticket, paused);
            instance.account.publish(now);
        }
    }

    /// Counts what a runner shows to have computed.
    pub(super) fn count(&mut self, now: Instant, id: InstanceId, ticket: Ticket, message: &FromRunner) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        match message {
            FromRunner::Started { prompt_tokens, cached_tokens, .. } => {
                instance.account.prompt(ticket, prompt_tokens.saturating_sub(*cached_tokens));
            }
            FromRunner::Text { text, .. } => {
                instance.account.text(ticket, text.tokens);
                instance.seen.answer(ticket, text.tokens);
            }
            _ => {}
        }
        self.settle_due(now, id);
    }
}
