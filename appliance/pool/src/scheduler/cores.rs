//! The pool's cores: who computes on how many, and on which.
//!
//! ```text
//!  instance   idle: none ──dispatch──▶ its lease ──last answer──▶ none
//!                                       │   ▲ cores are free, nobody waits for one: told to take more
//!                                       └───┘ somebody waits for one: told to take fewer; they are free when it says so
//! ```
//!
//! Invariants: the leases of busy and waking instances never exceed the cores, no runner is told of more than its lease, and
//! the cores of no two leases overlap while they do not exceed them. An idle instance is on as many as it can use, so that who
//! is alone is never moved. Left out: what a wake itself computes (the decoding of a stored image, a cold load), which takes
//! milliseconds and, where it is cold, the threads that the function may have; and which thread is on which core of a lease.

use super::{Effect, Scheduler, Timer};
use appliance_admit::{
    Free,
    cores::{CoreSet, choose, shares},
};
use appliance_types::FunctionName;
use sandbox_wire::{runner::ToRunner, warden::InstanceId};
use std::{collections::VecDeque, time::Instant};

/// An instance's part in the cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    /// What it holds while it is busy.
    pub(super) lease: u32,
    /// Which those are; while it is idle, those that it was on, or all.
    pub(super) on: CoreSet,
    /// What its runner was told last, or was loaded with.
    pub(super) told: u32,
    /// What it was told and has not repeated yet, in that order.
    unheard: VecDeque<u32>,
    /// The most that it can use.
    pub(super) want: u32,
    /// When it must have given back what it was told to.
    pub(super) yields_by: Option<Instant>,
}

impl Cores {
    /// Those of an instance that is being woken, anywhere among `cores`.
    pub(super) fn new(lease: u32, want: u32, cores: u32) -> Self {
        Self { lease, on: (0..cores).collect(), told: want, unheard: VecDeque::new(), want, yields_by: None }
    }
}

impl Scheduler {
    /// What nobody holds, and what busy instances hold beyond one core each.
    pub(super) fn free(&self, bytes: u64) -> Free {
        let busy = || self.instances.values().filter(|i| self.computes(i));
        let waking: u32 = self.wakes.values().map(|w| w.cores.lease).sum();
        let leased: u32 = busy().map(|i| i.cores.lease).sum();
        let surplus = busy().map(|i| i.cores.lease.saturating_sub(1)).sum();
        Free { cores: self.cores.saturating_sub(waking + leased), surplus, bytes }
    }

    /// The lease of an instance that begins now, when a core is free: its share beside those that hold or wait for one.
    pub(super) fn lease(&self, name: &FunctionName, want: u32) -> u32 {
        let waits = |(other, f): &(&FunctionName, &super::Function)| *other != name && !f.waiting.is_empty();
        let others = self.functions.iter().filter(waits).filter(|(other, _)| !self.is_computing(other)).count() as u32;
        want.min(self.free(0).cores.saturating_sub(others)).max(1)
    }

    fn is_computing(&self, name: &FunctionName) -> bool {
        self.instances.values().any(|i| i.function == *name && self.computes(i))
            || self.wakes.values().any(|w| w.function == *name)
    }

