//! What a quiesced runner is made of: everything that a restore needs, as plain values.
//!
//! ```text
//!  Capture ── encode ──▶ file ── Snapshot::open ──▶ Image       what was seen │ what is stored │ what is restored
//!
//!  address space   ┌── Mapping ─────────────────────┐   ┌── Mapping ──┐   ┌ Mapping ┐
//!                  │ Compressed │ Zero │ Compressed │   │    Model    │   │  Vdso   │
//!                  └────────────┴──────┴────────────┘   └─────────────┘   └─────────┘
//!                      │                  │                    │            moved there; holds no extent
//!  data area    ◀──────┴──────────────────┘                    └──▶ the GGUF in the model store
//! ```
//!
//! A mapping says where memory is and what may be done with it; extents say where its bytes come from, and cover every
//! mapping but the kernel's own exactly once. The *data area* is all frames decoded one after another: what a parked
//! function keeps resident, and what [`Source::Compressed`] points into. Its order is that of first touch.
//!
//! A value of these types may hold anything; [`Image::check`] says whether it can be restored.

use appliance_types::{FunctionName, ModelDigest};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The unit of everything mapped, bytes.
pub const PAGE_BYTES: u64 = 4096;

/// What a snapshot fits: restored where any of it differs, it would crash or answer wrongly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// BLAKE3 of the runner binary, which text is mapped from.
    pub runner_build: [u8; 32],
    /// Release and build of the kernel, as `uname` tells them: the vDSO is of exactly one build.
    pub kernel_release: String,
    /// Words of CPUID and XCR0 that the runner's code and the size of its extended state depend on.
    pub cpu_features: Vec<u64>,
    /// The model, which weights are mapped from.
    pub model: ModelDigest,
    /// BLAKE3 of what the function's manifest tells a runner: prompt, context, slots, threads.
    pub manifest: [u8; 32],
    /// The function.
    pub function: FunctionName,
    /// The accelerators that the function runs on, as the device names them; none for a function that runs on cores.
    pub accelerators: Vec<Accelerator>,
}

/// An accelerator and its driver. State taken off one fits another of which all of this is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerator {
    /// The product, as the driver names it.
    pub model: String,
    /// Version of the driver.
    pub driver: String,
    /// Compute capability, major and minor.
    pub capability: (u16, u16),
    /// Its memory, bytes.
    pub memory_bytes: u64,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, driver, capability: (major, minor), memory_bytes } = self;
        write!(f, "{model} ({major}.{minor}, {memory_bytes} bytes, driver {driver})")
    }
}

/// What a device wants to find again of a process that it was suspended for, at most
/// [`DEVICE_BYTES_MAX`](crate::limits::DEVICE_BYTES_MAX) bytes of its own making; not looked at here. Empty: the process
/// has nothing on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState(pub Vec<u8>);

/// Registers of the one thread, as ptrace gives and takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `user_regs_struct` of x86-64 ([`GENERAL_BYTES`](crate::limits::GENERAL_BYTES)).
    pub general: Vec<u8>,
    /// `NT_X86_XSTATE`: floating point and vector state in XSAVE's layout.
    pub extended: Vec<u8>,
}

/// What the kernel remembers of a process besides its memory and registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Name of the thread, at most 15 bytes, without a zero.
    pub comm: Vec<u8>,
    /// `mm`: first byte of code.
    pub start_code: u64,
    /// `mm`: end of code.
    pub end_code: u64,
    /// `mm`: first byte of data.
    pub start_data: u64,
    /// `mm`: end of data.
    pub end_data: u64,
    /// `mm`: first byte of the heap.
    pub start_brk: u64,
    /// `mm`: end of the heap, where malloc goes on.
    pub brk: u64,
    /// `mm`: the stack pointer at exec.
    pub start_stack: u64,
    /// `mm`: first byte of the arguments.
    pub arg_start: u64,
    /// `mm`: end of the arguments.
    pub arg_end: u64,
    /// `mm`: first byte of the environment.
    pub env_start: u64,
    /// `mm`: end of the environment.
    pub env_end: u64,
    /// The auxiliary vector, pairs of words.
    pub auxv: Vec<u8>,
    /// Where the kernel writes 0 when the thread ends (`set_tid_address`); 0 for nowhere.
    pub tid_address: u64,
    /// Head of the robust futex list (`set_robust_list`); 0 for none.
    pub robust_list: u64,
    /// The thread's restartable sequence area, where it has registered one.
    pub rseq: Option<RseqArea>,
    /// The alternate signal stack, where one is set.
    pub sigaltstack: Option<SignalStack>,
    /// Signals that do not have the default action, by ascending number.
    pub signal_actions: Vec<SignalAction>,
    /// Blocked signals, bit `n - 1` for signal `n`.
    pub signal_mask: u64,
}

/// A registered restartable sequence area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RseqArea {
    /// Where it is.
    pub address: u64,
    /// Its length as registered, bytes.
    pub length: u32,
    /// The signature before abort handlers.
    pub signature: u32,
}

/// An alternate signal stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStack {
    /// Its lowest byte.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// `SS_AUTODISARM` or 0.
    pub flags: u32,
}

