//! The pool's memory: what is held for whom, what a wake takes, and what gives way to it.
//!
//! ```text
//!  image of a function   none ──wake, hold──▶ held ──park, evicted──▶ storing ──Stored──▶ none
//!                                              ▲                        │ a wake
//!                                              └────────────────────────┘
//! ```
//!
//! Sums are made of the state each time, so that they cannot drift from it; that is done only while something waits.
//! Invariants: an instance is counted from its wake to its end, an image until the warden has said that it is stored, a
//! model once while any instance of it is; kept instances (`min`) and those that are asked for do not give way.

use super::{Function, Instance, Scheduler};
use crate::job::Failed;
use appliance_admit::memory::{Idle, Memory, Room, credit};
use appliance_types::{FunctionName, ModelDigest, Tier};
use sandbox_wire::warden::{ExitCause, InstanceId, RunnerSpec};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// Time of a wake from memory, and from disk, until one was measured.
const WAKE_PARKED: Duration = Duration::from_millis(5);
const WAKE_STORED: Duration = Duration::from_millis(50);
/// How long a word of the kernel's that memory is short counts.
const PRESSURE_LASTS: Duration = Duration::from_secs(10);
/// Most of the memory that is taken back while memory is short, %.
const PRESSURE_MAX: u64 = 50;

/// A hold's number.
pub(crate) type HoldId = u64;

/// What is known of memory, apart from instances and functions.
#[derive(Debug)]
pub(crate) struct Ledger {
    total: u64,
    /// What the kernel said last of how short memory is, in % of time lost, and until when that counts.
    pressure: Option<(u64, Instant)>,
    /// The worth of the last that gave way.
    bar: f64,
    models: HashMap<ModelDigest, u64>,
    holds: BTreeMap<HoldId, Hold>,
}

/// Memory that something other than a wake of the pool's takes.
#[derive(Debug)]
struct Hold {
    bytes: u64,
    model: ModelDigest,
    /// Who waits for it; `None` once it is granted.
    waits: Option<Waits>,
}

#[derive(Debug)]
struct Waits {
    since: Instant,
    due: Instant,
    reply: flume::Sender<Result<(), Failed>>,
}

/// What is known of a function's parked memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    bytes: Option<u64>,
    state: ImageState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ImageState {
    #[default]
    None,
    Held,
    Storing,
}

/// What a function is worth keeping for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Worth {
    calls: u64,
    bar: f64,
    parked_us: Option<u64>,
    stored_us: Option<u64>,
}

/// What can give way.
#[derive(Clone, Debug)]
enum Victim {
    Instance(InstanceId),
    /// With the idle instances that share it.
    Image(FunctionName, Vec<InstanceId>),
}

impl Ledger {
    pub(crate) fn new(total: u64) -> Self {
        Self { total, pressure: None, bar: 0.0, models: HashMap::new(), holds: BTreeMap::new() }
    }

    /// Learns the length of a model's file.
    pub(crate) fn learn(&mut self, model: ModelDigest, bytes: u64) {
        self.models.insert(model, bytes);
    }

    /// When [`Scheduler::memory_tick`] wants to be called.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let holds = self.holds.values().filter_map(|hold| Some(hold.waits.as_ref()?.due));
        holds.chain(self.pressure.map(|(_, until)| until)).min()
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.holds.values().any(|hold| hold.waits.is_some())
    }

    fn usable(&self) -> u64 {
        let lost = self.pressure.map_or(0, |(percent, _)| percent.min(PRESSURE_MAX));
        self.total - (u128::from(self.total) * u128::from(lost) / 100) as u64
    }
}

impl Image {
    /// It is in memory, or will be; but nothing is where it takes no bytes. `bytes`, where that is known.
    pub(crate) fn hold(&mut self, bytes: Option<u64>) {
        let state = if bytes == Some(0) { ImageState::None } else { ImageState::Held };
        *self = Self { bytes: bytes.filter(|bytes| *bytes > 0).or(self.bytes), state };
    }

    pub(crate) fn storing(&mut self) {
        if self.state == ImageState::Held {
            self.state = ImageState::Storing;
        }
    }

    /// Whether it is gone, now that the warden has stored it: not if it was wanted again meanwhile.
    pub(crate) fn stored(&mut self) -> bool {
        let gone = self.state == ImageState::Storing;
        if gone {
            self.state = ImageState::None;
        }
        gone
    }

