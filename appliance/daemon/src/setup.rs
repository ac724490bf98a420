//! What the server child is given when it starts: everything that it may touch, already open.
//!
//! [`crate::children`] makes a [`ServerSetup`] while the child is still root, drops every privilege, then calls
//! `server::run(setup)`. From there on the process is an unprivileged uid without capabilities, with no_new_privs, in
//! the host's network, with `DIR` as its working directory. It ends by returning, `Ok` after
//! [`Order::Stop`](crate::control::Order::Stop).
//!
//! Invariants: the server needs no signal handler ([`Orders`] come as packets on one socket), and holds no descriptor but
//! those below, the standard three and what it opens itself.

use crate::control::{Orders, Speaker};
use appliance_config::ServeConfig;
use sandbox_kernel::pressure::MemoryPressure;
use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

/// What the server child starts with.
#[derive(Debug)]
pub(crate) struct ServerSetup {
    /// Listening sockets of one address, one a core (SO_REUSEPORT), non-blocking. The supervisor holds them too.
    pub(crate) listeners: Vec<TcpListener>,
    /// The socket that telemetry is answered on, where it is.
    pub(crate) telemetry_listener: Option<TcpListener>,
    /// The socket that a load balancer is answered on, where it is.
    pub(crate) agent_listener: Option<TcpListener>,
    /// The address they listen on, with the port that was picked.
    pub(crate) address: SocketAddr,
    /// The server's end of the SOCK_SEQPACKET pair to the warden; nobody else holds it. Blocking until set otherwise.
    pub(crate) warden: OwnedFd,
    /// The meter's rings, one a listener; the supervisor keeps them, and the ledger has them too.
    pub(crate) rings: Vec<OwnedFd>,
    /// Wakes the ledger.
    pub(crate) bell: OwnedFd,
    /// Asks the ledger; the supervisor keeps both ends.
    pub(crate) questions: OwnedFd,
    /// The kernel's word of how short memory is, where it gives any.
    pub(crate) pressure: Option<MemoryPressure>,
    /// Says once that requests are answered.
    pub(crate) speaker: Speaker,
    /// What the supervisor wants next. [`Orders::next`] blocks: give it a thread of its own.
    pub(crate) orders: Orders,
    /// The configuration in force, until [`Order::Reload`](crate::control::Order::Reload) brings another.
    pub(crate) config: ServeConfig,
    /// The server's files, relative to its working directory.
    pub(crate) files: ServerFiles,
}

/// The server's files; each path is relative to its working directory, which is `DIR`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerFiles {
    /// The folder of `appliance_keys::KeyStore`; the supervisor has seen to the admin key.
    pub(crate) keys: &'static str,
    /// Manifests of deployed functions, `NAME.toml`; the server writes them, atomically.
    pub(crate) functions: &'static str,
    /// Names of the functions that were served when an update was applied last, a line each: what must serve after it.
    pub(crate) served: &'static str,
    /// Certificate chain, PEM; the supervisor writes it, the server reads it again at a reload.
    pub(crate) certificate: &'static str,
    /// Its private key, PEM; likewise.
    pub(crate) certificate_key: &'static str,
    /// Of the CA that callers are to trust.
    pub(crate) authority: &'static str,
    /// The folder of what a fleet knows the box by; the supervisor has seen to what is in it.
    pub(crate) telemetry: &'static str,
    /// The price book; the supervisor has seen to it that there is one, the server reads it again at a reload.
    pub(crate) prices: &'static str,
}

/// The layout below `DIR` that the server knows.
pub(crate) const SERVER_FILES: ServerFiles = ServerFiles {
    keys: "server",
    functions: "server/functions",
    served: "server/served",
    certificate: "tls/server.pem",
    certificate_key: "tls/server.key",
    authority: "tls/ca.pem",
    telemetry: "telemetry",
    prices: "prices.toml",
};
