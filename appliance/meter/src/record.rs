//! One record of the ring: two cache lines that prove themselves.
//!
//! ```text
//!  0        4      5       6      8          16        24                    128
//!  ┌────────┬──────┬───────┬──────┬──────────┬─────────┬─────────────────────┐
//!  │ CRC32C │ part │ parts │ 0    │ sequence │ boot id │ payload, 104 bytes  │   little endian
//!  └────────┴──────┴───────┴──────┴──────────┴─────────┴─────────────────────┘
//!     of all that follows           the record's number in the ring: what was there before it has another
//! ```

use std::fmt;

/// Bytes of a record: two cache lines.
pub const RECORD_BYTES: usize = 128;
pub(crate) const RECORD_WORDS: usize = RECORD_BYTES / 8;
const HEAD_BYTES: usize = 24;
/// Bytes that a record carries.
pub(crate) const PAYLOAD_BYTES: usize = RECORD_BYTES - HEAD_BYTES;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its bytes are not those that were written.
    #[error("checksum {written:08x} is written, {computed:08x} is found")]
    Checksum {
        /// What the record says.
        written: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// It is another record than the one that must be here.
    #[error("it says that it is record {found}")]
    Sequence {
        /// What it says.
        found: u64,
    },
    /// It is no part of an entry that could be here.
    #[error("part {part} of {parts} is out of place")]
    Part {
        /// Which part it says it is.
        part: u8,
        /// Of how many.
        parts: u8,
    },
    /// The entry that begins here is not whole.
    #[error("the entry is not whole")]
    Cut,
    /// The ring cannot have got so far; all that was in it is given up.
    #[error("the ring's tail is said to be {tail}")]
    Tail {
        /// What is said.
        tail: u64,
    },
    /// The entry is whole, but says what cannot be.
    #[error("the entry's {field} cannot be")]
    Field {
        /// Which field.
        field: &'static str,
    },
}

/// What a record is, beside what it carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) part: u8,
    pub(crate) parts: u8,
    pub(crate) boot: u64,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} of boot {:016x}", self.part, self.parts, self.boot)
    }
}

/// The words of record `sequence`.
pub(crate) fn seal(head: Head, sequence: u64, payload: &[u8; PAYLOAD_BYTES]) -> [u64; RECORD_WORDS] {
    let mut bytes = [0; RECORD_BYTES];
    (bytes[4], bytes[5]) = (head.part, head.parts);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..HEAD_BYTES].copy_from_slice(&head.boot.to_le_bytes());
    bytes[HEAD_BYTES..].copy_from_slice(payload);
    let sum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|word| u64::from_ne_bytes(words[word]))
}

/// Checks the words of record `sequence`.
pub(crate) fn open(words: &[u64; RECORD_WORDS], sequence: u64) -> Result<(Head, [u8; PAYLOAD_BYTES]), Fault> {
    let mut bytes = [0; RECORD_BYTES];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_ne_bytes();
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let (written, computed) = (number(0) as u32, crc32c::crc32c(&bytes[4..]));
    if written != computed {
        return Err(Fault::Checksum { written, computed });
    }
    if number(8) != sequence {
        return Err(Fault::Sequence { found: number(8) });
    }
    let head = Head { part: bytes[4], parts: bytes[5], boot: number(16) };
    Ok((head, std::array::from_fn(|byte| bytes[HEAD_BYTES + byte])))
}
