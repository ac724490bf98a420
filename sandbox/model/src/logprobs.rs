//! Log-probabilities: the logarithm of the softmax over the model's own logits, before any sampler touched them.

use std::cmp::Ordering;

/// The log-softmax of `logits`, computed as needed.
pub(crate) struct LogSoftmax<'a> {
    logits: &'a [f32],
    /// The greatest logit, taken off all before anything is exponentiated, so that nothing overflows.
    most: f32,
    /// Logarithm of the sum of the exponentials of what is left.
    log_sum: f64,
}

impl<'a> LogSoftmax<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
        Self { logits, most, log_sum: sum.ln() }
    }

    /// The log-probability of a token.
    pub(crate) fn of(&self, token: usize) -> f32 {
        (f64::from(self.logits[token] - self.most) - self.log_sum) as f32
    }

    /// The `count` likeliest tokens, likeliest first; of equals, the lower number first.
    pub(crate) fn likeliest(&self, count: usize) -> Vec<usize> {
        let mut tokens: Vec<usize> = (0..self.logits.len()).collect();
        let order = |&a: &usize, &b: &usize| descending(self.logits[a], self.logits[b]).then(a.cmp(&b));
        let count = count.min(tokens.len());
        if count == 0 {
            return Vec::new();
        }
        tokens.select_nth_unstable_by(count - 1, order);
        tokens.truncate(count);
        tokens.sort_unstable_by(order);
        tokens
    }
}

/// The token with the greatest logit; of equals, the lowest number.
pub(crate) fn likeliest(logits: &[f32]) -> usize {
    let greater = |best: usize, token: usize| if logits[token] > logits[best] { token } else { best };
    (1..logits.len()).fold(0, greater)
}

fn descending(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn probabilities_sum_to_one(logits in prop::collection::vec(-50.0f32..50.0, 1..200)) {
            let softmax = LogSoftmax::new(&logits);
            let sum: f64 = (0..logits.len()).map(|token| f64::from(softmax.of(token)).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{}", sum);
        }

        #[test]
        fn likeliest_agrees_with_a_full_sort(logits in prop::collection::vec(-3i8..3, 1..50), count in 0usize..60) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut all: Vec<usize> = (0..logits.len()).collect();
            all.sort_by(|&a, &b| descending(logits[a], logits[b]).then(a.cmp(&b)));
            prop_assert_eq!(likeliest(&logits), all[0]);
            all.truncate(count);
            prop_assert_eq!(LogSoftmax::new(&logits).likeliest(count), all);
        }
    }

    #[test]
    fn great_logits_do_not_overflow() {
        assert!((LogSoftmax::new(&[1e30, 1e30]).of(0) - 0.5f32.ln()).abs() < 1e-3);
    }
}
