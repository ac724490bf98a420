//! A budget: so much a day or a month of UTC, and how that is written: `5.00/month`.

use crate::calendar;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Nano-units of a unit of currency.
const UNIT: u64 = 1_000_000_000;
const DECIMALS_MAX: usize = 9;

/// What may be spent in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Never more than this, nano-units.
    pub hard_nanos: u64,
    /// Past this somebody is told, nano-units.
    #[serde(default)]
    pub soft_nanos: Option<u64>,
    /// In each of these.
    pub period: Period,
}

/// A period of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next.
    Month,
}

impl Period {
    /// When the period that `unix_ms` is in began.
    pub fn start_ms(self, unix_ms: u64) -> u64 {
        match self {
            Self::Day => calendar::day_start_ms(calendar::day(unix_ms)),
            Self::Month => calendar::month_start_ms(calendar::month(unix_ms)),
        }
    }

    /// When the next one begins.
    pub fn next_ms(self, unix_ms: u64) -> u64 {
        match self {
            Self::Day => calendar::day_start_ms(calendar::day(unix_ms) + 1),
            Self::Month => calendar::month_start_ms(calendar::month(unix_ms) + 1),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Month => "month",
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", amount_text(self.hard_nanos), self.period)
    }
}

/// Why a text is no budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseBudgetError(String);

impl fmt::Display for ParseBudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseBudgetError {}

impl FromStr for Budget {
    type Err = ParseBudgetError;
    fn from_str(text: &str) -> Result<Self, ParseBudgetError> {
        let form =
            || ParseBudgetError(format!("`{text}` is not a budget: write an amount and a period, as in 5.00/month"));
        let (amount, period) = text.split_once('/').ok_or_else(form)?;
        let period = match period {
            "day" => Period::Day,
            "month" => Period::Month,
            _ => return Err(ParseBudgetError(format!("`{period}` is not a period: it is day or month"))),
        };
        Ok(Self { hard_nanos: amount_nanos(amount).ok_or_else(form)?, soft_nanos: None, period })
    }
}

/// An amount in decimals, at most nine of them, as nano-units.
pub fn amount_nanos(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS_MAX {
        return None;
    }
    let nanos: u64 = format!("{decimals:0<DECIMALS_MAX$}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(UNIT)?.checked_add(nanos)
}

/// Nano-units in decimals: two at least, and no needless zeros past them.
pub fn amount_text(nanos: u64) -> String {
    let decimals = format!("{:09}", nanos % UNIT);
    let needed = decimals.trim_end_matches('0').len().max(2);
    format!("{}.{}", nanos / UNIT, &decimals[..needed])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_budget_is_an_amount_and_a_period() {
        let budget = |hard_nanos, period| Ok(Budget { hard_nanos, soft_nanos: None, period });
        assert_eq!("5.00/month".parse(), budget(5 * UNIT, Period::Month));
        assert_eq!("0.000000001/day".parse(), budget(1, Period::Day));
        assert_eq!("7/day".parse(), budget(7 * UNIT, Period::Day));
        let overflow = "18446744074/day";
        for bad in
            ["", "5", "5/", "/day", "5/week", "-5/day", "5,0/day", ".5/day", "5./day", "0.0000000001/day", overflow]
        {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn periods_end_where_the_next_begins() {
        let day = calendar::DAY_MS;
        let november = 20_758 * day;
        assert_eq!(Period::Month.start_ms(november + 24 * day + 5), november);
        assert_eq!(Period::Month.next_ms(november + 24 * day + 5), november + 30 * day);
        assert_eq!((Period::Day.start_ms(day + 1), Period::Day.next_ms(day + 1)), (day, 2 * day));
    }

    proptest! {
        #[test]
        fn amounts_read_what_they_write(nanos: u64) {
            prop_assert_eq!(amount_nanos(&amount_text(nanos)), Some(nanos));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = text.parse::<Budget>();
        }
    }
}
