//! The life of one instance, on a thread of its own.
//!
//! ```text
//!                              ┌── restored from a snapshot ──────────┐
//!  lease ──▶ cgroup ──▶ process ─┤       │ not to be used: retired      ├──▶ handed to the server ──▶ ended ──▶ nothing left
//!              │                 └─▶ sandboxed ──▶ model loaded ──▶ snapshot taken                       ▲
//!              │                       │ confined?     │ holds what it was given, no more?               │
//!              └───────────────────────┴───────────────┴── failed: the reply says why ───────────────────┘
//! ```
//! Invariants: nothing is told to a process that is not confined as it was asked for, and none is handed over that holds
//! more than it was given; a layer that is missing is named instead. Whichever way it goes, the process is waited for,
//! its cgroup is removed, and only then is anyone told.
//!
//! The server's end of the socket is handed over and closed here: from then on only the runner holds the other end, so
//! the server learns of its death from the socket, before the warden's `Exited` tells why.

use crate::{
    decide::{Grant, cause, grant, is_fault},
    loading::{self, LoadError, refused},
    registry::{Lease, Lived, Released},
    shared::Shared,
    snapshots::{Needed, Ready},
    spares,
    spawner::{Ahead, Order, Origin, SpawnError, sandbox_error},
    tail::Tail,
    taking,
};
use appliance_types::{FunctionName, Tier};
use sandbox_kernel::{
    audit::{self, Inode},
    cgroup::Cgroup,
    memory::{prefault, resident},
    mounts::detach_file,
    pidfd::{Ended, Pid},
    ready::readable,
    socket::stream_pair,
    spawn::{Child, LayerError},
};
use sandbox_snapshot::image::Identity;
use sandbox_wire::{
    frame::Decoder,
    runner::{FromRunner, Load, ModelInfo, ToRunner},
    warden::{Awake, ExitCause, GaugeKind, Purpose, Reply, RunnerSpec, WakeParts, WardenError},
};
use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, pipe},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs an instance from its lease to its end, and says what is to be said. Its slot is free before anyone is told.
pub(crate) fn live(shared: &Arc<Shared>, lease: Lease, request: u64, spec: &RunnerSpec, begun: Instant) {
    let mut marks = Marks::new(begun);
    match wake(shared, lease, spec, &mut marks) {
        Ok(woken) => {
            // A spare has a lease of its own, in place of this.
            let instance = woken.instance.lease.instance;
            let cause = serve(shared, &spec.function, woken, request, &marks);
            let released = shared.registry.release(instance);
            let stopped = cause == ExitCause::Stopped;
            released.lived.into_iter().for_each(|lived| shared.outbox.lived(lived));
            shared.outbox.exited(instance, cause);
            answer(shared, released.stops);
            if stopped {
                spares::prepare(shared, spec);
            }
        }
        Err(error) => {
            let released = shared.registry.release(lease.instance);
            tracing::warn!(instance = lease.instance, function = %spec.function, %error, "not woken");
            released.lived.into_iter().for_each(|lived| shared.outbox.lived(lived));
            shared.outbox.reply(request, Err(error));
            answer(shared, released.stops);
        }
    }
}

/// Ends the lease of what the server never had.
pub(crate) fn release(shared: &Shared, lease: Lease) {
    let Released { stops, lived } = shared.registry.release(lease.instance);
    lived.into_iter().for_each(|lived| shared.outbox.lived(lived));
    answer(shared, stops);
}

fn answer(shared: &Shared, stops: Vec<u64>) {
    stops.into_iter().for_each(|stop| shared.outbox.reply(stop, Ok(Reply::Stopped)));
}

/// An instance that waits to be needed.
pub(crate) fn spare(shared: &Shared, spec: &RunnerSpec, ready: &Arc<Ready>) -> Result<Woken, String> {
    let lease = shared.registry.reserve(spec, Purpose::Spare, Instant::now()).map_err(|error| error.to_string())?;
    let model = shared.store.model(&spec.model).is_ok_and(|model| is_quick(&model));
    let ahead = if model { Ahead::DataAndModel } else { Ahead::Data };
    let mut woken = restored(shared, lease, spec, ready, ahead).map_err(|failure| failure.to_string())?;
    match woken.start_threads() {
        Ok(()) => {
            // It sleeps from now on, so that its wake need not read it.
            shared.registry.read(lease.instance);
            Ok(woken)
        }
        Err(error) => {
            woken.discard(shared);
            Err(error.to_string())
        }
    }
}

