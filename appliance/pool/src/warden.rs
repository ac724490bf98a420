//! The server's side of the socket to the warden: calls out, replies to whoever called, exits to the pool, and a count of
//! what it told by itself.
//!
//! Two threads, since a packet that carries a descriptor needs a blocking `recvmsg`, which the executor has not. Invariant: wakes
//! and exits reach the pool in the order in which the warden sent them, so an exit never overtakes its instance.

use crate::scheduler::{Input, WakeId};
use sandbox_kernel::{
    cgroup::Gauges,
    socket::{receive_packet, send_packet},
};
use sandbox_wire::{
    frame::{decode_packet, encode_packet},
    warden::{Call, GaugeKind, InstanceId, Message, PACKET_BYTES_MAX, Reply, Request, RunnerSpec, WardenError},
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// The warden is gone; the supervisor restarts it, and the server with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the warden is gone")]
pub struct WardenLost;

/// A handle to the warden, for any core.
#[derive(Clone, Debug)]
pub struct Warden {
    shared: Arc<Shared>,
    outgoing: flume::Sender<(Request, Option<OwnedFd>)>,
}

#[derive(Debug, Default)]
struct Shared {
    ids: AtomicU64,
    snapshots_retired: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pending: HashMap<u64, Pending>,
    sockets: HashMap<InstanceId, OwnedFd>,
    /// Where to read what instances use: CPU time, memory.
    gauges: HashMap<InstanceId, [Option<OwnedFd>; 2]>,
    pool: Option<flume::Sender<Input>>,
    lost: bool,
}

#[derive(Debug)]
enum Pending {
    Wake(WakeId),
    Call(flume::Sender<Result<Reply, WardenError>>),
}

impl Warden {
    /// Talks to the warden over `socket`; `on_lost` is called when the warden is gone.
    ///
    /// # Errors
    /// The kernel's: no threads or descriptors left.
    pub fn connect(socket: OwnedFd, on_lost: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (outgoing, requests) = flume::unbounded();
        let (reader, for_reader) = (socket.try_clone()?, Arc::clone(&shared));
        thread::Builder::new().name("warden-out".into()).spawn(move || send_all(&socket, &requests))?;
        thread::Builder::new().name("warden-in".into()).spawn(move || {
            for_reader.receive_all(&reader);
            for_reader.lose();
            on_lost();
        })?;
        Ok(Self { shared, outgoing })
    }

    /// Calls the warden, with a descriptor for [`Call::ModelAdd`].
    ///
    /// # Errors
    /// What the warden says; [`WardenError::BadRequest`] when it is gone.
    pub async fn call(&self, call: Call, descriptor: Option<OwnedFd>) -> Result<Reply, WardenError> {
        let (sender, receiver) = flume::bounded(1);
        self.send(call, descriptor, Some(Pending::Call(sender)));
        receiver.recv_async().await.unwrap_or_else(|_| Err(gone()))
    }

    /// Snapshots that could not be used, since the server began.
    pub fn snapshots_retired(&self) -> u64 {
        self.shared.snapshots_retired.load(Ordering::Relaxed)
    }

    pub(crate) fn wake(&self, wake: WakeId, spec: RunnerSpec) {
        self.send(Call::Wake(spec), None, Some(Pending::Wake(wake)));
    }

    pub(crate) fn keep_on(&self, instance: InstanceId, cores: Vec<u32>) {
        self.send(Call::Cores { instance, cores }, None, None);
    }

    /// Sends wakes and exits to the pool from now on.
    pub(crate) fn report_to(&self, pool: flume::Sender<Input>) {
        self.shared.lock().pool = Some(pool);
    }

    /// The socket of an instance that woke; once.
    pub(crate) fn take_socket(&self, instance: InstanceId) -> Option<OwnedFd> {
        self.shared.lock().sockets.remove(&instance)
    }

    /// Where to read what an instance that woke uses; once.
    pub(crate) fn take_gauges(&self, instance: InstanceId) -> Option<Gauges> {
        let [cpu, memory] = self.shared.lock().gauges.remove(&instance)?;
        Some(Gauges::from_descriptors(cpu?, memory?))
    }

    /// `pending`: who waits for the answer, where there is one.
    fn send(&self, call: Call, descriptor: Option<OwnedFd>, pending: Option<Pending>) {
        let id = self.shared.ids.fetch_add(1, Ordering::Relaxed);
        let mut state = self.shared.lock();
        if !state.lost {
            state.pending.extend(pending.map(|pending| (id, pending)));
            drop(self.outgoing.send((Request { id, call }, descriptor)));
        }
    }
}

fn gone() -> WardenError {
    WardenError::BadRequest { reason: WardenLost.to_string() }
}

fn send_all(socket: &OwnedFd, requests: &flume::Receiver<(Request, Option<OwnedFd>)>) {
    for (request, descriptor) in requests {
        let packet = encode_packet(&request, PACKET_BYTES_MAX).expect("specs are bounded when manifests are read");
        if send_packet(socket, &packet, descriptor.as_ref().map(AsFd::as_fd)).is_err() {
            return;
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive_all(&self, socket: &OwnedFd) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while let Ok(Some(packet)) = receive_packet(socket, &mut buffer) {
            match decode_packet(&buffer[..packet.length]) {
                Ok(message) => self.take(message, packet.descriptor),
                Err(error) => tracing::error!(%error, "the warden sent what is no message"),
            }
        }
    }

    fn take(&self, message: Message, descriptor: Option<OwnedFd>) {
        let mut state = self.lock();
        match message {
            Message::Reply { id, result } => match state.pending.remove(&id) {
                Some(Pending::Call(caller)) => drop(caller.try_send(result)),
                Some(Pending::Wake(wake)) => state.woken(wake, result, descriptor),
                None => tracing::error!(id, "the warden answered what was not asked"),
            },
            Message::Gauge { instance, kind } => {
                let [cpu, memory] = state.gauges.entry(instance).or_default();
                match kind {
                    GaugeKind::Cpu => *cpu = descriptor,
                    GaugeKind::Memory => *memory = descriptor,
                }
            }
            Message::Lived { who, spent } => state.tell(Input::Lived { who, spent }),
            Message::Exited { instance, cause } => {
                state.gauges.remove(&instance);
                state.tell(Input::Exited { instance, cause });
            }
            Message::SnapshotRetired { function, reason } => {
                let retired = self.snapshots_retired.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::warn!(%function, reason, retired, "a snapshot could not be used and is no more");
            }
        }
    }

    fn lose(&self) {
        let mut state = self.lock();
        state.lost = true;
        state.sockets.clear();
        state.gauges.clear();
        for (_, pending) in std::mem::take(&mut state.pending) {
            match pending {
                Pending::Wake(wake) => state.tell(Input::Woken { wake, result: Err(gone()) }),
                Pending::Call(caller) => drop(caller.try_send(Err(gone()))),
            }
        }
    }
}

impl State {
    fn woken(&mut self, wake: WakeId, result: Result<Reply, WardenError>, socket: Option<OwnedFd>) {
        let result = result.and_then(|reply| match (reply, socket) {
            (Reply::Awake(awake), Some(socket)) => {
                self.sockets.insert(awake.instance, socket);
                Ok(awake)
            }
            _ => Err(WardenError::BadRequest { reason: "a wake was answered without an instance".to_owned() }),
        });
        self.tell(Input::Woken { wake, result });
    }

    fn tell(&self, input: Input) {
        if let Some(pool) = &self.pool {
            drop(pool.send(input));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, zip};
    use sandbox_kernel::socket::packet_pair;

    fn say(socket: &OwnedFd, message: &Message) {
        send_packet(socket, &encode_packet(message, PACKET_BYTES_MAX).unwrap(), None).unwrap();
    }

    #[test]
    fn a_retired_snapshot_is_counted_between_a_call_and_its_reply() {
        let (ours, theirs) = packet_pair().unwrap();
        let warden = Warden::connect(ours, || ()).unwrap();
        let reply = async {
            let mut buffer = vec![0; PACKET_BYTES_MAX];
            let length = receive_packet(&theirs, &mut buffer).unwrap().unwrap().length;
            let Request { id, call } = decode_packet(&buffer[..length]).unwrap();
            assert_eq!(call, Call::Snapshots);
            let function = "f".parse().unwrap();
            say(&theirs, &Message::SnapshotRetired { function, reason: "its seal is broken".to_owned() });
            say(&theirs, &Message::Reply { id, result: Ok(Reply::Snapshots(Vec::new())) });
        };
        let (answer, ()) = block_on(zip(warden.call(Call::Snapshots, None), reply));
        assert_eq!(answer, Ok(Reply::Snapshots(Vec::new())));
        assert_eq!(warden.snapshots_retired(), 1);
    }
}
