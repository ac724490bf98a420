//! The life of one connection, from its first TLS byte until it is closed, cut or drained.

use crate::{
    Handler,
    census::{HandshakePermit, Permit},
    head::HeadTap,
    io::{Io, LocalExecutor},
    pace::Pace,
    server::Core,
    service::Service,
    tls,
};
use appliance_runtime::TcpStream;
use futures_rustls::{TlsAcceptor, server::TlsStream};
use hyper::{
    rt::Write,
    server::conn::{http1, http2},
};
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("both sides were done")]
    Closed,
    #[error("the peer broke the protocol or went away: {0}")]
    Broken(#[source] hyper::Error),
    #[error("a deadline passed")]
    Cut,
}

/// Serves one connection to its end.
pub(crate) async fn connection<H: Handler>(
    core: Rc<Core<H>>,
    stream: TcpStream,
    peer: SocketAddr,
    (_permit, handshake): (Permit, HandshakePermit),
) {
    let pace = Rc::new(Pace::new(core.clock.clone(), Arc::clone(&core.limits)));
    let Some(stream) = accept(&core, stream, &pace).await else {
        core.census.handshakes_failed.increment();
        return;
    };
    drop(handshake);
    let end = serve(&core, stream, peer, &pace).await;
    tracing::debug!(%peer, %end, "connection over");
    if matches!(end, End::Cut) {
        core.census.cut.increment();
    }
}

/// The TLS handshake, unless it fails or takes too long.
async fn accept<H>(core: &Core<H>, stream: TcpStream, pace: &Pace) -> Option<TlsStream<TcpStream>> {
    let mut accepting = TlsAcceptor::from(Arc::clone(&core.tls)).accept(stream);
    let accepted = poll_fn(|cx| match pace.poll_cut(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => Pin::new(&mut accepting).poll(cx).map(Some),
    });
    let result = accepted.await?;
    result.inspect_err(|error| tracing::debug!(%error, "handshake failed")).ok()
}

async fn serve<H: Handler>(core: &Rc<Core<H>>, stream: TlsStream<TcpStream>, peer: SocketAddr, pace: &Rc<Pace>) -> End {
    let multiplexed = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
    pace.opened(multiplexed);
    let tap = (!multiplexed).then(|| Rc::new(HeadTap::new(core.limits.head_bytes_max)));
    let service = Service { core: Rc::clone(core), pace: Rc::clone(pace), tap: tap.clone(), peer };
    let (scratch, linger_bytes) = (core.scratch.clone(), core.limits.linger_bytes_max);
    let io = Io { stream, scratch, pace: Rc::clone(pace), tap, linger_bytes, closed: false };
    if multiplexed {
        return drive(&mut core.http2.serve_connection(io, service), pace, &core.draining).await;
    }
    let mut connection = core.http1.serve_connection(io, service);
    let end = drive(&mut connection, pace, &core.draining).await;
    if matches!(&end, End::Broken(error) if error.is_parse()) {
        shut_down(connection.into_parts().io, pace).await;
    }
    end
}

/// Ends a connection whose last reply hyper has written but not seen off. Not for one broken off within a reply: a clean
/// end would make that look whole.
async fn shut_down(mut io: Io<TlsStream<TcpStream>>, pace: &Pace) {
    poll_fn(|cx| match pace.poll_cut(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => Pin::new(&mut io).poll_shutdown(cx).map(drop),
    })
    .await;
}

/// Polls a connection to its end, tells it of a drain once, and drops it when it is cut.
async fn drive(connection: &mut (impl Connection + Unpin), pace: &Pace, draining: &Cell<bool>) -> End {
    let mut connection = Pin::new(connection);
    let mut told = false;
    poll_fn(|cx| {
        if draining.get() && !told {
            told = true;
            connection.as_mut().drain();
        }
        if pace.poll_cut(cx).is_ready() {
            return Poll::Ready(End::Cut);
        }
        connection.as_mut().poll(cx).map(|ended| ended.map_or_else(End::Broken, |()| End::Closed))
    })
    .await
}

/// What the two versions of HTTP have in common.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Finishes what is in flight and takes nothing new.
    fn drain(self: Pin<&mut Self>);
}

impl<H: Handler> Connection for http1::Connection<Io<TlsStream<TcpStream>>, Service<H>> {
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<H: Handler> Connection for http2::Connection<Io<TlsStream<TcpStream>>, Service<H>, LocalExecutor> {
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
