//! The runner's life: load, then answer until the socket closes.
//!
//! ```text
//!  await Load ──▶ loading ──▶ idle ⇄ working ──▶ closed
//!                    │                  │
//!                    ▼                  ▼
//!                LoadFailed       protocol broken
//! ```
//!
//! Answers are made together, as many as the engine has slots; embeddings one at a time; both begin in the order they came.
//! What needs no computing is answered at once, also between two steps. Between any two steps the socket is looked at, so a
//! cancel or a pause takes effect within a step. An answer that is paused has no part in a step; its deadline is looked at
//! when it goes on. It keeps its slot until another request needs that: then it is shelved, and when it goes on, and there
//! is a slot, it is fed again what is no longer there of its text.
//!
//! Invariants: every request gets exactly one last message; at most [`QUEUE_MAX`] requests wait; an id is in use until its
//! last message is sent.

use crate::{
    channel::{Channel, Received, is_closed},
    error::RunnerError,
};
use sandbox_model::{Engine, Model, Sequence, Step};
use sandbox_wire::runner::{Failure, FinishReason, Finished, FromRunner, Generate, Id, Load, Prompt, ToRunner};
use std::{
    collections::VecDeque,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Requests that may wait.
const QUEUE_MAX: usize = 64;
/// Messages taken between two steps, so that a flood of them does not stop an answer.
const MESSAGES_PER_STEP_MAX: usize = 64;
/// A runner at work is not silent for longer, plus a step.
const ALIVE: Duration = Duration::from_secs(1);

/// Serves one socket with the model at `path` until it is closed.
pub(crate) fn serve(socket: UnixStream, path: &Path) -> Result<(), RunnerError> {
    let mut channel = Channel::new(socket);
    let served = await_load(&mut channel).and_then(|load| match load {
        Some(load) => load_and_run(channel, path, &load),
        None => Ok(()),
    });
    match served {
        Err(RunnerError::Socket { error, .. }) if is_closed(&error) => Ok(()),
        served => served,
    }
}

fn await_load(channel: &mut Channel) -> Result<Option<Load>, RunnerError> {
    match channel.wait()? {
        Received::Message(ToRunner::Load(load)) => Ok(Some(load)),
        Received::Message(_) => Err(RunnerError::OutOfTurn("the first message is not `Load`".to_owned())),
        Received::Nothing | Received::Closed => Ok(None),
    }
}

fn load_and_run(mut channel: Channel, path: &Path, load: &Load) -> Result<(), RunnerError> {
    let model = report(&mut channel, Model::load(path))?;
    let engine = report(&mut channel, Engine::new(&model, load))?;
    channel.send(&FromRunner::Loaded(engine.info()))?;
    Runner { channel, engine, queue: VecDeque::new(), active: Vec::new() }.run()
}

/// Tells the peer why the model cannot be used.
fn report<T>(channel: &mut Channel, loaded: Result<T, sandbox_model::LoadError>) -> Result<T, RunnerError> {
    if let Err(error) = &loaded {
        channel.send(&FromRunner::LoadFailed { reason: error.to_string() })?;
    }
    Ok(loaded?)
}

struct Runner<'m> {
    channel: Channel,
    engine: Engine<'m>,
    queue: VecDeque<Job>,
    active: Vec<Active>,
}

/// A request that waits.
struct Job {
    id: Id,
    received: Instant,
    paused: bool,
    work: Work,
}

enum Work {
    Generate(Box<Generate>),
    /// And whether what does not fit is left out.
    Embed(Prompt, bool),
}

/// A request that is worked on.
struct Active {
    id: Id,
    sequence: Sequence,
    paused: bool,
}

impl Active {
    fn computes(&self) -> bool {
        !self.paused && self.sequence.has_slot()
    }
}

