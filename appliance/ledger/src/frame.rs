//! The line of one entry: checked alone by its checksum, and in its place by its chain value.
//!
//! ```text
//!  ┌────────────────────┬────┬─────────────┬────┬─────────────┬────┬──────────┬────┐
//!  │ JSON               │ \t │ 8 hex       │ \t │ 64 hex      │ \t │ 8 hex    │ \n │
//!  └────────────────────┴────┴─────────────┴────┴─────────────┴────┴──────────┴────┘
//!   a head or an entry        synced             chain              CRC32C of all before its tab
//!
//!  chain = BLAKE3( chain of the line before ‖ JSON ‖ \t ‖ synced )
//! ```
//!
//! `synced` is the offset up to which the segment had been synced before this line was written. It tells damage from a
//! torn tail: a power cut can tear only what was not synced, so what is invalid below the `synced` of any later line was
//! damaged afterwards.
//!
//! Text, because a bill is a document: an operator reads it with `grep` and `jq`, and anyone can recompute its proofs
//! with `b3sum`. JSON writes control characters as escapes, so the first newline ends the line, and the tabs its parts.
//! It costs about twice the bytes of a binary form, a tenth of a millisecond of the disk for a hundred lines.

use appliance_types::Entry;
use serde::{Deserialize, Serialize};

/// Longest line with its newline; an entry needs less than half of it.
pub const LINE_BYTES_MAX: usize = 4096;
/// Bytes of a line after its JSON.
const PROOF_BYTES: usize = 1 + 8 + 1 + 64 + 1 + 8 + 1;
const SUM_DIGITS: usize = 8;

/// A chain value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Chain([u8; 32]);

impl Chain {
    fn after(self, content: &[u8]) -> Self {
        Self(*blake3::Hasher::new().update(&self.0).update(content).finalize().as_bytes())
    }
}

impl From<Chain> for String {
    fn from(chain: Chain) -> Self {
        blake3::Hash::from_bytes(chain.0).to_hex().as_str().to_owned()
    }
}

impl TryFrom<String> for Chain {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex(text.as_bytes()).map(Self).ok_or("a chain value is 64 lower-case hexadecimal digits")
    }
}

/// The first line of each segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The segment's number, as in its name.
    pub segment: u64,
    /// The chain value that the segment before ended with; zeros in the first.
    pub previous: Chain,
    /// Wall clock when it was begun, milliseconds since the Unix epoch.
    pub begun_unix_ms: u64,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The beginning of a segment.
    Head(Head),
    /// An entry.
    Entry(Box<Entry>),
}

/// What names an entry: the part of it that a start needs of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Origin {
    pub(crate) boot: u64,
    pub(crate) core: u16,
    pub(crate) sequence: u64,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It lacks its newline, a tab or its digits.
    #[error("not a line of the ledger")]
    Shape,
    /// The bytes are not those that were written.
    #[error("checksum {written:08x} is written, {computed:08x} is found")]
    Checksum {
        /// What the line says.
        written: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// It is whole, but does not follow from the line before.
    #[error("it does not follow from the line before: lines are missing, or were changed")]
    Chain,
    /// A segment between others is not there.
    #[error("the segment is missing")]
    Missing,
    /// It is whole and in its place, but another version wrote it.
    #[error("not an entry: {reason}")]
    Content {
        /// What the parser met.
        reason: String,
    },
}

