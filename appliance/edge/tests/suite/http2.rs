//! HTTP/2: round trips on shared connections, limits, and floods.

use crate::harness::{BODY_LIMIT, Client, Event, Server, limits};
use appliance_edge::Limits;
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rustls::version::TLS13;
use std::{convert::Infallible, io::Read, time::Duration};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn requests_share_one_connection() {
    let server = Server::start(limits());
    server.http2(|mut client| async move {
        let pending: Vec<_> = (0..50).map(|n| client.request("/echo", format!("body {n}"))).collect();
        for (n, pending) in pending.into_iter().enumerate() {
            let body = pending.await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("body {n}"));
        }
        assert_eq!(client.get("/hello").await, (StatusCode::OK, "hello".into()));
        assert_eq!(client.get("/nowhere").await.0, StatusCode::NOT_FOUND);
    });
    assert_eq!(server.edge.counts().accepted, 1);
}

#[test]
fn bodies_have_a_limit_and_an_unread_one_breaks_nothing() {
    let server = Server::start(limits());
    server.http2(|mut client| async move {
        let fits = client.request("/echo", vec![b'x'; BODY_LIMIT]).await.unwrap();
        assert_eq!(fits.status(), StatusCode::OK);
        let too_large = client.request("/echo", vec![b'x'; BODY_LIMIT + 1]).await.unwrap();
        assert_eq!(too_large.status(), StatusCode::PAYLOAD_TOO_LARGE);
        for _ in 0..3 {
            let unread = client.request("/unread", vec![b'x'; 1 << 20]).await.unwrap();
            assert_eq!(unread.status(), StatusCode::OK);
        }
        assert_eq!(client.get("/hello").await.0, StatusCode::OK);
    });
}

#[test]
fn a_small_body_that_nobody_reads_is_let_in_before_the_reply() {
    let server = Server::start(limits());
    server.http2(|mut client| async move {
        let (send, body) = flume::bounded::<Result<Frame<Bytes>, Infallible>>(1);
        let reply = tokio::spawn(client.request_with("/unread", StreamBody::new(body.into_stream()).boxed_unsync()));
        for _ in 0..3 {
            assert_eq!(client.get("/hello").await.0, StatusCode::OK);
        }
        assert!(!reply.is_finished(), "the stream has ended before its request");
        send.send(Ok(Frame::data("late".into()))).unwrap();
        drop(send);
        let reply = reply.await.unwrap().unwrap();
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "unread");
    });
}

#[test]
fn the_handler_is_dropped_when_its_stream_is_reset_or_its_client_leaves() {
    let server = Server::start(limits());
    server.http2(|mut client| {
        let events = server.events.clone();
        async move {
            let hanging = tokio::spawn(client.request("/hang", ""));
            assert_eq!(events.recv_async().await.unwrap(), Event::Called);
            hanging.abort();
            assert_eq!(events.recv_async().await.unwrap(), Event::Dropped);
            assert_eq!(client.get("/hello").await.0, StatusCode::OK, "the connection lives on");
            let _hanging = tokio::spawn(client.request("/hang", ""));
            assert_eq!(events.recv_async().await.unwrap(), Event::Called);
            client.connection.abort();
        }
    });
    assert_eq!(server.event(), Event::Dropped);
}

