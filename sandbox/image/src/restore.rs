//! Restore: a fresh child becomes the process of an image.
//!
//! ```text
//!  table, region ──clone3──▶ child at its gate ──seize, admit, open──▶ runs the table ──int3──▶ first stop
//!                                                                                                  │ data written in place
//!        Child ◀──detach── registers set ◀──second stop── munmap of the region, from the image's own code
//! ```
//! The second stop is a step over the `syscall` instruction that the image waits at: the last that the child does with
//! foreign code mapped is to unmap it, and it proves that the image's code is there and that its seal lets it go on.
//!
//! Invariants: until it is whole, the child is held by ptrace, and dies with this thread or at the first failure; nothing
//! of it is left then. Text comes from the program's file that the caller has verified, never from the image. What it has
//! on a device is put back last, by the device, while it runs and waits.
//!
//! Traps: the child asks to be killed when the calling thread ends. It has the caller's resource limits, cgroup and
//! credentials, but for what `admit`, `confine` and `seal` change. The image's program must be another file than the caller's
//! own: the kernel answers EBUSY to a change of the program while the old one is mapped.

use crate::{
    device::Device,
    error::{RestoreError, Result},
    memory::Memory,
    plan::{self, Numbers},
    registers::{self, calling},
    steps::{Clock, Step},
    vdso,
};
use nix::{
    errno::Errno,
    libc::{self, c_int},
};
use sandbox_kernel::{
    cgroup::Entrance,
    pidfd::Pid,
    spawn::{Child, LayerError},
    table::{REGION_BYTES, Region, Table, inherited_ignored, inherited_rseq},
    trace::{Registers, Stop, Tracee},
};
use sandbox_snapshot::image::{Image, Span};
use std::{
    io::{self, Write},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

/// Where bytes of the data area come from.
pub enum Data<'a> {
    /// From a sealed file that holds all of it, mapped copy-on-write: shared by all who are restored from it.
    Shared(BorrowedFd<'a>),
    /// From whoever writes it into the memory of the held child, at the addresses of the image's extents.
    Written(&'a dyn Fn(&Memory) -> io::Result<()>),
}

/// Memory that is mapped ahead of need: all that is shared, for reading, and more.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    /// Whether the model is, too: 24,000 pages take some 4 ms.
    pub model: bool,
    /// What will be written to, and gets memory of its own now: whole pages, see [`crate::written`].
    pub written: &'a [Span],
}

/// A restore to be done.
pub struct Restore<'a> {
    /// What to restore. It has passed [`Image::check`], and its identity is this machine's.
    pub image: &'a Image,
    /// The program that the image's text is mapped from, verified.
    pub program: BorrowedFd<'a>,
    /// The model.
    pub model: BorrowedFd<'a>,
    /// The data area.
    pub data: Data<'a>,
    /// What is done now for the process to find done; without, memory is mapped when it is touched.
    pub ahead: Option<Ahead<'a>>,
    /// Its device.
    pub device: &'a dyn Device,
    /// Files of raw pages, by digest.
    pub raw: &'a [([u8; 32], BorrowedFd<'a>)],
    /// What the process will have open, each with its number there. It has nothing else.
    pub descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    /// New namespaces for it: flags of clone3.
    pub namespaces: c_int,
    /// The way into its cgroup, if any; used by clone3 where it can be.
    pub entrance: Option<&'a Entrance>,
    /// Puts the waiting child where it belongs: id maps.
    pub admit: &'a dyn Fn(Pid) -> Result<(), LayerError>,
    /// Adds the calls that confine it, done while what this process has open is still open.
    pub confine: &'a dyn Fn(&mut Table),
    /// Adds the calls that seal it, done last.
    pub seal: &'a dyn Fn(&mut Table),
}

/// A restored process.
#[derive(Debug)]
pub struct Restored {
    /// The process.
    pub child: Child,
    /// When each step was done, from the beginning on.
    pub steps: Vec<(Step, Duration)>,
}

