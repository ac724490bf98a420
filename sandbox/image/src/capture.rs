//! Capture: what a process at rest is made of.
//!
//! ```text
//!  running ──off its device──▶ seize, interrupt ──▶ stopped ──look──▶ Held: a Capture, and its memory to read
//!     ▲                                               │ refused         │ resume, drop, or killed by who holds it
//!     └───── back onto its device ◀──── detach ◀──────┴─────────────────┘
//! ```
//! The process must come to rest: one thread, waiting in a system call that can be made anew, no signal pending. If it is
//! on its way there, it is let go on, call by call. It is left as it was found: the few calls it is made to make only ask
//! ([`crate::inject`]), and its registers are put back.
//!
//! Trap: a process that computes and makes no call holds the capture up. Who cannot wait kills it, from another thread.
//!
//! Left out: descriptors. An image assumes that those at the restore mean the same.

use crate::{
    classify::{self, Beneath},
    device::{Device, Suspended},
    error::{CaptureError, Result},
    inject::{Injector, trace},
    maps::{self, Mapping},
    memory::Memory,
    pages::{Pagemap, Pages},
    process::{self, Layout, Status},
    registers,
};
use sandbox_kernel::{
    pidfd::Pid,
    trace::{Registers, Stop, Tracee},
};
use sandbox_snapshot::image::{
    self, Capture, DeviceState, Extent, Identity, MappingKind, Process, RseqArea, Source, Span,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
};

/// The files that a captured process may have mapped.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The program that it runs.
    pub program: &'a File,
    /// Its model.
    pub model: &'a File,
}

/// A captured process, stopped and off its device. When it is dropped, the process goes on.
#[derive(Debug)]
pub struct Held<'a> {
    // Fields are dropped in their order: let go, then resumed.
    tracee: Tracee,
    memory: Memory,
    capture: Capture,
    suspended: Suspended<'a>,
}

impl<'a> Held<'a> {
    /// Takes a process off its device, stops and captures it.
    ///
    /// # Errors
    /// See [`CaptureError`]. The process then goes on.
    pub fn capture(
        pid: Pid,
        identity: Identity,
        files: &Files<'_>,
        device: &'a dyn Device,
    ) -> Result<Self, CaptureError> {
        let process = pid.as_raw();
        let suspended = Suspended::new(device, pid).map_err(CaptureError::Device)?;
        let mut tracee = Tracee::seize(pid).map_err(trace("seize"))?;
        interrupted(tracee.interrupt())?;
        let memory =
            Memory::open(process).map_err(|error| CaptureError::Read { path: format!("/proc/{pid}/mem"), error })?;
        let mut capture = look(process, &mut tracee, &memory, identity, files)?;
        capture.device = suspended.state();
        Ok(Self { tracee, memory, capture, suspended })
    }

