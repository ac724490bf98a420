//! The service of this machine, asked by a command of emberd as a client asks: over TCP, TLS and HTTP, with the admin key.
//!
//! The certificate is not checked: what is asked is this machine, and an operator's own certificate may be of a CA that it
//! does not know.

use crate::{
    data::{ADDRESS, ADMIN_KEY},
    exit::Failure,
};
use appliance_edge::client_provider;
use serde_json::Value;
use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};
use ureq::{Agent, RequestBuilder, http::Response, tls::TlsConfig, typestate::WithBody};

const REPLY_BYTES_MAX: u64 = 4 << 20;

/// Where it answers, and until when it is asked.
pub(crate) struct Service {
    agent: Agent,
    url: String,
    authorization: String,
    until: Instant,
}

/// Why there is no reply of use.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It has a status and a reason.
    Status(u16, String),
    /// Nothing came, or not within the time for it.
    Silent(String),
}

/// What is sent with a request.
pub(crate) enum Body<'a> {
    /// JSON, by POST.
    Json(&'a Value),
    /// A manifest, by PUT.
    Manifest(&'a str),
}

impl Service {
    /// The one below `data`, to be asked until then.
    ///
    /// # Errors
    /// [`Failure::Io`] where it has no address or no key yet, [`Failure::Service`] where its address is none.
    pub(crate) fn find(data: &Path, until: Instant) -> Result<Self, Failure> {
        let read = |name: &str| {
            let path = data.join(name);
            fs::read_to_string(&path).map_err(|source| Failure::io("read", path, source))
        };
        let text = read(ADDRESS)?;
        let wrong = |_| Failure::Service(format!("{ADDRESS} holds {text:?}, which is none"));
        let address = text.trim().parse().map_err(wrong)?;
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

    /// How much time is left to ask.
    pub(crate) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// The reply's JSON, if its status is 200 and it comes within `most`.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn ask(&self, path: &str, body: Option<Body>, most: Duration) -> Result<Value, Refused> {
        let url = format!("{}{path}", self.url);
        let silent = |error: ureq::Error| Refused::Silent(format!("{path}: {error}"));
        let left = self.left().min(most);
        if left.is_zero() {
            return Err(Refused::Silent(format!("{path}: no time is left to ask")));
        }
        let (within, key) = (Some(left), self.authorization.as_str());
        let with = |request: RequestBuilder<WithBody>| {
            request.config().timeout_global(within).build().header("authorization", key)
        };
        let sent = match body {
            None => self.agent.get(&url).config().timeout_global(within).build().header("authorization", key).call(),
            Some(Body::Json(body)) => with(self.agent.post(&url)).send_json(body),
            Some(Body::Manifest(text)) => {
                with(self.agent.put(&url)).header("content-type", "application/toml").send(text)
            }
        };
        let mut reply: Response<ureq::Body> = sent.map_err(silent)?;
        let status = reply.status().as_u16();
        let text = reply.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_string().map_err(silent)?;
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        match (status, parsed) {
            (200, Ok(value)) => Ok(value),
            (200, Err(error)) => Err(Refused::Status(200, format!("{path}: {error}"))),
            (status, value) => {
                let reason = value.ok().and_then(|value| value["error"]["message"].as_str().map(str::to_owned));
                Err(Refused::Status(status, format!("{path}: {}", reason.unwrap_or_default())))
            }
        }
    }

    /// The rows of a listing.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn list(&self, path: &str, most: Duration) -> Result<Vec<Value>, Refused> {
        match self.ask(path, None, most)?["data"].take() {
            Value::Array(rows) => Ok(rows),
            _ => Err(Refused::Status(200, format!("{path}: no list"))),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status, reason) => write!(f, "{reason} ({status})"),
            Self::Silent(reason) => f.write_str(reason),
        }
    }
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
        let ask = |time, most| {
            let service = Service::find(folder.path(), Instant::now() + time).unwrap();
            service.ask("/health", None, most).unwrap_err().to_string()
        };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
        // Connections are taken by the kernel, and nobody answers.
        assert!(ask(short, long).contains("timeout"));
        assert!(ask(long, short).contains("timeout"));
        assert!(ask(Duration::ZERO, long).contains("no time is left"));
    }
}
