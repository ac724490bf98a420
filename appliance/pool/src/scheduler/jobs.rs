//! A job from its submission to where it is forgotten: it waits, is refused, cancelled, or out of time.
//!
//! Invariant: a job that is forgotten has no timer, no place in a queue and no slot.

use super::{
    Effect, Event, Failed, Function, HANG_GRACE, Hold, Job, RESERVE_WAIT, Scheduler, State, Ticket, Timer, Trail, Work,
};
use crate::{
    job::{Dispatched, Terms},
    tab::Tab,
};
use appliance_admit::{self as admit, Class};
use appliance_types::{FunctionName, Tier};
use sandbox_wire::runner::ToRunner;
use std::{sync::Arc, time::Instant};

/// Where what comes of a job is told, and what it uses is counted.
pub(super) struct Told {
    pub(super) tab: Arc<Tab>,
    pub(super) events: flume::Sender<Event>,
}

impl Scheduler {
    pub(super) fn submit(
        &mut self,
        now: Instant,
        ticket: Ticket,
        name: FunctionName,
        work: Work,
        terms: Terms,
        told: Told,
    ) {
        let Told { tab, events } = told;
        if work == Work::Wake && self.is_awake(now, &name, &events) {
            return;
        }
        if work == Work::Wake {
            self.try_again(&name);
        }
        if let Some(failed) = self.is_failing(now, &name).or_else(|| self.too_late(now, &name, &terms)) {
            drop(events.try_send(Event::Failed(failed)));
            return;
        }
        self.called(&name);
        let Some(function) = self.functions.get_mut(&name) else {
            drop(events.try_send(Event::Failed(Failed::NoFunction)));
            return;
        };
        let several = function.config.instances_max > 1;
        let place = function.waiting.push(&terms.key, terms.weight, terms.class, ticket);
        let due = match work {
            Work::Wake => now + RESERVE_WAIT,
            _ => terms.wait_until(now, function.config.queue_timeout),
        };
        if function.held_until.is_some() {
            self.hold(now, &name);
        }
        let found_up = self.is_up(&name);
        let bytes_left = work.reply_bytes_max();
        let trail = if several { work.trail() } else { Trail::default() };
        let job = Job {
            function: name.clone(),
            work,
            terms,
            tab,
            events,
            trail,
            place,
            came: now,
            found_up,
            state: State::Waiting,
            timer: Some(due),
            retried: false,
            had_slot: false,
            claim: None,
            corrected: false,
            cancelled: false,
            bytes_left,
            spoke: false,
            hold: Hold::None,
            overdue: false,
        };
        self.batch += usize::from(job.terms.class == Class::Batch);
        self.jobs.insert(ticket, job);
        self.timers.insert((due, Timer::Queue(ticket)));
        self.advance(now);
        self.refuse_overflow(&name);
    }

    /// Answers a wake at once where an instance is up, busy or not. An idle one stays up as if it had been called.
    pub(super) fn is_awake(&mut self, now: Instant, name: &FunctionName, events: &flume::Sender<Event>) -> bool {
        let Some((id, up)) = self.ready(name).next() else { return false };
        let (id, tier, memory_bytes, model) = (*id, Tier::Running, up.memory_bytes, Arc::clone(&up.model));
        drop(events.try_send(Event::Dispatched(Dispatched { tier, queue_us: 0, wake_us: 0, memory_bytes, model })));
        self.rest(now, id);
        true
    }

    /// Refuses the request that would be served last when more wait than may, so that who floods is turned away, and not
    /// who comes after. What had a slot before is not refused.
    pub(super) fn refuse_overflow(&mut self, name: &FunctionName) {
        let Some(function) = self.functions.get(name) else { return };
        let queue_max = function.config.queue_max;
        if admit::queue_has_room(&self.view(name, function), queue_max) {
            return;
        }
        let is_new = |ticket| self.jobs.get(&ticket).is_some_and(|job| !job.had_slot && job.work != Work::Wake);
        let (last, retry_after_s) = (function.waiting.last(is_new), function.retry_after_s());
        if let Some(ticket) = last {
            self.fail(ticket, Failed::QueueFull { queue_max, retry_after_s });
        }
    }

    pub(super) fn cancel(&mut self, now: Instant, ticket: Ticket) {
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        job.cancelled = true;
        match job.state {
            State::Waiting => drop(self.forget(ticket)),
            State::Running { instance, .. } => {
                self.effects.push(Effect::Send { instance, message: ToRunner::Cancel { id: ticket } });
                self.set_timer(ticket, Timer::Run(ticket), now + HANG_GRACE);
                self.settle(now, instance);
            }
        }
    }

    pub(super) fn set_timer(&mut self, ticket: Ticket, timer: Timer, due: Instant) {
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        if let Some(old) = job.timer.replace(due) {
            self.timers.remove(&(old, Timer::Queue(ticket)));
            self.timers.remove(&(old, Timer::Run(ticket)));
        }
        self.timers.insert((due, timer));
    }

    /// Removes a job, its timer, its place in the queue and its slot.
    pub(super) fn forget(&mut self, ticket: Ticket) -> Option<Job> {
        let job = self.jobs.remove(&ticket)?;
        self.batch -= usize::from(job.terms.class == Class::Batch);
        let unbilled = job.tab.unbilled();
        self.books.of(&job.function).waste.add(unbilled);
        if let Some(due) = job.timer {
            self.timers.remove(&(due, Timer::Queue(ticket)));
            self.timers.remove(&(due, Timer::Run(ticket)));
        }
        match job.state {
            State::Waiting => {
                if let Some(function) = self.functions.get_mut(&job.function) {
                    function.waiting.remove(&job.place);
                }
            }
            State::Running { instance, .. } => {
                if let Some(instance) = self.instances.get_mut(&instance) {
                    instance.running.retain(|t| *t != ticket);
                    instance.account.leave(ticket);
                }
            }
        }
        Some(job)
    }

    pub(super) fn fail(&mut self, ticket: Ticket, failed: Failed) {
        if let Some(job) = self.forget(ticket) {
            drop(job.events.try_send(Event::Failed(failed)));
        }
    }

    pub(super) fn queue_timeout(&mut self, now: Instant, ticket: Ticket) {
        let Some(job) = self.jobs.get(&ticket) else { return };
        // A load has a time limit of its own.
        if job.work == Work::Wake && self.wakes.values().any(|wake| wake.function == job.function) {
            return self.set_timer(ticket, Timer::Queue(ticket), now + RESERVE_WAIT);
        }
        let waited_ms = (now - job.came).as_millis() as u64;
        let retry_after_s = self.functions.get(&job.function).map_or(1, Function::retry_after_s);
        self.fail(ticket, Failed::QueueTimeout { waited_ms, retry_after_s });
    }
}
