//! What a fleet has used, summed by one thing. Pure.

use serde::Serialize;
use std::collections::BTreeMap;

const HOUR_MS: u64 = 3_600_000;

/// What a sum is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The box.
    Box,
    /// The key that pays, over all boxes.
    Key,
    /// The project of that key; empty for those without one.
    Project,
    /// The function, over all boxes.
    Function,
    /// The hour in which it ended; its start, ms since the Unix epoch, in decimal.
    Hour,
}

/// Of a request, what is summed and by what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) project: String,
    pub(crate) function: String,
    pub(crate) ended_ms: u64,
    pub(crate) completed: bool,
    pub(crate) tokens_in: u64,
    pub(crate) tokens_cached: u64,
    pub(crate) tokens_out: u64,
    pub(crate) wake_us: u64,
    pub(crate) work_us: u64,
    pub(crate) cost_nanos: u64,
}

/// The sums of one group; none passes 2^64 - 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// The group.
    pub group: String,
    /// What its costs are in; empty where its box told no prices.
    pub currency: String,
    /// Requests that ended.
    pub requests: u64,
    /// Of these, completed.
    pub completed: u64,
    /// Tokens of prompts.
    pub tokens_in: u64,
    /// Of these, found in a cache.
    pub tokens_cached: u64,
    /// Tokens produced.
    pub tokens_out: u64,
    /// Waking, µs.
    pub wake_us: u64,
    /// Feeding prompts and producing tokens, µs.
    pub work_us: u64,
    /// Billed, 10^-9 of the currency.
    pub cost_nanos: u64,
}

/// Sums by group, as requests come.
#[derive(Debug)]
pub struct Usage {
    by: By,
    currencies: BTreeMap<String, String>,
    groups: BTreeMap<(String, String), Sums>,
}

impl Usage {
    /// No sums yet. `currencies` says what each box charges in: sums are never made over two of them.
    pub fn new(by: By, currencies: BTreeMap<String, String>) -> Self {
        Self { by, currencies, groups: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, row: &Row) {
        let group = match self.by {
            By::Box => row.name.clone(),
            By::Key => row.key.clone(),
            By::Project => row.project.clone(),
            By::Function => row.function.clone(),
            By::Hour => (row.ended_ms / HOUR_MS * HOUR_MS).to_string(),
        };
        let currency = self.currencies.get(&row.name).cloned().unwrap_or_default();
        let sums = self.groups.entry((group, currency)).or_default();
        for (sum, more) in [
            (&mut sums.requests, 1),
            (&mut sums.completed, u64::from(row.completed)),
            (&mut sums.tokens_in, row.tokens_in),
            (&mut sums.tokens_cached, row.tokens_cached),
            (&mut sums.tokens_out, row.tokens_out),
            (&mut sums.wake_us, row.wake_us),
            (&mut sums.work_us, row.work_us),
            (&mut sums.cost_nanos, row.cost_nanos),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// The sums, by group.
    pub fn rows(self) -> Vec<Sums> {
        let named = |((group, currency), sums)| Sums { group, currency, ..sums };
        self.groups.into_iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_by_group_and_never_over_two_currencies() {
        let currencies = [("a", "USD"), ("b", "EUR"), ("c", "USD")].map(|(name, of)| (name.to_owned(), of.to_owned()));
        let row = |name: &str, cost_nanos| Row {
            name: name.into(),
            key: "app".into(),
            completed: true,
            tokens_out: 2,
            cost_nanos,
            ..Row::default()
        };
        let rows = [row("a", 1), row("b", 10), row("c", u64::MAX), row("d", 5)];
        let sums = |by| {
            let mut usage = Usage::new(by, currencies.clone().into());
            rows.iter().for_each(|row| usage.add(row));
            usage
                .rows()
                .into_iter()
                .map(|sums| (sums.group, sums.currency, sums.requests, sums.cost_nanos))
                .collect::<Vec<_>>()
        };
        let of = |group: &str, currency: &str, requests, cost| (group.to_owned(), currency.to_owned(), requests, cost);
        assert_eq!(sums(By::Key), [of("app", "", 1, 5), of("app", "EUR", 1, 10), of("app", "USD", 2, u64::MAX)]);
        assert_eq!(sums(By::Box).len(), 4);
        assert_eq!(sums(By::Hour)[0].0, "0");
    }
}
