//! Days and months of UTC, as numbers that follow each other. The proleptic Gregorian calendar, without leap seconds, as
//! Unix time has none. After Howard Hinnant's "chrono-compatible low-level date algorithms".

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;

/// The days from 1970-01-01 to a date, which may be negative. `month` is 1 to 12.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    // Years begin in March, so that the day that some of them lack is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date that so many days after 1970-01-01 is: year, month from 1, day from 1.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The day of a time, in days since 1970-01-01.
pub fn day(unix_ms: u64) -> u64 {
    unix_ms / DAY_MS
}

/// When a day begins.
pub fn day_start_ms(day: u64) -> u64 {
    day.saturating_mul(DAY_MS)
}

/// The month of a time, in months since January 1970.
pub fn month(unix_ms: u64) -> u64 {
    let (year, month, _) = civil_from_days(day(unix_ms) as i64);
    (year - 1970) as u64 * 12 + u64::from(month - 1)
}

/// When a month begins.
pub fn month_start_ms(month: u64) -> u64 {
    let days = days_from_civil(1970 + (month / 12) as i64, (month % 12) as u32 + 1, 1);
    (days as u64).saturating_mul(DAY_MS)
}

/// A time in words: `2026-12-01 00:00 UTC`.
pub fn in_words(unix_ms: u64) -> String {
    let (year, month, date) = civil_from_days(day(unix_ms) as i64);
    let minutes = unix_ms % DAY_MS / 60_000;
    format!("{year:04}-{month:02}-{date:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// A time as RFC 3339 writes it: `2026-12-01T00:00:00Z`.
pub fn rfc3339(unix_s: u64) -> String {
    let unix_ms = unix_s.saturating_mul(1_000);
    let (year, month, date) = civil_from_days(day(unix_ms) as i64);
    let second = unix_s % (DAY_MS / 1_000);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        for (date, days) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2026, 11, 25), 20_782), ((1969, 12, 31), -1)]
        {
            assert_eq!(days_from_civil(date.0, date.1, date.2), days);
            assert_eq!(civil_from_days(days), date);
        }
        assert_eq!(in_words(20_782 * DAY_MS + 3_723_000), "2026-11-25 01:02 UTC");
        assert_eq!(rfc3339(20_782 * 86_400 + 3_723), "2026-11-25T01:02:03Z");
        assert_eq!(month_start_ms(month(20_782 * DAY_MS)), day_start_ms(20_758), "2026-11-01");
    }

    proptest! {
        #[test]
        fn a_time_is_in_its_day_and_its_month(ms in 0u64..1 << 50) {
            prop_assert!(day_start_ms(day(ms)) <= ms && ms < day_start_ms(day(ms) + 1));
            prop_assert!(month_start_ms(month(ms)) <= ms && ms < month_start_ms(month(ms) + 1));
        }

        #[test]
        fn dates_read_what_they_write(days in -1_000_000i64..10_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
