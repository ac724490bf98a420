//! Why the machine does not come up.

use nix::errno::Errno;
use std::io;

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The kernel refused a call.
    #[error("{what}: {}", errno.desc())]
    Kernel { what: String, errno: Errno },
    /// A file or process.
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    /// A device that did not appear.
    #[error("no {0} was found")]
    Missing(String),
    /// What is wrong with a disk or with what is on it.
    #[error("{0}")]
    Disk(String),
    /// What the network's other side said, or did not say.
    #[error("network: {0}")]
    Network(String),
}

impl InitError {
    /// For `map_err` of a kernel call.
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let what = what.into();
        |errno| Self::Kernel { what, errno }
    }

    /// For `map_err` of a file operation.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |error| Self::Io { what, error }
    }
}
