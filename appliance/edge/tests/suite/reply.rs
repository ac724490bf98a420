//! Replies: streams that follow their client, readers that do not read, and panics.

use crate::harness::{Event, Server, limits};
use appliance_edge::Limits;
use http_body_util::BodyExt;
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn each_item_arrives_before_the_next_is_made() {
    let mut server = Server::start(limits());
    let mut client = server.client();
    client.send("GET /items HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200 "), "the head does not wait for the first item");
    for item in ["first", "second", "third"] {
        server.send_item(item);
        assert_eq!(client.chunk().unwrap(), item.as_bytes());
    }
    server.items = None;
    assert_eq!(client.chunk(), None);
    assert_eq!(server.event(), Event::StreamDropped);
    assert_eq!(client.get("/hello").body, b"hello");
}

#[test]
fn each_item_arrives_before_the_next_is_made_over_http2() {
    let mut server = Server::start(limits());
    let items = server.items.take().unwrap();
    server.http2(|mut client| async move {
        let mut reply = client.request("/items", "").await.unwrap().into_body();
        for item in ["first", "second", "third"] {
            items.send(item.into()).unwrap();
            assert_eq!(reply.frame().await.unwrap().unwrap().into_data().unwrap(), item);
        }
        drop(items);
        assert!(reply.collect().await.unwrap().to_bytes().is_empty());
    });
}

#[test]
fn a_stream_is_dropped_when_its_client_leaves() {
    let server = Server::start(limits());
    for _ in 0..2 {
        let mut client = server.client();
        client.send("GET /items HTTP/1.1\r\nHost: x\r\n\r\n").head();
        server.send_item("first");
        client.chunk().unwrap();
        drop(client);
        assert_eq!(server.event(), Event::StreamDropped);
    }
}

#[test]
fn a_client_that_does_not_read_is_not_written_to_without_bound_and_is_cut() {
    let server = Server::start(Limits { write_timeout: SHORT, ..limits() });
    let mut client = server.client();
    client.send("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n").head();
    assert_eq!(server.event(), Event::StreamDropped);
    // What it was asked for: the sockets' own buffers and ours, and no more for as long as it took to be cut.
    let bytes = server.polled.load(SeqCst) * (16 << 10);
    assert!(bytes < 16 << 20, "{bytes} bytes were made for a client that reads none");
    server.wait_until(|counts| counts.cut == 1);
}

#[test]
fn a_client_that_does_not_read_a_whole_reply_is_cut() {
    let server = Server::start(Limits { write_timeout: SHORT, ..limits() });
    let mut client = server.client();
    client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n").head();
    server.wait_until(|counts| counts.connections == 0);
    assert!(client.until_closed().len() < 32 << 20);
}

#[test]
fn a_client_that_grants_no_window_is_cut_over_http2() {
    let server = Server::start(Limits { write_timeout: SHORT, ..limits() });
    server.http2(|mut client| {
        let events = server.events.clone();
        async move {
            let _unread = client.request("/flood", "").await.unwrap();
            assert_eq!(events.recv_async().await.unwrap(), Event::StreamDropped);
        }
    });
    let bytes = server.polled.load(SeqCst) * (16 << 10);
    assert!(bytes < 16 << 20, "{bytes} bytes were made for a client that reads none");
}

#[test]
fn a_slow_but_steady_reader_gets_everything() {
    let server = Server::start(limits());
    let mut client = server.client();
    client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.reply().body.len(), 32 << 20);
}

#[test]
fn a_panic_is_answered_and_ends_nothing_else() {
    let server = Server::start(limits());
    let mut client = server.client();
    let reply = client.get("/panic");
    assert_eq!((reply.status, reply.body), (500, b"Panicked".to_vec()));
    assert_eq!(client.get("/hello").body, b"hello");
    assert_eq!(server.edge.counts().panics, 1);
}

#[test]
fn a_stream_that_panics_does_not_look_whole() {
    let server = Server::start(limits());
    let mut client = server.client();
    client.send("GET /panic-midway HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!client.until_closed().ends_with(b"0\r\n\r\n"), "a broken reply looked whole");
    assert!(server.answers());
}
