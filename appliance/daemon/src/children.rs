//! What each child may do: every child begins as root with nothing but its control socket, opens what it needs, and gives
//! up the rest.
//!
//! | child | user | network | working directory | holds |
//! |---|---|---|---|---|
//! | warden | root | own, empty | `/` | its end of the pair to the server |
//! | server | [`SERVER_ID`] | the host's | `DIR` | listeners (telemetry's and the agent check's too), its end of the pair, the meter's rings, the bell, an end of the questions' socket |
//! | ledger | [`LEDGER_ID`] | own, empty | `DIR/ledger` | the meter's rings, the bell's other end, the questions' other end |
//!
//! `DIR` may lie below a folder that these users cannot go through, so each child moves there while it is root and goes
//! on by relative paths. Server and ledger have no capabilities, no_new_privs, no core dumps and umask 077.
//!
//! How they end: server and warden are killed by the kernel when the supervisor ends, so that a killed supervisor leaves
//! nothing; the ledger ends when all who could ring its bell are gone, with the last record written.

use crate::{
    control::{self, Beginning, Role, Start, What},
    data::{LEDGER, LEDGER_ID, MODELS, SERVER_ID, SNAPSHOTS, UPDATE_FLOOR},
    exit::Failure,
    resources::resources,
    server,
    setup::{SERVER_FILES, ServerSetup},
};
use appliance_config::{ServeConfig, UpdateConfig};
use firmware_bundle::{MACHINE, Place, minisign::PublicKey};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
        stat::{Mode, umask},
    },
    unistd::getppid,
};
use sandbox_kernel::{
    pressure::{self, MemoryPressure},
    process::{die_with_parent, drop_privileges, keep_no_free_memory, leave_network, run_soon},
};
use sandbox_warden::{RunError, WardenConfig};
use std::{
    env::set_current_dir,
    fs::{self, DirBuilder},
    net::TcpListener,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::Path,
    time::Duration,
};

/// Descriptors of the server that are no client's: instances' sockets, files, rings.
const OTHER_FILES: u64 = 4096;
/// What the server's rings may pin, where that can be had: a restart needs it while the last life's are being released.
const PINNED_BYTES: u64 = 256 << 20;

/// Becomes the child, until it ends.
pub(crate) fn run(role: Role) -> Result<(), Failure> {
    let Beginning { control, gifts, start } =
        control::receive_start().map_err(Failure::of("receive from", "the supervisor, on standard input"))?;
    let gifts = Gifts(gifts);
    name_and_unblock(role).map_err(Failure::of("set up", "signals"))?;
    match role {
        Role::Warden => warden(gifts, &start),
        Role::Server => serve(control, gifts, start),
        Role::Ledger => ledger(gifts, &start),
    }
}

/// What came along with the start.
struct Gifts(Vec<(What, OwnedFd)>);

impl Gifts {
    fn take_all(&mut self, what: What) -> Vec<OwnedFd> {
        self.0.extract_if(.., |(given, _)| *given == what).map(|(_, descriptor)| descriptor).collect()
    }

    fn take(&mut self, what: What) -> Result<OwnedFd, Failure> {
        self.take_all(what).pop().ok_or_else(|| Failure::Bug(format!("{what:?} was not given")))
    }
}

fn warden(mut gifts: Gifts, start: &Start) -> Result<(), Failure> {
    let config = start.source.resolve()?;
    set_current_dir("/").map_err(Failure::of("go to", "/"))?;
    leave_network().map_err(Failure::of("leave", "the network"))?;
    keep_no_free_memory();
    stay_with(start)?;
    let resources = resources(&config)?;
    let load_timeout = Duration::from_millis(config.load_timeout_ms);
    let update = config.update.as_ref().map(|update| updates(update, &start.data)).transpose()?;
    let after_update = config.update.as_ref().filter(|update| update.restart).map(|_| end_the_service as fn());
    let config = WardenConfig::new(
        start.data.join(MODELS),
        start.data.join(SNAPSHOTS),
        start.runner.clone(),
        start.tag.clone(),
        resources.cores,
        resources.memory,
    );
    let may_lack_layers = start.source.may_lack_layers();
    let config = WardenConfig { load_timeout, update, after_update, may_lack_layers, ..config };
    sandbox_warden::run(config, gifts.take(What::Peer)?).map_err(warden_failure)
}

/// The slots of a machine that Ember booted.
fn updates(config: &UpdateConfig, data: &Path) -> Result<Place, Failure> {
    let read = |path: &String| {
        let unusable = |reason: String| Failure::Unusable(format!("[update]: {path}: {reason}"));
        let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        PublicKey::parse(&text).map_err(|error| unusable(error.to_string()))
    };
    Ok(Place {
        folder: config.slots.clone().into(),
        floor: data.join(UPDATE_FLOOR),
        key: config.key.as_ref().map(read).transpose()?,
        machine: MACHINE.to_owned(),
        running: config.running,
    })
}

/// Asks the supervisor, the warden's parent, to end: it lets requests end, the one for the update among them.
fn end_the_service() {
    if let Err(errno) = kill(getppid(), Signal::SIGTERM) {
        tracing::error!(%errno, "the supervisor cannot be asked to end: start the machine again by hand");
    }
}

