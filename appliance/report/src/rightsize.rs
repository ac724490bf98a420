//! What a function needs by its peaks.
//!
//! Memory: where a snapshot was taken an instance reserves what it was measured to need, and nothing better is known: what is
//! read of one that was restored is what it wrote, not what it may write. Elsewhere the highest that was read of any instance
//! and a quarter more, in steps of 64 MiB, and never more than now; a peak near the limit may be page cache that fills it, so
//! nothing is said there. Cores: what the busiest requests but one in twenty
//! used of their instance's time. Concurrency: the most requests that were there at once, waiting ones included, over the
//! instances that there may be. The saving is the bills of the same requests, made anew with that memory.

use crate::visit::{Size, Visit, cost_of};
use appliance_price::{Book, Measured};
use appliance_types::FunctionName;
use serde::Serialize;

const STEP_BYTES: u64 = 64 << 20;
/// Of peaks, percent.
const HEADROOM: u64 = 125;
/// Of the limit, percent: above this a peak says no more than that the limit was reached.
const FULL: u64 = 90;
/// Hundredths of a core that are noise.
const NOISE: u64 = 10;
/// Most sequences of an instance.
const CONCURRENCY_MAX: u64 = 255;

/// What a function has, what was measured, what is suggested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rightsize {
    /// The function.
    pub function: FunctionName,
    /// Requests that this is by.
    pub requests: u64,
    /// Memory of an instance now, bytes.
    pub memory_bytes: u64,
    /// Most that was read of one, bytes; none where nobody looked.
    pub memory_peak_bytes: Option<u64>,
    /// Suggested, bytes.
    pub memory_suggested_bytes: u64,
    /// Cores of an instance now.
    pub cpus: u32,
    /// Cores that 95 of 100 requests did not exceed, hundredths.
    pub cpus_p95_hundredths: u64,
    /// Suggested.
    pub cpus_suggested: u32,
    /// Sequences in an instance now.
    pub concurrency: u32,
    /// Most requests at once, waiting ones included.
    pub at_once_peak: u64,
    /// Suggested.
    pub concurrency_suggested: u32,
    /// What the requests cost, nano-units, no budget counted.
    pub cost_nanos: u64,
    /// What they would have cost less with the suggested memory, nano-units.
    pub saving_nanos: u64,
}

/// What a function of this size, which had these visits, needs.
pub fn rightsize(size: &Size, visits: &[Visit], book: &Book) -> Rightsize {
    let peak_kib = visits.iter().map(|visit| visit.peak_kib).max().unwrap_or(0);
    let memory_peak_bytes = (peak_kib > 0).then_some(u64::from(peak_kib) << 10);
    let memory_suggested_bytes = match memory_peak_bytes {
        Some(peak) if !size.memory_is_measured => memory(size.memory_bytes, peak),
        _ => size.memory_bytes,
    };
    let cpus_p95_hundredths = cores_p95(visits);
    let cpus = u32::try_from(cpus_p95_hundredths.saturating_sub(NOISE).div_ceil(100)).unwrap_or(u32::MAX);
    let at_once_peak = at_once(visits);
    let concurrency = at_once_peak.div_ceil(u64::from(size.instances_max.max(1))).clamp(1, CONCURRENCY_MAX);
    let cost_nanos = cost_of(visits, book, |used| used);
    let smaller = |used: Measured| Measured { memory_bytes: used.memory_bytes.min(memory_suggested_bytes), ..used };
    Rightsize {
        function: size.function.clone(),
        requests: visits.len() as u64,
        memory_bytes: size.memory_bytes,
        memory_peak_bytes,
        memory_suggested_bytes,
        cpus: size.cpus,
        cpus_p95_hundredths,
        cpus_suggested: if visits.is_empty() { size.cpus } else { cpus.clamp(1, size.cpus.max(1)) },
        concurrency: size.concurrency,
        at_once_peak,
        concurrency_suggested: if visits.is_empty() { size.concurrency } else { concurrency as u32 },
        cost_nanos,
        saving_nanos: cost_nanos - cost_of(visits, book, smaller).min(cost_nanos),
    }
}

fn memory(now_bytes: u64, peak_bytes: u64) -> u64 {
    if u128::from(peak_bytes) * 100 >= u128::from(now_bytes) * u128::from(FULL) {
        return now_bytes;
    }
    (peak_bytes * HEADROOM).div_ceil(100).next_multiple_of(STEP_BYTES).min(now_bytes)
}

