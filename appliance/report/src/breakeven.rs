//! Pay as used, or keep an instance up: which is cheaper for the requests that came, and at which rate that turns.
//!
//! ```text
//!  serverless    Σ what was charged
//!  provisioned   memory × period × price of keeping it  +  Σ on it: request, work at its price  +  Σ beside it: as charged
//!                                                              └ arrives while a slot is free      └ all slots are taken
//! ```
//!
//! A provisioned instance has the function's memory and slots, and wakes nobody. Another rate is the same arrivals, nearer to each other or
//! farther apart, of the same lengths; what is asked for is the lowest rate at which the instance is no dearer. It
//! is looked for at powers of two of the measured rate, then halved in on: with slots that overflow more than one crossing
//! could be, of which this is the first that those steps meet. Left out: that fewer or more wakes come with another
//! rate; each request brings the wake that it was charged.

use crate::visit::{Size, Visit, cost_of};
use appliance_price::{Book, Prices};
use appliance_types::FunctionName;
use serde::Serialize;
use std::{cmp::Reverse, collections::BinaryHeap};

/// Of the rate that was measured: the lowest and the highest that are looked at, thousandths.
const RATE_MIN: u64 = 1;
const RATE_MAX: u64 = 1 << 30;
/// The rate that was measured, thousandths.
const MEASURED: u64 = 1_000;
const GIB_MS: u128 = 1_000 << 30;
const HOUR_MS: u64 = 3_600_000;

/// Prices of a provisioned instance, nano-units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Provisioned {
    /// A GiB kept for a second, used or not.
    pub kept_gib_second: u64,
    /// A GiB used for a second, beside that.
    pub used_gib_second: u64,
}

impl Provisioned {
    /// As AWS Lambda's list has them to its price of paying as used: a quarter, and seven twelfths.
    pub fn of(prices: &Prices) -> Self {
        let part = |times: u128, of: u128| {
            u64::try_from((u128::from(prices.gib_second) * times).div_ceil(of)).unwrap_or(u64::MAX)
        };
        Self { kept_gib_second: part(1, 4), used_gib_second: part(7, 12) }
    }
}

/// Which of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cheaper {
    /// To pay as used.
    Serverless,
    /// To keep an instance; also where both are the same.
    Provisioned,
}

/// The comparison for one function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakeven {
    /// The function.
    pub function: FunctionName,
    /// Requests that this is by.
    pub requests: u64,
    /// Over so long, ms.
    pub period_ms: u64,
    /// Requests an hour.
    pub per_hour: f64,
    /// What was charged, nano-units.
    pub serverless_nanos: u64,
    /// What a provisioned instance would have cost with what came beside it, nano-units.
    pub provisioned_nanos: u64,
    /// Requests that came while all its slots were taken.
    pub beside: u64,
    /// Which is cheaper.
    pub cheaper: Cheaper,
    /// From this rate on the instance is no dearer, requests an hour; none where no rate up to a million times the
    /// measured one makes it so.
    pub turns_at_per_hour: Option<f64>,
}

/// A request, as both sides of the comparison see it.
struct Arrival {
    after_ms: u64,
    busy_ms: u64,
    serverless_nanos: u64,
    provisioned_nanos: u64,
}

struct Pattern {
    /// In the order in which they came.
    arrivals: Vec<Arrival>,
    period_ms: u64,
    slots: usize,
    memory_bytes: u64,
    kept_gib_second: u64,
}

