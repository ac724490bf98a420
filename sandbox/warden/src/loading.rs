//! The warden's exchanges with a runner, the first of which is `Load` out, `Loaded` or `LoadFailed` back, or its end, or too
//! late.
//!
//! The runner is hostile from its first byte: what it says is bounded, and once loaded it may say nothing more, since the
//! next byte on the socket belongs to the server.

use crate::tail::{Tail, printable};
use sandbox_kernel::{
    ready::readable,
    socket::{receive_now, send_now},
    spawn::LayerError,
};
use sandbox_wire::{
    frame::{Decoder, TO_RUNNER_BYTES_MAX, encode},
    runner::{FromRunner, Load, ModelInfo, ToRunner},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

/// Longest answer, well below a packet to the server.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why no model was loaded, or nothing else came of an exchange.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadError {
    /// A layer of its sandbox is missing, seen from outside.
    #[error("{0}")]
    Unsealed(LayerError),
    /// The runner says why, or broke the protocol.
    #[error("{0}")]
    Refused(String),
    /// It has ended, or closed its socket.
    #[error("the runner has ended")]
    Ended,
    /// The deadline has passed.
    #[error("the runner took too long")]
    Late,
}

/// Tells a runner to load its model, and waits until it has. `process` becomes readable when the runner has ended.
pub(crate) fn load(
    socket: &OwnedFd,
    process: &impl AsFd,
    tail: &mut Tail,
    load: Load,
    deadline: Instant,
) -> Result<ModelInfo, LoadError> {
    ask(socket, process, tail, &ToRunner::Load(load), deadline, understand)
}

/// Tells a runner something, and waits until `understand` has made something of what it answers, message by message.
pub(crate) fn ask<T>(
    socket: &OwnedFd,
    process: &impl AsFd,
    tail: &mut Tail,
    message: &ToRunner,
    deadline: Instant,
    understand: impl FnMut(FromRunner, &Decoder) -> Result<Option<T>, LoadError>,
) -> Result<T, LoadError> {
    let mut frame = Vec::new();
    encode(message, TO_RUNNER_BYTES_MAX, &mut frame).map_err(refused)?;
    send_now(socket, &frame).map_err(|_| LoadError::Ended)?;
    await_answer(socket, process, tail, deadline, understand)
}

pub(crate) fn refused(reason: impl ToString) -> LoadError {
    LoadError::Refused(reason.to_string())
}

fn await_answer<T>(
    socket: &OwnedFd,
    process: &impl AsFd,
    tail: &mut Tail,
    deadline: Instant,
    mut understand: impl FnMut(FromRunner, &Decoder) -> Result<Option<T>, LoadError>,
) -> Result<T, LoadError> {
    let mut decoder = Decoder::new(ANSWER_BYTES_MAX);
    loop {
        let places = [Some(socket.as_fd()), tail.pipe(), Some(process.as_fd())];
        let [spoke, wrote, ended] = readable(places, Some(deadline)).map_err(refused)?;
        if wrote {
            tail.take();
        }
        if spoke {
            receive(socket, &mut decoder)?;
            while let Some(answer) = decoder.next_message().map_err(refused)? {
                if let Some(understood) = understand(answer, &decoder)? {
                    return Ok(understood);
                }
            }
        }
        // Only once it has nothing more to say: it may have told why before it ended.
        if ended && !spoke {
            return Err(LoadError::Ended);
        }
        if !(spoke || wrote || ended) {
            return Err(LoadError::Late);
        }
    }
}

fn receive(socket: &OwnedFd, decoder: &mut Decoder) -> Result<(), LoadError> {
    let mut buffer = [0; 4096];
    match receive_now(socket, &mut buffer) {
        Ok(0) | Err(_) => Err(LoadError::Ended),
        Ok(bytes) => {
            decoder.push(&buffer[..bytes]);
            Ok(())
        }
    }
}

fn understand(answer: FromRunner, decoder: &Decoder) -> Result<Option<ModelInfo>, LoadError> {
    match answer {
        FromRunner::Loaded(_) | FromRunner::LoadFailed { .. } if decoder.is_mid_frame() => {
            Err(refused("the runner said more than it was asked"))
        }
        FromRunner::Loaded(info) => Ok(Some(info)),
        FromRunner::LoadFailed { reason } => Err(LoadError::Refused(printable(&reason))),
        _ => Err(refused("the runner answered a request that nobody made")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_types::Task;
    use sandbox_kernel::socket::stream_pair;
    use std::time::Duration;

    fn request() -> Load {
        Load { task: Task::Chat, context_tokens: 1, slots: 1, threads: 1, system: None }
    }

    fn frame(message: &FromRunner) -> Vec<u8> {
        let mut out = Vec::new();
        encode(message, ANSWER_BYTES_MAX, &mut out).unwrap();
        out
    }

    /// What loading makes of a runner that has said `bytes`, and then ends or stays.
    fn outcome(bytes: &[u8], ends: bool, deadline: Duration) -> Result<ModelInfo, LoadError> {
        let (ours, theirs) = stream_pair().unwrap();
        let (process, alive) = stream_pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        send_now(&theirs, bytes).unwrap();
        let _kept = (!ends).then_some((theirs, alive));
        load(&ours, &process, &mut Tail::new(reader), request(), Instant::now() + deadline)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_runner_that_loads_or_says_why_not_is_understood() {
        let info = ModelInfo { name: "tiny".into(), ..ModelInfo::default() };
        assert_eq!(outcome(&frame(&FromRunner::Loaded(info.clone())), false, LONG), Ok(info));
        let failed = frame(&FromRunner::LoadFailed { reason: "no\ntensor".into() });
        assert_eq!(outcome(&failed, false, LONG), Err(LoadError::Refused("no tensor".into())));
    }

    #[test]
    fn a_runner_that_breaks_the_protocol_is_refused() {
        let loaded = frame(&FromRunner::Loaded(ModelInfo::default()));
        let other = frame(&FromRunner::Rendered { id: 1, text: String::new() });
        for bad in [&u32::MAX.to_le_bytes()[..], b"\x02\0\0\0\xff\xff", &[loaded.clone(), loaded].concat(), &other] {
            assert!(matches!(outcome(bad, false, LONG), Err(LoadError::Refused(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_runner_that_says_nothing_has_ended_or_is_late() {
        assert_eq!(outcome(b"", false, Duration::ZERO), Err(LoadError::Late));
        assert_eq!(outcome(b"\x05\0", false, Duration::ZERO), Err(LoadError::Late));
    }

    #[test]
    fn a_runner_that_closed_its_socket_has_ended() {
        let (ours, theirs) = stream_pair().unwrap();
        let (process, _alive) = stream_pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        drop(theirs);
        let outcome = load(&ours, &process, &mut Tail::new(reader), request(), Instant::now() + LONG);
        assert_eq!(outcome, Err(LoadError::Ended));
    }
}
