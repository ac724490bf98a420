//! Sockets: listeners of one address for several cores, and streams that wait in the ring.
//!
//! Streams implement the `futures-io` traits. They are driven by readiness, so no buffer is ever lent to the kernel and a
//! read or write may be dropped at any time. Flushing is a no-op here and must stay one: TLS above loses its handshake
//! flush when it is deferred.
#![allow(unsafe_code)]

use crate::readable;
use futures_lite::{AsyncRead, AsyncWrite};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
};

/// Connections that the kernel holds for a core that has not accepted them yet.
const BACKLOG: i32 = 1024;

/// `count` listeners of one address, among which the kernel spreads connections. Needs no executor.
///
/// With port 0 the system picks one port for all. Accepting is `listeners(…)[core]` → [`TcpListener::from_std`].
pub fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let mut made: Vec<std::net::TcpListener> = Vec::with_capacity(count);
    for _ in 0..count {
        let address = made.first().map_or(Ok(address), std::net::TcpListener::local_addr)?;
        made.push(listener(address)?);
    }
    Ok(made)
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    // A restart must not wait for the last life's connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpListener(std::net::TcpListener);

impl TcpListener {
    /// Takes a listening socket over and makes it non-blocking.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The address listened on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next connection. Dropping this future loses none: the kernel keeps what was not returned.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.0.accept() {
                Ok((stream, peer)) => return Ok((TcpStream::from_std(stream), peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readable(&self.0).await?,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Implements reading and writing for a newtype over one of the library's streams.
macro_rules! stream {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_read(cx, buf)
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(cx, buf)
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_close(cx)
            }
        }
    };
}

/// A TCP connection of this core's executor.
#[derive(Debug)]
pub struct TcpStream(glommio::net::TcpStream);

impl TcpStream {
    /// Takes a connected socket over. Must be called on an executor.
    pub fn from_std(stream: std::net::TcpStream) -> Self {
        // SAFETY: needed because the library takes a foreign socket only as a bare number. `into_raw_fd` gives up an
        // open descriptor that nobody else owns, and the library's stream becomes its one owner.
        Self(unsafe { glommio::net::TcpStream::from_raw_fd(stream.into_raw_fd()) })
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: needed because the library lends only the bare number. The stream owns that descriptor and closes it
        // when dropped, and the loan cannot outlive `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// A Unix stream connection of this core's executor.
#[derive(Debug)]
pub struct UnixStream(glommio::net::UnixStream);

impl UnixStream {
    /// Takes a connected socket over. Must be called on an executor.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // SAFETY: needed because the library takes a foreign socket only as a bare number. `into_raw_fd` gives up an
        // open descriptor that nobody else owns, and the library's stream becomes its one owner.
        Self(unsafe { glommio::net::UnixStream::from_raw_fd(fd.into_raw_fd()) })
    }
}

stream!(TcpStream);
stream!(UnixStream);
