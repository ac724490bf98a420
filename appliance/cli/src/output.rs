//! What commands print: plain tables, JSON documents, and quantities for people.
//!
//! Invariant: a reader that has left (`ember ls | head -1`) ends the command quietly; nothing here panics for it.

use crate::{args::Listing, error::Error};
use comfy_table::{Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// Stands where there is no value.
pub(crate) const NONE: &str = "-";
/// Between two pictures of something that goes on.
const TICK: Duration = Duration::from_millis(120);

/// Prints `value` as JSON where that was asked for, else as the text that `text` makes.
pub(crate) fn print(
    listing: Listing,
    value: &Value,
    text: impl FnOnce() -> Result<String, Error>,
) -> Result<(), Error> {
    if listing.json { line(&format!("{value:#}")) } else { line(&text()?) }
}

/// Prints one line (or more) on stdout.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    Ok(writeln!(stdout, "{text}").and_then(|()| stdout.flush())?)
}

/// A message on stderr; one that cannot be delivered is dropped.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says what is waited for while `what` is done, with the time that it takes where that is a terminal.
pub(crate) fn waiting<T>(message: &str, what: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        note(message);
        return what();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a constant template");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(message.to_owned());
    bar.enable_steady_tick(TICK);
    let done = what();
    bar.finish_and_clear();
    done
}

/// Columns under their names, parted by spaces.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Each leaf of `value` on a line of its own, named by its path.
pub(crate) fn leaves(value: &Value) -> String {
    let mut rows = Vec::new();
    collect(String::new(), value, &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, leaf)| format!("{name:width$}  {leaf}")).collect::<Vec<_>>().join("\n")
}

fn collect(name: String, value: &Value, rows: &mut Vec<(String, String)>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| collect(below(key), value, rows)),
        Value::Null => {}
        Value::String(text) => rows.push((name, text.clone())),
        other => rows.push((name, other.to_string())),
    }
}

/// Bytes for people: `98.4 MB` would be ambiguous, so binary units, as in manifests.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.max(1).ilog2() / 10).min(4);
    match power {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / f64::from(power * 10).exp2(), UNITS[power as usize]),
    }
}

/// Seconds for people, in the two largest units.
pub(crate) fn seconds(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

/// An amount of 10^-9 units of a currency, in decimals, without needless zeros.
pub(crate) fn money(nanos: u64, currency: &str) -> String {
    let digits = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    format!("{} {currency}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// The start of a digest, enough to tell models apart at a glance.
pub(crate) fn short_digest(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

/// The reply's list, which every listing endpoint wraps in `data`.
pub(crate) fn data(reply: Value) -> Value {
    match reply {
        Value::Object(mut map) => map.remove("data").unwrap_or(Value::Object(map)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_read_well() {
        assert_eq!([0, 1023, 1024, 98_362_432].map(bytes), ["0 B", "1023 B", "1.0 KiB", "93.8 MiB"]);
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!([0, 59, 61, 3_700, 90_000].map(seconds), ["0s", "59s", "1m01s", "1h01m", "1d01h"]);
        assert_eq!(money(12_684, "USD"), "0.000012684 USD");
        assert_eq!(money(2_500_000_000, "EUR"), "2.5 EUR");
        assert_eq!(money(0, "USD"), "0 USD");
        assert_eq!(money(20_000_000_000, "USD"), "20 USD");
        assert_eq!(short_digest("sha256:b179c9523d0e6a0f"), "b179c9523d0e");
    }

    #[test]
    fn a_table_has_columns_and_no_borders() {
        let text = table(["NAME", "N"], [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "20".to_owned()]]);
        assert_eq!(text, "NAME    N\na       1\nlonger  20");
    }

    #[test]
    fn leaves_are_named_by_their_path() {
        let value = json!({"name": "a", "limits": {"cpus": 2}, "info": null});
        assert_eq!(leaves(&value), "limits.cpus  2\nname         a");
    }
}