    /// Its length, where that is known.
    pub(super) fn known(self) -> Option<u64> {
        self.bytes
    }

    /// Its length; until that is known, half of what the instance that it is a copy of may use.
    fn length(self, lease: u64) -> u64 {
        self.bytes.unwrap_or(lease / 2)
    }

    fn held(self, lease: u64) -> u64 {
        if self.state == ImageState::None { 0 } else { self.length(lease) }
    }
}

impl Worth {
    /// Somebody calls, and the function is worth more than all that gave way so far.
    fn call(&mut self, bar: f64) {
        self.calls += 1;
        self.bar = bar;
    }

    /// Learns how long a wake from a tier takes.
    pub(crate) fn woke(&mut self, tier: Tier, took: Duration) {
        let took = took.as_micros() as u64;
        let mean = match tier {
            Tier::Parked => &mut self.parked_us,
            Tier::Stored => &mut self.stored_us,
            Tier::Running | Tier::Cold => return,
        };
        *mean = Some(mean.map_or(took, |mean| (mean * 7 + took) / 8));
    }

    /// Times of a wake from memory and from disk.
    pub(super) fn wakes(self) -> (Duration, Duration) {
        let parked = Duration::from_micros(self.parked_us());
        (parked, parked + Duration::from_micros(self.stored_us()))
    }

    fn parked_us(self) -> u64 {
        self.parked_us.unwrap_or(WAKE_PARKED.as_micros() as u64)
    }

    /// How much longer a wake from disk takes than one from memory.
    fn stored_us(self) -> u64 {
        self.stored_us.unwrap_or(WAKE_STORED.as_micros() as u64).saturating_sub(self.parked_us())
    }
}

impl Scheduler {
    pub(super) fn called(&mut self, name: &FunctionName) {
        let bar = self.ledger.bar;
        if let Some(function) = self.functions.get_mut(name) {
            function.worth.call(bar);
        }
    }

    /// What another instance of a function takes: its lease, and what of its model and its image is not held already.
    pub(super) fn wake_bytes(&self, function: &Function) -> u64 {
        let (RunnerSpec { model, .. }, image) = (&function.config.spec, function.image);
        let lease = function.config.spec.lease_bytes();
        lease + image.length(lease).saturating_sub(image.held(lease)) + self.more_for(*model)
    }

    pub(super) fn memory(&self) -> Memory {
        let instances: u64 = self.instances.values().map(|i| i.memory_bytes).sum();
        let ending: u64 = self.instances.values().filter(|i| i.ending).map(|i| i.memory_bytes).sum();
        let wakes: u64 = self.wakes.values().map(|w| w.memory_bytes).sum();
        let granted: u64 = self.granted().map(|hold| hold.bytes).sum();
        let models: u64 = self.models().iter().map(|model| self.length(model)).sum();
        let image = |f: &Function| f.image.held(f.config.spec.lease_bytes());
        let images: u64 = self.functions.values().map(image).sum();
        let storing = |f: &&Function| f.image.state == ImageState::Storing;
        let storing: u64 = self.functions.values().filter(storing).map(image).sum();
        Memory {
            total: self.ledger.total,
            usable: self.ledger.usable(),
            held: instances + wakes + granted + models + images,
            leaving: ending + storing,
        }
    }

    fn granted(&self) -> impl Iterator<Item = &Hold> {
        self.ledger.holds.values().filter(|hold| hold.waits.is_none())
    }

    fn models(&self) -> BTreeSet<ModelDigest> {
        let used = self.instances.values().map(|i| i.weights).chain(self.wakes.values().map(|w| w.weights));
        used.chain(self.granted().map(|hold| hold.model)).collect()
    }

    pub(super) fn length(&self, model: &ModelDigest) -> u64 {
        self.ledger.models.get(model).copied().unwrap_or_default()
    }

    /// What a model takes beside those that are held.
    fn more_for(&self, model: ModelDigest) -> u64 {
        if self.models().contains(&model) { 0 } else { self.length(&model) }
    }

    /// Has something give way to another instance of a function; whether there was anything to do.
    pub(super) fn make_room(&mut self, name: &FunctionName) -> bool {
        let Some(function) = self.functions.get(name) else { return false };
        let (need, total) = (self.wake_bytes(function), self.ledger.total);
        if self.evict(need, Some(name)) {
            return false;
        }
        for ticket in self.functions[name].waiting.iter().collect::<Vec<_>>() {
            self.fail(ticket, Failed::TooLarge { need_bytes: need, total_bytes: total });
        }
        true
    }

