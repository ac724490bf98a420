//! How many instances a function needs, by Knative's rules.
//!
//! ```text
//!            ┌── the last 6 s want at least twice what is up ──▶ panic: by the last 6 s, and never down
//!  stable ◀──┴── 60 s since that was last so ◀─────────────────────┘
//!  by the last 60 s, at most halved a step; what was wanted within `scale_down_delay` is kept
//! ```
//!
//! Concurrency is what runs and what waits; one instance is meant to do 70 % of its slots. The numbers, the rates and the
//! order of the steps are those of Knative's autoscaler (KPA: <https://github.com/knative/serving>,
//! `pkg/autoscaler/scaling/autoscaler.go`, and "Configuring scale bounds" in its documentation), with a shorter tick.
//! Left out: scale to zero, which [`hold`](crate::hold) decides, since a parked function wakes in milliseconds.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How often a function that is at work is looked at.
pub const TICK: Duration = Duration::from_millis(250);

const STABLE_S: u64 = 60;
const PANIC_S: u64 = 6;
const STABLE: Duration = Duration::from_secs(STABLE_S);
/// Wanted by the panic window ÷ up, at which panic begins.
const PANIC_RATIO: f64 = 2.0;
/// Share of an instance's slots that it is meant to use.
const TARGET: f64 = 0.7;
/// Most of what is up, times this, is wanted in one step up; at least what is up, over this, in one step down.
const UP_RATE_MAX: f64 = 1000.0;
const DOWN_RATE_MAX: u32 = 2;

/// Instances that a function has at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Kept when nobody calls.
    pub min: u32,
    /// Never passed; wins over `min`.
    pub max: u32,
}

/// A function's concurrency in the last minute, and what followed from it.
#[derive(Clone, Debug)]
pub struct Kpa {
    began: Instant,
    /// What the concurrency is since `at`.
    level: u32,
    at: Instant,
    /// Concurrency × µs of each second, the newest last; at most [`STABLE_S`].
    seconds: VecDeque<u64>,
    panic: Option<Panic>,
    scale_down_delay: Duration,
    /// What was wanted within the delay: falling, the oldest first.
    wanted: VecDeque<(Instant, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Panic {
    since: Instant,
    instances_max: u32,
}

impl Kpa {
    /// A function that nobody has called yet. What was wanted within `scale_down_delay` is kept.
    pub fn new(now: Instant, scale_down_delay: Duration) -> Self {
        Self {
            began: now,
            level: 0,
            at: now,
            seconds: VecDeque::from([0]),
            panic: None,
            scale_down_delay,
            wanted: VecDeque::new(),
        }
    }

    /// From `now` on, `concurrency` requests run or wait. A `now` that lies before an earlier one counts as that one.
    pub fn observe(&mut self, now: Instant, concurrency: u32) {
        self.catch_up(now);
        self.level = concurrency;
    }

    /// Instances wanted where `ready` are up, with `slots` each.
    pub fn desired(&mut self, now: Instant, ready: u32, slots: u32, bounds: Bounds) -> u32 {
        self.catch_up(now);
        let now = self.at;
        let target = f64::from(slots.max(1)) * TARGET;
        let limit = (f64::from(ready.max(1)) * UP_RATE_MAX).ceil() as u32;
        let by = |average: f64| (average / target).ceil() as u32;
        let stable = by(self.average(STABLE_S)).max(ready / DOWN_RATE_MAX).min(limit);
        let urgent = by(self.average(PANIC_S));
        let wanted = self.with_panic(now, ready, stable, urgent.min(limit), urgent);
        self.delayed(now, wanted).max(bounds.min).min(bounds.max)
    }

    fn with_panic(&mut self, now: Instant, ready: u32, stable: u32, urgent: u32, unlimited: u32) -> u32 {
        let over = f64::from(unlimited) >= PANIC_RATIO * f64::from(ready.max(1));
        let calm = |panic: &Panic| !over && now.saturating_duration_since(panic.since) > STABLE;
        self.panic = match self.panic.filter(|panic| !calm(panic)) {
            Some(panic) if over => Some(Panic { since: now, ..panic }),
            None if over => Some(Panic { since: now, instances_max: 0 }),
            same => same,
        };
        match &mut self.panic {
            None => stable,
            Some(panic) => {
                panic.instances_max = panic.instances_max.max(ready).max(stable).max(urgent);
                panic.instances_max
            }
        }
    }

    /// The most that was wanted within the delay.
    fn delayed(&mut self, now: Instant, wanted: u32) -> u32 {
        while self.wanted.back().is_some_and(|(_, earlier)| *earlier <= wanted) {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now, wanted));
        while self.wanted.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > self.scale_down_delay) {
            self.wanted.pop_front();
        }
        self.wanted.front().map_or(wanted, |(_, most)| *most)
    }

