//! Where requests of the server are taken and dealt out. Nothing here waits: what takes time gets a thread. The exception
//! is rare: where all slots are taken, the end of spares makes room.

use crate::{
    instance,
    registry::Lease,
    shared::Shared,
    snapshots::{Needed, Ready},
    spares,
    spawner::sandbox_error,
    taking, trial, updates,
};
use appliance_types::{FunctionName, ModelDigest};
use sandbox_kernel::socket::has_an_end;
use sandbox_wire::warden::{
    Call, InstanceId, Purpose, Reply, Request, RunnerSpec, SYSTEM_BYTES_MAX, SnapshotEntry, Spent, WardenError,
};
use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

/// Models added at once; more are refused, since each may wait for its sender without end.
const ADDS_MAX: usize = 4;
/// Calls for snapshots at once; more are refused. Those that boot an instance need a slot as well.
const SNAPSHOTS_MAX: usize = 32;

/// Slots are changed by one at a time.
const UPDATES_MAX: usize = 1;

/// Takes requests, one after the other.
#[derive(Debug)]
pub(crate) struct Desk {
    shared: Arc<Shared>,
    instances: Vec<JoinHandle<()>>,
    adds: Arc<AtomicUsize>,
    snapshots: Arc<AtomicUsize>,
    updates: Arc<AtomicUsize>,
}

