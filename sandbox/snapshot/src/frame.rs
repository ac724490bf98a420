//! One frame: up to 2 MiB of the data area, compressed apart from all others.
//!
//! ```text
//!  in the file         ┌── zstd frame ──────────────┬─ zeros ─┐   a multiple of 4 KiB: read with O_DIRECT
//!                      └────────────────────────────┴─────────┘
//!                      ◀──── compressed_bytes ──────▶
//!                      ◀──────────── stored_bytes ────────────▶   what the tag covers
//!  in the data area    ┌──────────────── raw_bytes ───────────────────┐   at data_offset
//! ```
//!
//! Invariants: a tag is checked before zstd sees a byte; the zstd frame is one, whole, without a dictionary, and says
//! the length that the table says; it is of a single segment, so that its window is the frame itself and decoding
//! looks back into the output, and needs no memory of its own however the frame was made.

use crate::{
    error::{Fault, SnapshotError},
    image::PAGE_BYTES,
    limits::{FRAME_RAW_BYTES_MAX, FRAME_STORED_BYTES_MAX},
    seal::SealKey,
};
use std::ops::Range;
use zstd::{bulk, zstd_safe};

/// The window: log₂ of [`FRAME_RAW_BYTES_MAX`].
const WINDOW_LOG: u32 = FRAME_RAW_BYTES_MAX.ilog2();
/// Bits of the byte after zstd's magic: the frame has a single segment; its dictionary has an id.
const DESCRIPTOR: usize = 4;
const SINGLE_SEGMENT: u8 = 1 << 5;
const DICTIONARY_ID: u8 = 0b11;

/// Where a frame is, and what it decodes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where in the file it begins; a multiple of 4 KiB.
    pub offset: u64,
    /// How many bytes of the file it takes; a multiple of 4 KiB.
    pub stored_bytes: usize,
    /// Where in the data area its bytes belong.
    pub data_offset: u64,
    /// How many bytes it decodes to.
    pub raw_bytes: usize,
    pub(crate) entry: Entry,
}

/// A frame's line in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) raw_bytes: u32,
    pub(crate) compressed_bytes: u32,
    pub(crate) tag: [u8; 32],
}

impl Frame {
    /// Its place in the file.
    pub fn file_range(&self) -> Range<u64> {
        self.offset..self.offset + self.stored_bytes as u64
    }

    /// Its place in the data area.
    pub fn data_range(&self) -> Range<u64> {
        self.data_offset..self.data_offset + self.raw_bytes as u64
    }
}

impl Entry {
    /// The frame, behind one that ends at these places.
    fn place(self, offset: u64, data_offset: u64) -> Frame {
        let stored_bytes = u64::from(self.compressed_bytes).next_multiple_of(PAGE_BYTES) as usize;
        Frame { offset, stored_bytes, data_offset, raw_bytes: self.raw_bytes as usize, entry: self }
    }

    /// What no frame can be.
    pub(crate) fn fault(&self) -> Option<Fault> {
        if self.raw_bytes == 0 || self.compressed_bytes == 0 {
            Some(Fault::Empty)
        } else if !u64::from(self.raw_bytes).is_multiple_of(PAGE_BYTES) {
            Some(Fault::Unaligned)
        } else if self.raw_bytes > FRAME_RAW_BYTES_MAX || self.compressed_bytes > FRAME_STORED_BYTES_MAX {
            Some(Fault::OutOfRange)
        } else {
            None
        }
    }
}

/// Places frames one after another, behind the head.
pub(crate) fn place(entries: &[Entry], head_bytes: u64) -> Vec<Frame> {
    let (mut offset, mut data_offset) = (head_bytes, 0);
    let place = |entry: &Entry| {
        let frame = entry.place(offset, data_offset);
        (offset, data_offset) = (frame.file_range().end, frame.data_range().end);
        frame
    };
    entries.iter().map(place).collect()
}

/// Decodes frames one after another; each worker has its own.
pub struct FrameDecoder {
    zstd: bulk::Decompressor<'static>,
}

impl FrameDecoder {
    /// A decoder with its memory, about 160 KiB.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: bulk::Decompressor::new()? })
    }

    /// Decodes frame `index` from `input`, its bytes as stored, to `output`, which has the length it decodes to.
    pub(crate) fn decode(
        &mut self,
        key: &SealKey,
        index: usize,
        frame: &Frame,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), SnapshotError> {
        check_length(index, "input", frame.stored_bytes, input.len())?;
        check_length(index, "output", frame.raw_bytes, output.len())?;
        if key.tag(input) != frame.entry.tag {
            return Err(SnapshotError::Tag { index });
        }
        let failed = |reason: String| SnapshotError::Decode { index, reason };
        let compressed = &input[..frame.entry.compressed_bytes as usize];
        check_zstd_frame(compressed, frame.raw_bytes).map_err(|reason| failed(reason.to_owned()))?;
        match self.zstd.decompress_to_buffer(compressed, output) {
            Ok(written) if written == frame.raw_bytes => Ok(()),
            Ok(written) => Err(failed(format!("{written} bytes instead of {}", frame.raw_bytes))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Says that there is a decoder; zstd's state has nothing to tell.
impl std::fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameDecoder")
    }
}

fn check_length(index: usize, buffer: &'static str, expected: usize, got: usize) -> Result<(), SnapshotError> {
    if got == expected { Ok(()) } else { Err(SnapshotError::BufferLength { index, buffer, expected, got }) }
}

/// What a frame says of itself, before it is decoded.
fn check_zstd_frame(compressed: &[u8], raw_bytes: usize) -> Result<(), &'static str> {
    let Some(descriptor) = compressed.get(DESCRIPTOR) else { return Err("it is cut") };
    let announced = zstd_safe::get_frame_content_size(compressed).ok().flatten();
    if announced != Some(raw_bytes as u64) {
        Err("it does not decode to the length in the table")
    } else if descriptor & SINGLE_SEGMENT == 0 {
        Err("it has a window of its own")
    } else if descriptor & DICTIONARY_ID != 0 {
        Err("it needs a dictionary")
    } else if zstd_safe::find_frame_compressed_size(compressed) != Ok(compressed.len()) {
        Err("it is not one whole frame")
    } else {
        Ok(())
    }
}

/// Compresses frames one after another.
pub(crate) struct FrameEncoder {
    zstd: bulk::Compressor<'static>,
}

impl FrameEncoder {
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let mut zstd = bulk::Compressor::new(level)?;
        zstd.set_parameter(zstd_safe::CParameter::WindowLog(WINDOW_LOG))?;
        // Literals as they are: 8 % more bytes, and a quarter less time to decode.
        zstd.set_parameter(zstd_safe::CParameter::LiteralCompressionMode(zstd_safe::ParamSwitch::Disable))?;
        Ok(Self { zstd })
    }

    /// Fills `stored` with the frame of `raw` and its padding, and returns the frame's line.
    pub(crate) fn encode(&mut self, key: &SealKey, raw: &[u8], stored: &mut Vec<u8>) -> std::io::Result<Entry> {
        stored.clear();
        stored.reserve(zstd_safe::compress_bound(raw.len()));
        let compressed_bytes = self.zstd.compress_to_buffer(raw, stored)?;
        stored.resize((compressed_bytes as u64).next_multiple_of(PAGE_BYTES) as usize, 0);
        Ok(Entry {
            raw_bytes: u32::try_from(raw.len()).expect("a frame is at most 2 MiB"),
            compressed_bytes: u32::try_from(compressed_bytes).expect("and little more when stored"),
            tag: *key.tag(stored).as_bytes(),
        })
    }
}
