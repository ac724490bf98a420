//! Bodies: a request's, read under a size and a rate; a reply's, whole or as a stream that follows its client.

use crate::{
    Limits,
    clock::{Clock, Deadline},
    pace::ReplyDeadline,
    service::InFlight,
};
use bytes::{Bytes, BytesMut};
use futures_lite::Stream;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// Why a request's body cannot be had. The handler answers; the connection is then closed if it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than `limit`: answer 413.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The most that is taken.
        limit: usize,
    },
    /// It comes too slowly: answer 408.
    #[error("the body came too slowly")]
    TimedOut,
    /// Its framing is broken, or the client left: answer 400, which may reach nobody.
    #[error("the body is broken off or badly framed")]
    Broken,
}

/// What arrives of a body, also when the handler has let go of it.
pub(crate) type Arriving = Rc<RefCell<Incoming>>;

/// The body of one request, as it arrives.
pub struct RequestBody {
    incoming: Arriving,
    clock: Clock,
    limits: Arc<Limits>,
    bytes_max: usize,
    received_bytes: usize,
    /// When the body was first asked for, and what wakes the reader if it comes too slowly.
    deadline: Option<(u64, Arc<Deadline>)>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Arriving, clock: Clock, limits: Arc<Limits>) -> Self {
        let bytes_max = limits.body_bytes_max;
        Self { incoming, clock, limits, bytes_max, received_bytes: 0, deadline: None }
    }

    /// The whole body, if it is no longer than `limit` and [`Limits::body_bytes_max`]. One that says so in
    /// `content-length` is refused before a byte is read.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, BodyError> {
        let limit = limit.min(self.bytes_max);
        if self.length_hint().is_some_and(|length| length > limit as u64) {
            return Err(BodyError::TooLarge { limit });
        }
        let Some(first) = self.chunk().await else { return Ok(Bytes::new()) };
        let first = within(first?, 0, limit)?;
        let Some(second) = self.chunk().await else { return Ok(first) };
        let mut whole = BytesMut::from(first);
        whole.extend_from_slice(&within(second?, whole.len(), limit)?);
        while let Some(chunk) = self.chunk().await {
            whole.extend_from_slice(&within(chunk?, whole.len(), limit)?);
        }
        Ok(whole.freeze())
    }

    /// The same body, allowed to be as long as `bytes_max` instead of [`Limits::body_bytes_max`]: for one that is read in
    /// pieces and handed on.
    pub fn up_to(self, bytes_max: usize) -> Self {
        Self { bytes_max, ..self }
    }

    /// The next bytes; `None` at the end. After an error nothing more can be had.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// What `content-length` says, or what is left of it.
    pub fn length_hint(&self) -> Option<u64> {
        self.incoming.borrow().size_hint().exact()
    }

    /// Takes what is left of a small body that the handler did not read, and throws it away: an HTTP/2 stream that ends
    /// before its request has is reset, and curl then reports an error in place of the reply.
    pub(crate) async fn drain(self) {
        const BYTES_MAX: usize = 64 << 10;
        if self.length_hint().is_some_and(|length| length > BYTES_MAX as u64) {
            return;
        }
        let mut rest = self.up_to(BYTES_MAX);
        while let Some(Ok(_)) = rest.chunk().await {}
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let polled = Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx);
            match polled {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(BodyError::Broken))),
                // Trailers mean nothing here.
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Some(self.take(data))),
                    _ => continue,
                },
                Poll::Pending => return self.poll_late(cx).map(|()| Some(Err(BodyError::TimedOut))),
            }
        }
    }

    fn take(&mut self, data: Bytes) -> Result<Bytes, BodyError> {
        let data = within(data, self.received_bytes, self.bytes_max)?;
        self.received_bytes += data.len();
        if let Some((began, deadline)) = &self.deadline {
            deadline.arm(self.due(*began));
        }
        Ok(data)
    }

    /// Ready when the body is slower than it may be. Costs nothing for a body that is there when asked for.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.deadline.is_none() {
            let began = self.clock.after(Duration::ZERO);
            let deadline = self.clock.deadline();
            deadline.arm(self.due(began));
            self.deadline = Some((began, deadline));
        }
        self.deadline.as_ref().map_or(Poll::Pending, |(_, deadline)| deadline.poll_passed(cx))
    }

    fn due(&self, began: u64) -> u64 {
        let allowed = allowed(self.received_bytes, &self.limits);
        began + (self.clock.after(allowed) - self.clock.after(Duration::ZERO))
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("received_bytes", &self.received_bytes).finish_non_exhaustive()
    }
}

