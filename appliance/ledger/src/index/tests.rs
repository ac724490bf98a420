//! The index against the segments it is made from, and its answers against the records.

use super::*;
use crate::{
    Config, Log,
    disk::Folder,
    join::Joiner,
    query::{Answer, Cursor, Dimension, Fate, Filter, Known, Query, Totals},
    reader,
    testing::{entry, open, progress},
};

const HOUR_MS: u64 = 3_600_000;
const CONFIG: Config = Config { segment_bytes: 8192, retain_bytes: 1 << 30, retain_ms: None, free_bytes_min: 0 };

fn log(folder: &Path) -> Log {
    Log::open_on(Folder::lock(folder).unwrap(), CONFIG, 1).unwrap().0
}

/// All rows, and the place.
fn dump(folder: &Path) -> Vec<String> {
    let sql = Connection::open(folder.join(FILE_NAME)).unwrap();
    let mut all: Vec<String> = Vec::new();
    for table in ["state", "boots", "requests ORDER BY request"] {
        let mut statement = sql.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            (0..columns)
                .map(|column| Ok(format!("{:?}", row.get::<_, Value>(column)?)))
                .collect::<rusqlite::Result<Vec<_>>>()
        });
        all.extend(rows.unwrap().map(|row| row.unwrap().join("|")));
    }
    all
}

/// Two boots: every third request of the first never ends, and one close comes late.
fn workload() -> Vec<Entry> {
    let mut entries = Vec::new();
    for number in 0..30 {
        let sequence = 3 * number;
        entries.push(open(1, sequence, number));
        entries.push(progress(1, sequence + 1, number, 100 + number));
        if number % 3 != 2 {
            entries.push(entry(1, sequence + 2, number));
        }
    }
    entries.push(open(2, 0, 100));
    entries.push(entry(1, 90, 29));
    entries.push(entry(2, 1, 101));
    entries
}

fn ask(folder: &Path, query: &Query) -> Answer {
    Reader::open(folder).unwrap().ask(query).unwrap()
}

fn total(folder: &Path, filter: Filter) -> Totals {
    let Answer::Total(totals) = ask(folder, &Query::Total(filter)) else { panic!("not a total") };
    *totals
}

/// Every page of the records, three rows at a time.
fn records(folder: &Path) -> Vec<Known> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let query = Query::Records { filter: Filter::default(), after, limit: 3 };
        let Answer::Records { records, next } = ask(folder, &query) else { panic!("not records") };
        assert!(records.len() <= 3);
        all.extend(records);
        match next {
            Some(_) => after = next,
            None => return all,
        }
    }
}

#[test]
fn the_index_is_what_the_segments_say_however_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    let mut index = Index::open(folder.path()).unwrap();
    for entries in workload().chunks(5) {
        log.append(entries).unwrap();
        index.catch_up(log.oldest(), log.end()).unwrap();
        assert_eq!(index.place().unwrap(), log.end());
    }
    assert!(log.end().segment > 3);
    drop(index);
    let bit_by_bit = dump(folder.path());
    assert_eq!(rebuild(folder.path()).unwrap(), workload().len() as u64);
    assert_eq!(dump(folder.path()), bit_by_bit);

    let joined: Vec<Record> = reader::records(folder.path()).unwrap().map(Result::unwrap).collect();
    let by_id = |mut records: Vec<Record>| {
        records.sort_by_key(|record| record.request.to_string());
        records
    };
    let indexed = records(folder.path()).into_iter().map(|known| known.record).collect();
    assert_eq!(by_id(indexed), by_id(joined), "SQL joins as the joiner does");
}

#[test]
fn an_index_that_stopped_anywhere_catches_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    let entries = workload();
    log.append(&entries[..40]).unwrap();
    Index::open(folder.path()).unwrap().catch_up(log.oldest(), log.end()).unwrap();
    log.append(&entries[40..]).unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    assert_eq!(index.catch_up(log.oldest(), log.end()).unwrap(), entries.len() as u64 - 40);
    assert_eq!(index.catch_up(log.oldest(), log.end()).unwrap(), 0, "nothing twice");
    drop(index);
    let caught_up = dump(folder.path());
    rebuild(folder.path()).unwrap();
    assert_eq!(dump(folder.path()), caught_up);
}

#[test]
fn an_index_that_cannot_be_read_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    log.append(&workload()).unwrap();
    fs::write(folder.path().join(FILE_NAME), vec![7; 8192]).unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    assert_eq!(index.catch_up(log.oldest(), log.end()).unwrap(), workload().len() as u64);
}

#[test]
fn an_index_ahead_of_the_segments_is_made_anew() {
    let [long, short] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    log(long.path()).append(&workload()).unwrap();
    rebuild(long.path()).unwrap();
    fs::copy(long.path().join(FILE_NAME), short.path().join(FILE_NAME)).unwrap();
    let mut log = log(short.path());
    log.append(&[entry(9, 0, 7)]).unwrap();
    let mut index = Index::open(short.path()).unwrap();
    assert_eq!(index.catch_up(log.oldest(), log.end()).unwrap(), 1);
    assert_eq!(total(short.path(), Filter::default()).requests, 1);
}

