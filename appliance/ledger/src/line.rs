//! The line of one record.
//!
//! ```text
//!  ┌───────────────────────────┬────┬───────────────────┬────┐
//!  │ JSON of the record        │ \t │ 8 hex digits      │ \n │
//!  └───────────────────────────┴────┴───────────────────┴────┘
//!    no control characters            CRC32C of the JSON's bytes, lower case
//! ```
//!
//! JSON writes control characters as escapes, so the first newline ends the line and the last tab ends the JSON. Plain
//! text, so that an operator can read it with any tool.

use appliance_types::Record;

/// Longest line with its newline; a record needs about a quarter of it.
pub const LINE_BYTES_MAX: usize = 2048;

const SUM_DIGITS: usize = 8;

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It lacks its newline, its tab or eight hexadecimal digits.
    #[error("not a record and its checksum")]
    Shape,
    /// The bytes are not those that were written.
    #[error("checksum {written:08x} is written, {computed:08x} is found")]
    Checksum {
        /// What the line says.
        written: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The checksum holds, but another version wrote it.
    #[error("not a record: {reason}")]
    Record {
        /// What the parser met.
        reason: String,
    },
}

/// The line of a record, newline included.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a record has text keys and finite numbers");
    let sum = crc32c::crc32c(&line);
    line.extend_from_slice(format!("\t{sum:0SUM_DIGITS$x}\n").as_bytes());
    line
}

/// Checks a line, newline included, and returns its JSON.
///
/// # Errors
/// [`LineError::Shape`] or [`LineError::Checksum`].
pub fn verify(line: &[u8]) -> Result<&[u8], LineError> {
    let body = line.strip_suffix(b"\n").ok_or(LineError::Shape)?;
    let (rest, digits) = body.split_last_chunk::<SUM_DIGITS>().ok_or(LineError::Shape)?;
    let json = rest.strip_suffix(b"\t").ok_or(LineError::Shape)?;
    let written = sum(digits).ok_or(LineError::Shape)?;
    let computed = crc32c::crc32c(json);
    if written == computed { Ok(json) } else { Err(LineError::Checksum { written, computed }) }
}

/// Checks a line, newline included, and reads its record.
///
/// # Errors
/// [`LineError`].
pub fn decode(line: &[u8]) -> Result<Record, LineError> {
    serde_json::from_slice(verify(line)?).map_err(|error| LineError::Record { reason: error.to_string() })
}

/// Reads exactly what [`encode`] writes: no sign, no capitals.
fn sum(digits: &[u8; SUM_DIGITS]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum << 4 | u32::from(digit - b'0')),
        b'a'..=b'f' => Some(sum << 4 | u32::from(digit - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use appliance_types::{Outcome, RequestId, Tier};
    use proptest::prelude::*;

    pub(crate) fn record(number: u64) -> Record {
        Record {
            ended_unix_ms: number,
            outcome: Outcome::Completed,
            status: 200,
            ..Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "assistant".parse().unwrap())
        }
    }

    #[test]
    fn reads_what_it_writes() {
        let line = encode(&record(7));
        assert_eq!(decode(&line), Ok(record(7)));
        assert_eq!(line.iter().filter(|byte| **byte < b' ').count(), 2, "a tab and a newline");
    }

    #[test]
    fn the_longest_record_fits() {
        let name = "x".repeat(63);
        let longest = Record {
            request: RequestId::from_random(u128::MAX),
            came_unix_ms: u64::MAX,
            ended_unix_ms: u64::MAX,
            key: name.parse().unwrap(),
            function: name.parse().unwrap(),
            outcome: Outcome::DeadlineExceeded,
            status: u16::MAX,
            tier: Tier::Running,
            queue_us: u64::MAX,
            wake_us: u64::MAX,
            prefill_us: u64::MAX,
            decode_us: u64::MAX,
            first_text_us: u64::MAX,
            tokens_in: u32::MAX,
            tokens_cached: u32::MAX,
            tokens_out: u32::MAX,
            memory_bytes: u64::MAX,
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
        };
        assert!(encode(&longest).len() <= LINE_BYTES_MAX / 2);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let line = encode(&record(1));
        for bit in 0..line.len() * 8 {
            let mut flipped = line.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&bytes);
        }
    }
}
