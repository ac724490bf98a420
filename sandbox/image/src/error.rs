//! What can go wrong at a capture and at a restore, and with what.

use crate::device::DeviceError;
use nix::errno::Errno;
use sandbox_kernel::{pidfd::Ended, spawn::LayerError};
use std::{io, ops::Range};

/// A result of this crate.
pub(crate) type Result<T, E> = std::result::Result<T, E>;

/// Why a process could not be captured. It goes on as before, unless it has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// A file below `/proc` could not be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file below `/proc` says what we do not understand.
    #[error("{path}: unknown text `{text}`")]
    Unknown {
        /// The file.
        path: String,
        /// What it says.
        text: String,
    },
    /// The kernel refused a step of ptrace.
    #[error("{attempted}: {error}")]
    Trace {
        /// The step.
        attempted: &'static str,
        /// What the kernel said.
        error: Errno,
    },
    /// The process ended meanwhile.
    #[error("the process ended: {0:?}")]
    Ended(Ended),
    /// The process is not at rest.
    #[error("not at rest: {0}")]
    Restless(&'static str),
    /// A call that the process was made to make failed.
    #[error("the process's own {call}: {error}")]
    Injected {
        /// The call.
        call: &'static str,
        /// What the kernel said to it.
        error: Errno,
    },
    /// Its device could not be suspended, or not be resumed: then the process was killed.
    #[error(transparent)]
    Device(DeviceError),
    /// The process has memory that an image cannot hold.
    #[error("mapping {:#x}-{:#x} {name}: {reason}", range.start, range.end)]
    Mapping {
        /// Where.
        range: Range<u64>,
        /// The kernel's name for it.
        name: String,
        /// Why an image cannot hold it.
        reason: &'static str,
    },
}

/// Why an image could not be restored. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The image lacks something, or is of another machine.
    #[error("image: {0}")]
    Image(&'static str),
    /// An extent lies in a file that was not given.
    #[error("no file for the extent at {address:#x}")]
    NoFile {
        /// The extent's address.
        address: u64,
    },
    /// This process could not prepare the child.
    #[error("{attempted}: {error}")]
    Prepare {
        /// What was attempted.
        attempted: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A layer of the sandbox could not be set up.
    #[error("sandbox layer {0}")]
    Layer(#[from] LayerError),
    /// A call of the child failed.
    #[error("the child's {call}: {error}")]
    Call {
        /// The call with its arguments.
        call: String,
        /// What the kernel said to it.
        error: Errno,
    },
    /// The child stopped where it should not.
    #[error("the child stopped at {at:#x}: {why}")]
    Stopped {
        /// Where.
        at: u64,
        /// By what.
        why: String,
    },
    /// The child could not be taken onto its device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The child ended meanwhile.
    #[error("the child ended: {0:?}")]
    Ended(Ended),
}

impl RestoreError {
    pub(crate) fn prepare(attempted: &'static str) -> impl Fn(Errno) -> Self {
        move |error| Self::Prepare { attempted, error: error.into() }
    }
}
