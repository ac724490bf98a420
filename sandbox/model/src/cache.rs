//! The KV cache: which tokens it holds for whom.
//!
//! ```text
//!  cells      │ p p p p p p p │ w w w w w w ...          one unified cache
//!  PREFIX     │ ▔▔▔▔▔▔▔▔▔▔▔▔▔ │                          what every chat of the function begins with; fed once, at load
//!  WORK       │ ▔▔▔▔▔▔▔▔▔     │ ▔▔▔▔▔▔▔▔▔▔▔              one answer: the part of the prefix that its prompt begins with,
//!                                                        shared without a copy, then its own tokens
//! ```
//!
//! Invariants: nothing but the prefix outlives an answer, so no request sees another's tokens; every answer finds the cache
//! in the same state, so the same request is computed in the same cells, in the same batches, with the same result.

use crate::error::internal;
use llama_cpp_2::{context::LlamaContext, token::LlamaToken};
use sandbox_wire::runner::Failure;

/// The sequence of the prefix.
pub(crate) const PREFIX: i32 = 0;
/// The sequence of the answer that is being made.
pub(crate) const WORK: i32 = 1;
/// Sequences that a context must have.
pub(crate) const SEQUENCES: u32 = 2;

/// What is known of the cache.
#[derive(Debug)]
pub(crate) struct Cache {
    prefix: Vec<LlamaToken>,
}

impl Cache {
    /// A cache in which [`PREFIX`] holds these tokens, or will once they are fed.
    pub(crate) fn new(prefix: Vec<LlamaToken>) -> Self {
        Self { prefix }
    }

    /// What every chat of the function begins with.
    pub(crate) fn prefix(&self) -> &[LlamaToken] {
        &self.prefix
    }

    /// Makes [`WORK`] hold the beginning that a prompt shares with the prefix, and returns its length. The last token of a
    /// prompt is never taken from the cache: it must be fed for its logits.
    pub(crate) fn begin(&self, context: &mut LlamaContext<'_>, prompt: &[LlamaToken]) -> Result<usize, Failure> {
        clear(context);
        let shared = common(&self.prefix, prompt).min(prompt.len().saturating_sub(1));
        if shared > 0 {
            let end = u32::try_from(shared).map_err(internal)?;
            context.copy_kv_cache_seq(PREFIX, WORK, Some(0), Some(end)).map_err(internal)?;
        }
        Ok(shared)
    }
}

/// Empties [`WORK`].
pub(crate) fn clear(context: &mut LlamaContext<'_>) {
    let work = u32::try_from(WORK).expect("a small constant");
    context.clear_kv_cache_seq(Some(work), None, None).expect("a whole sequence can always be removed");
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
