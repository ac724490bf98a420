//! Functions that fail again and again, and instances that say nothing.
//!
//! ```text
//!  works ──a wake failed, an instance crashed──▶ tried again at once ──again──▶ backs off 1 s, 2 s, 4 s … 60 s
//!    ▲                                                                             │ refuses, says why and until when
//!    └── an answer · deployed anew ◀── tried once more ◀── time is up, `ember wake` ┘
//! ```
//!
//! An instance at work says something at least once a second, be it only that it is alive; one that computes text and is
//! silent for [`SILENCE_MAX`] hangs. Left out: embeddings, which are one long step, and have their request's time limit.

use super::{Instance, Scheduler, Timer};
use crate::job::{Failed, FailingView, Work};
use appliance_types::FunctionName;
use sandbox_wire::warden::InstanceId;
use std::time::{Duration, Instant};

/// Longest step of a runner: one decode of a few dozen tokens.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);
/// First pause, after a second failure in a row; each further one doubles it.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Signs of life that a runner may give beyond one a second.
const ALIVE_SPARE: u64 = 16;

/// How a function fares.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// In a row.
    failures: u32,
    /// Nothing is woken before that.
    until: Option<Instant>,
    /// What happened last.
    reason: String,
}

/// What an instance was heard of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    last: Instant,
    alive: u64,
    /// When that is looked at.
    due: Option<Instant>,
}

impl Health {
    pub(super) fn backs_off(&self) -> bool {
        self.until.is_some()
    }
}

impl Heard {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, alive: 0, due: None }
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doubled) => PAUSE.saturating_mul(1 << doubled.min(16)).min(PAUSE_MAX),
    }
}

impl Scheduler {
    /// A wake of a function failed, or an instance of it crashed.
    pub(super) fn ails(&mut self, now: Instant, name: &FunctionName, reason: String) {
        let Some(function) = self.functions.get_mut(name) else { return };
        let health = &mut function.health;
        health.failures = health.failures.saturating_add(1);
        health.reason = reason;
        let pause = pause(health.failures);
        if pause.is_zero() {
            return;
        }
        let (failures, reason) = (health.failures, &health.reason);
        tracing::warn!(function = %name, failures, ?pause, reason, "it fails again and again");
        self.wake_not_before(name, now + pause);
        self.turn_away(now, name);
    }

    /// Another instance of a function is not to be had for now, by no fault of its own.
    pub(super) fn rests(&mut self, now: Instant, name: &FunctionName, reason: String) {
        if let Some(function) = self.functions.get_mut(name) {
            function.health.reason = reason;
            self.wake_not_before(name, now + PAUSE);
        }
    }

    fn wake_not_before(&mut self, name: &FunctionName, until: Instant) {
        let Some(function) = self.functions.get_mut(name) else { return };
        if let Some(before) = function.health.until.replace(until) {
            self.timers.remove(&(before, Timer::Again(name.clone())));
        }
        self.timers.insert((until, Timer::Again(name.clone())));
    }

    /// An answer of a function came.
    pub(super) fn works(&mut self, name: &FunctionName) {
        if let Some(function) = self.functions.get_mut(name)
            && (function.health.failures > 0 || function.health.backs_off())
        {
            self.try_again(name);
            self.functions.get_mut(name).expect("looked up above").health = Health::default();
        }
    }

    /// The pause is over, or somebody does not want to wait for that.
    pub(super) fn try_again(&mut self, name: &FunctionName) {
        let until = self.functions.get_mut(name).and_then(|function| function.health.until.take());
        if let Some(until) = until {
            self.timers.remove(&(until, Timer::Again(name.clone())));
        }
    }

    /// Why a request need not wait: its function is not woken for now, and no instance is up.
    pub(super) fn is_failing(&self, now: Instant, name: &FunctionName) -> Option<Failed> {
        let Health { failures, until, reason } = &self.functions.get(name)?.health;
        let left = (*until)?.saturating_duration_since(now);
        let retry_after_s = (left.as_secs_f64().ceil() as u64).max(1);
        let failed = Failed::Failing { failures: *failures, reason: reason.clone(), retry_after_s };
        (!self.is_up(name)).then_some(failed)
    }

    fn turn_away(&mut self, now: Instant, name: &FunctionName) {
        let Some(failed) = self.is_failing(now, name) else { return };
        for ticket in self.functions[name].waiting.iter().collect::<Vec<_>>() {
            self.fail(ticket, failed.clone());
        }
    }

    /// Functions that are not woken for now.
    pub(super) fn failing(&self, now: Instant) -> Vec<FailingView> {
        let view = |(name, function): (&FunctionName, &super::Function)| {
            let Health { failures, until, reason } = &function.health;
            let retry_in = (*until)?.saturating_duration_since(now);
            Some(FailingView { function: name.clone(), failures: *failures, reason: reason.clone(), retry_in })
        };
        self.functions.iter().filter_map(view).collect()
    }

    /// A runner said something.
    pub(super) fn heard(&mut self, now: Instant, id: InstanceId) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.heard.last = now;
        }
    }

    /// A runner says no more than that it is alive; `false` when it does so too often.
    pub(super) fn is_alive(&mut self, now: Instant, id: InstanceId) -> bool {
        let Some(instance) = self.instances.get_mut(&id) else { return true };
        instance.heard.alive += 1;
        instance.heard.alive <= now.saturating_duration_since(instance.up_since).as_secs() + ALIVE_SPARE
    }

    /// From now on an instance must be heard of.
    pub(super) fn listen(&mut self, now: Instant, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id).filter(|i| i.heard.due.is_none()) else { return };
        let due = now + SILENCE_MAX;
        (instance.heard.last, instance.heard.due) = (now, Some(due));
        self.timers.insert((due, Timer::Silent(id)));
    }

    /// Looks whether an instance was heard of.
    pub(super) fn silent(&mut self, now: Instant, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.heard.due = None;
        if instance.running.is_empty() {
            return;
        }
        let heard = instance.heard.last;
        let instance = &self.instances[&id];
        if !self.makes_text(instance) {
            return self.listen(now, id);
        }
        let due = heard + SILENCE_MAX;
        if due <= now {
            return self.blame(id, format!("it was silent for {} s while it had work", SILENCE_MAX.as_secs()));
        }
        self.instances.get_mut(&id).expect("looked up above").heard.due = Some(due);
        self.timers.insert((due, Timer::Silent(id)));
    }

    /// Forgets that an instance is listened to.
    pub(super) fn deafen(&mut self, id: InstanceId) {
        if let Some(due) = self.instances.get_mut(&id).and_then(|instance| instance.heard.due.take()) {
            self.timers.remove(&(due, Timer::Silent(id)));
        }
    }

    /// Whether what an instance computes is text.
    fn makes_text(&self, instance: &Instance) -> bool {
        let is_text = |ticket| self.jobs.get(ticket).is_some_and(|job| matches!(job.work, Work::Generate(_)));
        self.computes(instance) && instance.running.iter().all(is_text)
    }
}
