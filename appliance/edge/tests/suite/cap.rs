//! Caps on connections: more are closed at once, and places come back.

use crate::harness::{Client, Server, limits, until_raw_closed};
use appliance_edge::Limits;

fn served(server: &Server) -> Client {
    let mut client = server.client();
    assert_eq!(client.get("/hello").body, b"hello");
    client
}

fn cap_of_three(limits: Limits) {
    let server = Server::start(limits);
    let mut live: Vec<_> = (0..3).map(|_| served(&server)).collect();
    for _ in 0..10 {
        until_raw_closed(server.raw());
    }
    let one = live.pop().unwrap();
    drop(one);
    server.wait_until(|counts| counts.connections <= 2);
    live.push(served(&server));
    assert!(live.iter_mut().all(|client| client.get("/hello").status == 200));
    assert_eq!(server.edge.counts().refused, 10);
}

#[test]
fn the_process_has_a_cap() {
    cap_of_three(Limits { connections_max: 3, ..limits() });
}

#[test]
fn an_address_has_a_cap() {
    cap_of_three(Limits { connections_per_address_max: 3, ..limits() });
}

#[test]
fn handshakes_have_a_cap() {
    let server = Server::start(Limits { handshakes_max: 2, ..limits() });
    let half = [server.raw(), server.raw()];
    server.wait_until(|counts| counts.connections >= 2);
    until_raw_closed(server.raw());
    drop(half);
    server.wait_until(|counts| counts.connections == 0);
    assert!(server.answers());
}