    /// Brings the seconds up to `now`.
    fn catch_up(&mut self, now: Instant) {
        if now.saturating_duration_since(self.at) > STABLE {
            // What lies before the window does not matter.
            self.seconds.clear();
            self.seconds.resize(STABLE_S as usize, 0);
            self.at = now - STABLE;
        }
        while self.at < now {
            let into = (self.at - self.began).subsec_nanos();
            let left = Duration::from_nanos(u64::from(1_000_000_000 - into));
            let step = left.min(now - self.at);
            if let Some(second) = self.seconds.back_mut() {
                *second += u64::from(self.level) * step.as_micros() as u64;
            }
            self.at += step;
            if step == left {
                self.seconds.push_back(0);
            }
            if self.seconds.len() > STABLE_S as usize {
                self.seconds.pop_front();
            }
        }
    }

    /// Mean concurrency over the last `seconds`, or since the beginning where that is nearer.
    fn average(&self, seconds: u64) -> f64 {
        let age = self.at - self.began;
        let begun_us = u64::from(age.subsec_micros());
        let whole = age.as_secs().min(seconds - 1);
        let covered_us = whole * 1_000_000 + begun_us;
        if covered_us == 0 {
            return f64::from(self.level);
        }
        self.seconds.iter().rev().take(whole as usize + 1).sum::<u64>() as f64 / covered_us as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WIDE: Bounds = Bounds { min: 0, max: 64 };

    /// A function of ten slots an instance, whose concurrency is given second by second; what is wanted after each.
    fn follow(delay: Duration, levels: &[u32]) -> Vec<u32> {
        let mut now = Instant::now();
        let mut kpa = Kpa::new(now, delay);
        let mut ready = 0;
        let mut wanted = Vec::new();
        for level in levels {
            kpa.observe(now, *level);
            now += SECOND;
            ready = kpa.desired(now, ready, 10, WIDE);
            wanted.push(ready);
        }
        wanted
    }

    #[test]
    fn a_steady_load_gets_what_does_seventy_percent_of_its_slots() {
        assert_eq!(follow(Duration::ZERO, &[7; 70])[69], 1);
        assert_eq!(follow(Duration::ZERO, &[8; 70])[69], 2);
        assert_eq!(follow(Duration::ZERO, &[70; 70])[69], 10);
    }

    #[test]
    fn a_burst_is_met_by_its_last_six_seconds_and_not_sent_away_for_a_minute() {
        let levels: Vec<u32> = [vec![7; 60], vec![70; 6], vec![0; 130]].concat();
        let wanted = follow(Duration::ZERO, &levels);
        assert_eq!(wanted[59], 1);
        assert!(wanted[61] >= 2, "panic after two seconds: {:?}", &wanted[59..70]);
        assert_eq!(wanted[65], 10, "six seconds of seventy");
        assert_eq!(wanted[100], 10, "never down in panic");
        assert_eq!(wanted.last(), Some(&0));
    }

    #[test]
    fn a_step_down_halves_at_most_and_waits_for_the_delay() {
        let levels: Vec<u32> = [vec![28; 70], vec![0; 120]].concat();
        let at_once = follow(Duration::ZERO, &levels);
        let falls: Vec<_> = at_once.windows(2).map(|w| (w[0], w[1])).filter(|(a, b)| b < a).collect();
        assert!(falls.iter().all(|(from, to)| *to >= from / 2), "{falls:?}");
        let later = follow(SECOND * 20, &levels);
        let last = |wanted: &[u32]| wanted.iter().rposition(|w| *w == 4).unwrap();
        assert_eq!(last(&later), last(&at_once) + 20);
    }

    #[test]
    fn the_average_counts_time_and_not_samples() {
        let now = Instant::now();
        let mut kpa = Kpa::new(now, Duration::ZERO);
        kpa.observe(now, 100);
        kpa.observe(now + Duration::from_millis(10), 0);
        kpa.catch_up(now + SECOND * 2);
        assert!((kpa.average(6) - 0.5).abs() < 1e-9, "{}", kpa.average(6));
    }

    proptest! {
        /// Whatever happens at whatever time, the answer lies within its bounds, and memory stays small.
        #[test]
        fn bounds_hold(
            steps in prop::collection::vec((0u64..100_000, 0u32..10_000, 0u32..80, 0u32..300), 1..100),
            min in 0u32..10, max in 0u32..70, delay_ms in 0u64..60_000, back in 0u64..1000,
        ) {
            let mut now = Instant::now() + Duration::from_secs(10);
            let mut kpa = Kpa::new(now, Duration::from_millis(delay_ms));
            for (ms, level, ready, slots) in steps {
                now += Duration::from_millis(ms);
                kpa.observe(now, level);
                kpa.observe(now - Duration::from_millis(back), level);
                let wanted = kpa.desired(now, ready, slots, Bounds { min, max });
                prop_assert!(wanted <= max && (wanted >= min || wanted == max));
                prop_assert!(kpa.seconds.len() <= 60 && kpa.wanted.len() <= 100);
            }
        }

        /// More to do never wants fewer instances.
        #[test]
        fn more_load_wants_no_less(levels in prop::collection::vec(0u32..200, 1..200), more in 0u32..50) {
            let wanted = |extra: u32| {
                let mut now = Instant::now();
                let mut kpa = Kpa::new(now, Duration::ZERO);
                for level in &levels {
                    kpa.observe(now, level + extra);
                    now += TICK;
                }
                kpa.desired(now, 4, 4, WIDE)
            };
            prop_assert!(wanted(more) >= wanted(0));
        }
    }
}
