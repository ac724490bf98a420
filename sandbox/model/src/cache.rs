//! The KV cache: which tokens it holds for whom.
//!
//! ```text
//!  cells      │ p p p p p p p │ a a a a b a b b ...      one unified cache, room for every answer at full context
//!  PREFIX     │ ▔▔▔▔▔▔▔▔▔▔▔▔▔ │                          what every chat of the function begins with; fed once, at load
//!  slot 1     │ ▔▔▔▔▔▔▔▔▔     │ ▔▔▔▔▔▔▔   ▔              one answer: the part of the prefix that its prompt begins with,
//!  slot 2     │ ▔▔▔▔▔▔▔▔▔▔▔▔▔ │         ▔   ▔▔           shared without a copy, then its own tokens
//! ```
//!
//! Invariants: nothing but the prefix outlives an answer, so no request sees another's tokens; a slot has one answer at a
//! time; an answer that is alone always finds the cache in the same state, so the same request is computed in the same
//! cells, in the same batches, with the same result.

use crate::error::internal;
use llama_cpp_2::{context::LlamaContext, token::LlamaToken};
use sandbox_wire::runner::Failure;
use std::collections::BTreeSet;

/// The sequence of the prefix.
pub(crate) const PREFIX: i32 = 0;
/// What is known of the cache.
#[derive(Debug)]
pub(crate) struct Cache {
    prefix: Vec<LlamaToken>,
    /// Slots without an answer; the lowest is given first.
    free: BTreeSet<i32>,
}

/// Sequences that a context with `slots` must have.
pub(crate) const fn sequences(slots: u32) -> u32 {
    slots + 1
}

impl Cache {
    /// A cache in which [`PREFIX`] holds these tokens, or will once they are fed, with room for `slots` answers.
    pub(crate) fn new(prefix: Vec<LlamaToken>, slots: i32) -> Self {
        Self { prefix, free: (PREFIX + 1..=PREFIX + slots).collect() }
    }

    /// What every chat of the function begins with.
    pub(crate) fn prefix(&self) -> &[LlamaToken] {
        &self.prefix
    }

    /// Gives a slot that holds the beginning that a prompt shares with the prefix, and the length of that. The last token
    /// of a prompt is never taken from the cache: it must be fed for its logits.
    pub(crate) fn begin(
        &mut self,
        context: &mut LlamaContext<'_>,
        prompt: &[LlamaToken],
    ) -> Result<(i32, usize), Failure> {
        let slot = self.free.first().copied().ok_or_else(|| internal("every slot has an answer"))?;
        let shared = common(&self.prefix, prompt).min(prompt.len().saturating_sub(1));
        if shared > 0 {
            let end = u32::try_from(shared).map_err(internal)?;
            context.copy_kv_cache_seq(PREFIX, slot, Some(0), Some(end)).map_err(internal)?;
        }
        self.free.remove(&slot);
        Ok((slot, shared))
    }

    /// Empties a slot, which may be given again.
    pub(crate) fn end(&mut self, context: &mut LlamaContext<'_>, slot: i32) {
        let sequence = u32::try_from(slot).expect("slots count from 1");
        context.clear_kv_cache_seq(Some(sequence), None, None).expect("a whole sequence can always be removed");
        self.free.insert(slot);
    }
}

/// Length of the beginning that two sequences share.
pub(crate) fn common<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_beginnings() {
        assert_eq!(common(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(common(&[1, 2], &[1, 2, 3]), 2);
        assert_eq!(common::<u8>(&[], &[1]), 0);
    }
}
