//! What a caller is told when a request is not answered: OpenAI's envelope, and the status it is sent with.
//!
//! | status | `type` | `code` | who is at fault |
//! |---|---|---|---|
//! | 400 | `invalid_request_error` | none, or `context_length_exceeded` | caller; `param` names the field |
//! | 401 | `authentication_error` | `invalid_api_key` | caller |
//! | 403 | `permission_error` | `insufficient_permissions` | caller |
//! | 404 | `invalid_request_error` | `model_not_found`, `unknown_url` or `not_found` | caller |
//! | 405 | `invalid_request_error` | `method_not_supported` | caller |
//! | 408 | `timeout_error` | `request_timeout` | caller: the body did not come in time |
//! | 409 | `invalid_request_error` | `conflict` | caller |
//! | 413 | `invalid_request_error` | `request_too_large` | caller |
//! | 415 | `invalid_request_error` | `unsupported_media_type` | caller |
//! | 422 | `invalid_request_error` | `unprocessable` | caller: well-formed, but the model does not do it |
//! | 429 | `rate_limit_error` | `rate_limit_exceeded` | caller: its key's limits; `retry-after` |
//! | 429 | `insufficient_quota` | `insufficient_quota` | caller: a budget is used up; `retry-after` is when it begins anew |
//! | 500 | `server_error` | `internal_error` | us |
//! | 502 | `server_error` | `runner_failed` | the instance |
//! | 503 | `unavailable_error` | `unavailable` | us, for now: the box's limits; `retry-after` |
//! | 504 | `timeout_error` | `deadline_exceeded` | the function's `limits.timeout`, or the request's own deadline |
//!
//! A deadline is 504 and not 408: clients' libraries read 408 as "your request was slow to arrive, send it again",
//! which is wrong of a request that ran for as long as it may.

use crate::field::Fault;
use sandbox_wire::runner::Failure;
use serde::{Serialize, Serializer, ser::SerializeStruct};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const TIMEOUT: &str = "timeout_error";

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// The field at fault.
    pub param: Option<String>,
    /// What is wrong, for people.
    pub message: String,
    /// Value of `retry-after`, s.
    pub retry_after_s: Option<u64>,
    /// What it is counted as, where [`code`](Self::code) says too little; nobody is told.
    pub reason: Option<&'static str>,
}

impl ApiError {
    /// 400: the request is wrong as a whole.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(400, INVALID, None, message)
    }

    /// 400: a field of the request is wrong.
    pub fn invalid_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::invalid_request(message) }
    }

    /// 401: no key, or none of ours.
    pub fn authentication(message: impl Into<String>) -> Self {
        Self::new(401, "authentication_error", Some("invalid_api_key"), message)
    }

    /// 403: the key may not do this.
    pub fn permission(message: impl Into<String>) -> Self {
        Self::new(403, "permission_error", Some("insufficient_permissions"), message)
    }

    /// 404: no function of this name.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("no function `{model}`; `GET /v1/models` lists those there are");
        Self { param: Some("model".to_owned()), ..Self::new(404, INVALID, Some("model_not_found"), message) }
    }

    /// 404: nothing is answered at this path.
    pub fn unknown_url(method: &str, path: &str) -> Self {
        Self::new(404, INVALID, Some("unknown_url"), format!("nothing is answered at {method} {path}"))
    }

    /// 404: what the path names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, INVALID, Some("not_found"), message)
    }

    /// 405: the path exists, the method does not. `allowed` is what the `allow` header says.
    pub fn method_not_allowed(method: &str, path: &str, allowed: &str) -> Self {
        let message = format!("{path} does not take {method}; use {allowed}");
        Self::new(405, INVALID, Some("method_not_supported"), message)
    }

    /// 408: the request did not arrive in time.
    pub fn request_timeout(message: impl Into<String>) -> Self {
        Self::new(408, TIMEOUT, Some("request_timeout"), message)
    }

    /// 409: it contradicts what is there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, INVALID, Some("conflict"), message)
    }

    /// 413: the body is longer than `limit_bytes`.
    pub fn payload_too_large(limit_bytes: u64) -> Self {
        let message = format!("the request body is longer than the limit of {limit_bytes} bytes");
        Self::new(413, INVALID, Some("request_too_large"), message)
    }

    /// 415: the body is not JSON by its `content-type`.
    pub fn unsupported_media_type(got: &str) -> Self {
        let message = format!("content-type `{}` is not taken; send application/json", got.escape_debug());
        Self::new(415, INVALID, Some("unsupported_media_type"), message)
    }

    /// 422: well-formed, but this model does not do it.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, INVALID, Some("unprocessable"), message)
    }

    /// 429: more than the key may use.
    pub fn rate_limit(message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(429, "rate_limit_error", Some("rate_limit_exceeded"), message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 429: a budget is used up.
    pub fn insufficient_quota(message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(429, "insufficient_quota", Some("insufficient_quota"), message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 500: a fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, SERVER, Some("internal_error"), message)
    }

    /// 502: the instance crashed, was killed, or broke protocol.
    pub fn runner_failed(message: impl Into<String>) -> Self {
        Self::new(502, SERVER, Some("runner_failed"), message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(503, "unavailable_error", Some("unavailable"), message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 504: the request ran for as long as its function allows.
    pub fn deadline_exceeded(limit_ms: u64) -> Self {
        let message = format!("not finished within {limit_ms} ms, which is the function's `limits.timeout`");
        Self::new(504, TIMEOUT, Some("deadline_exceeded"), message)
    }

    /// 504: the request ran for as long as it asked to.
    pub fn deadline_passed(header: &str, deadline_ms: u64) -> Self {
        let message = format!("not finished within {deadline_ms} ms, which is the request's `{header}`");
        Self::new(504, TIMEOUT, Some("deadline_exceeded"), message)
    }

    /// What a runner's refusal means to the caller; `prompt_param` is the field that the prompt came in.
    pub fn from_failure(failure: Failure, prompt_param: &str) -> Self {
        match failure {
            Failure::ContextExceeded { prompt_tokens, context_tokens } => {
                context_exceeded(prompt_tokens, context_tokens, prompt_param)
            }
            Failure::Invalid { param, message } => Self::invalid_param(param, message),
            Failure::Unsupported { message } => Self::unprocessable(message),
            Failure::Internal { message } => Self::internal(message),
        }
    }

    /// The same, counted as this.
    pub fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// What it is counted as: one of a few words.
    pub fn counted_as(&self) -> &'static str {
        self.reason.or(self.code).unwrap_or(self.kind)
    }

    /// The reply's body.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.write(&mut body);
        body
    }

    /// The same as an event of a stream that has begun: after it nothing comes but the end.
    pub fn event(&self) -> Vec<u8> {
        let mut event = b"data: ".to_vec();
        self.write(&mut event);
        event.extend_from_slice(b"\n\n");
        event
    }

    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after_s: None, reason: None }
    }

    fn write(&self, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: &'a ApiError,
        }
        crate::reply::write_json(&Envelope { error: self }, out);
    }
}

