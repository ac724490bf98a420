//! A captured process becomes a snapshot.
//!
//! ```text
//!  Capture ─▶ which pages are not zero ─▶ place by first touch ─▶ Image::check ─▶ frames ─▶ head
//! ```
//!
//! Invariants: an image that a decoder would refuse is not written; the head is written last, so what a crash leaves
//! is no snapshot; memory is bounded by the description and two frames. Pages are read twice, once to find the zero
//! ones and once to store the others, since the process is stopped meanwhile. Left out: which memory is incompressible
//! and belongs into `raw` files, which the capturer decides ([`is_incompressible`]).

use crate::{
    check::{at_most, check_mappings, check_span},
    error::{Fault, SnapshotError},
    frame::{self, Entry, FrameEncoder},
    head,
    image::{Capture, Extent, Image, PAGE_BYTES, Span},
    limits::{DATA_BYTES_MAX, FRAME_RAW_BYTES_MAX},
    pages::{Pages, find_runs, read_data},
    plan,
    seal::SealKey,
    snapshot::Snapshot,
};
use std::io::{self, Seek, SeekFrom, Write};

/// How a snapshot is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions<'a> {
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// What a frame decodes to, whole pages up to [`FRAME_RAW_BYTES_MAX`]: smaller ones keep more cores busy.
    pub frame_bytes: u32,
    /// Zero pages between others are stored as well where there are at most this many bytes of them: a restore then
    /// maps less often.
    pub zero_gap_bytes: u64,
    /// What is ordered by first touch is of up to this size, whole pages: smaller ones are mapped more often.
    pub piece_bytes: u32,
    /// Addresses that a trial request touched, in this order; what lies elsewhere is ignored.
    pub first_touch: &'a [u64],
}

impl Default for EncodeOptions<'_> {
    fn default() -> Self {
        Self {
            level: 12,
            frame_bytes: 512 << 10,
            zero_gap_bytes: 32 * PAGE_BYTES,
            piece_bytes: FRAME_RAW_BYTES_MAX,
            first_touch: &[],
        }
    }
}

/// Writes the snapshot of `capture` from the beginning of `out`, which is empty; returns it as a decoder would open it.
///
/// # Errors
/// The capture cannot be restored, its memory cannot be read, or `out` not written. What is in `out` is no snapshot then.
pub fn encode(
    mut capture: Capture,
    pages: &impl Pages,
    options: &EncodeOptions<'_>,
    key: &[u8; 32],
    out: &mut (impl Write + Seek),
) -> Result<Snapshot, SnapshotError> {
    check_size(options.frame_bytes)?;
    check_size(options.piece_bytes)?;
    let data = std::mem::take(&mut capture.data);
    let (image, stored) = arrange(capture, &data, pages, options)?;
    let frame_count = image.data_bytes().div_ceil(options.frame_bytes.into()) as usize;
    let (head_bytes, description) = head::describe(&image, frame_count)?;
    let key = SealKey::new(key);
    out.seek(SeekFrom::Start(head_bytes as u64)).map_err(write_failed)?;
    let mut writer = FrameWriter::new(&key, options, out)?;
    for extent in &stored {
        writer.store(extent.span(), &data, pages)?;
    }
    let entries = writer.finish()?;
    let frames = frame::place(&entries, head_bytes as u64);
    let file_bytes = frames.last().map_or(head_bytes as u64, |frame| frame.file_range().end);
    let head = head::write(&key, &description, &entries, file_bytes);
    out.seek(SeekFrom::Start(0)).and_then(|_| out.write_all(&head)).and_then(|()| out.flush()).map_err(write_failed)?;
    Ok(Snapshot::written(image, frames, key))
}

/// Whether storing bytes like these in frames wastes time: zstd takes less than an eighth off them.
///
/// # Errors
/// No memory.
pub fn is_incompressible(sample: &[u8]) -> io::Result<bool> {
    let compressed = zstd::bulk::compress(sample, 1)?;
    Ok(compressed.len() > sample.len() - sample.len() / 8)
}

