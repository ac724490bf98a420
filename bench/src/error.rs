//! Why a figure could not be measured. A figure that misses its bar is no error: it is a result.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no figure `{name}`; there are {known}")]
    UnknownFigure { name: String, known: String },
    #[error("`{}`: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot run {program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("{program} was not ready within {seconds} s")]
    NotReady { program: String, seconds: u64 },
    #[error("{program} ended before it was ready; its last words: {words}")]
    Ended { program: String, words: String },
    #[error("{program} failed: {reason}")]
    Failed { program: String, reason: String },
    #[error("talking to {address}: {reason}")]
    Http { address: String, reason: String },
    /// `took_ms`: what the server says that this took it, from the request's head to the reply's.
    #[error("{address} says {status}: {body}")]
    Status { address: String, status: u16, body: String, took_ms: Option<f64> },
    #[error("setting up: {0}")]
    Setup(String),
}

impl Error {
    /// Adapts any error of setting something up.
    pub(crate) fn setup(error: impl std::fmt::Display) -> Self {
        Error::Setup(error.to_string())
    }
}
