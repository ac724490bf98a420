//! Instances that windows of the week ask for. Times are UTC; a window that wraps midnight belongs to the day on which it
//! begins; of windows that overlap the greatest counts.

use appliance_types::{DAY_MINUTES, Provisioned, Weekday};

const DAY_S: u64 = DAY_MINUTES as u64 * 60;
const WEEK_S: u64 = 7 * DAY_S;
/// 1970-01-01 was a Thursday.
const EPOCH_DAY: u64 = Weekday::Thu as u64;

/// Instances asked for at `unix_s`, seconds since 1970.
pub fn min_at(windows: &[Provisioned], unix_s: u64) -> u32 {
    let now = in_week(unix_s);
    let open =
        windows.iter().filter(|window| spans(window).any(|(from, length)| (now + WEEK_S - from) % WEEK_S < length));
    open.map(|window| window.min).max().unwrap_or(0)
}

/// When a window next begins or ends after `unix_s`; `None` where there is none.
pub fn next_change(windows: &[Provisioned], unix_s: u64) -> Option<u64> {
    let now = in_week(unix_s);
    let edges = windows.iter().flat_map(spans).flat_map(|(from, length)| [from, (from + length) % WEEK_S]);
    // An edge that is now comes again in a week.
    let waits = edges.map(|edge| (edge + WEEK_S - now - 1) % WEEK_S + 1);
    Some(unix_s.saturating_add(waits.min()?))
}

/// Seconds since Monday's midnight.
fn in_week(unix_s: u64) -> u64 {
    (unix_s % WEEK_S + EPOCH_DAY * DAY_S) % WEEK_S
}

/// Each day's beginning, in seconds of the week, and length.
fn spans(window: &Provisioned) -> impl Iterator<Item = (u64, u64)> {
    let [from, to] = [window.from, window.to].map(|time| u64::from(time.minutes()) * 60);
    let length = if to > from { to - from } else { DAY_S - from + to };
    window.days.iter().map(move |day| ((*day as u64 * DAY_S + from) % WEEK_S, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Thursday, 2026-11-26, 00:00 UTC.
    const THURSDAY: u64 = 1_795_651_200;
    const HOUR: u64 = 3600;

    fn window(from: &str, to: &str, days: &[Weekday], min: u32) -> Provisioned {
        Provisioned { from: from.parse().unwrap(), to: to.parse().unwrap(), days: days.to_vec(), min }
    }

    #[test]
    fn a_window_is_open_from_its_first_second_to_before_its_last() {
        let office = [window("08:00", "18:00", &[Weekday::Thu], 2)];
        let at = |s| min_at(&office, THURSDAY + s);
        assert_eq!([at(8 * HOUR - 1), at(8 * HOUR), at(18 * HOUR - 1), at(18 * HOUR)], [0, 2, 2, 0]);
        assert_eq!(at(8 * HOUR + 24 * HOUR), 0, "on Friday");
        assert_eq!(next_change(&office, THURSDAY), Some(THURSDAY + 8 * HOUR));
        assert_eq!(next_change(&office, THURSDAY + 8 * HOUR), Some(THURSDAY + 18 * HOUR));
        assert_eq!(next_change(&office, THURSDAY + 18 * HOUR), Some(THURSDAY + 8 * HOUR + WEEK_S));
    }

    #[test]
    fn a_window_wraps_midnight_and_the_week() {
        let night = [window("22:00", "06:00", &[Weekday::Sun], 1)];
        let monday = THURSDAY + 4 * DAY_S;
        let at = |s: i64| min_at(&night, monday.saturating_add_signed(s));
        assert_eq!([at(-2 * 3600 - 1), at(-2 * 3600), at(0), at(6 * 3600 - 1), at(6 * 3600)], [0, 1, 1, 1, 0]);
        assert_eq!(min_at(&night, monday + DAY_S), 0, "Monday's night is not Sunday's");
    }

    #[test]
    fn the_greatest_of_those_that_are_open_counts() {
        let all = [window("00:00", "24:00", &Weekday::ALL, 1), window("12:00", "13:00", &[Weekday::Thu], 3)];
        assert_eq!(min_at(&all, THURSDAY + 12 * HOUR), 3);
        assert_eq!(min_at(&all, THURSDAY + 13 * HOUR), 1);
        assert_eq!((min_at(&[], 5), next_change(&[], 5)), (0, None));
    }

    fn any_window() -> impl Strategy<Value = Provisioned> {
        (0u16..1440, 1u16..=1440, prop::collection::vec(0usize..7, 0..7), 0u32..5).prop_map(|(from, to, days, min)| {
            let text = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
            let days: Vec<_> = days.into_iter().map(|day| Weekday::ALL[day]).collect();
            window(&text(from), &text(to), &days, min)
        })
    }

    proptest! {
        /// Between now and the next change nothing changes.
        #[test]
        fn nothing_changes_before_the_next_change(
            windows in prop::collection::vec(any_window(), 0..5), unix_s in 0u64..4_000_000_000, share in 0.0f64..1.0,
        ) {
            if let Some(next) = next_change(&windows, unix_s) {
                prop_assert!(next > unix_s && next <= unix_s + WEEK_S);
                let between = unix_s + ((next - unix_s) as f64 * share) as u64;
                prop_assert_eq!(min_at(&windows, between.min(next - 1)), min_at(&windows, unix_s));
            }
        }

        #[test]
        fn any_time_is_answered(windows in prop::collection::vec(any_window(), 0..5), unix_s: u64) {
            let _ = (min_at(&windows, unix_s), next_change(&windows, unix_s));
        }
    }
}
