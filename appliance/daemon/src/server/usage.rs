//! What was used, and what it cost: sums, single requests with their bill explained, and records as they are.
//!
//! ```text
//!  GET usage?by=&since=&until=&key=&function= ─┐
//!  GET usage/{request_id}                      ├▶ a query of the ledger ─▶ answer ─▶ JSON
//!  GET usage/records?since=&limit=&after=      ┘
//!  GET prices ─▶ all versions that the book holds
//! ```
//!
//! Below `key/` the same of the key that asks, and of nobody else: another's request is to it one that
//! never was.
//!
//! `since` and `until` are durations back from now (`1h`), or milliseconds since the Unix epoch. An explanation is the
//! bill made anew from the record and the version of the prices that it names: it says so if that does not give the
//! amount that was charged.

use super::{
    handler::{Call, unix_ms},
    reply::{self, Answered, Reply},
};
use appliance_api::{ApiError, Receipt};
use appliance_edge::ReplyBody;
use appliance_keys::Key;
use appliance_ledger::query::{Answer, Cursor, Dimension, Filter, PAGE_ROWS_MAX, Query, QueryError, Totals, UsageRow};
use appliance_price::Prices;
use appliance_runtime::timeout;
use appliance_types::{Record, RequestId};
use serde::Serialize;
use serde_json::json;
use std::{
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// Records of one reply, unless fewer are asked for.
const RECORDS_DEFAULT: u32 = 1_000;
/// Most records of one reply.
const RECORDS_MAX: u32 = 10_000;
/// Most groups of one reply.
const GROUPS_MAX: usize = 100_000;
/// How long the ledger has for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER_S: u64 = 1;
/// Most keys that ask about themselves at once.
const OWN_QUESTIONS_MAX: usize = 4;
const NDJSON: &str = "application/x-ndjson";

/// `GET /ember/v1/usage`
pub(super) async fn sums(call: &Call, whose: Whose, query: Option<&str>) -> Answered {
    let mut parameters = Parameters::read(query, whose.parameters(&["by", "since", "until", "function", "key"]))?;
    let by = parameters.take("by", dimension)?.unwrap_or(Dimension::Function);
    let filter = parameters.filter(call, whose)?;
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let query = Query::Usage { filter: filter.clone(), by, after, limit: PAGE_ROWS_MAX };
        let Answer::Usage { rows: page, next } = ask(call, query).await? else { return Err(out_of_place()) };
        rows.extend(page.iter().map(row));
        match next {
            Some(next) if rows.len() < GROUPS_MAX => after = Some(next),
            _ => break,
        }
    }
    let currency = call.state.prices.load().currency();
    Ok(reply::json(&json!({ "data": rows, "by": by, "since_unix_ms": filter.since_unix_ms, "currency": currency })))
}

/// `GET /ember/v1/usage/records`: a record a line, oldest end first. `x-ember-next` is the next page's `after`.
pub(super) async fn records(call: &Call, whose: Whose, query: Option<&str>) -> Answered {
    let known = whose.parameters(&["since", "until", "limit", "after", "function", "key"]);
    let mut parameters = Parameters::read(query, known)?;
    let limit = parameters.take("limit", |text| text.parse().map_err(|_| "not a whole number".to_owned()))?;
    let limit: u32 = limit.unwrap_or(RECORDS_DEFAULT).clamp(1, RECORDS_MAX);
    let mut after = parameters.take("after", cursor)?;
    let filter = parameters.filter(call, whose)?;
    let (mut lines, mut left) = (Vec::new(), limit);
    while left > 0 {
        let page = u16::try_from(left).unwrap_or(PAGE_ROWS_MAX).min(PAGE_ROWS_MAX);
        let query = Query::Records { filter: filter.clone(), after, limit: page };
        let Answer::Records { records, next } = ask(call, query).await? else { return Err(out_of_place()) };
        for known in &records {
            serde_json::to_writer(&mut lines, &known.record).expect("a Vec takes any bytes, and our keys are strings");
            lines.push(b'\n');
        }
        left = left.saturating_sub(u32::try_from(records.len()).unwrap_or(u32::MAX));
        after = next;
        if next.is_none() {
            break;
        }
    }
    let mut reply = reply::with_type(NDJSON, ReplyBody::Full(lines.into()));
    if let Some(Cursor { position, request }) = after {
        reply::set(&mut reply, "x-ember-next", &format!("{position}:{request}"));
    }
    Ok(reply)
}

