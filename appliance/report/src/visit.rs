//! What reports keep of a record, and what they know of a function.

use appliance_price::{Book, Measured};
use appliance_types::{FunctionName, Record};

/// A request that was given to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// When it came, milliseconds since the Unix epoch.
    pub came_unix_ms: u64,
    /// When it ended, milliseconds since the Unix epoch; never before it came.
    pub ended_unix_ms: u64,
    /// How long it held its slot, µs.
    pub busy_us: u64,
    /// Most memory that its instance was seen to use, KiB; 0 where nobody looked.
    pub peak_kib: u32,
    /// What it used.
    pub used: Measured,
    /// What it was charged, nano-units.
    pub cost_nanos: u64,
    /// The version of the prices.
    pub price_version: u32,
}

impl Visit {
    /// What is kept of a record; nothing of one that was refused before it began.
    pub fn of(record: &Record) -> Option<Self> {
        let used = Measured::from(record);
        let busy_us = record.prefill_us.saturating_add(record.decode_us);
        let came_unix_ms = match record.came_unix_ms {
            0 => record.ended_unix_ms.saturating_sub(busy_us / 1_000),
            came => came,
        };
        used.begun.then_some(Self {
            came_unix_ms,
            ended_unix_ms: record.ended_unix_ms.max(came_unix_ms),
            busy_us,
            peak_kib: record.peak_kib,
            used,
            cost_nanos: record.cost_nanos,
            price_version: record.price_version,
        })
    }
}

/// What a function is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The function.
    pub function: FunctionName,
    /// Memory that an instance reserves and is billed for, bytes.
    pub memory_bytes: u64,
    /// Whether that is what was measured when a snapshot was taken, and not the manifest's limit.
    pub memory_is_measured: bool,
    /// Cores of an instance.
    pub cpus: u32,
    /// Sequences in an instance.
    pub concurrency: u32,
    /// Instances at most.
    pub instances_max: u32,
}

/// What `visits` cost by the prices of their time, were `change` made to what they used. Those whose version the book does
/// not hold cost what they were charged.
pub(crate) fn cost_of(visits: &[Visit], book: &Book, change: impl Fn(Measured) -> Measured) -> u64 {
    visits.iter().fold(0, |sum: u64, visit| {
        let prices = book.version(visit.price_version);
        sum.saturating_add(prices.map_or(visit.cost_nanos, |prices| prices.cost_nanos(&change(visit.used))))
    })
}
