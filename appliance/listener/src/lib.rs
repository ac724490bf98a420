//! What a fleet is told: `/metrics`, `/health`, the ledger's lines in signed pages, and an inventory. Read only, over TLS that
//! both sides show a certificate for; no prompt, no answer and no key's text is ever in it.
//!
//! ```text
//!  GET /ember/v1/telemetry/ledger?cursor=SEGMENT:OFFSET ─▶ the ledger's lines from there, each with its proofs
//!      { box, key, from, next, previous, chain, more, lines, signature }     `appliance/ledger/src/signed.rs`
//!  GET /ember/v1/telemetry/inventory, /metrics          ─▶ what [`Shown`] says: the box as it stands
//! ```
//! Who pulls compares `previous` with the `chain` it had last: another value is another ledger, as is 409, a cursor behind
//! this ledger's end.
//!
//! Invariants: one core serves it beside its requests, under limits of its own: connections, requests and pages a minute,
//! the length of a page. Nothing here wakes a function. Left out: what the box is, which `emberd` knows.

#![forbid(unsafe_code)]

use appliance_admit::limit::{Limiter, Limits as Rates};
use appliance_api::{ApiError, Dialect, sse::CONTENT_TYPE_JSON};
use appliance_edge::{
    CertificateError, Certificates, Edge, Failure, Handler, Limits, ReplyBody, Request, authority::Signer,
};
use appliance_ledger::{
    Client, Position,
    query::{Answer, Query, QueryError},
    signed::{PageCursor, SignedPage, hex},
};
use appliance_runtime::timeout;
use appliance_types::RequestId;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    cell::RefCell,
    fmt,
    future::Future,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

/// Pages of the ledger a minute, of all who pull.
const PAGES_RPM: u32 = 240;
/// Other requests a minute.
const OTHERS_RPM: u32 = 240;
/// How long the ledger has for a page.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER_S: u64 = 1;

type Reply = Response<ReplyBody>;
type Answered = Result<Reply, ApiError>;

/// What a box shows beside its ledger.
pub trait Shown: 'static {
    /// Its metrics, in the format that a request accepts.
    fn metrics(&self, request: &Request) -> impl Future<Output = Reply>;
    /// What it is and how it stands; name, key and time are added.
    fn inventory(&self) -> impl Future<Output = Map<String, Value>>;
    /// Its clock, ms since the Unix epoch.
    fn unix_ms(&self) -> u64;
}

/// The edge for clients of an authority (PEM), under telemetry's limits.
///
/// # Errors
/// The authority is none.
pub fn edge(authority_pem: &str, certificates: Arc<Certificates>) -> Result<Edge, CertificateError> {
    let limits = Limits {
        connections_max: 64,
        connections_per_address_max: 32,
        handshakes_max: 16,
        head_bytes_max: 8 << 10,
        headers_max: 32,
        body_bytes_max: 0,
        streams_max: 8,
        ..Limits::default()
    };
    Edge::for_clients_of(authority_pem, certificates, limits)
}

/// Answers a fleet, on one core.
pub struct Teller<S> {
    shown: S,
    ledger: Client,
    signer: Signer,
    name: String,
    pages: RefCell<Limiter>,
    others: RefCell<Limiter>,
}

impl<S> Teller<S> {
    /// Answers as the box `name`, with its key.
    pub fn new(name: String, signer: Signer, ledger: Client, shown: S) -> Self {
        let rate = |rpm| RefCell::new(Limiter::new(Rates { rpm: Some(rpm), ..Rates::default() }));
        Self { shown, ledger, signer, name, pages: rate(PAGES_RPM), others: rate(OTHERS_RPM) }
    }
}

impl<S> fmt::Debug for Teller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: Shown> Handler for Teller<S> {
    async fn call(self: Rc<Self>, request: Request) -> Reply {
        let mut reply = self.answer(&request).await.unwrap_or_else(|error| refusal(&error));
        let id = HeaderValue::from_str(&request_id().to_string()).expect("letters and digits");
        reply.headers_mut().insert("x-request-id", id);
        reply
    }

    fn failure(&self, failure: Failure) -> Reply {
        refusal(&match failure {
            Failure::Panicked => ApiError::internal("a fault of ours; the log says more"),
            Failure::Head(fault) => ApiError::invalid_request(format!("the request's head is refused: {fault}")),
        })
    }
}