/// A line whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its JSON.
    pub json: &'a [u8],
    /// Up to where the segment was synced before it.
    pub synced: u32,
    /// Its chain value.
    pub chain: Chain,
    /// What its chain value covers.
    covered: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks a line, newline included, by its checksum.
    ///
    /// # Errors
    /// [`FrameError::Shape`] or [`FrameError::Checksum`].
    pub fn parse(line: &'a [u8]) -> Result<Self, FrameError> {
        let body = line.strip_suffix(b"\n").filter(|_| line.len() <= LINE_BYTES_MAX).ok_or(FrameError::Shape)?;
        let (summed, written) = field::<SUM_DIGITS>(body)?;
        let (written, computed) = (number(written)?, crc32c::crc32c(summed));
        if written != computed {
            return Err(FrameError::Checksum { written, computed });
        }
        let (covered, chain) = field::<64>(summed)?;
        let (json, synced) = field::<8>(covered)?;
        let chain = Chain(hex(chain).ok_or(FrameError::Shape)?);
        Ok(Self { json, synced: number(synced)?, chain, covered })
    }

    /// Whether it follows a line that has this chain value.
    pub fn follows(&self, previous: Chain) -> bool {
        previous.after(self.covered) == self.chain
    }

    /// What it says.
    ///
    /// # Errors
    /// [`FrameError::Content`].
    pub fn content(&self) -> Result<Content, FrameError> {
        if self.is_head() {
            return self.json().map(Content::Head);
        }
        self.json().map(|entry| Content::Entry(Box::new(entry)))
    }

    /// What names its entry, where it is no head.
    pub(crate) fn origin(&self) -> Result<Origin, FrameError> {
        self.json()
    }

    /// [`encode`] writes fields in their order, and no entry begins with this one.
    pub(crate) fn is_head(&self) -> bool {
        self.json.starts_with(b"{\"segment\":")
    }

    fn json<T: Deserialize<'a>>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(self.json).map_err(|error| FrameError::Content { reason: error.to_string() })
    }
}

/// Appends the line of `content` to `out`; returns its chain value.
pub fn encode(content: &impl Serialize, synced: u32, previous: Chain, out: &mut Vec<u8>) -> Chain {
    let start = out.len();
    serde_json::to_writer(&mut *out, content).expect("text keys, finite numbers, and a Vec takes all");
    out.extend_from_slice(format!("\t{synced:08x}").as_bytes());
    let chain = previous.after(&out[start..]);
    out.extend_from_slice(format!("\t{}", String::from(chain)).as_bytes());
    let sum = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(format!("\t{sum:08x}\n").as_bytes());
    debug_assert!(out.len() - start > PROOF_BYTES);
    chain
}

/// Splits the last field of `N` bytes, and the tab before it, off.
fn field<const N: usize>(bytes: &[u8]) -> Result<(&[u8], &[u8; N]), FrameError> {
    let (rest, field) = bytes.split_last_chunk::<N>().ok_or(FrameError::Shape)?;
    rest.strip_suffix(b"\t").map(|rest| (rest, field)).ok_or(FrameError::Shape)
}

fn number(digits: &[u8; 8]) -> Result<u32, FrameError> {
    hex(digits).map(u32::from_be_bytes).ok_or(FrameError::Shape)
}

/// Reads exactly what [`encode`] writes: no sign, no capitals.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, record};
    use appliance_types::{Outcome, Record, RequestId, Tier};
    use proptest::prelude::*;

    fn line(content: &impl Serialize) -> (Vec<u8>, Chain) {
        let mut line = Vec::new();
        let chain = encode(content, 7, Chain::default(), &mut line);
        (line, chain)
    }

    #[test]
    fn reads_what_it_writes() {
        let (line, chain) = line(&entry(1, 2, 3));
        let frame = Frame::parse(&line).unwrap();
        assert_eq!((frame.synced, frame.chain), (7, chain));
        assert!(frame.follows(Chain::default()) && !frame.follows(chain));
        assert_eq!(frame.content(), Ok(Content::Entry(Box::new(entry(1, 2, 3)))));
        assert_eq!(line.iter().filter(|byte| **byte < b' ').count(), 4, "three tabs and a newline");
    }

    #[test]
    fn the_longest_entry_fits() {
        let name = "x".repeat(63);
        let longest = Record {
            request: RequestId::from_random(u128::MAX),
            came_unix_ms: u64::MAX,
            ended_unix_ms: u64::MAX,
            key: name.parse().unwrap(),
            function: name.parse().unwrap(),
            outcome: Outcome::DeadlineExceeded,
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
            ..record(0)
        };
        let longest = Entry { boot: u64::MAX, core: u16::MAX, sequence: u64::MAX, record: longest, ..entry(0, 0, 0) };
        assert!(line(&longest).0.len() <= LINE_BYTES_MAX / 2);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (line, _) = line(&entry(1, 2, 3));
        for bit in 0..line.len() * 8 {
            let mut flipped = line.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(&flipped).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::parse(&bytes);
            let _ = crate::segment::scan(1, &bytes, None);
        }
    }
}
