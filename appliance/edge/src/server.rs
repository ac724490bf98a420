//! The process's edge and a core's share of it: accepting, caps, and the drain.
//!
//! ```text
//! serve: accepting ──drain()──▶ draining ──all done──▶ Served
//!                                  │ within                ▲
//!                                  └────── cut ────────────┘
//! ```
//! While it drains, a core takes no connection; live ones finish the requests in flight and take no more.

use crate::{
    CertificateError, Certificates, Counts, Handler, Limits,
    census::Census,
    clock::Clock,
    connection::connection,
    io::{LocalExecutor, Scratch},
    tls,
};
use appliance_runtime::{TcpListener, TcpStream, sleep, spawn, spawn_owned, timeout};
use futures_lite::{FutureExt, future};
use hyper::server::conn::{http1, http2};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

/// Pause after an accept that failed for want of descriptors or memory. The kernel holds the connections meanwhile.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// A peer that vanished without a word is noticed after about this and [`KEEPALIVE_PROBES`] intervals.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// The edge of the process. Clones are the same edge: give one to each core, and keep one to drain it.
#[derive(Clone)]
pub struct Edge(Arc<Shared>);

struct Shared {
    limits: Arc<Limits>,
    tls: Arc<ServerConfig>,
    census: Arc<Census>,
    drain: Drain,
}

/// How one core's serving ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections and requests alive when the drain began.
    pub draining: usize,
    /// Those of them that were cut at its end.
    pub cut: usize,
}

impl Edge {
    /// An edge that serves `certificates` under `limits`.
    pub fn new(certificates: Arc<Certificates>, limits: Limits) -> Result<Self, CertificateError> {
        Ok(Self::on(tls::server_config(certificates)?, limits))
    }

    /// An edge for clients whose certificate is of this authority (PEM), and for nobody else.
    pub fn for_clients_of(
        authority_pem: &str,
        certificates: Arc<Certificates>,
        limits: Limits,
    ) -> Result<Self, CertificateError> {
        Ok(Self::on(tls::mutual_config(certificates, authority_pem)?, limits))
    }

    fn on(tls: Arc<ServerConfig>, limits: Limits) -> Self {
        let census = Arc::new(Census::new(&limits));
        Self(Arc::new(Shared { limits: Arc::new(limits), tls, census, drain: Drain::new() }))
    }

    /// Serves connections of `listener` on the current core until a drain is over.
    pub async fn serve<H: Handler>(&self, listener: std::net::TcpListener, handler: Rc<H>) -> io::Result<Served> {
        let core = Rc::new(Core::new(&self.0, Rc::clone(&handler)));
        let listener = TcpListener::from_std(listener)?;
        let clock = core.clock.clone();
        let _keeper = spawn_owned(async move { clock.keep(|| handler.tick()).await });
        accept_until_drain(&core, &listener, &self.0.drain).await;
        drop(listener);
        Ok(core.drain(self.0.drain.within()).await)
    }

    /// Stops accepting on every core, lets requests in flight finish for `within`, then cuts them. Returns at once; each
    /// [`serve`](Edge::serve) returns when its core is done. Only the first call counts.
    pub fn drain(&self, within: Duration) {
        self.0.drain.begin(within);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.0.census.counts()
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

async fn accept_until_drain<H: Handler>(core: &Rc<Core<H>>, listener: &TcpListener, drain: &Drain) {
    let next = || {
        async {
            drain.begun().await;
            None
        }
        .or(async { Some(listener.accept().await) })
    };
    while let Some(accepted) = next().await {
        match accepted {
            Ok((stream, peer)) => admit(core, stream, peer),
            Err(error) => back_off(&error).await,
        }
        // A storm of connections must not keep the live ones from their turn.
        future::yield_now().await;
    }
}

fn admit<H: Handler>(core: &Rc<Core<H>>, stream: TcpStream, peer: SocketAddr) {
    let Some(permits) = core.census.admit(peer) else { return };
    if let Err(error) = tune(&stream) {
        tracing::debug!(%peer, %error, "connection gone before it began");
        return;
    }
    let (core, live) = (Rc::clone(core), core.live.clone());
    spawn(async move {
        connection(core, stream, peer, permits).await;
        drop(live);
    });
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))
}