/// An instance that nobody asked for. Its lease ends with it.
pub(crate) fn restored(
    shared: &Shared,
    lease: Lease,
    spec: &RunnerSpec,
    ready: &Arc<Ready>,
    ahead: Ahead,
) -> Result<Woken, RestoreFailure> {
    let restored = Place::new(shared, lease, spec).map_err(RestoreFailure::Closed);
    let restored = restored.and_then(|place| place.restore(shared, ready, Tier::Parked, ahead));
    restored.inspect_err(|_| release(shared, lease))
}

/// Hands an instance over to the server, and waits for its end.
fn serve(shared: &Shared, function: &FunctionName, woken: Woken, request: u64, marks: &Marks) -> ExitCause {
    let Woken { mut instance, info, socket, tier, spent } = woken;
    instance.show_gauges(shared);
    let image_bytes = shared.snapshots.entry(function).parked_bytes;
    let cpu_before_us = shared.registry.hand_over(instance.lease.instance);
    let awake = instance.awake(info, tier, image_bytes, cpu_before_us, marks);
    tracing::info!(instance = awake.instance, %tier, wake_us = awake.wake_us, "awake");
    let apart = shared.registry.keep_apart(instance.lease.instance);
    shared.outbox.hand_over(request, Reply::Awake(awake), socket.as_fd());
    drop(socket);
    spent.into_iter().for_each(|spent| shared.outbox.lived(spent));
    // Until each has run where it is.
    if apart && !instance.await_end(Some(Instant::now() + APART)) {
        shared.registry.let_go(instance.lease.instance);
    }
    let restored = instance.restored.clone();
    let cause = instance.end(shared);
    // Unless another was taken since, for another manifest or model.
    if let Some(identity) = restored.filter(|identity| is_fault(&cause) && shared.snapshots.is_of(identity)) {
        taking::retire(shared, &identity.function, format!("an instance restored from it crashed: {cause}"));
    }
    cause
}

/// A running process and what belongs to it.
struct Instance {
    lease: Lease,
    grant: Grant,
    child: Child,
    cgroup: Arc<Cgroup>,
    /// What it was given as standard error and as its socket.
    given: [Inode; 2],
    tail: Tail,
    /// What it was restored from, if it goes on where a captured one waited.
    restored: Option<Identity>,
}

/// An instance that can be asked.
pub(crate) struct Woken {
    instance: Instance,
    info: ModelInfo,
    /// The server's end of its socket.
    socket: OwnedFd,
    /// Where its function was found.
    tier: Tier,
    /// What it took before it was called for, which nobody was told yet.
    spent: Option<Lived>,
}

/// Boots an instance, takes its snapshot, and leaves nothing but that. Answers the snapshot, which is not on disk yet.
/// It may use all of its cap: what it needs is what is found out.
pub(crate) fn take(shared: &Shared, lease: Lease, spec: &RunnerSpec) -> Result<Arc<Ready>, WardenError> {
    let spec = &RunnerSpec { reserved_bytes: None, ..spec.clone() };
    let taken = Place::new(shared, lease, spec).and_then(|place| {
        let woken = place.boot(shared, spec)?;
        let taken = woken.capture(shared, place.identity(shared, spec), &place.model);
        woken.instance.stop(shared);
        woken.instance.end(shared);
        taken.map_err(|reason| WardenError::CaptureFailed { function: spec.function.clone(), reason })
    });
    release(shared, lease);
    taken
}

/// The spare of a snapshot, if there is one that is as it should be, and is held to just what is granted.
fn adopt(shared: &Shared, lease: Lease, ready: &Arc<Ready>, grant: &Grant) -> Option<Woken> {
    let woken = shared.spares.take(ready)?;
    if woken.instance.grant != *grant {
        woken.discard(shared);
        return None;
    }
    match woken.instance.look(shared) {
        Ok(()) => {
            let spent = shared.registry.adopt(woken.instance.lease.instance, lease);
            Some(Woken { spent, ..woken })
        }
        Err(error) => {
            tracing::warn!(function = %ready.function(), ?error, "a spare is not as it was");
            woken.discard(shared);
            None
        }
    }
}

