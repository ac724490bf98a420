//! What the kernel is told about a process: the same rules that it has, so that it refuses nothing half way through.

use super::{Result, at_most, ensure, field_fault};
use crate::{error::Fault, image::*, limits::*};

const SIGKILL: u8 = 9;
const SIGSTOP: u8 = 19;
const SIGNAL_MAX: u8 = 64;
const HANDLER_IGNORE: u64 = 1;
const SA_RESTORER: u64 = 0x0400_0000;
const SS_AUTODISARM: u32 = 1 << 31;
/// Length of `struct robust_list_head`, bytes.
const ROBUST_LIST_BYTES: u64 = 24;
/// Length of a thread id, bytes.
const TID_BYTES: u64 = 4;

pub(super) fn check(image: &Image) -> Result {
    let process = &image.process;
    check_comm(&process.comm)?;
    check_memory_fields(process)?;
    check_auxv(&process.auxv)?;
    check_thread(image)?;
    check_signal_stack(image)?;
    check_signal_actions(image)
}

fn check_comm(comm: &[u8]) -> Result {
    at_most("bytes of the thread's name", comm.len() as u64, COMM_BYTES_MAX as u64)?;
    ensure(!comm.contains(&0), || field_fault("a byte of the thread's name", 0, Fault::Value))
}

/// The rules of `prctl(PR_SET_MM_MAP)`.
fn check_memory_fields(process: &Process) -> Result {
    let pairs = [
        ("start_code", process.start_code, "end_code", process.end_code),
        ("start_data", process.start_data, "end_data", process.end_data),
        ("start_brk", process.start_brk, "brk", process.brk),
        ("arg_start", process.arg_start, "arg_end", process.arg_end),
        ("env_start", process.env_start, "env_end", process.env_end),
    ];
    for (start_name, start, end_name, end) in pairs {
        check_address(start_name, start)?;
        check_address(end_name, end)?;
        ensure(start <= end, || field_fault(end_name, end, Fault::OutOfOrder))?;
    }
    ensure(process.start_code < process.end_code, || field_fault("end_code", process.end_code, Fault::OutOfOrder))?;
    check_address("start_stack", process.start_stack)
}

fn check_address(field: &'static str, address: u64) -> Result {
    ensure((ADDRESS_MIN..ADDRESS_END).contains(&address), || field_fault(field, address, Fault::OutOfRange))
}

fn check_auxv(auxv: &[u8]) -> Result {
    at_most("bytes of the auxiliary vector", auxv.len() as u64, AUXV_BYTES_MAX as u64)?;
    ensure(auxv.len().is_multiple_of(16), || {
        field_fault("length of the auxiliary vector", auxv.len() as u64, Fault::Unaligned)
    })
}

/// What the kernel will write to when the thread ends or is preempted.
fn check_thread(image: &Image) -> Result {
    let process = &image.process;
    if process.tid_address != 0 {
        image.check_writable("tid_address", process.tid_address, TID_BYTES)?;
    }
    if process.robust_list != 0 {
        image.check_writable("robust_list", process.robust_list, ROBUST_LIST_BYTES)?;
    }
    let Some(rseq) = process.rseq else { return Ok(()) };
    let length = u64::from(rseq.length);
    ensure(RSEQ_BYTES.contains(&rseq.length), || field_fault("length of rseq", length, Fault::OutOfRange))?;
    ensure(rseq.address.is_multiple_of(32), || field_fault("rseq", rseq.address, Fault::Unaligned))?;
    image.check_writable("rseq", rseq.address, length)
}

fn check_signal_stack(image: &Image) -> Result {
    let Some(stack) = image.process.sigaltstack else { return Ok(()) };
    let flags = u64::from(stack.flags);
    ensure(stack.flags & !SS_AUTODISARM == 0, || field_fault("flags of sigaltstack", flags, Fault::Value))?;
    ensure(stack.bytes >= SIGNAL_STACK_BYTES_MIN, || {
        field_fault("length of sigaltstack", stack.bytes, Fault::OutOfRange)
    })?;
    image.check_writable("sigaltstack", stack.address, stack.bytes)
}

fn check_signal_actions(image: &Image) -> Result {
    let mut last = 0;
    for action in &image.process.signal_actions {
        let signal = u64::from(action.signal);
        let fault = |fault| field_fault("signal with an action", signal, fault);
        ensure(action.signal > last, || fault(Fault::OutOfOrder))?;
        let settable = action.signal <= SIGNAL_MAX && ![SIGKILL, SIGSTOP].contains(&action.signal);
        ensure(settable, || fault(Fault::Value))?;
        check_handler(image, action)?;
        last = action.signal;
    }
    Ok(())
}

fn check_handler(image: &Image, action: &SignalAction) -> Result {
    if action.handler != HANDLER_IGNORE {
        image.check_executable("handler of a signal", action.handler)?;
    }
    if action.flags & SA_RESTORER != 0 {
        image.check_executable("restorer of a signal", action.restorer)?;
    }
    Ok(())
}
