//! The warden: the one privileged process. It owns the model store and the sandboxes, has no network and no secrets, and
//! takes requests from one socket.
//!
//! ```text
//!  socket ──▶ desk ──┬─ wake ──▶ thread of an instance ──▶ spawner ──▶ runner in its sandbox
//!                    ├─ add ───▶ thread ──▶ store
//!                    ├─ update ▶ thread ──▶ the slot that does not run
//!                    ├─ park, snapshot ──▶ thread ──▶ snapshots
//!                    └─ stop, list, remove: at once
//!         ◀── outbox ◀── any of them
//! ```
//! Invariants: what a request asks for is cut to what this host gives; a layer of the sandbox that cannot be set up
//! means that nothing runs, and its name is told; every instance that was awake is reported ended once, after its
//! process is reaped and its cgroup removed. When the socket or the process ends, every instance ends first; after a
//! SIGKILL the kernel ends them (they die with the thread that made them), and the next warden sweeps their cgroups.
//!
//! Left out: when a function is woken, parked or stored. The server decides; what it asks for is found in the highest tier
//! that there is, and a snapshot that is not to be used costs a cold wake and no more.

mod decide;
mod desk;
mod disk;
#[cfg(test)]
mod fixture;
mod gguf;
mod identity;
mod instance;
mod life;
mod loading;
mod outbox;
mod program;
mod raw;
mod registry;
mod shared;
mod snapshot_file;
mod snapshots;
mod spares;
mod spawner;
mod store;
mod tail;
mod taking;
mod trial;
mod updates;

use desk::Desk;
use firmware_bundle::Place;
use identity::Machine;
use outbox::Outbox;
use registry::Registry;
use sandbox_kernel::{
    cgroup::{CgroupError, Cgroups},
    cores,
    ready::readable,
    socket::{PacketError, receive_packet, shut},
};
use sandbox_wire::{
    frame::decode_packet,
    warden::{PACKET_BYTES_MAX, WardenError},
};
use shared::Shared;
use signal_hook::{SigId, consts::SIGTERM, low_level};
use snapshots::Snapshots;
use spares::Spares;
use spawner::Spawner;
use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use store::Store;

/// User id of the first slot's runner; each slot has its own. Far above those that hosts give out.
pub const UID_BASE: u32 = 2_000_001_000;
/// Most instances.
pub const SLOTS_MAX: usize = 64;
/// Longest wait for a model to load, where nothing else is said.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// What a warden works with.
#[derive(Clone, Debug)]
pub struct WardenConfig {
    /// Folder of the model store.
    pub models: PathBuf,
    /// Folder of the snapshots, which only root may enter.
    pub snapshots: PathBuf,
    /// The runner's program: static, root's, writable by nobody else.
    pub runner: PathBuf,
    /// Names this appliance's cgroups among others on the host: a-z, 0-9 and `-`. The same at every start, so that what a
    /// killed warden left is found.
    pub tag: String,
    /// CPUs that instances may compute on.
    pub inference_cpus: u32,
    /// Most private memory of one instance, bytes.
    pub memory_bytes_max: u64,
    /// User id of the first slot's runner.
    pub uid_base: u32,
    /// Most instances, up to [`SLOTS_MAX`].
    pub slots: usize,
    /// Longest wait for a model to load.
    pub load_timeout: Duration,
    /// Whether sandboxes may lack Landlock where the kernel has none.
    pub may_lack_layers: bool,
    /// The appliance's slots, on a machine that Ember booted.
    pub update: Option<Place>,
    /// What is done when a slot was changed, for the machine to start again; nothing, where somebody else sees to that.
    pub after_update: Option<fn()>,
}

impl WardenConfig {
    /// A configuration with defaults: [`UID_BASE`], [`SLOTS_MAX`], [`LOAD_TIMEOUT`].
    pub fn new(
        models: PathBuf,
        snapshots: PathBuf,
        runner: PathBuf,
        tag: String,
        inference_cpus: u32,
        memory_bytes_max: u64,
    ) -> Self {
        let (uid_base, slots, load_timeout) = (UID_BASE, SLOTS_MAX, LOAD_TIMEOUT);
        Self {
            models,
            snapshots,
            runner,
            tag,
            inference_cpus,
            memory_bytes_max,
            uid_base,
            slots,
            load_timeout,
            may_lack_layers: false,
            update: None,
            after_update: None,
        }
    }
}