impl Woken {
    fn capture(&self, shared: &Shared, identity: Identity, model: &File) -> Result<Arc<Ready>, String> {
        let Instance { child, cgroup, .. } = &self.instance;
        taking::take(shared, child, cgroup, identity, model, &self.info)
    }

    /// Ends one that nobody knows of.
    pub(crate) fn discard(self, shared: &Shared) -> ExitCause {
        let lease = self.instance.lease;
        self.instance.stop(shared);
        let cause = self.instance.end(shared);
        release(shared, lease);
        cause
    }

    pub(crate) fn process(&self) -> Pid {
        self.instance.child.pid()
    }

    /// [`loading::ask`].
    pub(crate) fn ask<T>(
        &mut self,
        message: &ToRunner,
        deadline: Instant,
        understand: impl FnMut(FromRunner, &Decoder) -> Result<Option<T>, LoadError>,
    ) -> Result<T, LoadError> {
        let Instance { child, tail, .. } = &mut self.instance;
        loading::ask(&self.socket, child, tail, message, deadline, understand)
    }

    /// Has the threads started that will compute, so that they sleep until they are needed.
    fn start_threads(&mut self) -> Result<(), LoadError> {
        let count = self.instance.grant.threads;
        if count < 2 {
            return Ok(());
        }
        self.ask(&ToRunner::Threads { count }, Instant::now() + THREADS_TIMEOUT, |answer, _| match answer {
            FromRunner::Threads { .. } => Ok(Some(())),
            _ => Err(refused("the runner answered a request that nobody made")),
        })
    }
}

/// When the parts of a wake ended.
struct Marks {
    begun: Instant,
    found: Instant,
    process: Instant,
}

impl Marks {
    fn new(begun: Instant) -> Self {
        Self { begun, found: begun, process: begun }
    }

    /// All of it, and its parts. A spare needs no process made: it was there when it was found.
    fn parts(&self, now: Instant) -> (u64, WakeParts) {
        let process = self.process.max(self.found);
        let us = |from: Instant, to: Instant| to.saturating_duration_since(from).as_micros() as u64;
        let (find_us, process_us) = (us(self.begun, self.found), us(self.found, process));
        (us(self.begun, now), WakeParts { find_us, process_us, ready_us: us(process, now) })
    }
}

fn wake(shared: &Arc<Shared>, lease: Lease, spec: &RunnerSpec, marks: &mut Marks) -> Result<Woken, WardenError> {
    let place = Place::new(shared, lease, spec)?;
    let identity = place.identity(shared, spec);
    let needed = Needed { program: &shared.program, model: &place.model };
    let found = shared.snapshots.find(&identity, &needed);
    marks.found = Instant::now();
    let unusable = match found {
        Ok(Some((ready, tier))) => {
            let restore = || {
                place.restore(shared, &ready, tier, Ahead::Nothing).map(|mut woken| {
                    marks.process = Instant::now();
                    if let Err(error) = woken.start_threads() {
                        // Whoever gets it learns of its end.
                        tracing::warn!(instance = lease.instance, ?error, "its threads do not start");
                        woken.instance.kill(shared);
                    }
                    woken
                })
            };
            match adopt(shared, lease, &ready, &place.grant).map_or_else(restore, Ok) {
                Ok(woken) => return Ok(woken),
                Err(RestoreFailure::Closed(error)) => return Err(error),
                Err(RestoreFailure::Unusable(reason)) => Some(reason),
            }
        }
        Ok(None) => None,
        Err(reason) => Some(reason),
    };
    if let Some(reason) = unusable {
        taking::retire(shared, &spec.function, reason);
    }
    marks.found = Instant::now();
    let woken = place.boot(shared, spec)?;
    marks.process = Instant::now();
    if shared.snapshots.is_ahead_of(&identity) {
        return Ok(woken);
    }
    match woken.capture(shared, identity, &place.model) {
        Ok(ready) => taking::keep(shared, ready),
        Err(reason) => tracing::warn!(function = %spec.function, reason, "no snapshot could be taken"),
    }
    Ok(woken)
}