    /// Has something give way to `need` bytes, unless there is room or will be; `false` when there never will be.
    fn evict(&mut self, need: u64, wanted_by: Option<&FunctionName>) -> bool {
        let victims = self.victims(wanted_by);
        let idle: Vec<_> = victims.iter().map(|(_, idle)| *idle).collect();
        match self.memory().room(need, &idle) {
            Room::Never => return false,
            Room::Fits | Room::Wait => {}
            Room::Evict(chosen) => self.give_way(need, &victims, &chosen),
        }
        true
    }

    fn give_way(&mut self, need: u64, victims: &[(Victim, Idle)], chosen: &[usize]) {
        for index in chosen {
            let (victim, Idle { credit, bytes }) = &victims[*index];
            self.ledger.bar = self.ledger.bar.max(*credit);
            tracing::info!(?victim, bytes, need, "gives way");
            self.end(victim.clone());
        }
    }

    fn end(&mut self, victim: Victim) {
        match victim {
            Victim::Instance(id) => self.stop(id),
            Victim::Image(name, instances) => {
                instances.into_iter().for_each(|id| self.stop(id));
                if let Some(function) = self.functions.get_mut(&name) {
                    function.worth.calls = 0;
                }
                self.store(name);
            }
        }
    }

    /// What all that is idle holds.
    pub(super) fn idle_bytes(&self) -> u64 {
        self.victims(None).iter().map(|(_, idle)| idle.bytes).sum()
    }

    /// All that is idle, with what it is worth.
    fn victims(&self, wanted_by: Option<&FunctionName>) -> Vec<(Victim, Idle)> {
        let mut victims = Vec::new();
        for (name, function) in &self.functions {
            // An idle instance that is asked for is about to be busy; without one, an image is no help to who is older.
            if Some(name) != wanted_by && (function.waiting.is_empty() || !self.is_present(name)) {
                self.victims_of(name, function, &mut victims);
            }
        }
        for model in self.models() {
            self.free_model(model, &mut victims);
        }
        victims
    }

    /// Where all that use a model can give way, the one of most worth takes the model along.
    fn free_model(&self, model: ModelDigest, victims: &mut [(Victim, Idle)]) {
        let is_used = |i: &&Instance| i.weights == model && !i.ending;
        let users = self.instances.values().filter(is_used).count();
        let others = self.wakes.values().any(|w| w.weights == model) || self.granted().any(|hold| hold.model == model);
        let of_it = |victim: &Victim| match victim {
            Victim::Instance(id) => self.instances.get(id).is_some_and(|i| i.weights == model),
            Victim::Image(..) => false,
        };
        let mut idle: Vec<&mut Idle> =
            victims.iter_mut().filter(|(victim, _)| of_it(victim)).map(|(_, idle)| idle).collect();
        if others || idle.len() < users {
            return;
        }
        idle.sort_by(|a, b| a.credit.total_cmp(&b.credit));
        if let Some(last) = idle.last_mut() {
            last.bytes += self.length(&model);
        }
    }

    fn victims_of(&self, name: &FunctionName, function: &Function, victims: &mut Vec<(Victim, Idle)>) {
        let all: Vec<(&InstanceId, &Instance)> = self.instances.iter().filter(|(_, i)| i.function == *name).collect();
        let up = all.iter().filter(|(_, i)| !i.ending);
        let idle: Vec<_> = up.clone().filter(|(_, i)| i.running.is_empty()).collect();
        let spare = up.count().saturating_sub(function.kept());
        let worth = function.worth;
        let mut most = 0.0_f64;
        for (id, instance) in idle.iter().take(spare) {
            let credit = credit(worth.bar, worth.calls, worth.parked_us(), instance.memory_bytes);
            most = most.max(credit);
            victims.push((Victim::Instance(**id), Idle { bytes: instance.memory_bytes, credit }));
        }
        let shared = all.iter().any(|(_, i)| !i.running.is_empty()) || self.wakes.values().any(|w| w.function == *name);
        let kept = function.kept() > 0 || idle.len() > spare;
        if function.image.state == ImageState::Held && !shared && !kept {
            let bytes = function.image.held(function.config.spec.lease_bytes());
            // Never before its instances, which would keep it.
            let credit = credit(worth.bar, worth.calls, worth.stored_us(), bytes).max(most);
            let instances = idle.iter().map(|(id, _)| **id).collect();
            victims.push((Victim::Image(name.clone(), instances), Idle { bytes, credit }));
        }
    }

