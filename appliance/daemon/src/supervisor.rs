//! The supervisor: makes everything that the children share, starts them, and starts them again.
//!
//! ```text
//!  flags, file ─▶ configuration ─▶ kernel features ─▶ data folder, keys, certificates ─▶ listening sockets
//!                                                                                              │
//!      ┌──────────────────────────── wait: signals, the server's words, a deadline ◀──────────┘
//!      │ SIGCHLD ─▶ reap          SIGHUP ─▶ read file, renew certificate, Reload
//!      │ SIGTERM, SIGINT ─▶ stop  Ready ─▶ DIR/address, `ready https://…` (once)
//!      │ Urgency ─▶ real time for a thread of the server, or not
//!      └─▶ Machine::on(event) ─▶ start, tell, kill, finish
//! ```
//!
//! Invariants: nothing is touched before all of the configuration is valid. The listening sockets and the meter's rings
//! stay open here, so while a child is being started again no connection is refused and nothing that was metered is
//! lost. The pair between server and warden is made anew for each start, and held by those two alone, so that each
//! sees the other's end. One thread, which waits for events and never polls; a child that does not listen cannot hold
//! it up. When the supervisor is killed, server and warden die with it, and the ledger ends by itself once it has
//! written what is queued.

use crate::{
    arguments::{Flags, LogFormat},
    control::{Control, FromChild, Role, Start, What},
    data::Data,
    exit::{Failure, is_final},
    machine::{Action, Event, Machine, Unit},
    meters::Meters,
    processes::{Logging, Processes},
    source::Source,
    telemetry_files, tls,
};
use appliance_config::ServeConfig;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use sandbox_kernel::{
    cgroup::Cgroups,
    probe::{self, Probe},
    ready::readable,
    socket::packet_pair,
};
use std::{
    collections::VecDeque,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant, SystemTime},
};

/// Starts that may fail in a row before the service was ever ready; then there is no point in going on.
const FAILURES_BEFORE_READY_MAX: u32 = 5;

/// Serves until SIGTERM or SIGINT.
pub(crate) fn serve(flags: &Flags, format: LogFormat, filter: &str) -> Result<(), Failure> {
    let source = Source::read(flags)?;
    let config = source.resolve()?;
    require_machine(source.may_lack_layers())?;
    let runner = runner()?;
    let signals = take_signals().map_err(Failure::of("watch", "signals"))?;
    let data = Data::open(&config.data)?;
    data.require_reachable()?;
    data.ensure_admin_key()?;
    data.ensure_prices()?;
    tls::ensure(data.path(), config.listen.ip(), SystemTime::now())?;
    let listeners = listen(config.listen)?;
    let telemetry = listen_alone(config.telemetry_listen)?;
    let agent = listen_alone(config.agent_listen)?;
    ensure_telemetry(&data, &config, telemetry.as_ref())?;
    telemetry_files::note_boot(data.path(), SystemTime::now())?;
    Supervisor {
        address: listeners[0].local_addr().map_err(Failure::of("look at", "the listening socket"))?,
        meters: Meters::new(listeners.len()).map_err(Failure::of("make", "the meter's rings"))?,
        logging: Logging { format, filter: filter.to_owned() },
        machine: Machine::new(Duration::from_millis(config.restart_delay_ms), Instant::now()),
        processes: Processes::default(),
        stage: Stage::Starting,
        hears_server: false,
        fault: None,
        outcome: Ok(()),
        flags: flags.clone(),
        source,
        drain: Duration::from_millis(config.drain_ms),
        data,
        runner,
        listeners,
        telemetry,
        agent,
        signals,
    }
    .run()
}

/// How far the service has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Never ready so far.
    Starting,
    /// It was ready, and is or will be again.
    Serving,
    /// All children are gone.
    Finished,
}

struct Supervisor {
    flags: Flags,
    source: Source,
    drain: Duration,
    data: Data,
    runner: PathBuf,
    address: SocketAddr,
    listeners: Vec<TcpListener>,
    telemetry: Option<TcpListener>,
    agent: Option<TcpListener>,
    meters: Meters,
    logging: Logging,
    signals: SignalFd,
    machine: Machine,
    processes: Processes,
    stage: Stage,
    hears_server: bool,
    /// The last child that did not end well.
    fault: Option<(Role, ExitStatus)>,
    outcome: Result<(), Failure>,
}