/// What snapshots of a function must be of to be used.
pub(crate) fn identity(shared: &Shared, spec: &RunnerSpec) -> Result<Identity, WardenError> {
    let (_, grant) = granted(shared, spec)?;
    Ok(shared.snapshots.machine().identity(spec, &grant))
}

fn granted(shared: &Shared, spec: &RunnerSpec) -> Result<(File, Grant), WardenError> {
    let model = shared.store.model(&spec.model)?;
    let model_bytes = model.metadata().map_err(|error| sandbox_error("root", error))?.len();
    let grant = grant(spec, model_bytes, shared.config.memory_bytes_max, shared.config.inference_cpus);
    Ok((model, grant))
}

/// Where an instance will be, and what it is to be on.
struct Place {
    lease: Lease,
    grant: Grant,
    model: File,
}

/// Why no instance came of a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreFailure {
    /// Not for the snapshot's sake: nothing runs.
    #[error("{0}")]
    Closed(WardenError),
    /// The snapshot is not to be used again.
    #[error("{0}")]
    Unusable(String),
}

/// The two ends of what connects an instance: ours, and the runner's.
struct Ends {
    ours: OwnedFd,
    reader: PipeReader,
    socket: OwnedFd,
    stderr: PipeWriter,
    given: [Inode; 2],
}

impl Ends {
    fn new() -> Result<Self, WardenError> {
        let descriptors = |error: io::Error| sandbox_error("descriptors", error);
        let (ours, socket) = stream_pair().map_err(|error| descriptors(error.into()))?;
        let (reader, stderr) = pipe().map_err(descriptors)?;
        let given = [Inode::of(&stderr).map_err(descriptors)?, Inode::of(&socket).map_err(descriptors)?];
        Ok(Self { ours, reader, socket, stderr, given })
    }
}

impl Place {
    fn new(shared: &Shared, lease: Lease, spec: &RunnerSpec) -> Result<Self, WardenError> {
        let (model, grant) = granted(shared, spec)?;
        Ok(Self { lease, grant, model })
    }

    fn identity(&self, shared: &Shared, spec: &RunnerSpec) -> Identity {
        shared.snapshots.machine().identity(spec, &self.grant)
    }

    fn cgroup(&self, shared: &Shared, function: &FunctionName) -> Result<Arc<Cgroup>, WardenError> {
        let name = format!("{function}-{}", self.lease.instance);
        let cgroup =
            shared.cgroups.create(&name, &self.grant.limits).map_err(|error| sandbox_error("cgroup", error))?;
        Ok(Arc::new(cgroup))
    }

    /// A new process, with its model loaded.
    fn boot(&self, shared: &Shared, spec: &RunnerSpec) -> Result<Woken, WardenError> {
        let root = |error| sandbox_error("root", format_args!("mount the model: {error}"));
        let origin = Origin::Program { model: detach_file(&self.model).map_err(root)? };
        let cgroup = self.cgroup(shared, &spec.function)?;
        let started = self.start(shared, origin, &cgroup).map_err(|failure| match failure {
            RestoreFailure::Closed(error) => error,
            RestoreFailure::Unusable(reason) => sandbox_error("program", reason),
        });
        let (mut instance, socket) = started.inspect_err(|_| clear(shared, &cgroup, self.lease))?;
        match instance.load(shared, spec, &self.model, &socket) {
            Ok(info) => Ok(Woken { instance, info, socket, tier: Tier::Cold, spent: None }),
            Err(error) => Err(instance.fail(shared, error)),
        }
    }

    /// A process that goes on where a captured one waited.
    fn restore(&self, shared: &Shared, ready: &Arc<Ready>, tier: Tier, ahead: Ahead) -> Result<Woken, RestoreFailure> {
        let model =
            self.model.try_clone().map_err(|error| RestoreFailure::Closed(sandbox_error("descriptors", error)))?;
        let origin = Origin::Snapshot { ready: Arc::clone(ready), model, ahead };
        let cgroup = self.cgroup(shared, ready.function()).map_err(RestoreFailure::Closed)?;
        let started = self.start(shared, origin, &cgroup).inspect_err(|_| clear(shared, &cgroup, self.lease));
        let (instance, socket) = started?;
        match instance.look(shared) {
            Ok(()) => Ok(Woken { instance, info: ready.model.clone(), socket, tier, spent: None }),
            // Of itself, not because it was told to end.
            Err(LoadError::Ended) if !shared.registry.is_stopping(self.lease.instance) => {
                Err(RestoreFailure::Unusable(instance.fail(shared, LoadError::Ended).to_string()))
            }
            Err(error) => Err(RestoreFailure::Closed(instance.fail(shared, error))),
        }
    }

