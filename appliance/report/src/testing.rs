//! Records to report on.

use appliance_price::Prices;
use appliance_types::{Outcome, Record, RequestId};
use proptest::prelude::*;

/// An hour of the Unix epoch, ms.
pub(crate) const HOUR_MS: u64 = 3_600_000;
/// 2026-11-01, ms.
pub(crate) const NOVEMBER_MS: u64 = 20_758 * 86_400_000;

/// A request of `ms` in `memory_bytes`, which came so many ms after November began, charged by the default prices.
pub(crate) fn record(number: u64, came_ms: u64, ms: u64, memory_bytes: u64) -> Record {
    let mut record = Record {
        came_unix_ms: NOVEMBER_MS + came_ms,
        ended_unix_ms: NOVEMBER_MS + came_ms + ms,
        outcome: Outcome::Completed,
        status: 200,
        decode_us: ms * 1_000,
        share_us: ms * 1_000,
        cpu_us: ms * 1_500,
        tokens_in: 20,
        tokens_cached: 5,
        tokens_out: 10,
        memory_bytes,
        ..Record::new(
            RequestId::from_random(number.into()),
            ["app", "shop"][number as usize % 2].parse().unwrap(),
            ["chat", "sum", "spare"][number as usize % 3].parse().unwrap(),
        )
    };
    Prices::default().charge(&mut record, None);
    record
}

/// Any of a few hundred requests.
pub(crate) fn records() -> impl Strategy<Value = Vec<Record>> {
    let one = (0..3 * HOUR_MS, 1..5_000_u64, prop_oneof![Just(0), 1..2_u64 << 30], proptest::option::of(1..9_000_u64));
    prop::collection::vec(one, 0..200).prop_map(|all| {
        let charged = |(number, (came, ms, memory, cap)): (usize, (u64, u64, u64, Option<u64>))| {
            let mut record = record(number as u64, came, ms, memory);
            Prices::default().charge(&mut record, cap);
            record
        };
        all.into_iter().enumerate().map(charged).collect()
    })
}
