//! Lines of Azure's public traces.

use super::{Names, Timed, Work, expect, seconds, shown, time, tokens};

/// `2023-11-16 18:17:03.9799600,374,44`, or with `+00:00` behind the time; all belong to one function.
pub(super) fn llm(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [stamp, prompt, output] = expect(fields)?;
    let at_s = unix_s(stamp).ok_or_else(|| format!("`{}` is not a time", shown(stamp)))?;
    let work = Work::Tokens { prompt: tokens(prompt)?, output: tokens(output)? };
    timed.push(Timed { at_s, function: names.number("llm"), key: 0, work });
    Ok(())
}

/// When a call ended and how long it took, seconds.
pub(super) fn functions_2021(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [app, function, end_s, duration_s] = expect(fields)?;
    let (end_s, duration_s) = (seconds(end_s)?, seconds(duration_s)?);
    let function = names.number(&format!("{app},{function}"));
    timed.push(Timed { at_s: end_s - duration_s, function, key: 0, work: time(duration_s) });
    Ok(())
}

/// Calls in each minute of a day, which count as evenly spread over it.
pub(super) fn functions_2019(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [owner, app, function, _trigger, minutes @ ..] = fields else {
        return Err(format!("{} fields where at least 4 are expected", fields.len()));
    };
    if minutes.len() > 1440 {
        return Err(format!("{} minutes; a day has 1440", minutes.len()));
    }
    let function = names.number(&format!("{owner},{app},{function}"));
    for (minute, calls) in minutes.iter().enumerate() {
        let calls = tokens(calls).map_err(|_| format!("`{}` is not a number of calls", shown(calls)))?;
        if calls as usize > super::REQUESTS_MAX {
            return Err(format!("{calls} calls in a minute"));
        }
        let each = |call: u32| (f64::from(call) + 0.5) / f64::from(calls);
        timed.extend((0..calls).map(|call| {
            let at_s = 60.0 * (minute as f64 + each(call));
            Timed { at_s, function, key: 0, work: Work::Unknown }
        }));
    }
    Ok(())
}

/// Seconds since 1970 of `YYYY-MM-DD HH:MM:SS[.f][+00:00]`.
fn unix_s(stamp: &str) -> Option<f64> {
    let (date, clock) = stamp.trim().trim_end_matches("+00:00").split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<u32>().ok()?, clock.next()?.parse::<u32>().ok()?);
    let second = seconds(clock.next()?).ok()?;
    let within = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61.0;
    within.then(|| days(year, month, day) as f64 * 86_400.0 + f64::from(hour * 3600 + minute * 60) + second)
}

/// Days since 1970-01-01, by Howard Hinnant's "chrono-compatible low-level date algorithms".
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_seconds_since_1970() {
        assert_eq!(unix_s("1970-01-01 00:00:00"), Some(0.0));
        assert_eq!(unix_s("2024-02-29T12:00:00.5+00:00"), Some(1_709_208_000.5));
        for bad in ["", "2023-11-16", "2023-13-01 00:00:00", "2023-11-16 24:00:00", "x-1-1 0:0:0"] {
            assert_eq!(unix_s(bad), None, "{bad}");
        }
    }
}