fn check_size(bytes: u32) -> Result<(), SnapshotError> {
    let limit = FRAME_RAW_BYTES_MAX;
    let fits = bytes > 0 && bytes <= limit && u64::from(bytes).is_multiple_of(PAGE_BYTES);
    if fits { Ok(()) } else { Err(SnapshotError::FrameSize { bytes, limit }) }
}

/// The image of a capture whose data is `data`, and its extents from the data area in the order they have there.
fn arrange(
    capture: Capture,
    data: &[Span],
    pages: &impl Pages,
    options: &EncodeOptions<'_>,
) -> Result<(Image, Vec<Extent>), SnapshotError> {
    let Capture { identity, registers, process, mappings, kept, note, device, .. } = capture;
    check_mappings(&mappings)?;
    let mut image = Image { identity, registers, process, mappings, extents: Vec::new(), note, device };
    check_data(&image, data)?;
    let is_one_mapping = |gap: Span| {
        let before = image.mapping_at(gap.address - 1);
        before == image.mapping_at(gap.end())
            && !kept.iter().any(|kept| (gap.address..gap.end()).contains(&kept.address))
    };
    let runs = plan::join(find_runs(data, pages)?, options.zero_gap_bytes, is_one_mapping);
    let stored = plan::place(&runs, options.piece_bytes.into(), options.first_touch);
    let mut extents = kept;
    extents.extend(&stored);
    extents.sort_unstable_by_key(|extent| extent.address);
    image.extents = plan::fill(&image.mappings, extents);
    image.check()?;
    Ok((image, stored))
}

/// Spans of data are whole pages, in order, each within one mapping, and not too many.
fn check_data(image: &Image, data: &[Span]) -> Result<(), SnapshotError> {
    let (mut end, mut total_bytes) = (0, 0u64);
    for span in data {
        let within = || image.mapping_at(span.address).is_some_and(|mapping| span.end() <= mapping.span().end());
        let fault = check_span(*span, end).or_else(|| (!within()).then_some(Fault::OutsideMapping));
        if let Some(fault) = fault {
            return Err(SnapshotError::Extent { address: span.address, fault });
        }
        (end, total_bytes) = (span.end(), total_bytes + span.bytes);
    }
    at_most("bytes of the data area", total_bytes, DATA_BYTES_MAX)
}

fn write_failed(source: io::Error) -> SnapshotError {
    SnapshotError::Write { source }
}

/// Takes the data area in its order, and writes a frame whenever one is full.
struct FrameWriter<'a, W> {
    encoder: FrameEncoder,
    key: &'a SealKey,
    out: &'a mut W,
    frame_bytes: usize,
    raw: Vec<u8>,
    stored: Vec<u8>,
    entries: Vec<Entry>,
}

impl<'a, W: Write> FrameWriter<'a, W> {
    fn new(key: &'a SealKey, options: &EncodeOptions<'_>, out: &'a mut W) -> Result<Self, SnapshotError> {
        let encoder =
            FrameEncoder::new(options.level).map_err(|source| SnapshotError::Compress { index: 0, source })?;
        let frame_bytes = options.frame_bytes as usize;
        let raw = Vec::with_capacity(frame_bytes);
        Ok(Self { encoder, key, out, frame_bytes, raw, stored: Vec::new(), entries: Vec::new() })
    }

    fn store(&mut self, mut span: Span, data: &[Span], pages: &impl Pages) -> Result<(), SnapshotError> {
        while span.bytes > 0 {
            let from = self.raw.len();
            let taken = span.bytes.min((self.frame_bytes - from) as u64);
            self.raw.resize(from + taken as usize, 0);
            read_data(data, pages, span.address, &mut self.raw[from..])?;
            span = Span { address: span.address + taken, bytes: span.bytes - taken };
            if self.raw.len() == self.frame_bytes {
                self.write_frame()?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Entry>, SnapshotError> {
        if !self.raw.is_empty() {
            self.write_frame()?;
        }
        Ok(self.entries)
    }

    fn write_frame(&mut self) -> Result<(), SnapshotError> {
        let index = self.entries.len();
        let encoded = self.encoder.encode(self.key, &self.raw, &mut self.stored);
        self.entries.push(encoded.map_err(|source| SnapshotError::Compress { index, source })?);
        self.raw.clear();
        self.out.write_all(&self.stored).map_err(write_failed)
    }
}
