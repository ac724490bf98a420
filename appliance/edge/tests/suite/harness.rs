//! A server on one core with a handler that tests steer, and two clients: blocking HTTP/1.1, and HTTP/2 on tokio.

use appliance_edge::{
    BodyError, Certificates, Counts, Edge, Failure, Handler, Limits, ReplyBody, Request, Served,
    authority::{Identity, ServerNames, issue_server, make_authority},
};
use appliance_runtime::{Cores, available_cores, listeners, run_per_core};
use bytes::Bytes;
use flume::{Receiver, Sender};
use futures_lite::{Stream, StreamExt, future, stream};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::ring,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    convert::Infallible,
    future::Future,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

/// Longer than anything takes; only a hang reaches it.
const WATCHDOG: Duration = Duration::from_secs(60);
pub(crate) const BODY_LIMIT: usize = 1000;

/// What the handler did, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Called,
    Dropped,
    StreamDropped,
}

/// Tells of its own drop.
struct Tell(Sender<Event>, Event);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.send(self.1).unwrap_or_default();
    }
}

/// The two ends that a test has in the handler.
#[derive(Clone)]
struct Steered {
    events: Sender<Event>,
    items: Receiver<Bytes>,
    polled: Arc<AtomicUsize>,
}

impl Handler for Steered {
    async fn call(self: Rc<Self>, request: Request) -> Response<ReplyBody> {
        match request.head.uri.path() {
            "/hello" => Response::new("hello".into()),
            "/echo" => echo(request).await,
            "/unread" => Response::new("unread".into()),
            "/hang" => self.hang().await,
            "/gate" => self.gate().await,
            "/items" => Response::new(ReplyBody::Stream(self.items())),
            "/flood" => Response::new(ReplyBody::Stream(self.flood())),
            "/large" => Response::new(vec![b'x'; 32 << 20].into()),
            "/panic" => panic!("the handler was asked to"),
            "/panic-midway" => Response::new(ReplyBody::Stream(panicking())),
            other => status(StatusCode::NOT_FOUND, other.to_owned()),
        }
    }

    fn failure(&self, failure: Failure) -> Response<ReplyBody> {
        status(failure.status(), format!("{failure:?}"))
    }
}

impl Steered {
    async fn hang(&self) -> Response<ReplyBody> {
        let _tell = Tell(self.events.clone(), Event::Dropped);
        self.events.send(Event::Called).unwrap();
        future::pending().await
    }

    /// Replies when the test sends an item.
    async fn gate(&self) -> Response<ReplyBody> {
        self.events.send(Event::Called).unwrap();
        Response::new(self.items.recv_async().await.unwrap().into())
    }

    fn items(&self) -> Pin<Box<dyn Stream<Item = Bytes>>> {
        let tell = Tell(self.events.clone(), Event::StreamDropped);
        let items = self.items.clone();
        Box::pin(stream::unfold((items, tell), |(items, tell)| async move {
            let item = items.recv_async().await.ok()?;
            Some((item, (items, tell)))
        }))
    }

    fn flood(&self) -> Pin<Box<dyn Stream<Item = Bytes>>> {
        let tell = Tell(self.events.clone(), Event::StreamDropped);
        let polled = Arc::clone(&self.polled);
        Box::pin(stream::repeat(Bytes::from(vec![b'x'; 16 << 10])).inspect(move |_| {
            let _held = &tell;
            polled.fetch_add(1, SeqCst);
        }))
    }
}

