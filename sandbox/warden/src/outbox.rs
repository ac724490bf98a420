//! Messages to the server. Any thread may send: a packet is whole or not at all.

use crate::registry::Lived;
use appliance_types::FunctionName;
use sandbox_kernel::socket::send_packet;
use sandbox_wire::{
    frame::encode_packet,
    warden::{ExitCause, GaugeKind, InstanceId, Message, PACKET_BYTES_MAX, Reply, WardenError},
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// The warden's end of the socket.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(Arc<OwnedFd>);

impl Outbox {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        Self(socket)
    }

    /// Answers a request.
    pub(crate) fn reply(&self, id: u64, result: Result<Reply, WardenError>) {
        self.send(id, Message::Reply { id, result }, None);
    }

    /// Answers a request and hands a descriptor over.
    pub(crate) fn hand_over(&self, id: u64, reply: Reply, descriptor: BorrowedFd<'_>) {
        self.send(id, Message::Reply { id, result: Ok(reply) }, Some(descriptor));
    }

    /// Hands over where to read what an instance uses.
    pub(crate) fn gauge(&self, instance: InstanceId, kind: GaugeKind, file: BorrowedFd<'_>) {
        self.send(instance, Message::Gauge { instance, kind }, Some(file));
    }

    /// Tells a part of a life.
    pub(crate) fn lived(&self, (who, spent): Lived) {
        self.send(0, Message::Lived { who, spent }, None);
    }

    /// Tells that an instance is gone.
    pub(crate) fn exited(&self, instance: InstanceId, cause: ExitCause) {
        self.send(instance, Message::Exited { instance, cause }, None);
    }

    /// Tells that a snapshot is no more.
    pub(crate) fn retired(&self, function: FunctionName, reason: String) {
        self.send(0, Message::SnapshotRetired { function, reason }, None);
    }

    fn send(&self, id: u64, message: Message, descriptor: Option<BorrowedFd<'_>>) {
        let packet = encode_packet(&message, PACKET_BYTES_MAX).or_else(|error| {
            let result = Err(WardenError::BadRequest { reason: format!("the answer does not fit a packet: {error}") });
            encode_packet(&Message::Reply { id, result }, PACKET_BYTES_MAX)
        });
        let sent = packet.map(|packet| send_packet(self.0.as_fd(), &packet, descriptor));
        match sent {
            Ok(Ok(())) => {}
            // The main loop sees the end of the socket by itself.
            Ok(Err(error)) => tracing::debug!(id, %error, "the server is gone"),
            Err(error) => tracing::error!(id, %error, "a message was lost"),
        }
    }
}
