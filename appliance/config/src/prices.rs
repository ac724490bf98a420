//! The price book, `DIR/prices.toml`: amounts in whole nano-units, 10^-9 of the currency.
//!
//! ```toml
//! currency = "USD"
//! gib_second = 16667
//! request = 200
//! bill_wake = true
//! [[book]]
//! version = 2
//! effective = 2027-01-01
//! gib_second = 15000
//! cpu_second = 0
//! tokens_in_1k = 100
//! tokens_cached_1k = 10
//! tokens_out_1k = 400
//! [book.batch]
//! tokens_out_1k = 200
//! ```
//!
//! The top is the first version, by which all is charged until another takes effect; what it leaves out is as in
//! [`PRICES_DEFAULT`], and what has no price costs nothing. Each `[[book]]` is a later version, and what it leaves out
//! stays as it was. `effective` is a date, which begins at midnight UTC, or a time with its offset. `[batch]` holds the
//! prices of tokens of the batch class where they differ; one that was set stays until it is set again.

use crate::{
    ConfigError,
    section::{Reader, Schema, Section, parsed, truth},
};
use appliance_price::{Book, BookError, Prices, TokenPrices, VERSIONS_MAX, calendar};
use toml::de::{DeTable, DeValue};

/// What the file holds when it is made: AWS Lambda's list prices.
pub const PRICES_DEFAULT: &str = "\
# Prices in nano-units, 10^-9 of the currency. A bill is
#   request + ceil(billed ms) x reserved GiB x gib_second / 1000, rounded up.
# A price may be added for cpu_second, tokens_in_1k, tokens_cached_1k and tokens_out_1k. For prices that take effect
# later, add a version below the others: [[book]], version = 2, effective = 2030-01-01, and what changes.
gib_second = 16667
request = 200
bill_wake = true
currency = \"USD\"
";

macro_rules! amounts {
    ($($more:literal),*) => {
        &["gib_second", "request", "cpu_second", "bill_wake", "tokens_in_1k", "tokens_cached_1k", "tokens_out_1k",
          "batch", "version", $($more),*]
    };
}

const SCHEMA: Schema = &[
    ("", amounts!("currency", "book")),
    ("book", amounts!("effective")),
    ("batch", &["tokens_in_1k", "tokens_cached_1k", "tokens_out_1k"]),
];

/// Reads a price book.
///
/// # Errors
/// The first thing wrong with it, and where.
pub fn prices(document: &str) -> Result<Book, ConfigError> {
    let table = DeTable::parse(document).map_err(|error| ConfigError::syntax(document, &error))?;
    let top = Section::top(document, table.get_ref(), SCHEMA)?;
    let default = Prices::default();
    let currency = top.get("currency", &parsed)?.unwrap_or(default.currency);
    let version = top.get("version", &version)?.unwrap_or(default.version);
    let mut draft = Draft::default().changed_by(&top)?;
    let mut versions = vec![draft.prices(Prices { version, currency, ..default })];
    let later = top.sections("book", "book", VERSIONS_MAX - 1)?;
    for section in &later {
        draft = draft.changed_by(section)?;
        let version = section.require("version", &self::version)?;
        let effective_unix_ms = section.require("effective", &time)?;
        versions.push(draft.prices(Prices { version, effective_unix_ms, currency, ..default }));
    }
    Book::new(versions).map_err(|error| match error {
        BookError::Version(index) => later[index - 1].error("version", "`version`: not above that of the one before"),
        BookError::Effective(index) => {
            later[index - 1].error("effective", "`effective`: not after that of the one before")
        }
        BookError::Empty | BookError::TooMany | BookError::Currency(_) => {
            unreachable!("there is one version at least, no more than there may be, and one currency")
        }
    })
}

/// Prices as far as they were said; each version begins with those of the one before.
#[derive(Clone, Copy, Default)]
struct Draft {
    gib_second: Option<u64>,
    request: Option<u64>,
    cpu_second: Option<u64>,
    bill_wake: Option<bool>,
    tokens: DraftTokens,
    batch: DraftTokens,
}

