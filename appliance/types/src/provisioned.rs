//! Windows of the week in which a function keeps instances up. Times are UTC.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Minutes of a day.
pub const DAY_MINUTES: u16 = 24 * 60;

/// A time of day, `00:00` to `24:00`, to the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each says what it is")]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// From one time to another on some days, at least so many instances are up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// When it begins.
    pub from: TimeOfDay,
    /// When it ends: on the next day where that is not after `from`.
    pub to: TimeOfDay,
    /// The days on which it begins.
    pub days: Vec<Weekday>,
    /// Instances that are kept up.
    pub min: u32,
}

/// Why a text is no time of day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time of day: write HH:MM, 00:00 to 24:00, in UTC")]
pub struct ParseTimeError(String);

/// Why a text is no day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a day: use mon, tue, wed, thu, fri, sat or sun")]
pub struct ParseDayError(String);

impl TimeOfDay {
    /// Minutes since midnight.
    pub fn minutes(self) -> u16 {
        self.0
    }
}

impl FromStr for TimeOfDay {
    type Err = ParseTimeError;
    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let digits = |part: &str| {
            let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            two.then(|| part.parse::<u16>().ok()).flatten()
        };
        let parts = text.split_once(':').and_then(|(h, m)| Some((digits(h)?, digits(m)?)));
        let minutes = parts.filter(|(_, m)| *m < 60).map(|(h, m)| h * 60 + m);
        let within = minutes.filter(|minutes| *minutes <= DAY_MINUTES);
        within.map(Self).ok_or_else(|| ParseTimeError(text.chars().take(16).collect()))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = ParseTimeError;
    fn try_from(text: String) -> Result<Self, ParseTimeError> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        time.to_string()
    }
}

impl Weekday {
    /// All of them, from Monday on.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];
}

impl fmt::Display for Weekday {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["mon", "tue", "wed", "thu", "fri", "sat", "sun"][*self as usize])
    }
}

impl FromStr for Weekday {
    type Err = ParseDayError;
    fn from_str(text: &str) -> Result<Self, ParseDayError> {
        let known = Self::ALL.into_iter().find(|day| day.to_string() == text);
        known.ok_or_else(|| ParseDayError(text.chars().take(16).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_two_digits_twice() {
        for good in ["00:00", "08:30", "23:59", "24:00"] {
            assert_eq!(good.parse::<TimeOfDay>().unwrap().to_string(), good);
        }
        for bad in ["", "8:30", "08:60", "24:01", "+8:30", "08:3", "08-30", "08:30:00", "99:99"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    #[test]
    fn days_are_named_by_three_letters() {
        assert_eq!("sun".parse(), Ok(Weekday::Sun));
        assert!("Sunday".parse::<Weekday>().is_err());
        assert_eq!(serde_json::to_string(&Weekday::Tue).unwrap(), "\"tue\"");
    }
}
