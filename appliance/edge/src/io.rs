//! hyper's view of a connection and of this core: bytes over `futures-io`, tasks over the runtime.
//!
//! Reads go through one scratch buffer a core, so an idle connection holds no read buffer. Every read and write is told to
//! the connection's [`Pace`]. Shutting down lingers: the end is announced, then what the client still sends is read and
//! thrown away until it closes too, because closing over unread bytes would reset the connection and could take the reply
//! from a client that was still sending.

use crate::{head::HeadTap, pace::Pace};
use futures_lite::{AsyncRead, AsyncWrite};
use hyper::rt::{ReadBufCursor, Write};
use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// One TLS record.
const SCRATCH_BYTES: usize = 16 << 10;

/// The read buffer that a core's connections take turns with.
#[derive(Clone, Debug)]
pub(crate) struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new(vec![0; SCRATCH_BYTES].into())))
    }
}

/// A connection's bytes.
pub(crate) struct Io<S> {
    pub(crate) stream: S,
    pub(crate) scratch: Scratch,
    pub(crate) pace: Rc<Pace>,
    pub(crate) tap: Option<Rc<HeadTap>>,
    /// What may still be thrown away while shutting down.
    pub(crate) linger_bytes: usize,
    pub(crate) closed: bool,
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut scratch = this.scratch.0.borrow_mut();
        let room = buf.remaining().min(scratch.len());
        let count = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut scratch[..room]))?;
        let received = &scratch[..count];
        if let Some(tap) = this.tap.as_ref().filter(|_| this.pace.is_idle()) {
            tap.record(received);
        }
        if count > 0 {
            this.pace.received();
        }
        buf.put_slice(received);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        match &written {
            Poll::Ready(Ok(bytes)) => this.pace.wrote(*bytes),
            Poll::Ready(Err(_)) => (),
            Poll::Pending => this.pace.write_blocked(),
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        match &flushed {
            Poll::Ready(_) => this.pace.flushed(),
            Poll::Pending => this.pace.write_blocked(),
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            ready!(Pin::new(&mut this.stream).poll_close(cx))?;
            this.closed = true;
            this.pace.closing();
        }
        this.poll_linger(cx)
    }
}

impl<S: AsyncRead + Unpin> Io<S> {
    /// Ready when the client has closed, or has sent more than is worth reading.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = self.scratch.0.borrow_mut();
        while self.linger_bytes > 0 {
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut scratch)) {
                Ok(count) if count > 0 => self.linger_bytes = self.linger_bytes.saturating_sub(count),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Runs hyper's HTTP/2 streams as tasks of this core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        appliance_runtime::spawn(future);
    }
}
