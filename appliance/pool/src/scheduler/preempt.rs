//! How running batch makes room for interactive requests: what [`appliance_admit::preempt`] decides, done.
//!
//! ```text
//!  None ──Pause──▶ Paused ──Resume──▶ None          it keeps its slot, and its instance's cores are free
//!    └──Cancel──▶ Yielding ──Finished{Cancelled}──▶ back to the queue, begun again later
//!                    └──any other last message──▶ it had ended already: what was kept back is handed on
//! ```
//!
//! Invariant: a client sees one answer. So what a yielding job says is kept back until it is clear whether it counts, and
//! only what nobody has seen yields: no text was handed on, or the client shows nothing before the end and has taken all
//! that was handed on, so that the channel has room for another whole answer.

use super::{
    Event, FromRunner, HANG_GRACE, Instance, InstanceId, Job, Scheduler, State, Ticket, Timer, ToRunner, Work,
};
use crate::scheduler::Effect;
use appliance_admit::{
    self as admit, Class, Free, Step,
    preempt::{Preemption, next_preemption},
};
use sandbox_wire::runner::FinishReason;
use std::time::Instant;

/// How often a batch request is begun anew: after that it runs to its end.
const BEGUN_ANEW_MAX: u32 = 2;

/// Whether a running job runs.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Hold {
    /// It does.
    #[default]
    None,
    /// It keeps its slot and computes nothing.
    Paused,
    /// It was asked to end; what it said since.
    Yielding(Vec<FromRunner>),
}

/// Whether a step serves an interactive request.
pub(super) fn is_urgent(views: &[admit::Function], step: Step) -> bool {
    match step {
        Step::Dispatch { function, .. } | Step::Wake { function } => views[function].class == Class::Interactive,
        Step::MakeRoom { .. } | Step::Share { .. } => false,
    }
}

impl Job {
    fn may_yield(&self) -> bool {
        let unseen = self.events.is_empty() && (!self.spoke || self.terms.unseen);
        let asked = matches!(self.hold, Hold::Yielding(_)) || self.cancelled || self.begun_anew >= BEGUN_ANEW_MAX;
        unseen && !asked && matches!(self.work, Work::Generate(_))
    }
}

impl Scheduler {
    /// Does one thing for interactive requests that wait, or for batch when none does; whether there was one.
    pub(super) fn preempt(&mut self, now: Instant, free: Free) -> bool {
        let names: Vec<_> = self.functions.keys().cloned().collect();
        let views: Vec<_> = names.iter().map(|name| self.view(name, &self.functions[name])).collect();
        let Some(preemption) = next_preemption(&views, free) else { return false };
        let (Preemption::Requeue { function, instance }
        | Preemption::Pause { function, instance }
        | Preemption::Resume { function, instance }) = preemption;
        let id = self.ready(&names[function]).nth(instance).map(|(id, _)| *id).expect("as in the view");
        match preemption {
            Preemption::Requeue { .. } => self.requeue_one(now, id),
            Preemption::Pause { .. } => self.pause(now, id),
            Preemption::Resume { .. } => self.resume_all(now, id),
        }
        true
    }

    pub(super) fn instance_view(&self, instance: &Instance) -> admit::Instance {
        let count = |is: &dyn Fn(&Job) -> bool| {
            instance.running.iter().filter_map(|ticket| self.jobs.get(ticket)).filter(|job| is(job)).count() as u32
        };
        let busy = instance.running.len() as u32;
        // One whose time is up is to go on, whatever it is.
        let (slots, is_batch) = (instance.slots, |job: &Job| job.terms.class == Class::Batch && !job.overdue);
        if self.batch == 0 {
            return admit::Instance { slots, busy, batch: 0, paused: 0, unseen: 0, yielding: 0 };
        }
        admit::Instance {
            slots,
            busy,
            batch: count(&is_batch),
            paused: count(&|job| job.hold == Hold::Paused),
            unseen: count(&|job| is_batch(job) && job.may_yield()),
            yielding: count(&|job| matches!(job.hold, Hold::Yielding(_))),
        }
    }

    /// Whether an instance computes something.
    pub(super) fn computes(&self, instance: &Instance) -> bool {
        instance.running.iter().any(|ticket| self.jobs.get(ticket).is_some_and(|job| job.hold != Hold::Paused))
    }