    /// An instance begins to compute, or goes on: it takes its lease, and its runner hears of it first.
    pub(super) fn take_cores(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id).filter(|i| !self.computes(i)) else { return };
        let lease = self.lease(&instance.function.clone(), instance.cores.want);
        self.lend(id, lease);
        self.tell(id, lease);
    }

    /// Makes an instance's lease one of so many cores, and has it kept on them.
    fn lend(&mut self, id: InstanceId, lease: u32) {
        let Some(instance) = self.instances.get(&id) else { return };
        let others = self.instances.iter().filter(|(other, i)| **other != id && self.computes(i));
        let others: Vec<_> = others.map(|(_, i)| &i.cores.on).collect();
        let on = choose(lease, self.cores, &instance.cores.on, &others);
        let cores = &mut self.instances.get_mut(&id).expect("looked up above").cores;
        cores.lease = lease;
        if cores.on != on {
            cores.on.clone_from(&on);
            self.effects.push(Effect::Cores { instance: id, cores: on });
        }
    }

    /// Instances at rest are let onto all cores where they are on fewer than they can use, so that they are there when they
    /// begin: a runner hears of more threads sooner than the warden moves them.
    fn widen(&mut self) {
        let all: CoreSet = (0..self.cores).collect();
        let is_narrow = |i: &super::Instance| !self.computes(i) && (i.cores.on.len() as u32) < i.cores.want;
        let narrow: Vec<_> = self.instances.iter().filter(|(_, i)| is_narrow(i)).map(|(id, _)| *id).collect();
        for id in narrow {
            self.instances.get_mut(&id).expect("looked up above").cores.on.clone_from(&all);
            self.effects.push(Effect::Cores { instance: id, cores: all.clone() });
        }
    }

    fn tell(&mut self, id: InstanceId, count: u32) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if std::mem::replace(&mut instance.cores.told, count) != count {
            instance.cores.unheard.push_back(count);
            self.effects.push(Effect::Send { instance: id, message: ToRunner::Threads { count } });
        }
    }

    /// Has busy instances give cores back to one more.
    pub(super) fn share_cores(&mut self, now: Instant, newcomer: u32) {
        for (id, share) in self.fair(Some(newcomer)) {
            let cores = &self.instances[&id].cores;
            if share < cores.lease && cores.yields_by.is_none() {
                let due = now + super::HANG_GRACE;
                self.tell(id, share);
                self.instances.get_mut(&id).expect("it holds cores").cores.yields_by = Some(due);
                self.timers.insert((due, Timer::Yield(id)));
            }
        }
    }

    /// Gives what is free to those that can use it.
    pub(super) fn spread_cores(&mut self) {
        self.widen();
        let wants = |i: &super::Instance| self.computes(i) && i.cores.lease < i.cores.want;
        if self.free(0).cores == 0 || !self.instances.values().any(wants) {
            return;
        }
        for (id, share) in self.fair(None) {
            let (cores, free) = (&self.instances[&id].cores, self.free(0).cores);
            if cores.yields_by.is_none() && share > cores.lease && free > 0 {
                let lease = share.min(cores.lease + free);
                self.lend(id, lease);
                self.tell(id, lease);
            }
        }
    }

    /// The fair shares of busy instances, with one more where one is to come.
    fn fair(&self, newcomer: Option<u32>) -> Vec<(InstanceId, u32)> {
        let busy: Vec<_> = self.instances.iter().filter(|(_, i)| self.computes(i)).collect();
        let waking: u32 = self.wakes.values().map(|w| w.cores.lease).sum();
        let wants: Vec<_> = newcomer.into_iter().chain(busy.iter().map(|(_, i)| i.cores.want)).collect();
        let shares = shares(self.cores.saturating_sub(waking), &wants).split_off(newcomer.iter().len());
        // One that is busy keeps a core, also where others came past the number of cores meanwhile.
        busy.iter().zip(shares).map(|((id, _), share)| (**id, share.max(1))).collect()
    }

    /// A runner computes on so many threads from now on; `false` where that is not what it was told next.
    pub(super) fn threads(&mut self, id: InstanceId, count: u32) -> bool {
        let Some(instance) = self.instances.get_mut(&id) else { return true };
        if instance.cores.unheard.pop_front() != Some(count) {
            return false;
        }
        if instance.cores.unheard.is_empty()
            && let Some(due) = instance.cores.yields_by.take()
        {
            let lease = instance.cores.lease.min(count);
            self.timers.remove(&(due, Timer::Yield(id)));
            // One that has come to rest meanwhile holds none.
            if self.instances.get(&id).is_some_and(|instance| self.computes(instance)) {
                self.lend(id, lease);
            }
        }
        true
    }

    /// Forgets what an instance was to give back.
    pub(super) fn drop_cores(&mut self, id: InstanceId) {
        if let Some(due) = self.instances.get_mut(&id).and_then(|i| i.cores.yields_by.take()) {
            self.timers.remove(&(due, Timer::Yield(id)));
        }
    }
}

#[cfg(test)]
mod tests;
