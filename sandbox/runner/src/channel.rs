//! Messages over the one socket.
//!
//! Idle, the runner blocks in `read`, which is where a snapshot finds it. Busy, it looks between two steps with a `recv`
//! that does not wait. Writes block: a server that does not read stops the work it does not take, and nothing piles up here.

use crate::error::RunnerError;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use sandbox_wire::{
    frame::{Decoder, FrameError, encode},
    runner::{Failure, FromRunner, ToRunner},
};
use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

const READ_BYTES_MAX: usize = 64 << 10;
const WRITE_BYTES_KEPT: usize = 64 << 10;

/// The runner's end of its socket.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: UnixStream,
    decoder: Decoder,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// When something was last sent or received.
    quiet_since: Instant,
}

/// What a look at the socket found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message.
    Message(ToRunner),
    /// Nothing yet.
    Nothing,
    /// The peer has closed its end.
    Closed,
}

impl Channel {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let decoder = Decoder::new(sandbox_wire::frame::TO_RUNNER_BYTES_MAX);
        Self { socket, decoder, incoming: vec![0; READ_BYTES_MAX], outgoing: Vec::new(), quiet_since: Instant::now() }
    }

    /// How long nothing was sent or received.
    pub(crate) fn silent_for(&self) -> Duration {
        self.quiet_since.elapsed()
    }

    /// Waits for a message; never [`Received::Nothing`].
    pub(crate) fn wait(&mut self) -> Result<Received, RunnerError> {
        self.receive(|channel| channel.socket.read(&mut channel.incoming))
    }

    /// Takes a message that is there already.
    pub(crate) fn poll(&mut self) -> Result<Received, RunnerError> {
        self.receive(|channel| {
            recv(channel.socket.as_raw_fd(), &mut channel.incoming, MsgFlags::MSG_DONTWAIT).map_err(Errno::into)
        })
    }

    /// Sends a message, or in place of one too long for a frame, that it is.
    pub(crate) fn send(&mut self, message: &FromRunner) -> Result<(), RunnerError> {
        self.quiet_since = Instant::now();
        self.outgoing.clear();
        self.outgoing.shrink_to(WRITE_BYTES_KEPT);
        if let Err(error) = self.encode(message) {
            let id = message.id().ok_or_else(|| error.clone())?;
            let failure = Failure::Internal { message: format!("the reply does not fit: {error}") };
            self.encode(&FromRunner::Failed { id, failure })?;
        }
        self.socket.write_all(&self.outgoing).map_err(|error| RunnerError::Socket { action: "write to", error })
    }

    fn encode(&mut self, message: &FromRunner) -> Result<(), FrameError> {
        encode(message, sandbox_wire::frame::FROM_RUNNER_BYTES_MAX, &mut self.outgoing)
    }

    /// Reads until there is a message, or nothing more to read.
    fn receive(&mut self, mut read: impl FnMut(&mut Self) -> io::Result<usize>) -> Result<Received, RunnerError> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                self.quiet_since = Instant::now();
                return Ok(Received::Message(message));
            }
            match read(self) {
                Ok(0) => return Ok(Received::Closed),
                Ok(bytes) => self.decoder.push(&self.incoming[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_closed(&error) => return Ok(Received::Closed),
                Err(error) => return Err(RunnerError::Socket { action: "read from", error }),
            }
        }
    }
}

/// Whether an error only says that the peer is gone.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}
