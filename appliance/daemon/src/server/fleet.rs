//! What a fleet is told: `/metrics`, `/health`, the ledger's lines in signed pages, and an inventory. Read only, over TLS that
//! both sides show a certificate for; no prompt, no answer and no key's text is ever in it.
//!
//! ```text
//!  GET /ember/v1/telemetry/ledger?cursor=SEGMENT:OFFSET ─▶ the ledger's lines from there, each with its proofs
//!      { box, key, from, next, previous, chain, more, lines, signature }
//!      signature = Ed25519( "ember-ledger-page-v1\n" box "\n" from "\n" next "\n" previous "\n" chain "\n" )
//! ```
//! `chain` covers every line up to `next`, so the signature does; who pulls compares `previous` with the `chain` it had last:
//! another value is another ledger, as is 409, a cursor behind this ledger's end.
//!
//! Invariants: one core serves it beside its requests, under limits of its own: connections, requests and pages a minute,
//! the length of a page. Nothing here wakes a function.

use super::{
    functions::Function,
    handler::{random, refused_head, unix_ms},
    metrics,
    reply::{self, Answered, Reply},
    state::State,
};
use crate::{
    exit::Failure,
    setup::ServerFiles,
    telemetry_files::{box_name, read_boots},
};
use appliance_admit::limit::{Limiter, Limits as Rates};
use appliance_api::{ApiError, Dialect};
use appliance_config::ServeConfig;
use appliance_edge::{Certificates, Edge, Failure as EdgeFailure, Handler, Limits, Request, authority::Signer};
use appliance_ledger::{
    Position,
    query::{Answer, Page, Query, QueryError},
};
use appliance_runtime::timeout;
use appliance_types::RequestId;
use http::{HeaderValue, Method, header};
use nix::sys::{statvfs::statvfs, utsname::uname};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs,
    path::Path,
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
/// What is signed begins with this.
const SIGNED: &str = "ember-ledger-page-v1";

/// Telemetry's own edge and what it is served with.
pub(super) struct Fleet {
    pub(super) edge: Edge,
    pub(super) certificates: Arc<Certificates>,
    signer: Signer,
    name: String,
}

impl Fleet {
    /// Reads what the supervisor has made.
    pub(super) fn open(files: &ServerFiles, config: &ServeConfig) -> Result<Self, Failure> {
        let folder = Path::new(files.telemetry);
        let certificates = Arc::new(certificates(folder)?);
        let authority = read(&folder.join("clients.pem"))?;
        let edge = Edge::for_clients_of(&authority, Arc::clone(&certificates), limits()).map_err(Failure::of_tls)?;
        let signer =
            Signer::load(&read(&folder.join("box.key"))?).map_err(|error| Failure::Service(error.to_string()))?;
        Ok(Self { edge, certificates, signer, name: box_name(config) })
    }

    /// Serves a renewed certificate.
    pub(super) fn reload(certificates: &Certificates, files: &ServerFiles) -> Result<(), Failure> {
        let (chain, key) = pems(Path::new(files.telemetry))?;
        certificates.swap(&chain, &key).map_err(Failure::of_tls)
    }

    /// Who answers.
    pub(super) fn teller(self, state: Arc<State>) -> Teller {
        let rate = |rpm| RefCell::new(Limiter::new(Rates { rpm: Some(rpm), ..Rates::default() }));
        let Self { signer, name, .. } = self;
        Teller { state, signer, name, pages: rate(PAGES_RPM), others: rate(OTHERS_RPM) }
    }
}

fn certificates(folder: &Path) -> Result<Certificates, Failure> {
    let (chain, key) = pems(folder)?;
    Certificates::load(&chain, &key).map_err(Failure::of_tls)
}

fn pems(folder: &Path) -> Result<(String, String), Failure> {
    Ok((read(&folder.join("server.pem"))?, read(&folder.join("server.key"))?))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(Failure::of("read", path))
}

fn limits() -> Limits {
    Limits {
        connections_max: 64,
        connections_per_address_max: 32,
        handshakes_max: 16,
        head_bytes_max: 8 << 10,
        headers_max: 32,
        body_bytes_max: 0,
        streams_max: 8,
        ..Limits::default()
    }
}

/// Answers a fleet, on one core.
pub(super) struct Teller {
    state: Arc<State>,
    signer: Signer,
    name: String,
    pages: RefCell<Limiter>,
    others: RefCell<Limiter>,
}

impl Handler for Teller {
    async fn call(self: Rc<Self>, request: Request) -> Reply {
        let id = RequestId::from_random(random());
        let mut reply = self.answer(&request).await.unwrap_or_else(|error| reply::error(Dialect::OpenAi, &error));
        reply::set(&mut reply, "x-request-id", &id.to_string());
        reply
    }

    fn failure(&self, failure: EdgeFailure) -> Reply {
        reply::error(Dialect::OpenAi, &refused_head(failure))
    }
}

