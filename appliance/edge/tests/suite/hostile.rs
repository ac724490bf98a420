//! Garbage in bulk leaves the server answering.

use crate::harness::{Server, limits, until_raw_closed};
use appliance_edge::Limits;
use std::{io::Write, time::Duration};

const CONNECTIONS: usize = 300;
const SHORT: Duration = Duration::from_millis(50);

/// Bytes that look random and are the same in every run.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..256).map(|_| next()).collect()
}

#[test]
fn garbage_connections_leave_it_answering() {
    let server = Server::start(Limits { handshake_timeout: SHORT, head_timeout: SHORT, ..limits() });
    let mut steady = server.client();
    let mut held = Vec::new();
    for n in 0..CONNECTIONS {
        match n % 4 {
            0 => drop(server.raw().write_all(&noise(n as u64))),
            1 => held.push(server.raw()),
            2 => {
                let record = [&[0x16, 3, 1, 0, 200][..], &noise(n as u64)[..200]].concat();
                let mut stream = server.raw();
                drop(stream.write_all(&record));
                held.push(stream);
            }
            _ => drop(server.client().try_send(noise(n as u64))),
        }
        if n % 30 == 0 {
            assert_eq!(steady.get("/hello").body, b"hello");
        }
    }
    held.into_iter().for_each(until_raw_closed);
    assert!(server.answers());
    drop(steady);
    server.wait_until(|counts| counts.connections == 0);
}
