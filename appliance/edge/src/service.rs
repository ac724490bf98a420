//! From hyper's request to the handler's reply: head check, body, panic guard, and the request's presence in flight.

use crate::{
    Failure, Handler, ReplyBody, Request, RequestBody,
    body::Outgoing,
    head::HeadTap,
    pace::{Pace, ReplyDeadline},
    server::{Core, Live},
};
use http::{HeaderValue, Response, header};
use hyper::body::Incoming;
use std::{cell::RefCell, convert::Infallible, future::Future, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc};

/// A connection's way to the handler.
pub(crate) struct Service<H> {
    pub(crate) core: Rc<Core<H>>,
    pub(crate) pace: Rc<Pace>,
    /// HTTP/1.1 only: HTTP/2 frames its messages in one way.
    pub(crate) tap: Option<Rc<HeadTap>>,
    pub(crate) peer: SocketAddr,
}

impl<H: Handler> hyper::service::Service<http::Request<Incoming>> for Service<H> {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Outgoing>, Infallible>>>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let in_flight = InFlight::new(self);
        let (head, incoming) = request.into_parts();
        let checked = self.tap.as_ref().map_or(Ok(()), |tap| tap.check(&head));
        let incoming = Rc::new(RefCell::new(incoming));
        let body = || RequestBody::new(Rc::clone(&incoming), self.core.clock.clone(), Arc::clone(&self.core.limits));
        // HTTP/1.1 closes the connection instead.
        let unread = self.tap.is_none().then(&body);
        let body = body();
        let request = Request { head, body, peer: self.peer };
        let core = Rc::clone(&self.core);
        Box::pin(async move {
            let reply = match checked {
                Ok(()) => answer(&core, request).await,
                Err(fault) => closing(core.handler.failure(Failure::Head(fault))),
            };
            if let Some(unread) = unread {
                unread.drain().await;
            }
            Ok(reply.map(|body| Outgoing::new(body, in_flight)))
        })
    }
}

async fn answer<H: Handler>(core: &Core<H>, request: Request) -> Response<ReplyBody> {
    core.census.requests.increment();
    let handler = Rc::clone(&core.handler);
    // The call itself is inside too: it may panic before it gives a future.
    let called = async move { handler.call(request).await };
    appliance_runtime::catch_unwind(called).await.unwrap_or_else(|panicked| {
        tracing::error!(?panicked, "a handler panicked");
        core.census.panics.increment();
        core.handler.failure(Failure::Panicked)
    })
}

fn closing(mut reply: Response<ReplyBody>) -> Response<ReplyBody> {
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// A request from its head's end to its reply's end, or until the client is gone.
pub(crate) struct InFlight {
    pace: Rc<Pace>,
    tap: Option<Rc<HeadTap>>,
    _live: Live,
}

impl InFlight {
    fn new<H>(service: &Service<H>) -> Self {
        service.pace.request_began();
        Self { pace: Rc::clone(&service.pace), tap: service.tap.clone(), _live: service.core.live.clone() }
    }

    pub(crate) fn reply_deadline(&self) -> ReplyDeadline {
        self.pace.reply_deadline()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.pace.request_ended();
        if let Some(tap) = &self.tap {
            tap.clear();
        }
    }
}
