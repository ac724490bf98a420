//! Which instances there are, which slots they hold, what they took of the machine, and who waits for their end.
//!
//! ```text
//!  reserve ──▶ starting ──started──▶ loading ──awake──▶ awake
//!                 └──────────────────────┴─────────────────┴──▶ release: slot free, waiting stops answered
//! ```
//! Invariants: an instance has one slot from `reserve` to `release`, and is released only when nothing of it is left. A
//! stop, or the warden's own end, that comes before the process is known is remembered and carried out by `started`. Each µs
//! between them is told once, as that of an instance or as the box's own.

use crate::{decide::free_slot, life::Life};
use appliance_types::{FunctionName, ModelDigest};
use sandbox_kernel::{
    cgroup::Cgroup,
    cores,
    memory::shared_bytes,
    pidfd::{Pid, Pidfd},
    spawn::Child,
};
use sandbox_wire::warden::{InstanceId, InstanceStatus, Liver, Purpose, RunnerSpec, Spent, WardenError};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A place for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) instance: InstanceId,
    pub(crate) slot: usize,
}

/// What is left to say when an instance is gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Requests that wait for its end.
    pub(crate) stops: Vec<u64>,
    /// What it took that was not told before.
    pub(crate) lived: Option<Lived>,
}

/// A part of a life.
pub(crate) type Lived = (Liver, Spent);

#[derive(Debug)]
struct Entry {
    slot: usize,
    function: FunctionName,
    model: ModelDigest,
    process: Option<Process>,
    stopping: bool,
    purpose: Purpose,
    /// Whether the server has it.
    awake: bool,
    life: Life,
    /// Those that it has a lease of, by the kernel's numbers.
    cores: Vec<usize>,
    /// Whether each of its threads is kept on one of them.
    apart: bool,
    stops: Vec<u64>,
}

impl Entry {
    /// Restored ahead of need: nobody knows it.
    fn is_ahead(&self) -> bool {
        matches!(self.purpose, Purpose::Trial | Purpose::Spare)
    }

    fn tell(&mut self, instance: InstanceId, now: Instant) -> Lived {
        let own = Liver::Own { function: self.function.clone(), purpose: self.purpose };
        (if self.awake { Liver::Instance(instance) } else { own }, self.life.tell(now))
    }
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    killer: Pidfd,
    cgroup: Arc<Cgroup>,
}

#[derive(Debug)]
struct State {
    closing: bool,
    next: InstanceId,
    taken: Vec<bool>,
    entries: BTreeMap<InstanceId, Entry>,
    /// All that was told.
    told: Spent,
}

impl State {
    fn tell(&mut self, instance: InstanceId, now: Instant) -> Option<Lived> {
        let lived = self.entries.get_mut(&instance)?.tell(instance, now);
        self.told.add(lived.1);
        Some(lived)
    }
}

/// All instances of one warden.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Where instances may compute, by the kernel's numbers.
    cores: Vec<usize>,
    state: Mutex<State>,
}

impl Registry {
    /// No instance yet, with so many slots, and `cores`, of which there is one at least.
    pub(crate) fn new(slots: usize, cores: Vec<usize>) -> Self {
        let taken = vec![false; slots];
        let told = Spent::default();
        let state = State { closing: false, next: 1, taken, entries: BTreeMap::new(), told };
        Self { cores, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code below can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a spare the instance of a wake, whose own lease it takes the place of; gives what it took as a spare.
    pub(crate) fn adopt(&self, spare: InstanceId, wake: Lease) -> Option<Lived> {
        let mut state = self.lock();
        let call = state.entries.remove(&wake.instance)?;
        state.taken[call.slot] = false;
        let lived = state.tell(spare, call.life.since());
        let entry = state.entries.get_mut(&spare)?;
        (entry.purpose, entry.life) = (Purpose::Wake, entry.life.goes_on_as(call.life));
        lived
    }

    /// From here on an instance's life is the server's to account for; gives the CPU time that it used before its call, µs.
    pub(crate) fn hand_over(&self, instance: InstanceId) -> u64 {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&instance) else { return 0 };
        entry.awake = true;
        entry.life.told_cpu_us()
    }

    /// Reads what an instance uses, which cannot be read when it is gone.
    pub(crate) fn read(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            read(entry);
        }
    }

