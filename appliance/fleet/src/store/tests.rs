//! Pages put into a database, twice, by two at once, and against what is there.

use super::*;
use crate::{Fault, Flag, usage::By};
use appliance_types::{Entry, RequestId, Stage};
use std::collections::BTreeMap;

fn name() -> BoxName {
    "shop-7".parse().unwrap()
}

fn entry(number: u64, cost_nanos: u64) -> Entry {
    let record = Record {
        outcome: Outcome::Completed,
        ended_unix_ms: number,
        cost_nanos,
        ..Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "f".parse().unwrap())
    };
    Entry { boot: 1, core: 0, sequence: number, stage: Stage::Closed, record }
}

/// A page after `known` with these ends.
fn page(known: &Known, ended: &[Entry]) -> Followed {
    let at = Position { segment: 1, offset: known.cursor.0.offset + 100 };
    let ended = ended.iter().map(|entry| (known.cursor, entry.clone())).collect();
    let known = Known { key: Some("k".into()), cursor: PageCursor(at), ..known.clone() };
    Followed { ended, known, gap: None, more: true }
}

fn store(folder: &tempfile::TempDir) -> Store {
    Store::open(&folder.path().join("fleet.db")).unwrap()
}

fn costs(store: &Store) -> (u64, u64) {
    let mut usage = Usage::new(By::Box, BTreeMap::new());
    store.usage(0, &mut usage).unwrap();
    usage.rows().first().map_or((0, 0), |sums| (sums.requests, sums.cost_nanos))
}

#[test]
fn records_and_cursor_go_together_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (store(&folder), store(&folder));
    let before = one.known(&name()).unwrap();
    assert_eq!(before, Known::default());
    let first = page(&before, &[entry(1, 10), entry(2, 20)]);
    assert_eq!(one.take(&name(), &before, &first, 5).unwrap(), (2, None));
    assert!(matches!(two.take(&name(), &before, &first, 5), Err(StoreError::Moved)), "another pull was first");
    assert_eq!(two.known(&name()).unwrap(), first.known);
    assert_eq!((costs(&two), two.standings().unwrap()[0].records), ((2, 30), 2));
    let mut all = Vec::new();
    two.records("shop-7", 2, |record| all.push(record.clone())).unwrap();
    assert_eq!(all, [entry(2, 20).record]);
}

#[test]
fn what_is_told_again_otherwise_stays_and_is_flagged() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    let first = page(&Known::default(), &[entry(1, 10)]);
    store.take(&name(), &Known::default(), &first, 5).unwrap();
    let again = page(&first.known, &[entry(1, 10), entry(1, 99), entry(2, 1)]);
    let (fresh, flagged) = store.take(&name(), &first.known, &again, 7).unwrap();
    assert_eq!((fresh, flagged.unwrap().flag), (1, Flag::Contradicted));
    assert_eq!(costs(&store), (2, 11));
    let flags = &store.standings().unwrap()[0].flags;
    assert_eq!((flags.len(), flags[0].flag, flags[0].since_unix_ms), (1, Flag::Contradicted, 7));
}

#[test]
fn a_flag_keeps_its_first_sight_and_ends_with_its_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    let fault = |flag, detail: &str| Fault::new(flag, PageCursor::default(), detail);
    store.flag(&name(), &fault(Flag::Forked, "first"), 5).unwrap();
    store.flag(&name(), &fault(Flag::Forked, "second"), 9).unwrap();
    store.flag(&name(), &fault(Flag::Clock, "ahead"), 9).unwrap();
    store.unflag(&name(), Flag::Forked).unwrap();
    store.unflag(&name(), Flag::Clock).unwrap();
    let standing = store.standings().unwrap().remove(0);
    let flag = FlagRow {
        flag: Flag::Forked,
        at: "0:0".into(),
        detail: "first".into(),
        since_unix_ms: 5,
        last_unix_ms: 9,
        times: 2,
    };
    assert_eq!(standing.flags, [flag]);

    let first = page(&Known::default(), &[entry(1, 10)]);
    store.take(&name(), &Known::default(), &first, 10).unwrap();
    assert!(store.accept(&name()).unwrap() && !store.accept(&"other".parse().unwrap()).unwrap());
    let known = store.known(&name()).unwrap();
    assert_eq!(known, Known { generation: 1, ..Known::default() });
    assert!(store.standings().unwrap()[0].flags.is_empty());
    store.take(&name(), &known, &page(&known, &[entry(1, 10), entry(2, 5)]), 11).unwrap();
    assert_eq!(costs(&store), (2, 15), "what both ledgers have is there once");
    assert!(matches!(store.take(&name(), &first.known, &first, 12), Err(StoreError::Moved)));
}