impl Restore<'_> {
    /// Restores the image, and returns when it runs.
    ///
    /// # Errors
    /// See [`RestoreError`]. The child is then gone.
    pub fn run(self) -> Result<Restored, RestoreError> {
        let mut clock = Clock::start();
        let registers = registers::from_bytes(&self.image.registers.general);
        let registers = registers.ok_or(RestoreError::Image("its registers are incomplete"))?;
        let (gate, mut opener) =
            io::pipe().map_err(|error| RestoreError::Prepare { attempted: "make a pipe", error })?;
        let (table, region) = self.load([gate.as_raw_fd(), opener.as_raw_fd()], &mut clock)?;
        clock.done(Step::Prepared);
        let child = region.spawn(self.namespaces, self.entrance).map_err(RestoreError::prepare("clone3"))?;
        let mut held = HeldChild::seize(child)?;
        clock.done(Step::Cloned);
        (self.admit)(held.child.pid())?;
        opener.write_all(b".").map_err(|error| RestoreError::Prepare { attempted: "open the gate", error })?;
        clock.done(Step::Admitted);
        held.await_table(&table, &region)?;
        clock.done(Step::Stopped);
        clock.collect(held.child.pid()).map_err(RestoreError::prepare("read the child's times"))?;
        self.write_data(&held.child)?;
        clock.done(Step::Written);
        held.leave(table.base(), registers)?;
        let child = held.go(&self.image.registers.extended, registers)?;
        clock.done(Step::Going);
        self.device.resume(child.pid(), &self.image.device)?;
        clock.done(Step::Resumed);
        Ok(Restored { child, steps: clock.steps() })
    }

    /// Makes the table and maps it at an address that is free here and in the image. `gate`: the end that the child waits at,
    /// and the end that opens it.
    fn load(&self, gate: [RawFd; 2], clock: &mut Clock) -> Result<(Table, Region), RestoreError> {
        for base in bases(self.image) {
            let table = self.table(base, gate, clock)?;
            match Region::load(&table) {
                Ok(region) => return Ok((table, region)),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(RestoreError::prepare("map the table")(error)),
            }
        }
        Err(RestoreError::Image("no address is free beside it"))
    }

    fn table(&self, base: u64, [gate, opener]: [RawFd; 2], clock: &mut Clock) -> Result<Table, RestoreError> {
        let (image, mut table) = (self.image, Table::new(base));
        let numbered: Vec<_> = self.raw.iter().map(|(digest, file)| (*digest, file.as_raw_fd())).collect();
        let placed: Vec<_> = self.descriptors.iter().map(|(from, to)| (from.as_raw_fd(), *to)).collect();
        let numbers = Numbers {
            program: self.program.as_raw_fd(),
            model: self.model.as_raw_fd(),
            data: match &self.data {
                Data::Shared(file) => Some(file.as_raw_fd()),
                Data::Written(_) => None,
            },
            populate: self.ahead.is_some_and(|ahead| ahead.model),
            raw: &numbered,
        };
        let inherited = inherited_rseq().map_err(RestoreError::prepare("learn of rseq"))?;
        let moves = vdso::moves(vdso::own()?, image)?;
        clock.forget_marks();
        plan::wait_at_gate(&mut table, gate, opener);
        plan::forget(&mut table, inherited, &moves);
        clock.mark(&mut table, Step::Emptied);
        plan::map(&mut table, image, &numbers)?;
        clock.mark(&mut table, Step::Mapped);
        plan::tell(&mut table, &image.process, numbers.program, inherited_ignored());
        clock.mark(&mut table, Step::Told);
        (self.confine)(&mut table);
        plan::place(&mut table, &placed);
        clock.mark(&mut table, Step::Placed);
        if let Some(ahead) = self.ahead {
            // In its own cgroup, which pays for it.
            plan::touch(&mut table, image, ahead.written);
            clock.mark(&mut table, Step::Touched);
        }
        (self.seal)(&mut table);
        Ok(table)
    }

    fn write_data(&self, child: &Child) -> Result<(), RestoreError> {
        let Data::Written(write) = self.data else { return Ok(()) };
        let written = Memory::open(child.pid().as_raw()).and_then(|memory| write(&memory));
        written.map_err(|error| RestoreError::Prepare { attempted: "write data into the child", error })
    }
}

/// Where a region may be tried: far apart, away from the image, below where the kernel puts anything of its own accord.
fn bases(image: &Image) -> impl Iterator<Item = u64> {
    const FIRST: u64 = 64 << 30;
    const STEP: u64 = 1 << 30;
    const TRIES_MAX: u64 = 1024;
    let is_free = |base: &u64| image.mappings.iter().all(|m| m.span().end() <= *base || base + REGION_BYTES <= m.start);
    (0..TRIES_MAX).map(|at| FIRST + at * STEP).filter(is_free)
}

