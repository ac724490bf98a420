//! The receipt that tells a caller what a request cost. How the amount comes to be: `appliance-price`.

use appliance_price::Prices;
use appliance_types::{Record, RequestId, Tier};
use serde::{Deserialize, Serialize};

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
    /// The version of the prices.
    #[serde(default)]
    pub price_version: u32,
    /// Whether the answer was stopped because a budget was used up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub budget_reached: bool,
    /// What was used past the budget, in 10^-9 of `currency`; it is not charged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waived_nanos: u64,
}

impl Receipt {
    /// The receipt of `record`, which was charged by `prices`.
    pub fn from_record(record: &Record, prices: &Prices) -> Self {
        let bill = prices.bill_of(record);
        let billed_ms = bill.billed_ms;
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
            cost_nanos: bill.cost_nanos,
            currency: prices.currency.to_string(),
            price_version: bill.price_version,
            budget_reached: record.budget_reached,
            waived_nanos: bill.waived_nanos,
        }
    }
}

fn is_zero(nanos: &u64) -> bool {
    *nanos == 0
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
        let expected = r#"{"request_id":"req-00000000000000000000000000000abc","tier":"cold","queue_ms":0.01,"wake_ms":100.001,"prefill_ms":20.0,"decode_ms":300.5,"billed_ms":421,"memory_mib":1024,"gib_ms":421.0,"cost_nanos":7217,"currency":"USD","price_version":1}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn a_receipt_says_that_a_budget_was_reached() {
        let mut record = record();
        Prices::default().charge(&mut record, Some(7_000));
        let receipt = serde_json::to_value(Receipt::from_record(&record, &Prices::default())).unwrap();
        assert_eq!((&receipt["cost_nanos"], &receipt["budget_reached"]), (&7_000.into(), &true.into()));
        assert_eq!((&receipt["waived_nanos"], record.cost_nanos), (&217.into(), 7_000));
    }

    proptest! {
        #[test]
        fn times_have_three_decimals(us in 0u64..1 << 50) {
            let text = serde_json::to_string(&ms(us)).unwrap();
            prop_assert!(text.split_once('.').is_none_or(|(_, decimals)| decimals.len() <= 3), "{}", text);
        }
    }
}
