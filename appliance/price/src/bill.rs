//! A bill: lines, each a quantity at a price, whose sum is the cost.
//!
//! ```text
//!  request      1 begun                                       × price
//!  memory       billed ms × bytes reserved                    × price of a GiB·s / (1000 × 2^30)
//!  cpu          µs of processors                              × price of a second / 10^6
//!  tokens       computed of the prompt | cached of it | out   × price of 1000, each its own / 1000
//! ```
//!
//! Two roundings, both up: time to a whole millisecond, once for all the time of a request, and each line to a whole
//! nano-unit. What was refused before it began costs nothing.

use crate::book::Prices;
use appliance_types::Record;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most lines of a bill.
const LINES_MAX: usize = 6;
/// Byte·ms of a GiB·s.
const GIB_SECOND: u64 = 1_000 << 30;

/// What a request used, as far as there are prices for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Whether it was given to an instance.
    pub begun: bool,
    /// Time waking the instance, µs.
    pub wake_us: u64,
    /// Time of the instance, µs.
    pub work_us: u64,
    /// Time of processors, µs.
    pub cpu_us: u64,
    /// Memory reserved, bytes.
    pub memory_bytes: u64,
    /// Tokens of the prompt that were computed.
    pub tokens_in: u32,
    /// Tokens of the prompt that were found in the cache.
    pub tokens_cached: u32,
    /// Tokens produced.
    pub tokens_out: u32,
    /// Whether it ran when nothing else did.
    pub batch: bool,
}

impl From<&Record> for Measured {
    fn from(record: &Record) -> Self {
        Self {
            // An instance has memory, so a request without any was not given to one.
            begun: record.memory_bytes > 0,
            wake_us: record.wake_share_us,
            work_us: record.share_us,
            cpu_us: record.cpu_us,
            memory_bytes: record.memory_bytes,
            tokens_in: record.tokens_in.saturating_sub(record.tokens_cached),
            tokens_cached: record.tokens_cached,
            tokens_out: record.tokens_out,
            batch: record.batch,
        }
    }
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// That it was begun.
    Request,
    /// Memory reserved, for the time that is billed.
    Memory,
    /// Time of processors.
    Cpu,
    /// Tokens of the prompt that were computed.
    TokensIn,
    /// Tokens of the prompt that were found in the cache.
    TokensCached,
    /// Tokens produced.
    TokensOut,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::TokensIn => "tokens in",
            Self::TokensCached => "tokens cached",
            Self::TokensOut => "tokens out",
        })
    }
}

/// One line: `amount_nanos = quantity × times × price_nanos / per`, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it is for.
    pub what: What,
    /// How much of it: ms for memory, µs for processors.
    pub quantity: u64,
    /// What that is of: bytes for memory, else 1.
    pub times: u64,
    /// The price of `per`, nano-units.
    pub price_nanos: u64,
    /// How much the price is for.
    pub per: u64,
    /// What it comes to, nano-units.
    pub amount_nanos: u64,
}

impl Line {
    fn new(what: What, [quantity, times]: [u64; 2], price_nanos: u64, per: u64) -> Self {
        let product = (u128::from(quantity) * u128::from(times)).checked_mul(price_nanos.into());
        let amount = product.map(|product| product.div_ceil(per.into()));
        let amount_nanos = amount.and_then(|amount| u64::try_from(amount).ok()).unwrap_or(u64::MAX);
        Self { what, quantity, times, price_nanos, per, amount_nanos }
    }
}

/// What a request costs, and how that came to be. Always: `cost_nanos = Σ lines − waived_nanos`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// The version of the prices.
    pub price_version: u32,
    /// Time paid for, ms.
    pub billed_ms: u64,
    /// What is charged, where it is not 0 of something that has no price.
    pub lines: Vec<Line>,
    /// What is not charged, because it went past a budget.
    pub waived_nanos: u64,
    /// What it comes to, nano-units.
    pub cost_nanos: u64,
}

impl Prices {
    /// Milliseconds to pay for.
    pub fn billed_ms(&self, used: &Measured) -> u64 {
        let wake_us = if self.bill_wake { used.wake_us } else { 0 };
        if used.begun { wake_us.saturating_add(used.work_us).div_ceil(1_000) } else { 0 }
    }

    /// What it costs, nano-units: the sum of the lines.
    pub fn cost_nanos(&self, used: &Measured) -> u64 {
        total(self.lines(used).iter())
    }

    /// The bill, of which at most `cap_nanos` is charged.
    pub fn bill(&self, used: &Measured, cap_nanos: Option<u64>) -> Bill {
        let shown = |line: &Line| line.what == What::Request || line.what == What::Memory || line.price_nanos > 0;
        let lines: Vec<_> = self.lines(used).into_iter().filter(|line| used.begun && shown(line)).collect();
        let total = total(lines.iter());
        let cost_nanos = cap_nanos.map_or(total, |cap| total.min(cap));
        Bill {
            price_version: self.version,
            billed_ms: self.billed_ms(used),
            lines,
            waived_nanos: total - cost_nanos,
            cost_nanos,
        }
    }