fn cores_p95(visits: &[Visit]) -> u64 {
    let cores = |visit: &Visit| {
        let time_us = visit.used.work_us.saturating_add(visit.used.wake_us);
        (time_us > 0).then(|| (u128::from(visit.used.cpu_us) * 100 / u128::from(time_us)) as u64)
    };
    let mut all: Vec<u64> = visits.iter().filter_map(cores).collect();
    all.sort_unstable();
    all.get((all.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

/// Most at once; who comes when another ends is not at once with him.
fn at_once(visits: &[Visit]) -> u64 {
    let edges = |visit: &Visit| {
        let came = visit.came_unix_ms;
        [(came, true), (visit.ended_unix_ms.max(came.saturating_add(1)), false)]
    };
    let mut edges: Vec<(u64, bool)> = visits.iter().flat_map(edges).collect();
    edges.sort_unstable();
    let (mut now, mut most) = (0_u64, 0);
    for (_, comes) in edges {
        now = if comes { now + 1 } else { now.saturating_sub(1) };
        most = most.max(now);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{record, records};
    use appliance_types::Record;
    use proptest::prelude::*;

    fn size() -> Size {
        let function = "chat".parse().unwrap();
        Size { function, memory_bytes: 1 << 30, memory_is_measured: false, cpus: 2, concurrency: 4, instances_max: 1 }
    }

    fn visits(records: &[Record]) -> Vec<Visit> {
        records.iter().filter_map(Visit::of).collect()
    }

    #[test]
    fn peaks_say_what_is_needed() {
        let with_peak = |number, came| Record { peak_kib: 150 << 10, ..record(number, came, 1_000, 1 << 30) };
        let all = visits(&[with_peak(0, 0), with_peak(1, 500), with_peak(2, 3_000)]);
        let report = rightsize(&size(), &all, &Book::default());
        assert_eq!((report.memory_peak_bytes, report.memory_suggested_bytes), (Some(150 << 20), 192 << 20));
        assert_eq!((report.cpus_p95_hundredths, report.cpus_suggested), (150, 2));
        assert_eq!((report.at_once_peak, report.concurrency_suggested), (2, 2));
        assert_eq!(report.cost_nanos, 3 * 16_867);
        // 192 MiB of 1024 for a second each: 16667 × 192 / 1024 = 3125.06…, rounded up.
        assert_eq!(report.saving_nanos, 3 * (16_667 - 3_126));
    }

    #[test]
    fn memory_that_was_measured_is_let_be() {
        let low = Record { peak_kib: 4 << 10, ..record(0, 0, 1_000, 1 << 30) };
        let measured = Size { memory_is_measured: true, memory_bytes: 528 << 20, ..size() };
        let report = rightsize(&measured, &visits(&[low]), &Book::default());
        assert_eq!((report.memory_peak_bytes, report.memory_suggested_bytes), (Some(4 << 20), 528 << 20));
        assert_eq!(report.saving_nanos, 16_667 - (16_667 * 528_u64).div_ceil(1024), "it was billed for 1 GiB before");
    }

    #[test]
    fn what_was_not_measured_is_not_changed() {
        let nothing = rightsize(&size(), &[], &Book::default());
        assert_eq!((nothing.memory_suggested_bytes, nothing.cpus_suggested), (1 << 30, 2));
        assert_eq!((nothing.concurrency_suggested, nothing.saving_nanos), (4, 0));
        let full = Record { peak_kib: 1_000 << 10, ..record(0, 0, 10, 1 << 30) };
        assert_eq!(rightsize(&size(), &visits(&[full]), &Book::default()).memory_suggested_bytes, 1 << 30);
    }

    proptest! {
        /// Nothing is suggested that peaks would not fit in, nor anything above what there is of memory and cores.
        #[test]
        fn suggestions_hold_the_peaks(records in records(), peak_kib in 0u32..2 << 20, instances_max in 1u32..4) {
            let records: Vec<_> = records.into_iter().map(|record| Record { peak_kib, ..record }).collect();
            let size = Size { instances_max, ..size() };
            let report = rightsize(&size, &visits(&records), &Book::default());
            prop_assert!(report.memory_suggested_bytes <= size.memory_bytes && report.cpus_suggested <= size.cpus);
            if let Some(peak) = report.memory_peak_bytes.filter(|peak| *peak <= size.memory_bytes) {
                prop_assert!(report.memory_suggested_bytes >= peak);
            }
            let places = u64::from(report.concurrency_suggested) * u64::from(instances_max);
            prop_assert!(places >= report.at_once_peak.min(CONCURRENCY_MAX));
            prop_assert!(report.saving_nanos <= report.cost_nanos);
        }
    }
}