    /// Has all batch of an instance compute nothing.
    pub(super) fn pause(&mut self, now: Instant, id: InstanceId) {
        for ticket in self.batch_of(id) {
            let job = self.jobs.get_mut(&ticket).expect("listed above");
            if job.hold == Hold::None && !job.overdue {
                job.hold = Hold::Paused;
                self.pause_work(now, id, ticket, true);
                self.effects.push(Effect::Send { instance: id, message: ToRunner::Pause { id: ticket } });
            }
        }
    }

    /// Has all batch of an instance compute again.
    pub(super) fn resume_all(&mut self, now: Instant, id: InstanceId) {
        let paused = |ticket: &Ticket| self.jobs.get(ticket).is_some_and(|job| job.hold == Hold::Paused);
        if !self.instances.get(&id).is_some_and(|instance| instance.running.iter().any(paused)) {
            return;
        }
        self.take_cores(id);
        self.heard(now, id);
        self.batch_of(id).into_iter().for_each(|ticket| self.resume(now, ticket, id));
    }

    fn resume(&mut self, now: Instant, ticket: Ticket, id: InstanceId) {
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        if job.hold == Hold::Paused {
            job.hold = Hold::None;
            self.pause_work(now, id, ticket, false);
            self.effects.push(Effect::Send { instance: id, message: ToRunner::Resume { id: ticket } });
        }
    }

    /// Has the youngest batch of an instance that nobody has seen anything of give up its slot.
    fn requeue_one(&mut self, now: Instant, id: InstanceId) {
        let batch = self.batch_of(id);
        let Some(ticket) = batch.into_iter().rev().find(|ticket| self.jobs[ticket].may_yield()) else { return };
        self.jobs.get_mut(&ticket).expect("found above").hold = Hold::Yielding(Vec::new());
        self.effects.push(Effect::Send { instance: id, message: ToRunner::Cancel { id: ticket } });
        self.set_timer(ticket, Timer::Run(ticket), now + HANG_GRACE);
    }

    /// What is to be handed on of what a running job says: nothing while it yields. At its last message either it goes
    /// back to the queue, or what was kept back is handed on first.
    pub(super) fn kept_back(
        &mut self,
        now: Instant,
        ticket: Ticket,
        from: InstanceId,
        message: FromRunner,
    ) -> Option<FromRunner> {
        let job = self.jobs.get_mut(&ticket)?;
        let Hold::Yielding(kept) = &mut job.hold else { return Some(message) };
        if !message.is_last() {
            kept.push(message);
            if kept.len() > job.work.replies_max() {
                self.blame(from, "it said more than was asked for".to_owned());
            }
            return None;
        }
        let kept = std::mem::take(kept);
        let yielded = is_cancelled(&message);
        if yielded && !job.cancelled {
            (job.spoke, job.bytes_left) = (false, job.work.reply_bytes_max());
            job.begun_anew += 1;
            self.leave(now, ticket, from);
            return None;
        }
        job.hold = Hold::None;
        kept.into_iter().for_each(|message| drop(job.events.try_send(Event::Reply(message))));
        Some(message)
    }

    /// A job that was asked to has left its slot.
    fn leave(&mut self, now: Instant, ticket: Ticket, from: InstanceId) {
        self.leave_work(now, from, ticket);
        if let Some(instance) = self.instances.get_mut(&from) {
            instance.running.retain(|running| *running != ticket);
        }
        self.wait_again(now, ticket);
        self.rest(now, from);
    }

    /// Whether a job's time is up because it was paused: it goes on, to be told by its runner that its time is up.
    pub(super) fn ends_its_pause(&mut self, now: Instant, ticket: Ticket) -> bool {
        let Some(Job { hold: Hold::Paused, state: State::Running { instance, .. }, .. }) = self.jobs.get(&ticket)
        else {
            return false;
        };
        let instance = *instance;
        self.take_cores(instance);
        self.heard(now, instance);
        self.resume(now, ticket, instance);
        if let Some(job) = self.jobs.get_mut(&ticket) {
            job.overdue = true;
        }
        self.set_timer(ticket, Timer::Run(ticket), now + HANG_GRACE);
        true
    }

    /// The batch that has slots of an instance, the first to come first.
    fn batch_of(&self, id: InstanceId) -> Vec<Ticket> {
        let running = self.instances.get(&id).map_or(&[][..], |instance| &instance.running);
        let is_batch = |ticket: &&Ticket| self.jobs.get(ticket).is_some_and(|job| job.terms.class == Class::Batch);
        running.iter().filter(is_batch).copied().collect()
    }
}

fn is_cancelled(message: &FromRunner) -> bool {
    matches!(message, FromRunner::Finished { finished, .. } if finished.reason == FinishReason::Cancelled)
}
