//! Replies: bodies of ours as HTTP responses.

use appliance_api::{ApiError, Dialect, sse::CONTENT_TYPE_JSON};
use appliance_edge::ReplyBody;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// A whole response.
pub(super) type Reply = Response<ReplyBody>;

/// What an endpoint gives.
pub(super) type Answered = Result<Reply, ApiError>;

/// 200 with JSON that is written already.
pub(super) fn json_bytes(body: impl Into<Bytes>) -> Reply {
    with_type(CONTENT_TYPE_JSON, ReplyBody::Full(body.into()))
}

/// 200 with `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Reply {
    json_bytes(serde_json::to_vec(value).expect("our own values are strings, numbers and lists of them"))
}

/// 200 with a list, in the envelope that every list of ours has.
pub(super) fn list(items: &[impl Serialize]) -> Reply {
    json(&serde_json::json!({ "data": items }))
}

/// 204: it is gone.
pub(super) fn nothing() -> Reply {
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

/// 200 with any body.
pub(super) fn with_type(content_type: &'static str, body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The reply that says what is wrong.
pub(super) fn error(dialect: Dialect, error: &ApiError) -> Reply {
    let mut reply = json_bytes(dialect.error_body(error));
    *reply.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = error.retry_after_s {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if reply.status() == StatusCode::TOO_MANY_REQUESTS && error.retry_after_s.is_none() {
        // OpenAI's libraries try every 429 again, unless they are told.
        reply.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if reply.status() == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}

/// Adds a header whose value is ours, hence printable.
pub(super) fn set(reply: &mut Reply, name: &'static str, value: &str) {
    let value = HeaderValue::from_str(value).expect("a printable value");
    reply.headers_mut().insert(HeaderName::from_static(name), value);
}
