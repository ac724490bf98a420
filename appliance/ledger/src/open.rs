//! The requests that have not ended, as their entries tell, and their ends when nobody else will tell them.
//!
//! An end that is made here goes on counting where its boot and core left off, which nobody else does any more: so it is
//! an entry like any other, and one that is already on the disk is not made again.

use crate::{disk::Disk, join::interrupted, log::Log};
use appliance_types::{Entry, RequestId, Stage};
use std::collections::{BTreeMap, HashMap};

/// What is open.
#[derive(Debug)]
pub(crate) struct Open {
    /// At most `requests_max`: a server that opens more than its rings can close is out of its mind.
    last_heard: HashMap<RequestId, Entry>,
    requests_max: usize,
}

impl Open {
    pub(crate) fn new(requests_max: usize) -> Self {
        Self { last_heard: HashMap::new(), requests_max }
    }

    /// Takes the next entry.
    pub(crate) fn note(&mut self, entry: &Entry) {
        let request = entry.record.request;
        if entry.stage == Stage::Closed {
            self.last_heard.remove(&request);
        } else if self.last_heard.len() < self.requests_max || self.last_heard.contains_key(&request) {
            self.last_heard.insert(request, entry.clone());
        }
    }

    /// The ends of those open requests that are over, in the order in which they were last heard of.
    pub(crate) fn interrupted<D: Disk>(&self, is_over: impl Fn(&Entry) -> bool, log: &Log<D>) -> Vec<Entry> {
        let mut over: BTreeMap<(u64, u16, u64), &Entry> = BTreeMap::new();
        for entry in self.last_heard.values().filter(|entry| is_over(entry)) {
            over.insert((entry.boot, entry.core, entry.sequence), entry);
        }
        let mut next: HashMap<(u64, u16), u64> = HashMap::new();
        over.into_values()
            .map(|entry| {
                let (boot, core) = (entry.boot, entry.core);
                let next = next.entry((boot, core)).or_insert_with(|| log.last(boot, core).map_or(0, |last| last + 1));
                let sequence = *next;
                *next += 1;
                Entry { boot, core, sequence, stage: Stage::Closed, record: interrupted(entry.record.clone()) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Log,
        testing::{entry, open, progress},
    };
    use appliance_types::Outcome;

    #[test]
    fn what_a_boot_left_open_ends_with_what_it_had_used() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path(), 0).unwrap();
        let told =
            [open(1, 0, 10), open(1, 1, 11), progress(1, 2, 10, 500), entry(1, 3, 11), open(1, 4, 12), open(2, 0, 13)];
        log.append(&told).unwrap();
        let mut requests = Open::new(8);
        told.iter().for_each(|entry| requests.note(entry));
        let ends = requests.interrupted(|entry| entry.boot == 1, &log);
        let seen: Vec<_> = ends.iter().map(|e| (e.sequence, e.stage, e.record.outcome, e.record.decode_us)).collect();
        assert_eq!(seen, [(5, Stage::Closed, Outcome::Interrupted, 500), (6, Stage::Closed, Outcome::Interrupted, 0)]);
        ends.iter().for_each(|entry| requests.note(entry));
        assert!(requests.interrupted(|entry| entry.boot == 1, &log).is_empty());
        assert_eq!(requests.interrupted(|_| true, &log).len(), 1, "the newer boot's runs on");
    }

    #[test]
    fn no_more_is_kept_than_rings_can_hold() {
        let mut requests = Open::new(2);
        (0..5).for_each(|number| requests.note(&open(1, number, number)));
        assert_eq!(requests.last_heard.len(), 2);
        requests.note(&progress(1, 9, 0, 7));
        assert_eq!(requests.last_heard.values().filter(|entry| entry.record.decode_us == 7).count(), 1);
    }
}
