//! A trial: a snapshot answers a request that nobody made, before anybody relies on it.
//!
//! ```text
//!  Ready ──restore──▶ instance ──a fixed request──▶ its answer, thrown away ──▶ pages it touched ──▶ Ready.tried
//!                         └── crashed, silent, talks nonsense: the snapshot is of no use            └──▶ its spares, its file
//! ```
//! So a snapshot that was tried is one that has worked, and its spares have the memory that a first request writes to before
//! it comes, while its file has the memory in the order in which it was touched. Invariant: what is tried has seen no tenant, and ends here.

use crate::{
    instance::{self, RestoreFailure, Woken},
    loading::{LoadError, refused},
    shared::Shared,
    snapshots::{Ready, Tried},
    spawner::Ahead,
};
use appliance_types::Task;
use sandbox_image::Touches;
use sandbox_snapshot::image::{PAGE_BYTES, Span};
use sandbox_wire::{
    frame::Decoder,
    runner::{Constraint, FromRunner, Generate, Id, Message, Prompt, Role, Sampling, ToRunner},
    warden::{ExitCause, Purpose, RunnerSpec},
};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// What is asked: about as long as a first message of a chat, since memory for a prompt is written to by its length.
const QUESTION: &str = "Good morning! Before we begin, please tell me in a few words what you are able to do, what you had \
    better not be asked to do, and how long I may make my questions.";
const ID: Id = 0;
/// A first token comes of the prompt, each of the others of a step like any later one.
const TOKENS: u32 = 3;
/// When a runner gives up by itself, and when it is given up.
const RUNNER_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked at what was touched: what a step of a small model touches is told apart from the next one's.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Most that a spare writes to ahead of need, in pieces and pages.
const SPANS_MAX: usize = 1024;
const BYTES_MAX: u64 = 32 << 20;

/// Tries a snapshot that was not tried before, if there is room for an instance. A trial that cannot be had, or that the end
/// of this process cuts short, says nothing against it. Gives whether it was tried now.
///
/// # Errors
/// Why the snapshot must not be used.
pub(crate) fn run(shared: &Shared, spec: &RunnerSpec, ready: &Arc<Ready>) -> Result<bool, String> {
    if ready.tried.get().is_some() {
        return Ok(false);
    }
    let begun = Instant::now();
    let Ok(lease) = shared.registry.reserve(spec, Purpose::Trial, begun) else { return Ok(false) };
    let mut woken = match instance::restored(shared, lease, spec, ready, Ahead::Nothing) {
        Ok(woken) => woken,
        Err(RestoreFailure::Unusable(reason)) => return Err(reason),
        Err(RestoreFailure::Closed(error)) => {
            tracing::debug!(function = %spec.function, %error, "not tried");
            return Ok(false);
        }
    };
    let tried = attempt(&mut woken, ready, spec.task);
    let cause = woken.discard(shared);
    let tried = match tried {
        Ok(tried) => tried,
        Err(_) if cause == ExitCause::Stopped => return Ok(false),
        Err(LoadError::Ended) => return Err(format!("its trial: {cause}")),
        Err(error) => return Err(format!("its trial: {error}")),
    };
    let written = tried.written.iter().map(|span| span.bytes / PAGE_BYTES).sum::<u64>();
    let (took, touched, spans) = (begun.elapsed(), tried.first_touch.len(), tried.written.len());
    tracing::debug!(function = %spec.function, ?took, touched, written, spans, "tried");
    // Another thread may have been faster.
    Ok(ready.tried.set(tried).is_ok())
}

fn attempt(woken: &mut Woken, ready: &Ready, task: Task) -> Result<Tried, LoadError> {
    let (process, image) = (woken.process(), &ready.parked.image);
    let touches = Touches::new(process, image).map_err(refused)?;
    let (answering, answered) = mpsc::channel::<Infallible>();
    let first_touch = thread::scope(|scope| {
        let watcher = thread::Builder::new().name("trial".into());
        let watched = watcher.spawn_scoped(scope, move || watch(touches, &answered)).map_err(refused)?;
        let asked = woken.ask(&request(task), Instant::now() + TIMEOUT, understand);
        drop(answering);
        asked.and_then(|()| watched.join().map_err(|_| refused("nobody saw what it touched")))
    })?;
    let written = sandbox_image::written(process, image).map_err(refused)?;
    Ok(Tried { written: within_limits(written), first_touch })
}

/// What is touched until there is an answer, in order; of one that has gone, until then.
fn watch(mut touches: Touches, answered: &mpsc::Receiver<Infallible>) -> Vec<u64> {
    while touches.look().is_ok() && answered.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {}
    drop(touches.look());
    touches.order()
}

/// Waits for the last message. What it says does not matter, as long as it is an answer.
fn understand(answer: FromRunner, _: &Decoder) -> Result<Option<()>, LoadError> {
    match answer.id() {
        None if answer == FromRunner::Alive => Ok(None),
        Some(ID) => Ok(answer.is_last().then_some(())),
        _ => Err(refused("the runner answered a request that nobody made")),
    }
}

fn within_limits(spans: Vec<Span>) -> Vec<Span> {
    let mut left = BYTES_MAX;
    let fits = |span: &Span| left.checked_sub(span.bytes).map(|rest| left = rest).is_some();
    spans.into_iter().take(SPANS_MAX).take_while(fits).collect()
}

fn request(task: Task) -> ToRunner {
    let text = || Prompt::Text(QUESTION.to_owned());
    let prompt = match task {
        Task::Embedding => return ToRunner::Embed { id: ID, input: text(), truncate: false },
        Task::Completion => text(),
        Task::Chat => Prompt::Chat(vec![Message::new(Role::User, QUESTION)]),
    };
    let generate = Generate {
        prompt,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        tokens_max: TOKENS,
        deadline_ms: RUNNER_TIMEOUT.as_millis() as u64,
        constraint: Constraint::None,
        tools: None,
        logprobs: None,
        tenant: None,
    };
    ToRunner::Generate { id: ID, generate: Box::new(generate) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_ends_a_trial_and_a_sign_of_life_does_not() {
        let decoder = Decoder::new(1 << 10);
        let understood = |answer| understand(answer, &decoder);
        assert_eq!(understood(FromRunner::Alive), Ok(None));
        assert_eq!(understood(FromRunner::Started { id: ID, prompt_tokens: 1, cached_tokens: 0 }), Ok(None));
        assert_eq!(understood(FromRunner::Rendered { id: ID, text: String::new() }), Ok(Some(())));
        assert!(understood(FromRunner::Rendered { id: ID + 1, text: String::new() }).is_err());
        assert!(understood(FromRunner::Threads { count: 1 }).is_err());
    }

    #[test]
    fn what_is_written_ahead_is_bounded() {
        let span = |bytes| Span { address: 0, bytes };
        assert_eq!(within_limits(vec![span(PAGE_BYTES); 2 * SPANS_MAX]).len(), SPANS_MAX);
        let halves = vec![span(BYTES_MAX / 2); 3];
        assert_eq!(within_limits(halves), vec![span(BYTES_MAX / 2); 2]);
    }
}
