//! Ways to reach someone: sockets of every family, and what can be made of the one that is given.

use super::{Escape, SOCKET, call, text, untried, works};
use nix::{Result, libc};

fn socket(family: i32, kind: i32) -> Result<()> {
    call(libc::SYS_socket, [family as usize, kind as usize, 0])
}

/// An abstract address: `struct sockaddr_un`, a family and a name that begins with a zero.
const ADDRESS: &[u8] = b"\x01\0\0ember";

pub(super) const ALL: &[Escape] = &[
    works("socket AF_INET stream", || socket(libc::AF_INET, libc::SOCK_STREAM)),
    works("socket AF_INET datagram", || socket(libc::AF_INET, libc::SOCK_DGRAM)),
    works("socket AF_INET raw", || call(libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_RAW as usize, 1])),
    works("socket AF_UNIX", || socket(libc::AF_UNIX, libc::SOCK_STREAM)),
    works("socket AF_NETLINK", || socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    untried("socket AF_INET6", || socket(libc::AF_INET6, libc::SOCK_STREAM)),
    untried("socket AF_PACKET", || socket(libc::AF_PACKET, libc::SOCK_RAW)),
    untried("socket AF_VSOCK", || socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    untried("socket AF_ALG", || socket(libc::AF_ALG, libc::SOCK_SEQPACKET)),
    untried("socket AF_XDP", || socket(libc::AF_XDP, libc::SOCK_RAW)),
    untried("socket AF_BLUETOOTH", || socket(libc::AF_BLUETOOTH, libc::SOCK_RAW)),
    works("socketpair", || {
        let mut pair = [0_i32; 2];
        let [family, kind] = [libc::AF_UNIX, libc::SOCK_STREAM].map(|number| number as usize);
        call(libc::SYS_socketpair, [family, kind, 0, (&raw mut pair) as usize])
    }),
    untried("connect its socket elsewhere", || {
        call(libc::SYS_connect, [SOCKET, ADDRESS.as_ptr() as usize, ADDRESS.len()])
    }),
    untried("bind its socket", || call(libc::SYS_bind, [SOCKET, ADDRESS.as_ptr() as usize, ADDRESS.len()])),
    untried("listen on its socket", || call(libc::SYS_listen, [SOCKET, 1])),
    untried("accept from its socket", || call(libc::SYS_accept4, [SOCKET, 0, 0, 0])),
    untried("set an option of its socket", || {
        let one = 1_i32;
        let value = (&raw const one) as usize;
        call(libc::SYS_setsockopt, [SOCKET, libc::SOL_SOCKET as usize, libc::SO_PASSCRED as usize, value, 4])
    }),
    untried("send to another address", || {
        let [byte, address] = [text(c"x") as usize, ADDRESS.as_ptr() as usize];
        call(libc::SYS_sendto, [SOCKET, byte, 1, libc::MSG_NOSIGNAL as usize, address, ADDRESS.len()])
    }),
    untried("send out of band", || {
        call(libc::SYS_sendto, [SOCKET, text(c"x") as usize, 1, (libc::MSG_NOSIGNAL | libc::MSG_OOB) as usize, 0, 0])
    }),
    untried("send a descriptor", send_descriptor),
    untried("receive a descriptor", || {
        let mut message = Message::default();
        call(libc::SYS_recvmsg, [SOCKET, (&raw mut message) as usize, libc::MSG_DONTWAIT as usize])
    }),
    untried("send to a descriptor that is no socket of its own", || {
        call(libc::SYS_sendto, [2, text(c"x") as usize, 1, libc::MSG_NOSIGNAL as usize, 0, 0])
    }),
];

/// `struct msghdr`, as the kernel reads it.
#[repr(C)]
#[derive(Default)]
struct Message {
    name: [usize; 2],
    parts: [usize; 2],
    control: [usize; 2],
    flags: usize,
}

/// Hands descriptor 2 to the server.
fn send_descriptor() -> Result<()> {
    let byte = [text(c"x") as usize, 1];
    // Length, level and kind of a control message, and the descriptor.
    let control: [u32; 6] = [20, 0, libc::SOL_SOCKET as u32, libc::SCM_RIGHTS as u32, 2, 0];
    let parts = [(&raw const byte) as usize, 1];
    let message = Message { parts, control: [(&raw const control) as usize, 24], ..Message::default() };
    call(libc::SYS_sendmsg, [SOCKET, (&raw const message) as usize, libc::MSG_NOSIGNAL as usize])
}