/// What a signal does, as `rt_sigaction` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// The signal, 1 to 64, without SIGKILL and SIGSTOP.
    pub signal: u8,
    /// Address of the handler; 1 ignores.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Signals blocked meanwhile.
    pub mask: u64,
}

/// What may be done with a mapping's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// They may be read.
    pub read: bool,
    /// They may be written.
    pub write: bool,
    /// They may be run.
    pub execute: bool,
}

/// A stretch of the address space with one protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its first byte.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// What may be done with it.
    pub protection: Protection,
    /// What it is.
    pub kind: MappingKind,
}

/// What a mapping is, which says what its extents may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MappingKind {
    /// Private memory, also the binary's data and relocated read-only data: `Zero`, `Raw`, `Compressed`.
    Anonymous,
    /// The stack of the thread, which grows down: as anonymous.
    Stack,
    /// The heap below `brk`: as anonymous.
    Heap,
    /// Code and constants of the runner, never written: `Text`.
    Text,
    /// The model, never written: `Model`.
    Model,
    /// The kernel's own code: moved to `start`, no extents.
    Vdso,
    /// The kernel's own data beside it: moved, no extents.
    Vvar,
    /// The kernel's clock pages, apart since Linux 6.13: moved, no extents.
    VvarVclock,
}

/// A stretch of a mapping whose bytes come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first byte in the address space.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// Where its bytes come from.
    pub source: Source,
}

/// Where the bytes of an extent come from. Offsets are of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Nowhere: they are zero, as fresh memory is.
    Zero,
    /// The model's file.
    Model {
        /// Where in it.
        offset: u64,
    },
    /// The runner's binary.
    Text {
        /// Where in it.
        offset: u64,
    },
    /// A file of incompressible pages, kept once for all snapshots and mapped in place.
    Raw {
        /// BLAKE3 of the whole file: its name.
        digest: [u8; 32],
        /// Where in it.
        offset: u64,
    },
    /// The data area, decoded from frames.
    Compressed {
        /// Where in it.
        offset: u64,
    },
}

/// A runner as it is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it fits.
    pub identity: Identity,
    /// The thread's registers.
    pub registers: Registers,
    /// The process.
    pub process: Process,
    /// Its address space, by ascending address.
    pub mappings: Vec<Mapping>,
    /// What the address space holds, by ascending address.
    pub extents: Vec<Extent>,
    /// See [`Capture::note`].
    pub note: Vec<u8>,
    /// See [`Capture::device`]. Stored in a section of its own.
    #[serde(skip)]
    pub device: DeviceState,
}

/// A runner as it was seen: what the encoder makes an [`Image`] of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// What it fits.
    pub identity: Identity,
    /// The thread's registers.
    pub registers: Registers,
    /// The process.
    pub process: Process,
    /// Its address space, by ascending address.
    pub mappings: Vec<Mapping>,
    /// Extents whose bytes are kept elsewhere (`Model`, `Text`, `Raw`), by ascending address.
    pub kept: Vec<Extent>,
    /// Present private pages, which the encoder reads, by ascending address. What neither this nor `kept` covers is zero.
    pub data: Vec<Span>,
    /// What whoever takes the snapshot wants to find in it again, at most
    /// [`NOTE_BYTES_MAX`](crate::limits::NOTE_BYTES_MAX); sealed with the rest, and not looked at here.
    pub note: Vec<u8>,
    /// What the device wants to find again; empty exactly where the identity names no accelerator.
    pub device: DeviceState,
}

/// A stretch of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its first byte.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
}

impl Span {
    /// The byte after its last; saturates.
    pub const fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }
}

impl Mapping {
    /// Where it is.
    pub const fn span(&self) -> Span {
        Span { address: self.start, bytes: self.bytes }
    }
}

impl Extent {
    /// Where it is.
    pub const fn span(&self) -> Span {
        Span { address: self.address, bytes: self.bytes }
    }
}

impl Image {
    /// Length of all memory of its own that it may write to, touched yet or not.
    pub fn writable_bytes(&self) -> u64 {
        self.mappings.iter().filter(|mapping| mapping.protection.write).map(|mapping| mapping.bytes).sum()
    }
}

impl Source {
    /// Where in its file or the data area the bytes begin; 0 where there is none.
    pub const fn offset(&self) -> u64 {
        match *self {
            Self::Zero => 0,
            Self::Model { offset } | Self::Text { offset } | Self::Raw { offset, .. } | Self::Compressed { offset } => {
                offset
            }
        }
    }
}

impl MappingKind {
    /// Whether the kernel makes the mapping itself, so that a restore moves it and fills nothing in.
    pub const fn is_kernels(self) -> bool {
        matches!(self, Self::Vdso | Self::Vvar | Self::VvarVclock)
    }

    /// Whether extents of `source` may lie in it.
    pub const fn holds(self, source: &Source) -> bool {
        match self {
            Self::Anonymous | Self::Stack | Self::Heap => {
                matches!(source, Source::Zero | Source::Raw { .. } | Source::Compressed { .. })
            }
            Self::Text => matches!(source, Source::Text { .. }),
            Self::Model => matches!(source, Source::Model { .. }),
            Self::Vdso | Self::Vvar | Self::VvarVclock => false,
        }
    }
}
