//! The client side of every bench: HTTP/1.1 connections kept alive, with or without TLS, on one tokio thread.

use crate::error::Error;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{future::Future, net::SocketAddr, sync::Arc, thread};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::{Builder, Runtime},
};
use tokio_rustls::TlsConnector;

/// A server, and how to trust it.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// TLS, where it speaks that.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// The `authorization` header, where it wants one.
    pub(crate) authorization: Option<String>,
}

/// One connection.
pub(crate) struct Connection {
    server: Server,
    sender: SendRequest<Full<Bytes>>,
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| self.failed(error))?;
        stream.set_nodelay(true).map_err(|error| self.failed(error))?;
        match &self.tls {
            None => self.begin(stream).await,
            Some(config) => {
                let name = ServerName::from(self.address.ip());
                let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
                self.begin(connecting.await.map_err(|error| self.failed(error))?).await
            }
        }
    }

    async fn begin(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, Error> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(error))?;
        // Its error reaches whoever waits for a reply.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Connection { server: self.clone(), sender })
    }

    pub(crate) fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Http { address: self.address.to_string(), reason: error.to_string() }
    }
}

impl Connection {
    /// Posts JSON and waits for the reply's head; any status but 200 is an error, with what the server said.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
        let mut request = Request::post(path)
            .header("host", self.server.address.to_string())
            .header("content-type", "application/json");
        if let Some(authorization) = &self.server.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| self.server.failed(error))?;
        self.sender.ready().await.map_err(|error| self.server.failed(error))?;
        let response = self.sender.send_request(request).await.map_err(|error| self.server.failed(error))?;
        if response.status() == 200 {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let timing = response.headers().get("server-timing").and_then(|timing| timing.to_str().ok());
        let took_ms = timing.and_then(|timing| timing.strip_prefix("total;dur=")?.parse().ok());
        let body = response.into_body().collect().await.map_err(|error| self.server.failed(error))?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Err(Error::Status { address: self.server.address.to_string(), status, body, took_ms })
    }

    /// Posts JSON and reads the whole reply.
    pub(crate) async fn exchange(&mut self, path: &str, body: Bytes) -> Result<Bytes, Error> {
        let response = self.post(path, body).await?;
        Ok(response.into_body().collect().await.map_err(|error| self.server.failed(error))?.to_bytes())
    }
}

/// A client configuration that trusts the certificates in `ca_pem` alone.
pub(crate) fn tls(ca_pem: &str) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(Error::setup)?).map_err(Error::setup)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Runs a client in a thread of its own, on `core` where one is given, so that pinning it pins nothing else.
pub(crate) fn in_thread<T: Send>(
    core: Option<usize>,
    client: impl AsyncFnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            core.map_or(Ok(()), crate::process::pin)?;
            block_on(client())
        });
        thread.join().unwrap_or_else(|_| Err(Error::setup("the client's thread panicked")))
    })
}

pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    runtime()?.block_on(future)
}

/// A runtime of the calling thread.
pub(crate) fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread().enable_all().build().map_err(Error::setup)
}
