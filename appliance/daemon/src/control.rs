//! The control socket between the supervisor and each child: a SOCK_SEQPACKET pair, one JSON message a packet.
//!
//! It is the child's standard input, and the only thing a child inherits: every other descriptor arrives over it, so
//! no descriptor number is agreed on and none leaks.
//!
//! ```text
//!  supervisor ── Give{what} + descriptor ─▶ child    ×n   what it may use
//!  supervisor ── Start ───────────────────▶ child    read before it drops its privileges
//!  supervisor ◀── Ready ─────────────────── child    server only: it answers
//!  supervisor ◀── Urgency{thread} ───────── child    server only: how a thread of its is to be scheduled
//!  supervisor ── Reload ──────────────────▶ child    server only: configuration checked, certificate renewed if needed
//!  supervisor ── Stop ────────────────────▶ child    server only: finish or cut what runs, then end
//! ```
//!
//! All packets up to `Start` are queued before the child is started. The supervisor never waits on the socket; an end of
//! the stream tells a child that the supervisor is gone.

use crate::{exit::Failure, source::Source};
use appliance_config::ServeConfig;
use clap::ValueEnum;
use nix::{errno::Errno, fcntl, unistd::gettid};
use sandbox_kernel::socket;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

/// Longest packet: a configuration file and what JSON adds to it.
const PACKET_BYTES_MAX: usize = 128 << 10;
/// Room for all packets up to `Start`, so that they can be queued without waiting.
const QUEUE_BYTES: usize = 1 << 20;

/// Which child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Owns models and sandboxes.
    Warden,
    /// Faces the network.
    Server,
    /// Keeps the records.
    Ledger,
}

impl Role {
    /// The role's name: in logs, and as the argument of `emberd child`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Warden => "warden",
            Self::Server => "server",
            Self::Ledger => "ledger",
        }
    }
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// Server ↔ warden.
    Peer,
    /// A core's ring, server → ledger; in the order of the listening sockets.
    Ring,
    /// The pipe that wakes the ledger: the end that it needs.
    Bell,
    /// Server ↔ ledger: questions and answers.
    Questions,
    /// A listening socket.
    Listener,
    /// The listening socket of telemetry.
    TelemetryListener,
    /// The listening socket of the agent check.
    AgentListener,
}

/// What every child is told before it begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The supervisor.
    pub(crate) supervisor_pid: u32,
    /// The data folder, absolute.
    pub(crate) data: PathBuf,
    /// Names this data folder's cgroups.
    pub(crate) tag: String,
    /// The program that runs models, absolute.
    pub(crate) runner: PathBuf,
    /// Where the listening sockets listen.
    pub(crate) address: SocketAddr,
    /// The configuration.
    pub(crate) source: Source,
}

#[derive(Debug, Serialize, Deserialize)]
enum ToChild {
    Give(What),
    Start(Box<Start>),
    Reload(Source),
    Stop,
}

