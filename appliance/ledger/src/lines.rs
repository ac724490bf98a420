//! Entries as lines: an open request is kept in memory until it ends, and its end is a line.
//!
//! ```text
//!  Open ─▶ open, with what it has used ◀─ Progress
//!            ├─ Closed ────────────────────────▶ a line
//!            └─ its boot ended, or the server ─▶ a line: Interrupted
//! ```
//! After a crash of the ledger its rings tell again what they did not get released. What of that has a line already is
//! known by its request, so the requests of the last lines are remembered: as many as rings can hold.

use crate::{
    intake::Sink,
    line::{self, LINE_BYTES_MAX},
    log::{BATCH_BYTES_MAX, Log, LogError, Recovery, read},
};
use appliance_types::{Entry, Outcome, Record, RequestId, Stage};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::Path,
};

/// A request that has not ended.
#[derive(Debug)]
struct Open {
    core: u16,
    boot: u64,
    /// What it had used when it was last heard of.
    record: Record,
}

/// The log of lines, and the requests that have none yet.
#[derive(Debug)]
pub(crate) struct Lines {
    log: Log,
    /// At most `requests_max`: a server that opens more than its rings can close is out of its mind.
    open: HashMap<RequestId, Open>,
    written: Recent,
    requests_max: usize,
}

impl Lines {
    /// Takes over the log in `folder`. The rings hold the ends of `requests_max` requests at most.
    pub(crate) fn open(folder: &Path, requests_max: usize) -> Result<(Self, Recovery), LogError> {
        let (log, recovery) = Log::open(folder)?;
        let mut written = Recent::new(requests_max);
        for record in read(folder)?.filter_map(Result::ok) {
            written.insert(record.request);
        }
        Ok((Self { log, open: HashMap::new(), written, requests_max }, recovery))
    }

    /// The server is gone for good: what is open will never be closed.
    pub(crate) fn finish(&mut self) -> Result<(), LogError> {
        self.interrupt(|_| true)
    }

    fn interrupt(&mut self, is_over: impl Fn(&Open) -> bool) -> Result<(), LogError> {
        let over: Vec<RequestId> =
            self.open.iter().filter(|(_, open)| is_over(open)).map(|(request, _)| *request).collect();
        let mut batch = Batch::default();
        for request in over {
            if let Some(Open { record, .. }) = self.open.remove(&request) {
                self.end(&mut batch, &Record { outcome: Outcome::Interrupted, ..record })?;
            }
        }
        batch.write(&mut self.log)
    }

    fn note(&mut self, entry: &Entry) {
        let known = self.open.contains_key(&entry.record.request);
        if !known && self.open.len() >= self.requests_max {
            return tracing::error!(request = %entry.record.request, "more requests are open than there can be");
        }
        let Entry { core, boot, record, .. } = entry.clone();
        self.open.insert(record.request, Open { core, boot, record });
    }

    fn end(&mut self, batch: &mut Batch, record: &Record) -> Result<(), LogError> {
        if !self.written.insert(record.request) {
            return Ok(());
        }
        batch.push(record, &mut self.log)
    }
}

impl Sink for Lines {
    type Error = LogError;

    fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        let mut batch = Batch::default();
        for entry in entries {
            match entry.stage {
                Stage::Open | Stage::Progress => self.note(entry),
                Stage::Closed => {
                    self.open.remove(&entry.record.request);
                    self.end(&mut batch, &entry.record)?;
                }
            }
        }
        batch.write(&mut self.log)
    }

    fn began(&mut self, core: u16, boot: u64) -> Result<(), LogError> {
        self.interrupt(|open| open.core == core && open.boot != boot)
    }
}

/// Lines that are written and synced together.
#[derive(Default)]
struct Batch(Vec<u8>);

impl Batch {
    fn push(&mut self, record: &Record, log: &mut Log) -> Result<(), LogError> {
        if self.0.len() + LINE_BYTES_MAX > BATCH_BYTES_MAX {
            self.write(log)?;
        }
        self.0.extend_from_slice(&line::encode(record));
        Ok(())
    }

    fn write(&mut self, log: &mut Log) -> Result<(), LogError> {
        if !self.0.is_empty() {
            log.append(&self.0)?;
        }
        self.0.clear();
        Ok(())
    }
}

/// The last so many requests.
#[derive(Debug)]
struct Recent {
    order: VecDeque<RequestId>,
    known: HashSet<RequestId>,
    most: usize,
}

impl Recent {
    fn new(most: usize) -> Self {
        Self { order: VecDeque::new(), known: HashSet::new(), most }
    }

    /// Remembers it; whether it is new.
    fn insert(&mut self, request: RequestId) -> bool {
        if !self.known.insert(request) {
            return false;
        }
        self.order.push_back(request);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::tests::record;

    fn entry(boot: u64, stage: Stage, number: u64, tokens_out: u32) -> Entry {
        Entry { boot, core: 0, sequence: number, stage, record: Record { tokens_out, ..record(number) } }
    }

    fn lines(folder: &Path) -> Vec<(u64, u32, Outcome)> {
        let records = read(folder).unwrap().map(Result::unwrap);
        records.map(|record| (record.ended_unix_ms, record.tokens_out, record.outcome)).collect()
    }

    #[test]
    fn a_request_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let told = [
            entry(1, Stage::Open, 1, 0),
            entry(1, Stage::Open, 2, 0),
            entry(1, Stage::Progress, 2, 5),
            entry(1, Stage::Closed, 1, 9),
        ];
        let (mut ledger, _) = Lines::open(folder.path(), 8).unwrap();
        ledger.append(&told).unwrap();
        assert_eq!(lines(folder.path()), [(1, 9, Outcome::Completed)]);
        drop(ledger);
        // It died before its ring was released, and is told everything again.
        let (mut ledger, _) = Lines::open(folder.path(), 8).unwrap();
        ledger.append(&told).unwrap();
        ledger.began(1, 2).unwrap();
        assert_eq!(lines(folder.path()).len(), 1, "another core");
        ledger.began(0, 2).unwrap();
        let both = [(1, 9, Outcome::Completed), (2, 5, Outcome::Interrupted)];
        assert_eq!(lines(folder.path()), both);
        drop(ledger);
        let (mut ledger, _) = Lines::open(folder.path(), 8).unwrap();
        ledger.append(&told).unwrap();
        ledger.began(0, 2).unwrap();
        ledger.finish().unwrap();
        assert_eq!(lines(folder.path()), both);
    }

    #[test]
    fn a_server_out_of_its_mind_fills_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Lines::open(folder.path(), 4).unwrap();
        let told: Vec<Entry> = (0..100).map(|number| entry(1, Stage::Open, number, 0)).collect();
        ledger.append(&told).unwrap();
        assert_eq!(ledger.open.len(), 4);
        let ended: Vec<Entry> = (0..100).map(|number| entry(1, Stage::Closed, number, 1)).collect();
        ledger.append(&ended).unwrap();
        assert_eq!((ledger.open.len(), ledger.written.known.len(), lines(folder.path()).len()), (0, 4, 100));
    }
}
