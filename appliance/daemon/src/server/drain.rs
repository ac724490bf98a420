//! Taking the box out of a service and back: `/ember/v1/drain`.
//!
//! ```text
//!  serving ──POST──▶ draining ──DELETE, or a start of the server──▶ serving
//!     └───────────────┴──── the supervisor's Stop ───▶ stopping
//! ```
//! Draining changes what a load balancer is told ([`super::agent`]) and nothing else: who calls is still answered, since the
//! load balancer hears of it at its next check only. When nothing runs any more, the box can be stopped unseen.

use super::{
    handler::Call,
    reply::{self, Answered},
};
use appliance_api::ApiError;
use appliance_pool::View;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the box is in service.
#[derive(Debug, Default)]
pub(super) struct Service {
    draining: AtomicBool,
    stopping: AtomicBool,
}

impl Service {
    /// An operator wants it out.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The server ends once its requests have.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The server is about to end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// `GET /ember/v1/drain`
pub(super) async fn show(call: &Call) -> Answered {
    told(call).await
}

/// `POST /ember/v1/drain`
pub(super) async fn begin(call: &Call) -> Answered {
    set(call, true).await
}

/// `DELETE /ember/v1/drain`
pub(super) async fn end(call: &Call) -> Answered {
    set(call, false).await
}

async fn set(call: &Call, draining: bool) -> Answered {
    if call.state.service.draining.swap(draining, Ordering::Relaxed) != draining {
        tracing::info!(draining, "set by an operator");
    }
    told(call).await
}

async fn told(call: &Call) -> Answered {
    let view = call.state.pool.view().await.map_err(|lost| ApiError::unavailable(lost.to_string(), 1))?;
    let draining = call.state.service.is_draining();
    Ok(reply::json(&serde_json::json!({ "draining": draining, "requests": requests(&view) })))
}

/// Requests that run or wait.
fn requests(view: &View) -> usize {
    let running: u32 = view.instances.iter().map(|instance| instance.slots_busy).sum();
    running as usize + waiting(view)
}

/// Requests that wait.
pub(super) fn waiting(view: &View) -> usize {
    view.queues.iter().map(|queue| queue.interactive + queue.batch).sum()
}
