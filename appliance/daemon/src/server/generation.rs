//! Work of one request in the pool: submitted, followed, and accounted for, until it ends or is dropped.
//!
//! Invariant: what a runner says is checked for its place here, so that a reply is never made from a broken sequence. A
//! dropped [`Generation`] cancels its work. Prompts of one request run one after the other: they share its deadline, and
//! a request takes one slot however many it brings.

use super::{desk::Meter, functions::Function, handler::Call, state::State, terms::Asked};
use appliance_admit::Class;
use appliance_api::{ApiError, finish_name};
use appliance_pool::{Dispatched, Event, Failed, Submission, Terms, Waits, Work};
use appliance_runtime::timeout;
use sandbox_wire::{
    runner::{FinishReason, FromRunner, Generate, Text},
    warden::WardenError,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Time that the queue has to say that a request's deadline passed there.
const QUEUE_GRACE: Duration = Duration::from_millis(20);
/// Why an answer ends that there is no more money for.
const LENGTH: &str = "length";
/// Pause that is asked for where nothing better is known, s.
const RETRY_AFTER_S: u64 = 1;

/// The answers to one request's prompts, one after the other.
pub(super) struct Generation {
    pub(super) state: Arc<State>,
    pub(super) function: Arc<Function>,
    pub(super) meter: Meter,
    asked: Asked,
    terms: Terms,
    prompt_param: &'static str,
    prompts: std::vec::IntoIter<Generate>,
    current: Option<Submission>,
    index: usize,
    /// Whether the current prompt was accepted.
    started: bool,
    /// When the first of them began to run.
    ran_since: Option<Instant>,
    /// Whether the current prompt's time is up because the money is.
    ends_by_budget: bool,
    /// Whether the money was used up; prompts that were not asked yet are answered by nothing.
    out_of_money: bool,
}

/// What comes next.
pub(super) enum Step {
    /// The prompt is accepted and being fed. Comes again when the answer is begun again; what came before is void.
    Started,
    /// A piece of the answer.
    Text(Text),
    /// The answer to this prompt ended so.
    Finished(&'static str),
}

impl Generation {
    /// Nothing is asked of the pool before [`next`](Self::next) is called. `prompt_param` is the prompts' field.
    pub(super) fn new(
        state: Arc<State>,
        function: Arc<Function>,
        meter: Meter,
        asked: Asked,
        terms: Terms,
        prompt_param: &'static str,
        prompts: Vec<Generate>,
    ) -> Self {
        Self {
            state,
            function,
            meter,
            asked,
            terms,
            prompt_param,
            prompts: prompts.into_iter(),
            current: None,
            index: 0,
            started: false,
            ran_since: None,
            ends_by_budget: false,
            out_of_money: false,
        }
    }

    /// Whether the next step is that a prompt is accepted, or the end.
    pub(super) fn waits(&self) -> bool {
        !self.started
    }

    /// Whether the next step may be long in coming: it waits, or is batch, which may be paused or begun again.
    pub(super) fn may_stall(&self) -> bool {
        self.waits() || self.terms.class == Class::Batch
    }

    /// Where the current prompt waits for its slot; `None` when it does not.
    pub(super) async fn place(&self) -> Option<Waits> {
        self.current.as_ref()?.waits().await
    }

    /// Which prompt the last step belongs to.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The next step; `None` after the last prompt's answer.
    ///
    /// # Errors
    /// What the caller is told; nothing more comes then.
    pub(super) async fn next(&mut self) -> Result<Option<Step>, ApiError> {
        let step = self.advance().await;
        if step.is_err() {
            self.current = None;
            self.prompts = Vec::new().into_iter();
        }
        self.meter.check(step)
    }

    async fn advance(&mut self) -> Result<Option<Step>, ApiError> {
        loop {
            let Some(current) = &mut self.current else {
                if self.out_of_money {
                    return Ok(self.answer_nothing());
                }
                match self.prompts.next() {
                    None => return Ok(None),
                    Some(generate) => self.submit(generate)?,
                }
                continue;
            };
            match current.next().await {
                Event::Dispatched(dispatched) => {
                    self.ran_since.get_or_insert_with(Instant::now);
                    self.state.saw(self.function.model, &dispatched.model);
                    self.meter.dispatched(&dispatched);
                }
                Event::Corrected => self.meter.corrected(),
                Event::Reply(message) => return self.take(message).map(Some),
                Event::Failed(failed) => return Err(refused(failed)),
            }
        }
    }

    /// The next step of a prompt that there is no money for.
    fn answer_nothing(&mut self) -> Option<Step> {
        if std::mem::take(&mut self.started) {
            return Some(Step::Finished(LENGTH));
        }
        self.prompts.next()?;
        self.index += 1;
        self.started = true;
        Some(Step::Started)
    }

    /// Ends the answer where it is.
    fn stop_by_budget(&mut self) -> Step {
        (self.current, self.started, self.out_of_money) = (None, false, true);
        self.meter.stopped_by_budget();
        Step::Finished(LENGTH)
    }

    fn submit(&mut self, generate: Generate) -> Result<(), ApiError> {
        let limit_ms = self.function.manifest.limits.timeout_ms;
        let limit = Duration::from_millis(limit_ms);
        let left = limit.saturating_sub(self.ran_since.map_or(Duration::ZERO, |since| since.elapsed()));
        if left.is_zero() {
            return Err(ApiError::deadline_exceeded(limit_ms));
        }
        self.asked.check_time()?;
        let affordable = self.meter.affordable_ms(self.function.lease_bytes());
        // Of what passes, a request beside others pays its part: this is when the money is used up at the latest, and before
        // that each piece of text is looked at. A deadline of 0 is none: a last millisecond is not charged.
        let beside = u64::from(self.function.manifest.scale.concurrency);
        let affordable = affordable.map(|ms| Duration::from_millis(ms.saturating_mul(beside).max(1)));
        self.ends_by_budget = affordable.is_some_and(|affordable| affordable < left);
        let left = affordable.map_or(left, |affordable| affordable.min(left));
        if self.ran_since.is_some() {
            self.index += 1;
        }
        let work = Work::Generate(Box::new(Generate { deadline_ms: left.as_millis() as u64, ..generate }));
        let name = self.function.manifest.name.clone();
        let submission = self.state.pool.submit_on(name, work, self.terms.clone()).map_err(refused)?;
        self.meter.submitted(submission.tab());
        self.current = Some(submission);
        Ok(())
    }

    /// When the function's time is up.
    fn time_up(&self) -> Instant {
        let limit = Duration::from_millis(self.function.manifest.limits.timeout_ms);
        self.ran_since.unwrap_or_else(Instant::now) + limit
    }

    fn take(&mut self, message: FromRunner) -> Result<Step, ApiError> {
        match message {
            FromRunner::Started { prompt_tokens, cached_tokens, .. } => {
                self.started = true;
                self.meter.started(prompt_tokens, cached_tokens);
                Ok(Step::Started)
            }
            FromRunner::Text { text, .. } => {
                if self.meter.is_spent() {
                    return Ok(self.stop_by_budget());
                }
                self.meter.text(text.tokens);
                Ok(Step::Text(text))
            }
            FromRunner::Finished { finished, .. } => {
                self.current = None;
                self.started = false;
                self.meter.finished(&finished);
                let deadline = finished.reason == FinishReason::Deadline;
                if deadline && self.ends_by_budget && self.asked.check_time().is_ok() {
                    return Ok(self.stop_by_budget());
                }
                if finished.reason == FinishReason::Deadline && self.asked.ends_before(self.time_up()) {
                    return Err(self.asked.passed());
                }
                finish_name(finished.reason, self.function.manifest.limits.timeout_ms).map(Step::Finished)
            }
            FromRunner::Failed { failure, .. } => Err(ApiError::from_failure(failure, self.prompt_param)),
            _ => Err(out_of_place()),
        }
    }
}

/// Asks for work that is answered by one message. `param` is the field that the work's input came in.
///
/// # Errors
/// What the caller is told.
pub(super) async fn ask(
    call: &Call,
    function: &Function,
    work: Work,
    param: &str,
    meter: &mut Meter,
) -> Result<(Dispatched, FromRunner), ApiError> {
    call.asked.check_time()?;
    let terms = call.asked.terms(&call.caller.key);
    let mut submission = call.state.pool.submit_on(function.manifest.name.clone(), work, terms).map_err(refused)?;
    meter.submitted(submission.tab());
    let mut how = None;
    loop {
        let event = match call.asked.left() {
            None => submission.next().await,
            // In the queue it ends by itself; what a runner computes at once does not look at the time.
            Some(left) => timeout(left + QUEUE_GRACE, submission.next()).await.map_err(|_| call.asked.passed())?,
        };
        match event {
            Event::Dispatched(dispatched) => {
                call.state.saw(function.model, &dispatched.model);
                meter.dispatched(&dispatched);
                how = Some(dispatched);
            }
            Event::Corrected => meter.corrected(),
            Event::Reply(FromRunner::Failed { failure, .. }) => return Err(ApiError::from_failure(failure, param)),
            Event::Reply(message) => return how.map(|how| (how, message)).ok_or_else(out_of_place),
            Event::Failed(failed) => return Err(refused(failed)),
        }
    }
}

/// A runner that answers with what was not asked for.
pub(super) fn out_of_place() -> ApiError {
    ApiError::runner_failed("the instance answered out of place")
}

/// What a caller is told whom the pool does not serve.
pub(super) fn refused(failed: Failed) -> ApiError {
    let reason = reason(&failed);
    told(failed).because(reason)
}

/// What a refusal of the pool's is counted as.
const fn reason(failed: &Failed) -> &'static str {
    match failed {
        Failed::NoFunction => "not_deployed",
        Failed::QueueFull { .. } => "queue_full",
        Failed::DeadlineTooSoon { .. } => "deadline_too_soon",
        Failed::Overloaded => "overloaded",
        Failed::QueueTimeout { .. } => "queue_timeout",
        Failed::TooLarge { .. } => "too_large",
        Failed::Failing { .. } => "failing",
        Failed::WakeFailed(_) => "wake_failed",
        Failed::InstanceLost { .. } => "instance_lost",
    }
}

fn told(failed: Failed) -> ApiError {
    let message = failed.to_string();
    match failed {
        Failed::NoFunction => ApiError::not_found(message),
        // 429 is what a key may use; these are what the box can do, and a later try may be served.
        Failed::QueueFull { retry_after_s, .. }
        | Failed::DeadlineTooSoon { retry_after_s, .. }
        | Failed::Failing { retry_after_s, .. }
        | Failed::QueueTimeout { retry_after_s, .. } => ApiError::unavailable(message, retry_after_s),
        Failed::Overloaded
        | Failed::TooLarge { .. }
        | Failed::WakeFailed(
            WardenError::InstancesMax { .. }
            | WardenError::Sandbox { .. }
            | WardenError::Storage { .. }
            | WardenError::SnapshotMissing { .. }
            | WardenError::SnapshotInvalid { .. }
            | WardenError::CaptureFailed { .. }
            | WardenError::BadRequest { .. },
        ) => ApiError::unavailable(message, RETRY_AFTER_S),
        Failed::WakeFailed(_) | Failed::InstanceLost { .. } => ApiError::runner_failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_whose_fault_it_is() {
        let retry_after_s = 7;
        let told = |failed| {
            let error = refused(failed);
            (error.status, error.retry_after_s)
        };
        assert_eq!(told(Failed::NoFunction), (404, None));
        assert_eq!(told(Failed::QueueFull { queue_max: 1, retry_after_s }), (503, Some(7)));
        assert_eq!(told(Failed::DeadlineTooSoon { estimate_ms: 2, left_ms: 1, retry_after_s }), (503, Some(7)));
        assert_eq!(told(Failed::QueueTimeout { waited_ms: 1, retry_after_s }), (503, Some(7)));
        let failing = Failed::Failing { failures: 2, reason: "x".to_owned(), retry_after_s };
        assert_eq!(told(failing), (503, Some(7)));
        assert_eq!(told(Failed::Overloaded), (503, Some(RETRY_AFTER_S)));
        let full = WardenError::InstancesMax { limit: 1 };
        assert_eq!(told(Failed::WakeFailed(full)), (503, Some(RETRY_AFTER_S)));
        let broken = WardenError::LoadFailed { reason: "x".to_owned() };
        assert_eq!(told(Failed::WakeFailed(broken)), (502, None));
        assert_eq!(told(Failed::InstanceLost { reason: "x".to_owned() }), (502, None));
    }
}
