//! How running batch makes room for interactive requests: what [`appliance_admit::preempt`] decides, done.
//!
//! ```text
//!  None ──Pause──▶ Paused ──Resume──▶ None          its instance's cores are free, and its slot is whoever's needs it
//! ```
//!
//! Invariant: an answer goes on where it was. Left out: who is billed for what is fed twice; the answer itself pays.

use super::{HANG_GRACE, Instance, InstanceId, Job, Scheduler, State, Ticket, Timer, ToRunner};
use crate::scheduler::Effect;
use appliance_admit::{
    self as admit, Class, Free, Step,
    preempt::{Preemption, next_preemption},
};
use std::time::Instant;

/// Whether a running job runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hold {
    /// It does.
    #[default]
    None,
    /// It computes nothing.
    Paused,
}

/// Whether a step serves an interactive request.
pub(super) fn is_urgent(views: &[admit::Function], step: Step) -> bool {
    match step {
        Step::Dispatch { function, .. } | Step::Wake { function } => views[function].class == Class::Interactive,
        Step::MakeRoom { .. } | Step::Share { .. } => false,
    }
}

impl Scheduler {
    /// Does one thing for interactive requests that wait, or for batch when none does; whether there was one.
    pub(super) fn preempt(&mut self, now: Instant, free: Free) -> bool {
        let names: Vec<_> = self.functions.keys().cloned().collect();
        let views: Vec<_> = names.iter().map(|name| self.view(name, &self.functions[name])).collect();
        let Some(preemption) = next_preemption(&views, free) else { return false };
        let (Preemption::Pause { function, instance } | Preemption::Resume { function, instance }) = preemption;
        let id = self.ready(&names[function]).nth(instance).map(|(id, _)| *id).expect("as in the view");
        match preemption {
            Preemption::Pause { .. } => self.pause(now, id),
            Preemption::Resume { .. } => self.resume_all(now, id),
        }
        true
    }

    pub(super) fn instance_view(&self, instance: &Instance, found: usize) -> admit::Instance {
        let count = |is: &dyn Fn(&Job) -> bool| {
            instance.running.iter().filter_map(|ticket| self.jobs.get(ticket)).filter(|job| is(job)).count() as u32
        };
        let busy = instance.running.len() as u32;
        // One whose time is up is to go on, whatever it is.
        let (slots, is_batch) = (instance.slots, |job: &Job| job.terms.class == Class::Batch && !job.overdue);
        if self.batch == 0 {
            return admit::Instance { slots, busy, batch: 0, paused: 0, found };
        }
        let (batch, paused) = (count(&is_batch), count(&|job| job.hold == Hold::Paused));
        admit::Instance { slots, busy, batch, paused, found }
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
