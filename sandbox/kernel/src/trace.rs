//! A process held by ptrace: its registers and what else of it only the kernel knows.
//!
//! ```text
//!  seize ──▶ running ──interrupt, a trap──▶ stopped ──step──▶ stopped ──detach──▶ running, free
//!                                              └──────────── drop ─────────────▶
//! ```
//! Invariants: a tracee belongs to the thread that seized it, so a [`Tracee`] cannot be sent to another. The tracee dies
//! with that thread. Waiting never takes a zombie away: that is left to whoever holds the process.
#![allow(unsafe_code)]

pub use nix::libc::user_regs_struct as Registers;

use crate::pidfd::{Ended, Pid};
use nix::{
    Result,
    errno::Errno,
    libc,
    sys::ptrace::{self, Options},
};
use std::{ffi::c_void, marker::PhantomData, mem::MaybeUninit};

/// Larger than any extended state: AVX-512 needs 2.5 KiB, AMX another 8.
const XSTATE_BYTES_MAX: usize = 16 << 10;
/// Register set of the extended state (`NT_X86_XSTATE` of `linux/elf.h`), which the C library does not name.
const NT_X86_XSTATE: libc::c_int = 0x202;
/// `PTRACE_GET_RSEQ_CONFIGURATION` of `linux/ptrace.h`, likewise.
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// `PTRACE_O_SUSPEND_SECCOMP` of `linux/ptrace.h`, likewise.
const SUSPEND_SECCOMP: libc::c_int = 1 << 21;
/// Marks a stop at a system call, with `PTRACE_O_TRACESYSGOOD`.
const CALL: i32 = libc::SIGTRAP | 0x80;
/// `PTRACE_EVENT_STOP` of `linux/ptrace.h`, likewise: the stop that was asked for.
const EVENT_STOP: i32 = 128;

/// Why a tracee no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was interrupted.
    Interrupt,
    /// It is about to make a system call.
    Call,
    /// This signal is about to be delivered.
    Signal(i32),
    /// It has ended.
    Ended(Ended),
}

/// A registration of restartable sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rseq {
    /// The area's address; 0 when none is registered.
    pub address: u64,
    /// Its length.
    pub bytes: u32,
    /// The word before each abort handler.
    pub signature: u32,
}

/// A process that this thread traces.
#[derive(Debug)]
pub struct Tracee {
    pid: Pid,
    of_this_thread: PhantomData<*const ()>,
}

impl Tracee {
    /// Begins to trace a process. It goes on running, and dies if this thread does.
    ///
    /// # Errors
    /// The kernel's: it is gone, not ours to trace, or traced already.
    pub fn seize(pid: Pid) -> Result<Self> {
        ptrace::seize(pid, options())?;
        Ok(Self { pid, of_this_thread: PhantomData })
    }

