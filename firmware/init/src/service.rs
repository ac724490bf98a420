//! The service's life: started, asked how it does, trusted, and ended.
//!
//! ```text
//!            ┌──────────── a second, or a signal ◀───────────────────────────────┐
//!            ▼                                                                   │
//!  started ─ reap ─▶ notes of the network ─▶ ask how it does ─▶ lives? ─ feed ───┘
//!              │ it ended                                          │ no, or a signal
//!              ▼                                                   ▼
//!            the machine ends ◀────────── it ended, or END_MAX ── asked to end, no longer fed
//! ```

use crate::{
    console::{Screen, say},
    error::InitError,
    health::{Check, Health},
    preload::Preload,
    slots::Slots,
    watchdog::Watchdog,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        reboot::RebootMode,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

/// How long nothing is looked at, where nothing happens.
const TICK_MS: u16 = 1000;
/// How long the service may take to end; below the watchdog's patience, above what emberd grants its children.
const END_MAX: Duration = Duration::from_secs(45);
/// Certificates are renewed at a reload, which nobody else asks for here.
const RELOAD_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A slot that answered, and that could not be said to be trusted, is tried again to be: there may be room then.
const TRUST_EVERY: Duration = Duration::from_secs(300);
const AUTHORITY: &str = "tls/ca.pem";

/// What a service is watched with.
pub(crate) struct Watch<'a> {
    /// Its process.
    pub(crate) service: Pid,
    /// Where it was told to listen.
    pub(crate) listen: SocketAddr,
    /// Its folder.
    pub(crate) data: &'a Path,
    /// This machine's slots.
    pub(crate) slots: Slots,
    /// The addresses that the network's side gets.
    pub(crate) addresses: Receiver<IpAddr>,
    /// The machine's watchdog.
    pub(crate) watchdog: Watchdog,
    /// Time for its first answer, and as much for what came with the image to be deployed before.
    pub(crate) start: Duration,
    /// Longest time for a question before that answer.
    pub(crate) first_question: Duration,
    /// SHA-256 of a certificate.
    pub(crate) fingerprint: crate::Fingerprint,
    /// The machine's name.
    pub(crate) hostname: &'a str,
}

/// Why and until when the service is given time to end.
struct End {
    how: RebootMode,
    until: Instant,
}

