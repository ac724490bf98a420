//! Why a snapshot is not used, or could not be made.

use std::{fmt, io};

/// Why a snapshot is not used, or could not be made.
///
/// `Read`, `Write`, `Compress` and `FrameSize` come from encoding, `NoFrame` and `BufferLength` from a caller's mistake;
/// each of the others means that this snapshot will never be usable here: retire it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Too short to say how long it should be.
    #[error("a snapshot begins with {expected} bytes; got {got}")]
    HeadCut {
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        got: u64,
    },
    /// It does not begin as a snapshot does.
    #[error("not a snapshot")]
    Magic,
    /// It is of a version that this build does not read.
    #[error("snapshot of version {found}; this build reads {supported}")]
    Version {
        /// The file's.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The file is shorter or longer than its head says.
    #[error("the snapshot should have {expected} bytes; the file has {got}")]
    FileLength {
        /// As the head says.
        expected: u64,
        /// As it is.
        got: u64,
    },
    /// The head was changed, or written with another key.
    #[error("the snapshot's seal does not match its head")]
    Seal,
    /// The sealed head is no description of an image.
    #[error("the snapshot's description cannot be read: {reason}")]
    Description {
        /// What the deserializer met.
        reason: String,
    },
    /// Taken of something else than is asked for.
    #[error("the snapshot is of another {part}: {found}, not {expected}")]
    OtherIdentity {
        /// What differs.
        part: IdentityPart,
        /// The snapshot's.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// Its process has state on a device, and here is none.
    #[error("the snapshot needs a device that this box has not: {devices}")]
    NeedsDevice {
        /// The accelerators that it was taken on.
        devices: String,
    },
    /// More of something than is allowed.
    #[error("{what}: {count}; the limit is {limit}")]
    TooMany {
        /// What is counted, in the plural.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// How many may be.
        limit: u64,
    },
    /// A mapping that cannot be restored, or must not be.
    #[error("mapping at {address:#x}: {fault}")]
    Mapping {
        /// Where it begins.
        address: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// An extent that cannot be restored, or must not be.
    #[error("extent at {address:#x}: {fault}")]
    Extent {
        /// Where it begins.
        address: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A register or a field of the process that cannot be restored, or must not be.
    #[error("{field} is {value:#x}: {fault}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it holds; for bytes, how many there are.
        value: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A frame's entry in the table is impossible.
    #[error("frame {index}: {fault}")]
    Frame {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Frames do not hold what extents take from the data area.
    #[error("extents take {extent_bytes} bytes of the data area; frames decode to {frame_bytes}")]
    DataLength {
        /// What extents take.
        extent_bytes: u64,
        /// What frames decode to.
        frame_bytes: u64,
    },
    /// There is no such frame.
    #[error("no frame {index}; there are {count}")]
    NoFrame {
        /// The one asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A buffer has not the length of what goes into it.
    #[error("frame {index}: {buffer} of {got} bytes; it takes {expected}")]
    BufferLength {
        /// The frame.
        index: usize,
        /// `input` or `output`.
        buffer: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        got: usize,
    },
    /// The bytes of a frame were changed.
    #[error("frame {index} does not match its tag")]
    Tag {
        /// The frame.
        index: usize,
    },
    /// Authentic bytes of a frame that do not decode to what its entry says.
    #[error("frame {index} cannot be decoded: {reason}")]
    Decode {
        /// The frame.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// Memory of the captured process could not be read.
    #[error("reading {bytes} bytes at {address:#x} of the captured process: {source}")]
    Read {
        /// Where.
        address: u64,
        /// How many bytes.
        bytes: usize,
        /// Why not.
        source: io::Error,
    },
    /// The snapshot could not be written.
    #[error("writing the snapshot: {source}")]
    Write {
        /// Why not.
        source: io::Error,
    },
    /// zstd could not compress.
    #[error("compressing frame {index}: {source}")]
    Compress {
        /// The frame.
        index: usize,
        /// Why not.
        source: io::Error,
    },
    /// A size of frames that cannot be had.
    #[error("frames of {bytes} bytes; whole pages up to {limit} can be had")]
    FrameSize {
        /// Asked for.
        bytes: u32,
        /// The most.
        limit: u32,
    },
}

/// What is wrong with a part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It holds nothing.
    Empty,
    /// Not on the border that it must be on.
    Unaligned,
    /// Outside of what a process may have.
    OutOfRange,
    /// It begins before its predecessor ends.
    OutOfOrder,
    /// Bytes before it belong to no extent, or to two.
    Gap,
    /// In no mapping, or across the end of one.
    OutsideMapping,
    /// Its source is none that such a mapping has.
    Source,
    /// Not what such a mapping may be used for.
    Protection,
    /// There may be one only.
    Repeated,
    /// The data area before it belongs to no extent, or to two.
    DataGap,
    /// It does not lie in memory that may be run.
    NotExecutable,
    /// It does not lie in memory that may be written.
    NotWritable,
    /// Not a value that it can have.
    Value,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it holds nothing",
            Self::Unaligned => "it is not aligned",
            Self::OutOfRange => "it is out of range",
            Self::OutOfOrder => "it begins before its predecessor ends",
            Self::Gap => "bytes before it belong to no extent, or to two",
            Self::OutsideMapping => "it lies in no mapping, or across the end of one",
            Self::Source => "its mapping cannot have such a source",
            Self::Protection => "its protection is not allowed for its kind",
            Self::Repeated => "there is another of its kind",
            Self::DataGap => "the data area before it belongs to no extent, or to two",
            Self::NotExecutable => "not in memory that may be run",
            Self::NotWritable => "not in memory that may be written",
            Self::Value => "it cannot have this value",
        })
    }
}

/// Parts of an [`Identity`](crate::image::Identity).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityPart {
    /// The runner binary.
    RunnerBuild,
    /// The kernel.
    KernelRelease,
    /// The CPU.
    CpuFeatures,
    /// The model.
    Model,
    /// The manifest.
    Manifest,
    /// The function.
    Function,
    /// The accelerators.
    Accelerators,
}

impl fmt::Display for IdentityPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunnerBuild => "runner build",
            Self::KernelRelease => "kernel release",
            Self::CpuFeatures => "CPU feature set",
            Self::Model => "model",
            Self::Manifest => "manifest",
            Self::Function => "function",
            Self::Accelerators => "set of accelerators",
        })
    }
}