    /// The kernel's last word of the CPU time of an instance's process, µs.
    pub(crate) fn ended(&self, instance: InstanceId, cpu_us: u64) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            entry.life.process_gone(cpu_us);
        }
    }

    /// What the box's own processes took that was not told before; and what all lives took since this began.
    pub(crate) fn machine(&self, now: Instant) -> (Vec<Lived>, Spent) {
        let mut state = self.lock();
        state.entries.values_mut().filter(|entry| entry.purpose != Purpose::Wake).for_each(read);
        let own = state.entries.iter().filter(|(_, entry)| entry.purpose != Purpose::Wake);
        let own: Vec<_> = own.map(|(instance, _)| *instance).collect();
        let lived = own.into_iter().filter_map(|instance| state.tell(instance, now)).collect();
        let mut machine = state.told;
        state.entries.values().for_each(|entry| machine.add(entry.life.untold(now)));
        (lived, machine)
    }

    /// Whether a function has an instance, or will have one.
    pub(crate) fn is_running(&self, function: &FunctionName) -> bool {
        self.lock().entries.values().any(|entry| entry.function == *function && !entry.is_ahead())
    }

    /// Whether there is any instance but spares.
    pub(crate) fn is_any_running(&self) -> bool {
        self.lock().entries.values().any(|entry| !entry.is_ahead())
    }

    /// A slot for a process that is called for now.
    pub(crate) fn reserve(&self, spec: &RunnerSpec, purpose: Purpose, now: Instant) -> Result<Lease, WardenError> {
        let mut state = self.lock();
        let full = WardenError::InstancesMax { limit: state.taken.len() as u32 };
        let slot = free_slot(&state.taken).ok_or(full)?;
        state.taken[slot] = true;
        let instance = state.next;
        state.next += 1;
        let (function, model) = (spec.function.clone(), spec.model);
        let entry = Entry {
            slot,
            function,
            model,
            process: None,
            stopping: state.closing,
            purpose,
            awake: false,
            life: Life::begin(now),
            cores: self.cores.clone(),
            apart: false,
            stops: Vec::new(),
        };
        state.entries.insert(instance, entry);
        Ok(Lease { instance, slot })
    }

    /// Makes an instance's process known, which is held to so many bytes.
    pub(crate) fn started(
        &self,
        instance: InstanceId,
        child: &Child,
        cgroup: &Arc<Cgroup>,
        reserved_bytes: u64,
    ) -> std::io::Result<()> {
        let process = Process { pid: child.pid(), killer: child.killer()?, cgroup: Arc::clone(cgroup) };
        let mut state = self.lock();
        let entry = state.entries.get_mut(&instance).expect("reserved before it is started");
        if entry.stopping {
            process.killer.kill()?;
        }
        entry.life.reserve(reserved_bytes);
        entry.process = Some(process);
        Ok(())
    }

    /// Keeps an instance that runs on inference cores, given by number.
    pub(crate) fn keep_on(&self, instance: InstanceId, numbers: &[u32]) {
        let cores = by_number(&self.cores, numbers);
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&instance).filter(|_| !cores.is_empty()) {
            entry.cores = cores;
            let apart = entry.apart;
            told(instance, entry.settle(instance, apart));
        }
    }

    /// Keeps each thread of an instance on a core of its own, where it has several and all of them can be; whether they are.
    pub(crate) fn keep_apart(&self, instance: InstanceId) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&instance) else { return false };
        if let Some(process) = &entry.process {
            let apart = told(instance, cores::apart(process.pid, &entry.cores, instance as usize));
            if apart.is_none() {
                // Some may be kept alone by now.
                told(instance, cores::keep_on(process.pid, &entry.cores));
            }
            entry.apart = apart.unwrap_or(false);
        }
        entry.apart
    }

    /// Lets the threads of an instance that were kept apart run on any core of its lease.
    pub(crate) fn let_go(&self, instance: InstanceId) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&instance).filter(|entry| entry.apart) {
            told(instance, entry.settle(instance, false));
        }
    }

    /// An instance's process has ended and is about to be reaped: its number may be another's then.
    pub(crate) fn process_ended(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            entry.process = None;
        }
    }

    /// Kills an instance; `request` is answered by whoever releases it.
    pub(crate) fn stop(&self, instance: InstanceId, request: u64) -> Result<(), WardenError> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(&instance).ok_or(WardenError::InstanceMissing { instance })?;
        entry.stops.push(request);
        kill(instance, entry);
        Ok(())
    }

    /// Kills every instance, those still starting too.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        for (instance, entry) in &mut state.entries {
            kill(*instance, entry);
        }
    }

    /// An instance is about to be ended, for no fault of its own.
    pub(crate) fn stops(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            entry.stopping = true;
        }
    }

    /// Whether an instance was told to end.
    pub(crate) fn is_stopping(&self, instance: InstanceId) -> bool {
        self.lock().entries.get(&instance).is_none_or(|entry| entry.stopping)
    }

    /// Forgets an instance of which nothing is left.
    pub(crate) fn release(&self, instance: InstanceId) -> Released {
        let mut state = self.lock();
        let lived = state.tell(instance, Instant::now());
        let Some(entry) = state.entries.remove(&instance) else { return Released::default() };
        state.taken[entry.slot] = false;
        Released { stops: entry.stops, lived }
    }

    /// Runs `remove` unless instances use the model; none can begin to meanwhile.
    pub(crate) fn unless_used<T>(
        &self,
        digest: &ModelDigest,
        remove: impl FnOnce() -> Result<T, WardenError>,
    ) -> Result<T, WardenError> {
        let state = self.lock();
        match state.entries.values().filter(|entry| entry.model == *digest && !entry.is_ahead()).count() {
            0 => remove(),
            users => Err(WardenError::ModelInUse { digest: *digest, instances: users as u32 }),
        }
    }

    /// What each instance holds now.
    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let known: Vec<_> = self.lock().entries.iter().filter_map(known).collect();
        known.into_iter().map(status).collect()
    }
}

