//! A thousand connections that mean no good leave the server answering and its memory flat.
//!
//! The server's limits are set low, so that what only waits is thrown out soon, and the batches stay below the cap on
//! connections of one address, so that good requests get through in between.

use std::{
    io::{Read, Write},
    net::TcpStream,
};
use tests::{Ember, Role, is_closed, tcp, until};

const LIMITS: &str = "[limits]\nhandshake_timeout = \"300ms\"\nheader_timeout = \"300ms\"\nidle_timeout = \"1s\"\n";

/// Connections at once; a thousand in all.
const BATCH: usize = 100;
const BATCHES: usize = 10;

/// What the server's memory may grow by between the first batch and the last.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

/// Bytes that look random and are the same every time (xorshift).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A TLS record that begins a ClientHello and never ends it.
fn half_a_hello(seed: u64) -> Vec<u8> {
    let mut record = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    record.extend(noise(seed, 64));
    record
}

/// Opens one bad connection, of a kind that goes with its number.
fn misbehave(ember: &Ember, n: usize) -> Box<dyn Read> {
    let seed = n as u64;
    match n % 7 {
        0 => plain(ember, &noise(seed, 400)),
        1 => plain(ember, &half_a_hello(seed)),
        2 => plain(ember, b""),
        3 => plain(ember, b"GET / HTTP/1.1\r\nhost: plain\r\n\r\n"),
        4 => secured(ember, "GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "),
        5 => secured(ember, format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(100 << 10))),
        _ => secured(ember, noise(seed, 2000)),
    }
}

fn plain(ember: &Ember, bytes: &[u8]) -> Box<dyn Read> {
    let mut socket = tcp(ember.address());
    // The server may have thrown it out already, which is as good.
    let _ = socket.write_all(bytes);
    Box::new(socket)
}

/// The same after a good handshake.
fn secured(ember: &Ember, bytes: impl AsRef<[u8]>) -> Box<dyn Read> {
    let mut raw = ember.raw();
    raw.send(bytes);
    Box::new(raw)
}

fn batch(ember: &Ember, number: usize) {
    let bad: Vec<_> = (0..BATCH).map(|n| misbehave(ember, number * BATCH + n)).collect();
    ember.client().without_key().get("/health").expect(200);
    assert!(bad.into_iter().all(|mut connection| is_closed(&mut connection)), "one is left hanging");
}

#[test]
fn a_thousand_bad_connections_leave_no_trace() {
    let mut ember = Ember::start_with(LIMITS);
    let server = ember.process(Role::Server);
    batch(&ember, 0);
    let warm_bytes = server.resident_bytes();
    (1..=BATCHES).for_each(|number| batch(&ember, number));
    let grown_bytes = server.resident_bytes().saturating_sub(warm_bytes);
    assert!(grown_bytes < GROWTH_BYTES_MAX, "the server grew by {} KiB", grown_bytes >> 10);
    assert!(server.is_alive(), "it is still the same server");
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn more_connections_than_allowed_are_turned_away() {
    let mut ember = Ember::start_with("[limits]\nconnections_per_address = 8\nhandshake_timeout = \"2s\"\n");
    let server = ember.process(Role::Server);
    let mut crowd: Vec<TcpStream> = (0..40).map(|_| tcp(ember.address())).collect();
    assert!(crowd.iter_mut().all(is_closed), "one is left hanging");
    until("the server answers again", || {
        let answer = ember.client().without_key().try_get("/health").ok()?;
        (answer.status == 200).then_some(())
    });
    assert!(server.is_alive());
    ember.stop();
}

#[test]
fn requests_that_blur_borders_are_refused() {
    let ember = Ember::start();
    let cases = [
        (
            "both lengths",
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        ),
        ("a length that is none", "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello"),
        ("folded headers", "GET /health HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c\r\n\r\n"),
        ("a space before the colon", "GET /health HTTP/1.1\r\nhost : x\r\n\r\n"),
        ("a bad version", "GET /health HTTP/3.7\r\nhost: x\r\n\r\n"),
    ];
    for (what, request) in cases {
        let mut raw = ember.raw();
        raw.send(request);
        let status = raw.reply().map(|reply| reply.status);
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{what}: {status:?}");
    }
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}