impl Desk {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, instances: Vec::new(), adds: Arc::default(), snapshots: Arc::default(), updates: Arc::default() }
    }

    /// Answers a request, now or from a thread.
    pub(crate) fn take(&mut self, request: Request, descriptor: Option<OwnedFd>) {
        let Request { id, call } = request;
        let answer = match call {
            Call::Wake(spec) => self.wake(id, spec),
            Call::Stop { instance } => self.stop(id, instance),
            Call::Cores { instance, cores } => {
                self.shared.registry.keep_on(instance, &cores);
                Ok(None)
            }
            Call::Instances => Ok(Some(Reply::Instances(self.shared.registry.statuses()))),
            Call::Machine => Ok(Some(self.machine())),
            Call::Park(spec) => self.work(id, move |shared| park(shared, &spec).map(Reply::Parked)),
            Call::Store { function } => self.work(id, move |shared| Ok(store(shared, &function))),
            Call::SnapshotTake(spec) => self.work(id, move |shared| take(shared, &spec).map(Reply::SnapshotTaken)),
            Call::SnapshotVerify(spec) => {
                self.work(id, move |shared| verify(shared, &spec).map(Reply::SnapshotVerified))
            }
            Call::Needs(spec) => self.work(id, move |shared| needs(shared, &spec).map(Reply::Needs)),
            Call::Snapshots => self.work(id, |shared| shared.snapshots.list().map(Reply::Snapshots)),
            Call::SnapshotRemove { function } => self.work(id, move |shared| discard(shared, &function)),
            Call::ModelAdd { expected } => self.add(id, descriptor, expected),
            Call::Models => self.shared.store.list().map(|models| Some(Reply::Models(models))),
            Call::ModelRemove { digest } => self.work(id, move |shared| remove(shared, &digest)),
            Call::UpdateApply => self.update(id, descriptor),
            Call::UpdateStatus => self.work(id, |shared| updates::status(&shared.config).map(Reply::Updates)),
            Call::UpdateRollBack => self.roll_back(id),
        };
        match answer {
            Ok(Some(reply)) => self.shared.outbox.reply(id, Ok(reply)),
            Ok(None) => {}
            Err(error) => self.shared.outbox.reply(id, Err(error)),
        }
    }

    fn wake(&mut self, id: u64, spec: RunnerSpec) -> Result<Option<Reply>, WardenError> {
        let begun = Instant::now();
        if spec.system.as_ref().is_some_and(|system| system.len() > SYSTEM_BYTES_MAX) {
            return Err(bad(format!("a system prompt above {SYSTEM_BYTES_MAX} bytes")));
        }
        let lease = reserve(&self.shared, &spec, Purpose::Wake, begun)?;
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(format!("instance-{}", lease.instance));
        let thread = thread.spawn(move || instance::live(&shared, lease, id, &spec, begun));
        self.instances.retain(|thread| !thread.is_finished());
        match thread {
            Ok(thread) => self.instances.push(thread),
            Err(error) => {
                instance::release(&self.shared, lease);
                return Err(sandbox_error("supervision", error));
            }
        }
        Ok(None)
    }

    /// Does on a thread what takes long.
    fn work(
        &mut self,
        id: u64,
        work: impl FnOnce(&Arc<Shared>) -> Result<Reply, WardenError> + Send + 'static,
    ) -> Result<Option<Reply>, WardenError> {
        let permit = Permit::take(&self.snapshots, SNAPSHOTS_MAX)?;
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let done = work(&shared);
            drop(permit);
            shared.outbox.reply(id, done);
        };
        let thread = thread::Builder::new().name("snapshot".into()).spawn(work);
        self.instances.retain(|thread| !thread.is_finished());
        self.instances.push(thread.map_err(|error| sandbox_error("supervision", error))?);
        Ok(None)
    }

    fn machine(&self) -> Reply {
        let (lived, spent) = self.shared.registry.machine(Instant::now());
        lived.into_iter().for_each(|lived| self.shared.outbox.lived(lived));
        Reply::Machine(Spent { cpu_us: self.shared.cpu_us(), used_byte_us: 0, ..spent })
    }

    fn stop(&self, id: u64, instance: InstanceId) -> Result<Option<Reply>, WardenError> {
        self.shared.registry.stop(instance, id).map(|()| None)
    }

    fn add(
        &self,
        id: u64,
        source: Option<OwnedFd>,
        expected: Option<ModelDigest>,
    ) -> Result<Option<Reply>, WardenError> {
        let source = source.ok_or_else(|| bad("a model to add comes with a descriptor"))?;
        if !has_an_end(&source).map_err(bad)? {
            return Err(bad("a model is read from a file, a pipe or a socket"));
        }
        let permit = Permit::take(&self.adds, ADDS_MAX)?;
        let shared = Arc::clone(&self.shared);
        let add = move || {
            let added = shared.store.add(File::from(source), expected);
            drop(permit);
            shared.outbox.reply(id, added.map(Reply::ModelAdded));
        };
        thread::Builder::new().name("add".into()).spawn(add).map_err(|error| sandbox_error("supervision", error))?;
        Ok(None)
    }

    fn update(&self, id: u64, source: Option<OwnedFd>) -> Result<Option<Reply>, WardenError> {
        let source = source.ok_or_else(|| bad("an update comes with a descriptor"))?;
        if !has_an_end(&source).map_err(bad)? {
            return Err(bad("an update is read from a file, a pipe or a socket"));
        }
        let permit = Permit::take(&self.updates, UPDATES_MAX)?;
        let shared = Arc::clone(&self.shared);
        let apply = move || {
            let applied = updates::apply(&shared.config, File::from(source));
            drop(permit);
            let is_changed = applied.is_ok();
            shared.outbox.reply(id, applied.map(Reply::Updates));
            if is_changed {
                start_again(&shared);
            }
        };
        let thread = thread::Builder::new().name("update".into()).spawn(apply);
        thread.map_err(|error| sandbox_error("supervision", error))?;
        Ok(None)
    }

    fn roll_back(&mut self, id: u64) -> Result<Option<Reply>, WardenError> {
        let permit = Permit::take(&self.updates, UPDATES_MAX)?;
        self.work(id, move |shared| {
            let done = updates::roll_back(&shared.config);
            drop(permit);
            done.map(Reply::Updates).inspect(|_| start_again(shared))
        })
    }

    /// Ends every instance, and returns when nothing is left of any. Adds are left behind: their half-written files are
    /// swept at the next start.
    pub(crate) fn close(self) {
        self.shared.registry.close();
        for thread in self.instances {
            if thread.join().is_err() {
                tracing::error!("an instance's thread panicked");
            }
        }
        self.shared.spares.end_all(&self.shared);
    }
}

/// Who asked is answered all the same: a service that ends lets its requests end first.
fn start_again(shared: &Shared) {
    if let Some(after_update) = shared.config.after_update {
        tracing::info!("a slot was changed: the machine starts again");
        after_update();
    }
}

fn bad(reason: impl ToString) -> WardenError {
    WardenError::BadRequest { reason: reason.to_string() }
}

