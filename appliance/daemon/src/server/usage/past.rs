//! Answers from the ledger's file: it is read from its beginning for each question, one question at a time.
//!
//! The file is the ledger's and closed to the server's user: the server holds it open to be read since before it became
//! that user. A line that is torn or corrupt is passed over; the ledger reports those when it starts. Left out: an index.

use appliance_ledger::{
    Records,
    query::{Answer, Cursor, Dimension, Fate, Filter, Known, PAGE_ROWS_MAX, Query, Totals, UsageRow},
};
use appliance_types::Record;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek},
    sync::{Mutex, PoisonError},
};

const HOUR_MS: u64 = 3_600_000;

/// What the ledger wrote.
pub(in crate::server) struct Past(Mutex<File>);

impl Past {
    pub(in crate::server) fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// Shows `see` each record, in the order in which they ended, until it has seen enough. Reads a file: not for a
    /// serving core.
    pub(in crate::server) fn scan(&self, mut see: impl FnMut(Record) -> Seen) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.rewind()?;
        for record in Records::of(file.try_clone()?) {
            match record {
                Ok(record) => {
                    if matches!(see(record), Seen::Enough) {
                        break;
                    }
                }
                Err(error) => tracing::debug!(%error, "passed over a line of the ledger"),
            }
        }
        Ok(())
    }

    /// Answers a question. Reads a file: not for a serving core.
    pub(in crate::server) fn answer(&self, query: &Query) -> io::Result<Answer> {
        match query {
            Query::Total(filter) => {
                let mut totals = Totals::default();
                self.matching(filter, |record| add(&mut totals, record))?;
                Ok(Answer::Total(Box::new(totals)))
            }
            Query::Usage { filter, by, after, limit } => self.usage(filter, *by, after.as_deref(), *limit),
            Query::Request(id) => {
                let (mut known, mut position) = (None, 0);
                self.scan(|record| {
                    position += 1;
                    if record.request != *id {
                        return Seen::More;
                    }
                    known = Some(Box::new(closed(record, position)));
                    Seen::Enough
                })?;
                Ok(Answer::Request(known))
            }
            Query::Records { filter, after, limit } => self.page(filter, *after, *limit),
        }
    }

    fn usage(&self, filter: &Filter, by: Dimension, after: Option<&str>, limit: u16) -> io::Result<Answer> {
        let mut groups: BTreeMap<String, Totals> = BTreeMap::new();
        self.matching(filter, |record| {
            let group = group(by, record);
            if after.is_none_or(|after| group.as_str() > after) {
                add(groups.entry(group).or_default(), record);
            }
        })?;
        let limit = usize::from(limit.clamp(1, PAGE_ROWS_MAX));
        let more = groups.len() > limit;
        let rows: Vec<_> = groups.into_iter().take(limit).map(|(group, totals)| UsageRow { group, totals }).collect();
        let next = rows.last().filter(|_| more).map(|row| row.group.clone());
        Ok(Answer::Usage { rows, next })
    }

    fn page(&self, filter: &Filter, after: Option<Cursor>, limit: u16) -> io::Result<Answer> {
        let limit = usize::from(limit.clamp(1, PAGE_ROWS_MAX));
        let (mut records, mut position, mut more) = (Vec::new(), 0, false);
        self.scan(|record| {
            position += 1;
            if after.is_some_and(|after| position <= after.position) || !matches(filter, &record) {
                return Seen::More;
            }
            if records.len() == limit {
                more = true;
                return Seen::Enough;
            }
            records.push(closed(record, position));
            Seen::More
        })?;
        let next = records.last().filter(|_| more).map(|known| known.cursor);
        Ok(Answer::Records { records, next })
    }

    fn matching(&self, filter: &Filter, mut each: impl FnMut(&Record)) -> io::Result<()> {
        self.scan(|record| {
            if matches(filter, &record) {
                each(&record);
            }
            Seen::More
        })
    }
}

/// Whether a scan goes on.
pub(in crate::server) enum Seen {
    More,
    Enough,
}

