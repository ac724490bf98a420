//! HTTPS as an application speaks it: JSON in, a [`Reply`] or a [`Stream`] out, trusting the device's own CA only.
//!
//! Every request has a connection of its own, so that a test never meets what an earlier request left behind.

use crate::{Reply, Stream, wait::HANG};
use serde_json::Value;
use std::sync::Arc;
use ureq::{
    Agent, AsSendBody,
    http::{Request, Response},
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig},
};

/// A client with one key.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    key: Option<String>,
    headers: Vec<(&'static str, String)>,
}

impl Client {
    /// A client of the server at `base`, whose CA is `ca_pem`.
    pub fn new(base: &str, ca_pem: &[u8], key: Option<&str>) -> Self {
        Self::with_certificate(base, ca_pem, None, key)
    }

    /// The same, which shows a certificate: its PEM, and its key's.
    pub fn with_certificate(base: &str, ca_pem: &[u8], shown: Option<[&str; 2]>, key: Option<&str>) -> Self {
        let ca = Certificate::from_pem(ca_pem).expect("the CA is PEM");
        let shown = shown.map(|[certificate, key]| {
            let certificate = Certificate::from_pem(certificate.as_bytes()).expect("a certificate is PEM");
            ClientCert::new_with_certs(&[certificate], PrivateKey::from_pem(key.as_bytes()).expect("a key is PEM"))
        });
        let tls = TlsConfig::builder()
            .client_cert(shown)
            .root_certs(RootCerts::Specific(Arc::new(vec![ca])))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(2 * HANG))
            .max_idle_connections(0)
            .build();
        Self { agent: config.into(), base: base.to_owned(), key: key.map(str::to_owned), headers: Vec::new() }
    }

    /// This client with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// This client with a header more in every request.
    pub fn with_header(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name, value.to_owned()));
        client
    }

    /// This client without a key.
    pub fn without_key(&self) -> Self {
        Self { key: None, ..self.clone() }
    }

    /// Gets `path`.
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], ())
    }

    /// Deletes `path`.
    pub fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], ())
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, "application/json", body.to_string().as_bytes())
    }

    /// Posts any bytes.
    pub fn post_bytes(&self, path: &str, content_type: &str, body: &[u8]) -> Reply {
        self.send("POST", path, &[("content-type", content_type)], body)
    }

    /// Puts any bytes, with headers.
    pub fn put(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send("PUT", path, headers, body)
    }

    /// Asks for a chat.
    pub fn ask(&self, request: &Value) -> Reply {
        self.post("/v1/chat/completions", request)
    }

    /// Asks for a chat, streamed.
    #[track_caller]
    pub fn ask_streamed(&self, request: &Value) -> Stream {
        self.stream("/v1/chat/completions", request)
    }

    /// Posts JSON with `stream: true`; the reply must be a stream.
    #[track_caller]
    pub fn stream(&self, path: &str, request: &Value) -> Stream {
        self.try_stream(path, request).unwrap_or_else(|reply| panic!("no stream: {reply:?}"))
    }

    /// Posts JSON with `stream: true`.
    ///
    /// # Errors
    /// The whole reply, where its status is not 200.
    #[track_caller]
    pub fn try_stream(&self, path: &str, request: &Value) -> Result<Stream, Box<Reply>> {
        let mut request = request.clone();
        request["stream"] = true.into();
        let body = request.to_string();
        let response = self.run("POST", path, &[("content-type", "application/json")], body.as_bytes());
        let response = response.unwrap_or_else(|error| panic!("POST {path}: {error}"));
        if response.status() != 200 {
            return Err(Box::new(whole(response).unwrap_or_else(|error| panic!("POST {path}: {error}"))));
        }
        assert!(response.headers()["content-type"].to_str().is_ok_and(|kind| kind.starts_with("text/event-stream")));
        Ok(Stream::new(response))
    }

    /// Posts JSON with `stream: true`.
    ///
    /// # Errors
    /// What came in place of a stream.
    pub fn try_open(&self, path: &str, request: &Value) -> Result<Stream, String> {
        let mut request = request.clone();
        request["stream"] = true.into();
        let body = request.to_string();
        let response = self.run("POST", path, &[("content-type", "application/json")], body.as_bytes());
        match response.map_err(|error| error.to_string())? {
            response if response.status() == 200 => Ok(Stream::new(response)),
            response => Err(format!("{:?}", whole(response))),
        }
    }

    /// Asks for a chat; the error when no whole reply came.
    pub fn try_ask(&self, request: &Value) -> Result<Reply, ureq::Error> {
        let body = request.to_string();
        let headers = [("content-type", "application/json")];
        self.run("POST", "/v1/chat/completions", &headers, body.as_bytes()).and_then(whole)
    }

    /// Gets `path`; the error when no whole reply came.
    pub fn try_get(&self, path: &str) -> Result<Reply, ureq::Error> {
        self.run("GET", path, &[], ()).and_then(whole)
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsSendBody) -> Reply {
        let reply = self.run(method, path, headers, body).and_then(whole);
        reply.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn run(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.agent.run(request.body(body)?)
    }
}

fn whole(response: Response<ureq::Body>) -> Result<Reply, ureq::Error> {
    let (head, mut body) = response.into_parts();
    let body = body.with_config().limit(64 << 20).read_to_vec()?;
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
}
