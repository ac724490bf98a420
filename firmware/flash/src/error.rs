//! Why an image is not on a disk.

use nix::errno::Errno;
use std::{io, path::PathBuf};

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// The target must not be written; nothing was.
    #[error("{} is left alone: {reason}", path.display())]
    Refused {
        /// The target.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file or disk could not be opened, read or asked.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What was given is no image; nothing was written.
    #[error("the image: {0}")]
    NoImage(String),
    /// The image cannot be read to its end, or is not what its block map says.
    #[error("the image: {0}")]
    Image(String),
    /// The target did not take what was written.
    #[error("writing at byte {offset}: {error}")]
    Write {
        /// Where.
        offset: u64,
        /// Why.
        error: io::Error,
    },
    /// The target cannot be read back.
    #[error("reading back at byte {offset}: {error}")]
    ReadBack {
        /// Where.
        offset: u64,
        /// Why.
        error: io::Error,
    },
    /// The target took what was written, and gives back something else.
    #[error("the {length} bytes at byte {offset} are not those that were written: the disk is not to be trusted")]
    Differs {
        /// Where.
        offset: u64,
        /// How many.
        length: usize,
    },
    /// `machine.toml` cannot be put onto the boot partition.
    #[error("machine.toml: {0}")]
    Config(String),
}

impl FlashError {
    /// For `map_err` of what was done to the file at `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |error| Self::File { path, error }
    }

    /// For `map_err` of a write.
    pub(crate) fn write(offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Write { offset, error }
    }
}

/// A refused call as std's error.
pub(crate) fn io_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}
