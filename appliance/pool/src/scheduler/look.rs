//! What there is, for lists and for who counts; and what was counted of wakes. Looking changes nothing: no timer, no tier.

use super::{Class, Function, Instance, InstanceId, Scheduler};
use crate::job::{HeldView, InstanceView, QueueView, View, WakeView, WakesView};
use appliance_types::{FunctionName, Tier};
use sandbox_wire::warden::Awake;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// Most wakes that are told one by one.
pub(super) const WAKES_TOLD_MAX: usize = 64;

/// What was counted since the pool began.
#[derive(Debug, Default)]
pub(super) struct Tally {
    wakes: BTreeMap<Tier, WakesView>,
    /// The latest, the last one first, and when each ended.
    latest: VecDeque<(Instant, WakeView)>,
    wakes_failed: u64,
}

impl Tally {
    /// A wake of `function` took so long, as the warden and this side saw it.
    pub(super) fn woke(&mut self, now: Instant, function: &FunctionName, awake: &Awake, took: Duration) {
        let handover_us = (took.as_micros() as u64).saturating_sub(awake.wake_us);
        let wakes = self.wakes.entry(awake.tier).or_default();
        wakes.count += 1;
        wakes.find_us += awake.parts.find_us;
        wakes.process_us += awake.parts.process_us;
        wakes.ready_us += awake.parts.ready_us;
        wakes.handover_us += handover_us;
        let (function, ago) = (function.clone(), Duration::ZERO);
        self.latest.truncate(WAKES_TOLD_MAX - 1);
        self.latest.push_front((now, WakeView { function, tier: awake.tier, ago, parts: awake.parts, handover_us }));
    }

    pub(super) fn latest(&self, now: Instant) -> Vec<WakeView> {
        let ago = |at| now.saturating_duration_since(at);
        self.latest.iter().map(|(at, wake)| WakeView { ago: ago(*at), ..wake.clone() }).collect()
    }

    /// A wake gave no instance.
    pub(super) fn failed(&mut self) {
        self.wakes_failed += 1;
    }
}

impl Scheduler {
    pub(super) fn list(&self, now: Instant) -> View {
        let up = |(id, i): (&InstanceId, &Instance)| InstanceView {
            instance: *id,
            function: i.function.clone(),
            memory_bytes: i.memory_bytes,
            threads: i.cores.told,
            slots: i.slots,
            slots_busy: i.slots.min(i.running.len() as u32),
            idle_stop_in: i.idle_stop.map(|due| due.saturating_duration_since(now)),
            wake_p50_ms: self.functions.get(&i.function).and_then(Function::wake_p50_ms),
            model: Arc::clone(&i.model),
        };
        let held = |(name, function): (&FunctionName, &Function)| {
            let store_in = function.held_until?.saturating_duration_since(now);
            Some(HeldView { function: name.clone(), store_in, wake_p50_ms: function.wake_p50_ms() })
        };
        let memory = self.memory();
        View {
            instances: self.instances.iter().filter(|(_, i)| !i.ending).map(up).collect(),
            held: self.functions.iter().filter_map(held).collect(),
            failing: self.failing(now),
            system: self.books.all(),
            queues: self.queues(),
            waking: self.wakes.len(),
            cores: [self.cores, self.cores - self.free(0).cores],
            memory: [memory.total, memory.usable, memory.held],
            memory_idle: self.idle_bytes(),
            wakes: self.tally.wakes.clone(),
            wakes_latest: self.tally.latest(now),
            wakes_failed: self.tally.wakes_failed,
        }
    }

    fn queues(&self) -> Vec<QueueView> {
        let waiting = self.functions.iter().filter(|(_, function)| !function.waiting.is_empty());
        let view = |(name, function): (&FunctionName, &Function)| QueueView {
            function: name.clone(),
            interactive: function.waiting.count(Class::Interactive),
            batch: function.waiting.count(Class::Batch),
        };
        waiting.map(view).collect()
    }
}