/// Signals that are waited for, blocked for all else. Before any thread is started.
pub(crate) fn take_signals() -> Result<SignalFd, InitError> {
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR]);
    signals.thread_block().map_err(InitError::kernel("signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&signals, flags).map_err(InitError::kernel("signals"))
}

impl Watch<'_> {
    /// Until the service has ended; how the machine ends then.
    pub(crate) fn run(mut self, signals: &SignalFd) -> RebootMode {
        let began = Instant::now();
        let mut preload = Preload::begin(self.data, began, self.start, |within| self.own("preload", within));
        let (mut health, mut check) = (Health::new(began, self.start), Check::new(began, self.first_question));
        let mut trust = began;
        let (mut screen, mut shown) = (self.screen(), Screen::default());
        let (mut end, mut reload): (Option<End>, _) = (None, began + RELOAD_EVERY);
        loop {
            screen.show(&mut shown);
            wait(signals);
            while let Ok(Some(signal)) = signals.read_signal() {
                let asked = Signal::try_from(signal.ssi_signo as i32).ok().and_then(how);
                end = end.or_else(|| asked.map(|how| self.end(how, "a signal")));
            }
            let ended = reap();
            if let Some((_, status)) = ended.iter().find(|(pid, _)| *pid == self.service) {
                say(format_args!("the service ended: {status:?}"));
                return self.last(end.map_or(RebootMode::RB_AUTOBOOT, |end| end.how));
            }
            let now = Instant::now();
            for (pid, status) in ended {
                let succeeded = matches!(status, WaitStatus::Exited(_, 0));
                // A slot on trial has waited for it: its time begins now.
                if preload.ended(pid.as_raw(), succeeded) && self.slots.is_on_trial() {
                    health = Health::new(now, self.start);
                }
                if let Some(said) = check.ended(pid.as_raw(), succeeded, health.is_up(), now) {
                    self.heard(said, &mut health, &mut screen);
                }
            }
            preload.step(now);
            if self.slots.is_trust_owed() && now >= trust {
                self.trust(&mut screen);
                trust = now + TRUST_EVERY;
            }
            let is_renewed = self.take_address(&mut screen);
            if health.is_up() && (is_renewed || now >= reload) {
                self.reload();
                reload = now + RELOAD_EVERY;
            }
            match &end {
                Some(end) if now >= end.until => return self.last(end.how),
                Some(_) => {}
                // Asked before, functions that are to answer may not be there yet.
                None if self.slots.is_on_trial() && preload.is_running() => self.watchdog.feed(),
                None if health.lives(now) => {
                    self.watchdog.feed();
                    if let Err(error) = check.step(now, health.is_up(), |within| self.question(within)) {
                        screen.fault = Some(format!("the service cannot be asked: {error}"));
                    }
                }
                None => end = Some(self.end(RebootMode::RB_AUTOBOOT, "it gives no answer")),
            }
        }
    }

    fn screen(&self) -> Screen {
        Screen {
            name: format!("{}: {}", self.hostname, self.slots.summary()),
            state: "starting",
            address: Some(self.listen).filter(|address| !address.ip().is_unspecified()),
            ..Screen::default()
        }
    }

    /// A command of emberd's about its service, that ends within that time.
    fn own(&self, command: &str, within: Duration) -> Command {
        let mut own = Command::new("/init");
        own.arg(command).arg("--data").arg(self.data).arg("--within").arg(within.as_secs().to_string());
        own.env("NO_COLOR", "1");
        own
    }

    /// `emberd health`; of a slot on trial a function must answer, too.
    fn question(&self, within: Duration) -> Command {
        let mut question = self.own("health", within);
        if self.slots.is_on_trial() {
            question.arg("--answer");
        }
        question
    }

    fn heard(&mut self, said: Result<String, String>, health: &mut Health, screen: &mut Screen) {
        match said {
            Ok(said) if health.answer(Instant::now()) => {
                say(&said);
                self.slots.passed();
                screen.state = "serving";
                // Of a start nothing is left once it has come to its end.
                screen.fault = None;
                screen.fingerprint = self.fingerprint();
                self.reload();
            }
            Ok(_) => screen.state = "serving",
            Err(fault) if health.is_up() => {
                screen.state = "not answering";
                screen.fault = Some(fault);
            }
            Err(fault) => screen.fault = Some(fault),
        }
    }

    fn trust(&mut self, screen: &mut Screen) {
        self.slots.bless();
        screen.name = format!("{}: {}", self.hostname, self.slots.summary());
    }

    fn fingerprint(&self) -> Option<String> {
        let pem = fs::read_to_string(self.data.join(AUTHORITY)).ok()?;
        (self.fingerprint)(&pem).map_err(|reason| say(format_args!("{AUTHORITY}: {reason}"))).ok()
    }

    /// Whether there is a new one.
    fn take_address(&self, screen: &mut Screen) -> bool {
        let Some(address) = self.addresses.try_iter().last() else { return false };
        if self.listen.ip().is_unspecified() {
            screen.address = Some(SocketAddr::new(address, self.listen.port()));
        }
        true
    }

    /// Its certificate has the addresses that there were when it was made, and runs out some day.
    fn reload(&self) {
        let _ = kill(self.service, Signal::SIGHUP);
    }

    fn end(&self, how: RebootMode, why: &str) -> End {
        say(format_args!("{why}: the service is asked to end"));
        let _ = kill(self.service, Signal::SIGTERM);
        End { how, until: Instant::now() + END_MAX }
    }

    /// A machine that starts again goes on being watched.
    fn last(self, how: RebootMode) -> RebootMode {
        if how == RebootMode::RB_POWER_OFF {
            self.watchdog.stop();
        }
        how
    }
}

/// What a signal asks of the machine; Ctrl-Alt-Del is SIGINT.
fn how(signal: Signal) -> Option<RebootMode> {
    match signal {
        Signal::SIGCHLD => None,
        Signal::SIGINT => Some(RebootMode::RB_AUTOBOOT),
        _ => Some(RebootMode::RB_POWER_OFF),
    }
}

fn wait(signals: &SignalFd) {
    // Whether anything came is found out by reading.
    let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::from(TICK_MS));
}

/// Takes all that ended.
fn reap() -> Vec<(Pid, WaitStatus)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(status) => ended.extend(status.pid().map(|pid| (pid, status))),
            Err(_) => {}
        }
    }
}