    /// Somebody else than a wake of ours wants memory.
    pub(super) fn reserve(
        &mut self,
        now: Instant,
        id: HoldId,
        spec: &RunnerSpec,
        model_bytes: u64,
        reply: flume::Sender<Result<(), Failed>>,
    ) {
        self.ledger.learn(spec.model, model_bytes);
        // An instance, of which nothing is measured yet, and the copy that is made of it.
        let lease = spec.memory_bytes;
        let image = self.functions.get(&spec.function).map(|f| f.image).unwrap_or_default();
        let bytes = lease + image.length(lease).saturating_sub(image.held(lease));
        let need = bytes + self.length(&spec.model);
        if need > self.ledger.total {
            let refusal = Failed::TooLarge { need_bytes: need, total_bytes: self.ledger.total };
            return drop(reply.try_send(Err(refusal)));
        }
        let waits = Some(Waits { since: now, due: now + super::RESERVE_WAIT, reply });
        self.ledger.holds.insert(id, Hold { bytes, model: spec.model, waits });
    }

    pub(super) fn release(&mut self, id: HoldId) {
        self.ledger.holds.remove(&id);
    }

    /// Grants what can be granted, in the order in which it was asked for; whether something still waits.
    pub(super) fn grant(&mut self) -> bool {
        loop {
            let waiting = self.ledger.holds.iter().find(|(_, hold)| hold.waits.is_some());
            let Some((&id, &Hold { bytes, model, .. })) = waiting else { return false };
            let need = bytes + self.more_for(model);
            if need > self.memory().free() {
                self.evict(need, None);
                return true;
            }
            let hold = self.ledger.holds.get_mut(&id).expect("found above");
            if let Some(waits) = hold.waits.take() {
                drop(waits.reply.try_send(Ok(())));
            }
        }
    }

    /// Whether an instance needed more than what was measured of its function, which then reserves its cap from now on; what
    /// is told of that.
    pub(super) fn outgrew(
        &mut self,
        name: &FunctionName,
        generation: u64,
        lease: u64,
        cause: &ExitCause,
    ) -> Option<String> {
        let function = self.functions.get_mut(name).filter(|function| function.generation == generation)?;
        let spec = &mut function.config.spec;
        if !matches!(cause, ExitCause::OutOfMemory { .. }) || lease >= spec.memory_bytes {
            return None;
        }
        spec.reserved_bytes = None;
        let (had, cap) = (lease >> 20, spec.memory_bytes >> 20);
        tracing::warn!(function = %name, had_mib = had, cap_mib = cap, "what was measured does not suffice");
        Some(format!(
            "it went past the {had} MiB that were reserved for it; its next instances get all of the {cap} MiB of `limits.memory`"
        ))
    }

    /// The kernel says how short memory is, in % of time lost.
    pub(super) fn pressed(&mut self, now: Instant, percent: u64) {
        self.ledger.pressure = Some((percent, now + PRESSURE_LASTS));
        tracing::warn!(percent, "the kernel reports memory pressure: idle instances give way");
        let victims = self.victims(None);
        let idle: Vec<_> = victims.iter().map(|(_, idle)| *idle).collect();
        let chosen = self.memory().excess(&idle);
        self.give_way(0, &victims, &chosen);
    }

    /// Does what is due.
    pub(super) fn memory_tick(&mut self, now: Instant) {
        if self.ledger.pressure.is_some_and(|(_, until)| until <= now) {
            self.ledger.pressure = None;
        }
        let late = |hold: &Hold| hold.waits.as_ref().is_some_and(|waits| waits.due <= now);
        for (_, hold) in self.ledger.holds.extract_if(.., |_, hold| late(hold)) {
            let Some(Waits { since, reply, .. }) = hold.waits else { continue };
            let waited_ms = (now - since).as_millis() as u64;
            drop(reply.try_send(Err(Failed::QueueTimeout { waited_ms, retry_after_s: 1 })));
        }
    }
}

#[cfg(test)]
mod tests;
