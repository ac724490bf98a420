//! `emberd health`: whether the service below a data folder answers, asked as a client asks: over TCP, TLS and HTTP.
//!
//! ```text
//!  DIR/address ─▶ GET /health ─▶ with --answer: GET /ember/v1/functions ─▶ one token of the first function that answers
//! ```
//! Each request has [`REQUEST_MAX`], and all of them what `--within` says: who asks has given it up by then.
//!
//! PID 1 of the appliance runs it, and trusts a new version of Ember by it. The certificate is not checked: what is asked is
//! this machine, and an operator's own certificate may be of a CA that it does not know.

use crate::{
    arguments::Health,
    data::{ADDRESS, ADMIN_KEY},
    exit::Failure,
    setup::SERVER_FILES,
};
use appliance_edge::client_provider;
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};
use ureq::{Agent, tls::TlsConfig};

/// Longest for any one request, so that one function that hangs leaves time for another. It may have to be loaded first.
const REQUEST_MAX: Duration = Duration::from_secs(100);
const REPLY_BYTES_MAX: u64 = 4 << 20;
/// Functions that are asked before the service counts as failing.
const FUNCTIONS_MAX: usize = 8;

/// Asks, and prints what answered.
pub(crate) fn run(flags: &Health) -> Result<(), Failure> {
    let service = Service::find(Path::new(&flags.data), Instant::now() + Duration::from_secs(flags.within))?;
    service.ask("/health", None)?;
    let said = match flags.answer {
        false => "the server answers".to_owned(),
        true => match service.answer(Path::new(&flags.data))? {
            Some(function) => format!("function {function} answers"),
            None => "the server answers; no function is deployed".to_owned(),
        },
    };
    writeln!(io::stdout().lock(), "{said}").map_err(|source| Failure::io("print", "stdout", source))
}

struct Service {
    agent: Agent,
    url: String,
    authorization: String,
    until: Instant,
}

impl Service {
    fn find(data: &Path, until: Instant) -> Result<Self, Failure> {
        let read = |name: &str| {
            let path = data.join(name);
            fs::read_to_string(&path).map_err(|source| Failure::io("read", path, source))
        };
        let text = read(ADDRESS)?;
        let address = text.trim().parse().map_err(|_| failed(format!("{ADDRESS} holds {text:?}, which is none")))?;
        let tls = TlsConfig::builder().disable_verification(true).unversioned_rustls_crypto_provider(client_provider());
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false);
        Ok(Self {
            agent: config.build().new_agent(),
            url: format!("https://{}", nearest(address)),
            authorization: format!("Bearer {}", read(ADMIN_KEY)?.trim()),
            until,
        })
    }

    /// The first function that answers, unless none was ever deployed below `data`.
    fn answer(&self, data: &Path) -> Result<Option<String>, Failure> {
        let reply = self.ask("/ember/v1/functions", None)?;
        let listed = reply["data"].as_array().ok_or_else(|| failed("no list of functions".to_owned()))?;
        if listed.is_empty() {
            return match stored(&data.join(SERVER_FILES.functions)) {
                0 => Ok(None),
                count => Err(failed(format!("none of the {count} functions that are stored is served"))),
            };
        }
        let mut fault = failed("no function can be asked".to_owned());
        for (name, path, body) in listed.iter().take(FUNCTIONS_MAX).filter_map(question) {
            match self.ask(path, Some(&body)) {
                Ok(_) => return Ok(Some(name.to_owned())),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    /// The reply's JSON, if its status is 200.
    fn ask(&self, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.url);
        let unreachable = |error: ureq::Error| failed(format!("{path}: {error}"));
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(format!("{path}: no time is left to ask")));
        }
        let (left, key) = (Some(left.min(REQUEST_MAX)), &self.authorization);
        let sent = match body {
            None => self.agent.get(&url).config().timeout_global(left).build().header("authorization", key).call(),
            Some(body) => {
                let request = self.agent.post(&url).config().timeout_global(left).build();
                request.header("authorization", key).send_json(body)
            }
        };
        let mut reply = sent.map_err(unreachable)?;
        let status = reply.status().as_u16();
        let text = reply.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_string().map_err(unreachable)?;
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        match (status, parsed) {
            (200, Ok(value)) => Ok(value),
            (200, Err(error)) => Err(failed(format!("{path}: {error}"))),
            (status, value) => {
                let reason = value.ok().and_then(|value| value["error"]["message"].as_str().map(str::to_owned));
                Err(failed(format!("{path} is answered by {status}: {}", reason.unwrap_or_default())))
            }
        }
    }
}

/// Functions whose manifests are kept in a folder.
fn stored(folder: &Path) -> usize {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == "toml")).count()
}

/// A function's name, and the least that it can be asked.
fn question(function: &Value) -> Option<(&str, &'static str, Value)> {
    let name = function["name"].as_str()?;
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let (path, body) = match function["task"].as_str()? {
        "embedding" => ("/v1/embeddings", json!({ "model": name, "input": "Hello" })),
        "completion" => ("/v1/completions", json!({ "model": name, "prompt": "Hello", "max_tokens": 1 })),
        _ => ("/v1/chat/completions", json!({ "model": name, "messages": messages, "max_tokens": 1 })),
    };
    Some((name, path, body))
}

/// Where this machine itself reaches what listens on `address`.
fn nearest(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn failed(reason: String) -> Failure {
    Failure::Service(format!("health: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn what_listens_everywhere_is_reached_here() {
        let reached = |address: &str| nearest(address.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:8443"), "127.0.0.1:8443");
        assert_eq!(reached("[::]:8443"), "[::1]:8443");
        assert_eq!(reached("192.0.2.7:8443"), "192.0.2.7:8443");
    }

    #[test]
    fn who_hangs_is_given_up_when_the_time_is_over() {
        let (folder, listener) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        fs::write(folder.path().join(ADDRESS), listener.local_addr().unwrap().to_string()).unwrap();
        fs::write(folder.path().join(ADMIN_KEY), "key").unwrap();
        let ask = |time| Service::find(folder.path(), Instant::now() + time).unwrap().ask("/health", None).unwrap_err();
        // Connections are taken by the kernel, and nobody answers.
        assert!(ask(Duration::from_millis(50)).to_string().contains("timeout"));
        assert!(ask(Duration::ZERO).to_string().contains("no time is left"));
    }

    #[test]
    fn what_is_stored_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["one.toml", "two.toml", "two.toml.new"] {
            fs::write(folder.path().join(file), "no manifest").unwrap();
        }
        assert_eq!(stored(folder.path()), 2);
        assert_eq!(stored(&folder.path().join("absent")), 0);
    }

    #[test]
    fn each_task_is_asked_what_it_answers() {
        let path = |task: &str| question(&json!({ "name": "f", "task": task })).unwrap().1;
        assert_eq!(
            ["chat", "completion", "embedding"].map(path),
            ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
        );
        assert_eq!(question(&json!({ "task": "chat" })), None);
    }
}