#[test]
fn rows_of_removed_segments_go_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { retain_bytes: 3 * 8192, ..CONFIG };
    let (mut log, _) = Log::open_on(Folder::lock(folder.path()).unwrap(), config, 1).unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    for number in 0..60 {
        log.append(&[entry(1, number, number)]).unwrap();
        log.tend(1).unwrap();
        index.catch_up(log.oldest(), log.end()).unwrap();
    }
    assert!(log.oldest() > 1);
    drop(index);
    let pruned = dump(folder.path());
    let (kept, _) = (records(folder.path()), rebuild(folder.path()).unwrap());
    assert_eq!(dump(folder.path()), pruned);
    assert_eq!(kept.last().unwrap().record.ended_unix_ms, 59);
    let first = kept.first().unwrap();
    assert_eq!(Position::unpacked(first.cursor.position).segment, log.oldest());
}

#[test]
fn sums_are_those_of_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    let mut joiner = Joiner::default();
    let hour = |number: u64| number * HOUR_MS;
    let mut entries = Vec::new();
    for number in 0..40 {
        let mut entry = entry(1, number, number);
        entry.record.ended_unix_ms = hour(number % 4);
        entry.record.key = format!("key-{}", number % 5).parse().unwrap();
        entry.record.function = format!("function-{}", number % 2).parse().unwrap();
        entry.record.project = (number % 2 == 0).then(|| "shop".parse().unwrap());
        (entry.record.decode_us, entry.record.tokens_out, entry.record.bytes_out) = (number, 3, u64::MAX >> 2);
        entries.push(entry);
    }
    let records: Vec<Record> = entries.iter().filter_map(|entry| joiner.push(entry.clone())).collect();
    log.append(&entries).unwrap();
    rebuild(folder.path()).unwrap();

    let all = total(folder.path(), Filter::default());
    assert_eq!((all.requests, all.completed, all.interrupted), (40, 40, 0));
    assert_eq!(all.decode_us, records.iter().map(|record| record.decode_us).sum::<u64>());
    assert_eq!(all.bytes_out, u64::MAX, "saturates");
    let key = Filter { key: Some("key-3".parse().unwrap()), since_unix_ms: hour(2), ..Filter::default() };
    let wanted = records.iter().filter(|r| r.key.as_str() == "key-3" && r.ended_unix_ms >= hour(2)).count();
    assert_eq!(total(folder.path(), key).requests, wanted as u64);

    for (by, groups) in [
        (Dimension::Key, 5),
        (Dimension::Project, 2),
        (Dimension::Function, 2),
        (Dimension::Tier, 1),
        (Dimension::Hour, 4),
    ] {
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let query = Query::Usage { filter: Filter::default(), by, after: after.take(), limit: 2 };
            let Answer::Usage { rows: page, next } = ask(folder.path(), &query) else { panic!("not usage") };
            rows.extend(page);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(rows.len(), groups, "{by:?}");
        assert!(rows.iter().all(|row| row.totals.requests == 40 / groups as u64));
        assert_eq!(rows.iter().map(|row| row.totals.decode_us).sum::<u64>(), all.decode_us);
    }
}

#[test]
fn a_request_is_found_with_its_fate() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    log.append(&workload()).unwrap();
    rebuild(folder.path()).unwrap();
    let fate = |number: u64| {
        let query = Query::Request(entry(0, 0, number).record.request);
        let Answer::Request(known) = ask(folder.path(), &query) else { panic!("not a request") };
        known.map(|known| (known.fate, known.record.outcome, known.record.decode_us))
    };
    assert_eq!(fate(0), Some((Fate::Closed, Outcome::Completed, 0)));
    assert_eq!(fate(2), Some((Fate::Interrupted, Outcome::Interrupted, 102)));
    assert_eq!(fate(29), Some((Fate::Closed, Outcome::Completed, 0)), "its close came late");
    assert_eq!(fate(100), Some((Fate::Running, Outcome::Cancelled, 0)));
    assert_eq!(fate(999), None);
}

#[test]
fn a_page_that_would_not_fit_its_packet_ends_early() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path());
    (0..4).for_each(|part| {
        log.append(&(part * 100..part * 100 + 100).map(|n| entry(1, n, n)).collect::<Vec<_>>()).unwrap();
    });
    rebuild(folder.path()).unwrap();
    let mut after: Option<Cursor> = None;
    let mut found = 0;
    loop {
        let query = Query::Records { filter: Filter::default(), after, limit: u16::MAX };
        let answer = ask(folder.path(), &query);
        let packet = sandbox_wire::frame::encode_packet(
            &Ok::<_, crate::query::QueryError>(&answer),
            crate::query::ANSWER_BYTES_MAX,
        );
        assert!(packet.is_ok());
        let Answer::Records { records, next } = answer else { panic!("not records") };
        found += records.len();
        assert!(!records.is_empty());
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, 400);
}
