//! Entries for unit tests.

use appliance_types::{Entry, Outcome, Record, RequestId, Stage};

pub(crate) fn record(number: u64) -> Record {
    Record {
        came_unix_ms: number,
        ended_unix_ms: number,
        outcome: Outcome::Completed,
        status: 200,
        ..Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "assistant".parse().unwrap())
    }
}

pub(crate) fn entry(boot: u64, sequence: u64, number: u64) -> Entry {
    Entry { boot, core: 0, sequence, stage: Stage::Closed, record: record(number) }
}

pub(crate) fn open(boot: u64, sequence: u64, number: u64) -> Entry {
    let record = Record { outcome: Outcome::Cancelled, ended_unix_ms: 0, ..record(number) };
    Entry { stage: Stage::Open, record, ..entry(boot, sequence, number) }
}

pub(crate) fn progress(boot: u64, sequence: u64, number: u64, decode_us: u64) -> Entry {
    let mut entry = open(boot, sequence, number);
    entry.stage = Stage::Progress;
    entry.record.decode_us = decode_us;
    entry
}