    /// Lets the stopped process run injected calls that its own seccomp filter would kill it for.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn suspend_seccomp(&mut self) -> Result<()> {
        ptrace::setoptions(self.pid, options() | Options::from_bits_retain(SUSPEND_SECCOMP))
    }

    /// Stops it, and returns when it has stopped.
    ///
    /// # Errors
    /// The kernel's; `ESRCH` when it has ended.
    pub fn interrupt(&mut self) -> Result<Stop> {
        ptrace::interrupt(self.pid)?;
        self.wait()
    }

    /// Waits for its next stop, or its end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> Result<Stop> {
        let (code, status) = wait(self.pid, libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT)?;
        match code {
            libc::CLD_EXITED => return Ok(Stop::Ended(Ended::Exit(status))),
            libc::CLD_KILLED | libc::CLD_DUMPED => return Ok(Stop::Ended(Ended::Signal(status))),
            _ => {}
        }
        wait(self.pid, libc::WSTOPPED)?;
        Ok(match (status >> 8, status & 0xff) {
            (EVENT_STOP, _) => Stop::Interrupt,
            (_, CALL) => Stop::Call,
            (_, signal) => Stop::Signal(signal),
        })
    }

    /// Lets the stopped process enter its next system call, and stops it there as soon as it would wait, or is done.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter_next_call(&mut self) -> Result<Stop> {
        ptrace::syscall(self.pid, None)?;
        match self.wait()? {
            Stop::Call => {}
            other => return Ok(other),
        }
        // Pending from now on, it ends any wait at once.
        ptrace::interrupt(self.pid)?;
        ptrace::cont(self.pid, None)?;
        self.wait()
    }

    /// Runs one instruction, and waits for the stop after it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn step(&mut self) -> Result<Stop> {
        ptrace::step(self.pid, None)?;
        self.wait()
    }

    /// Its general registers.
    ///
    /// # Errors
    /// The kernel's; `ESRCH` while it runs.
    pub fn registers(&self) -> Result<Registers> {
        ptrace::getregs(self.pid)
    }

    /// Sets its general registers.
    ///
    /// # Errors
    /// The kernel's; `EIO` for values that no program could have.
    pub fn set_registers(&mut self, registers: Registers) -> Result<()> {
        ptrace::setregs(self.pid, registers)
    }

    /// Its floating point and vector state, as XSAVE lays it out.
    ///
    /// # Errors
    /// The kernel's.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        let mut state = vec![0; XSTATE_BYTES_MAX];
        let bytes = self.register_set(libc::PTRACE_GETREGSET, &mut state)?;
        state.truncate(bytes);
        Ok(state)
    }

    /// Sets its floating point and vector state.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` or `EFAULT` for a state that this machine does not have.
    pub fn set_xstate(&mut self, state: &[u8]) -> Result<()> {
        self.register_set(libc::PTRACE_SETREGSET, &mut state.to_vec()).map(drop)
    }

    fn register_set(&self, request: libc::c_uint, state: &mut [u8]) -> Result<usize> {
        let mut set = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
        // SAFETY: nix knows no NT_X86_XSTATE. `set` describes a slice that is ours alone and outlives the call; the kernel
        // stays within it and stores in `set` how much of it was used.
        Errno::result(unsafe { libc::ptrace(request, self.pid.as_raw(), NT_X86_XSTATE as usize, &raw mut set) })?;
        Ok(set.iov_len)
    }

    /// Its registration of restartable sequences.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rseq(&self) -> Result<Rseq> {
        // {address: u64, bytes: u32, signature: u32, flags: u32, padding: u32}
        let mut words = [0_u32; 6];
        self.read(GET_RSEQ_CONFIGURATION, size_of_val(&words), words.as_mut_ptr().cast())?;
        let address = u64::from(words[0]) | u64::from(words[1]) << 32;
        Ok(Rseq { address, bytes: words[2], signature: words[3] })
    }

    /// The signals that it blocks, a bit each, signal 1 lowest.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal_mask(&self) -> Result<u64> {
        let mut mask = 0_u64;
        self.read(libc::PTRACE_GETSIGMASK, size_of_val(&mask), (&raw mut mask).cast())?;
        Ok(mask)
    }

    fn read(&self, request: libc::c_uint, bytes: usize, to: *mut c_void) -> Result<()> {
        // SAFETY: nix lacks these requests. Both callers give the size of what `to` points to, a local of theirs, and the
        // kernel writes no more than that.
        Errno::result(unsafe { libc::ptrace(request, self.pid.as_raw(), bytes, to) }).map(drop)
    }

    /// Its list of robust futexes: the head's address and length.
    ///
    /// # Errors
    /// The kernel's.
    pub fn robust_list(&self) -> Result<(u64, u64)> {
        let (mut head, mut bytes) = (0_u64, 0_u64);
        // SAFETY: neither nix nor the C library has this call. It stores two words in two words of ours.
        let answer =
            unsafe { libc::syscall(libc::SYS_get_robust_list, self.pid.as_raw(), &raw mut head, &raw mut bytes) };
        Errno::result(answer)?;
        Ok((head, bytes))
    }

    /// Lets it go on, no longer traced.
    ///
    /// # Errors
    /// The kernel's; `ESRCH` when it has ended.
    pub fn detach(mut self) -> Result<()> {
        let detached = self.let_go();
        std::mem::forget(self);
        detached
    }

    fn let_go(&mut self) -> Result<()> {
        ptrace::detach(self.pid, None)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // Refused if it runs or has ended: it then dies with this thread, or is dead.
        let _ = self.let_go();
    }
}

fn options() -> Options {
    Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD
}

fn wait(pid: Pid, options: libc::c_int) -> Result<(libc::c_int, libc::c_int)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: nix's waitid refuses real-time signals. The pointer is to a whole siginfo_t.
        let waited =
            unsafe { libc::waitid(libc::P_PID, pid.as_raw() as libc::id_t, info.as_mut_ptr(), options | libc::__WALL) };
        match Errno::result(waited) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: zeroed is a valid siginfo_t, and the kernel has filled in the part for a child.
    Ok(unsafe { (info.assume_init_ref().si_code, info.assume_init_ref().si_status()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that sleeps until it is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> (Self, Tracee) {
            let sleeper = Self(Command::new("/bin/sleep").arg("1000").spawn().unwrap());
            let tracee = Tracee::seize(Pid::from_raw(sleeper.0.id() as i32)).unwrap();
            (sleeper, tracee)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_stopped_process_shows_its_state() {
        let (_sleeper, mut tracee) = Sleeper::start();
        assert_eq!(tracee.registers().map(|r| r.rip), Err(Errno::ESRCH));
        assert_eq!(tracee.interrupt(), Ok(Stop::Interrupt));
        assert_ne!(tracee.registers().unwrap().rip, 0);
        let state = tracee.xstate().unwrap();
        assert!(state.len() >= 576, "{}", state.len());
        tracee.set_xstate(&state).unwrap();
        assert_eq!(tracee.xstate().unwrap(), state);
        assert_eq!(tracee.signal_mask(), Ok(0));
        tracee.rseq().unwrap();
        tracee.robust_list().unwrap();
    }

    #[test]
    fn a_process_is_stopped_where_it_waits() {
        let (_sleeper, mut tracee) = Sleeper::start();
        assert_eq!(tracee.interrupt(), Ok(Stop::Interrupt));
        // A sleep that was interrupted is gone on with by `restart_syscall`.
        let sleeps = [libc::SYS_clock_nanosleep as u64, libc::SYS_restart_syscall as u64];
        while !sleeps.contains(&tracee.registers().unwrap().orig_rax) {
            assert_eq!(tracee.enter_next_call(), Ok(Stop::Interrupt));
        }
        assert_eq!(tracee.enter_next_call(), Ok(Stop::Interrupt));
        assert_eq!(tracee.registers().unwrap().orig_rax, libc::SYS_restart_syscall as u64);
    }

    #[test]
    fn an_end_is_told_and_the_zombie_left() {
        let (mut sleeper, mut tracee) = Sleeper::start();
        sleeper.0.kill().unwrap();
        assert_eq!(tracee.wait(), Ok(Stop::Ended(Ended::Signal(libc::SIGKILL))));
        assert!(!sleeper.0.wait().unwrap().success());
    }
}
