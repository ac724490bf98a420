//! Questions to the index.

use super::{CLOSED, FILE_NAME, INTERRUPTED, RUNNING, SUMS, WIDE_SUMS};
use crate::{
    join::interrupted,
    query::{
        ANSWER_BYTES_MAX, Answer, Cursor, Dimension, Fate, Filter, Known, PAGE_ROWS_MAX, Query, QueryError, Totals,
        UsageRow,
    },
};
use appliance_types::{Record, RequestId};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params_from_iter, types::Value};
use std::{path::Path, time::Duration};

/// Bytes of a page that its rows may fill, counted generously.
const PAGE_BYTES_MAX: usize = ANSWER_BYTES_MAX - 4096;
/// Most bytes of a row of sums but its group.
const USAGE_ROW_BYTES: usize = 256;
const HOUR_MS: u64 = 3_600_000;
const BUSY: Duration = Duration::from_secs(5);

/// A reader of the index, beside the one that writes it.
#[derive(Debug)]
pub(crate) struct Reader(Connection);

impl Reader {
    pub(crate) fn open(folder: &Path) -> Result<Self, QueryError> {
        let sql =
            Connection::open_with_flags(folder.join(FILE_NAME), OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fault)?;
        sql.busy_timeout(BUSY).map_err(fault)?;
        Ok(Self(sql))
    }

    /// Answers a question.
    pub(crate) fn ask(&self, query: &Query) -> Result<Answer, QueryError> {
        match query {
            Query::Total(filter) => self.total(filter),
            Query::Usage { filter, by, after, limit } => self.usage(filter, *by, after.as_deref(), *limit),
            Query::Request(request) => self.request(*request),
            Query::Records { filter, after, limit } => self.records(filter, *after, *limit),
            Query::Lines { .. } => {
                return Err(QueryError::Index { reason: "it does not hold the ledger's lines".to_owned() });
            }
        }
        .map_err(fault)
    }

    fn total(&self, filter: &Filter) -> rusqlite::Result<Answer> {
        let (conditions, values) = conditions(filter);
        let query = format!("SELECT 0, {} FROM requests WHERE {conditions}", sums());
        let totals = self.0.query_row(&query, params_from_iter(values), totals)?;
        Ok(Answer::Total(Box::new(totals)))
    }

    fn usage(&self, filter: &Filter, by: Dimension, after: Option<&str>, limit: u16) -> rusqlite::Result<Answer> {
        let group = match by {
            Dimension::Key => "key".to_owned(),
            Dimension::Project => "project".to_owned(),
            Dimension::Function => "function".to_owned(),
            Dimension::Tier => "tier".to_owned(),
            Dimension::Hour => format!("ended / {HOUR_MS} * {HOUR_MS}"),
        };
        let (mut conditions, mut values) = conditions(filter);
        if let Some(after) = after {
            conditions += &format!(" AND {group} > ?");
            values.push(match by {
                Dimension::Hour => Value::Integer(after.parse().unwrap_or(0)),
                _ => Value::Text(after.to_owned()),
            });
        }
        let limit = limit.clamp(1, PAGE_ROWS_MAX);
        let sums = sums();
        let query = format!(
            "SELECT CAST({group} AS TEXT), {sums} FROM requests WHERE {conditions} GROUP BY {group} ORDER BY {group} LIMIT {}",
            limit + 1
        );
        let mut statement = self.0.prepare(&query)?;
        let rows = statement
            .query_map(params_from_iter(values), |row| Ok(UsageRow { group: row.get(0)?, totals: totals(row)? }))?;
        let (rows, more) = page(rows, limit, |row| USAGE_ROW_BYTES + row.group.len())?;
        let next = rows.last().filter(|_| more).map(|row| row.group.clone());
        Ok(Answer::Usage { rows, next })
    }

    fn request(&self, request: RequestId) -> rusqlite::Result<Answer> {
        let query = "SELECT position, fate, record FROM requests WHERE request = ?1";
        let found = self.0.query_row(query, [request.to_string()], known).optional()?;
        Ok(Answer::Request(found.map(|(known, _)| Box::new(known))))
    }

    fn records(&self, filter: &Filter, after: Option<Cursor>, limit: u16) -> rusqlite::Result<Answer> {
        let (mut conditions, mut values) = conditions(filter);
        if let Some(after) = after {
            conditions += " AND (position, request) > (?, ?)";
            values.push(Value::Integer(after.position as i64));
            values.push(Value::Text(after.request.to_string()));
        }
        let limit = limit.clamp(1, PAGE_ROWS_MAX);
        // The plus keeps SQLite from going by time and sorting all that match.
        let conditions = conditions.replace("ended ", "+ended ");
        let query = format!(
            "SELECT position, fate, record FROM requests WHERE {conditions} ORDER BY position, request LIMIT {}",
            limit + 1
        );
        let mut statement = self.0.prepare(&query)?;
        let rows = statement.query_map(params_from_iter(values), known)?;
        let (records, more) = page(rows, limit, |(_, bytes)| *bytes)?;
        let records: Vec<Known> = records.into_iter().map(|(known, _)| known).collect();
        let next = records.last().filter(|_| more).map(|known| known.cursor);
        Ok(Answer::Records { records, next })
    }
}

