//! What the server, the warden and the runners say to each other, and the frames that carry it.
//!
//! Pure: bytes in, messages out. Both ends of every message are in this workspace and are built together, so there is
//! no version to negotiate. A peer may still be hostile (a runner holds an untrusted model): [`frame`] bounds
//! lengths before it allocates, and the receiver of a message checks that it fits the state it is in.
//!
//! ```text
//!  server ── runner::ToRunner ───▶ runner       one stream socket an instance
//!  server ◀── runner::FromRunner ─ runner
//!  server ── warden::Request ────▶ warden       one SOCK_SEQPACKET socket; a reply may carry a descriptor
//!  server ◀── warden::Message ──── warden
//! ```

pub mod frame;
pub mod runner;
pub mod warden;
