//! One server's HTTP API, called with one key.
//!
//! Invariants: the server is trusted by the given CA alone, never by the system's or a vendor's roots, and no proxy is
//! asked; every reply is bounded in size; every wait is bounded in time. A status of 400 or above becomes
//! [`Error::Refused`] with the server's own words.

use crate::{error::Error, target::Target};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};
use ureq::{
    Agent, Body, SendBody,
    http::{Method, Request, Response, request::Builder},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A reply's head may wait for a model to be loaded, or in a queue, and for a whole answer when it is not streamed.
const REPLY_TIMEOUT: Duration = Duration::from_secs(960);
/// Between two pieces of a body.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(960);
const REPLY_BYTES_MAX: u64 = 16 << 20;

pub(crate) struct Client {
    agent: Agent,
    url: String,
    authorization: String,
}

/// OpenAI's error envelope.
#[derive(Deserialize)]
struct Envelope {
    error: Complaint,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
    code: Option<Value>,
}

impl Client {
    /// A client for `target`; connects at the first request.
    pub(crate) fn connect(target: &Target) -> Result<Self, Error> {
        Ok(Self::connect_with(target, certificates(&target.ca)?))
    }

    pub(crate) fn connect_with(target: &Target, roots: Vec<Certificate<'static>>) -> Self {
        let config = Agent::config_builder()
            .tls_config(trusting(roots))
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("ember/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(REPLY_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .timeout_per_write(Some(SILENCE_TIMEOUT))
            .build();
        let authorization = format!("Bearer {}", target.key);
        Self { agent: config.new_agent(), url: target.url.clone(), authorization }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(self.request(Method::GET, path), SendBody::none())
    }

    /// A page of a long listing, and what names the next one.
    pub(crate) fn page(&self, path: &str) -> Result<(String, Option<String>), Error> {
        let mut response = self.send(self.request(Method::GET, path), SendBody::none())?;
        let next = response.headers().get("x-ember-next").and_then(|next| next.to_str().ok()).map(str::to_owned);
        Ok((self.text(&mut response)?, next))
    }

    pub(crate) fn delete(&self, path: &str) -> Result<(), Error> {
        self.send(self.request(Method::DELETE, path), SendBody::none()).map(drop)
    }

    pub(crate) fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Error> {
        self.reply(self.post_streaming(path, body)?)
    }

    /// Posts, and gives the reply's body to be read as it comes.
    pub(crate) fn post_streaming(&self, path: &str, body: &impl Serialize) -> Result<Response<Body>, Error> {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        let body = SendBody::from_json(body).map_err(|error| self.unreachable(error))?;
        self.send(request, body)
    }

    pub(crate) fn put_text(&self, path: &str, headers: &[(&str, &str)], text: &str) -> Result<Value, Error> {
        let request = self.request(Method::PUT, path).header("content-length", text.len());
        self.json(with(request, headers), SendBody::from_reader(&mut text.as_bytes()))
    }

    /// Sends what `reader` gives, once the server has said that it wants it.
    pub(crate) fn put_stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        bytes: u64,
        reader: &mut dyn Read,
    ) -> Result<Value, Error> {
        let request = self.request(Method::PUT, path).header("content-length", bytes).header("expect", "100-continue");
        self.json(with(request, headers), SendBody::from_reader(reader))
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        let uri = format!("{}{path}", self.url);
        Request::builder().method(method).uri(uri).header("authorization", &self.authorization)
    }

    fn json(&self, request: Builder, body: SendBody<'_>) -> Result<Value, Error> {
        self.reply(self.send(request, body)?)
    }

    fn reply(&self, mut response: Response<Body>) -> Result<Value, Error> {
        let text = self.text(&mut response)?;
        self.parsed(if text.is_empty() { "null" } else { &text })
    }

    fn text(&self, response: &mut Response<Body>) -> Result<String, Error> {
        let text = response.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_string();
        text.map_err(|error| self.unreachable(error))
    }

    fn send(&self, request: Builder, body: SendBody<'_>) -> Result<Response<Body>, Error> {
        let request = request.body(body).map_err(|error| Error::Usage(format!("{}: {error}", self.url)))?;
        let mut response = self.agent.run(request).map_err(|error| self.unreachable(error))?;
        match response.status().as_u16() {
            200..=299 => Ok(response),
            status => Err(refused(status, &response.body_mut().read_to_string().unwrap_or_default())),
        }
    }

    /// Reads a text as what this server should have sent.
    pub(crate) fn parsed<T: DeserializeOwned>(&self, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|error| self.unreadable(&error))
    }

    /// Reads `value` as what this server should have sent.
    pub(crate) fn typed<T: DeserializeOwned>(&self, value: &Value) -> Result<T, Error> {
        T::deserialize(value).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &serde_json::Error) -> Error {
        Error::Reply { url: self.url.clone(), reason: error.to_string() }
    }

    fn unreachable(&self, error: ureq::Error) -> Error {
        let url = self.url.clone();
        match certificate_fault(&error) {
            Some(reason) => Error::Untrusted { url, reason },
            None => Error::Unreachable { url, reason: error.to_string() },
        }
    }
}

fn with(request: Builder, headers: &[(&str, &str)]) -> Builder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// What the server complains of, in its words where it has any.
fn refused(status: u16, body: &str) -> Error {
    match serde_json::from_str::<Envelope>(body) {
        Ok(Envelope { error }) => {
            Error::Refused { status, code: error.code.and_then(|c| c.as_str().map(Into::into)), message: error.message }
        }
        Err(_) => Error::Refused { status, code: None, message: body.trim().chars().take(200).collect() },
    }
}

fn certificate_fault(error: &ureq::Error) -> Option<String> {
    let fault = match error {
        ureq::Error::Rustls(fault) => fault,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    matches!(fault, rustls::Error::InvalidCertificate(_)).then(|| fault.to_string())
}

/// TLS that trusts these roots and no others.
pub(crate) fn trusting(roots: Vec<Certificate<'static>>) -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// The certificates in a file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let unreadable = |source: io::Error| Error::Read { path: path.into(), source };
    let pem = fs::read(path).map_err(unreadable)?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(Error::NoCertificate { path: path.into() }) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_servers_words() {
        let body =
            r#"{"error":{"message":"no such function","type":"not_found","param":"model","code":"model_not_found"}}"#;
        let error = refused(404, body);
        assert_eq!(error.to_string(), "the server refused: no such function (404)");
        assert!(error.hint().is_some_and(|hint| hint.contains("ember ls")));
        assert_eq!(refused(502, " bad gateway\n").to_string(), "the server refused: bad gateway (502)");
        assert!(matches!(refused(500, r#"{"error":{"message":"m","code":7}}"#), Error::Refused { code: None, .. }));
    }

    #[test]
    fn a_file_without_certificates_is_no_ca() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hello").unwrap();
        assert!(matches!(certificates(file.path()), Err(Error::NoCertificate { .. })));
        assert!(matches!(certificates(Path::new("/nonexistent")), Err(Error::Read { .. })));
    }
}