impl Runner<'_> {
    fn run(mut self) -> Result<(), RunnerError> {
        let mut taken = 0;
        loop {
            match self.next_message(taken)? {
                Received::Message(message) => self.take(message)?,
                Received::Closed => return Ok(()),
                Received::Nothing => {
                    self.work()?;
                    taken = 0;
                    continue;
                }
            }
            taken += 1;
        }
    }

    fn next_message(&mut self, taken: usize) -> Result<Received, RunnerError> {
        match () {
            () if !self.has_work() => self.channel.wait(),
            () if taken >= MESSAGES_PER_STEP_MAX => Ok(Received::Nothing),
            () => self.channel.poll(),
        }
    }

    /// Whether there is something to compute, or to begin.
    fn has_work(&self) -> bool {
        let begins = !self.queue.is_empty() && (self.has_free_slot() || self.idler().is_some());
        begins || self.active.iter().any(|active| !active.paused)
    }

    fn has_free_slot(&self) -> bool {
        self.active.iter().filter(|active| active.sequence.has_slot()).count() < self.engine.slots()
    }

    /// The last of those that have a slot and do not need it now.
    fn idler(&self) -> Option<usize> {
        self.active.iter().rposition(|active| active.paused && active.sequence.has_slot())
    }

    /// Whether there is a slot, that of an answer that is paused at last.
    fn make_room(&mut self) -> bool {
        if !self.has_free_slot() {
            let Some(idler) = self.idler() else { return false };
            self.engine.shelve(&mut self.active[idler].sequence);
        }
        true
    }

    /// Gives slots back to answers that go on, and ends those whose time is over meanwhile.
    fn take_up(&mut self) -> Result<(), RunnerError> {
        let now = Instant::now();
        let mut index = 0;
        while let Some(Active { id, sequence, paused }) = self.active.get(index) {
            let (id, late, waits) = (*id, sequence.is_overdue(now), !paused && !sequence.has_slot());
            let step = match () {
                () if waits && late => Ok(self.engine.expire(&mut self.active[index].sequence)),
                () if waits && self.make_room() => {
                    self.engine.take_up(&mut self.active[index].sequence).map(|()| Step::default())
                }
                () => Ok(Step::default()),
            };
            if self.tell(id, step)? {
                index += 1;
            } else {
                self.active.remove(index);
            }
        }
        Ok(())
    }

    /// Has a request compute or not; one that has ended already is let be.
    fn set_paused(&mut self, id: Id, paused: bool) {
        self.queue.iter_mut().filter(|job| job.id == id).for_each(|job| job.paused = paused);
        self.active.iter_mut().filter(|active| active.id == id).for_each(|active| active.paused = paused);
    }

    fn take(&mut self, message: ToRunner) -> Result<(), RunnerError> {
        match message {
            ToRunner::Load(_) => Err(RunnerError::OutOfTurn("a second `Load`".to_owned())),
            ToRunner::Generate { id, generate } => self.enqueue(id, Work::Generate(generate)),
            ToRunner::Embed { id, input, truncate } => self.enqueue(id, Work::Embed(input, truncate)),
            ToRunner::Threads { count } => {
                let count = self.engine.set_threads(count);
                self.channel.send(&FromRunner::Threads { count })
            }
            ToRunner::Cancel { id } => self.cancel(id),
            ToRunner::Pause { id } => {
                self.set_paused(id, true);
                Ok(())
            }
            ToRunner::Resume { id } => {
                self.set_paused(id, false);
                Ok(())
            }
            ToRunner::Tokenize { id, text, add_special, parse_special } => {
                let tokens = self.engine.tokenize(&text, add_special, parse_special);
                self.channel.send(&FromRunner::Tokens { id, tokens })
            }
            ToRunner::Detokenize { id, tokens } => {
                let text = self.engine.detokenize(&tokens);
                self.reply(id, text.map(|text| FromRunner::Rendered { id, text }))
            }
            ToRunner::ApplyTemplate { id, messages } => {
                let text = self.engine.apply_template(&messages);
                self.reply(id, text.map(|text| FromRunner::Rendered { id, text }))
            }
        }
    }

    fn enqueue(&mut self, id: Id, work: Work) -> Result<(), RunnerError> {
        let is_active = self.active.iter().any(|active| active.id == id);
        if is_active || self.queue.iter().any(|job| job.id == id) {
            return Err(RunnerError::OutOfTurn(format!("id {id} is in use")));
        }
        if self.queue.len() >= QUEUE_MAX {
            let message = format!("too many requests on one connection: {QUEUE_MAX} wait");
            return self.reply(id, Err(Failure::Internal { message }));
        }
        self.queue.push_back(Job { id, received: Instant::now(), paused: false, work });
        Ok(())
    }

    /// Ends a request; one that has ended already is let be, since its last message crossed the cancel.
    fn cancel(&mut self, id: Id) -> Result<(), RunnerError> {
        let finished = match self.active.iter().position(|active| active.id == id) {
            Some(position) => self.engine.cancel(self.active.remove(position).sequence),
            None => match self.queue.iter().position(|job| job.id == id) {
                Some(position) => {
                    self.queue.remove(position);
                    unstarted()
                }
                None => return Ok(()),
            },
        };
        self.channel.send(&FromRunner::Finished { id, finished })
    }

    /// Begins what there is a slot for, then does one step of the work at hand.
    fn work(&mut self) -> Result<(), RunnerError> {
        self.take_up()?;
        while !self.queue.is_empty() && self.make_room() {
            match self.queue.pop_front() {
                Some(Job { id, received, paused, work: Work::Generate(generate) }) => {
                    self.begin(id, received, paused, &generate)?
                }
                Some(Job { id, work: Work::Embed(input, truncate), .. }) => return self.embed(id, &input, truncate),
                None => break,
            }
        }
        self.step()
    }

    fn begin(&mut self, id: Id, received: Instant, paused: bool, generate: &Generate) -> Result<(), RunnerError> {
        let begun = self.engine.begin(generate, received).map(|sequence| {
            let (prompt_tokens, cached_tokens) = (sequence.prompt_tokens(), sequence.cached_tokens());
            self.active.push(Active { id, sequence, paused });
            FromRunner::Started { id, prompt_tokens, cached_tokens }
        });
        self.reply(id, begun)
    }

    fn step(&mut self) -> Result<(), RunnerError> {
        // One that ends in this step has no slot after it.
        let computing: Vec<bool> = self.active.iter().map(Active::computes).collect();
        let running = self.active.iter_mut().filter(|active| active.computes());
        let mut sequences: Vec<_> = running.map(|active| &mut active.sequence).collect();
        let mut steps = self.engine.step(&mut sequences).into_iter();
        for (active, computed) in std::mem::take(&mut self.active).into_iter().zip(computing) {
            let step = if computed { steps.next() } else { None };
            let goes_on = step.map_or(Ok(true), |step| self.tell(active.id, step))?;
            if goes_on {
                self.active.push(active);
            }
        }
        // The long feeding of a prompt has nothing to tell.
        if self.channel.silent_for() >= ALIVE { self.channel.send(&FromRunner::Alive) } else { Ok(()) }
    }

    /// Sends what came of a step; whether there is more to come.
    fn tell(&mut self, id: Id, step: Result<Step, Failure>) -> Result<bool, RunnerError> {
        let Step { text, finished } = match step {
            Ok(step) => step,
            Err(failure) => return self.reply(id, Err(failure)).map(|()| false),
        };
        if let Some(text) = text {
            self.channel.send(&FromRunner::Text { id, text })?;
        }
        match finished {
            Some(finished) => self.channel.send(&FromRunner::Finished { id, finished }).map(|()| false),
            None => Ok(true),
        }
    }

    fn embed(&mut self, id: Id, input: &Prompt, truncate: bool) -> Result<(), RunnerError> {
        let started = Instant::now();
        let embedding = self.engine.embed(input, truncate);
        let compute_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.reply(id, embedding.map(|e| FromRunner::Embedding { id, values: e.values, tokens: e.tokens, compute_us }))
    }

    fn reply(&mut self, id: Id, reply: Result<FromRunner, Failure>) -> Result<(), RunnerError> {
        self.channel.send(&reply.unwrap_or_else(|failure| FromRunner::Failed { id, failure }))
    }
}

/// The end of a request that never began.
fn unstarted() -> Finished {
    Finished {
        reason: FinishReason::Cancelled,
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        prefill_us: 0,
        decode_us: 0,
    }
}
