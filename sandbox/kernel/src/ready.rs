//! Waiting for the first of several descriptors, until a deadline.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{os::fd::BorrowedFd, time::Instant};

/// Waits until one can be read or its peer is gone; says which. All `false`: the deadline has passed. Places with `None`
/// are never ready.
///
/// # Errors
/// The kernel's.
pub fn readable<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    deadline: Option<Instant>,
) -> Result<[bool; N], Errno> {
    let present = descriptors.iter().flatten();
    let mut polled: Vec<_> = present.map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, timeout(deadline)) {
            Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    let mut polled = polled.iter();
    Ok(descriptors.map(|place| place.is_some() && polled.next().is_some_and(|fd| fd.any().unwrap_or(true))))
}

/// Rounded up to a millisecond, so that a wait does not end a moment too early and spin.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1_000);
    PollTimeout::try_from(ms.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{send_now, stream_pair};
    use std::os::fd::AsFd;

    #[test]
    fn says_which_and_when_time_is_up() {
        let (first, _peer) = stream_pair().unwrap();
        let (second, peer) = stream_pair().unwrap();
        assert_eq!(readable([Some(first.as_fd()), None, Some(second.as_fd())], Some(Instant::now())), Ok([false; 3]));
        send_now(&peer, b"x").unwrap();
        assert_eq!(readable([Some(first.as_fd()), None, Some(second.as_fd())], None), Ok([false, false, true]));
    }

    #[test]
    fn a_peer_that_left_is_news() {
        let (here, there) = stream_pair().unwrap();
        drop(there);
        assert_eq!(readable([Some(here.as_fd())], None), Ok([true]));
    }
}
