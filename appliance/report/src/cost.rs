//! Cost per token, by function and key.

use appliance_types::{FunctionName, KeyName, Record};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a key paid for a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// The function.
    pub function: FunctionName,
    /// The key.
    pub key: KeyName,
    /// Requests, those that were refused included.
    pub requests: u64,
    /// Tokens of prompts, those found in the cache included.
    pub tokens_in: u64,
    /// Tokens produced.
    pub tokens_out: u64,
    /// Charged, nano-units.
    pub cost_nanos: u64,
    /// Of a thousand tokens in and out, nano-units, rounded up; none where there were no tokens.
    pub per_1k_tokens_nanos: Option<u64>,
    /// Of a thousand tokens out, if all is charged to them, nano-units, rounded up.
    pub per_1k_tokens_out_nanos: Option<u64>,
}

#[derive(Debug, Default)]
struct Sums {
    requests: u64,
    tokens_in: u64,
    tokens_out: u64,
    cost_nanos: u64,
}

/// Sums as records come.
#[derive(Debug, Default)]
pub struct Costs(BTreeMap<(FunctionName, KeyName), Sums>);

impl Costs {
    /// Counts a record.
    pub fn add(&mut self, record: &Record) {
        let sums = self.0.entry((record.function.clone(), record.key.clone())).or_default();
        sums.requests += 1;
        sums.tokens_in += u64::from(record.tokens_in);
        sums.tokens_out += u64::from(record.tokens_out);
        sums.cost_nanos = sums.cost_nanos.saturating_add(record.cost_nanos);
    }

    /// A row for each function and key, in this order.
    pub fn rows(&self) -> Vec<Cost> {
        let row = |((function, key), sums): (&(FunctionName, KeyName), &Sums)| {
            let Sums { requests, tokens_in, tokens_out, cost_nanos } = *sums;
            Cost {
                function: function.clone(),
                key: key.clone(),
                requests,
                tokens_in,
                tokens_out,
                cost_nanos,
                per_1k_tokens_nanos: per_1k(cost_nanos, tokens_in + tokens_out),
                per_1k_tokens_out_nanos: per_1k(cost_nanos, tokens_out),
            }
        };
        self.0.iter().map(row).collect()
    }
}

fn per_1k(cost_nanos: u64, tokens: u64) -> Option<u64> {
    let amount = (u128::from(cost_nanos) * 1_000).checked_add(u128::from(tokens.checked_sub(1)?))?;
    u64::try_from(amount / u128::from(tokens)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{record, records};
    use proptest::prelude::*;

    #[test]
    fn a_thousand_tokens_cost_what_theirs_did() {
        let mut costs = Costs::default();
        let priced = Record { cost_nanos: 3_001, ..record(0, 0, 10, 1 << 30) };
        costs.add(&priced);
        costs.add(&Record { tokens_in: 0, tokens_out: 0, cost_nanos: 0, ..record(1, 0, 10, 1 << 30) });
        let rows = costs.rows();
        assert_eq!((rows[0].per_1k_tokens_nanos, rows[0].per_1k_tokens_out_nanos), (Some(100_034), Some(300_100)));
        assert_eq!((rows[1].requests, rows[1].per_1k_tokens_nanos), (1, None));
    }

    proptest! {
        #[test]
        fn rows_add_up_to_the_records(records in records()) {
            let mut costs = Costs::default();
            records.iter().for_each(|record| costs.add(record));
            let rows = costs.rows();
            let sum = |of: fn(&Cost) -> u64| rows.iter().map(of).sum::<u64>();
            prop_assert_eq!(sum(|row| row.requests), records.len() as u64);
            prop_assert_eq!(sum(|row| row.cost_nanos), records.iter().map(|record| record.cost_nanos).sum::<u64>());
            for row in rows {
                let (tokens, cost) = (u128::from(row.tokens_in + row.tokens_out), u128::from(row.cost_nanos) * 1_000);
                let price = u128::from(row.per_1k_tokens_nanos.expect("each has tokens"));
                prop_assert!(price * tokens >= cost && (price.max(1) - 1) * tokens <= cost);
            }
        }
    }
}
