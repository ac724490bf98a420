//! How long a function was left alone between two calls, as far as it remembers.
//!
//! A histogram in quarters of an octave from 100 ms to more than a day, as in M. Shahrad et al., "Serverless in the Wild"
//! (USENIX ATC 2020), where bins of a minute served functions with timers; here the least gap that matters is that of a
//! person who reads an answer. A gap counts as its bin's upper edge. Each new one makes all before it count less, so that a
//! function may change its ways.

use std::time::Duration;

/// Bins: the last edge lies above a day.
const BINS: usize = 82;
const FIRST_EDGE_MS: f64 = 100.0;
const BINS_AN_OCTAVE: f64 = 4.0;
/// What each new gap leaves of the weight of those before: about the last hundred count.
const KEPT: f64 = 1.0 - 1.0 / 128.0;

/// A function's gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaps {
    weights: [f64; BINS],
    total: f64,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { weights: [0.0; BINS], total: 0.0 }
    }
}

impl Gaps {
    /// Remembers a gap.
    pub fn record(&mut self, gap: Duration) {
        self.weights.iter_mut().for_each(|weight| *weight *= KEPT);
        self.weights[bin(gap)] += 1.0;
        self.total = self.weights.iter().sum();
    }

    /// How many gaps count, the older ones less.
    pub fn weight(&self) -> f64 {
        self.total
    }

    /// Each bin: its upper edge, and the share of gaps in it; shares sum up to one where there are any.
    pub fn shares(&self) -> impl Iterator<Item = (Duration, f64)> {
        let total = if self.total > 0.0 { self.total } else { 1.0 };
        self.weights.iter().enumerate().map(move |(bin, weight)| (edge(bin), weight / total))
    }
}

/// The upper edge of a bin, in whole milliseconds.
fn edge(bin: usize) -> Duration {
    Duration::from_millis((FIRST_EDGE_MS * (bin as f64 / BINS_AN_OCTAVE).exp2()).ceil() as u64)
}

fn bin(gap: Duration) -> usize {
    let octaves = (gap.as_secs_f64() * 1000.0 / FIRST_EDGE_MS).max(1.0).log2();
    let guess = (octaves * BINS_AN_OCTAVE) as usize;
    (guess.min(BINS - 1)..BINS).find(|bin| gap <= edge(*bin)).unwrap_or(BINS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_edge_lies_above_a_day() {
        assert!(edge(BINS - 1) > Duration::from_secs(86_400));
        assert!(edge(BINS - 2) < Duration::from_secs(3 * 86_400));
    }

    #[test]
    fn what_is_new_outweighs_what_is_old() {
        let mut gaps = Gaps::default();
        for _ in 0..1000 {
            gaps.record(Duration::from_secs(1));
        }
        for _ in 0..200 {
            gaps.record(Duration::from_secs(600));
        }
        let long: f64 = gaps.shares().filter(|(edge, _)| *edge > Duration::from_secs(2)).map(|(_, share)| share).sum();
        assert!(long > 0.75, "{long}");
    }

    proptest! {
        #[test]
        fn a_gap_lies_below_its_edge_and_above_the_one_before(ms in 0u64..200_000_000) {
            let gap = Duration::from_millis(ms);
            let bin = bin(gap);
            prop_assert!(gap <= edge(bin) || bin == BINS - 1);
            prop_assert!(bin == 0 || gap > edge(bin - 1));
        }

        #[test]
        fn shares_sum_up_to_one(gaps_s in prop::collection::vec(0u64..1_000_000, 1..300)) {
            let mut gaps = Gaps::default();
            gaps_s.iter().for_each(|s| gaps.record(Duration::from_secs(*s)));
            prop_assert!((gaps.shares().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(gaps.weight() <= 129.0);
        }
    }
}
