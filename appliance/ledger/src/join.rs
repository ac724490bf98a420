//! From entries to records: one for each request, whatever its end was.
//!
//! ```text
//!  Open ─▶ Progress ─▶ … ─▶ Closed                                  its record is final
//!  Open ─▶ Progress ─▶ … ─▶ an entry of a newer boot                the server ended first: Interrupted, with what it
//!                                                                   had used when last heard of
//! ```
//!
//! The newest boot is the one that was heard of first last. A close that comes late, since rings of several cores are
//! read one after the other, wins over an interruption.

use appliance_types::{Entry, Outcome, Record, RequestId, Stage};
use std::collections::{HashMap, HashSet};

/// Joins entries as they come. Holds the requests that are open.
#[derive(Debug, Default)]
pub struct Joiner {
    boots: HashSet<u64>,
    newest: Option<u64>,
    /// In the order in which they came.
    open: HashMap<RequestId, (u64, Entry)>,
    count: u64,
}

impl Joiner {
    /// Takes the next entry; returns its record where that is final.
    pub fn push(&mut self, entry: Entry) -> Option<Record> {
        if self.boots.insert(entry.boot) {
            self.newest = Some(entry.boot);
        }
        let request = entry.record.request;
        if entry.stage == Stage::Closed {
            self.open.remove(&request);
            return Some(entry.record);
        }
        self.count += 1;
        let order = self.open.get(&request).map_or(self.count, |(order, _)| *order);
        self.open.insert(request, (order, entry));
        None
    }

    /// The requests that were cut off by the end of their server, in the order in which they came.
    pub fn interrupted(self) -> Vec<Record> {
        let newest = self.newest;
        let mut cut: Vec<_> = self.open.into_values().filter(|(_, entry)| Some(entry.boot) != newest).collect();
        cut.sort_unstable_by_key(|(order, _)| *order);
        cut.into_iter().map(|(_, entry)| interrupted(entry.record)).collect()
    }
}

/// The record of a request of which this was the last that was heard.
pub(crate) fn interrupted(record: Record) -> Record {
    let ended_unix_ms = record.ended_unix_ms.max(record.came_unix_ms);
    Record { outcome: Outcome::Interrupted, ended_unix_ms, ..record }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, open, progress};

    #[test]
    fn each_request_has_one_record() {
        let mut joiner = Joiner::default();
        let mut push = |entry| joiner.push(entry);
        assert_eq!(push(open(1, 0, 10)), None);
        assert_eq!(push(progress(1, 1, 10, 500)), None);
        assert_eq!(push(open(1, 2, 11)), None);
        assert_eq!(push(open(1, 3, 12)), None);
        assert_eq!(push(entry(1, 4, 11)), Some(entry(1, 4, 11).record));
        assert_eq!(push(open(2, 0, 13)), None, "a newer boot");
        assert_eq!(push(entry(1, 5, 12)), Some(entry(1, 5, 12).record), "a close that came late");
        let cut = joiner.interrupted();
        assert_eq!(cut.len(), 1, "the newest boot's request runs on");
        assert_eq!(cut[0], interrupted(progress(1, 1, 10, 500).record));
        assert_eq!((cut[0].outcome, cut[0].decode_us), (Outcome::Interrupted, 500));
    }
}