/// Compares for a function of this size, which had these visits within `period_ms`.
pub fn breakeven(size: &Size, visits: &[Visit], book: &Book, prices: Provisioned, period_ms: u64) -> Breakeven {
    let pattern = Pattern::new(size, visits, book, prices, period_ms);
    let period_ms = pattern.period_ms;
    let (provisioned_nanos, beside) = pattern.provisioned(MEASURED);
    let serverless_nanos = pattern.serverless();
    let per_hour = visits.len() as f64 * HOUR_MS as f64 / period_ms as f64;
    Breakeven {
        function: size.function.clone(),
        requests: visits.len() as u64,
        period_ms,
        per_hour,
        serverless_nanos,
        provisioned_nanos,
        beside,
        cheaper: if provisioned_nanos <= serverless_nanos { Cheaper::Provisioned } else { Cheaper::Serverless },
        turns_at_per_hour: pattern.turns_at().map(|rate| per_hour * rate as f64 / MEASURED as f64),
    }
}

impl Pattern {
    fn new(size: &Size, visits: &[Visit], book: &Book, prices: Provisioned, period_ms: u64) -> Self {
        let mut visits: Vec<&Visit> = visits.iter().collect();
        visits.sort_by_key(|visit| visit.came_unix_ms);
        let first = visits.first().map_or(0, |visit| visit.came_unix_ms);
        let last = visits.iter().map(|visit| visit.ended_unix_ms).max().unwrap_or(0);
        let arrival = |visit: &&Visit| Arrival {
            after_ms: visit.came_unix_ms - first,
            busy_ms: visit.busy_us.div_ceil(1_000),
            serverless_nanos: visit.cost_nanos,
            provisioned_nanos: on_it(visit, book, prices),
        };
        Self {
            arrivals: visits.iter().map(arrival).collect(),
            period_ms: period_ms.max(last - first).max(1),
            slots: size.concurrency.max(1) as usize,
            memory_bytes: size.memory_bytes,
            kept_gib_second: prices.kept_gib_second,
        }
    }

    fn serverless(&self) -> u64 {
        self.arrivals.iter().fold(0, |sum, arrival| sum.saturating_add(arrival.serverless_nanos))
    }

    /// What the same requests cost with an instance at `rate` thousandths of the measured rate, and how many came beside it.
    fn provisioned(&self, rate: u64) -> (u64, u64) {
        let kept_ms = u128::from(self.period_ms) * u128::from(MEASURED) / u128::from(rate);
        let kept = kept_ms * u128::from(self.memory_bytes) * u128::from(self.kept_gib_second);
        let mut cost = u64::try_from(kept.div_ceil(GIB_MS)).unwrap_or(u64::MAX);
        let (mut ends, mut beside) = (BinaryHeap::with_capacity(self.slots.min(1 << 8)), 0);
        for arrival in &self.arrivals {
            // In thousandths of a millisecond of the measured time's length, so that no two meet by rounding.
            let at = u128::from(arrival.after_ms) * u128::from(MEASURED) * 1_000 / u128::from(rate);
            while ends.peek().is_some_and(|Reverse(end)| *end <= at) {
                ends.pop();
            }
            if ends.len() < self.slots {
                ends.push(Reverse(at + u128::from(arrival.busy_ms) * 1_000));
                cost = cost.saturating_add(arrival.provisioned_nanos);
            } else {
                beside += 1;
                cost = cost.saturating_add(arrival.serverless_nanos);
            }
        }
        (cost, beside)
    }

    fn turns_at(&self) -> Option<u64> {
        let pays = |rate: u64| self.provisioned(rate).0 <= self.serverless();
        let rates = std::iter::successors(Some(RATE_MIN), |rate| rate.checked_mul(2).filter(|rate| *rate <= RATE_MAX));
        let mut dear = 0;
        for rate in rates {
            if pays(rate) {
                let mut fair = rate;
                while fair - dear > 1 {
                    let middle = dear + (fair - dear) / 2;
                    *(if pays(middle) { &mut fair } else { &mut dear }) = middle;
                }
                return Some(fair);
            }
            dear = rate;
        }
        None
    }
}