    fn start(
        &self,
        shared: &Shared,
        origin: Origin,
        cgroup: &Arc<Cgroup>,
    ) -> Result<(Instance, OwnedFd), RestoreFailure> {
        let Ends { ours, reader, socket, stderr, given } = Ends::new().map_err(RestoreFailure::Closed)?;
        let restored = match &origin {
            Origin::Program { .. } => None,
            Origin::Snapshot { ready, .. } => Some(ready.parked.image.identity.clone()),
        };
        let host_id = host_id(shared, self.lease);
        let order = Order { origin, socket, stderr, host_id, cgroup: Arc::clone(cgroup) };
        let child = shared.spawner.spawn(order).map_err(|error| match error {
            SpawnError::Layer(error) => RestoreFailure::Closed(sandbox_error(error.layer, error.reason)),
            SpawnError::Restore(error) => RestoreFailure::Unusable(error.to_string()),
        })?;
        let known = shared.registry.started(self.lease.instance, &child, cgroup, self.grant.memory_bytes);
        known.map_err(|error| RestoreFailure::Closed(sandbox_error("supervision", error)))?;
        let (lease, grant, cgroup, tail) = (self.lease, self.grant, Arc::clone(cgroup), Tail::new(reader));
        Ok((Instance { lease, grant, child, cgroup, given, tail, restored }, ours))
    }
}

/// Whether mapping a model's pages keeps the one thread that makes children for some 10 ms at most: it is all in the page
/// cache, and not large.
fn is_quick(model: &File) -> bool {
    const BYTES_MAX: u64 = 256 << 20;
    model.metadata().is_ok_and(|metadata| metadata.len() <= BYTES_MAX) && resident(model).is_ok_and(|part| part == 1.0)
}

/// The user and group id on the host that a slot's runner has.
fn host_id(shared: &Shared, lease: Lease) -> u32 {
    shared.config.uid_base + lease.slot as u32
}

/// Removes a cgroup whatever is in it. What resists is swept when the next warden starts.
/// Removes a process's cgroup, once its CPU time has been read for the last time.
fn clear(shared: &Shared, cgroup: &Cgroup, lease: Lease) {
    let killed = cgroup.kill();
    match cgroup.cpu_us() {
        Ok(cpu_us) => shared.registry.ended(lease.instance, cpu_us),
        Err(error) => tracing::warn!(instance = lease.instance, %error, "its last CPU time is not known"),
    }
    if let Err(error) = killed.and_then(|()| cgroup.remove()) {
        tracing::error!(instance = lease.instance, %error, "a cgroup is left over");
    }
}

/// Longest wait for a restored runner to start its threads, a matter of a tenth of a millisecond.
const THREADS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long threads are kept apart: until they have begun to compute.
const APART: Duration = Duration::from_millis(100);

/// Between the first sign of a runner's end, such as that of its socket, and the end itself lie a few steps.
const LAST_STEPS: Duration = Duration::from_secs(1);

impl Instance {
    fn load(
        &mut self,
        shared: &Shared,
        spec: &RunnerSpec,
        model: &File,
        socket: &OwnedFd,
    ) -> Result<ModelInfo, LoadError> {
        let deadline = Instant::now() + shared.config.load_timeout;
        self.judge(audit::confinement(self.child.pid(), host_id(shared, self.lease), &self.cgroup))?;
        // The weights become ours before the runner may touch them, so that they are not charged to it.
        prefault(model).map_err(|error| LoadError::Refused(error.to_string()))?;
        let request = Load {
            task: spec.task,
            context_tokens: spec.context_tokens,
            slots: spec.slots,
            threads: self.grant.threads,
            system: spec.system.clone(),
        };
        let info = loading::load(socket, &self.child, &mut self.tail, request, deadline)?;
        self.judge_holdings()?;
        Ok(info)
    }