/// What the server says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromChild {
    /// Requests are answered.
    Ready,
    /// A thread of its is, or is not, to run before all that computes.
    Urgency {
        /// Its number.
        thread: i32,
        /// Whether it is.
        is_urgent: bool,
    },
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    /// Both ends, with everything that the child is given queued: its end is to be its standard input.
    pub(crate) fn prepare(gifts: &[(What, BorrowedFd<'_>)], start: Start) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socket::packet_pair()?;
        socket::reserve_send_buffer(&ours, QUEUE_BYTES)?;
        fcntl::fcntl(&ours, fcntl::FcntlArg::F_SETFL(fcntl::OFlag::O_NONBLOCK))?;
        for (what, descriptor) in gifts {
            send(&ours, &ToChild::Give(*what), Some(*descriptor))?;
        }
        send(&ours, &ToChild::Start(Box::new(start)), None)?;
        Ok((Self(ours), theirs))
    }

    /// Has the server take another configuration.
    pub(crate) fn reload(&self, source: Source) -> io::Result<()> {
        send(&self.0, &ToChild::Reload(source), None)
    }

    /// Has the server end.
    pub(crate) fn stop(&self) -> io::Result<()> {
        send(&self.0, &ToChild::Stop, None)
    }

    /// What the child says; to be called once the socket is readable. `None`: it is gone.
    pub(crate) fn hear(&self) -> io::Result<Option<FromChild>> {
        Ok(receive(&self.0)?.map(|(said, _)| said))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a child begins with.
#[derive(Debug)]
pub(crate) struct Beginning {
    /// Its end of the control socket.
    pub(crate) control: OwnedFd,
    /// The descriptors it was given.
    pub(crate) gifts: Vec<(What, OwnedFd)>,
    /// What it was told.
    pub(crate) start: Start,
}

/// Takes the control socket off standard input, and everything that was queued on it.
pub(crate) fn receive_start() -> io::Result<Beginning> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    let mut gifts = Vec::new();
    loop {
        match receive(&control)? {
            Some((ToChild::Give(what), Some(descriptor))) => gifts.push((what, descriptor)),
            Some((ToChild::Start(start), None)) => return Ok(Beginning { control, gifts, start: *start }),
            Some((other, _)) => return Err(io::Error::other(format!("{other:?} before the start"))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Splits the server's end: what it says, and what it is told.
pub(crate) fn split(control: OwnedFd) -> io::Result<(Speaker, Orders)> {
    Ok((Speaker(Arc::new(control.try_clone()?)), Orders(control)))
}

/// Speaks to the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Speaker(Arc<OwnedFd>);

impl Speaker {
    /// Says that requests are answered. The supervisor then prints the `ready` line and writes `DIR/address`.
    pub(crate) fn is_ready(&self) -> io::Result<()> {
        send(&self.0, &FromChild::Ready, None)
    }

    /// Asks that the calling thread runs before all that computes, or as others do.
    pub(crate) fn be_urgent(&self, is_urgent: bool) -> io::Result<()> {
        send(&self.0, &FromChild::Urgency { thread: gettid().as_raw(), is_urgent }, None)
    }
}

/// What the supervisor wants of the server.
#[derive(Debug)]
pub(crate) enum Order {
    /// Take this configuration, and read the certificate again.
    Reload(Box<ServeConfig>),
    /// Stop accepting, finish or cut what runs within `drain`, then return from `server::run`.
    Stop,
}

/// The orders, in order.
#[derive(Debug)]
pub(crate) struct Orders(OwnedFd);

impl Orders {
    /// The next order; waits for it, so call it on a thread of its own. A supervisor that is gone means [`Order::Stop`].
    pub(crate) fn next(&mut self) -> Result<Order, Failure> {
        match receive(&self.0).map_err(|source| Failure::io("receive from", "the supervisor", source))? {
            None | Some((ToChild::Stop, _)) => Ok(Order::Stop),
            Some((ToChild::Reload(source), _)) => Ok(Order::Reload(Box::new(source.resolve()?))),
            Some((other, _)) => Err(Failure::Bug(format!("{other:?} after the start"))),
        }
    }
}

fn send<M: Serialize>(socket: &OwnedFd, message: &M, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > PACKET_BYTES_MAX {
        return Err(Errno::EMSGSIZE.into());
    }
    Ok(socket::send_packet(socket, &packet, descriptor)?)
}

fn receive<M: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(M, Option<OwnedFd>)>> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let Some(packet) = socket::receive_packet(socket, &mut buffer).map_err(io::Error::other)? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&buffer[..packet.length])?, packet.descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Flags;

    fn start() -> Start {
        Start {
            supervisor_pid: 1,
            data: "/data".into(),
            tag: "tag".into(),
            runner: "/runner".into(),
            address: ([127, 0, 0, 1], 1).into(),
            source: Source::default(),
        }
    }

    #[test]
    fn all_that_a_child_is_given_fits_the_queue() {
        let listener = File::open("/dev/null").unwrap();
        let gifts = vec![(What::Listener, listener.as_fd()); 512];
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        std::fs::write(&config, "#".repeat(16 << 10)).unwrap();
        let source = Source::read(&Flags { config: Some(config), ..Flags::default() }).unwrap();
        Control::prepare(&gifts, Start { source, ..start() }).unwrap();
    }

    #[test]
    fn orders_arrive_and_an_end_means_stop() {
        let (control, theirs) = Control::prepare(&[], start()).unwrap();
        assert!(matches!(receive(&theirs).unwrap(), Some((ToChild::Start(_), None))));
        let (speaker, mut orders) = split(theirs).unwrap();
        speaker.is_ready().unwrap();
        assert_eq!(control.hear().unwrap(), Some(FromChild::Ready));
        speaker.be_urgent(true).unwrap();
        let said = FromChild::Urgency { thread: gettid().as_raw(), is_urgent: true };
        assert_eq!(control.hear().unwrap(), Some(said));
        control.reload(Source::default()).unwrap();
        assert!(matches!(orders.next(), Ok(Order::Reload(config)) if *config == ServeConfig::default()));
        control.stop().unwrap();
        assert!(matches!(orders.next(), Ok(Order::Stop)));
        drop(control);
        assert!(matches!(orders.next(), Ok(Order::Stop)));
    }

    #[test]
    fn a_child_that_takes_nothing_does_not_stop_the_supervisor() {
        let (control, _theirs) = Control::prepare(&[], start()).unwrap();
        let refused = (0..1 << 20).find_map(|_| control.stop().err()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