#[test]
fn a_stream_is_dropped_when_its_client_resets_it() {
    let server = Server::start(limits());
    server.http2(|mut client| {
        let (events, items) = (server.events.clone(), server.items.clone().unwrap());
        async move {
            let mut reply = client.request("/items", "").await.unwrap().into_body();
            items.send("first".into()).unwrap();
            assert_eq!(reply.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
            drop(reply);
            assert_eq!(events.recv_async().await.unwrap(), Event::StreamDropped);
            assert_eq!(client.get("/hello").await.0, StatusCode::OK, "the connection lives on");
        }
    });
}

#[test]
fn a_panic_ends_one_stream_only() {
    let server = Server::start(limits());
    server.http2(|mut client| async move {
        assert_eq!(client.get("/panic").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        let broken = async { client.request("/panic-midway", "").await?.into_body().collect().await };
        assert!(broken.await.is_err(), "a broken reply looked whole");
        assert_eq!(client.get("/hello").await.0, StatusCode::OK);
    });
}

#[test]
fn an_idle_connection_is_cut() {
    let server = Server::start(Limits { idle_timeout: SHORT, ..limits() });
    server.http2(|mut client| async move {
        assert_eq!(client.get("/hello").await.0, StatusCode::OK);
        assert!(client.connection.await.is_ok());
    });
    assert_eq!(server.edge.counts().connections, 0);
}

#[test]
fn a_client_that_answers_no_ping_is_cut() {
    let server = Server::start(Limits { ping_interval: SHORT, ping_timeout: SHORT, ..limits() });
    let mut mute = raw(&server);
    mute.send(request(1, "/hang"));
    assert_eq!(server.event(), Event::Called);
    assert_eq!(server.event(), Event::Dropped);
    mute.until_closed();
}

/// An HTTP/2 connection whose frames the test writes.
fn raw(server: &Server) -> Client {
    let mut client = server.client_with(&[&TLS13], &[b"h2"]);
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").send(frame(SETTINGS, 0, 0, &[]));
    client
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK of a GET: three indexed fields and the path, all literal.
fn fields(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x01, 9];
    block.extend(b"127.0.0.1");
    block.extend([0x04, u8::try_from(path.len()).unwrap()]);
    block.extend(path.as_bytes());
    block
}

fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields(path))
}

fn odd() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// Writes `frames` until the server closes the connection, while it serves others.
fn flood(frames: impl Iterator<Item = Vec<u8>>) {
    let server = Server::start(limits());
    let mut client = raw(&server);
    for batch in frames.collect::<Vec<_>>().chunks(64) {
        if client.try_send(batch.concat()).is_err() {
            break;
        }
        assert!(server.answers());
    }
    client.until_closed();
    assert!(server.answers());
}

#[test]
fn rapid_resets_end_the_connection() {
    let reset = |stream| [request(stream, "/hang"), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat();
    flood(odd().take(4000).map(reset));
}

#[test]
fn endless_continuations_end_the_connection() {
    let first = frame(HEADERS, END_STREAM, 1, &fields("/hello"));
    let more = frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 1, b'b'].repeat(1000));
    flood(std::iter::once(first).chain(std::iter::repeat_n(more, 4000)));
}

#[test]
fn a_head_too_large_is_refused() {
    let server = Server::start(limits());
    let mut client = raw(&server);
    let long = [&[0x00, 1, b'a', 0x7f, 0x81, 0x1c][..], &[b'x'; 3712]].concat();
    let block = [fields("/hello"), long.repeat(6)].concat();
    let (first, rest) = block.split_at(16_000);
    client.send(frame(HEADERS, END_STREAM, 1, first)).send(frame(CONTINUATION, END_HEADERS, 1, rest));
    let mut reply = [0; 4096];
    let mut seen = Vec::new();
    while !contains_frame(&seen, HEADERS) && !contains_frame(&seen, RST_STREAM) {
        let got = client.stream.read(&mut reply).unwrap();
        assert!(got > 0);
        seen.extend_from_slice(&reply[..got]);
    }
    assert_eq!(server.edge.counts().requests, 0);
    assert!(server.answers());
}

fn contains_frame(mut bytes: &[u8], kind: u8) -> bool {
    while bytes.len() >= 9 {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        if bytes[3] == kind {
            return true;
        }
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    false
}

#[test]
fn faults_of_framing_end_the_connection() {
    let faults = [
        frame(DATA, 0, 1, b"on a stream that is idle"),
        frame(PING, 0, 1, &[0; 8]),
        frame(HEADERS, END_HEADERS, 2, &fields("/hello")),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 64]),
        frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
        vec![0xff; 64],
    ];
    let server = Server::start(limits());
    for fault in faults {
        let mut client = raw(&server);
        client.send(fault);
        client.until_closed();
    }
    assert!(server.answers());
}
