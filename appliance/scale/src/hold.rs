//! For how long a function that nobody calls stays running, and then parked.
//!
//! ```text
//!  gap    0 ─────────── r ──────────────────── r + p ────────────▶
//!  tier      running           parked                  stored
//!  pays      running bytes     parked bytes            nothing
//!  next call at once           a parked wake           a stored wake
//! ```
//!
//! With a history, `r` and `p` are those that would have cost least in it: each wake's time, and memory × time at
//! [`Price`]. Both times end at edges of the history's bins, or of their terms: there alone the cost can be least. Without one
//! they are the times at which memory has cost as much as the wake that it spares: that is ski rental, and never costs
//! more than twice what one who knows the next call would pay (A. Karlin et al., "Competitive snoopy caching", 1988).
//! Keeping what history asks for instead of a fixed time: M. Shahrad et al., "Serverless in the Wild", USENIX ATC 2020.
//! Left out: waking ahead of a call that is foreseen.

use crate::Gaps;
use std::time::Duration;

/// Gaps that count before a history is believed.
const GAPS_LEAST: f64 = 8.0;
/// Shortest time running where the manifest does not say: one who reads an answer and asks on finds the instance up.
pub const RUNNING_LEAST: Duration = Duration::from_secs(10);
const MIB: f64 = (1 << 20) as f64;

/// How long something is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// As the operator wrote.
    Exactly(Duration),
    /// As it pays, within these.
    Within {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
}

impl Term {
    fn least(self) -> Duration {
        match self {
            Self::Exactly(time) => time,
            Self::Within { least, most } => least.min(most),
        }
    }

    /// The longest that it may be.
    pub fn most(self) -> Duration {
        match self {
            Self::Exactly(time) | Self::Within { most: time, .. } => time,
        }
    }

    /// Whether it is written.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Exactly(_))
    }
}

/// What a function costs to wake and to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// A wake from memory, beyond what a running instance takes.
    pub parked_wake: Duration,
    /// A wake from disk, the same.
    pub stored_wake: Duration,
    /// Memory held while it runs and does nothing, bytes.
    pub running_bytes: u64,
    /// Memory held while it is parked, bytes.
    pub parked_bytes: u64,
}

/// Milliseconds of a caller's time that a MiB·s is worth.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Price(pub f64);

/// What was decided: running for so long, then parked for so long, then stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Time running without a request.
    pub running: Duration,
    /// Time parked after that.
    pub parked: Duration,
}

/// The cheapest times within `running` and `parked`.
pub fn choose(gaps: &Gaps, costs: &Costs, price: Price, running: Term, parked: Term) -> Hold {
    if running.is_exact() && parked.is_exact() {
        return Hold { running: running.most(), parked: parked.most() };
    }
    if gaps.weight() < GAPS_LEAST {
        break_even(costs, price, running, parked)
    } else {
        cheapest(gaps, costs, price, running, parked)
    }
}

/// What a gap costs on average, ms of a caller's time: the history's mean where each gap counts as its bin's edge.
pub fn expected_cost(gaps: &Gaps, costs: &Costs, price: Price, hold: Hold) -> f64 {
    let rates = Rates::of(costs, price);
    let shares: Vec<_> = gaps.shares().collect();
    rates.running(&shares, hold.running) + rates.held(&shares, hold.running + hold.parked)
}

/// The cost of a gap falls into two parts, each a ski rental: leaving `running` and leaving memory.
struct Rates {
    parked_wake_ms: f64,
    /// More than that, from disk.
    stored_wake_ms: f64,
    /// Of what running holds beyond parked.
    running_ms_a_second: f64,
    parked_ms_a_second: f64,
}

type Shares = [(Duration, f64)];

impl Rates {
    fn of(costs: &Costs, price: Price) -> Self {
        let rate = |bytes: u64| bytes as f64 / MIB * price.0.max(0.0);
        Self {
            parked_wake_ms: ms(costs.parked_wake),
            stored_wake_ms: ms(costs.stored_wake.saturating_sub(costs.parked_wake)),
            running_ms_a_second: rate(costs.running_bytes.saturating_sub(costs.parked_bytes)),
            parked_ms_a_second: rate(costs.parked_bytes),
        }
    }

    /// Of running until `time`.
    fn running(&self, shares: &Shares, time: Duration) -> f64 {
        rental(shares, time, self.parked_wake_ms, self.running_ms_a_second)
    }

    /// Of being in memory until `time`.
    fn held(&self, shares: &Shares, time: Duration) -> f64 {
        rental(shares, time, self.stored_wake_ms, self.parked_ms_a_second)
    }
}

/// `wake_ms × P(gap > time) + ms_a_second × E[min(gap, time)]`.
fn rental(shares: &Shares, time: Duration, wake_ms: f64, ms_a_second: f64) -> f64 {
    let each = |(gap, share): &(Duration, f64)| {
        let missed = if *gap > time { wake_ms } else { 0.0 };
        share * (missed + ms_a_second * (*gap).min(time).as_secs_f64())
    };
    shares.iter().map(each).sum()
}

fn cheapest(gaps: &Gaps, costs: &Costs, price: Price, running: Term, parked: Term) -> Hold {
    let rates = Rates::of(costs, price);
    let shares: Vec<_> = gaps.shares().filter(|(_, share)| *share > 0.0).collect();
    // The second part hangs on the sum of both times, so its candidates are looked at for each of the first.
    let sums: Vec<_> = shares.iter().map(|(edge, _)| (*edge, rates.held(&shares, *edge))).collect();
    let mut best: Option<(f64, Hold)> = None;
    for time in candidates(&shares, running, parked) {
        let first = rates.running(&shares, time);
        let known = sums.iter().filter(|(edge, _)| within(*edge, parked, time)).copied();
        let ends = [time + parked.least(), time + parked.most()].map(|end| (end, rates.held(&shares, end)));
        for (end, second) in ends.into_iter().chain(known) {
            if best.is_none_or(|(cost, _)| first + second < cost) {
                best = Some((first + second, Hold { running: time, parked: end - time }));
            }
        }
    }
    best.map_or_else(|| break_even(costs, price, running, parked), |(_, hold)| hold)
}

/// When leaving `running` can cost least: at an end of its term, at an edge, or where memory is then left at an edge,
/// parked for the shortest or the longest.
fn candidates(shares: &Shares, running: Term, parked: Term) -> Vec<Duration> {
    let ends = [Duration::ZERO, parked.least(), parked.most()];
    let edges = shares.iter().flat_map(|(edge, _)| ends.map(|end| edge.checked_sub(end)));
    let edges = edges.flatten().filter(|time| within(*time, running, Duration::ZERO));
    [running.least(), running.most()].into_iter().chain(edges).collect()
}

fn within(time: Duration, term: Term, from: Duration) -> bool {
    (from + term.least()..=from + term.most()).contains(&time)
}

fn break_even(costs: &Costs, price: Price, running: Term, parked: Term) -> Hold {
    let rates = Rates::of(costs, price);
    let even = |wake_ms: f64, ms_a_second: f64| {
        // A wake that costs nothing is spared by nothing.
        let seconds = if wake_ms <= 0.0 { 0.0 } else { wake_ms / ms_a_second };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    };
    let clamp = |time: Duration, term: Term| time.max(term.least()).min(term.most());
    let first = clamp(even(rates.parked_wake_ms, rates.running_ms_a_second), running);
    let both = even(rates.stored_wake_ms, rates.parked_ms_a_second);
    Hold { running: first, parked: clamp(both.saturating_sub(first), parked) }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests;
