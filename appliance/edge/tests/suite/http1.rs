//! HTTP/1.1: round trips, limits of heads and bodies, and framing that two parsers could read in two ways.

use crate::harness::{BODY_LIMIT, Event, Server, limits};
use appliance_edge::Limits;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn requests_follow_one_another_on_one_connection() {
    let server = Server::start(limits());
    let mut client = server.client();
    for _ in 0..3 {
        assert_eq!(client.get("/hello").body, b"hello");
        assert_eq!(client.post("/echo", b"some text").body, b"some text");
    }
    assert_eq!(client.get("/nowhere").status, 404);
    assert_eq!(server.edge.counts().accepted, 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(limits());
    let mut client = server.client();
    let (hello, echo) =
        ("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n");
    client.send(format!("{hello}{echo}1{echo}2{hello}"));
    let bodies: Vec<_> = (0..4).map(|_| client.reply().body).collect();
    assert_eq!(bodies, [&b"hello"[..], b"1", b"2", b"hello"]);
}

#[test]
fn chunked_bodies_are_read_and_the_client_is_told_to_go_on() {
    let server = Server::start(limits());
    let mut client = server.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.send("2\r\nde\r\n0\r\n\r\n").reply().body, b"abcde");
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    assert_eq!(client.send("abc").reply().body, b"abc");
}

#[test]
fn a_body_may_be_as_long_as_its_limit_and_no_longer() {
    let server = Server::start(limits());
    assert_eq!(server.client().post("/echo", &[b'x'; BODY_LIMIT]).status, 200);
    assert_eq!(server.client().post("/echo", &[b'x'; BODY_LIMIT + 1]).status, 413);
    let chunk = format!("{BODY_LIMIT:x}\r\n{}\r\n", "x".repeat(BODY_LIMIT));
    let mut client = server.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.send(chunk).send("1\r\nx\r\n").reply().status, 413);
}

#[test]
fn a_length_too_large_is_refused_before_the_body_comes() {
    let server = Server::start(limits());
    let mut client = server.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n");
    assert_eq!(client.reply().status, 413);
    client.until_closed();
}

#[test]
fn a_client_that_sends_before_it_reads_still_gets_its_refusal() {
    let server = Server::start(limits());
    let reply = server.client().post("/echo", &vec![b'x'; 900 << 10]);
    assert_eq!(reply.status, 413);
}

#[test]
fn an_unread_body_breaks_nothing() {
    let server = Server::start(limits());
    let mut client = server.client();
    let reply = client.post("/unread", &[b'x'; 200 << 10]);
    assert_eq!(reply.body, b"unread");
    client.until_closed();
    assert!(server.answers());
}

#[test]
fn a_slow_body_times_out() {
    let server = Server::start(Limits { body_timeout: SHORT, ..limits() });
    let mut client = server.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.reply().status, 408);
    client.until_closed();
}

#[test]
fn heads_have_a_size_and_a_count() {
    let server = Server::start(limits());
    let fields = |count: usize| (0..count).map(|n| format!("a{n}: b\r\n")).collect::<String>();
    let mut client = server.client();
    assert_eq!(client.send(format!("GET /hello HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(63))).reply().status, 200);
    assert_eq!(client.send(format!("GET /hello HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(64))).reply().status, 431);
    client.until_closed();
    let long = |bytes: usize| format!("GET /hello HTTP/1.1\r\nHost: x\r\nlong: {}\r\n\r\n", "x".repeat(bytes));
    assert_eq!(server.client().send(long(15 << 10)).reply().status, 200);
    assert_eq!(server.client().send(long(17 << 10)).reply().status, 431);
    let mut endless = server.client();
    endless.send("GET /hello HTTP/1.1\r\nHost: x\r\nlong: ");
    while endless.try_send([b'x'; 4096]).is_ok() {}
    assert!(server.answers());
}

#[test]
fn a_client_that_goes_on_sending_still_gets_its_refusal() {
    let server = Server::start(limits());
    let mut client = server.client();
    client.try_send(format!("GET /hello HTTP/1.1\r\nHost: x\r\nlong: {}", "x".repeat(900 << 10))).unwrap();
    assert_eq!(client.reply().status, 431);
    client.until_closed();
}

#[test]
fn framing_with_two_readings_is_refused_and_the_connection_closed() {
    let server = Server::start(limits());
    let refused = [
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        "GET /hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/3.0\r\nHost: x\r\n\r\n",
        "\u{16}\u{3}\u{1}binary\r\n\r\n",
    ];
    for raw in refused {
        let mut client = server.client();
        client.send(raw);
        let text = String::from_utf8(client.until_closed()).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 "), "{raw:?} got {text:?}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{raw:?} was read as two requests: {text:?}");
    }
    let mut http2 = server.client();
    http2.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    http2.until_closed();
    assert!(server.answers());
}

#[test]
fn a_chunked_request_is_not_taken_behind_another() {
    let server = Server::start(limits());
    let mut client = server.client();
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    client.send(format!("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n{chunked}"));
    assert_eq!(client.reply().status, 200);
    let refused = client.reply();
    assert_eq!((refused.status, refused.closes()), (400, true));
    client.until_closed();
}

#[test]
fn a_slow_head_and_a_silent_client_are_cut() {
    let server = Server::start(Limits { head_timeout: SHORT, idle_timeout: SHORT, ..limits() });
    server.client().until_closed();
    let mut slow = server.client();
    slow.send("GET /hello HTTP/1.1\r\nHost: x\r\n");
    while slow.try_send("a: b\r\n").is_ok() {}
    let mut idle = server.client();
    assert_eq!(idle.get("/hello").status, 200);
    idle.until_closed();
}

#[test]
fn the_handler_is_dropped_when_its_client_leaves() {
    let server = Server::start(limits());
    for polite in [true, false] {
        let mut client = server.client();
        client.send("GET /hang HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(server.event(), Event::Called);
        if polite {
            client.stream.conn.send_close_notify();
            client.send("");
        }
        drop(client);
        assert_eq!(server.event(), Event::Dropped);
    }
}
