//! The prices there are, and which of them hold when.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// Most versions of a book.
pub const VERSIONS_MAX: usize = 1000;

/// The prices of one version, in nano-units of one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Names it in records and receipts.
    pub version: u32,
    /// When it takes effect, milliseconds since the Unix epoch. The first of a book holds before that, too.
    pub effective_unix_ms: u64,
    /// For a request that was begun.
    pub request: u64,
    /// For a GiB reserved for a second.
    pub gib_second: u64,
    /// For a second of a processor.
    pub cpu_second: u64,
    /// For the tokens of requests that somebody waits for.
    pub tokens: TokenPrices,
    /// For those of requests that run when nothing else does.
    pub batch: TokenPrices,
    /// Whether time waking an instance is charged.
    pub bill_wake: bool,
    /// What all of it is in.
    pub currency: Currency,
}

/// Prices of a thousand tokens each, nano-units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPrices {
    /// Of a prompt, computed.
    pub tokens_in_1k: u64,
    /// Of a prompt, found in the cache.
    pub tokens_cached_1k: u64,
    /// Of an answer.
    pub tokens_out_1k: u64,
}

/// AWS Lambda's list prices, in nano-dollars.
impl Default for Prices {
    fn default() -> Self {
        Self {
            version: 1,
            effective_unix_ms: 0,
            request: 200,
            gib_second: 16_667,
            cpu_second: 0,
            tokens: TokenPrices::default(),
            batch: TokenPrices::default(),
            bill_wake: true,
            currency: Currency(*b"USD"),
        }
    }
}

/// All versions, in the order in which they take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book(Vec<Arc<Prices>>);

/// Why versions make no book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BookError {
    /// There is none.
    Empty,
    /// There are more than [`VERSIONS_MAX`].
    TooMany,
    /// The version at this index has no number above that of the one before.
    Version(usize),
    /// The version at this index does not take effect after the one before.
    Effective(usize),
    /// The version at this index is in another currency than the first.
    Currency(usize),
}

impl Default for Book {
    fn default() -> Self {
        Self(vec![Arc::new(Prices::default())])
    }
}

impl Book {
    /// A book of these versions, the earliest first.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn new(versions: Vec<Prices>) -> Result<Self, BookError> {
        let Some(first) = versions.first() else { return Err(BookError::Empty) };
        if versions.len() > VERSIONS_MAX {
            return Err(BookError::TooMany);
        }
        let wrong = |(index, pair): (usize, &[Prices])| match pair {
            [a, b] if b.version <= a.version => Some(BookError::Version(index + 1)),
            [a, b] if b.effective_unix_ms <= a.effective_unix_ms => Some(BookError::Effective(index + 1)),
            [_, b] if b.currency != first.currency => Some(BookError::Currency(index + 1)),
            _ => None,
        };
        match versions.windows(2).enumerate().find_map(wrong) {
            Some(error) => Err(error),
            None => Ok(Self(versions.into_iter().map(Arc::new).collect())),
        }
    }

    /// The prices of a request that came at `unix_ms`.
    pub fn at(&self, unix_ms: u64) -> &Arc<Prices> {
        let later = self.0.partition_point(|prices| prices.effective_unix_ms <= unix_ms);
        &self.0[later.saturating_sub(1)]
    }

    /// The prices of a version.
    pub fn version(&self, version: u32) -> Option<&Arc<Prices>> {
        self.0.binary_search_by_key(&version, |prices| prices.version).ok().map(|index| &self.0[index])
    }

    /// All versions, the earliest first.
    pub fn versions(&self) -> &[Arc<Prices>] {
        &self.0
    }

    /// What all of it is in.
    pub fn currency(&self) -> Currency {
        self.0[0].currency
    }
}

/// An ISO 4217 code: three capital letters.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

/// Why a text is no currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseCurrencyError;

impl fmt::Display for ParseCurrencyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a currency is three capital letters, as in `USD`")
    }
}

impl std::error::Error for ParseCurrencyError {}

impl FromStr for Currency {
    type Err = ParseCurrencyError;
    fn from_str(text: &str) -> Result<Self, ParseCurrencyError> {
        let letters = <[u8; 3]>::try_from(text.as_bytes()).map_err(|_| ParseCurrencyError)?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters)).ok_or(ParseCurrencyError)
    }
}

impl TryFrom<String> for Currency {
    type Error = ParseCurrencyError;
    fn try_from(text: String) -> Result<Self, ParseCurrencyError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.to_string()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prices(version: u32, effective_unix_ms: u64) -> Prices {
        Prices { version, effective_unix_ms, ..Prices::default() }
    }

    #[test]
    fn versions_follow_each_other() {
        let of = |versions: &[(u32, u64)]| Book::new(versions.iter().map(|(v, at)| prices(*v, *at)).collect());
        assert_eq!(of(&[]), Err(BookError::Empty));
        assert_eq!(of(&[(1, 0), (1, 5)]), Err(BookError::Version(1)));
        assert_eq!(of(&[(1, 0), (2, 5), (3, 5)]), Err(BookError::Effective(2)));
        let euro = Prices { currency: "EUR".parse().unwrap(), ..prices(2, 1) };
        assert_eq!(Book::new(vec![prices(1, 0), euro]), Err(BookError::Currency(1)));
        let many = (0..=VERSIONS_MAX as u32).map(|n| prices(n, n.into())).collect();
        assert_eq!(Book::new(many), Err(BookError::TooMany));
    }

    #[test]
    fn a_currency_is_three_capitals() {
        assert_eq!("EUR".parse::<Currency>().unwrap().to_string(), "EUR");
        for bad in ["", "EU", "eur", "EURO", "E€"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad}");
        }
    }

    proptest! {
        /// The version is the last that took effect; before the first, the first.
        #[test]
        fn time_chooses_the_version(gaps in prop::collection::vec(1u64..1_000, 1..20), at in 0u64..25_000, from in 0u64..5_000) {
            let mut effective = from;
            let versions: Vec<_> = gaps.iter().zip(1..).map(|(gap, version)| { effective += gap; prices(version, effective) }).collect();
            let book = Book::new(versions.clone()).unwrap();
            let expected = versions.iter().rev().find(|prices| prices.effective_unix_ms <= at).unwrap_or(&versions[0]);
            prop_assert_eq!(&**book.at(at), expected);
            prop_assert_eq!(book.version(expected.version), Some(book.at(at)));
            prop_assert_eq!(book.version(gaps.len() as u32 + 1), None);
        }
    }
}
