//! One answer while it is made.
//!
//! ```text
//!  begin ──▶ feeding the prompt ──▶ producing ──▶ finished
//!             a chunk a step         1 a step      stop · length · deadline · cancelled
//!                 ▲  shelved: its slot is another's, and all it knows is kept │
//!                 └───────────── take_up: what is not found is fed again ─────┘
//! ```
//!
//! `tokens` is the prompt and what was produced; of these `fed` are in the KV cache. A step feeds what is not, at most a
//! chunk, and when nothing is left to feed, chooses the next token. So the last chunk of the prompt brings the first token.

use crate::{reuse::Left, sampler::Sampler, stream::TextStream};
use llama_cpp_2::token::LlamaToken;
use sandbox_wire::runner::{FinishReason, Finished, Tenant};
use std::time::{Duration, Instant};

/// The state of one answer. Made by [`crate::Engine::begin`], advanced by [`crate::Engine::step`].
#[derive(Debug)]
pub struct Sequence {
    /// Its place in the KV cache; none while it is shelved.
    pub(crate) slot: Option<i32>,
    /// What it was begun as, however often it is taken up again.
    pub(crate) since: u64,
    pub(crate) tenant: Option<Tenant>,
    pub(crate) tokens: Vec<LlamaToken>,
    pub(crate) fed: usize,
    pub(crate) cached: usize,
    pub(crate) prompt: usize,
    /// Length of `tokens` at which the answer ends.
    pub(crate) tokens_max: usize,
    pub(crate) produced: usize,
    pub(crate) sampler: Sampler,
    pub(crate) stream: TextStream,
    pub(crate) logprobs: Option<usize>,
    /// None is never: it lies beyond what the clock can count.
    pub(crate) deadline: Option<Instant>,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
}

impl Sequence {
    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        count(self.prompt)
    }

    /// Of these, tokens found in the KV cache.
    pub fn cached_tokens(&self) -> u32 {
        count(self.cached)
    }

    /// Whether it has a slot, and can be advanced.
    pub fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// Whether the time to work is over.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Tokens that are not in the KV cache yet; at least one until the answer has ended.
    pub(crate) fn unfed(&self) -> usize {
        self.tokens.len() - self.fed
    }

    /// Whether no token was chosen yet.
    pub(crate) fn is_feeding(&self) -> bool {
        self.tokens.len() == self.prompt
    }

    /// What it leaves in the KV cache for the next turn, or for itself: all that was fed.
    pub(crate) fn left(&self) -> Option<Left<LlamaToken>> {
        let tokens = self.tokens[..self.fed].to_vec();
        Some(Left { tenant: self.tenant?, prompt: self.prompt.min(tokens.len()), tokens, since: self.since })
    }

    /// The end of the answer.
    pub(crate) fn finished(&self, reason: FinishReason) -> Finished {
        Finished {
            reason,
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens(),
            completion_tokens: count(self.produced),
            prefill_us: micros(self.prefill),
            decode_us: micros(self.decode),
        }
    }
}

/// Counts fit: contexts are far below 2^32 tokens.
pub(crate) fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