async fn echo(request: Request) -> Response<ReplyBody> {
    match request.body.collect(BODY_LIMIT).await {
        Ok(body) => Response::new(body.into()),
        Err(error @ BodyError::TooLarge { .. }) => status(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        Err(error @ BodyError::TimedOut) => status(StatusCode::REQUEST_TIMEOUT, error.to_string()),
        Err(error @ BodyError::Broken) => status(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

fn panicking() -> Pin<Box<dyn Stream<Item = Bytes>>> {
    let first = stream::once(Bytes::from_static(b"first"));
    Box::pin(first.chain(stream::poll_fn(|_| panic!("the stream was asked to"))))
}

fn status(status: StatusCode, text: String) -> Response<ReplyBody> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

/// A server on one core.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) edge: Edge,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) authority: Identity,
    pub(crate) events: Receiver<Event>,
    pub(crate) items: Option<Sender<Bytes>>,
    pub(crate) polled: Arc<AtomicUsize>,
    cores: Option<Cores<io::Result<Served>>>,
}

/// Limits that no test meets unless it sets them, and a clock that makes short deadlines short.
pub(crate) fn limits() -> Limits {
    let long = Duration::from_secs(3600);
    Limits {
        handshake_timeout: long,
        head_timeout: long,
        idle_timeout: long,
        body_timeout: long,
        write_timeout: long,
        ping_interval: long,
        tick: Duration::from_millis(2),
        ..Limits::default()
    }
}

impl Server {
    pub(crate) fn start(limits: Limits) -> Self {
        let now = SystemTime::now();
        let authority = make_authority("test", now).unwrap();
        let identity = issue_server(&authority, &names(), now).unwrap();
        let certificates = Certificates::load(&identity.certificate_pem, &identity.key_pem).unwrap();
        let certificates = Arc::new(certificates);
        let edge = Edge::new(Arc::clone(&certificates), limits).unwrap();
        let listener = listeners(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let ((events_in, events), (items, items_out)) = (flume::unbounded(), flume::unbounded());
        let polled = Arc::new(AtomicUsize::new(0));
        let steered = Steered { events: events_in, items: items_out, polled: Arc::clone(&polled) };
        let mut begin = Some((edge.clone(), listener, steered));
        let cores = run_per_core(&available_cores().unwrap()[..1], "edge", |_| {
            let (edge, listener, handler) = begin.take().unwrap();
            move || async move { edge.serve(listener, Rc::new(handler)).await }
        });
        let cores = Some(cores.unwrap());
        Self { address, edge, certificates, authority, events, items: Some(items), polled, cores }
    }

    /// What the handler did next.
    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(WATCHDOG).expect("the handler did nothing")
    }

    pub(crate) fn send_item(&self, item: &'static str) {
        self.items.as_ref().unwrap().send(Bytes::from_static(item.as_bytes())).unwrap();
    }

    /// Waits until the edge has counted so.
    pub(crate) fn wait_until(&self, holds: impl Fn(Counts) -> bool) {
        let began = Instant::now();
        while !holds(self.edge.counts()) {
            assert!(began.elapsed() < WATCHDOG, "still {:?}", self.edge.counts());
            std::thread::yield_now();
        }
    }

    /// Waits for the drain that was begun.
    pub(crate) fn join(&mut self) -> Served {
        self.cores.take().unwrap().join().remove(0).expect("the core panicked").unwrap()
    }

    pub(crate) fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        stream.set_write_timeout(Some(WATCHDOG)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(&[&TLS13, &TLS12], &[b"http/1.1"])
    }

    pub(crate) fn client_with(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]) -> Client {
        let config = client_config(&self.authority, versions, alpn);
        let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
        Client { stream: StreamOwned::new(ClientConnection::new(config, name).unwrap(), self.raw()), spare: Vec::new() }
    }

    /// True when a new client is served.
    pub(crate) fn answers(&self) -> bool {
        self.client().get("/hello").body == b"hello"
    }

    /// Runs an HTTP/2 client.
    pub(crate) fn http2<T, F: Future<Output = T>>(&self, act: impl FnOnce(Http2) -> F) -> T {
        let config = client_config(&self.authority, &[&TLS13], &[b"h2"]);
        let address = self.address;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let session = async move {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            let connection = tokio::spawn(connection);
            act(Http2 { sender, connection }).await
        };
        runtime.block_on(async { tokio::time::timeout(WATCHDOG, session).await.expect("the http/2 session hangs") })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.edge.drain(Duration::ZERO);
        if let Some(cores) = self.cores.take() {
            cores.join();
        }
    }
}

pub(crate) fn names() -> ServerNames {
    ServerNames::new("test", Ipv4Addr::LOCALHOST.into(), &[])
}

pub(crate) fn client_config(
    authority: &Identity,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A blocking client that writes what it is told, well formed or not.
pub(crate) struct Client {
    pub(crate) stream: StreamOwned<ClientConnection, TcpStream>,
    spare: Vec<u8>,
}

/// One HTTP/1.1 reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn closes(&self) -> bool {
        self.head.to_ascii_lowercase().contains("connection: close")
    }
}

impl Client {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self.stream.flush().unwrap();
        self
    }

    /// Sends as much as the server takes.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).reply()
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Reply {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()));
        self.send(body).reply()
    }

    /// The next reply, with a body by length or by chunks.
    pub(crate) fn reply(&mut self) -> Reply {
        let head = self.head();
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|n| n.parse().unwrap());
        let body = match length {
            Some(length) => self.take(length),
            None if lower.contains("transfer-encoding: chunked") => self.chunks().concat(),
            None => Vec::new(),
        };
        Reply { status: head[9..12].parse().unwrap(), head, body }
    }

    pub(crate) fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.take(1));
        }
        String::from_utf8(head).unwrap()
    }

    /// The next chunk of a chunked body; `None` is its end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.take(1));
        }
        let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        let mut chunk = self.take(length + 2);
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    fn chunks(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.chunk()).collect()
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.spare.len() < count {
            let mut buf = [0; 16 << 10];
            let got = self.stream.read(&mut buf).unwrap();
            assert!(got > 0, "closed after {:?}", String::from_utf8_lossy(&self.spare));
            self.spare.extend_from_slice(&buf[..got]);
        }
        self.spare.drain(..count).collect()
    }

    /// Waits until the server ends the connection, in whatever way, and gives what came before that.
    pub(crate) fn until_closed(mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.spare);
        if let Err(error) = self.stream.read_to_end(&mut rest) {
            assert!(!is_timeout(&error), "the server keeps the connection");
        }
        rest
    }
}

/// Waits until the server ends a plain connection.
pub(crate) fn until_raw_closed(mut stream: TcpStream) {
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert!(!is_timeout(&error), "the server keeps the connection");
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An HTTP/2 client connection.
pub(crate) struct Http2 {
    pub(crate) sender: hyper::client::conn::http2::SendRequest<Body>,
    pub(crate) connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    /// The reply's head; its body is still to come.
    pub(crate) fn request<B: Into<Bytes>>(
        &mut self,
        path: &str,
        body: B,
    ) -> impl Future<Output = hyper::Result<Response<hyper::body::Incoming>>> + use<B> {
        self.request_with(path, Full::new(body.into()).boxed_unsync())
    }

    /// As [`Http2::request`], with a body that may come later.
    pub(crate) fn request_with(
        &mut self,
        path: &str,
        body: Body,
    ) -> impl Future<Output = hyper::Result<Response<hyper::body::Incoming>>> + use<> {
        let uri = format!("https://127.0.0.1{path}");
        self.sender.send_request(http::Request::post(uri).body(body).unwrap())
    }

    pub(crate) async fn get(&mut self, path: &str) -> (StatusCode, Bytes) {
        let response = self.request(path, "").await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }
}