#[test]
fn how_a_box_stood_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    let seen = Seen { version: "1".into(), skew_ms: -7, ..Seen::default() };
    store.seen(&name(), &seen, 5).unwrap();
    store.tried(&name(), Some("gone"), 6).unwrap();
    store.priced(&name(), vec![Prices::default()]).unwrap();
    let standing = store.standings().unwrap().remove(0);
    assert_eq!((standing.version.as_deref(), standing.skew_ms, standing.seen_unix_ms), (Some("1"), Some(-7), Some(5)));
    assert_eq!((standing.error.as_deref(), standing.tried_unix_ms), (Some("gone"), Some(6)));
    assert_eq!(store.book("shop-7").unwrap(), Some(Book::default()));
    assert_eq!(store.book("other").unwrap(), None);
}

#[test]
fn prices_in_another_currency_than_what_was_kept_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    let prices =
        |currency: &str, version| vec![Prices { currency: currency.parse().unwrap(), version, ..Prices::default() }];
    let currency = |store: &Store| store.book("shop-7").unwrap().unwrap().currency().to_string();
    store.tried(&name(), None, 1).unwrap();
    store.priced(&name(), prices("USD", 1)).unwrap();
    assert_eq!(store.priced(&name(), prices("EUR", 1)).unwrap(), None, "nothing was charged yet");
    let known = Known::default();
    store.take(&name(), &known, &page(&known, &[entry(1, 10)]), 3).unwrap();
    let fault = store.priced(&name(), prices("USD", 2)).unwrap().unwrap();
    assert_eq!((fault.flag, currency(&store).as_str()), (Flag::Contradicted, "EUR"));
    store.accept(&name()).unwrap();
    assert!(store.priced(&name(), prices("USD", 2)).unwrap().is_some(), "what is there is EUR whoever accepts");
    assert_eq!(store.priced(&name(), vec![]).unwrap(), None);
    assert_eq!(store.priced(&name(), prices("EUR", 2)).unwrap(), None);
    let book = store.book("shop-7").unwrap().unwrap();
    assert!(book.version(2).is_some() && currency(&store) == "EUR");
}

#[test]
fn a_full_disk_is_no_fault_of_a_box() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    store.sql.pragma_update(None, "max_page_count", 12).unwrap();
    let many: Vec<_> = (0..200).map(|number| entry(number, 1)).collect();
    let error = store.take(&name(), &Known::default(), &page(&Known::default(), &many), 5).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!((store.known(&name()).unwrap(), costs(&store)), (Known::default(), (0, 0)), "nothing of it was taken");
}

#[test]
fn what_another_version_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    store(&folder).sql.pragma_update(None, "user_version", 9).unwrap();
    let error = Store::open(&folder.path().join("fleet.db")).unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 9, .. }), "{error}");
}

#[test]
fn the_greatest_numbers_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store(&folder);
    let first = page(&Known::default(), &[entry(1, u64::MAX), entry(2, u64::MAX), entry(3, u64::MAX)]);
    store.take(&name(), &Known::default(), &first, 5).unwrap();
    assert_eq!(costs(&store), (3, u64::MAX));
}
