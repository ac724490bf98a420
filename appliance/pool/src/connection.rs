//! The socket of one instance: frames out in order, frames in as inputs of the scheduler.

use crate::scheduler::Input;
use appliance_runtime::{Task, UnixStream, spawn_owned};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use sandbox_wire::{
    frame::{Decoder, FROM_RUNNER_BYTES_MAX, TO_RUNNER_BYTES_MAX, encode},
    runner::ToRunner,
    warden::InstanceId,
};
use std::{io, os::fd::OwnedFd};

const READ_BYTES: usize = 16 << 10;

/// A live connection; dropping it closes the socket, which ends the runner.
#[derive(Debug)]
pub(crate) struct Connection {
    outgoing: flume::Sender<ToRunner>,
    _tasks: [Task<()>; 2],
}

impl Connection {
    /// Begins to read and write `socket`. What the runner says goes to `inputs`, and last that it is lost.
    pub(crate) fn open(instance: InstanceId, socket: OwnedFd, inputs: flume::Sender<Input>) -> io::Result<Self> {
        let writer = UnixStream::from_fd(socket.try_clone()?);
        let reader = UnixStream::from_fd(socket);
        // Holds what the instance's slots may be sent, which the scheduler bounds.
        let (outgoing, messages) = flume::unbounded();
        // A failed write is a dead peer, of which the reader tells.
        let write = async move { drop(write(writer, messages).await) };
        let read = async move {
            let fault = read(reader, instance, &inputs).await.err();
            drop(inputs.send(Input::Lost { instance, fault }));
        };
        Ok(Self { outgoing, _tasks: [spawn_owned(write), spawn_owned(read)] })
    }

    /// Sends a message after those sent before.
    pub(crate) fn send(&self, message: ToRunner) {
        drop(self.outgoing.send(message));
    }
}

async fn write(mut socket: UnixStream, messages: flume::Receiver<ToRunner>) -> io::Result<()> {
    let mut frame = Vec::new();
    while let Ok(message) = messages.recv_async().await {
        frame.clear();
        encode(&message, TO_RUNNER_BYTES_MAX, &mut frame).map_err(io::Error::other)?;
        socket.write_all(&frame).await?;
    }
    Ok(())
}

/// Hands on what comes until the end of the stream; an error is a breach of protocol.
async fn read(mut socket: UnixStream, instance: InstanceId, inputs: &flume::Sender<Input>) -> Result<(), String> {
    let mut decoder = Decoder::new(FROM_RUNNER_BYTES_MAX);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok(length @ 1..) = socket.read(&mut buffer).await else { return Ok(()) };
        decoder.push(&buffer[..length]);
        while let Some(message) = decoder.next_message().map_err(|error| format!("it broke protocol: {error}"))? {
            drop(inputs.send(Input::Said { instance, message }));
        }
    }
}