fn fault(error: rusqlite::Error) -> QueryError {
    QueryError::Index { reason: error.to_string() }
}

/// The rows of a page, and whether there are more.
fn page<T>(
    rows: impl Iterator<Item = rusqlite::Result<T>>,
    limit: u16,
    bytes: impl Fn(&T) -> usize,
) -> rusqlite::Result<(Vec<T>, bool)> {
    let (mut taken, mut filled) = (Vec::new(), 0);
    for row in rows {
        let row = row?;
        filled += bytes(&row);
        if taken.len() == usize::from(limit) || filled > PAGE_BYTES_MAX {
            return Ok((taken, true));
        }
        taken.push(row);
    }
    Ok((taken, false))
}

/// The conditions of a filter, with a `?` for each value.
fn conditions(filter: &Filter) -> (String, Vec<Value>) {
    let time = |unix_ms: u64| Value::Integer(i64::try_from(unix_ms).unwrap_or(i64::MAX));
    let mut conditions = format!("fate > {RUNNING} AND ended >= ?");
    let mut values = vec![time(filter.since_unix_ms)];
    if let Some(until) = filter.until_unix_ms {
        conditions += " AND ended < ?";
        values.push(time(until));
    }
    if let Some(key) = &filter.key {
        conditions += " AND key = ?";
        values.push(Value::Text(key.as_str().to_owned()));
    }
    if let Some(function) = &filter.function {
        conditions += " AND function = ?";
        values.push(Value::Text(function.as_str().to_owned()));
    }
    (conditions, values)
}

fn sums() -> String {
    let plain = SUMS.iter().map(|field| format!("ifnull(sum({field}), 0)"));
    let wide = WIDE_SUMS
        .iter()
        .flat_map(|field| [format!("ifnull(sum({field} >> 32), 0)"), format!("ifnull(sum({field} & 4294967295), 0)")]);
    let counts = [
        "count(*)".to_owned(),
        "ifnull(sum(completed), 0)".to_owned(),
        format!("ifnull(sum(fate = {INTERRUPTED}), 0)"),
    ];
    counts.into_iter().chain(plain).chain(wide).collect::<Vec<_>>().join(", ")
}

/// Reads what [`sums`] asks for, from the second column on.
fn totals(row: &Row<'_>) -> rusqlite::Result<Totals> {
    let plain = |column: usize| row.get::<_, i64>(column).map(|sum| sum.max(0) as u64);
    let sum = |index: usize| plain(4 + index);
    let wide = |index: usize| {
        let column = 4 + SUMS.len() + 2 * index;
        Ok::<_, rusqlite::Error>((u128::from(plain(column)?) << 32) + u128::from(plain(column + 1)?))
    };
    let narrow = |wide: u128| u64::try_from(wide).unwrap_or(u64::MAX);
    Ok(Totals {
        requests: plain(1)?,
        completed: plain(2)?,
        interrupted: plain(3)?,
        queue_us: sum(0)?,
        wake_us: sum(1)?,
        prefill_us: sum(2)?,
        decode_us: sum(3)?,
        share_us: sum(4)?,
        cpu_us: sum(5)?,
        tokens_in: sum(6)?,
        tokens_cached: sum(7)?,
        tokens_out: sum(8)?,
        bytes_in: sum(9)?,
        bytes_out: narrow(wide(0)?),
        reserved_byte_ms: wide(1)?,
        used_byte_ms: wide(2)?,
        cost_nanos: narrow(wide(3)?),
    })
}

/// A row of a request, and the bytes of its record.
fn known(row: &Row<'_>) -> rusqlite::Result<(Known, usize)> {
    let json: String = row.get(2)?;
    let malformed = |error: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(error))
    };
    let record: Record = serde_json::from_str(&json).map_err(malformed)?;
    let (fate, record) = match row.get::<_, i64>(1)? {
        CLOSED => (Fate::Closed, record),
        INTERRUPTED => (Fate::Interrupted, interrupted(record)),
        _ => (Fate::Running, record),
    };
    let cursor = Cursor { position: row.get::<_, i64>(0)? as u64, request: record.request };
    Ok((Known { fate, record, cursor }, json.len()))
}
