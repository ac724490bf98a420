//! Where the service listens: where `machine.toml` says, if this machine has that address. One that nobody can reach, and
//! that starts again and again for it, is worse than one that answers on all addresses and says so.

use crate::console::say;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long an address may take to appear.
const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A port to reach; nothing is sent.
const DISCARD: u16 = 9;

/// `wanted` once this machine has it; all addresses where it never does. `waiting` is called again and again meanwhile.
pub(crate) fn reachable(wanted: SocketAddr, waiting: impl FnMut()) -> SocketAddr {
    reachable_within(wanted, WAIT_MAX, is_here, waiting)
}

fn reachable_within(
    wanted: SocketAddr,
    wait: Duration,
    is_here: impl Fn(IpAddr) -> bool,
    mut waiting: impl FnMut(),
) -> SocketAddr {
    let until = Instant::now() + wait;
    loop {
        if wanted.ip().is_unspecified() || is_here(wanted.ip()) {
            return wanted;
        }
        if Instant::now() >= until {
            let all = everywhere(wanted);
            say(format_args!("this machine has no address {}: it listens on all, {all}", wanted.ip()));
            return all;
        }
        waiting();
        sleep(LOOK_EVERY);
    }
}

/// Whether the kernel lets somebody listen there, and reaches him: before the first interface is up it lets anybody listen
/// anywhere.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).and_then(|socket| socket.connect((address, DISCARD))).is_ok()
}

fn everywhere(address: SocketAddr) -> SocketAddr {
    let ip = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, address.port())
}

/// Whether both can be listened on at once.
pub(crate) fn are_apart(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != other.port() || (one.ip() != other.ip() && !everywhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_is_absent_gives_way_to_all() {
        let found = |wanted: &str| reachable_within(address(wanted), Duration::ZERO, is_here, || {}).to_string();
        assert_eq!(found("127.0.0.1:8443"), "127.0.0.1:8443");
        assert_eq!(found("0.0.0.0:8443"), "0.0.0.0:8443");
        // Of a net that is for documents only.
        assert_eq!(found("192.0.2.7:8443"), "0.0.0.0:8443");
        assert_eq!(found("[2001:db8::7]:8443"), "[::]:8443");
    }

    /// As PID 1 finds it: no interface is up. Needs root.
    #[test]
    fn without_a_network_no_address_is_there() {
        let looked = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ["192.0.2.7", "127.0.0.1", "2001:db8::7"].map(|ip| is_here(ip.parse().unwrap()))
        });
        assert_eq!(looked.join().unwrap(), [false; 3]);
    }

    #[test]
    fn an_address_that_comes_late_is_waited_for() {
        let looks = std::cell::Cell::new(0);
        let wanted = address("192.0.2.7:8443");
        let late = |_| looks.get() > 1;
        assert_eq!(reachable_within(wanted, WAIT_MAX, late, || looks.set(looks.get() + 1)), wanted);
        assert_eq!(looks.get(), 2, "who waits is heard of each time");
    }

    #[test]
    fn two_that_listen_everywhere_need_two_ports() {
        assert!(are_apart(address("192.0.2.7:8443"), address("192.0.2.8:8443")));
        assert!(!are_apart(address("0.0.0.0:8443"), address("192.0.2.8:8443")));
        assert!(are_apart(address("0.0.0.0:8443"), address("0.0.0.0:9443")));
    }
}