#[derive(Clone, Copy, Default)]
struct DraftTokens {
    tokens_in_1k: Option<u64>,
    tokens_cached_1k: Option<u64>,
    tokens_out_1k: Option<u64>,
}

impl Draft {
    fn changed_by(self, section: &Section<'_>) -> Result<Self, ConfigError> {
        let amount = |key, before: Option<u64>| Ok(section.get(key, AMOUNT)?.or(before));
        Ok(Self {
            gib_second: amount("gib_second", self.gib_second)?,
            request: amount("request", self.request)?,
            cpu_second: amount("cpu_second", self.cpu_second)?,
            bill_wake: section.get("bill_wake", &truth)?.or(self.bill_wake),
            tokens: self.tokens.changed_by(section)?,
            batch: self.batch.changed_by(&section.section("batch")?)?,
        })
    }

    /// `base` with what was said.
    fn prices(&self, base: Prices) -> Prices {
        let tokens = self.tokens.over(TokenPrices::default());
        Prices {
            gib_second: self.gib_second.unwrap_or(base.gib_second),
            request: self.request.unwrap_or(base.request),
            cpu_second: self.cpu_second.unwrap_or(base.cpu_second),
            bill_wake: self.bill_wake.unwrap_or(base.bill_wake),
            tokens,
            batch: self.batch.over(tokens),
            ..base
        }
    }
}

impl DraftTokens {
    fn changed_by(self, section: &Section<'_>) -> Result<Self, ConfigError> {
        let amount = |key, before: Option<u64>| Ok(section.get(key, AMOUNT)?.or(before));
        Ok(Self {
            tokens_in_1k: amount("tokens_in_1k", self.tokens_in_1k)?,
            tokens_cached_1k: amount("tokens_cached_1k", self.tokens_cached_1k)?,
            tokens_out_1k: amount("tokens_out_1k", self.tokens_out_1k)?,
        })
    }

    fn over(&self, base: TokenPrices) -> TokenPrices {
        TokenPrices {
            tokens_in_1k: self.tokens_in_1k.unwrap_or(base.tokens_in_1k),
            tokens_cached_1k: self.tokens_cached_1k.unwrap_or(base.tokens_cached_1k),
            tokens_out_1k: self.tokens_out_1k.unwrap_or(base.tokens_out_1k),
        }
    }
}

const AMOUNT: Reader<'static, u64> = &|value| {
    let integer = value.as_integer().and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
    integer.ok_or_else(|| "expected a whole number of nano-units, 0 or more".to_owned())
};

fn version(value: &DeValue<'_>) -> Result<u32, String> {
    let integer = value.as_integer().and_then(|integer| u32::from_str_radix(integer.as_str(), integer.radix()).ok());
    integer.filter(|version| *version > 0).ok_or_else(|| "expected a whole number, 1 or more".to_owned())
}

