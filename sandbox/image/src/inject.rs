//! Calls that a stopped process is made to make, to learn what only it can ask.
//!
//! ```text
//!  stopped in read() ──▶ registers set before its `syscall` instruction ──one step──▶ result in rax ──▶ next, or back
//! ```
//! Answers are written below the red zone of its stack, which by the ABI holds nothing. Whoever injects puts the
//! registers back.

use crate::{
    error::{CaptureError, Result},
    memory::Memory,
    registers::{SYSCALL, calling},
};
use nix::{errno::Errno, libc};
use sandbox_kernel::trace::{Registers, Stop, Tracee};
use sandbox_snapshot::image::{SignalAction, SignalStack};

/// Below the 128 bytes under the stack pointer that a function may use without moving it.
const SCRATCH_BELOW_STACK: u64 = 512;
const PR_GET_TID_ADDRESS: u64 = 40;
/// The kernel's `sigset_t`.
const SIGNAL_SET_BYTES: u64 = 8;

/// A stopped process that answers.
pub(crate) struct Injector<'a> {
    tracee: &'a mut Tracee,
    memory: &'a Memory,
    registers: Registers,
    scratch: u64,
}

impl<'a> Injector<'a> {
    /// `registers` stand at a `syscall` instruction.
    pub(crate) fn new(tracee: &'a mut Tracee, memory: &'a Memory, registers: Registers) -> Result<Self, CaptureError> {
        let mut code = [0; SYSCALL.len()];
        let read = memory.read(registers.rip, &mut code);
        if read.is_err() || code != SYSCALL {
            return Err(CaptureError::Restless("it waits at no system call instruction"));
        }
        let scratch = registers.rsp.wrapping_sub(SCRATCH_BELOW_STACK) & !15;
        Ok(Self { tracee, memory, registers, scratch })
    }

    fn call(&mut self, call: &'static str, number: libc::c_long, arguments: [u64; 6]) -> Result<u64, CaptureError> {
        let step = |tracee: &mut Tracee, registers| {
            tracee.set_registers(registers)?;
            tracee.step()
        };
        match step(self.tracee, calling(self.registers, number, arguments)).map_err(trace("inject a call"))? {
            Stop::Signal(libc::SIGTRAP) => {}
            Stop::Ended(ended) => return Err(CaptureError::Ended(ended)),
            _ => return Err(CaptureError::Restless("a signal came")),
        }
        let result = self.tracee.registers().map_err(trace("read registers"))?.rax;
        match result as i64 {
            failed @ -4095..0 => Err(CaptureError::Injected { call, error: Errno::from_raw(-failed as i32) }),
            _ => Ok(result),
        }
    }

    fn answer<const N: usize>(&self) -> Result<[u64; N], CaptureError> {
        let words = self.memory.words(self.scratch);
        words.map_err(|error| CaptureError::Read { path: "the process's stack".to_owned(), error })
    }

    /// Where the kernel writes 0 when the thread ends.
    pub(crate) fn tid_address(&mut self) -> Result<u64, CaptureError> {
        self.call("prctl", libc::SYS_prctl, [PR_GET_TID_ADDRESS, self.scratch, 0, 0, 0, 0])?;
        let [address] = self.answer()?;
        Ok(address)
    }

    /// The end of its heap, to the byte.
    pub(crate) fn brk(&mut self) -> Result<u64, CaptureError> {
        self.call("brk", libc::SYS_brk, [0; 6])
    }

    /// The stack that its signal handlers run on.
    pub(crate) fn signal_stack(&mut self) -> Result<Option<SignalStack>, CaptureError> {
        self.call("sigaltstack", libc::SYS_sigaltstack, [0, self.scratch, 0, 0, 0, 0])?;
        let [address, flags, bytes] = self.answer()?;
        let flags = flags as u32;
        Ok((flags & libc::SS_DISABLE as u32 == 0).then_some(SignalStack { address, bytes, flags }))
    }

    /// What it does at a signal.
    pub(crate) fn signal_action(&mut self, signal: u8) -> Result<SignalAction, CaptureError> {
        let arguments = [u64::from(signal), 0, self.scratch, SIGNAL_SET_BYTES, 0, 0];
        self.call("rt_sigaction", libc::SYS_rt_sigaction, arguments)?;
        let [handler, flags, restorer, mask] = self.answer()?;
        Ok(SignalAction { signal, handler, flags, restorer, mask })
    }
}

pub(crate) fn trace(attempted: &'static str) -> impl Fn(Errno) -> CaptureError {
    move |error| CaptureError::Trace { attempted, error }
}
