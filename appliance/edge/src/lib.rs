//! The network's edge: TCP connections in, HTTP requests to a handler, its replies out. The only crate of the server that
//! names hyper and rustls.
//!
//! ```text
//! listener ─▶ accept ─▶ caps ─▶ TLS handshake ─▶ ALPN ─┬▶ HTTP/1.1 ─┬▶ head check ─▶ Handler::call ─▶ ReplyBody
//!  (server)             (census)  (tls)       (connection)└▶ HTTP/2 ──┘   (service)                     (body)
//!                └────────────── every phase has a deadline in the core's clock (pace, clock) ──────────┘
//! ```
//!
//! Invariants:
//! - everything that a peer can make grow has a field in [`Limits`], and everything it can delay has a deadline there;
//! - a request that its client has left is dropped: the handler's future before the reply, the reply's stream after;
//! - a reply's stream is not polled ahead of the client: what waits in buffers is bounded by [`Limits`];
//! - a panic in a handler ends one request; the connection's task, and the core, go on;
//! - after a fault in a peer's HTTP/1.1 framing its connection is closed, never used again.
//!
//! Left out: routes, authentication, and the rendering of errors that handlers can see ([`BodyError`], [`Failure`]).

pub mod authority;
mod body;
mod census;
mod clock;
mod connection;
mod handler;
mod head;
mod io;
mod limits;
mod pace;
mod server;
mod service;
mod tls;

pub use body::{BodyError, ReplyBody, RequestBody};
pub use census::Counts;
pub use handler::{Failure, Handler, Request};
pub use head::HeadFault;
pub use limits::Limits;
pub use server::{Edge, Served};
pub use tls::{CertificateError, Certificates, client_provider};
