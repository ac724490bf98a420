//! How many tokens of each answer a decode computes: pure.
//!
//! Whoever has one token to feed is producing, and gets it in every decode. Prompts share the rest, in the order in which
//! they came, so that the first to come is the first to produce. Beside answers that are being produced, prompts get less:
//! each of those waits for the whole decode.

/// Tokens of prompts in a decode that produces nothing else.
pub(crate) const PREFILL_TOKENS_MAX: usize = 256;
/// Tokens of prompts in a decode that others wait for.
pub(crate) const BESIDE_TOKENS_MAX: usize = 64;
/// Most tokens in a decode of `slots` answers.
pub(crate) const fn decode_tokens_max(slots: usize) -> usize {
    if slots > PREFILL_TOKENS_MAX { slots } else { PREFILL_TOKENS_MAX }
}

/// The share of each answer in the next decode, from how many tokens each has to feed.
pub(crate) fn shares(unfed: &[usize]) -> Vec<usize> {
    let producing = unfed.iter().filter(|unfed| **unfed == 1).count();
    let all = decode_tokens_max(unfed.len());
    let mut left = if producing > 0 { BESIDE_TOKENS_MAX.min(all - producing) } else { all };
    let mut share = |unfed: usize| match unfed {
        1 => 1,
        _ => {
            let share = unfed.min(left);
            left -= share;
            share
        }
    };
    unfed.iter().map(|unfed| share(*unfed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn producers_come_first_and_prompts_share_the_rest() {
        assert_eq!(shares(&[]), [0; 0]);
        assert_eq!(shares(&[1]), [1]);
        assert_eq!(shares(&[1000]), [256]);
        assert_eq!(shares(&[200, 100]), [200, 56]);
        assert_eq!(shares(&[1000, 1, 1]), [64, 1, 1]);
        assert_eq!(shares(&[40, 1, 1000]), [40, 1, 24]);
    }

    proptest! {
        #[test]
        fn a_decode_is_bounded_and_somebody_moves(unfed in prop::collection::vec(1_usize..5000, 1..300)) {
            let shares = shares(&unfed);
            prop_assert!(shares.iter().sum::<usize>() <= decode_tokens_max(unfed.len()));
            prop_assert!(shares.iter().zip(&unfed).all(|(share, unfed)| share <= unfed));
            prop_assert!(shares.iter().zip(&unfed).all(|(share, unfed)| *unfed > 1 || *share == 1));
            prop_assert!(shares.iter().any(|share| *share > 0));
        }
    }
}