async fn back_off(error: &io::Error) {
    // The peer left while it was queued: nothing is short.
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    tracing::warn!(%error, "cannot accept; trying again");
    sleep(ACCEPT_BACKOFF).await;
}

/// One core's share of the edge.
pub(crate) struct Core<H> {
    pub(crate) limits: Arc<Limits>,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) census: Arc<Census>,
    pub(crate) clock: Clock,
    pub(crate) scratch: Scratch,
    pub(crate) http1: http1::Builder,
    pub(crate) http2: http2::Builder<LocalExecutor>,
    pub(crate) handler: Rc<H>,
    pub(crate) draining: Cell<bool>,
    pub(crate) live: Live,
}

impl<H: Handler> Core<H> {
    fn new(shared: &Shared, handler: Rc<H>) -> Self {
        let clock = Clock::new(shared.limits.tick);
        Self {
            limits: Arc::clone(&shared.limits),
            tls: Arc::clone(&shared.tls),
            census: Arc::clone(&shared.census),
            scratch: Scratch::new(),
            http1: http1_builder(&shared.limits),
            http2: http2_builder(&shared.limits, &clock),
            clock,
            handler,
            draining: Cell::new(false),
            live: Live::default(),
        }
    }

    async fn drain(&self, within: Duration) -> Served {
        let draining = self.live.others();
        self.draining.set(true);
        self.clock.wake_all();
        let in_time = timeout(within, self.live.alone()).await.is_ok();
        let cut = if in_time { 0 } else { self.live.others() };
        self.clock.pass_all();
        self.live.alone().await;
        Served { draining, cut }
    }
}

/// No timer: heads are timed by the connection's pace, which costs less and cannot be fed byte by byte.
fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_header_size(limits.head_bytes_max)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.buffer_bytes_max)
        .writev(false);
    builder
}

fn http2_builder(limits: &Limits, clock: &Clock) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(clock.clone())
        .max_concurrent_streams(limits.streams_max)
        .max_pending_accept_reset_streams(limits.pending_resets_max)
        .max_local_error_reset_streams(limits.fault_resets_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_send_buf_size(limits.stream_send_bytes_max)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout);
    builder
}

/// Counts what is alive on a core by its clones, and tells when one is alone.
#[derive(Clone, Default)]
pub(crate) struct Live(Rc<LiveWaiter>);

#[derive(Default)]
struct LiveWaiter(RefCell<Option<Waker>>);

impl Live {
    fn others(&self) -> usize {
        Rc::strong_count(&self.0) - 1
    }

    async fn alone(&self) {
        future::poll_fn(|cx| {
            if self.others() == 0 {
                return Poll::Ready(());
            }
            *self.0.0.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(waiter) = self.0.0.borrow_mut().take() {
            waiter.wake();
        }
    }
}

/// Tells every core at once that a drain began: by dropping the one sender of a channel in which nothing is ever sent.
struct Drain {
    sender: Mutex<Option<flume::Sender<()>>>,
    receiver: flume::Receiver<()>,
    within: OnceLock<Duration>,
}

impl Drain {
    fn new() -> Self {
        let (sender, receiver) = flume::bounded(1);
        Self { sender: Mutex::new(Some(sender)), receiver, within: OnceLock::new() }
    }

    fn begin(&self, within: Duration) {
        let _already_begun = self.within.set(within);
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn begun(&self) {
        let _disconnected = self.receiver.recv_async().await;
    }

    fn within(&self) -> Duration {
        self.within.get().copied().unwrap_or_default()
    }
}