/// Why a warden cannot work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host cannot limit instances.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] WardenError),
    /// The runner's program cannot be used.
    #[error("runner {}: {reason}", path.display())]
    Runner {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused something basic.
    #[error("{action}: {error}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What it said.
        error: io::Error,
    },
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> RunError {
    move |error| RunError::System { action, error: error.into() }
}

/// Serves requests from `socket` (SOCK_SEQPACKET) until it ends or SIGTERM comes, and leaves no instance behind.
///
/// # Errors
/// The warden cannot begin, or its socket failed.
pub fn run(config: WardenConfig, socket: OwnedFd) -> Result<(), RunError> {
    let socket = Arc::new(socket);
    let (shared, terminate) = (begin(config, &socket)?, Terminate::new()?);
    let mut desk = Desk::new(Arc::clone(&shared));
    let served = serve(&mut desk, &socket, &terminate);
    // A thread that waits for a server which does not read must not keep us.
    let _ = shut(socket.as_fd());
    desk.close();
    shared.cgroups.close()?;
    tracing::info!("all instances have ended");
    served
}

fn begin(config: WardenConfig, socket: &Arc<OwnedFd>) -> Result<Arc<Shared>, RunError> {
    let program = program::open(&config.runner)?;
    let machine = Machine::new(&program).map_err(system("read the runner's program"))?;
    let cores = decide::inference_cores(cores::usable().map_err(system("count the cores"))?, config.inference_cpus);
    let cgroups = Cgroups::open(&config.tag)?;
    let swept = cgroups.sweep()?;
    tracing::info!(hierarchy = ?cgroups.hierarchy(), swept, "cgroups are ready");
    Ok(Arc::new(Shared {
        store: Store::open(&config.models)?,
        snapshots: Snapshots::open(&config.snapshots, machine, cores.clone())?,
        cpu_before_us: cgroups.cpu_us()?,
        cgroups,
        spares: Spares::default(),
        registry: Registry::new(config.slots.min(SLOTS_MAX), cores.clone()),
        outbox: Outbox::new(Arc::clone(socket)),
        spawner: Spawner::start(
            program.try_clone().map_err(system("duplicate the runner's program"))?,
            config.may_lack_layers,
            cores,
        )
        .map_err(system("start a thread"))?,
        program,
        config,
    }))
}

fn serve(desk: &mut Desk, socket: &OwnedFd, terminate: &Terminate) -> Result<(), RunError> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let places = [Some(socket.as_fd()), Some(terminate.signalled.as_fd())];
        let [spoke, terminated] = readable(places, None).map_err(system("wait for a request"))?;
        if terminated {
            return Ok(());
        }
        if spoke && !take(desk, socket, &mut buffer)? {
            return Ok(());
        }
    }
}

/// Takes one packet; `false` when the server is gone.
fn take(desk: &mut Desk, socket: &OwnedFd, buffer: &mut [u8]) -> Result<bool, RunError> {
    match receive_packet(socket, buffer) {
        Ok(None) => return Ok(false),
        Ok(Some(packet)) => match decode_packet(&buffer[..packet.length]) {
            Ok(request) => desk.take(request, packet.descriptor),
            Err(error) => tracing::warn!(%error, "a packet that is no request"),
        },
        Err(PacketError::Kernel(error)) => return Err(system("receive a request")(error)),
        Err(error) => tracing::warn!(%error, "a packet that cannot be taken"),
    }
    Ok(true)
}

/// SIGTERM as something to wait for, while it lives.
struct Terminate {
    signalled: UnixStream,
    handler: SigId,
}

impl Terminate {
    fn new() -> Result<Self, RunError> {
        let (signalled, signal) = UnixStream::pair().map_err(system("make a socket"))?;
        let handler = low_level::pipe::register(SIGTERM, signal).map_err(system("handle SIGTERM"))?;
        Ok(Self { signalled, handler })
    }
}

impl Drop for Terminate {
    fn drop(&mut self) {
        low_level::unregister(self.handler);
    }
}
