//! The KV cache: which tokens it holds for whom.
//!
//! ```text
//!  cells      │ p p p p p p p │ a a a a b a b b ...      one unified cache, room for every answer at full context
//!  PREFIX     │ ▔▔▔▔▔▔▔▔▔▔▔▔▔ │                          what every chat of the function begins with; fed once, at load
//!  slot 1     │ ▔▔▔▔▔▔▔▔▔     │ ▔▔▔▔▔▔▔   ▔              one answer: the part of the prefix that its prompt begins with,
//!  slot 2     │ ▔▔▔▔▔▔▔▔▔▔▔▔▔ │         ▔   ▔▔           shared without a copy, then its own tokens
//! ```
//!
//! What an answer has fed stays in its slot when it ends, for the next turn of the same tenant ([`crate::reuse`] chooses),
//! until the slot is wanted. An answer that was cancelled or ran out of time leaves what it had fed, which is known exactly
//! between two decodes; one that failed leaves nothing, since nobody knows how far llama.cpp came.
//!
//! What is kept moves the cells of all others, and llama.cpp then sums in another order. A request without a tenant that is
//! alone is to be answered exactly like any other time, so it finds the cache as it was after the load: all is forgotten.
//!
//! Invariants: a slot has one answer at a time; what is kept is found by its tenant only, and dies with the process: no
//! snapshot is taken of one that was given to a server. A model whose state cannot be cut back (recurrent, or attention over
//! a sliding window, which overwrites what it no longer sees) keeps nothing.
//!
//! Memory: a slot holds at most one answer's context, whether it is at work or kept, so the room of the context always
//! suffices and nothing more is reserved. But pages that were written to stay so: an instance that answers one after the
//! other comes to use the memory of all its slots, as it would with as many at once.

use crate::{
    error::internal,
    reuse::{Choice, Found, Left, Slots, common},
};
use llama_cpp_2::{context::LlamaContext, token::LlamaToken};
use sandbox_wire::runner::{Failure, Tenant};

/// The sequence of the prefix.
pub(crate) const PREFIX: i32 = 0;

/// What is known of the cache.
#[derive(Debug)]
pub(crate) struct Cache {
    prefix: Vec<LlamaToken>,
    slots: Slots<LlamaToken>,
    /// Whether what ended stays for the next turn.
    keeps: bool,
}

/// Sequences that a context with `slots` must have.
pub(crate) const fn sequences(slots: u32) -> u32 {
    slots + 1
}

/// The sequence of a slot; that of the prefix comes first.
fn sequence(slot: usize) -> i32 {
    PREFIX + 1 + i32::try_from(slot).expect("slots are few")
}

impl Cache {
    /// A cache in which [`PREFIX`] holds these tokens, or will once they are fed, with room for `slots` answers.
    pub(crate) fn new(prefix: Vec<LlamaToken>, slots: u32, keeps: bool) -> Self {
        Self { prefix, slots: Slots::new(slots as usize), keeps }
    }

    /// What every chat of the function begins with.
    pub(crate) fn prefix(&self) -> &[LlamaToken] {
        &self.prefix
    }

    /// Gives a sequence that holds the beginning of a prompt which its tenant or all chats share, the length of that, and how
    /// many were begun so far.
    pub(crate) fn begin(
        &mut self,
        context: &mut LlamaContext<'_>,
        tenant: Option<Tenant>,
        prompt: &[LlamaToken],
    ) -> Result<(i32, usize, u64), Failure> {
        if tenant.is_none() {
            self.slots.forget().into_iter().try_for_each(|slot| remove(context, sequence(slot), 0))?;
        }
        let shared = common(&self.prefix, prompt).min(prompt.len().saturating_sub(1));
        let choice = self.slots.choose(tenant, prompt, shared);
        let Choice { slot, found } = choice.ok_or_else(|| internal("every slot has an answer"))?;
        let (into, cached) = (sequence(slot), found.map_or(shared, |found| found.tokens));
        // Should llama.cpp refuse, what the slot holds is not known: nobody finds it again.
        self.slots.end(slot, None);
        match found {
            Some(Found { slot: own, .. }) if own == slot => remove(context, into, cached)?,
            found => {
                remove(context, into, 0)?;
                copy(context, found.map_or(PREFIX, |found| sequence(found.slot)), into, cached)?;
            }
        }
        Ok((into, cached, self.slots.begin(slot)))
    }

    /// Ends the answer in a sequence, which holds what is `left`; without it, it is emptied.
    pub(crate) fn end(&mut self, context: &mut LlamaContext<'_>, ended: i32, left: Option<Left<LlamaToken>>) {
        let left = left.filter(|left| self.keeps && !left.tokens.is_empty());
        if left.is_none() {
            remove(context, ended, 0).expect("a whole sequence can always be removed");
        }
        let slot = usize::try_from(ended - PREFIX - 1).expect("sequences of slots count from 1");
        self.slots.end(slot, left);
    }
}

/// Removes what a sequence holds from `position` on.
fn remove(context: &mut LlamaContext<'_>, sequence: i32, position: usize) -> Result<(), Failure> {
    let (sequence, position) = (u32::try_from(sequence).map_err(internal)?, u32::try_from(position).map_err(internal)?);
    match context.clear_kv_cache_seq(Some(sequence), Some(position), None).map_err(internal)? {
        true => Ok(()),
        false => Err(internal("the model's state cannot be cut back")),
    }
}

/// Shares the first `tokens` of one sequence with another.
fn copy(context: &mut LlamaContext<'_>, from: i32, into: i32, tokens: usize) -> Result<(), Failure> {
    if tokens == 0 {
        return Ok(());
    }
    let end = u32::try_from(tokens).map_err(internal)?;
    context.copy_kv_cache_seq(from, into, Some(0), Some(end)).map_err(internal)
}
