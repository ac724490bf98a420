//! Records a second: appends with one sync each, beside the least that any ledger must do, an appended file that is
//! written and synced with as many bytes.
//!
//! A tiny run in the tests shows that it works; nothing is asserted of time. To measure, on the disk of `TMPDIR`:
//! `EMBER_LEDGER_APPENDS=2000 cargo test --release --locked -p appliance-ledger --test throughput -- --nocapture`

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use appliance_ledger::{Log, records};
use appliance_types::{Entry, Record, RequestId, Stage};
use std::{fs::File, io::Write, time::Instant};

const APPENDS: u64 = 8;

fn batch(from: u64, count: u64) -> Vec<Entry> {
    let entry = |sequence: u64| {
        let request = RequestId::from_random(sequence.into());
        let record = Record::new(request, "key".parse().unwrap(), "assistant".parse().unwrap());
        Entry { boot: 1, core: 0, sequence, stage: Stage::Closed, record }
    };
    (from..from + count).map(entry).collect()
}

#[test]
fn appends_with_group_sync() {
    let appends = std::env::var("EMBER_LEDGER_APPENDS").ok().and_then(|text| text.parse().ok()).unwrap_or(APPENDS);
    for count in [1, 16, 256] {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path(), 1).unwrap();
        let mut plain = File::create(folder.path().join("plain")).unwrap();
        let (mut ours, mut least, mut bytes) = (0.0, 0.0, 0);
        for append in 0..appends {
            let entries = batch(append * count, count);
            let before = log.end();
            let start = Instant::now();
            log.append(&entries).unwrap();
            ours += start.elapsed().as_secs_f64();
            let after = log.end();
            let length = after.offset.saturating_sub(if before.segment == after.segment { before.offset } else { 0 });
            bytes += u64::from(length);
            let start = Instant::now();
            plain.write_all(&vec![b'x'; length as usize]).unwrap();
            plain.sync_data().unwrap();
            least += start.elapsed().as_secs_f64();
        }
        let total = (appends * count) as f64;
        println!(
            "ledger: {:.0} records/s, {count} an append ({:.0} µs an append; {:.0} µs for write and fdatasync of a plain file); {} bytes a record",
            total / ours,
            ours / appends as f64 * 1e6,
            least / appends as f64 * 1e6,
            bytes / (appends * count),
        );
        drop(log);
        assert_eq!(records(folder.path()).unwrap().map(Result::unwrap).count() as u64, appends * count);
    }
}
