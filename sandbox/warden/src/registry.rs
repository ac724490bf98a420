//! Which instances there are, which slots they hold, and who waits for their end.
//!
//! ```text
//!  reserve ──▶ starting ──started──▶ loading ──awake──▶ awake
//!                 └──────────────────────┴─────────────────┴──▶ release: slot free, waiting stops answered
//! ```
//! Invariants: an instance has one slot from `reserve` to `release`, and is released only when nothing of it is left. A
//! stop, or the warden's own end, that comes before the process is known is remembered and carried out by `started`.

use crate::decide::free_slot;
use appliance_types::{FunctionName, ModelDigest};
use sandbox_kernel::{
    cgroup::Cgroup,
    cores,
    memory::shared_bytes,
    pidfd::{Pid, Pidfd},
    spawn::Child,
};
use sandbox_wire::warden::{InstanceId, InstanceStatus, RunnerSpec, WardenError};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
}

#[derive(Debug)]
struct Entry {
    slot: usize,
    function: FunctionName,
    model: ModelDigest,
    process: Option<Process>,
    stopping: bool,
    /// Restored ahead of need: nobody knows it yet.
    spare: bool,
    /// Those that it has a lease of, by the kernel's numbers.
    cores: Vec<usize>,
    /// Whether each of its threads is kept on one of them.
    apart: bool,
    stops: Vec<u64>,
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
        let state = State { closing: false, next: 1, taken, entries: BTreeMap::new() };
        Self { cores, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code below can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a new instance.
    pub(crate) fn reserve(&self, spec: &RunnerSpec) -> Result<Lease, WardenError> {
        self.reserve_as(spec, false)
    }

    /// A slot for a spare.
    pub(crate) fn reserve_spare(&self, spec: &RunnerSpec) -> Result<Lease, WardenError> {
        self.reserve_as(spec, true)
    }

    /// Makes a spare an instance like any other.
    pub(crate) fn adopt(&self, instance: InstanceId) {
        if let Some(entry) = self.lock().entries.get_mut(&instance) {
            entry.spare = false;
        }
    }

    /// Whether a function has an instance, or will have one.
    pub(crate) fn is_running(&self, function: &FunctionName) -> bool {
        self.lock().entries.values().any(|entry| entry.function == *function && !entry.spare)
    }

    /// Whether there is any instance but spares.
    pub(crate) fn is_any_running(&self) -> bool {
        self.lock().entries.values().any(|entry| !entry.spare)
    }

    fn reserve_as(&self, spec: &RunnerSpec, spare: bool) -> Result<Lease, WardenError> {
        let mut state = self.lock();
        let full = WardenError::InstancesMax { limit: state.taken.len() as u32 };
        let slot = free_slot(&state.taken).ok_or(full)?;
        state.taken[slot] = true;
        let instance = state.next;
        state.next += 1;
        let (function, model) = (spec.function.clone(), spec.model);
        let (process, stopping, cores) = (None, state.closing, self.cores.clone());
        let entry = Entry { slot, function, model, process, stopping, spare, cores, apart: false, stops: Vec::new() };
        state.entries.insert(instance, entry);
        Ok(Lease { instance, slot })
    }

    /// Makes an instance's process known.
    pub(crate) fn started(&self, instance: InstanceId, child: &Child, cgroup: &Arc<Cgroup>) -> std::io::Result<()> {
        let process = Process { pid: child.pid(), killer: child.killer()?, cgroup: Arc::clone(cgroup) };
        let mut state = self.lock();
        let entry = state.entries.get_mut(&instance).expect("reserved before it is started");
        if entry.stopping {
            process.killer.kill()?;
        }
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
            entry.apart = told(instance, cores::apart(process.pid, &entry.cores, instance as usize)).unwrap_or(false);
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

    /// Whether an instance was told to end.
    pub(crate) fn is_stopping(&self, instance: InstanceId) -> bool {
        self.lock().entries.get(&instance).is_none_or(|entry| entry.stopping)
    }

    /// Forgets an instance of which nothing is left.
    pub(crate) fn release(&self, instance: InstanceId) -> Released {
        let mut state = self.lock();
        let Some(entry) = state.entries.remove(&instance) else { return Released::default() };
        state.taken[entry.slot] = false;
        Released { stops: entry.stops }
    }

    /// Runs `remove` unless instances use the model; none can begin to meanwhile.
    pub(crate) fn unless_used<T>(
        &self,
        digest: &ModelDigest,
        remove: impl FnOnce() -> Result<T, WardenError>,
    ) -> Result<T, WardenError> {
        let state = self.lock();
        match state.entries.values().filter(|entry| entry.model == *digest && !entry.spare).count() {
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

/// Cores that are called by their number, counted round.
fn by_number(cores: &[usize], numbers: &[u32]) -> Vec<usize> {
    numbers.iter().filter_map(|number| cores.get(*number as usize % cores.len().max(1)).copied()).collect()
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
    let process = entry.process.as_ref().filter(|_| !entry.spare)?;
    Some((*instance, entry.function.clone(), process.pid, Arc::clone(&process.cgroup)))
}

/// An instance that ends meanwhile holds nothing.
fn status((instance, function, pid, cgroup): Known) -> InstanceStatus {
    let usage = cgroup.usage().unwrap_or_default();
    let shared_bytes = shared_bytes(pid).unwrap_or(0);
    InstanceStatus { instance, function, private_bytes: usage.private_bytes, shared_bytes, cpu_us: usage.cpu_us }
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

    #[test]
    fn slots_are_given_once_and_numbers_never_again() {
        let registry = Registry::new(2, vec![0]);
        let leases = [registry.reserve(&spec()).unwrap(), registry.reserve(&spec()).unwrap()];
        assert_eq!(leases.map(|lease| (lease.instance, lease.slot)), [(1, 0), (2, 1)]);
        assert_eq!(registry.reserve(&spec()), Err(WardenError::InstancesMax { limit: 2 }));
        registry.release(1);
        assert_eq!(registry.reserve(&spec()), Ok(Lease { instance: 3, slot: 0 }));
    }

    #[test]
    fn cores_are_counted_round() {
        assert_eq!(by_number(&[2, 3, 5], &[0, 2]), [2, 5]);
        assert_eq!(by_number(&[2, 3], &[1, 2, u32::MAX]), [3, 2, 3]);
        assert!(by_number(&[2, 3], &[]).is_empty() && by_number(&[], &[1]).is_empty());
    }

    #[test]
    fn a_model_in_use_is_not_removed() {
        let registry = Registry::new(2, vec![0]);
        let lease = registry.reserve(&spec()).unwrap();
        let digest = spec().model;
        let refused = WardenError::ModelInUse { digest, instances: 1 };
        assert_eq!(registry.unless_used(&digest, || Ok(())), Err(refused));
        registry.release(lease.instance);
        assert_eq!(registry.unless_used(&digest, || Ok(())), Ok(()));
    }

    #[test]
    fn a_stop_before_the_process_is_known_is_remembered() {
        let registry = Registry::new(1, vec![0]);
        let lease = registry.reserve(&spec()).unwrap();
        assert!(!registry.is_stopping(lease.instance));
        registry.stop(lease.instance, 7).unwrap();
        assert!(registry.is_stopping(lease.instance));
        assert_eq!(registry.release(lease.instance), Released { stops: vec![7] });
        assert_eq!(registry.stop(lease.instance, 8), Err(WardenError::InstanceMissing { instance: lease.instance }));
    }

    #[test]
    fn what_starts_while_closing_is_stopping() {
        let registry = Registry::new(1, vec![0]);
        registry.close();
        let lease = registry.reserve(&spec()).unwrap();
        assert!(registry.is_stopping(lease.instance));
    }
}