/// Takes a function's snapshot and writes it, for a manifest that may come into force only then.
fn take(shared: &Shared, spec: &RunnerSpec) -> Result<SnapshotEntry, WardenError> {
    take_and_write(shared, spec, |ready| {
        shared.snapshots.announce(ready.parked.image.identity.clone());
        None
    })?;
    Ok(shared.snapshots.entry(&spec.function))
}

/// A slot for an instance, in place of the spares' where there is no other.
fn reserve(shared: &Shared, spec: &RunnerSpec, purpose: Purpose, now: Instant) -> Result<Lease, WardenError> {
    let reserve = || shared.registry.reserve(spec, purpose, now);
    match reserve() {
        Err(WardenError::InstancesMax { .. }) if shared.spares.end_all(shared) => reserve(),
        other => other,
    }
}

fn take_and_write(
    shared: &Shared,
    spec: &RunnerSpec,
    held: impl FnOnce(&Arc<Ready>) -> Option<Arc<Ready>>,
) -> Result<(), WardenError> {
    let lease = reserve(shared, spec, Purpose::Capture, Instant::now())?;
    let ready = instance::take(shared, lease, spec)?;
    let tried = trial::run(shared, spec, &ready);
    tried.map_err(|reason| WardenError::CaptureFailed { function: spec.function.clone(), reason })?;
    let turn = shared.snapshots.next(&spec.function, held(&ready));
    shared.spares.end_of(shared, &spec.function);
    shared.snapshots.write(&ready, turn)
}

/// Holds a function's snapshot in memory.
fn park(shared: &Arc<Shared>, spec: &RunnerSpec) -> Result<SnapshotEntry, WardenError> {
    let identity = instance::identity(shared, spec)?;
    let model = shared.store.model(&spec.model)?;
    let found = shared.snapshots.find(&identity, &Needed { program: &shared.program, model: &model }).unwrap_or_else(
        |reason| {
            taking::retire(shared, &spec.function, reason);
            None
        },
    );
    if found.is_none() && !shared.snapshots.is_ahead_of(&identity) {
        take_and_write(shared, spec, |ready| Some(Arc::clone(ready)))?;
    }
    spares::prepare(shared, spec);
    Ok(shared.snapshots.entry(&spec.function))
}

fn store(shared: &Shared, function: &FunctionName) -> Reply {
    shared.snapshots.store(function);
    shared.spares.end_of(shared, function);
    Reply::Stored
}

fn discard(shared: &Shared, function: &FunctionName) -> Result<Reply, WardenError> {
    shared.spares.end_of(shared, function);
    shared.snapshots.remove(function).map(|()| Reply::SnapshotRemoved)
}

fn remove(shared: &Shared, model: &ModelDigest) -> Result<Reply, WardenError> {
    shared.spares.end_on(shared, model);
    shared.registry.unless_used(model, || shared.store.remove(model)).map(|()| Reply::ModelRemoved)
}

fn verify(shared: &Shared, spec: &RunnerSpec) -> Result<SnapshotEntry, WardenError> {
    shared.snapshots.verify(&instance::identity(shared, spec)?)
}

fn needs(shared: &Shared, spec: &RunnerSpec) -> Result<Option<u64>, WardenError> {
    Ok(shared.snapshots.needs_bytes(&instance::identity(shared, spec)?))
}

/// The right to do what takes long; given back when dropped.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Only the desk takes permits, so that looking and taking are one step.
    fn take(taken: &Arc<AtomicUsize>, max: usize) -> Result<Self, WardenError> {
        if taken.load(Ordering::Acquire) >= max {
            return Err(bad(format!("{max} such calls are under way, which is the most; try again later")));
        }
        taken.fetch_add(1, Ordering::AcqRel);
        Ok(Self(Arc::clone(taken)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_run_out_and_come_back() {
        let taken = Arc::default();
        let mut permits: Vec<_> = (0..ADDS_MAX).map(|_| Permit::take(&taken, ADDS_MAX).unwrap()).collect();
        assert!(Permit::take(&taken, ADDS_MAX).is_err());
        permits.pop();
        assert!(Permit::take(&taken, ADDS_MAX).is_ok());
    }
}
