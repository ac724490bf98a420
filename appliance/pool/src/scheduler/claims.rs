//! Puts what can be true of a prompt's tokens in place of what a runner claims, before anybody counts with it.

use super::{Event, InstanceId, Scheduler, Ticket, Work};
use crate::{
    claims::{Claim, LONGEST, Least, head},
    seen::Known,
};
use sandbox_wire::runner::{FinishReason, FromRunner};

impl Scheduler {
    /// Corrects what is claimed of a running job's prompt, and tells who follows the job if it had to.
    ///
    /// # Errors
    /// What the runner did that no runner does.
    pub(super) fn believe(
        &mut self,
        id: InstanceId,
        ticket: Ticket,
        message: &mut FromRunner,
    ) -> Result<(), &'static str> {
        let Some(job) = self.jobs.get(&ticket) else { return Ok(()) };
        let (begun, cancelled) = (job.claim, job.cancelled);
        match (&*message, begun) {
            (FromRunner::Text { .. }, None) => return Err("it answered what it had not begun"),
            (FromRunner::Started { .. }, Some(_)) => return Err("it began an answer twice"),
            _ => {}
        }
        let Some(told) = Claim::told(message) else { return Ok(()) };
        let claim = match begun {
            Some(begun) => begun,
            // It was in the runner's queue.
            None if cancelled && is_cancelled(message) => Claim::default(),
            None => self.least(id, ticket).believe(told),
        };
        claim.put(message);
        if let Some(job) = self.jobs.get_mut(&ticket) {
            job.claim = Some(claim);
            if claim != told && !job.corrected {
                job.corrected = true;
                drop(job.events.try_send(Event::Corrected));
            }
        }
        Ok(())
    }

    /// What is true of a job's prompt, which its instance begins.
    fn least(&mut self, id: InstanceId, ticket: Ticket) -> Least {
        let (Some(instance), Some(job)) = (self.instances.get_mut(&id), self.jobs.get(&ticket)) else {
            return Least::default();
        };
        let Some(function) = self.functions.get(&instance.function) else { return Least::default() };
        let spec = &function.config.spec;
        let bytes_max = (spec.context_tokens as usize).saturating_mul(LONGEST);
        let known = match &job.work {
            Work::Generate(generate) => {
                let head = head(instance.model.system_tokens, spec.system.as_deref());
                instance.seen.ask(ticket, generate, bytes_max).beside(generate, head)
            }
            _ => Known::default(),
        };
        Least::of(&job.work, known, spec.context_tokens)
    }
}

fn is_cancelled(message: &FromRunner) -> bool {
    matches!(message, FromRunner::Finished { finished, .. } if finished.reason == FinishReason::Cancelled)
}
