//! What a policy cost.

use crate::trace::Trace;
use appliance_types::Tier;
use serde::Serialize;
use std::time::Duration;

const MIB: f64 = (1 << 20) as f64;

/// What a policy cost on a trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// Requests that were served.
    pub served: u64,
    /// Requests that were not.
    pub refused: u64,
    /// Of those that were served, how many found their function running.
    pub found_running: u64,
    /// The same, parked.
    pub found_parked: u64,
    /// The same, stored.
    pub found_stored: u64,
    /// The same, cold.
    pub found_cold: u64,
    /// Instances that were woken.
    pub wakes: u64,
    /// Time to the first token, ms.
    pub first_token_p50_ms: f64,
    /// The same.
    pub first_token_p99_ms: f64,
    /// Time before an instance began with the request, ms: waiting and waking.
    pub wait_p99_ms: f64,
    /// The same, mean.
    pub wait_mean_ms: f64,
    /// Memory × time, MiB·s.
    pub held_mib_s: u64,
    /// The same, of what did nothing for any request.
    pub wasted_mib_s: u64,
    /// What each key met, where the trace names keys.
    pub keys: Vec<KeyReport>,
}

/// What a key met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyReport {
    /// The key.
    pub key: String,
    /// Its requests that were served.
    pub served: u64,
    /// Those that were not.
    pub refused: u64,
    /// Time before an instance began with one, ms: waiting and waking.
    pub wait_p50_ms: f64,
    /// The same.
    pub wait_p99_ms: f64,
}

/// Counts while a trace is replayed.
#[derive(Clone, Debug)]
pub struct Tally {
    policy: &'static str,
    open: usize,
    refused: u64,
    found: [u64; 4],
    wakes: u64,
    waits: Vec<Duration>,
    first_tokens: Vec<Duration>,
    held_mib_s: f64,
    wasted_mib_s: f64,
    keys: Vec<Key>,
}

#[derive(Clone, Debug)]
struct Key {
    name: String,
    waits: Vec<Duration>,
    refused: u64,
}

impl Tally {
    pub(crate) fn new(policy: &'static str, trace: &Trace) -> Self {
        let requests = trace.requests.len();
        let key = |name: &String| Key { name: name.clone(), waits: Vec::new(), refused: 0 };
        Self {
            keys: trace.keys.iter().map(key).collect(),
            policy,
            open: requests,
            refused: 0,
            found: [0; 4],
            wakes: 0,
            waits: Vec::with_capacity(requests),
            first_tokens: Vec::with_capacity(requests),
            held_mib_s: 0.0,
            wasted_mib_s: 0.0,
        }
    }

    /// Whether a request is neither answered nor refused.
    pub(crate) fn is_open(&self) -> bool {
        self.open > 0
    }

    pub(crate) fn refused(&mut self, key: u32) {
        if let Some(key) = self.keys.get_mut(key as usize) {
            key.refused += 1;
        }
        self.refused += 1;
        self.open -= 1;
    }

    pub(crate) fn served(&mut self, tier: Tier, key: u32, waited: Duration, to_first_token: Duration) {
        if let Some(key) = self.keys.get_mut(key as usize) {
            key.waits.push(waited);
        }
        self.found[tier as usize] += 1;
        self.waits.push(waited);
        self.first_tokens.push(waited + to_first_token);
    }

    pub(crate) fn finished(&mut self) {
        self.open -= 1;
    }

    pub(crate) fn woken(&mut self) {
        self.wakes += 1;
    }

    pub(crate) fn held(&mut self, held: u64, wasted: u64, time: Duration) {
        self.held_mib_s += held as f64 / MIB * time.as_secs_f64();
        self.wasted_mib_s += wasted as f64 / MIB * time.as_secs_f64();
    }

    pub(crate) fn report(mut self) -> Report {
        self.waits.sort_unstable();
        self.first_tokens.sort_unstable();
        let count = self.waits.len().max(1) as f64;
        let found = |tier: Tier| self.found[tier as usize];
        Report {
            policy: self.policy.to_owned(),
            served: self.waits.len() as u64,
            refused: self.refused,
            found_running: found(Tier::Running),
            found_parked: found(Tier::Parked),
            found_stored: found(Tier::Stored),
            found_cold: found(Tier::Cold),
            wakes: self.wakes,
            first_token_p50_ms: percentile_ms(&self.first_tokens, 50),
            first_token_p99_ms: percentile_ms(&self.first_tokens, 99),
            wait_p99_ms: percentile_ms(&self.waits, 99),
            wait_mean_ms: round(self.waits.iter().map(Duration::as_secs_f64).sum::<f64>() * 1000.0 / count),
            held_mib_s: self.held_mib_s.round() as u64,
            wasted_mib_s: self.wasted_mib_s.round() as u64,
            keys: self.keys.into_iter().map(Key::report).collect(),
        }
    }
}

impl Key {
    fn report(self) -> KeyReport {
        let Self { name: key, mut waits, refused } = self;
        waits.sort_unstable();
        let (wait_p50_ms, wait_p99_ms) = (percentile_ms(&waits, 50), percentile_ms(&waits, 99));
        KeyReport { key, served: waits.len() as u64, refused, wait_p50_ms, wait_p99_ms }
    }
}

/// The least that so many of a hundred do not pass.
fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    round(sorted.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1000.0))
}

fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let ms: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!((percentile_ms(&ms, 50), percentile_ms(&ms, 99)), (100.0, 198.0));
        assert_eq!((percentile_ms(&ms[..1], 99), percentile_ms(&[], 99)), (1.0, 0.0));
    }
}