/// `GET /ember/v1/usage/{request_id}`
pub(super) async fn explain(call: &Call, whose: Whose, id: &str) -> Answered {
    let unknown = || ApiError::not_found(format!("the ledger knows no request `{id}`, or keeps it no more"));
    let request = RequestId::try_from(id.to_owned()).map_err(|_| unknown())?;
    let Answer::Request(known) = ask(call, Query::Request(request)).await? else { return Err(out_of_place()) };
    let known = known.filter(|known| whose.may_see(call, &known.record)).ok_or_else(unknown)?;
    let book = call.state.prices.load_full();
    let prices = book.version(known.record.price_version);
    let bill = prices.map(|prices| prices.bill_of(&known.record));
    Ok(reply::json(&json!({
        "request_id": request,
        "fate": known.fate,
        "record": known.record,
        "receipt": prices.map(|prices| Receipt::from_record(&known.record, prices)),
        "currency": book.currency(),
        "bill_wake": prices.map(|prices| prices.bill_wake),
        "effective_unix_ms": prices.map(|prices| prices.effective_unix_ms),
        "agrees": bill.as_ref().map(|bill| bill.cost_nanos == known.record.cost_nanos),
        "bill": bill,
    })))
}

/// `GET /ember/v1/prices`: by which records were charged, the earliest version first.
pub(super) fn prices(call: &Call) -> Reply {
    let book = call.state.prices.load();
    let versions: Vec<Prices> = book.versions().iter().map(|prices| **prices).collect();
    reply::list(&versions)
}

/// Whose usage is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// All keys'.
    Everybody,
    /// That of the key that asks.
    Callers,
}

impl Whose {
    /// Of these, which end with `key`, those that may be asked by.
    fn parameters<'a>(self, all: &'a [&'static str]) -> &'a [&'static str] {
        match self {
            Self::Everybody => all,
            Self::Callers => &all[..all.len() - 1],
        }
    }

    fn may_see(self, call: &Call, record: &Record) -> bool {
        let key = &call.caller.key;
        self == Self::Everybody || key.name == record.key && record.came_unix_ms >= began_unix_ms(key)
    }
}

/// Since when a key's name is this key's: one that was revoked may have had it before.
fn began_unix_ms(key: &Key) -> u64 {
    key.created_unix_s.saturating_mul(1_000)
}

/// Those who ask about themselves, at once: few enough that an operator is still answered.
#[derive(Debug, Default)]
pub(super) struct Turns(AtomicUsize);

/// A turn, given back by its drop.
pub(super) struct Turn<'t>(&'t AtomicUsize);

impl Turns {
    /// Takes a turn.
    ///
    /// # Errors
    /// 503: all are taken.
    pub(super) fn begin(&self) -> Result<Turn<'_>, ApiError> {
        let next = |taken| (taken < OWN_QUESTIONS_MAX).then_some(taken + 1);
        match self.0.fetch_update(Relaxed, Relaxed, next) {
            Ok(_) => Ok(Turn(&self.0)),
            Err(_) => Err(ApiError::unavailable("others ask what they used; try again".to_owned(), RETRY_AFTER_S)),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Asks the ledger.
async fn ask(call: &Call, query: Query) -> Result<Answer, ApiError> {
    let asked = timeout(ANSWER_MAX, call.state.ledger.ask(query)).await;
    asked.unwrap_or(Err(QueryError::Busy)).map_err(|error| match error {
        QueryError::Busy | QueryError::Restarted => ApiError::unavailable(error.to_string(), RETRY_AFTER_S),
        QueryError::Gone | QueryError::Index { .. } | QueryError::Cursor { .. } | QueryError::Beyond { .. } => {
            ApiError::internal(error.to_string())
        }
    })
}

fn out_of_place() -> ApiError {
    ApiError::internal("the ledger answered another question")
}

/// The sums of a group, as they are shown.
#[derive(Serialize)]
struct Row<'r> {
    group: &'r str,
    requests: u64,
    completed: u64,
    interrupted: u64,
    queue_us: u64,
    wake_us: u64,
    prefill_us: u64,
    decode_us: u64,
    tokens_in: u64,
    tokens_cached: u64,
    tokens_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    cost_nanos: u64,
}

fn row(UsageRow { group, totals }: &UsageRow) -> serde_json::Value {
    let Totals { requests, completed, interrupted, queue_us, wake_us, prefill_us, decode_us, .. } = *totals;
    let Totals { tokens_in, tokens_cached, tokens_out, bytes_in, bytes_out, cost_nanos, .. } = *totals;
    let row = Row {
        group,
        requests,
        completed,
        interrupted,
        queue_us,
        wake_us,
        prefill_us,
        decode_us,
        tokens_in,
        tokens_cached,
        tokens_out,
        bytes_in,
        bytes_out,
        cost_nanos,
    };
    serde_json::to_value(row).expect("strings and numbers")
}

/// The parameters of a query string, each taken once.
struct Parameters<'q>(Vec<(&'q str, &'q str)>);

impl<'q> Parameters<'q> {
    fn read(query: Option<&'q str>, known: &[&str]) -> Result<Self, ApiError> {
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(name) {
                let message = format!("`{}` is no parameter; known are `{}`", name.escape_debug(), known.join("`, `"));
                return Err(ApiError::invalid_param(*name, message));
            }
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::invalid_param(*name, format!("`{name}`: it is there twice")));
            }
        }
        Ok(Self(pairs))
    }

    fn take<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, ApiError> {
        let Some((_, value)) = self.0.iter().find(|(found, _)| *found == name) else { return Ok(None) };
        read(value).map(Some).map_err(|reason| ApiError::invalid_param(name, format!("`{name}`: {reason}")))
    }

    fn filter(&mut self, call: &Call, whose: Whose) -> Result<Filter, ApiError> {
        let key = match whose {
            Whose::Everybody => self.take("key", parsed)?,
            Whose::Callers => Some(call.caller.key.name.clone()),
        };
        let earliest = match whose {
            Whose::Everybody => 0,
            Whose::Callers => began_unix_ms(&call.caller.key),
        };
        Ok(Filter {
            key,
            since_unix_ms: self.take("since", |text| time(text, unix_ms()))?.unwrap_or(0).max(earliest),
            until_unix_ms: self.take("until", |text| time(text, unix_ms()))?,
            function: self.take("function", parsed)?,
        })
    }
}

