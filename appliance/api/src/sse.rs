//! Server-sent events: the few constants of a stream. Events themselves are made by [`crate::ChunkWriter`] and
//! [`crate::ApiError::event`]; each is one `data:` line and an empty one.

/// `content-type` of a body of JSON.
pub const CONTENT_TYPE_JSON: &str = "application/json";
/// `content-type` of a stream of events.
pub const CONTENT_TYPE_EVENTS: &str = "text/event-stream; charset=utf-8";
/// Last event of a stream that ended well.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment, which clients skip and proxies take as a sign of life.
pub const HEARTBEAT: &[u8] = b": alive\n\n";

/// A comment of a stream whose request waits: 1 is next, and its turn comes in about `eta_ms`.
pub fn queued(position: usize, eta_ms: u128) -> Vec<u8> {
    format!(": queued position={position} eta_ms={eta_ms}\n\n").into_bytes()
}
