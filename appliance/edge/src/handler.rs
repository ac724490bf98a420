//! What the edge asks of whoever answers requests.

use crate::{HeadFault, ReplyBody, RequestBody};
use http::{Response, StatusCode};
use std::{future::Future, net::SocketAddr, rc::Rc};

/// One request, with its body still to come.
#[derive(Debug)]
pub struct Request {
    /// Method, target, version and headers.
    pub head: http::request::Parts,
    /// The body; one that is left unread is discarded, and on HTTP/1.1 the connection may be closed after the reply.
    pub body: RequestBody,
    /// Who asks.
    pub peer: SocketAddr,
}

/// Why there is no reply of [`Handler::call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It panicked.
    Panicked,
    /// It was not called: the request's head is refused.
    Head(HeadFault),
}

impl Failure {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Failure::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            Failure::Head(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Answers requests, on one core.
pub trait Handler: 'static {
    /// The reply to one request. Dropped when the client goes away before it is there.
    fn call(self: Rc<Self>, request: Request) -> impl Future<Output = Response<ReplyBody>> + 'static;

    /// Called about once a [`tick`](crate::Limits::tick) while there are connections.
    fn tick(&self) {}

    /// The reply when there is none: by default the status alone.
    fn failure(&self, failure: Failure) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::empty());
        *response.status_mut() = failure.status();
        response
    }
}
