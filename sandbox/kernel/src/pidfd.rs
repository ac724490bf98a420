//! A process by descriptor: a signal or a wait that can never reach another process that got its number.
#![allow(unsafe_code)]

pub use nix::unistd::Pid;

use nix::{Result, errno::Errno, libc};
use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// A process. Its descriptor becomes readable when it has ended.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens a running process.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn open(pid: Pid) -> Result<Self> {
        // SAFETY: nix has no pidfd_open. It takes two numbers.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    pub(crate) fn from_owned(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Kills the process; fine if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self) -> Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: nix has no pidfd_send_signal. A null siginfo is allowed and means that of kill(2).
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, no_info, 0) };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the process, a child of ours, has ended, and takes its zombie away.
    ///
    /// # Errors
    /// `ECHILD` when it is not ours, or was waited for.
    pub fn wait(&self) -> Result<Ended> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            // SAFETY: nix's waitid refuses real-time signals, having reaped. The pointer is to a whole siginfo_t.
            let waited = unsafe {
                libc::waitid(libc::P_PIDFD, self.0.as_raw_fd() as libc::id_t, info.as_mut_ptr(), libc::WEXITED)
            };
            match Errno::result(waited) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        // SAFETY: zeroed is a valid siginfo_t, and the kernel has filled in the part for a child.
        let (code, status) = unsafe { (info.assume_init_ref().si_code, info.assume_init_ref().si_status()) };
        Ok(if code == libc::CLD_EXITED { Ended::Exit(status) } else { Ended::Signal(status) })
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn spawn(command: &str) -> (Pidfd, std::process::Child) {
        let child = Command::new("/bin/sh").args(["-c", command]).spawn().unwrap();
        (Pidfd::open(Pid::from_raw(child.id() as i32)).unwrap(), child)
    }

    #[test]
    fn tells_how_a_process_ended() {
        assert_eq!(spawn("exit 7").0.wait(), Ok(Ended::Exit(7)));
        let (sleeper, _child) = spawn("exec sleep 1000");
        sleeper.kill().unwrap();
        assert_eq!(sleeper.wait(), Ok(Ended::Signal(libc::SIGKILL)));
        assert_eq!(sleeper.kill(), Ok(()));
        assert_eq!(sleeper.wait(), Err(Errno::ECHILD));
    }

    #[test]
    fn tells_a_real_time_signal() {
        assert_eq!(spawn("kill -40 $$").0.wait(), Ok(Ended::Signal(40)));
    }
}
