//! One connection to a box: HTTP/1.1 over TLS 1.3 over TCP, the bytes moved by io_uring.
//!
//! ```text
//!  hyper ─▶ rustls ─▶ a pipe in memory ─▶ carry ─▶ tokio-uring's socket ─▶ the box
//! ```
//! The pipe stands between because rustls' stream is polled while a ring owns the buffers of what it reads and writes.
//!
//! Invariants: the box proves that its name is the one that was enrolled, whatever its address; every wait has an end and every
//! answer a greatest length; a session that is dropped takes its socket with it.

use crate::{Member, Roster};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{
    fs::File,
    io::{self, Read},
    net::{Shutdown, ToSocketAddrs},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_uring::buf::BoundedBuf;

/// Longest file of a certificate or key.
const PEM_BYTES_MAX: u64 = 256 << 10;
/// Bytes that wait between TLS and the socket, each way.
const PIPE_BYTES: usize = 64 << 10;
/// Bytes of one read or write of the ring.
const CARRY_BYTES: usize = 32 << 10;
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// How long a connection has, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// How long an answer has.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why a box did not answer. Trying again may help, but for [`Credentials`](SessionError::Credentials).
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("`{}`: {reason}", path.display())]
    Credentials { path: PathBuf, reason: String },
    #[error("cannot find {host}: {reason}")]
    NoAddress { host: String, reason: String },
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("tls: {0}")]
    Tls(io::Error),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is longer than {bytes_max} bytes, or broke off: {reason}")]
    Body { bytes_max: usize, reason: String },
    #[error("no {what} within {} s", within.as_secs())]
    Slow { what: &'static str, within: Duration },
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Seconds to wait before asking again, where the box says so.
    pub(crate) retry_after_s: Option<u64>,
    pub(crate) body: Bytes,
}

/// A connection to a box.
pub(crate) struct Session {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
    driver: JoinHandle<()>,
    _wire: Wire,
}

impl Session {
    /// Connects to a box of the roster.
    pub(crate) async fn open(roster: &Roster, member: &Member) -> Result<Self, SessionError> {
        let config = Arc::new(config(&roster.credentials(member))?);
        let slow = |_| SessionError::Slow { what: "connection", within: CONNECT_MAX };
        timeout(CONNECT_MAX, Self::connect(member, config)).await.map_err(slow)?
    }

    async fn connect(member: &Member, config: Arc<ClientConfig>) -> Result<Self, SessionError> {
        let (wire, pipe) = Wire::over(dial(member).await?);
        let name = ServerName::try_from(member.name.to_string()).expect("a box's name is a host name");
        let tls = TlsConnector::from(config).connect(name, pipe).await.map_err(SessionError::Tls)?;
        let mut http = http1::Builder::new();
        http.max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
        let (sender, connection) = http.handshake(TokioIo::new(tls)).await?;
        let driver = tokio_uring::spawn(async move {
            // What went wrong is told to who waits for the answer.
            let _ = connection.await;
        });
        Ok(Self { sender, host: member.address.authority(), driver, _wire: wire })
    }

    /// Asks for a path, whose answer's body is `bytes_max` long at most.
    pub(crate) async fn get(&mut self, path: &str, bytes_max: usize) -> Result<Answer, SessionError> {
        let slow = |_| SessionError::Slow { what: "answer", within: ANSWER_MAX };
        timeout(ANSWER_MAX, self.ask(path, bytes_max)).await.map_err(slow)?
    }

    async fn ask(&mut self, path: &str, bytes_max: usize) -> Result<Answer, SessionError> {
        let request = Request::get(path).header(header::HOST, &self.host).header(header::ACCEPT, "application/json");
        let request = request.body(Empty::new()).expect("a path and a host that were checked");
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let retry_after_s = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(body, bytes_max).collect().await;
        let body = body.map_err(|error| SessionError::Body { bytes_max, reason: error.to_string() })?.to_bytes();
        Ok(Answer { status: head.status, retry_after_s, body })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects by readiness and not by the ring: a connect that nobody answers is given up at once when it is dropped.
async fn dial(member: &Member) -> Result<tokio_uring::net::TcpStream, SessionError> {
    let (host, port) = (member.address.host().to_owned(), member.address.port());
    let unknown = |reason: String| SessionError::NoAddress { host: member.address.host().to_owned(), reason };
    let found = tokio::task::spawn_blocking(move || {
        Ok::<Vec<_>, io::Error>((host.as_str(), port).to_socket_addrs()?.collect())
    });
    let found = found.await.map_err(|error| unknown(error.to_string()))?.map_err(|error| unknown(error.to_string()))?;
    let mut failed = None;
    for address in found {
        match TcpStream::connect(address).await.and_then(blocking) {
            Ok(stream) => return Ok(tokio_uring::net::TcpStream::from_std(stream)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.map_or_else(|| unknown("it has no address".to_owned()), SessionError::Connect))
}

/// The ring waits by itself only on a socket that blocks.
fn blocking(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A socket, and the tasks that carry bytes between it and a pipe.
struct Wire(Rc<tokio_uring::net::TcpStream>);

impl Wire {
    fn over(stream: tokio_uring::net::TcpStream) -> (Self, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (from_tls, to_tls) = tokio::io::split(ours);
        let stream = Rc::new(stream);
        tokio_uring::spawn(inwards(Rc::clone(&stream), to_tls));
        tokio_uring::spawn(outwards(Rc::clone(&stream), from_tls));
        (Self(stream), theirs)
    }
}

impl Drop for Wire {
    /// Ends both tasks: what the ring still waits for returns.
    fn drop(&mut self) {
        // The peer may have gone first.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

async fn inwards(stream: Rc<tokio_uring::net::TcpStream>, mut to_tls: WriteHalf<DuplexStream>) {
    let mut buffer = vec![0; CARRY_BYTES];
    loop {
        let (read, back) = stream.read(buffer).await;
        buffer = back;
        let Ok(length @ 1..) = read else { break };
        if to_tls.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    // Who reads learns that nothing more comes; nobody may be left to learn it.
    let _ = to_tls.shutdown().await;
}

async fn outwards(stream: Rc<tokio_uring::net::TcpStream>, mut from_tls: ReadHalf<DuplexStream>) {
    let mut buffer = vec![0; CARRY_BYTES];
    while let Ok(length @ 1..) = from_tls.read(&mut buffer).await {
        let (written, slice) = stream.write_all(buffer.slice(..length)).await;
        buffer = slice.into_inner();
        if written.is_err() {
            return;
        }
    }
}

/// Whom to trust and what to show.
fn config([ca, cert, key]: &[PathBuf; 3]) -> Result<ClientConfig, SessionError> {
    let unusable = |path: &Path, error: &dyn std::fmt::Display| SessionError::Credentials {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let chain = |path: &Path| -> Result<Vec<CertificateDer<'static>>, SessionError> {
        let pem = read(path)?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        chain.map_err(|error| unusable(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in chain(ca)? {
        roots.add(certificate).map_err(|error| unusable(ca, &error))?;
    }
    if roots.is_empty() {
        return Err(unusable(ca, &"it holds no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| unusable(key, &error))?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(ca, &error))?;
    let config = builder.with_root_certificates(roots).with_client_auth_cert(chain(cert)?, secret);
    let mut config = config.map_err(|error| unusable(cert, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>, SessionError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| SessionError::Credentials { path: path.to_owned(), reason: error.to_string() })?;
    Ok(bytes)
}