    /// Milliseconds, waking included where that is billed, that a request in `memory_bytes` may take before `nanos` are
    /// used up, if nothing but its time and its begin are charged.
    pub fn affordable_ms(&self, nanos: u64, memory_bytes: u64) -> u64 {
        let for_time = u128::from(nanos.saturating_sub(self.request)) * u128::from(GIB_SECOND);
        let a_ms = u128::from(self.gib_second) * u128::from(memory_bytes);
        for_time.checked_div(a_ms).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(u64::MAX)
    }

    /// Writes into `record` what it costs, of which at most `cap_nanos` is charged.
    pub fn charge(&self, record: &mut Record, cap_nanos: Option<u64>) {
        let total = self.cost_nanos(&Measured::from(&*record));
        record.price_version = self.version;
        record.cost_nanos = cap_nanos.map_or(total, |cap| total.min(cap));
        record.budget_reached |= record.cost_nanos < total;
    }

    /// The bill of a record that was charged.
    pub fn bill_of(&self, record: &Record) -> Bill {
        self.bill(&Measured::from(record), record.budget_reached.then_some(record.cost_nanos))
    }

    fn lines(&self, used: &Measured) -> [Line; LINES_MAX] {
        let tokens = if used.batch { &self.batch } else { &self.tokens };
        let begun = u64::from(used.begun);
        let of_tokens = |what, count: u32, price| Line::new(what, [u64::from(count) * begun, 1], price, 1_000);
        [
            Line::new(What::Request, [begun, 1], self.request, 1),
            Line::new(What::Memory, [self.billed_ms(used), used.memory_bytes], self.gib_second, GIB_SECOND),
            Line::new(What::Cpu, [used.cpu_us * begun, 1], self.cpu_second, 1_000_000),
            of_tokens(What::TokensIn, used.tokens_in, tokens.tokens_in_1k),
            of_tokens(What::TokensCached, used.tokens_cached, tokens.tokens_cached_1k),
            of_tokens(What::TokensOut, used.tokens_out, tokens.tokens_out_1k),
        ]
    }
}

