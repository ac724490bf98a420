//! Why a bundle is not made, or not installed.

use firmware_slots::Refusal;
use std::{io, path::PathBuf};

/// What is wrong, and with what.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bytes are no bundle.
    #[error("it is no update bundle: {0}")]
    Form(String),
    /// The bundle ends before it should.
    #[error("it is truncated: it ends {0}")]
    Truncated(String),
    /// Nobody who is trusted here vouches for it.
    #[error("its signature does not hold: {0}")]
    Signature(String),
    /// This machine trusts nobody.
    #[error("no key is trusted here; name the public key as `update_key` in machine.toml")]
    NoKey,
    /// The UKI is not the one that was signed for.
    #[error("its contents are not those that were signed: {0}")]
    Contents(String),
    /// It is whole and signed, and not for this machine as it is.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A key that cannot be used.
    #[error("key: {0}")]
    Key(String),
    /// The bundle could not be read.
    #[error("cannot read the bundle: {0}")]
    Read(io::Error),
    /// A file of a slot.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl BundleError {
    /// For `map_err` of what was done to the file at `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |error| Self::File { path, error }
    }

    /// Whether the bundle is at fault, or its sender, and not this machine.
    pub fn is_of_bundle(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::Read(_))
    }
}