impl<S: Shown> Teller<S> {
    async fn answer(&self, request: &Request) -> Answered {
        let (method, path) = (&request.head.method, request.head.uri.path());
        if !matches!(path, "/health" | "/metrics" | "/ember/v1/telemetry/ledger" | "/ember/v1/telemetry/inventory") {
            return Err(ApiError::unknown_url(method.as_str(), path));
        }
        if *method != Method::GET {
            let mut reply = refusal(&ApiError::method_not_allowed(method.as_str(), path, "GET"));
            reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return Ok(reply);
        }
        match path {
            "/ember/v1/telemetry/ledger" => {
                take(&self.pages, "pages of the ledger")?;
                self.page(request.head.uri.query()).await
            }
            "/health" => within(&self.others).map(|()| written(&json!({ "status": "ok", "box": self.name }))),
            "/metrics" => {
                within(&self.others)?;
                Ok(self.shown.metrics(request).await)
            }
            _ => {
                within(&self.others)?;
                Ok(self.inventory().await)
            }
        }
    }

    async fn page(&self, query: Option<&str>) -> Answered {
        let from = cursor(query)?;
        let asked = timeout(ANSWER_MAX, self.ledger.ask(Query::Lines { from: from.packed() })).await;
        let page = match asked.unwrap_or(Err(QueryError::Busy)).map_err(told)? {
            Answer::Lines(page) => *page,
            _ => return Err(ApiError::internal("the ledger answered another question")),
        };
        let page = SignedPage::unsigned(&self.name, self.signer.public(), page);
        let signature = self.signer.sign(page.message().as_bytes());
        let signature = signature.map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(written(&page.signed(&signature)))
    }

    async fn inventory(&self) -> Reply {
        let mut inventory = self.shown.inventory().await;
        inventory.insert("box".to_owned(), self.name.as_str().into());
        inventory.insert("key".to_owned(), hex(self.signer.public()).into());
        inventory.insert("unix_ms".to_owned(), self.shown.unix_ms().into());
        written(&inventory)
    }
}

fn within(rate: &RefCell<Limiter>) -> Result<(), ApiError> {
    take(rate, "requests")
}

/// Takes one of what is allowed a minute; who pulls too fast waits.
fn take(rate: &RefCell<Limiter>, what: &str) -> Result<(), ApiError> {
    rate.borrow_mut().ask(Instant::now(), 0).map_err(|refused| {
        let seconds = refused.retry_after.map_or(RETRY_AFTER_S, |wait| wait.as_secs() + 1);
        let message = format!("telemetry answers {} {what} a minute; try again in {seconds} s", refused.allowed);
        ApiError::rate_limit(message, seconds)
    })
}

/// What `next` said; the beginning without one.
fn cursor(query: Option<&str>) -> Result<Position, ApiError> {
    let wrong = |what: &str| ApiError::invalid_param("cursor", format!("`cursor`: {what}"));
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Position::default()) };
    let value = query.strip_prefix("cursor=").ok_or_else(|| wrong("it is the only parameter, once"))?;
    PageCursor::try_from(value.to_owned()).map(|cursor| cursor.0).map_err(wrong)
}

fn told(error: QueryError) -> ApiError {
    match error {
        QueryError::Busy | QueryError::Restarted => ApiError::unavailable(error.to_string(), RETRY_AFTER_S),
        QueryError::Cursor { .. } => ApiError::invalid_param("cursor", error.to_string()),
        QueryError::Beyond { .. } => ApiError::conflict(error.to_string()),
        QueryError::Gone | QueryError::Index { .. } => ApiError::internal(error.to_string()),
    }
}

fn written(value: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(value).expect("our own values are strings, numbers and lists of them");
    with_body(StatusCode::OK, body)
}

fn refusal(error: &ApiError) -> Reply {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = with_body(status, Dialect::OpenAi.error_body(error));
    if let Some(seconds) = error.retry_after_s {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    reply
}

fn with_body(status: StatusCode, body: impl Into<bytes::Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_JSON));
    reply
}

fn request_id() -> RequestId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has booted");
    RequestId::from_random(u128::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_the_only_parameter() {
        assert_eq!(cursor(None), Ok(Position::default()));
        assert_eq!(cursor(Some("cursor=3:4096")), Ok(Position { segment: 3, offset: 4096 }));
        for bad in ["cursor=3", "from=1:1", "cursor=1:1&cursor=2:2"] {
            assert_eq!(cursor(Some(bad)).err().map(|error| error.status), Some(400), "{bad}");
        }
    }

    #[test]
    fn who_pulls_too_fast_is_told_when_to_come_back() {
        let rate = RefCell::new(Limiter::new(Rates { rpm: Some(2), ..Rates::default() }));
        assert!(take(&rate, "pages").is_ok() && take(&rate, "pages").is_ok());
        let refused = take(&rate, "pages").unwrap_err();
        assert!(refused.status == 429 && refused.retry_after_s.is_some_and(|seconds| seconds > 0), "{refused:?}");
    }
}
