//! `ember-liar`: a runner for one test, which works as long as any and claims that it did not.
//!
//! ```text
//!  Load ─▶ Loaded      Generate ─▶ Started (no tokens, all found in the cache) ─▶ [computes, a piece of text that took no token] × PIECES
//!                                  ─▶ Finished (no tokens, all found in the cache, no time)
//! ```
//!
//! It computes by spinning, so that its time and its CPU time are known from below whatever the machine does: it is never
//! shorter than [`PIECES`] × [`PIECE`]. All else is answered by nothing.

use sandbox_model::inherited_socket;
use sandbox_wire::{
    frame::{Decoder, FROM_RUNNER_BYTES_MAX, TO_RUNNER_BYTES_MAX, encode},
    runner::{FinishReason, Finished, FromRunner, Id, ModelInfo, SOCKET_FD, Text, ToRunner},
};
use std::{
    error::Error,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Pieces of an answer.
const PIECES: usize = 20;
/// Time that each takes.
const PIECE: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
    let mut socket = inherited_socket(SOCKET_FD)?;
    let mut decoder = Decoder::new(TO_RUNNER_BYTES_MAX);
    let mut incoming = [0; 64 << 10];
    loop {
        while let Some(message) = decoder.next_message()? {
            answer(&mut socket, message)?;
        }
        match socket.read(&mut incoming)? {
            0 => return Ok(()),
            bytes => decoder.push(&incoming[..bytes]),
        }
    }
}

fn answer(socket: &mut UnixStream, message: ToRunner) -> Result<(), Box<dyn Error>> {
    match message {
        ToRunner::Load(load) => {
            say(socket, &FromRunner::Loaded(ModelInfo { slots: load.slots, vocabulary: 1, ..ModelInfo::default() }))
        }
        ToRunner::Threads { count } => say(socket, &FromRunner::Threads { count }),
        ToRunner::Generate { id, .. } => lie(socket, id),
        _ => Ok(()),
    }
}

fn lie(socket: &mut UnixStream, id: Id) -> Result<(), Box<dyn Error>> {
    say(socket, &FromRunner::Started { id, prompt_tokens: 0, cached_tokens: u32::MAX })?;
    for _ in 0..PIECES {
        let until = Instant::now() + PIECE;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let text = Text { text: "work ".to_owned(), tokens: 0, logprobs: Vec::new() };
        say(socket, &FromRunner::Text { id, text })?;
    }
    let finished = Finished {
        reason: FinishReason::Stop,
        prompt_tokens: 0,
        cached_tokens: u32::MAX,
        completion_tokens: 0,
        prefill_us: 0,
        decode_us: 0,
    };
    say(socket, &FromRunner::Finished { id, finished })
}

fn say(socket: &mut UnixStream, message: &FromRunner) -> Result<(), Box<dyn Error>> {
    let mut frame = Vec::new();
    encode(message, FROM_RUNNER_BYTES_MAX, &mut frame)?;
    Ok(socket.write_all(&frame)?)
}
