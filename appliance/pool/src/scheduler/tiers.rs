//! A function up and down its tiers: woken, at rest, held in memory, stored.
//!
//! Invariant: a function with an instance, or a wake, is not held; one without either is held or stored.

use super::{Begun, Effect, Failed, FunctionName, Heard, Instance, Scheduler, Seen, Timer, Wake, WakeId};
use sandbox_wire::warden::{Awake, InstanceId, WardenError};
use std::{sync::Arc, time::Instant};

/// Wakes remembered for the median.
const WAKES_KEPT: usize = 32;

impl Scheduler {
    pub(super) fn woken(&mut self, now: Instant, wake: WakeId, result: Result<Awake, WardenError>) {
        let Some(wake) = self.wakes.remove(&wake) else { return };
        match result {
            Ok(awake) => self.add(now, wake, awake),
            Err(error) => {
                self.tally.failed();
                tracing::warn!(function = %wake.function, %error, "wake failed");
                if let WardenError::DiedLoading { cause } = &error {
                    self.outgrew(&wake.function, wake.generation, wake.memory_bytes, cause);
                }
                self.hold(now, &wake.function);
                // Of an earlier form: says nothing of this one.
                if self.functions.get(&wake.function).is_none_or(|f| f.generation != wake.generation) {
                    return;
                }
                if !self.is_present(&wake.function) {
                    for ticket in self.functions[&wake.function].waiting.iter().collect::<Vec<_>>() {
                        self.fail(ticket, Failed::WakeFailed(error.clone()));
                    }
                }
                // That the box is full is no fault of the function's.
                match error {
                    WardenError::InstancesMax { .. } => self.rests(now, &wake.function, error.to_string()),
                    error => self.ails(now, &wake.function, error.to_string()),
                }
            }
        }
    }

    pub(super) fn add(&mut self, now: Instant, wake: Wake, awake: Awake) {
        let woke_in = now - wake.began;
        self.tally.woke(now, &wake.function, &awake, woke_in);
        let slots =
            self.functions.get(&wake.function).map_or(1, |f| awake.model.slots.clamp(1, f.config.spec.slots.max(1)));
        if let Some(function) = self.functions.get_mut(&wake.function) {
            function.slots = slots;
            function.image.hold(Some(awake.image_bytes));
            function.worth.woke(awake.tier, woke_in);
            function.wakes_ms.truncate(WAKES_KEPT - 1);
            function.wakes_ms.push_front(woke_in.as_millis() as u64);
            function.past.woke(woke_in);
        }
        let account = self.open_account(now, &wake, &awake);
        let instance = Instance {
            function: wake.function,
            generation: wake.generation,
            cores: wake.cores,
            slots,
            memory_bytes: wake.memory_bytes,
            weights: wake.weights,
            model: Arc::new(awake.model),
            woken_from: awake.tier,
            up_since: now,
            heard: Heard::new(now),
            woke_in,
            running: Vec::new(),
            begun: Begun::default(),
            seen: Seen::default(),
            idle_stop: None,
            ending: false,
            dies_by: None,
            blame: None,
            account,
        };
        self.instances.insert(awake.instance, instance);
        self.rest(now, awake.instance);
    }

    pub(super) fn clear_idle(&mut self, id: InstanceId) {
        if let Some(due) = self.instances.get_mut(&id).and_then(|i| i.idle_stop.take()) {
            self.timers.remove(&(due, Timer::Idle(id)));
        }
    }

    /// An instance has nothing to do: it stops now when it is of yesterday, later when nobody calls.
    pub(super) fn rest(&mut self, now: Instant, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        if !instance.running.is_empty() || instance.ending {
            return;
        }
        if !self.takes_work(instance) {
            return self.stop(id);
        }
        let name = instance.function.clone();
        self.deafen(id);
        let due = now + self.holding(&name).running;
        self.clear_idle(id);
        self.instances.get_mut(&id).expect("looked up above").idle_stop = Some(due);
        self.timers.insert((due, Timer::Idle(id)));
    }

    pub(super) fn idle(&mut self, now: Instant, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.idle_stop = None;
        let name = instance.function.clone();
        let up = self.instances.values().filter(|i| i.function == name && self.takes_work(i)).count();
        let kept = self.functions.get(&name).map_or(0, |f| self.instances_kept(now, f));
        if up > kept {
            self.stop(id);
        }
    }

    /// No instance of the function is left: for its time of `park` from now on, it is held for the next call.
    pub(super) fn hold(&mut self, now: Instant, name: &FunctionName) {
        self.unhold(name);
        if self.is_present(name) {
            return;
        }
        let due = now + self.parking(now, name);
        let Some(function) = self.functions.get_mut(name) else { return };
        function.held_until = Some(due);
        self.timers.insert((due, Timer::Park(name.clone())));
    }

    /// The warden holds a function in memory, though no instance of it was there.
    pub(super) fn hold_image(&mut self, now: Instant, name: &FunctionName, bytes: u64) {
        if let Some(function) = self.functions.get_mut(name) {
            function.image.hold(Some(bytes));
        }
        self.hold(now, name);
    }

    pub(super) fn unhold(&mut self, name: &FunctionName) {
        if let Some(due) = self.functions.get_mut(name).and_then(|f| f.held_until.take()) {
            self.timers.remove(&(due, Timer::Park(name.clone())));
        }
    }

    /// Nobody called for so long that the function's memory is better used for others.
    pub(super) fn store(&mut self, name: FunctionName) {
        self.storing(&name);
        self.effects.push(Effect::Store(name));
    }

    pub(super) fn storing(&mut self, name: &FunctionName) {
        self.unhold(name);
        if let Some(function) = self.functions.get_mut(name) {
            function.image.storing();
        }
    }

    pub(super) fn stored(&mut self, name: &FunctionName) {
        if self.functions.get_mut(name).is_some_and(|function| function.image.stored()) {
            self.unhold(name);
        }
    }

    /// Whether the function has an instance, or will have one.
    pub(super) fn is_present(&self, name: &FunctionName) -> bool {
        self.instances.values().any(|i| i.function == *name) || self.wakes.values().any(|w| w.function == *name)
    }
}
