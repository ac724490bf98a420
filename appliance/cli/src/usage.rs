//! `ember usage`: sums by function, key, tier or hour, how the amount of one request came to be, whose the machine's time was,
//! and all of it as a file.

use crate::{
    args::{ExportFormat, Span, Usage, UsageCommand},
    client::Client,
    error::Error,
    machine, output, records,
};
use appliance_price::{Bill, Line, What, calendar};
use appliance_report::Focus;
use appliance_types::Record;
use serde::Deserialize;
use serde_json::json;
use std::{fs, path::Path};

const USAGE: &str = "/ember/v1/usage";

#[derive(Deserialize)]
struct Row {
    group: String,
    requests: u64,
    wake_us: u64,
    prefill_us: u64,
    decode_us: u64,
    tokens_in: u64,
    tokens_cached: u64,
    tokens_out: u64,
    cost_nanos: u64,
}

#[derive(Deserialize)]
struct Explained {
    record: Record,
    currency: String,
    bill: Option<Bill>,
    bill_wake: Option<bool>,
    agrees: Option<bool>,
}

pub(crate) fn command(client: &Client, usage: Usage) -> Result<(), Error> {
    match usage.command {
        Some(UsageCommand::Explain { request, listing }) => {
            let reply = client.get(&format!("{USAGE}/{request}"))?;
            return output::print(listing, &reply, || Ok(explanation(&client.typed(&reply)?)));
        }
        Some(UsageCommand::Machine(listing)) => {
            let reply = client.get("/ember/v1/instances")?;
            let value = json!({ "system": reply["system"], "machine": reply["machine"] });
            return output::print(listing, &value, || Ok(machine::table(&client.typed(&value)?)));
        }
        Some(UsageCommand::Export { format: ExportFormat::Focus, out, account, span }) => {
            return export(client, &out, &account, span);
        }
        None => {}
    }
    let since = usage.since.map_or(String::new(), |ms| format!("&since={ms}ms"));
    let reply = client.get(&format!("{USAGE}?by={}{since}", usage.by))?;
    let currency = reply["currency"].as_str().unwrap_or("").to_owned();
    let data = output::data(reply);
    output::print(usage.listing, &data, || table(&usage.by, &client.typed::<Vec<Row>>(&data)?, &currency))
}

/// Writes the file beside its place, and moves it there when it is whole.
fn export(client: &Client, out: &Path, account: &str, span: Span) -> Result<(), Error> {
    let book = records::book(client)?;
    let (mut focus, mut count) = (Focus::new(&book, account), 0_u64);
    records::each(client, span.since, |record| {
        focus.add(record);
        count += 1;
        Ok(())
    })?;
    let failed = |source| Error::Write { path: out.to_owned(), source };
    let mut fresh = out.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, focus.to_csv()).and_then(|()| fs::rename(&fresh, out)).map_err(failed)?;
    let (rows, nanos) = (focus.len(), focus.billed_nanos());
    let value = json!({ "file": out, "rows": rows, "requests": count, "cost_nanos": nanos as u64, "currency": book.currency() });
    output::print(span.listing, &value, || {
        let cost = output::money(u64::try_from(nanos).unwrap_or(u64::MAX), &book.currency().to_string());
        Ok(format!("{rows} rows of {count} requests, {cost}: {}", out.display()))
    })
}

fn table(by: &str, rows: &[Row], currency: &str) -> Result<String, Error> {
    let name = by.to_uppercase();
    let header = [&name, "REQUESTS", "IN", "CACHED", "OUT", "WAKE-MS", "WORK-MS", "COST"];
    let cells = |row: &Row| {
        let group = match (by, row.group.parse()) {
            ("hour", Ok(start_ms)) => calendar::in_words(start_ms),
            _ => row.group.clone(),
        };
        let counts = [row.requests, row.tokens_in, row.tokens_cached, row.tokens_out].map(|count| count.to_string());
        let [requests, tokens_in, cached, tokens_out] = counts;
        let (wake, work) = (row.wake_us / 1_000, row.prefill_us.saturating_add(row.decode_us) / 1_000);
        let cost = output::money(row.cost_nanos, currency);
        [group, requests, tokens_in, cached, tokens_out, wake.to_string(), work.to_string(), cost]
    };
    Ok(output::table(header, rows.iter().map(cells)))
}