/// Cores that are called by their number, counted round; each once.
fn by_number(cores: &[usize], numbers: &[u32]) -> Vec<usize> {
    let all = numbers.iter().filter_map(|number| cores.get(*number as usize % cores.len().max(1)).copied());
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The kernel refuses where a process has ended, or where cores were taken from the warden itself.
fn told<T>(instance: InstanceId, done: std::io::Result<T>) -> Option<T> {
    done.inspect_err(|error| tracing::debug!(instance, %error, "not kept on its cores")).ok()
}

impl Entry {
    /// Has its process run where it may: each thread on a core of its own, or all on any of them.
    fn settle(&mut self, instance: InstanceId, apart: bool) -> std::io::Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        self.apart = apart && cores::apart(process.pid, &self.cores, instance as usize)?;
        if self.apart { Ok(()) } else { cores::keep_on(process.pid, &self.cores) }
    }
}

type Known = (InstanceId, FunctionName, Pid, Arc<Cgroup>);

fn known((instance, entry): (&InstanceId, &Entry)) -> Option<Known> {
    let process = entry.process.as_ref().filter(|_| !entry.is_ahead())?;
    Some((*instance, entry.function.clone(), process.pid, Arc::clone(&process.cgroup)))
}

/// An instance that ends meanwhile holds nothing.
fn status((instance, function, pid, cgroup): Known) -> InstanceStatus {
    let usage = cgroup.usage().unwrap_or_default();
    let shared_bytes = shared_bytes(pid).unwrap_or(0);
    InstanceStatus { instance, function, private_bytes: usage.private_bytes, shared_bytes, cpu_us: usage.cpu_us }
}

fn read(entry: &mut Entry) {
    let gauges = entry.process.as_ref().and_then(|process| process.cgroup.gauges().ok());
    if let Some((cpu_us, used_bytes)) = gauges.and_then(|gauges| gauges.read().ok()) {
        entry.life.read(cpu_us, Some(used_bytes));
    }
}