    /// Looks from outside at one that has nothing left to load.
    fn look(&self, shared: &Shared) -> Result<(), LoadError> {
        self.judge(audit::confinement(self.child.pid(), host_id(shared, self.lease), &self.cgroup))?;
        self.judge_holdings()
    }

    fn judge_holdings(&self) -> Result<(), LoadError> {
        let [stderr, socket] = self.given;
        self.judge(audit::holdings(self.child.pid(), stderr, socket))
    }

    /// What a look from outside means. Of a process that ends meanwhile the kernel tells less and less: it has ended.
    fn judge(&self, look: Result<(), LayerError>) -> Result<(), LoadError> {
        let Err(missing) = look else { return Ok(()) };
        match readable([Some(self.child.as_fd())], Some(Instant::now() + LAST_STEPS)) {
            Ok([true]) => Err(LoadError::Ended),
            _ => Err(LoadError::Unsealed(missing)),
        }
    }

    /// Ends one that did what it was for.
    fn stop(&self, shared: &Shared) {
        shared.registry.stops(self.lease.instance);
        self.kill(shared);
    }

    fn kill(&self, shared: &Shared) {
        shared.registry.read(self.lease.instance);
        if let Err(error) = self.child.kill() {
            tracing::error!(instance = self.lease.instance, %error, "an instance could not be killed");
        }
    }

    /// Ends an instance that did not load, and says why.
    fn fail(mut self, shared: &Shared, error: LoadError) -> WardenError {
        if error == LoadError::Ended {
            self.await_end(Some(Instant::now() + LAST_STEPS));
        }
        self.kill(shared);
        let cause = self.end(shared);
        match error {
            LoadError::Unsealed(missing) => sandbox_error(missing.layer, missing.reason),
            LoadError::Refused(reason) => WardenError::LoadFailed { reason },
            LoadError::Late => WardenError::LoadTimeout { limit_ms: shared.config.load_timeout.as_millis() as u64 },
            LoadError::Ended => WardenError::DiedLoading { cause },
        }
    }

    fn awake(&self, model: ModelInfo, tier: Tier, image_bytes: u64, cpu_before_us: u64, marks: &Marks) -> Awake {
        let (wake_us, parts) = marks.parts(Instant::now());
        let (instance, threads) = (self.lease.instance, self.grant.threads);
        Awake { instance, tier, wake_us, parts, cpu_before_us, threads, image_bytes, model }
    }

    /// Lets the server read what it uses.
    fn show_gauges(&self, shared: &Shared) {
        match self.cgroup.gauges() {
            Ok(gauges) => {
                let [cpu, memory] = gauges.files();
                shared.outbox.gauge(self.lease.instance, GaugeKind::Cpu, cpu.as_fd());
                shared.outbox.gauge(self.lease.instance, GaugeKind::Memory, memory.as_fd());
            }
            Err(error) => tracing::warn!(instance = self.lease.instance, %error, "what it uses cannot be read"),
        }
    }

    /// Waits until the process has ended, and takes what it writes meanwhile. Whether it has.
    fn await_end(&mut self, deadline: Option<Instant>) -> bool {
        loop {
            match readable([Some(self.child.as_fd()), self.tail.pipe()], deadline) {
                Ok([false, true]) => self.tail.take(),
                Ok([false, false]) => return false,
                // It has ended, or the kernel will not say: the wait that follows knows.
                _ => return true,
            }
        }
    }

    /// Waits for the process's end and leaves nothing of it.
    fn end(mut self, shared: &Shared) -> ExitCause {
        self.await_end(None);
        shared.registry.process_ended(self.lease.instance);
        // A child of ours that nobody else waits for: the kernel has no reason to refuse.
        let ended = self.child.wait().unwrap_or(Ended::Signal(0));
        let oom_kills = self.cgroup.oom_kills().unwrap_or(0);
        let stopping = shared.registry.is_stopping(self.lease.instance);
        let cause = cause(ended, oom_kills, stopping, self.grant.memory_bytes);
        clear(shared, &self.cgroup, self.lease);
        let said = self.tail.finish();
        tracing::info!(instance = self.lease.instance, %cause, said, "ended");
        cause
    }
}