/// How an amount came to be: what happened, the time, the prices, the lines and their sum.
fn explanation(explained: &Explained) -> String {
    let Explained { record, currency, bill, bill_wake, agrees } = explained;
    let mut rows = happened(record, *bill_wake);
    match bill {
        None => rows.push(("prices", format!("version {}, which the book holds no more", record.price_version))),
        Some(bill) => {
            let wake_us = if *bill_wake == Some(true) { record.wake_share_us } else { 0 };
            let exact_us = record.share_us.saturating_add(wake_us);
            rows.push(("time", format!("{}, rounded up to {} ms", ms(exact_us), bill.billed_ms)));
            rows.push(("memory", format!("{} bytes reserved", record.memory_bytes)));
            rows.push(("prices", format!("version {}, in 10^-9 {currency}", bill.price_version)));
            rows.extend(bill.lines.iter().map(|line| ("+", sum(line))));
            if bill.waived_nanos > 0 {
                rows.push(("-", format!("{} past the budget, not charged", bill.waived_nanos)));
            }
        }
    }
    if record.budget_reached {
        rows.push(("budget", "reached: the answer was stopped there".to_owned()));
    }
    if *agrees == Some(false) {
        rows.push(("note", "the prices of this version were changed since: the lines do not give the cost".to_owned()));
    }
    let cost = record.cost_nanos;
    rows.push(("cost", format!("{cost} = {}", output::money(cost, currency))));
    rows.iter().map(|(name, value)| format!("{name:8} {value}")).collect::<Vec<_>>().join("\n")
}

fn happened(record: &Record, bill_wake: Option<bool>) -> Vec<(&'static str, String)> {
    let outcome = serde_json::to_value(record.outcome).ok().and_then(|outcome| outcome.as_str().map(str::to_owned));
    let (outcome, status) = (outcome.unwrap_or_default(), record.status);
    let wake = if bill_wake == Some(false) { "not billed" } else { "billed" };
    let project = record.project.as_ref().map_or(String::new(), |project| format!(" of project {project}"));
    let (fed, cached) = (record.tokens_in.saturating_sub(record.tokens_cached), record.tokens_cached);
    vec![
        ("request", record.request.to_string()),
        ("of", format!("key {}{project}, function {}, found {}", record.key, record.function, record.tier)),
        ("ended", format!("{}, {outcome}, status {status}", calendar::in_words(record.ended_unix_ms))),
        ("queue", format!("{}, not billed", ms(record.queue_us))),
        ("wake", format!("{} waited for; its part is {}, {wake}", ms(record.wake_us), ms(record.wake_share_us))),
        ("prefill", format!("{}; {fed} tokens, and {cached} from the cache", ms(record.prefill_us))),
        ("decode", format!("{}; {} tokens", ms(record.decode_us), record.tokens_out)),
        ("share", format!("{} of its instance's time, billed; requests in it at once divide it", ms(record.share_us))),
    ]
}

/// `7017 memory: 421 ms x 1073741824 bytes x 16667 / 1073741824000, rounded up`
fn sum(line: &Line) -> String {
    let Line { what, quantity, times, price_nanos, per, amount_nanos } = line;
    let how = match what {
        What::Request => format!("{quantity} x {price_nanos}"),
        What::Memory => format!("{quantity} ms x {times} bytes x {price_nanos} / {per}, rounded up"),
        What::Cpu => format!("{quantity} us x {price_nanos} / {per}, rounded up"),
        What::TokensIn | What::TokensCached | What::TokensOut => {
            format!("{quantity} x {price_nanos} / {per}, rounded up")
        }
    };
    format!("{amount_nanos} {what}: {how}")
}

fn ms(us: u64) -> String {
    format!("{}.{:03} ms", us / 1_000, us % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_price::Prices;
    use appliance_types::{Outcome, RequestId};
    use serde_json::{Value, json};

    fn explained(cap_nanos: Option<u64>) -> String {
        let mut record = Record {
            outcome: Outcome::Completed,
            status: 200,
            wake_us: 100_001,
            prefill_us: 20_000,
            decode_us: 300_500,
            share_us: 320_500,
            wake_share_us: 100_001,
            memory_bytes: 1 << 30,
            ..Record::new(RequestId::from_random(1), "app".parse().unwrap(), "assistant".parse().unwrap())
        };
        let prices = Prices::default();
        prices.charge(&mut record, cap_nanos);
        let bill = prices.bill_of(&record);
        let reply: Value =
            json!({ "record": record, "currency": "USD", "bill": bill, "bill_wake": true, "agrees": true });
        explanation(&serde_json::from_value(reply).unwrap())
    }

    #[test]
    fn an_amount_is_explained_line_by_line() {
        let text = explained(None);
        for line in [
            "time     420.501 ms, rounded up to 421 ms",
            "prices   version 1, in 10^-9 USD",
            "+        200 request: 1 x 200",
            "+        7017 memory: 421 ms x 1073741824 bytes x 16667 / 1073741824000, rounded up",
            "cost     7217 = 0.000007217 USD",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_a_budget_cut_off_is_said() {
        let text = explained(Some(7_000));
        assert!(
            text.contains("-        217 past the budget, not charged") && text.contains("budget   reached"),
            "{text}"
        );
        assert!(text.ends_with("cost     7000 = 0.000007 USD"), "{text}");
    }
}
