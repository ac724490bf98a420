//! A first look at a model file: is it a GGUF, and is all of it there?
//!
//! ```text
//!  "GGUF" version:u32 tensors:u64 pairs:u64
//!  pairs   ×  key:string type:u32 value             string = length:u64 bytes
//!  tensors ×  name:string dims:u32 dim:u64×dims type:u32 offset:u64
//!  padding to `general.alignment` (32)
//!  data: each tensor at its offset
//! ```
//! All little-endian. The real parser is llama.cpp's, and runs only inside a sandbox; this one exists so that a
//! download that broke off or a file of another kind is refused with what is wrong when it is added. It trusts nothing: every
//! count has a limit, every sum is checked, and what is kept of a tensor is its place.

use std::{
    io::{self, Read, Seek},
    ops::Range,
};

const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
const PAIRS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 16;
const DIMS_MAX: u32 = 4;
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;
const ALIGNMENT_KEY: &[u8] = b"general.alignment";
/// Bytes before the data; bounds every loop here.
const HEADER_BYTES_MAX: u64 = 512 << 20;

/// Of a tensor's name: enough for the number of a layer.
const NAME_BYTES_READ: usize = 16;

const TYPE_U32: u32 = 4;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it does not begin with `GGUF`")]
    Magic,
    #[error("GGUF version {0}; versions 2 and 3 can be used")]
    Version(u32),
    #[error("the file ends at byte {end} of {needed} or more: truncated")]
    Truncated { end: u64, needed: u64 },
    #[error("{count} {what}; the limit is {limit}")]
    TooMany { what: &'static str, count: u64, limit: u64 },
    #[error("at byte {at}: {what}")]
    Malformed { at: u64, what: &'static str },
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Whether a file begins as a GGUF does.
pub(crate) fn has_magic(head: &[u8]) -> bool {
    head.starts_with(b"GGUF")
}

/// Checks a file of `end` bytes.
pub(crate) fn check(input: impl Read + Seek, end: u64) -> Result<(), Fault> {
    read(input, end).map(drop)
}

/// Where the weights of a file of `end` bytes lie, in the order in which an answer needs them: what belongs to no layer, such
/// as embeddings, the layers by number (in the file they may be `blk.1`, `blk.10`, `blk.2`), and what makes the output.
/// Pieces that meet are one.
pub(crate) fn in_order_of_use(input: impl Read + Seek, end: u64) -> Result<Vec<Range<u64>>, Fault> {
    let mut tensors = read(input, end)?;
    tensors.sort_unstable_by_key(|(layer, range)| (*layer, range.start));
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for (_, range) in tensors {
        match pieces.last_mut() {
            Some(last) if last.end.abs_diff(range.start) < ALIGNMENT_MAX && last.start <= range.start => {
                last.end = range.end
            }
            _ => pieces.push(range),
        }
    }
    Ok(pieces)
}

/// Every tensor, with the place of its layer in the order of use.
type Tensors = Vec<(u32, Range<u64>)>;

fn read(input: impl Read + Seek, end: u64) -> Result<Tensors, Fault> {
    let mut header = Header { input, position: 0, end };
    if !has_magic(&header.take::<4>()?) {
        return Err(Fault::Magic);
    }
    let version = header.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(Fault::Version(version));
    }
    let tensors = limited("tensors", header.u64()?, TENSORS_MAX)?;
    let pairs = limited("key-value pairs", header.u64()?, PAIRS_MAX)?;
    let alignment = header.pairs(pairs)?;
    let mut tensors = header.tensors(tensors, alignment)?;
    let data_start = header.position.next_multiple_of(alignment);
    let data_bytes = tensors.iter().map(|(_, range)| range.end).max().unwrap_or(0);
    match data_start.checked_add(data_bytes) {
        Some(needed) if !tensors.is_empty() && needed > end => return Err(Fault::Truncated { end, needed }),
        Some(_) => {}
        None => return Err(header.malformed("the data is longer than any file")),
    }
    tensors.iter_mut().for_each(|(_, range)| *range = range.start + data_start..range.end + data_start);
    Ok(tensors)
}

/// `blk.7.…` is the layer 7.
fn layer(name: &[u8]) -> u32 {
    if name.starts_with(b"output") {
        return u32::MAX;
    }
    let number = name.strip_prefix(b"blk.").and_then(|rest| rest.split(|byte| *byte == b'.').next());
    let number = number.and_then(|digits| str::from_utf8(digits).ok()?.parse::<u32>().ok());
    number.map_or(0, |number| number.saturating_add(1))
}

fn limited(what: &'static str, count: u64, limit: u64) -> Result<u64, Fault> {
    if count > limit { Err(Fault::TooMany { what, count, limit }) } else { Ok(count) }
}

struct Header<R> {
    input: R,
    position: u64,
    end: u64,
}

impl<R: Read + Seek> Header<R> {
    fn malformed(&self, what: &'static str) -> Fault {
        Fault::Malformed { at: self.position, what }
    }

    /// Accounts for bytes that are about to be passed.
    fn pass(&mut self, bytes: u64) -> Result<(), Fault> {
        let needed = self.position.checked_add(bytes).ok_or_else(|| self.malformed("a length beyond any file"))?;
        if needed > self.end {
            return Err(Fault::Truncated { end: self.end, needed });
        }
        limited("bytes of header", needed, HEADER_BYTES_MAX)?;
        self.position = needed;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.pass(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.take().map(u64::from_le_bytes)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        self.pass(bytes)?;
        let distance = i64::try_from(bytes).expect("below the limit of a header");
        Ok(self.input.seek_relative(distance)?)
    }

    fn skip_string(&mut self) -> Result<(), Fault> {
        let bytes = self.u64()?;
        self.skip(bytes)
    }

    /// Reads all pairs; answers the alignment.
    fn pairs(&mut self, count: u64) -> Result<u64, Fault> {
        let mut alignment = ALIGNMENT_DEFAULT;
        for _ in 0..count {
            let is_alignment = self.is_alignment_key()?;
            match self.u32()? {
                TYPE_U32 if is_alignment => alignment = self.alignment()?,
                _ if is_alignment => return Err(self.malformed("general.alignment is not a u32")),
                kind => self.skip_value(kind)?,
            }
        }
        Ok(alignment)
    }

    fn is_alignment_key(&mut self) -> Result<bool, Fault> {
        let bytes = self.u64()?;
        if bytes != ALIGNMENT_KEY.len() as u64 {
            self.skip(bytes)?;
            return Ok(false);
        }
        Ok(self.take::<{ ALIGNMENT_KEY.len() }>()? == ALIGNMENT_KEY)
    }

    fn alignment(&mut self) -> Result<u64, Fault> {
        let alignment = u64::from(self.u32()?);
        if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX {
            return Ok(alignment);
        }
        Err(self.malformed("general.alignment is no power of two up to 1 MiB"))
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), Fault> {
        match kind {
            TYPE_STRING => self.skip_string(),
            TYPE_ARRAY => self.skip_array(),
            _ => {
                let bytes = scalar_bytes(kind).ok_or_else(|| self.malformed("a value of unknown type"))?;
                self.skip(bytes)
            }
        }
    }

    fn skip_array(&mut self) -> Result<(), Fault> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind == TYPE_STRING {
            return (0..count).try_for_each(|_| self.skip_string());
        }
        let bytes = scalar_bytes(kind).ok_or_else(|| self.malformed("an array of unknown type"))?;
        let bytes = bytes.checked_mul(count).ok_or_else(|| self.malformed("an array beyond any file"))?;
        self.skip(bytes)
    }

    /// The place of the layer that a tensor's name tells.
    fn layer(&mut self) -> Result<u32, Fault> {
        let mut begin = [0; NAME_BYTES_READ];
        let bytes = self.u64()?;
        let begin = &mut begin[..bytes.min(NAME_BYTES_READ as u64) as usize];
        self.pass(bytes)?;
        self.input.read_exact(begin)?;
        let rest = i64::try_from(bytes - begin.len() as u64).expect("below the limit of a header");
        self.input.seek_relative(rest)?;
        Ok(layer(begin))
    }

    /// Reads all tensors, with ranges from the beginning of the data on.
    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Tensors, Fault> {
        let mut tensors = Vec::new();
        for _ in 0..count {
            let layer = self.layer()?;
            let (elements, row) = self.shape()?;
            let kind = self.u32()?;
            let offset = self.u64()?;
            if !offset.is_multiple_of(alignment) {
                return Err(self.malformed("a tensor's offset is not aligned"));
            }
            let bytes = self.tensor_bytes(kind, elements, row)?;
            let end = offset.checked_add(bytes).ok_or_else(|| self.malformed("a tensor beyond any file"))?;
            tensors.push((layer, offset..end));
        }
        Ok(tensors)
    }

    /// Elements in all, and in a row.
    fn shape(&mut self) -> Result<(u64, u64), Fault> {
        let dims = self.u32()?;
        limited("dimensions", dims.into(), DIMS_MAX.into())?;
        let (mut elements, mut row) = (1_u64, 1);
        for dim in 0..dims {
            let length = self.u64()?;
            elements = elements.checked_mul(length).ok_or_else(|| self.malformed("a tensor beyond any memory"))?;
            row = if dim == 0 { length } else { row };
        }
        Ok((elements, row))
    }

    fn tensor_bytes(&self, kind: u32, elements: u64, row: u64) -> Result<u64, Fault> {
        // A type that is newer than this list: llama.cpp will know.
        let Some((block, bytes)) = block_bytes(kind) else { return Ok(0) };
        if !row.is_multiple_of(block) {
            return Err(self.malformed("a tensor's row is no whole number of blocks"));
        }
        (elements / block).checked_mul(bytes).ok_or_else(|| self.malformed("a tensor beyond any memory"))
    }
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Elements and bytes of a block of each of ggml's types.
fn block_bytes(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        24 => (1, 1),
        27 | 28 => (1, 8),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        39 => (32, 17),
        40 => (64, 36),
        41 => (128, 18),
        42 => (64, 18),
        10 => (256, 84),
        11 | 21 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 | 35 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        22 => (256, 82),
        23 => (256, 136),
        29 => (256, 56),
        34 => (256, 54),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A file with a value of each shape and two tensors: 64 elements of f32, one row of Q4_1.
    fn model() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend([2_u64, 4].map(u64::to_le_bytes).concat());
        string(&mut out, "general.name");
        out.extend(TYPE_STRING.to_le_bytes());
        string(&mut out, "tiny");
        string(&mut out, str::from_utf8(ALIGNMENT_KEY).unwrap());
        out.extend([TYPE_U32, 64].map(u32::to_le_bytes).concat());
        string(&mut out, "tokens");
        out.extend([TYPE_ARRAY, TYPE_STRING].map(u32::to_le_bytes).concat());
        out.extend(2_u64.to_le_bytes());
        string(&mut out, "a");
        string(&mut out, "b");
        string(&mut out, "scores");
        out.extend([TYPE_ARRAY, 6].map(u32::to_le_bytes).concat());
        out.extend(2_u64.to_le_bytes());
        out.extend([0; 8]);
        for (name, kind, offset) in [("one", 0_u32, 0_u64), ("two", 3, 256)] {
            string(&mut out, name);
            out.extend(2_u32.to_le_bytes());
            out.extend([32_u64, 2].map(u64::to_le_bytes).concat());
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(64) + 256 + 40, 0);
        out
    }

    fn look(bytes: &[u8]) -> Result<(), Fault> {
        check(Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn a_whole_file_passes_and_every_cut_is_told() {
        let whole = model();
        look(&whole).unwrap();
        for length in 0..whole.len() {
            match look(&whole[..length]) {
                Err(Fault::Truncated { end, needed }) => assert!(end == length as u64 && needed > end),
                other => panic!("cut at {length}: {other:?}"),
            }
        }
        let cut = look(&whole[..whole.len() - 1]).unwrap_err().to_string();
        assert_eq!(cut, format!("the file ends at byte {} of {} or more: truncated", whole.len() - 1, whole.len()));
    }

    #[test]
    fn weights_are_ordered_by_layers_and_what_meets_is_one() {
        for (name, place) in [
            ("token_embd.weight", 0),
            ("blk.0.attn_q.weight", 1),
            ("blk.12.ffn_up", 13),
            ("output_norm.weight", u32::MAX),
        ] {
            assert_eq!(layer(name.as_bytes()), place, "{name}");
        }
        assert_eq!((layer(b"blk.x.y"), layer(b""), layer(b"blk.4294967295.z")), (0, 0, u32::MAX));
        let bytes = model();
        let pieces = in_order_of_use(Cursor::new(&bytes), bytes.len() as u64).unwrap();
        let end = bytes.len() as u64;
        assert_eq!((pieces.len(), &pieces[0]), (1, &(end - 296..end)));
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        assert!(matches!(look(b"\x7fELF............"), Err(Fault::Magic)));
        let mut old = model();
        old[4] = 1;
        assert!(matches!(look(&old), Err(Fault::Version(1))));
        let mut huge = model();
        huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(look(&huge), Err(Fault::TooMany { what: "tensors", .. })));
    }

    proptest! {
        #[test]
        fn bytes_flipped_anywhere_never_panic(flips in prop::collection::vec((0usize..400, any::<u8>()), 1..8)) {
            let mut bytes = model();
            for (at, value) in flips {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            let _ = look(&bytes);
        }

        #[test]
        fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = look(&tail);
            let _ = look(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
        }
    }
}
