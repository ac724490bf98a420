//! What a request costs, and the receipt that tells its caller.
//!
//! ```text
//!  cost = request + ceil(billed_ms) × reserved GiB × gib_second / 1000      rounded up to a whole nano-unit
//! ```
//!
//! Money is whole nano-units of a currency, 10^-9 each, and never a float. Intermediate products are 128 bits wide:
//! 2^64 ms × 2^44 bytes would not fit in 64, and what overflows even 128 is charged as the greatest amount there is.

use appliance_types::{Record, RequestId, Tier};
use serde::{Deserialize, Serialize};

/// What is charged for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Nano-units for a GiB reserved for a second.
    pub gib_second: u64,
    /// Nano-units for a request.
    pub request: u64,
    /// Whether time waking an instance is charged.
    pub bill_wake: bool,
    /// ISO 4217 code.
    pub currency: String,
}

/// AWS Lambda's list prices, in nano-dollars.
impl Default for Prices {
    fn default() -> Self {
        Self { gib_second: 16_667, request: 200, bill_wake: true, currency: "USD".to_owned() }
    }
}

impl Prices {
    /// Milliseconds of `record` to pay for, rounded up to a whole one: its part of its instances' time, and of the wakes that
    /// it waited for.
    pub fn billed_ms(&self, record: &Record) -> u64 {
        let wake_us = if self.bill_wake { record.wake_share_us } else { 0 };
        wake_us.saturating_add(record.share_us).div_ceil(1_000)
    }

    /// What `record` costs, nano-units.
    pub fn cost_nanos(&self, record: &Record) -> u64 {
        let byte_ms = u128::from(self.billed_ms(record)) * u128::from(record.memory_bytes);
        let nanos = byte_ms.checked_mul(self.gib_second.into()).map(|product| product.div_ceil(1_000 << 30));
        let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or(u64::MAX);
        nanos.saturating_add(self.request)
    }
}

/// What a caller is told about the bill: `usage.ember`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The request.
    pub request_id: RequestId,
    /// Where the function was found.
    pub tier: Tier,
    /// Time waiting for a slot.
    pub queue_ms: f64,
    /// Time waking an instance.
    pub wake_ms: f64,
    /// Time feeding the prompt.
    pub prefill_ms: f64,
    /// Time producing tokens.
    pub decode_ms: f64,
    /// Time paid for.
    pub billed_ms: u64,
    /// Memory reserved.
    pub memory_mib: u64,
    /// Memory reserved times time paid for.
    pub gib_ms: f64,
    /// The price, in 10^-9 of `currency`.
    pub cost_nanos: u64,
    /// ISO 4217 code.
    pub currency: String,
}

impl Receipt {
    /// The receipt of `record` at `prices`.
    pub fn from_record(record: &Record, prices: &Prices) -> Self {
        let billed_ms = prices.billed_ms(record);
        let gib = record.memory_bytes as f64 / f64::from(1 << 30);
        Self {
            request_id: record.request,
            tier: record.tier,
            queue_ms: ms(record.queue_us),
            wake_ms: ms(record.wake_us),
            prefill_ms: ms(record.prefill_us),
            decode_ms: ms(record.decode_us),
            billed_ms,
            memory_mib: record.memory_bytes.div_ceil(1 << 20),
            gib_ms: (billed_ms as f64 * gib * 1_000.0).round() / 1_000.0,
            cost_nanos: prices.cost_nanos(record),
            currency: prices.currency.clone(),
        }
    }
}

/// Microseconds as milliseconds, of at most three decimals when written.
pub(crate) fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use appliance_types::Outcome;
    use proptest::prelude::*;

    pub(crate) fn record() -> Record {
        Record {
            outcome: Outcome::Completed,
            status: 200,
            wake_us: 100_001,
            queue_us: 10,
            prefill_us: 20_000,
            decode_us: 300_500,
            share_us: 320_500,
            wake_share_us: 100_001,
            tokens_in: 30,
            tokens_cached: 10,
            tokens_out: 60,
            memory_bytes: 1 << 30,
            ..Record::new(RequestId::from_random(0xabc), "admin".parse().unwrap(), "assistant".parse().unwrap())
        }
    }

    #[test]
    fn a_receipt_shows_its_sum() {
        let json = serde_json::to_string(&Receipt::from_record(&record(), &Prices::default())).unwrap();
        // 420.501 ms → 421 ms; 421 × 16667 / 1000 = 7016.807 → 7017, and 200 for the request.
        let expected = r#"{"request_id":"req-00000000000000000000000000000abc","tier":"cold","queue_ms":0.01,"wake_ms":100.001,"prefill_ms":20.0,"decode_ms":300.5,"billed_ms":421,"memory_mib":1024,"gib_ms":421.0,"cost_nanos":7217,"currency":"USD"}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn amounts_round_up_and_never_wrap() {
        let check = |change: &dyn Fn(&mut Record, &mut Prices), expected: u64| {
            let (mut record, mut prices) = (record(), Prices::default());
            change(&mut record, &mut prices);
            assert_eq!(prices.cost_nanos(&record), expected, "{record:?}");
        };
        check(&|record, _| record.memory_bytes = 0, 200);
        check(&|record, _| record.memory_bytes = 1, 201);
        check(&|_, prices| prices.bill_wake = false, 200 + 5351);
        check(&|record, _| record.share_us = u64::MAX, 200 + 307_451_883_476_517_104);
        check(&|record, prices| (record.share_us, prices.gib_second) = (u64::MAX, u64::MAX), u64::MAX);
        check(&|record, _| (record.share_us, record.memory_bytes) = (u64::MAX, u64::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_bill_is_at_least_exact_and_less_than_one_above(us in 0u64..1 << 40, bytes in 0u64..1 << 42, price in 0u64..1 << 30) {
            let record = Record { wake_share_us: 0, share_us: us, memory_bytes: bytes, ..record() };
            let prices = Prices { gib_second: price, request: 0, ..Prices::default() };
            let exact = u128::from(us.div_ceil(1_000)) * u128::from(bytes) * u128::from(price);
            let charged = u128::from(prices.cost_nanos(&record)) * (1_000 << 30);
            prop_assert!(charged >= exact && charged < exact + (1_000 << 30) || exact >= u128::from(u64::MAX) * (1_000 << 30));
        }

        #[test]
        fn times_have_three_decimals(us in 0u64..1 << 50) {
            let text = serde_json::to_string(&ms(us)).unwrap();
            prop_assert!(text.split_once('.').is_none_or(|(_, decimals)| decimals.len() <= 3), "{}", text);
        }
    }
}