impl Supervisor {
    fn run(mut self) -> Result<(), Failure> {
        while self.stage != Stage::Finished {
            self.handle(Event::Time);
            self.wait()?;
        }
        self.data.remove_address()?;
        leave_no_cgroup(&self.data.tag());
        tracing::info!("stopped");
        self.outcome
    }

    fn wait(&mut self) -> Result<(), Failure> {
        if self.stage == Stage::Finished {
            return Ok(());
        }
        let server = self.processes.control(Role::Server).filter(|_| self.hears_server).map(AsFd::as_fd);
        let [signalled, spoke] = readable([Some(self.signals.as_fd()), server], self.machine.wake_at())
            .map_err(Failure::of("wait for", "the children"))?;
        if spoke {
            self.hear_server()?;
        }
        if signalled {
            self.take_signals()?;
        }
        Ok(())
    }

    fn take_signals(&mut self) -> Result<(), Failure> {
        while let Some(signal) = self.signals.read_signal().map_err(Failure::of("read", "signals"))? {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGHUP) => self.reload(),
                Ok(signal) => {
                    tracing::info!(%signal, drain = ?self.drain, "stopping");
                    self.hears_server = false;
                    // Whoever calls from now on is refused at once, and not kept waiting for nobody.
                    self.listeners.clear();
                    self.telemetry = None;
                    self.agent = None;
                    self.handle(Event::Stop { drain: self.drain });
                }
                Err(errno) => return Err(Failure::Bug(format!("an unknown signal was taken: {errno}"))),
            }
        }
        Ok(())
    }

    /// Hands an event to the machine, and does what it says, and so on with what comes of that.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.on(event, Instant::now()) {
                events.extend(self.act(action));
            }
        }
    }

    fn act(&mut self, action: Action) -> Vec<Event> {
        match action {
            Action::Start(unit) => return self.start(unit),
            Action::Tell(role) => {
                if role == Role::Ledger {
                    self.meters.fall_silent();
                }
                report(role, "tell it to end", self.processes.tell(role));
            }
            Action::Kill(role) => {
                tracing::warn!(role = role.as_str(), "killed: it cannot go on, or did not end in time");
                report(role, "kill it", self.processes.kill(role));
            }
            Action::Finish => self.stage = Stage::Finished,
        }
        Vec::new()
    }

    /// Starts a unit. What cannot be started counts as ended.
    fn start(&mut self, unit: Unit) -> Vec<Event> {
        let started = match unit {
            Unit::Service => self.start_service(),
            Unit::Ledger => self.start_ledger(),
        };
        let Err(error) = started else { return Vec::new() };
        tracing::error!(?unit, %error, "cannot be started");
        let missing = unit.roles().iter().filter(|role| self.processes.control(**role).is_none());
        missing.map(|role| Event::Ended(*role)).collect()
    }

    fn start_service(&mut self) -> io::Result<()> {
        let (servers, wardens) = packet_pair()?;
        let start = self.begin();
        self.processes.start(Role::Warden, &[(What::Peer, wardens.as_fd())], start.clone(), &self.logging)?;
        let mut gifts: Vec<(What, BorrowedFd<'_>)> = vec![(What::Peer, servers.as_fd())];
        gifts.extend(self.meters.for_server());
        gifts.extend(self.listeners.iter().map(|listener| (What::Listener, listener.as_fd())));
        gifts.extend(self.telemetry.iter().map(|listener| (What::TelemetryListener, listener.as_fd())));
        gifts.extend(self.agent.iter().map(|listener| (What::AgentListener, listener.as_fd())));
        self.processes.start(Role::Server, &gifts, start, &self.logging)?;
        self.hears_server = true;
        Ok(())
    }

    fn start_ledger(&mut self) -> io::Result<()> {
        let start = self.begin();
        let gifts: Vec<_> = self.meters.for_ledger().collect();
        self.processes.start(Role::Ledger, &gifts, start, &self.logging)
    }

    fn begin(&self) -> Start {
        Start {
            supervisor_pid: std::process::id(),
            data: self.data.path().to_owned(),
            tag: self.data.tag(),
            runner: self.runner.clone(),
            address: self.address,
            source: self.source.clone(),
        }
    }

    fn reap(&mut self) {
        for (role, status) in self.processes.reap() {
            if status.success() {
                tracing::info!(role = role.as_str(), "ended");
            } else {
                tracing::warn!(role = role.as_str(), %status, "ended");
                self.fault = Some((role, status));
            }
            self.handle(Event::Ended(role));
            if self.stage == Stage::Starting && self.outcome.is_ok() {
                self.give_up_if_hopeless(role);
            }
        }
    }

    /// A service that never came up, and will not by trying again, ends with the code of what failed.
    fn give_up_if_hopeless(&mut self, ended: Role) {
        let Some((role, status)) = self.fault else { return };
        if is_final(status) || self.machine.failures(ended) >= FAILURES_BEFORE_READY_MAX {
            self.outcome = Err(Failure::Child { role: role.as_str(), status });
            self.handle(Event::Stop { drain: Duration::ZERO });
        }
    }

    fn hear_server(&mut self) -> Result<(), Failure> {
        match self.processes.control(Role::Server).map_or(Ok(None), Control::hear) {
            Ok(Some(FromChild::Ready)) if self.stage == Stage::Starting => return self.announce(),
            Ok(Some(FromChild::Ready)) => tracing::info!("requests are answered again"),
            Ok(Some(FromChild::Urgency { thread, is_urgent })) => {
                if let Err(error) = self.processes.set_urgent(Role::Server, thread, is_urgent) {
                    tracing::debug!(%error, thread, is_urgent, "a thread of the server is scheduled as before");
                }
            }
            Ok(None) => self.hears_server = false,
            Err(error) => {
                tracing::warn!(%error, "the server's word cannot be read");
                self.hears_server = false;
            }
        }
        Ok(())
    }

    fn announce(&mut self) -> Result<(), Failure> {
        self.stage = Stage::Serving;
        self.data.write_address(self.address)?;
        if let Some(listener) = &self.telemetry {
            let address = listener.local_addr().map_err(Failure::of("look at", "the socket of telemetry"))?;
            self.data.write_telemetry_address(address)?;
            tracing::info!(%address, "telemetry is answered");
        }
        if let Some(listener) = &self.agent {
            let address = listener.local_addr().map_err(Failure::of("look at", "the socket of the agent check"))?;
            tracing::info!(%address, "the agent check is answered");
        }
        tracing::info!(address = %self.address, "requests are answered");
        let mut stdout = io::stdout().lock();
        let printed = writeln!(stdout, "ready https://{}", self.address).and_then(|()| stdout.flush());
        // Nobody may be listening to it any more; the service is no worse for that.
        printed.unwrap_or_else(|error| tracing::warn!(%error, "the ready line was not printed"));
        Ok(())
    }

    /// Takes the configuration file and the certificates anew, or keeps everything as it is.
    fn reload(&mut self) {
        let read = Source::read(&self.flags).and_then(|source| Ok((source.resolve()?, source)));
        let (config, source) = match read {
            Ok(read) => read,
            Err(failure) => return tracing::error!(%failure, "the configuration is kept as it was"),
        };
        if self.source.resolve().is_ok_and(|old| needs_restart(&old, &config)) {
            tracing::warn!("`data`, `listen`, `telemetry_listen` and `agent_listen` change at a restart only");
        }
        if let Err(failure) = tls::ensure(self.data.path(), self.address.ip(), SystemTime::now()) {
            tracing::error!(%failure, "the certificates are kept as they were");
        }
        if let Err(failure) = ensure_telemetry(&self.data, &config, self.telemetry.as_ref()) {
            tracing::error!(%failure, "the files of telemetry are kept as they were");
        }
        self.drain = Duration::from_millis(config.drain_ms);
        self.source = source;
        if let Some(server) = self.processes.control(Role::Server) {
            report(Role::Server, "have it reload", server.reload(self.source.clone()));
        }
    }
}

