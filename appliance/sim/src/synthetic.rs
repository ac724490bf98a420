//! Traces that are made of a seed, a day each, of eight functions each; and a flood.
//!
//! Poisson: each function has a rate of its own, from one call in half a minute to one in an hour. Bursty: conversations
//! of some twenty calls some seconds apart, with long pauses. Diurnal: rates that follow the sun, ten times higher at
//! their peak than at night. Timer: every 1, 2, 5, 10, 15, 20, 30 and 60 minutes, to a second or two.
//!
//! Flood: two keys call one function for a quarter of an hour, one sixty times a second, which is twice what sixteen slots
//! can do, the other every two to six seconds, so that it has one request at a time. All their requests are alike.

use crate::trace::{Request, Trace, Work};
use std::{f64::consts::TAU, fmt, str::FromStr, time::Duration};

const DAY_S: f64 = 86_400.0;
const FUNCTIONS: u32 = 8;
const SEED: u64 = 0x454d_4245_5220_3031;

/// A trace that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said above")]
pub enum Synthetic {
    Poisson,
    Bursty,
    Diurnal,
    Timer,
    Flood,
}

/// The keys of the flood.
const KEYS: [&str; 2] = ["quiet", "flood"];
const FLOOD_S: f64 = 900.0;

impl Synthetic {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Poisson, Self::Bursty, Self::Diurnal, Self::Timer, Self::Flood];
    /// Those that scaling policies differ on.
    pub const OF_SCALING: [Self; 4] = [Self::Poisson, Self::Bursty, Self::Diurnal, Self::Timer];

    /// The trace; always the same.
    pub fn trace(self) -> Trace {
        if self == Self::Flood {
            return flood();
        }
        let mut requests = Vec::new();
        for function in 0..FUNCTIONS {
            let mut random = Random(SEED ^ u64::from(function) << 32 ^ (self as u64) << 40);
            for at_s in self.times(function, &mut random) {
                let work = Work::Tokens { prompt: random.between(20, 120), output: random.between(20, 100) };
                requests.push(Request { at: Duration::from_micros((at_s * 1e6) as u64), function, key: 0, work });
            }
        }
        requests.sort_by_key(|request| (request.at, request.function));
        Trace { requests, functions: FUNCTIONS, keys: Vec::new() }
    }

    fn times(self, function: u32, random: &mut Random) -> Vec<f64> {
        let mut times = Vec::new();
        let mut at_s = 0.0;
        while at_s < DAY_S {
            at_s += self.gap(function, at_s, random);
            let kept = self != Self::Diurnal || random.share() < daylight(at_s);
            times.extend((at_s < DAY_S && kept).then_some(at_s));
        }
        times
    }

    /// To the next call, s.
    fn gap(self, function: u32, at_s: f64, random: &mut Random) -> f64 {
        match self {
            // 30 s, doubled seven times, is an hour.
            Self::Poisson => random.exponential(30.0 * f64::from(1 << function)),
            Self::Diurnal => random.exponential(15.0 * f64::from(1 << function)),
            Self::Bursty if random.share() < 0.05 => random.exponential(300.0 * f64::from(1 + function)),
            Self::Bursty => random.exponential(8.0),
            Self::Timer => {
                let period_s = 60.0 * [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0][function as usize];
                let next_s = ((at_s / period_s).round() + 1.0) * period_s;
                next_s - at_s + random.share() * 2.0
            }
            Self::Flood => f64::INFINITY,
        }
    }
}

fn flood() -> Trace {
    let mut requests = Vec::new();
    for key in 0..KEYS.len() as u32 {
        let mut random = Random(SEED ^ u64::from(key));
        let mut at_s = 0.0;
        while at_s < FLOOD_S {
            let work = Work::Tokens { prompt: 60, output: 60 };
            requests.push(Request { at: Duration::from_micros((at_s * 1e6) as u64), function: 0, key, work });
            at_s += if key == 0 { 2.0 + 4.0 * random.share() } else { random.exponential(1.0 / 60.0) };
        }
    }
    requests.sort_by_key(|request| (request.at, request.key));
    Trace { requests, functions: 1, keys: KEYS.map(str::to_owned).to_vec() }
}

/// Share of the rate at noon: a tenth at midnight.
fn daylight(at_s: f64) -> f64 {
    0.55 - 0.45 * (TAU * at_s / DAY_S).cos()
}

impl fmt::Display for Synthetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["poisson", "bursty", "diurnal", "timer", "flood"][*self as usize])
    }
}

impl FromStr for Synthetic {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        known.ok_or_else(|| "use poisson, bursty, diurnal, timer or flood".to_owned())
    }
}

/// SplitMix64 (G. Steele et al., "Fast splittable pseudorandom number generators", 2014): enough for arrivals.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }

    fn between(&mut self, least: u32, most: u32) -> u32 {
        least + (self.next() % u64::from(most - least + 1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_always_the_same_and_of_the_size_that_is_said() {
        for kind in Synthetic::ALL {
            let trace = kind.trace();
            assert_eq!(trace, kind.trace());
            assert!(trace.requests.is_sorted_by_key(|request| request.at));
            assert!((1_000..60_000).contains(&trace.requests.len()), "{kind}: {}", trace.requests.len());
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn a_timer_keeps_its_time() {
        let trace = Synthetic::Timer.trace();
        let hourly: Vec<_> = trace.requests.iter().filter(|r| r.function == 7).map(|r| r.at.as_secs() % 3600).collect();
        assert!(hourly.len() >= 23 && hourly.iter().all(|second| *second <= 2), "{hourly:?}");
    }
}
