//! `ember report`: cost per token, right-sizing, break-even. What is computed, and how: `appliance-report`.

use crate::{
    args::{Listing, Report, Span},
    client::Client,
    error::Error,
    output, records,
};
use appliance_price::Book;
use appliance_report::{Breakeven, Cheaper, Cost, Costs, Provisioned, Rightsize, Size, Visit, breakeven, rightsize};
use appliance_types::FunctionName;
use serde_json::json;
use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// Most requests that a report by function holds in memory, each about 130 bytes.
const VISITS_MAX: usize = 4_000_000;

/// What a report by function is made of.
struct Gathered {
    book: Book,
    sizes: Vec<Size>,
    visits: HashMap<FunctionName, Vec<Visit>>,
    /// From the first of them, or `since`, until now.
    period_ms: u64,
}

pub(crate) fn command(client: &Client, report: &Report) -> Result<(), Error> {
    match report {
        Report::Cost(span) => cost(client, *span),
        Report::Rightsize(span) => {
            let all = gather(client, *span)?;
            let rows: Vec<_> = all.each(|size, visits| rightsize(size, visits, &all.book)).collect();
            show(span.listing, &all.book, &rows, || sizes(&rows, &currency(&all.book)))
        }
        Report::Breakeven { span, kept, used } => {
            let all = gather(client, *span)?;
            let list = Provisioned::of(all.book.at(now_ms()));
            let prices = Provisioned {
                kept_gib_second: kept.unwrap_or(list.kept_gib_second),
                used_gib_second: used.unwrap_or(list.used_gib_second),
            };
            let compare = |size: &Size, visits: &[Visit]| breakeven(size, visits, &all.book, prices, all.period_ms);
            let rows: Vec<_> = all.each(compare).collect();
            show(span.listing, &all.book, &rows, || turns(&rows, &currency(&all.book)))
        }
    }
}

fn cost(client: &Client, span: Span) -> Result<(), Error> {
    let book = records::book(client)?;
    let mut costs = Costs::default();
    records::each(client, span.since, |record| {
        costs.add(record);
        Ok(())
    })?;
    let rows = costs.rows();
    show(span.listing, &book, &rows, || tokens(&rows, &currency(&book)))
}

fn gather(client: &Client, span: Span) -> Result<Gathered, Error> {
    let (book, sizes) = (records::book(client)?, records::sizes(client)?);
    let (mut visits, mut count, mut first) = (HashMap::<_, Vec<Visit>>::new(), 0, None::<u64>);
    records::each(client, span.since, |record| {
        let Some(visit) = Visit::of(record) else { return Ok(()) };
        count += 1;
        if count > VISITS_MAX {
            return Err(Error::Usage(format!("more than {VISITS_MAX} requests: report on fewer with --since TIME")));
        }
        first = Some(first.map_or(visit.came_unix_ms, |first| first.min(visit.came_unix_ms)));
        visits.entry(record.function.clone()).or_default().push(visit);
        Ok(())
    })?;
    let since_first = first.map_or(0, |first| now_ms().saturating_sub(first));
    Ok(Gathered { book, sizes, visits, period_ms: span.since.unwrap_or(since_first) })
}

impl Gathered {
    fn each<'g, R>(&'g self, report: impl Fn(&Size, &[Visit]) -> R + 'g) -> impl Iterator<Item = R> + 'g {
        self.sizes.iter().map(move |size| report(size, self.visits.get(&size.function).map_or(&[], Vec::as_slice)))
    }
}

fn show<R: serde::Serialize>(
    listing: Listing,
    book: &Book,
    rows: &[R],
    table: impl FnOnce() -> String,
) -> Result<(), Error> {
    let value = json!({ "currency": book.currency(), "data": rows });
    output::print(listing, &value, || Ok(table()))
}

fn currency(book: &Book) -> String {
    book.currency().to_string()
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

fn tokens(rows: &[Cost], currency: &str) -> String {
    let amount = |nanos: Option<u64>| nanos.map_or(output::NONE.to_owned(), |nanos| output::money(nanos, currency));
    let cells = |row: &Cost| {
        let counts = [row.requests, row.tokens_in, row.tokens_out].map(|count| count.to_string());
        let [requests, tokens_in, tokens_out] = counts;
        let (cost, all, out) =
            (amount(Some(row.cost_nanos)), amount(row.per_1k_tokens_nanos), amount(row.per_1k_tokens_out_nanos));
        [row.function.to_string(), row.key.to_string(), requests, tokens_in, tokens_out, cost, all, out]
    };
    let header = ["FUNCTION", "KEY", "REQUESTS", "IN", "OUT", "COST", "PER 1K", "PER 1K OUT"];
    output::table(header, rows.iter().map(cells))
}

fn sizes(rows: &[Rightsize], currency: &str) -> String {
    let cells = |row: &Rightsize| {
        let peak = row.memory_peak_bytes.map_or(output::NONE.to_owned(), output::bytes);
        [
            row.function.to_string(),
            row.requests.to_string(),
            peak,
            change(&output::bytes(row.memory_bytes), &output::bytes(row.memory_suggested_bytes)),
            format!("{}.{:02}", row.cpus_p95_hundredths / 100, row.cpus_p95_hundredths % 100),
            change(&row.cpus.to_string(), &row.cpus_suggested.to_string()),
            row.at_once_peak.to_string(),
            change(&row.concurrency.to_string(), &row.concurrency_suggested.to_string()),
            format!("{} of {}", output::money(row.saving_nanos, currency), output::money(row.cost_nanos, currency)),
        ]
    };
    let header = ["FUNCTION", "REQUESTS", "PEAK", "MEMORY", "CORES P95", "CORES", "AT ONCE", "CONCURRENCY", "SAVES"];
    output::table(header, rows.iter().map(cells))
}

fn change(now: &str, suggested: &str) -> String {
    if now == suggested { now.to_owned() } else { format!("{now} -> {suggested}") }
}

fn turns(rows: &[Breakeven], currency: &str) -> String {
    let cells = |row: &Breakeven| {
        let rate = |per_hour: f64| format!("{per_hour:.1}/h");
        [
            row.function.to_string(),
            row.requests.to_string(),
            rate(row.per_hour),
            output::money(row.serverless_nanos, currency),
            output::money(row.provisioned_nanos, currency),
            row.beside.to_string(),
            match row.cheaper {
                Cheaper::Serverless => "serverless".to_owned(),
                Cheaper::Provisioned => "provisioned".to_owned(),
            },
            row.turns_at_per_hour.map_or(output::NONE.to_owned(), rate),
        ]
    };
    let header =
        ["FUNCTION", "REQUESTS", "RATE", "SERVERLESS", "PROVISIONED", "BESIDE IT", "CHEAPER", "PROVISIONED FROM"];
    output::table(header, rows.iter().map(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_not_a_change() {
        assert_eq!((change("1", "1"), change("4", "2")), ("1".to_owned(), "4 -> 2".to_owned()));
    }
}