fn warden_failure(error: RunError) -> Failure {
    match error {
        RunError::Cgroup(error) => Failure::Missing { feature: "cgroup".to_owned(), fix: error.to_string() },
        RunError::Runner { path, reason } => {
            Failure::Missing { feature: "ember-runner".to_owned(), fix: format!("{}: {reason}", path.display()) }
        }
        other => Failure::Service(other.to_string()),
    }
}

fn serve(control: OwnedFd, mut gifts: Gifts, start: Start) -> Result<(), Failure> {
    let config = start.source.resolve()?;
    set_current_dir(&start.data).map_err(Failure::of("go to", &start.data))?;
    raise_limits(&config)?;
    // While it may: what is configured may be root's.
    let pressure = pressure(&config)?;
    // While it may.
    if let Err(error) = run_soon() {
        tracing::warn!(%error, "the server is scheduled as any other");
    }
    become_user(SERVER_ID)?;
    stay_with(&start)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(SERVER_FILES.functions)
        .map_err(Failure::of("make", SERVER_FILES.functions))?;
    let (speaker, orders) = control::split(control).map_err(Failure::of("duplicate", "the control socket"))?;
    server::run(ServerSetup {
        listeners: gifts.take_all(What::Listener).into_iter().map(TcpListener::from).collect(),
        telemetry_listener: gifts.take_all(What::TelemetryListener).pop().map(TcpListener::from),
        agent_listener: gifts.take_all(What::AgentListener).pop().map(TcpListener::from),
        address: start.address,
        warden: gifts.take(What::Peer)?,
        rings: gifts.take_all(What::Ring),
        bell: gifts.take(What::Bell)?,
        questions: gifts.take(What::Questions)?,
        pressure,
        speaker,
        orders,
        config,
        files: SERVER_FILES,
    })
}

/// The kernel's word of how short memory is. A file that was named must give it; the host's may be missing.
fn pressure(config: &ServeConfig) -> Result<Option<MemoryPressure>, Failure> {
    let path = config.memory_pressure.as_deref().unwrap_or(pressure::HOST);
    match MemoryPressure::watch(Path::new(path)) {
        Ok(pressure) => Ok(Some(pressure)),
        Err(error) if config.memory_pressure.is_none() => {
            tracing::info!(%error, "memory pressure is not watched");
            Ok(None)
        }
        Err(error) => Err(Failure::Unusable(format!("memory_pressure: {path}: {error}"))),
    }
}

fn ledger(mut gifts: Gifts, start: &Start) -> Result<(), Failure> {
    let folder = start.data.join(LEDGER);
    set_current_dir(&folder).map_err(Failure::of("go to", &folder))?;
    leave_network().map_err(Failure::of("leave", "the network"))?;
    become_user(LEDGER_ID)?;
    let (rings, bell) = (gifts.take_all(What::Ring), gifts.take(What::Bell)?);
    let questions = gifts.take(What::Questions)?;
    appliance_ledger::run(Path::new("."), &rings, bell, Some(questions))
        .map_err(|error| Failure::Service(format!("ledger: {error}")))
}

fn become_user(id: u32) -> Result<(), Failure> {
    umask(Mode::from_bits_truncate(0o077));
    drop_privileges(id, id).map_err(Failure::of("drop", "privileges"))
}

/// Must come after the change of user, which would undo it.
fn stay_with(start: &Start) -> Result<(), Failure> {
    match die_with_parent(start.supervisor_pid).map_err(Failure::of("follow", "the supervisor"))? {
        true => Ok(()),
        false => Err(Failure::Service("the supervisor is gone".to_owned())),
    }
}

fn raise_limits(config: &ServeConfig) -> Result<(), Failure> {
    let wanted = u64::from(config.limits.connections) + OTHER_FILES;
    let files = raise(Resource::RLIMIT_NOFILE, wanted)?;
    if files < wanted {
        tracing::warn!(files, wanted, "too few open files for `limits.connections`; raise the hard limit (ulimit -Hn)");
    }
    let pinned_bytes = raise(Resource::RLIMIT_MEMLOCK, PINNED_BYTES)?;
    tracing::debug!(files, pinned_bytes, "limits");
    Ok(())
}

/// Raises a limit as far as this process may; says how far that is.
fn raise(resource: Resource, wanted: u64) -> Result<u64, Failure> {
    let failed = || Failure::of("raise the limit", format!("{resource:?}"));
    let (soft, hard) = getrlimit(resource).map_err(failed())?;
    let set = |soft, hard: u64| setrlimit(resource, soft, hard).map(|()| soft);
    match set(soft.max(wanted), hard.max(wanted)) {
        Err(Errno::EPERM) => set(hard, hard).map_err(failed()),
        other => other.map_err(failed()),
    }
}

/// Names the process for `ps`, and takes signals as usual again, but for those that mean the supervisor. The ledger waits
/// for its SIGTERM in a way that wants it blocked.
fn name_and_unblock(role: Role) -> nix::Result<()> {
    let mut blocked: SigSet = [Signal::SIGHUP, Signal::SIGINT].into_iter().collect();
    let name = match role {
        Role::Warden => c"ember-warden",
        Role::Server => c"ember-server",
        Role::Ledger => {
            blocked.add(Signal::SIGTERM);
            c"ember-ledger"
        }
    };
    blocked.thread_set_mask()?;
    prctl::set_name(name)
}
