//! The edge over real TLS on loopback: clients that behave, and clients that do not.
//!
//! Tests wait for events (a reply, a closed connection, a signal of the handler), never for time to pass. Where a deadline
//! is what is tested, it is set short and its effect awaited. A watchdog in the harness turns a hang into a failure.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod cap;
mod drain;
mod harness;
mod hostile;
mod http1;
mod http2;
mod reply;
mod tls;
