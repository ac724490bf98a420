//! What a request's head asks for beside its body: a deadline and a class.
//!
//! | header | value |
//! |---|---|
//! | `x-ember-deadline-ms` | how long the answer is of use, waiting and running, from the head on; a positive number |
//! | `x-ember-class` | `interactive`, the default, or `batch`: served when nothing interactive waits |

use appliance_admit::Class;
use appliance_api::ApiError;
use appliance_keys::Key;
use appliance_pool::Terms;
use http::HeaderMap;
use std::time::{Duration, Instant};

const DEADLINE: &str = "x-ember-deadline-ms";
const CLASS: &str = "x-ember-class";
/// A longer deadline is none: no function runs so long.
const DEADLINE_MS_MAX: u64 = 365 * 24 * 3_600_000;

/// What a request's head asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    deadline: Option<Deadline>,
    class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deadline {
    at: Instant,
    ms: u64,
}

impl Asked {
    /// Reads the head of a request that came at `came`.
    ///
    /// # Errors
    /// 400, with the header.
    pub(super) fn read(headers: &HeaderMap, came: Instant) -> Result<Self, ApiError> {
        let wrong = |header, what| ApiError::invalid_param(header, format!("`{header}`: {what}"));
        let class = match one(headers, CLASS)? {
            None | Some("interactive") => Class::Interactive,
            Some("batch") => Class::Batch,
            Some(_) => return Err(wrong(CLASS, "it is neither `interactive` nor `batch`")),
        };
        let deadline = match one(headers, DEADLINE)?.map(str::parse::<u64>) {
            None => None,
            Some(Ok(ms @ 1..)) => {
                let ms = ms.min(DEADLINE_MS_MAX);
                Some(Deadline { at: came + Duration::from_millis(ms), ms })
            }
            Some(_) => return Err(wrong(DEADLINE, "it is not a positive whole number of milliseconds")),
        };
        Ok(Self { deadline, class })
    }

    /// The terms on which `key` asks the pool for work.
    pub(super) fn terms(&self, key: &Key) -> Terms {
        Terms {
            key: Some(key.name.clone()),
            weight: key.rates.weight.get(),
            class: self.class,
            deadline: self.deadline.map(|deadline| deadline.at),
        }
    }

    /// Who waits for the answer.
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Time left; `None` without a deadline.
    pub(super) fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.at.saturating_duration_since(Instant::now()))
    }

    /// Goes on unless the deadline is past.
    ///
    /// # Errors
    /// 504.
    pub(super) fn check_time(&self) -> Result<(), ApiError> {
        if self.left().is_some_and(|left| left < Duration::from_millis(1)) { Err(self.passed()) } else { Ok(()) }
    }

    /// Whether the deadline is before `other`.
    pub(super) fn ends_before(&self, other: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline.at < other)
    }

    /// 504: the deadline is past.
    pub(super) fn passed(&self) -> ApiError {
        ApiError::deadline_passed(DEADLINE, self.deadline.map_or(0, |deadline| deadline.ms))
    }
}

/// A header that may be there once.
fn one<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.map(|value| value.to_str());
    match (text, second) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text)),
        _ => Err(ApiError::invalid_param(name, format!("`{name}`: there is more than one, or it is not text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<Asked, ApiError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Asked::read(&map, Instant::now())
    }

    #[test]
    fn a_deadline_and_a_class_are_read() {
        let none = read(&[]).unwrap();
        assert_eq!((none.class, none.left(), none.check_time()), (Class::Interactive, None, Ok(())));
        let both = read(&[(CLASS, "batch"), (DEADLINE, "60000")]).unwrap();
        assert_eq!(both.class, Class::Batch);
        assert!(both.left().is_some_and(|left| left > Duration::ZERO) && both.check_time().is_ok());
        assert!(read(&[(DEADLINE, "18446744073709551615")]).is_ok());
    }

    #[test]
    fn a_wrong_header_is_named() {
        for (header, value) in
            [(CLASS, "Batch"), (CLASS, ""), (DEADLINE, "0"), (DEADLINE, "-1"), (DEADLINE, "1.5"), (DEADLINE, "soon")]
        {
            let error = read(&[(header, value)]).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(header)), "{value}");
        }
        assert_eq!(read(&[(CLASS, "batch"), (CLASS, "batch")]).unwrap_err().status, 400);
    }
}
