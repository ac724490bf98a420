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
