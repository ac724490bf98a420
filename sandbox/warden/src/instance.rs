//! The life of one instance, on a thread of its own.
//!
//! ```text
//!  lease ──▶ cgroup ──▶ process in its sandbox ──▶ model loaded ──▶ handed to the server ──▶ ended ──▶ nothing left
//!              │              │ confined?              │ holds what it was given, no more?     ▲
//!              └──────────────┴────────────────────────┴── failed: the reply says why ─────────┘
//! ```
//! Invariants: nothing is told to a process that is not confined as it was asked for, and none is handed over that holds
//! more than it was given; a layer that is missing is named instead. Whichever way it goes, the process is waited for,
//! its cgroup is removed, and only then is anyone told.
//!
//! The server's end of the socket is handed over and closed here: from then on only the runner holds the other end, so
//! the server learns of its death from the socket, before the warden's `Exited` tells why.

use crate::{
    decide::{Grant, cause, grant},
    loading::{self, LoadError},
    registry::Lease,
    shared::Shared,
    spawner::{Order, sandbox_error},
    tail::Tail,
};
use appliance_types::Tier;
use sandbox_kernel::{
    audit::{self, Inode},
    cgroup::Cgroup,
    memory::prefault,
    mounts::detach_file,
    pidfd::Ended,
    ready::readable,
    socket::stream_pair,
    spawn::{Child, LayerError},
};
use sandbox_wire::{
    runner::{Load, ModelInfo},
    warden::{Awake, ExitCause, Reply, RunnerSpec, WardenError},
};
use std::{
    fs::File,
    io::{self, pipe},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs an instance from its lease to its end, and says what is to be said. Its slot is free before anyone is told.
pub(crate) fn live(shared: &Shared, lease: Lease, request: u64, spec: &RunnerSpec, begun: Instant) {
    let ended = match wake(shared, lease, spec) {
        Ok(woken) => Ok(serve(shared, woken, request, begun)),
        Err(error) => Err(error),
    };
    let released = shared.registry.release(lease.instance);
    match ended {
        Ok(cause) => shared.outbox.exited(lease.instance, cause),
        Err(error) => {
            tracing::warn!(instance = lease.instance, function = %spec.function, %error, "not woken");
            shared.outbox.reply(request, Err(error));
        }
    }
    released.stops.into_iter().for_each(|stop| shared.outbox.reply(stop, Ok(Reply::Stopped)));
}

/// Hands an instance over to the server, and waits for its end.
fn serve(shared: &Shared, (instance, model, socket): Woken, request: u64, begun: Instant) -> ExitCause {
    let awake = instance.awake(model, begun);
    tracing::info!(instance = awake.instance, wake_us = awake.wake_us, "awake");
    shared.outbox.hand_over(request, Reply::Awake(awake), socket.as_fd());
    drop(socket);
    instance.end(shared)
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
}

/// An instance with its model loaded, and the server's end of its socket.
type Woken = (Instance, ModelInfo, OwnedFd);

fn wake(shared: &Shared, lease: Lease, spec: &RunnerSpec) -> Result<Woken, WardenError> {
    let model = shared.store.model(&spec.model)?;
    let model_bytes = model.metadata().map_err(|error| sandbox_error("root", error))?.len();
    let grant = grant(spec, model_bytes, shared.config.memory_bytes_max, shared.config.inference_cpus);
    let name = format!("{}-{}", spec.function, lease.instance);
    let cgroup = shared.cgroups.create(&name, &grant.limits).map_err(|error| sandbox_error("cgroup", error))?;
    let cgroup = Arc::new(cgroup);
    let started = start(shared, lease, grant, &model, &cgroup);
    let (mut instance, socket) = started.inspect_err(|_| clear(&cgroup, lease))?;
    match instance.load(shared, spec, &model, &socket) {
        Ok(info) => Ok((instance, info, socket)),
        Err(error) => Err(instance.fail(shared, error)),
    }
}

fn start(
    shared: &Shared,
    lease: Lease,
    grant: Grant,
    model: &File,
    cgroup: &Arc<Cgroup>,
) -> Result<(Instance, OwnedFd), WardenError> {
    let descriptors = |error: io::Error| sandbox_error("descriptors", error);
    let model = detach_file(model).map_err(|error| sandbox_error("root", format_args!("mount the model: {error}")))?;
    let (ours, socket) = stream_pair().map_err(|error| descriptors(error.into()))?;
    let (reader, stderr) = pipe().map_err(descriptors)?;
    let given = [Inode::of(&stderr).map_err(descriptors)?, Inode::of(&socket).map_err(descriptors)?];
    let host_id = host_id(shared, lease);
    let order = Order { model, socket, stderr, host_id, cgroup: Arc::clone(cgroup) };
    let child = shared.spawner.spawn(order)?;
    let known = shared.registry.started(lease.instance, &child, cgroup);
    known.map_err(|error| sandbox_error("supervision", error))?;
    let (cgroup, tail) = (Arc::clone(cgroup), Tail::new(reader));
    Ok((Instance { lease, grant, child, cgroup, given, tail }, ours))
}

/// The user and group id on the host that a slot's runner has.
fn host_id(shared: &Shared, lease: Lease) -> u32 {
    shared.config.uid_base + lease.slot as u32
}

/// Removes a cgroup whatever is in it. What resists is swept when the next warden starts.
fn clear(cgroup: &Cgroup, lease: Lease) {
    if let Err(error) = cgroup.kill().and_then(|()| cgroup.remove()) {
        tracing::error!(instance = lease.instance, %error, "a cgroup is left over");
    }
}

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
        let [stderr, socket] = self.given;
        self.judge(audit::holdings(self.child.pid(), stderr, socket))?;
        Ok(info)
    }

    /// What a look from outside means. Of a process that ends meanwhile the kernel tells less and less: it has ended.
    fn judge(&self, look: Result<(), LayerError>) -> Result<(), LoadError> {
        let Err(missing) = look else { return Ok(()) };
        match readable([Some(self.child.as_fd())], Some(Instant::now() + LAST_STEPS)) {
            Ok([true]) => Err(LoadError::Ended),
            _ => Err(LoadError::Unsealed(missing)),
        }
    }

    /// Ends an instance that did not load, and says why.
    fn fail(mut self, shared: &Shared, error: LoadError) -> WardenError {
        if error == LoadError::Ended {
            self.await_end(Some(Instant::now() + LAST_STEPS));
        }
        if let Err(error) = self.child.kill() {
            tracing::error!(instance = self.lease.instance, %error, "an instance could not be killed");
        }
        let cause = self.end(shared);
        match error {
            LoadError::Unsealed(missing) => sandbox_error(missing.layer, missing.reason),
            LoadError::Refused(reason) => WardenError::LoadFailed { reason },
            LoadError::Late => WardenError::LoadTimeout { limit_ms: shared.config.load_timeout.as_millis() as u64 },
            LoadError::Ended => WardenError::DiedLoading { cause },
        }
    }

    fn awake(&self, model: ModelInfo, begun: Instant) -> Awake {
        let wake_us = begun.elapsed().as_micros() as u64;
        Awake { instance: self.lease.instance, tier: Tier::Cold, wake_us, threads: self.grant.threads, model }
    }

    /// Waits until the process has ended, and takes what it writes meanwhile.
    fn await_end(&mut self, deadline: Option<Instant>) {
        loop {
            match readable([Some(self.child.as_fd()), self.tail.pipe()], deadline) {
                Ok([false, true]) => self.tail.take(),
                // It has ended, time is up, or the kernel will not say: the wait that follows knows.
                _ => return,
            }
        }
    }

    /// Waits for the process's end and leaves nothing of it.
    fn end(mut self, shared: &Shared) -> ExitCause {
        self.await_end(None);
        // A child of ours that nobody else waits for: the kernel has no reason to refuse.
        let ended = self.child.wait().unwrap_or(Ended::Signal(0));
        let oom_kills = self.cgroup.oom_kills().unwrap_or(0);
        let stopping = shared.registry.is_stopping(self.lease.instance);
        let cause = cause(ended, oom_kills, stopping, self.grant.memory_bytes);
        clear(&self.cgroup, self.lease);
        let said = self.tail.finish();
        tracing::info!(instance = self.lease.instance, %cause, said, "ended");
        cause
    }
}
