//! Tasks of the current core, none of which can take its executor down, and work that blocks.

use futures_lite::FutureExt;
use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    task::{Context, Poll},
};

/// A future panicked; the panic hook has told where.
pub struct Panicked(Box<dyn Any + Send>);

impl Panicked {
    /// Goes on with the panic in this task.
    pub fn resume(self) -> ! {
        panic::resume_unwind(self.0)
    }
}

impl fmt::Debug for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.downcast_ref::<&str>().copied();
        let text = text.or_else(|| self.0.downcast_ref::<String>().map(String::as_str));
        f.debug_tuple("Panicked").field(&text.unwrap_or("not a text")).finish()
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task panicked")
    }
}

impl std::error::Error for Panicked {}

/// Turns a panic of `future` into an error. The future is not polled again, only dropped.
pub async fn catch_unwind<F: Future>(future: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(Panicked)
}

/// Runs `future` on this core to its end. If it panics, it ends alone.
///
/// The first poll may happen inside this call: hold no borrow across it that the future takes too.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(guarded(future)).detach();
}

/// Runs `future` on this core for as long as the [`Task`] is held.
pub fn spawn_owned<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(glommio::spawn_local(catch_unwind(future)))
}

async fn guarded(future: impl Future<Output = ()>) {
    if let Err(panicked) = catch_unwind(future).await {
        tracing::error!(?panicked, "a task panicked and was dropped");
    }
}

/// A task that ends when this is dropped. Awaiting it gives its output.
#[must_use = "a task that is not held is dropped"]
#[derive(Debug)]
pub struct Task<T>(glommio::Task<Result<T, Panicked>>);

impl<T> Task<T> {
    /// Ends the task and waits until its future is dropped; gives the output if it had ended before.
    pub async fn cancel(self) -> Option<Result<T, Panicked>> {
        self.0.cancel().await
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Panicked>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Runs `work` on a thread for work that blocks, of which each core has two. A panic of `work` goes on in this task.
pub async fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // Caught on the thread, which would die of it and leave this task waiting for ever.
    let caught = move || panic::catch_unwind(AssertUnwindSafe(work)).map_err(Panicked);
    glommio::executor().spawn_blocking(caught).await.unwrap_or_else(|panicked| panicked.resume())
}