/// The time that a body may have taken when `received_bytes` of it are there.
fn allowed(received_bytes: usize, limits: &Limits) -> Duration {
    let at_slowest = received_bytes as u64 / limits.body_bytes_per_second_min.max(1);
    limits.body_timeout + Duration::from_secs(at_slowest)
}

/// `chunk`, if `before` bytes and it are no more than `limit`.
fn within(chunk: Bytes, before: usize, limit: usize) -> Result<Bytes, BodyError> {
    if before + chunk.len() <= limit { Ok(chunk) } else { Err(BodyError::TooLarge { limit }) }
}

/// The body of a reply.
pub enum ReplyBody {
    /// All of it.
    Full(Bytes),
    /// Items as they come, each flushed as it comes. Asked for the next item only when the client can take it; dropped
    /// when the client leaves or is cut.
    Stream(Pin<Box<dyn Stream<Item = Bytes>>>),
}

impl ReplyBody {
    /// No body.
    pub const fn empty() -> Self {
        Self::Full(Bytes::new())
    }
}

impl<T: Into<Bytes>> From<T> for ReplyBody {
    fn from(bytes: T) -> Self {
        Self::Full(bytes.into())
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// The stream of a reply panicked; its connection (HTTP/1.1) or stream (HTTP/2) is broken off, never ended as if whole.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the reply's stream panicked")]
pub(crate) struct StreamPanicked;

/// A reply's body on its way to the client, which keeps its request in flight.
pub(crate) struct Outgoing {
    body: ReplyBody,
    deadline: Option<ReplyDeadline>,
    _in_flight: InFlight,
}

impl Outgoing {
    pub(crate) fn new(body: ReplyBody, in_flight: InFlight) -> Self {
        let deadline = matches!(body, ReplyBody::Stream(_)).then(|| in_flight.reply_deadline());
        Self { body, deadline, _in_flight: in_flight }
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamPanicked>>> {
        match &mut self.body {
            ReplyBody::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            ReplyBody::Full(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            ReplyBody::Stream(stream) => {
                match panic::catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(cx))) {
                    Ok(polled) => polled.map(|item| item.map(Ok)),
                    Err(_) => {
                        self.body = ReplyBody::empty();
                        Poll::Ready(Some(Err(StreamPanicked)))
                    }
                }
            }
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = StreamPanicked;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamPanicked>>> {
        self.deadline.iter().for_each(ReplyDeadline::wanted);
        let item = ready!(self.poll_item(cx));
        if item.is_some() {
            self.deadline.iter().for_each(ReplyDeadline::offered);
        }
        Poll::Ready(item.map(|item| item.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.body, ReplyBody::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ReplyBody::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyBody::Stream(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_earns_time_by_arriving() {
        let limits = Limits { body_bytes_per_second_min: 1000, ..Limits::default() };
        assert_eq!(allowed(0, &limits), limits.body_timeout);
        assert_eq!(allowed(10_000, &limits), limits.body_timeout + Duration::from_secs(10));
    }

    #[test]
    fn a_limit_is_inclusive() {
        assert!(within(Bytes::from_static(b"abc"), 7, 10).is_ok());
        assert_eq!(within(Bytes::from_static(b"abcd"), 7, 10), Err(BodyError::TooLarge { limit: 10 }));
    }
}