fn closed(record: Record, position: u64) -> Known {
    let request = record.request;
    Known { fate: Fate::Closed, record, cursor: Cursor { position, request } }
}

fn matches(filter: &Filter, record: &Record) -> bool {
    record.ended_unix_ms >= filter.since_unix_ms
        && filter.until_unix_ms.is_none_or(|until| record.ended_unix_ms < until)
        && filter.key.as_ref().is_none_or(|key| *key == record.key)
        && filter.function.as_ref().is_none_or(|function| *function == record.function)
}

fn group(by: Dimension, record: &Record) -> String {
    match by {
        Dimension::Key => record.key.to_string(),
        Dimension::Function => record.function.to_string(),
        Dimension::Tier => record.tier.to_string(),
        Dimension::Hour => (record.ended_unix_ms / HOUR_MS * HOUR_MS).to_string(),
    }
}

fn add(totals: &mut Totals, record: &Record) {
    let plus = |total: &mut u64, more: u64| *total = total.saturating_add(more);
    plus(&mut totals.requests, 1);
    plus(&mut totals.completed, u64::from(record.outcome == appliance_types::Outcome::Completed));
    plus(&mut totals.queue_us, record.queue_us);
    plus(&mut totals.wake_us, record.wake_us);
    plus(&mut totals.prefill_us, record.prefill_us);
    plus(&mut totals.decode_us, record.decode_us);
    plus(&mut totals.tokens_in, record.tokens_in.into());
    plus(&mut totals.tokens_cached, record.tokens_cached.into());
    plus(&mut totals.tokens_out, record.tokens_out.into());
    plus(&mut totals.bytes_in, record.bytes_in);
    plus(&mut totals.bytes_out, record.bytes_out);
    plus(&mut totals.cost_nanos, record.cost_nanos);
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_types::RequestId;
    use std::io::Write;

    fn past(count: u64) -> Past {
        let mut file = tempfile::tempfile().unwrap();
        for number in 1..=count {
            let key = if number % 2 == 0 { "even" } else { "odd" };
            let record = Record {
                ended_unix_ms: number,
                cost_nanos: number,
                ..Record::new(RequestId::from_random(number.into()), key.parse().unwrap(), "f".parse().unwrap())
            };
            file.write_all(&appliance_ledger::line::encode(&record)).unwrap();
        }
        file.write_all(b"{\"torn").unwrap();
        Past::new(file)
    }

    #[test]
    fn sums_come_in_pages() {
        let past = past(5);
        let ask = |after: Option<&str>, limit| {
            let after = after.map(str::to_owned);
            let query = Query::Usage { filter: Filter::default(), by: Dimension::Key, after, limit };
            let Answer::Usage { rows, next } = past.answer(&query).unwrap() else { panic!() };
            let rows: Vec<_> =
                rows.into_iter().map(|row| (row.group, row.totals.requests, row.totals.cost_nanos)).collect();
            (rows, next)
        };
        let (even, odd) = (("even".to_owned(), 2, 6), ("odd".to_owned(), 3, 9));
        assert_eq!(ask(None, 9), (vec![even.clone(), odd.clone()], None));
        assert_eq!(ask(None, 1), (vec![even], Some("even".to_owned())));
        assert_eq!(ask(Some("even"), 1), (vec![odd], None));
    }

    #[test]
    fn records_come_in_pages_and_by_id() {
        let past = past(5);
        let filter = Filter { since_unix_ms: 2, ..Filter::default() };
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let query = Query::Records { filter: filter.clone(), after, limit: 3 };
            let Answer::Records { records, next } = past.answer(&query).unwrap() else { panic!() };
            seen.extend(records.iter().map(|known| known.record.ended_unix_ms));
            after = next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(seen, [2, 3, 4, 5]);
        let find = |number| past.answer(&Query::Request(RequestId::from_random(number))).unwrap();
        assert!(matches!(find(4), Answer::Request(Some(known)) if known.record.cost_nanos == 4));
        assert_eq!(find(6), Answer::Request(None));
    }
}
