//! The drain: what is in flight finishes, what is not ends, and what takes too long is cut.

use crate::harness::{Event, Server, limits};
use appliance_edge::Served;
use http::StatusCode;
use std::{net::TcpStream, time::Duration};

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn requests_in_flight_finish_and_nothing_new_is_taken() {
    let mut server = Server::start(limits());
    let mut idle = server.client();
    assert_eq!(idle.get("/hello").status, 200);
    let mut busy = server.client();
    busy.send("GET /gate HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(server.event(), Event::Called);
    server.edge.drain(LONG);
    idle.until_closed();
    server.send_item("finished");
    let reply = busy.reply();
    assert_eq!((reply.body.as_slice(), reply.closes()), (&b"finished"[..], true));
    busy.until_closed();
    assert_eq!(server.join().cut, 0);
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn http2_requests_in_flight_finish() {
    let mut server = Server::start(limits());
    server.http2(|mut client| {
        let (edge, events, items) = (server.edge.clone(), server.events.clone(), server.items.clone().unwrap());
        async move {
            let pending = tokio::spawn(client.request("/gate", ""));
            assert_eq!(events.recv_async().await.unwrap(), Event::Called);
            edge.drain(LONG);
            items.send("finished".into()).unwrap();
            assert_eq!(pending.await.unwrap().unwrap().status(), StatusCode::OK);
            client.connection.await.unwrap().unwrap();
        }
    });
    assert_eq!(server.join().cut, 0);
}

#[test]
fn what_takes_too_long_is_cut() {
    let mut server = Server::start(limits());
    let mut hanging = server.client();
    hanging.send("GET /hang HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(server.event(), Event::Called);
    let half_open = server.raw();
    server.wait_until(|counts| counts.connections >= 2);
    server.edge.drain(Duration::from_millis(20));
    assert_eq!(server.event(), Event::Dropped);
    hanging.until_closed();
    drop(half_open);
    // Two connections and one request.
    assert_eq!(server.join(), Served { draining: 3, cut: 3 });
}