fn kill(instance: InstanceId, entry: &mut Entry) {
    entry.stopping = true;
    let killed = entry.process.as_ref().map_or(Ok(()), |process| process.killer.kill());
    if let Err(error) = killed {
        tracing::error!(instance, %error, "an instance could not be killed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::spec;
    use std::time::Duration;

    fn reserve(registry: &Registry) -> Result<Lease, WardenError> {
        registry.reserve(&spec(), Purpose::Wake, Instant::now())
    }

    #[test]
    fn slots_are_given_once_and_numbers_never_again() {
        let registry = Registry::new(2, vec![0]);
        let leases = [reserve(&registry).unwrap(), reserve(&registry).unwrap()];
        assert_eq!(leases.map(|lease| (lease.instance, lease.slot)), [(1, 0), (2, 1)]);
        assert_eq!(reserve(&registry), Err(WardenError::InstancesMax { limit: 2 }));
        registry.release(1);
        assert_eq!(reserve(&registry), Ok(Lease { instance: 3, slot: 0 }));
    }

    #[test]
    fn cores_are_counted_round() {
        assert_eq!(by_number(&[2, 3, 5], &[0, 2]), [2, 5]);
        assert_eq!(by_number(&[2, 3], &[1, 2, u32::MAX]), [2, 3]);
        assert!(by_number(&[2, 3], &[]).is_empty() && by_number(&[], &[1]).is_empty());
    }

    #[test]
    fn a_model_in_use_is_not_removed() {
        let registry = Registry::new(2, vec![0]);
        let lease = reserve(&registry).unwrap();
        let digest = spec().model;
        let refused = WardenError::ModelInUse { digest, instances: 1 };
        assert_eq!(registry.unless_used(&digest, || Ok(())), Err(refused));
        registry.release(lease.instance);
        assert_eq!(registry.unless_used(&digest, || Ok(())), Ok(()));
    }

    #[test]
    fn a_stop_before_the_process_is_known_is_remembered() {
        let registry = Registry::new(1, vec![0]);
        let lease = reserve(&registry).unwrap();
        assert!(!registry.is_stopping(lease.instance));
        registry.stop(lease.instance, 7).unwrap();
        assert!(registry.is_stopping(lease.instance));
        assert_eq!(registry.release(lease.instance).stops, [7]);
        assert_eq!(registry.stop(lease.instance, 8), Err(WardenError::InstanceMissing { instance: lease.instance }));
    }

    #[test]
    fn what_starts_while_closing_is_stopping() {
        let registry = Registry::new(1, vec![0]);
        registry.close();
        let lease = reserve(&registry).unwrap();
        assert!(registry.is_stopping(lease.instance));
    }

    #[test]
    fn each_moment_of_a_life_is_told_once_under_the_name_it_had() {
        let registry = Registry::new(2, vec![0]);
        let began = Instant::now();
        let ms = |ms| began + Duration::from_millis(ms);
        let spare = registry.reserve(&spec(), Purpose::Spare, began).unwrap();
        let name = |purpose| Liver::Own { function: spec().function, purpose };
        let us = |us| Spent { us, ..Spent::default() };
        let (lived, machine) = registry.machine(ms(30));
        assert_eq!((lived, machine), (vec![(name(Purpose::Spare), us(30_000))], us(30_000)));
        let wake = registry.reserve(&spec(), Purpose::Wake, ms(40)).unwrap();
        assert_eq!(
            registry.machine(ms(45)),
            (vec![(name(Purpose::Spare), us(15_000))], us(50_000)),
            "and the call's 5"
        );
        assert_eq!(registry.adopt(spare.instance, wake), Some((name(Purpose::Spare), us(0))));
        assert_eq!(registry.release(wake.instance), Released::default(), "it is gone with its lease");
        assert_eq!(registry.machine(ms(50)), (Vec::new(), us(50_000)), "an instance's life is told at its end");
        registry.hand_over(spare.instance);
        let lived = registry.lock().tell(spare.instance, ms(70));
        assert_eq!(
            lived,
            Some((Liver::Instance(spare.instance), us(25_000))),
            "what was the spare's is not told again"
        );
        assert_eq!(registry.machine(ms(70)).1, us(70_000));
    }
}