/// A child that is not whole yet. Dropped, it is killed before it is let go: fields are dropped in their order.
struct HeldChild {
    child: Child,
    tracee: Tracee,
}

impl HeldChild {
    fn seize(child: Child) -> Result<Self, RestoreError> {
        let tracee = Tracee::seize(child.pid()).map_err(RestoreError::prepare("seize the child"))?;
        Ok(Self { child, tracee })
    }

    /// Waits until the child has run its table.
    fn await_table(&mut self, table: &Table, region: &Region) -> Result<(), RestoreError> {
        let stop = self.tracee.wait().map_err(RestoreError::prepare("wait for the child"))?;
        let registers = self.expect_trap(stop)?;
        match region.call_at(registers.rbx) {
            Ok(None) => Ok(()),
            Ok(Some(at)) => Err(failed(table, at, registers.rax)),
            Err(_) => Err(stray(registers, stop)),
        }
    }

    /// Makes the child unmap the region, by the image's own `syscall` instruction.
    fn leave(&mut self, base: u64, image: Registers) -> Result<(), RestoreError> {
        let leaving = calling(image, libc::SYS_munmap, [base, REGION_BYTES, 0, 0, 0, 0]);
        self.tracee.set_registers(leaving).map_err(RestoreError::prepare("set registers"))?;
        let stop = self.tracee.step().map_err(RestoreError::prepare("step the child"))?;
        let registers = self.expect_trap(stop)?;
        match registers.rax {
            0 => Ok(()),
            _ => Err(stray(registers, stop)),
        }
    }

    fn expect_trap(&self, stop: Stop) -> Result<Registers, RestoreError> {
        if let Stop::Ended(ended) = stop {
            return Err(RestoreError::Ended(ended));
        }
        let registers = self.tracee.registers().map_err(RestoreError::prepare("read registers"))?;
        if stop == Stop::Signal(libc::SIGTRAP) { Ok(registers) } else { Err(stray(registers, stop)) }
    }

    /// Gives the child the image's registers and lets it go.
    fn go(mut self, extended: &[u8], registers: Registers) -> Result<Child, RestoreError> {
        self.tracee.set_xstate(extended).map_err(RestoreError::prepare("set the extended state"))?;
        self.tracee.set_registers(registers).map_err(RestoreError::prepare("set registers"))?;
        let Self { child, tracee } = self;
        tracee.detach().map_err(RestoreError::prepare("detach"))?;
        Ok(child)
    }
}

fn stray(registers: Registers, stop: Stop) -> RestoreError {
    RestoreError::Stopped { at: registers.rip, why: format!("{stop:?}, rax {:#x}", registers.rax) }
}

fn failed(table: &Table, at: usize, result: u64) -> RestoreError {
    let call = &table.calls()[at];
    let [a, b, c, d, e, f] = call.arguments;
    let call = format!("{}({a:#x}, {b:#x}, {c:#x}, {d:#x}, {e:#x}, {f:#x})", name(call.number as libc::c_long));
    let error = match result as i64 {
        error @ -4095..0 => Errno::from_raw(-error as i32),
        // Fewer bytes than asked for: a file that is shorter than the image says.
        _ => Errno::ENODATA,
    };
    match table.layer(at) {
        Some(layer) => RestoreError::Layer(LayerError::new(layer, call, error)),
        None => RestoreError::Call { call, error },
    }
}

fn name(number: libc::c_long) -> String {
    let name = match number {
        libc::SYS_close_range => "close_range",
        libc::SYS_dup2 => "dup2",
        libc::SYS_mmap => "mmap",
        libc::SYS_mremap => "mremap",
        libc::SYS_munmap => "munmap",
        libc::SYS_prctl => "prctl",
        libc::SYS_pread64 => "pread",
        libc::SYS_read => "read",
        libc::SYS_rseq => "rseq",
        libc::SYS_rt_sigaction => "rt_sigaction",
        libc::SYS_rt_sigprocmask => "rt_sigprocmask",
        libc::SYS_set_robust_list => "set_robust_list",
        libc::SYS_set_tid_address => "set_tid_address",
        libc::SYS_sigaltstack => "sigaltstack",
        _ => return format!("system call {number}"),
    };
    name.to_owned()
}
