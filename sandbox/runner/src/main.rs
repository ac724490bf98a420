//! `ember-runner`: the program inside the sandbox. It holds one model and answers the requests of one socket.
//!
//! ```text
//!  fd 3 ──▶ channel (frames) ──▶ runner (queue, answers together) ──▶ sandbox_model::Engine
//!  fd 3 ◀── channel ◀───────────────┘
//! ```
//!
//! It reads its model and its socket and nothing else: no other files, no environment, no network, no clock but durations.
//! Standard error gets one line when it ends for a reason; the exit codes below tell the same.
//!
//! | code | why |
//! |---|---|
//! | 0 | the socket was closed |
//! | 64 | started wrongly |
//! | 65 | the peer broke the protocol |
//! | 66 | the model cannot be used; the peer was told why |
//! | 74 | the socket failed |

mod channel;
mod error;
mod runner;

use sandbox_model::inherited_socket;
use sandbox_wire::runner::{MODEL_PATH, SOCKET_FD};
use std::{path::PathBuf, process::ExitCode};

const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let model = arguments.next().map_or_else(|| PathBuf::from(MODEL_PATH), PathBuf::from);
    let is_option = model.as_os_str().as_encoded_bytes().starts_with(b"-");
    if is_option || arguments.next().is_some() {
        return usage("it takes one argument at most");
    }
    let socket = match inherited_socket(SOCKET_FD) {
        Ok(socket) => socket,
        Err(error) => return usage(&format!("descriptor {SOCKET_FD} is not its socket: {error}")),
    };
    match runner::serve(socket, &model) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ember-runner: {error}");
            error.exit_code()
        }
    }
}

fn usage(fault: &str) -> ExitCode {
    eprintln!(
        "ember-runner: {fault}\nusage: ember-runner [MODEL.gguf]   with a Unix stream socket as descriptor {SOCKET_FD}"
    );
    ExitCode::from(EXIT_USAGE)
}
