//! Questions over the socket, as the server asks them.

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use appliance_ledger::{
    Client, Indexer, Log,
    query::{Answer, Filter, Query, QueryError},
    records,
};
use appliance_types::{Entry, Record, RequestId, Stage};
use futures_lite::future::{block_on, poll_once};
use sandbox_kernel::socket::packet_pair;
use std::{pin::pin, time::Duration};

fn entry(number: u64) -> Entry {
    let record = Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "f".parse().unwrap());
    Entry { boot: 1, core: 0, sequence: number, stage: Stage::Closed, record }
}

fn requests(client: &Client) -> Result<u64, QueryError> {
    match block_on(client.ask(Query::Total(Filter::default())))? {
        Answer::Total(totals) => Ok(totals.requests),
        other => panic!("{other:?}"),
    }
}

/// Asks until the index has them all: it follows the log, and is behind for a while.
fn wait_for(client: &Client, wanted: u64, indexer: &Indexer, log: &Log) {
    while requests(client) != Ok(wanted) {
        indexer.note(log);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_index_follows_the_log_and_answers_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = packet_pair().unwrap();
    let client = Client::connect(ours).unwrap();
    let (mut log, _) = Log::open(folder.path(), 1).unwrap();
    // Asked before anybody listens: the ledger's start says that an answer to this may never come.
    let mut early = pin!(client.ask(Query::Total(Filter::default())));
    assert_eq!(block_on(poll_once(&mut early)), None);
    let indexer = Indexer::start(folder.path(), Some(theirs)).unwrap();
    assert_eq!(block_on(early), Err(QueryError::Restarted));
    log.append(&(0..100).map(entry).collect::<Vec<_>>()).unwrap();
    wait_for(&client, 100, &indexer, &log);
    log.append(&(90..120).map(entry).collect::<Vec<_>>()).unwrap();
    wait_for(&client, 120, &indexer, &log);
    let Answer::Request(Some(known)) = block_on(client.ask(Query::Request(entry(7).record.request))).unwrap() else {
        panic!("not found")
    };
    assert_eq!(known.record, entry(7).record);
}

#[test]
fn too_many_questions_are_refused_and_an_end_is_told() {
    let (ours, theirs) = packet_pair().unwrap();
    let client = Client::connect(ours).unwrap();
    let ask = || client.ask(Query::Total(Filter::default()));
    let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(ask())).collect();
    let answers: Vec<_> = waiting.iter_mut().map(|ask| block_on(poll_once(ask))).collect();
    let waits = answers.iter().filter(|answer| answer.is_none()).count();
    assert!((1..=64).contains(&waits), "{waits}");
    assert!(answers.iter().flatten().all(|answer| *answer == Err(QueryError::Busy)));
    drop(theirs);
    for (ask, answer) in waiting.into_iter().zip(answers) {
        if answer.is_none() {
            assert_eq!(block_on(ask), Err(QueryError::Gone));
        }
    }
    assert!(matches!(block_on(ask()), Err(QueryError::Gone | QueryError::Busy)));
}

/// Years since 1970 that the wall clock shows in turn: no battery, no network, the wrong time set by hand.
const YEARS: [u64; 6] = [56, 0, 130, 57, 1, 56];

#[test]
fn a_wall_clock_that_steps_by_years_loses_no_record() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    const EACH: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = packet_pair().unwrap();
    let client = Client::connect(ours).unwrap();
    let (mut log, _) = Log::open(folder.path(), YEARS[0] * YEAR_MS).unwrap();
    let indexer = Indexer::start(folder.path(), Some(theirs)).unwrap();
    let (mut before_ms, mut sent) = (YEARS[5] * YEAR_MS, Vec::new());
    for (turn, year) in (0..).zip(YEARS) {
        let now_ms = year * YEAR_MS;
        if turn == 3 {
            drop(log);
            log = Log::open(folder.path(), now_ms).unwrap().0;
        }
        log.tend(now_ms).unwrap();
        let stamped = |number| {
            let mut entry = entry(turn * EACH + number);
            (entry.record.came_unix_ms, entry.record.ended_unix_ms) = (before_ms, now_ms);
            (entry.record.share_us, entry.record.cost_nanos) = (7, 3);
            entry
        };
        let entries: Vec<_> = (0..EACH).map(stamped).collect();
        log.append(&entries).unwrap();
        sent.extend(entries.into_iter().map(|entry| entry.record));
        before_ms = now_ms;
    }
    let kept: Vec<_> = records(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(kept, sent, "all, once, in order, with the lengths that were measured");
    wait_for(&client, sent.len() as u64, &indexer, &log);
    let Answer::Total(all) = block_on(client.ask(Query::Total(Filter::default()))).unwrap() else { panic!("no total") };
    assert_eq!((all.share_us, all.cost_nanos), (7 * all.requests, 3 * all.requests));
}
