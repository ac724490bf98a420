//! What ends a runner, and the exit code that tells it.

use sandbox_model::LoadError;
use sandbox_wire::frame::FrameError;
use std::{io, process::ExitCode};

/// Why a runner ends before its socket is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerError {
    /// The peer's bytes are not frames.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// A message came that may not come now.
    #[error("the peer broke the protocol: {0}")]
    OutOfTurn(String),
    /// The model cannot be used.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The socket failed.
    #[error("{action} the socket: {error}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl RunnerError {
    /// The code to exit with, as `sysexits.h` names them.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Frame(_) | Self::OutOfTurn(_) => 65,
            Self::Load(_) => 66,
            Self::Socket { .. } => 74,
        })
    }
}
