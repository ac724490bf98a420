//! The steps of a restore, as Ember's warden logs them at `debug`.

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A restore, logged when it was done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Restored {
    pub(crate) logged: OffsetDateTime,
    /// When each step was done, from the restore's beginning on, in ms.
    pub(crate) steps: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    steps: String,
}

impl Restored {
    /// Reads a line of the log; most are about something else.
    pub(crate) fn of_log(line: &str) -> Option<Self> {
        let line: Line = serde_json::from_str(line).ok().filter(|line: &Line| line.message == "restored")?;
        let logged = OffsetDateTime::parse(&line.timestamp, &Rfc3339).ok()?;
        let list = line.steps.strip_prefix("[(")?.strip_suffix(")]")?;
        let steps: Option<Vec<_>> = list.split("), (").map(step).collect();
        Some(Self { logged, steps: steps? })
    }

    /// From the beginning to the last step: the process runs.
    pub(crate) fn total_ms(&self) -> f64 {
        self.steps.last().map_or(f64::NAN, |(_, at)| *at)
    }

    /// Each step's name, beginning and end, in ms.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&str, f64, f64)> {
        let begins = [0.0].into_iter().chain(self.steps.iter().map(|(_, at)| *at));
        self.steps.iter().zip(begins).map(|((name, end), begin)| (name.as_str(), begin, *end))
    }
}

/// `Prepared, 154.959µs`
fn step(text: &str) -> Option<(String, f64)> {
    let (name, duration) = text.split_once(", ")?;
    Some((name.to_owned(), duration_ms(duration)?))
}

/// A `Duration` as its `Debug` writes it.
fn duration_ms(text: &str) -> Option<f64> {
    let units = [("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)];
    units.iter().find_map(|(unit, ms)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_restore_is_read_from_the_log() {
        let line = r#"{"timestamp":"2026-11-24T12:18:59.220918Z","level":"DEBUG","message":"restored","function":"bench","steps":"[(Prepared, 250µs), (Cloned, 1.5ms), (Going, 2s)]","target":"sandbox_warden::spawner"}"#;
        let restored = Restored::of_log(line).unwrap();
        let spans: Vec<_> = restored.spans().collect();
        assert_eq!(spans, [("Prepared", 0.0, 0.25), ("Cloned", 0.25, 1.5), ("Going", 1.5, 2_000.0)]);
        assert_eq!((restored.total_ms(), restored.logged.microsecond()), (2_000.0, 220_918));
        assert_eq!(Restored::of_log(&line.replace("restored", "else")), None);
        assert_eq!(Restored::of_log("ready"), None);
    }

    #[test]
    fn durations_are_read_as_they_are_written() {
        for us in [1.0, 999.5, 12_345.0, 3_000_000.0] {
            let written = format!("{:?}", Duration::from_secs_f64(us / 1e6));
            assert!((duration_ms(&written).unwrap() - us / 1e3).abs() < 1e-9, "{written}");
        }
    }
}