fn total<'l>(lines: impl Iterator<Item = &'l Line>) -> u64 {
    lines.fold(0, |sum, line| sum.saturating_add(line.amount_nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::TokenPrices;
    use proptest::prelude::*;

    fn measured() -> Measured {
        let (wake_us, work_us, memory_bytes) = (100_001, 320_500, 1 << 30);
        Measured { begun: true, wake_us, work_us, memory_bytes, ..Measured::default() }
    }

    #[test]
    fn amounts_round_up_and_never_wrap() {
        let check = |change: &dyn Fn(&mut Measured, &mut Prices), expected: u64| {
            let (mut used, mut prices) = (measured(), Prices::default());
            change(&mut used, &mut prices);
            assert_eq!(prices.cost_nanos(&used), expected, "{used:?}");
        };
        // 420.501 ms → 421 ms; 421 × 16667 / 1000 = 7016.807 → 7017, and 200 for the request.
        check(&|_, _| {}, 200 + 7017);
        check(&|used, _| used.begun = false, 0);
        check(&|used, _| used.memory_bytes = 0, 200);
        check(&|used, _| used.memory_bytes = 1, 201);
        check(&|_, prices| prices.bill_wake = false, 200 + 5351);
        check(&|used, _| used.work_us = u64::MAX, 200 + 307_451_883_476_517_104);
        check(&|used, prices| (used.work_us, prices.gib_second) = (u64::MAX, u64::MAX), u64::MAX);
        check(&|used, _| (used.work_us, used.memory_bytes) = (u64::MAX, u64::MAX), u64::MAX);
        check(&|used, prices| (used.cpu_us, prices.cpu_second) = (1, 1), 7217 + 1);
    }

    #[test]
    fn tokens_are_charged_by_kind_and_class() {
        let tokens = TokenPrices { tokens_in_1k: 1_000, tokens_cached_1k: 100, tokens_out_1k: 3_001 };
        let prices = Prices { tokens, gib_second: 0, ..Prices::default() };
        let used = Measured { tokens_in: 20, tokens_cached: 10, tokens_out: 60, ..measured() };
        let bill = prices.bill(&used, None);
        let lines: Vec<_> = bill.lines.iter().map(|line| (line.what, line.amount_nanos)).collect();
        let of_tokens = [(What::TokensIn, 20), (What::TokensCached, 1), (What::TokensOut, 181)];
        assert_eq!(lines, [&[(What::Request, 200), (What::Memory, 0)][..], &of_tokens].concat());
        assert_eq!(bill.cost_nanos, 402);
        assert_eq!(prices.cost_nanos(&Measured { batch: true, ..used }), 200, "batch has prices of its own");
    }

    #[test]
    fn what_is_past_a_budget_is_waived() {
        let bill = Prices::default().bill(&measured(), Some(7_000));
        assert_eq!((bill.cost_nanos, bill.waived_nanos), (7_000, 217));
        let nothing = Prices::default().bill(&Measured { begun: false, ..measured() }, None);
        assert_eq!((nothing.cost_nanos, nothing.billed_ms, nothing.lines.len()), (0, 0, 0));
    }

    fn any_prices() -> impl Strategy<Value = Prices> {
        let token = || (any::<u32>(), any::<u32>(), any::<u32>());
        let token = move || {
            token().prop_map(|(a, b, c)| TokenPrices {
                tokens_in_1k: a.into(),
                tokens_cached_1k: b.into(),
                tokens_out_1k: c.into(),
            })
        };
        let first = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>());
        (first, token(), token()).prop_map(|((request, gib_second, cpu_second, bill_wake), tokens, batch)| Prices {
            request,
            gib_second,
            cpu_second,
            bill_wake,
            tokens,
            batch,
            ..Prices::default()
        })
    }

    fn any_measured() -> impl Strategy<Value = Measured> {
        let times = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let tokens = (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>());
        (times, tokens).prop_map(|((wake_us, work_us, cpu_us, memory_bytes), (a, b, c, batch))| Measured {
            begun: true,
            wake_us,
            work_us,
            cpu_us,
            memory_bytes,
            tokens_in: a,
            tokens_cached: b,
            tokens_out: c,
            batch,
        })
    }

    proptest! {
        /// Whatever the numbers: the lines, less what is waived, are the cost, and no more than the cap is charged.
        #[test]
        fn the_lines_are_the_cost(prices in any_prices(), used in any_measured(), cap: Option<u64>) {
            let bill = prices.bill(&used, cap);
            prop_assert_eq!(total(bill.lines.iter()) - bill.waived_nanos, bill.cost_nanos);
            prop_assert!(cap.is_none_or(|cap| bill.cost_nanos <= cap));
            prop_assert_eq!(prices.cost_nanos(&used), bill.cost_nanos + bill.waived_nanos);
        }

        /// More of anything, or a higher price, never costs less.
        #[test]
        fn more_never_costs_less(prices in any_prices(), used in any_measured(), which in 0usize..8, more: u32) {
            let (mut above, mut dearer) = (used, prices);
            match which {
                0 => above.wake_us = used.wake_us.saturating_add(more.into()),
                1 => above.work_us = used.work_us.saturating_add(more.into()),
                2 => above.cpu_us = used.cpu_us.saturating_add(more.into()),
                3 => above.memory_bytes = used.memory_bytes.saturating_add(more.into()),
                4 => above.tokens_in = used.tokens_in.saturating_add(more),
                5 => above.tokens_cached = used.tokens_cached.saturating_add(more),
                6 => above.tokens_out = used.tokens_out.saturating_add(more),
                _ => dearer.gib_second = prices.gib_second.saturating_add(more.into()),
            }
            prop_assert!(dearer.cost_nanos(&above) >= prices.cost_nanos(&used));
        }

        #[test]
        fn memory_is_at_least_exact_and_less_than_one_above(us in 0u64..1 << 40, bytes in 0u64..1 << 42, price in 0u64..1 << 30) {
            let used = Measured { begun: true, work_us: us, memory_bytes: bytes, ..Measured::default() };
            let prices = Prices { gib_second: price, request: 0, ..Prices::default() };
            let exact = u128::from(us.div_ceil(1_000)) * u128::from(bytes) * u128::from(price);
            let charged = u128::from(prices.cost_nanos(&used)) * (1_000 << 30);
            prop_assert!(charged >= exact && charged < exact + (1_000 << 30) || exact >= u128::from(u64::MAX) * (1_000 << 30));
        }

        /// Time lasts until the money does, to the millisecond.
        #[test]
        fn money_lasts_as_long_as_said(nanos in 200u64..1 << 40, memory_bytes in 1u64..1 << 42, gib_second in 0u64..1 << 30) {
            let prices = Prices { gib_second, ..Prices::default() };
            let cost = |ms: u64| prices.cost_nanos(&Measured { begun: true, work_us: ms * 1_000, memory_bytes, ..Measured::default() });
            let ms = prices.affordable_ms(nanos, memory_bytes);
            prop_assert_eq!(ms == u64::MAX, gib_second == 0);
            if ms < u64::MAX / 2_000 {
                prop_assert!(cost(ms) <= nanos && cost(ms + 1) > nanos);
            }
        }
    }
}
