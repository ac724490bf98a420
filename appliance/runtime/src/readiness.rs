//! Waiting until a descriptor of any kind can be read (pidfd, eventfd, pipe, socket), without reading it.
//!
//! The library has no call for this. But a stream arms a poll in its ring as soon as it is made, and its first read waits
//! for that poll before it touches the descriptor. So: make a stream of a duplicate, poll its read once for the waker, and
//! when woken ask `poll(2)` whether the descriptor is ready. A stream is never polled twice, so it never gets to read: a
//! second read would eat a message. This leans on 0.9.0's inside; the version is pinned, and tests hold the promise.

use crate::UnixStream;
use futures_lite::{AsyncRead, future::poll_fn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

/// Waits until reading `fd` would not block: data, a closed peer, an ended process, or an error that reading will tell.
pub async fn readable(fd: impl AsFd) -> io::Result<()> {
    let mut armed = None;
    poll_fn(|cx| match is_readable(fd.as_fd()) {
        Ok(false) => arm(&mut armed, fd.as_fd(), cx),
        Ok(true) => Poll::Ready(Ok(())),
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

/// Replaces the armed stream by a fresh one, which is polled this once.
fn arm(armed: &mut Option<UnixStream>, fd: BorrowedFd<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let stream = armed.insert(UnixStream::from_fd(fd.try_clone_to_owned()?));
    let first_poll = Pin::new(stream).poll_read(cx, &mut [0]);
    debug_assert!(first_poll.is_pending(), "a fresh stream read before its poll fired");
    Poll::Pending
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