fn parsed<T: FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A time: so long ago, or milliseconds since the Unix epoch.
fn time(text: &str, now_unix_ms: u64) -> Result<u64, String> {
    match text.parse() {
        Ok(unix_ms) => Ok(unix_ms),
        Err(_) => appliance_config::duration_ms(text).map(|ago| now_unix_ms.saturating_sub(ago)),
    }
}

fn dimension(text: &str) -> Result<Dimension, String> {
    match text {
        "key" => Ok(Dimension::Key),
        "project" => Ok(Dimension::Project),
        "function" => Ok(Dimension::Function),
        "tier" => Ok(Dimension::Tier),
        "hour" => Ok(Dimension::Hour),
        _ => Err("it is none of `function`, `key`, `project`, `tier` and `hour`".to_owned()),
    }
}

fn cursor(text: &str) -> Result<Cursor, String> {
    let parts = text.split_once(':');
    let cursor = parts.and_then(|(position, request)| {
        Some(Cursor { position: position.parse().ok()?, request: request.to_owned().try_into().ok()? })
    });
    cursor.ok_or_else(|| "it is not what `x-ember-next` said".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_strictly() {
        let known = ["by", "since"];
        let mut read = Parameters::read(Some("by=hour&since=1h"), &known).unwrap();
        assert_eq!(read.take("by", dimension).unwrap(), Some(Dimension::Hour));
        assert_eq!(read.take("limit", dimension).unwrap(), None);
        for bad in ["bye=hour", "by=key&by=key"] {
            assert_eq!(Parameters::read(Some(bad), &known).err().map(|error| error.status), Some(400), "{bad}");
        }
        let wrong = Parameters::read(Some("by=day"), &known).unwrap().take("by", dimension).unwrap_err();
        assert_eq!((wrong.status, wrong.param.as_deref()), (400, Some("by")));
    }

    #[test]
    fn few_ask_about_themselves_at_once() {
        let turns = Turns::default();
        let mut taken: Vec<_> = (0..OWN_QUESTIONS_MAX).map(|_| turns.begin().unwrap()).collect();
        assert_eq!(turns.begin().err().map(|error| error.status), Some(503));
        taken.pop();
        assert!(turns.begin().is_ok());
    }

    #[test]
    fn a_key_cannot_ask_by_key() {
        let all = ["since", "key"];
        assert_eq!(Whose::Everybody.parameters(&all), all);
        assert_eq!(Whose::Callers.parameters(&all), ["since"]);
    }

    #[test]
    fn times_are_durations_or_moments() {
        assert_eq!(time("1h", 3_600_005), Ok(5));
        assert_eq!(time("2h", 5), Ok(0));
        assert_eq!(time("1700000000000", 5), Ok(1_700_000_000_000));
        assert!(time("yesterday", 5).is_err());
    }

    #[test]
    fn a_cursor_reads_what_the_header_says() {
        let request = RequestId::from_random(7);
        assert_eq!(cursor(&format!("3:{request}")), Ok(Cursor { position: 3, request }));
        assert!(cursor("3").is_err() && cursor("x:req-1").is_err());
    }
}
