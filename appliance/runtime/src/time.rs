//! Waiting for time to pass. Each wait is a timer of its own: for thousands of deadlines use one coarse sweep instead.

use futures_lite::FutureExt;
use std::{future::Future, time::Duration};

/// The time was up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    glommio::timer::Timer::new(duration).await;
}

/// The output of `future`, which is dropped when `duration` passes first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let elapsed = async {
        sleep(duration).await;
        Err(Elapsed)
    };
    async { Ok(future.await) }.or(elapsed).await
}
