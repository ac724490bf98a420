//! What can go wrong while an image is built or read.

use images_uki::UkiError;
use std::{io, path::PathBuf};

/// Why there is no image, or why one cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The recipe cannot be read; the message has line and column.
    #[error("{}: {reason}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A function that should come with the image cannot.
    #[error("function {}: {reason}", manifest.display())]
    Function {
        /// Its manifest.
        manifest: PathBuf,
        /// What is wrong with it or its model.
        reason: String,
    },
    /// A file or folder could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A program that is needed did not do its work.
    #[error("{program} failed: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said, or why it could not be started.
        reason: String,
    },
    /// A package does not hold what the recipe needs of it.
    #[error("package {package}: {reason}")]
    Package {
        /// Its name.
        package: String,
        /// What is missing.
        reason: String,
    },
    /// A kernel module that is wanted, or that another needs, cannot be used.
    #[error("kernel module {module}: {reason}")]
    Module {
        /// Its name.
        module: String,
        /// Why.
        reason: String,
    },
    /// Bytes that should be a UKI or its stub are not.
    #[error(transparent)]
    Uki(#[from] UkiError),
    /// Bytes that should be a disk of ours are not, or what should go into one does not fit.
    #[error("disk image: {0}")]
    Disk(String),
    /// A text that should be a block map is none, or is damaged.
    #[error("block map: {0}")]
    Map(String),
}

impl ImageError {
    /// For `map_err` of what was done to the file at `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |error| Self::File { path, error }
    }
}