/// Removes the cgroups, also those of a warden that had to be killed.
fn leave_no_cgroup(tag: &str) {
    let swept = Cgroups::open(tag).and_then(|groups| {
        groups.sweep()?;
        groups.close()
    });
    swept.unwrap_or_else(|error| tracing::error!(%error, "cgroups are left"));
}

fn needs_restart(old: &ServeConfig, new: &ServeConfig) -> bool {
    let of = |config: &ServeConfig| (config.listen, config.telemetry_listen, config.agent_listen);
    old.data != new.data || of(old) != of(new)
}

fn report(role: Role, action: &str, done: io::Result<()>) {
    if let Err(error) = done {
        tracing::error!(role = role.as_str(), %error, "cannot {action}");
    }
}

fn require_machine(may_lack_layers: bool) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let fix = "run emberd as root, or by sudo: it makes a sandbox and a user for every instance";
        return Err(Failure::Missing { feature: "root".to_owned(), fix: fix.to_owned() });
    }
    let probes = probe::all();
    let lacking = probe::require(&probes, may_lack_layers).map_err(|missing| Failure::Missing {
        feature: missing.name.to_owned(),
        fix: missing.outcome.clone().err().unwrap_or_default(),
    })?;
    for Probe { name, outcome, .. } in lacking {
        let reason = outcome.as_ref().err();
        tracing::warn!(layer = name, reason, "insecure sandbox: a layer is missing, and functions run without it");
    }
    Ok(())
}