    /// What it is made of.
    pub fn image(&self) -> &Capture {
        &self.capture
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended, or could not be taken back onto its device and was killed.
    pub fn resume(self) -> Result<(), CaptureError> {
        let Self { tracee, suspended, .. } = self;
        tracee.detach().map_err(trace("detach"))?;
        suspended.end().map_err(CaptureError::Device)
    }
}

fn look(
    pid: i32,
    tracee: &mut Tracee,
    memory: &Memory,
    identity: Identity,
    files: &Files<'_>,
) -> Result<Capture, CaptureError> {
    let registers = settle(tracee)?;
    let status = status(pid)?;
    at_rest(&status)?;
    let (mappings, kept, data) = address_space(pid, files)?;
    if status.seccomp != 0 {
        tracee.suspend_seccomp().map_err(trace("suspend seccomp"))?;
    }
    let extended = tracee.xstate().map_err(trace("read the extended state"))?;
    let asked = ask(pid, tracee, memory, registers, &status);
    let put_back = tracee.set_registers(registers).map_err(trace("put the registers back"));
    let process = asked?;
    put_back?;
    let registers = image::Registers { general: registers::to_bytes(&registers), extended };
    Ok(Capture { identity, registers, process, mappings, kept, data, note: Vec::new(), device: DeviceState::default() })
}

fn status(pid: i32) -> Result<Status, CaptureError> {
    let text = process::read_text(pid, "status")?;
    process::status(&text).ok_or(CaptureError::Unknown { path: format!("/proc/{pid}/status"), text })
}

fn layout(pid: i32) -> Result<Layout, CaptureError> {
    let text = process::read_text(pid, "stat")?;
    process::layout(&text).ok_or(CaptureError::Unknown { path: format!("/proc/{pid}/stat"), text })
}

/// Calls that a process may make on its way to rest.
const CALLS_MAX: usize = 1024;

/// Lets a process come to rest. Answers its registers before the call that it waits in.
fn settle(tracee: &mut Tracee) -> Result<Registers, CaptureError> {
    for _ in 0..CALLS_MAX {
        if let Some(registers) = registers::rewound(tracee.registers().map_err(trace("read registers"))?) {
            return Ok(registers);
        }
        interrupted(tracee.enter_next_call())?;
    }
    Err(CaptureError::Restless("it goes on and on"))
}

fn interrupted(stop: nix::Result<Stop>) -> Result<(), CaptureError> {
    match stop.map_err(trace("interrupt"))? {
        Stop::Interrupt => Ok(()),
        Stop::Ended(ended) => Err(CaptureError::Ended(ended)),
        Stop::Call | Stop::Signal(_) => Err(CaptureError::Restless("a signal came")),
    }
}

/// A process that waits, but is not alone with itself, is not at rest.
fn at_rest(status: &Status) -> Result<(), CaptureError> {
    match status {
        Status { threads: 2.., .. } => Err(CaptureError::Restless("more than one thread")),
        Status { signals_pending: 1.., .. } => Err(CaptureError::Restless("a signal is pending")),
        _ => Ok(()),
    }
}

/// What the kernel remembers of a process, some of it asked for by the process itself.
fn ask(
    pid: i32,
    tracee: &mut Tracee,
    memory: &Memory,
    registers: Registers,
    status: &Status,
) -> Result<Process, CaptureError> {
    let layout = layout(pid)?;
    let rseq = tracee.rseq().map_err(trace("read rseq"))?;
    let signal_mask = tracee.signal_mask().map_err(trace("read the signal mask"))?;
    let (robust_list, _) = tracee.robust_list().map_err(trace("read the robust list"))?;
    let mut asked = Injector::new(tracee, memory, registers)?;
    let handled = (1..=64).filter(|signal| (status.signals_caught | status.signals_ignored) >> (signal - 1) & 1 == 1);
    Ok(Process {
        comm: process::read(pid, "comm")?.trim_ascii_end().to_vec(),
        start_code: layout.code.0,
        end_code: layout.code.1,
        start_data: layout.data.0,
        end_data: layout.data.1,
        start_brk: layout.brk_start,
        brk: asked.brk()?,
        start_stack: layout.stack_start,
        arg_start: layout.arguments.0,
        arg_end: layout.arguments.1,
        env_start: layout.environment.0,
        env_end: layout.environment.1,
        auxv: process::read(pid, "auxv")?,
        tid_address: asked.tid_address()?,
        robust_list,
        rseq: (rseq.address != 0).then_some(RseqArea {
            address: rseq.address,
            length: rseq.bytes,
            signature: rseq.signature,
        }),
        sigaltstack: asked.signal_stack()?,
        signal_actions: handled.map(|signal| asked.signal_action(signal)).collect::<Result<_, _>>()?,
        signal_mask,
    })
}

/// Mappings, extents kept elsewhere, and the process's own pages.
type AddressSpace = (Vec<image::Mapping>, Vec<Extent>, Vec<Span>);

fn address_space(pid: i32, files: &Files<'_>) -> Result<AddressSpace, CaptureError> {
    let text = process::read_text(pid, "smaps")?;
    let unknown = |text: &str| CaptureError::Unknown { path: format!("/proc/{pid}/smaps"), text: text.to_owned() };
    let seen = maps::parse(&text).map_err(unknown)?;
    let (pagemap, files) = (Pagemap::open(pid)?, Known::new(files)?);
    let (mut mappings, mut kept, mut data) = AddressSpace::default();
    for mapping in seen.iter().filter(|mapping| !mapping.is_vsyscall()) {
        let beneath = files.beneath(pid, mapping)?;
        let pages = if mapping.is_vdso() { Pages::default() } else { pagemap.pages(mapping.range.clone())? };
        let kind = kind(mapping, beneath, &pages)?;
        let (address, bytes) = (mapping.range.start, mapping.bytes());
        mappings.push(image::Mapping { start: address, bytes, protection: classify::protection(mapping), kind });
        let offset = mapping.offset;
        match kind {
            MappingKind::Text => kept.push(Extent { address, bytes, source: Source::Text { offset } }),
            MappingKind::Model => kept.push(Extent { address, bytes, source: Source::Model { offset } }),
            MappingKind::Vdso | MappingKind::Vvar | MappingKind::VvarVclock => {}
            // The program's own bytes, where it did not write, are not zero.
            _ if beneath == Beneath::Program => data.push(Span { address, bytes }),
            _ => data.extend(pages.own),
        }
    }
    Ok((mappings, kept, data))
}

fn kind(mapping: &Mapping, beneath: Beneath, pages: &Pages) -> Result<MappingKind, CaptureError> {
    let refuse = |reason| CaptureError::Mapping { range: mapping.range.clone(), name: mapping.name.clone(), reason };
    if pages.guarded {
        return Err(refuse("guard pages within a mapping"));
    }
    classify::kind(mapping, beneath, !pages.own.is_empty()).map_err(refuse)
}

/// The files that may be mapped, by device and inode.
struct Known {
    program: (u64, u64),
    model: (u64, u64),
}

impl Known {
    fn new(files: &Files<'_>) -> Result<Self, CaptureError> {
        let id = |file: &File, path: &str| {
            let metadata = file.metadata().map_err(|error| CaptureError::Read { path: path.to_owned(), error })?;
            Ok((metadata.dev(), metadata.ino()))
        };
        Ok(Self { program: id(files.program, "the program")?, model: id(files.model, "the model")? })
    }

    /// The file beneath a mapping. The text of maps names another device than stat does on some file systems, so the
    /// mapping's own link is followed.
    fn beneath(&self, pid: i32, mapping: &Mapping) -> Result<Beneath, CaptureError> {
        if mapping.inode == 0 {
            return Ok(Beneath::Nothing);
        }
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.range.start, mapping.range.end);
        let metadata: io::Result<fs::Metadata> = fs::metadata(&path);
        let metadata = metadata.map_err(|error| CaptureError::Read { path, error })?;
        Ok(match (metadata.dev(), metadata.ino()) {
            id if id == self.program => Beneath::Program,
            id if id == self.model => Beneath::Model,
            _ => Beneath::Other,
        })
    }
}
