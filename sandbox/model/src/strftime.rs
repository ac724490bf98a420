//! `strftime_now` of chat templates, for a runner that has no clock.
//!
//! Some templates write today's date into the system message. A runner may be a snapshot taken long ago, and the same
//! request must give the same prompt, so the date is a fixed one: 26 July 2024, which Llama's own templates write where
//! there is no clock.

use std::fmt::Write;

const WEEKDAY: &str = "Friday";
const MONTH: &str = "July";

/// Formats the fixed date; a directive that is not known comes out as it stands.
pub(crate) fn strftime_now(format: &str) -> String {
    let mut out = String::with_capacity(format.len() + 16);
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match c {
            '%' => directive(rest.next(), &mut out),
            c => out.push(c),
        }
    }
    out
}

fn directive(letter: Option<char>, out: &mut String) {
    let text = match letter {
        Some('Y') => "2024",
        Some('y') => "24",
        Some('m') => "07",
        Some('d') => "26",
        Some('j') => "208",
        Some('B') => MONTH,
        Some('b') => &MONTH[..3],
        Some('A') => WEEKDAY,
        Some('a') => &WEEKDAY[..3],
        Some('F') => "2024-07-26",
        Some('H' | 'M' | 'S') => "00",
        Some('I') => "12",
        Some('p') => "AM",
        Some('T' | 'X') => "00:00:00",
        Some('Z') => "UTC",
        Some('z') => "+0000",
        Some('%') | None => "%",
        Some(other) => return write!(out, "%{other}").expect("writing to a String cannot fail"),
    };
    out.push_str(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_the_fixed_date() {
        assert_eq!(strftime_now("%d %b %Y"), "26 Jul 2024");
        assert_eq!(strftime_now("%A, %B %d, %Y 100%% é %Q %"), "Friday, July 26, 2024 100% é %Q %");
    }
}