/// What a request costs on a provisioned instance, beside what that costs anyhow.
fn on_it(visit: &Visit, book: &Book, prices: Provisioned) -> u64 {
    match book.version(visit.price_version) {
        Some(then) => {
            let prices = Prices { gib_second: prices.used_gib_second, bill_wake: false, ..**then };
            prices.cost_nanos(&visit.used)
        }
        None => cost_of(std::slice::from_ref(visit), book, |used| used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{record, records};
    use proptest::prelude::*;

    fn size(concurrency: u32) -> Size {
        let function = "chat".parse().unwrap();
        Size { function, memory_bytes: 1 << 30, memory_is_measured: false, cpus: 2, concurrency, instances_max: 1 }
    }

    fn lambda() -> Provisioned {
        Provisioned::of(&Prices::default())
    }

    #[test]
    fn the_ratios_are_lambdas() {
        assert_eq!(lambda(), Provisioned { kept_gib_second: 4_167, used_gib_second: 9_723 });
    }

    /// A second of work each ten: what is saved on it, 6,944 of each, pays for six tenths of a second of keeping.
    #[test]
    fn it_turns_where_lambdas_does() {
        let visits: Vec<_> = (0..360).filter_map(|n| Visit::of(&record(n, n * 10_000, 1_000, 1 << 30))).collect();
        let report = breakeven(&size(1), &visits, &Book::default(), lambda(), HOUR_MS);
        assert_eq!((report.requests, report.beside, report.cheaper), (360, 0, Cheaper::Serverless));
        assert_eq!(report.serverless_nanos, 360 * (200 + 16_667));
        assert_eq!(report.provisioned_nanos, 360 * (200 + 9_723) + 3_600 * 4_167);
        let exact = 3_600.0 * 4_167.0 / 6_944.0;
        let turns = report.turns_at_per_hour.unwrap();
        assert!((turns / exact - 1.0).abs() < 0.001, "{turns} {exact}");
    }

    /// Ten at once, each ten seconds, on one slot: nine of ten come beside it, whatever the rate, and it pays ten times later.
    #[test]
    fn bursts_come_beside_it() {
        let all = (0..3_600).filter_map(|n| Visit::of(&record(n, n / 10 * 10_000, 1_000, 1 << 30)));
        let visits: Vec<_> = all.collect();
        let one = breakeven(&size(1), &visits, &Book::default(), lambda(), HOUR_MS);
        assert_eq!(one.beside, 3_240);
        let ten = breakeven(&size(10), &visits, &Book::default(), lambda(), HOUR_MS);
        assert_eq!((ten.beside, ten.cheaper), (0, Cheaper::Provisioned));
        let ratio = one.turns_at_per_hour.unwrap() / ten.turns_at_per_hour.unwrap();
        assert!((9.9..10.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn without_requests_nothing_turns() {
        let report = breakeven(&size(1), &[], &Book::default(), lambda(), HOUR_MS);
        assert_eq!((report.turns_at_per_hour, report.cheaper), (None, Cheaper::Serverless));
        assert_eq!(report.provisioned_nanos, 3_600 * 4_167);
    }

    proptest! {
        /// At the rate that is named the instance is no dearer, a thousandth below it is; and who has a place costs what it would.
        #[test]
        fn it_turns_at_the_rate_that_is_named(records in records(), slots in 1u32..6, kept in 0u64..20_000) {
            let visits: Vec<_> = records.iter().filter_map(Visit::of).collect();
            let prices = Provisioned { kept_gib_second: kept, used_gib_second: 9_722 };
            let pattern = Pattern::new(&size(slots), &visits, &Book::default(), prices, HOUR_MS);
            let pays = |rate| pattern.provisioned(rate).0 <= pattern.serverless();
            match pattern.turns_at() {
                Some(rate) => prop_assert!(pays(rate) && (rate == RATE_MIN || !pays(rate - 1))),
                None => prop_assert!(!pays(MEASURED) && !pays(RATE_MAX)),
            }
            let (_, beside) = pattern.provisioned(RATE_MIN);
            prop_assert!(beside <= pattern.provisioned(RATE_MAX).1, "farther apart, more have a place");
        }
    }
}
