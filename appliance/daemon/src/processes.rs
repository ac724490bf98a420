//! The children as processes: started by running this program again, told to end, killed, reaped.
//!
//! A child runs `/proc/self/exe`, so that it is the same program even if its file was exchanged meanwhile. It inherits
//! its control socket as standard input, stderr for its log, and nothing else: every descriptor of the supervisor is
//! close-on-exec, the environment is empty but for what asks for back-traces. It has a process group of its own, so that
//! Ctrl-C at a terminal reaches the supervisor alone. Signals that the supervisor takes are blocked in it at first.

use crate::{
    arguments::LogFormat,
    control::{Control, Role, Start, What},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io,
    os::{fd::BorrowedFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
};

/// Variables that a child is given, where they are set.
const ENVIRONMENT: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// How children log.
#[derive(Clone, Debug)]
pub(crate) struct Logging {
    /// How lines look.
    pub(crate) format: LogFormat,
    /// What is logged.
    pub(crate) filter: String,
}

/// The children that run.
#[derive(Debug, Default)]
pub(crate) struct Processes(Vec<Process>);

#[derive(Debug)]
struct Process {
    role: Role,
    child: Child,
    control: Control,
}

impl Processes {
    /// Starts a child. None runs in its role.
    pub(crate) fn start(
        &mut self,
        role: Role,
        gifts: &[(What, BorrowedFd<'_>)],
        start: Start,
        logging: &Logging,
    ) -> io::Result<()> {
        let (control, theirs) = Control::prepare(gifts, start)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("emberd").args(["child", role.as_str()]);
        command.args(["--log-format", logging.format.as_str(), "--log", &logging.filter]);
        command.env_clear().envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(theirs).stdout(Stdio::null()).process_group(0);
        let child = command.spawn()?;
        tracing::info!(role = role.as_str(), pid = child.id(), "started");
        self.0.push(Process { role, child, control });
        Ok(())
    }

    /// Takes away those that have ended.
    pub(crate) fn reap(&mut self) -> Vec<(Role, ExitStatus)> {
        let ended = |process: &mut Process| {
            let status = process.child.try_wait().expect("our child, until we have waited for it");
            status.map(|status| (process.role, status))
        };
        let reaped: Vec<_> = self.0.iter_mut().filter_map(ended).collect();
        self.0.retain(|process| reaped.iter().all(|(role, _)| *role != process.role));
        reaped
    }

    /// The control socket of the child in a role, if it runs.
    pub(crate) fn control(&self, role: Role) -> Option<&Control> {
        self.find(role).map(|process| &process.control)
    }

    /// Tells a child to end by itself.
    pub(crate) fn tell(&self, role: Role) -> io::Result<()> {
        match self.find(role) {
            Some(process) if role == Role::Server => process.control.stop(),
            Some(process) => process.signal(Signal::SIGTERM),
            None => Ok(()),
        }
    }

    /// Schedules a thread of a child before all that computes, or as others are.
    pub(crate) fn set_urgent(&self, role: Role, thread: i32, is_urgent: bool) -> nix::Result<()> {
        self.find(role)
            .map_or(Ok(()), |process| sandbox_kernel::process::set_urgent(process.child.id(), thread, is_urgent))
    }

    /// Kills a child.
    pub(crate) fn kill(&self, role: Role) -> io::Result<()> {
        self.find(role).map_or(Ok(()), |process| process.signal(Signal::SIGKILL))
    }

    fn find(&self, role: Role) -> Option<&Process> {
        self.0.iter().find(|process| process.role == role)
    }
}

impl Process {
    /// It is our child and was not waited for, so its pid is its own.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}