/// The runner's program: installed beside this one.
fn runner() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(Failure::of("find", "/proc/self/exe"))?;
    runner_beside(&own, is_v4()).map_err(|runner| Failure::Missing {
        feature: "ember-runner".to_owned(),
        fix: format!("install it beside emberd, as {}", runner.display()),
    })
}

/// The runner built for x86-64-v4 where the processor is one, and there is one; where there is none at all, what is missing.
fn runner_beside(own: &Path, is_v4: bool) -> Result<PathBuf, PathBuf> {
    let [v4, any] = ["ember-runner-v4", "ember-runner"].map(|name| own.with_file_name(name));
    match any.is_file() {
        _ if is_v4 && v4.is_file() => Ok(v4),
        true => Ok(any),
        false => Err(any),
    }
}

/// Whether this processor has all of x86-64-v4.
fn is_v4() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Blocks the signals that are waited for. Children inherit that, and undo it.
fn take_signals() -> nix::Result<SignalFd> {
    let signals = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect::<SigSet>();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// One listening socket for each core of the server.
///
/// They share the address by SO_REUSEPORT, which would let a second emberd take half of the connections: so the address
/// is first taken alone, to find out whether somebody else has it.
fn listen(address: SocketAddr) -> Result<Vec<TcpListener>, Failure> {
    let failed = || Failure::of("listen on", address.to_string());
    if address.port() != 0 {
        drop(TcpListener::bind(address).map_err(failed())?);
    }
    let cores = appliance_runtime::available_cores().map_err(Failure::of("count", "the cores"))?;
    let listeners = appliance_runtime::listeners(address, cores.len().max(1)).map_err(failed())?;
    for listener in &listeners {
        listener.set_nonblocking(true).map_err(failed())?;
    }
    Ok(listeners)
}

/// One socket: whoever asks there is served beside the requests of one core.
fn listen_alone(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let failed = || Failure::of("listen on", address.to_string());
    let listener = TcpListener::bind(address).map_err(failed())?;
    listener.set_nonblocking(true).map_err(failed())?;
    Ok(Some(listener))
}

/// Sees to what a fleet knows the box by, where it listens for one.
fn ensure_telemetry(data: &Data, config: &ServeConfig, listener: Option<&TcpListener>) -> Result<(), Failure> {
    let Some(listener) = listener else { return Ok(()) };
    let address = listener.local_addr().map_err(Failure::of("look at", "the socket of telemetry"))?;
    telemetry_files::ensure(data.path(), config, address, SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_the_one_for_this_processor() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let taken = |is_v4| runner_beside(&at("emberd"), is_v4);
        assert_eq!(taken(true), Err(at("ember-runner")));
        std::fs::write(at("ember-runner"), "").unwrap();
        assert_eq!(taken(true), Ok(at("ember-runner")));
        std::fs::write(at("ember-runner-v4"), "").unwrap();
        assert_eq!((taken(true), taken(false)), (Ok(at("ember-runner-v4")), Ok(at("ember-runner"))));
    }
}