impl Teller {
    async fn answer(&self, request: &Request) -> Answered {
        let (method, path) = (&request.head.method, request.head.uri.path());
        if !matches!(path, "/health" | "/metrics" | "/ember/v1/telemetry/ledger" | "/ember/v1/telemetry/inventory") {
            return Err(ApiError::unknown_url(method.as_str(), path));
        }
        if *method != Method::GET {
            let mut reply = reply::error(Dialect::OpenAi, &ApiError::method_not_allowed(method.as_str(), path, "GET"));
            reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return Ok(reply);
        }
        match path {
            "/ember/v1/telemetry/ledger" => {
                take(&self.pages, "pages of the ledger")?;
                self.page(request.head.uri.query()).await
            }
            "/health" => within(&self.others).map(|()| reply::json(&json!({ "status": "ok", "box": self.name }))),
            "/metrics" => {
                within(&self.others)?;
                Ok(metrics::written(&self.state, request).await)
            }
            _ => {
                within(&self.others)?;
                self.inventory().await
            }
        }
    }

    async fn page(&self, query: Option<&str>) -> Answered {
        let from = cursor(query)?;
        let asked = timeout(ANSWER_MAX, self.state.ledger.ask(Query::Lines { from: from.packed() })).await;
        let page = match asked.unwrap_or(Err(QueryError::Busy)).map_err(told)? {
            Answer::Lines(page) => page,
            _ => return Err(ApiError::internal("the ledger answered another question")),
        };
        let (from, next) = (at(page.from), at(page.next));
        let Page { previous, chain, lines, .. } = *page;
        let (previous, chain) = (String::from(previous), String::from(chain));
        let signed = format!("{SIGNED}\n{}\n{from}\n{next}\n{previous}\n{chain}\n", self.name);
        let signature = self.signer.sign(signed.as_bytes()).map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(reply::json(&json!({
            "box": self.name,
            "key": hex(self.signer.public()),
            "from": from,
            "next": next,
            "previous": previous,
            "chain": chain,
            "more": !lines.is_empty(),
            "lines": lines,
            "signature": hex(&signature),
        })))
    }

    async fn inventory(&self) -> Answered {
        let tiers = metrics::tiers_now(&self.state).await;
        let tier = |name: &str| tiers.iter().flatten().find(|at| at.function.as_str() == name).map(|at| at.tier);
        let functions = self.state.functions.all();
        let function = |function: &Arc<Function>| {
            let name = function.manifest.name.as_str();
            json!({
                "name": name,
                "tier": tier(name),
                "task": function.manifest.task,
                "model": function.model,
                "memory_bytes": function.manifest.limits.memory_bytes,
                "deployed_unix_s": function.deployed_unix_s,
            })
        };
        let functions: Vec<_> = functions.values().map(function).collect();
        let boots = fs::read_to_string("telemetry/boots").unwrap_or_default();
        Ok(reply::json(&json!({
            "box": self.name,
            "key": hex(self.signer.public()),
            "version": env!("CARGO_PKG_VERSION"),
            "slot": Value::Null,
            "hardware": hardware(),
            "disk": disk(),
            "functions": functions,
            "boots": read_boots(&boots),
            "unix_ms": unix_ms(),
        })))
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

/// `SEGMENT:OFFSET`, as `next` said; the beginning without one.
fn cursor(query: Option<&str>) -> Result<Position, ApiError> {
    let wrong = |what: &str| ApiError::invalid_param("cursor", format!("`cursor`: {what}"));
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Position::default()) };
    let value = query.strip_prefix("cursor=").ok_or_else(|| wrong("it is the only parameter, once"))?;
    let parts = value.split_once(':').and_then(|(segment, offset)| {
        let segment: u64 = segment.parse().ok().filter(|segment| *segment < 1 << 31)?;
        Some(Position { segment, offset: offset.parse().ok()? })
    });
    parts.ok_or_else(|| wrong("it is not what `next` said: SEGMENT:OFFSET"))
}

fn at(packed: u64) -> String {
    let Position { segment, offset } = Position::unpacked(packed);
    format!("{segment}:{offset}")
}

fn told(error: QueryError) -> ApiError {
    match error {
        QueryError::Busy | QueryError::Restarted => ApiError::unavailable(error.to_string(), RETRY_AFTER_S),
        QueryError::Cursor { .. } => ApiError::invalid_param("cursor", error.to_string()),
        QueryError::Beyond { .. } => ApiError::conflict(error.to_string()),
        QueryError::Gone | QueryError::Index { .. } => ApiError::internal(error.to_string()),
    }
}

fn hardware() -> Value {
    let line = |path: &str, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'))?.1.trim().to_owned();
        Some(value)
    };
    // Not those of this thread, which keeps to one.
    let cores = fs::read_to_string("/proc/cpuinfo").ok();
    let cores = cores.map(|text| text.lines().filter(|line| line.starts_with("processor")).count());
    let kernel = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
    json!({
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": cores,
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": kernel,
        "machine": std::env::consts::ARCH,
    })
}

fn disk() -> Value {
    statvfs(".").map_or(Value::Null, |disk| {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        json!({ "total_bytes": bytes(disk.blocks()), "free_bytes": bytes(disk.blocks_available()) })
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_what_next_says() {
        assert_eq!(cursor(None), Ok(Position::default()));
        assert_eq!(cursor(Some("cursor=3:4096")), Ok(Position { segment: 3, offset: 4096 }));
        assert_eq!(at(Position { segment: 3, offset: 4096 }.packed()), "3:4096");
        for bad in ["cursor=3", "cursor=x:1", "cursor=1:-1", "from=1:1", "cursor=1:1&cursor=2:2", "cursor=9999999999:0"]
        {
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