/// A date or time with its offset, milliseconds since the Unix epoch.
fn time(value: &DeValue<'_>) -> Result<u64, String> {
    let form = || "expected a date, as in 2027-01-01, or a time with its offset, as in 2027-01-01T12:00:00Z".to_owned();
    let written = value.as_datetime().ok_or_else(form)?;
    let date = written.date.ok_or_else(form)?;
    let days = calendar::days_from_civil(date.year.into(), date.month.into(), date.day.into());
    let midnight_ms = days * calendar::DAY_MS as i64;
    let ms = match (written.time, written.offset) {
        (None, None) => midnight_ms,
        (Some(time), Some(offset)) => {
            let minutes = match offset {
                toml::value::Offset::Z => 0,
                toml::value::Offset::Custom { minutes } => i64::from(minutes),
            };
            let of_day = (i64::from(time.hour) * 60 + i64::from(time.minute) - minutes) * 60;
            midnight_ms + (of_day + i64::from(time.second.unwrap_or(0))) * 1_000
        }
        _ => return Err(form()),
    };
    u64::try_from(ms).map_err(|_| "before 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_flat_file_is_lambdas_prices() {
        assert_eq!(prices(PRICES_DEFAULT), Ok(Book::default()));
        assert_eq!(prices(""), Ok(Book::default()));
        let mine = prices("gib_second = 5\nrequest = 7\nbill_wake = false\ncurrency = \"EUR\"").unwrap();
        let first = mine.at(0);
        assert_eq!((first.gib_second, first.request, first.bill_wake, first.cpu_second), (5, 7, false, 0));
        assert_eq!(first.currency.to_string(), "EUR");
    }

    #[test]
    fn the_documented_book_is_read() {
        let documented: String = include_str!("prices.rs")
            .lines()
            .skip_while(|line| !line.contains("```toml"))
            .skip(1)
            .take_while(|line| !line.contains("```"))
            .map(|line| format!("{}\n", line.trim_start_matches("//! ")))
            .collect();
        let book = prices(&documented).unwrap();
        let [first, second] = book.versions() else { panic!("{book:?}") };
        assert_eq!(**first, Prices::default());
        assert_eq!((second.version, second.effective_unix_ms), (2, 20_819 * calendar::DAY_MS));
        assert_eq!((second.gib_second, second.request), (15_000, 200), "what it leaves out stays");
        let tokens = |p: &TokenPrices| [p.tokens_in_1k, p.tokens_cached_1k, p.tokens_out_1k];
        assert_eq!((tokens(&second.tokens), tokens(&second.batch)), ([100, 10, 400], [100, 10, 200]));
        assert_eq!(book.at(20_819 * calendar::DAY_MS - 1).version, 1);
        assert_eq!(book.at(20_819 * calendar::DAY_MS).version, 2);
    }

    #[test]
    fn a_time_may_have_an_offset() {
        let at = |text: &str| {
            prices(&format!("[[book]]\nversion = 2\neffective = {text}")).map(|b| b.versions()[1].effective_unix_ms)
        };
        assert_eq!(at("1970-01-02T01:00:00Z"), Ok(90_000_000));
        assert_eq!(at("1970-01-02T01:00:00+01:00"), Ok(86_400_000));
        for bad in ["1970-01-02T01:00:00", "01:00:00", "1969-12-31", "\"2027-01-01\""] {
            assert_eq!(at(bad).unwrap_err().line, 3, "{bad}");
        }
    }

    #[test]
    fn errors_point_at_their_cause() {
        let check = |text: &str, expected: &str| {
            assert_eq!(prices(text).unwrap_err().to_string(), expected, "{text}");
        };
        check("gib_secnd = 1", "line 1, column 1: unknown key `gib_secnd`; did you mean `gib_second`?");
        check("request = 1.5", "line 1, column 11: `request`: expected a whole number of nano-units, 0 or more");
        check("request = -1", "line 1, column 11: `request`: expected a whole number of nano-units, 0 or more");
        check("currency = \"usd\"", "line 1, column 12: `currency`: a currency is three capital letters, as in `USD`");
        check("[[book]]\nversion = 2", "line 1, column 1: missing key `effective`");
        let book = |version, date| format!("[[book]]\nversion = {version}\neffective = {date}\n");
        check(&book(1, "2027-01-01"), "line 2, column 11: `version`: not above that of the one before");
        let twice = book(2, "2027-01-01") + &book(3, "2027-01-01");
        check(&twice, "line 6, column 13: `effective`: not after that of the one before");
        let unknown = book(2, "2027-01-01") + "currency = \"EUR\"";
        assert!(prices(&unknown).unwrap_err().to_string().contains("line 4, column 1: unknown key `currency`"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z_=\\[\\]\"0-9\\n é.-]{0,80}") {
            let _ = prices(&text);
        }
    }
}
