//! Sizes (`KiB MiB GiB`) and durations (`ms s m h`): one whole number and one unit, no fractions, no sums.

/// A unit's name and what it is worth, greatest first.
type Units = &'static [(&'static str, u64)];

const SIZES: Units = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DURATIONS: Units = &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A size in its greatest whole unit, as in `1GiB`; in plain bytes where none fits.
pub fn size_text(bytes: u64) -> String {
    write(bytes, SIZES).unwrap_or_else(|| bytes.to_string())
}

/// A duration in its greatest whole unit, as in `90s`.
pub fn duration_text(ms: u64) -> String {
    write(ms, DURATIONS).unwrap_or_else(|| format!("{ms}ms"))
}

/// The bytes that a text such as `512MiB` names.
///
/// # Errors
/// It names none, or too many.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    read(text, SIZES).ok_or_else(|| format!("`{text}` is not a size: write a whole number and KiB, MiB or GiB"))
}

/// The milliseconds that a text such as `90s` names.
///
/// # Errors
/// It names none, or too many.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    read(text, DURATIONS).ok_or_else(|| format!("`{text}` is not a duration: write a whole number and ms, s, m or h"))
}

fn read(text: &str, units: Units) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*worth)
}

fn write(value: u64, units: Units) -> Option<String> {
    let (name, worth) = units.iter().find(|(_, worth)| value >= *worth && value.is_multiple_of(*worth))?;
    Some(format!("{}{name}", value / worth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn durations_read_what_they_write(ms: u64) {
            prop_assert_eq!(duration_ms(&duration_text(ms)), Ok(ms));
        }

        #[test]
        fn sizes_read_what_they_write(kib in 1u64..1 << 54) {
            prop_assert_eq!(size_bytes(&size_text(kib << 10)), Ok(kib << 10));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = (size_bytes(&text), duration_ms(&text));
        }
    }

    #[test]
    fn one_number_one_unit() {
        assert_eq!(size_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(duration_ms("90s"), Ok(90_000));
        assert_eq!(duration_ms("0ms"), Ok(0));
        assert_eq!(size_text(1_000), "1000");
        assert_eq!(duration_text(0), "0ms");
        for bad in ["", "1", "GiB", "1 GiB", "1.5GiB", "-1GiB", "1GB", "1gib", "99999999999GiB", "1s1ms"] {
            assert!(size_bytes(bad).is_err() && duration_ms(bad).is_err(), "{bad}");
        }
    }
}