fn context_exceeded(prompt_tokens: u32, context_tokens: u32, param: &str) -> ApiError {
    let message = format!(
        "the prompt has {prompt_tokens} tokens; the function's context holds {context_tokens}, answer included"
    );
    ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid_param(param, message) }
}

impl From<Fault> for ApiError {
    fn from(Fault { path, message }: Fault) -> Self {
        match path.is_empty() {
            true => Self::invalid_request(message),
            false => Self::invalid_param(path.clone(), format!("`{path}`: {message}")),
        }
    }
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_struct("ApiError", 4)?;
        error.serialize_field("message", &self.message)?;
        error.serialize_field("type", self.kind)?;
        error.serialize_field("param", &self.param)?;
        error.serialize_field("code", &self.code)?;
        error.end()
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code.unwrap_or(self.kind), self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_openais() {
        let failure = Failure::ContextExceeded { prompt_tokens: 3000, context_tokens: 2048 };
        let error = ApiError::from_failure(failure, "messages");
        let expected = r#"{"error":{"message":"the prompt has 3000 tokens; the function's context holds 2048, answer included","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
        assert_eq!(error.status, 400);
        assert_eq!(String::from_utf8(error.body()).unwrap(), expected);
        assert_eq!(String::from_utf8(error.event()).unwrap(), format!("data: {expected}\n\n"));
    }

    #[test]
    fn a_reason_is_counted_and_not_told() {
        let error = ApiError::unavailable("x", 1);
        assert_eq!((error.counted_as(), ApiError::invalid_request("x").counted_as()), ("unavailable", INVALID));
        let told = error.body();
        let error = error.because("queue_full");
        assert_eq!((error.counted_as(), error.body()), ("queue_full", told));
    }

    #[test]
    fn every_status_has_its_words() {
        let check = |error: ApiError, status: u16, kind: &str, code: Option<&str>| {
            assert_eq!((error.status, error.kind, error.code), (status, kind, code), "{error}");
        };
        check(ApiError::invalid_request("x"), 400, INVALID, None);
        check(ApiError::authentication("x"), 401, "authentication_error", Some("invalid_api_key"));
        check(ApiError::permission("x"), 403, "permission_error", Some("insufficient_permissions"));
        check(ApiError::model_not_found("x"), 404, INVALID, Some("model_not_found"));
        check(ApiError::unknown_url("GET", "/x"), 404, INVALID, Some("unknown_url"));
        check(ApiError::method_not_allowed("GET", "/x", "POST"), 405, INVALID, Some("method_not_supported"));
        check(ApiError::request_timeout("x"), 408, TIMEOUT, Some("request_timeout"));
        check(ApiError::payload_too_large(1), 413, INVALID, Some("request_too_large"));
        check(ApiError::unsupported_media_type("x"), 415, INVALID, Some("unsupported_media_type"));
        check(ApiError::unprocessable("x"), 422, INVALID, Some("unprocessable"));
        check(ApiError::rate_limit("x", 1), 429, "rate_limit_error", Some("rate_limit_exceeded"));
        check(ApiError::insufficient_quota("x", 1), 429, "insufficient_quota", Some("insufficient_quota"));
        check(ApiError::internal("x"), 500, SERVER, Some("internal_error"));
        check(ApiError::runner_failed("x"), 502, SERVER, Some("runner_failed"));
        check(ApiError::unavailable("x", 1), 503, "unavailable_error", Some("unavailable"));
        check(ApiError::deadline_exceeded(1), 504, TIMEOUT, Some("deadline_exceeded"));
        check(ApiError::deadline_passed("x", 1), 504, TIMEOUT, Some("deadline_exceeded"));
    }
}
