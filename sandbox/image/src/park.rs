//! A captured process as an image whose data area is in memory: what a parked function keeps.
//!
//! ```text
//!  process   ┌─ data ─┬ zero ┬ data ┬──── zero ────┬ data ┐   pages of zeros between data are kept where they are few:
//!            └────────┴──────┴──────┴──────────────┴──────┘   a mapping costs more than they do
//!  memfd     │◀────── one extent ───▶│◀─ another ─▶│           sealed: nobody can write to it any more, so all
//!                                                              instances may share it, copied on write
//!  raw file        ◀── 16 MiB ──▶ ◀──▶                       bytes that do not compress, such as weights that were repacked:
//!                                                              by digest, so that all who hold the same share them
//! ```

use crate::{
    capture::Held,
    error::{CaptureError, Result},
    memory::Memory,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use sandbox_snapshot::{
    Pages,
    image::{Capture, Extent, Image, Mapping, MappingKind, PAGE_BYTES, Source, Span},
    is_incompressible,
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Zeros between data that are kept: 32 pages.
const ZERO_BYTES_KEPT_MAX: u64 = 32 * PAGE_BYTES;
/// Bytes read at once.
const BATCH_BYTES: u64 = 2 << 20;
/// Runs below this are not worth a file of their own.
const RAW_BYTES_MIN: u64 = 1 << 20;
/// Most bytes of a raw file.
const RAW_BYTES_MAX: u64 = 16 << 20;
/// What is tried to be compressed of a piece, at its beginning, in its middle and at its end.
const SAMPLE_BYTES: usize = 32 << 10;

/// Takes bytes that do not compress.
pub trait RawSink {
    /// Keeps bytes, whole pages of them, and says by which digest they are found again; `None` where they are not kept apart.
    ///
    /// # Errors
    /// There is no room for them.
    fn keep(&self, bytes: &[u8]) -> io::Result<Option<[u8; 32]>>;
}

/// Keeps nothing apart.
impl RawSink for () {
    fn keep(&self, _: &[u8]) -> io::Result<Option<[u8; 32]>> {
        Ok(None)
    }
}

/// A run of a mapping, or a part of one, and the digest of its raw file if it has one.
type Piece = (Span, Option<[u8; 32]>);

/// An image with its data area.
#[derive(Debug)]
pub struct Parked {
    /// The image. All of its own memory is [`Source::Compressed`], [`Source::Zero`] or, where it was kept, [`Source::Raw`].
    pub image: Image,
    /// The data area, decoded and sealed.
    pub data: File,
}

impl Parked {
    /// Writes the data into the memory of a process that is being restored without sharing it.
    ///
    /// # Errors
    /// The process is gone, or its memory is not that of the image.
    pub fn write(&self, memory: &Memory) -> io::Result<()> {
        let mut bytes = vec![0; BATCH_BYTES as usize];
        for extent in &self.image.extents {
            let Source::Compressed { mut offset } = extent.source else { continue };
            for batch in batches(&extent.span()) {
                let bytes = &mut bytes[..batch.bytes as usize];
                self.data.read_exact_at(bytes, offset)?;
                memory.write(batch.address, bytes)?;
                offset += batch.bytes;
            }
        }
        Ok(())
    }
}

impl Parked {
    /// The process as it was captured, for an encoder that reads its memory here.
    pub fn capture(&self) -> Capture {
        let Image { identity, registers, process, mappings, extents, note, device } = self.image.clone();
        let is_data = |extent: &&Extent| matches!(extent.source, Source::Compressed { .. });
        let data = extents.iter().filter(is_data).map(Extent::span).collect();
        let is_kept = |extent: &Extent| !matches!(extent.source, Source::Compressed { .. } | Source::Zero);
        let kept = extents.into_iter().filter(is_kept).collect();
        Capture { identity, registers, process, mappings, kept, data, note, device }
    }
}

impl Pages for Parked {
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let extents = &self.image.extents;
        let extent = extents.partition_point(|extent| extent.address <= address).checked_sub(1).map(|at| extents[at]);
        match extent {
            Some(Extent { address: start, source: Source::Compressed { offset }, .. }) => {
                self.data.read_exact_at(bytes, offset + (address - start))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no data at {address:#x}"))),
        }
    }
}

/// Copies the memory of a captured process into a sealed file, but for what `raw` keeps.
///
/// # Errors
/// Its memory cannot be read, or there is no room for the copy.
pub fn park(held: &Held, raw: &dyn RawSink) -> Result<Parked, CaptureError> {
    let (capture, memory) = (held.image(), held.memory());
    let data = copying(memfd_create(c"sandbox-image", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING))?.into();
    let mut extents = Vec::new();
    let mut data_bytes = 0;
    for mapping in capture.mappings.iter().filter(|mapping| !mapping.kind.is_kernels()) {
        match capture.kept.binary_search_by_key(&mapping.start, |extent| extent.address) {
            Ok(at) => extents.push(capture.kept[at]),
            Err(_) => {
                let runs = runs(mapping, &capture.data, memory)?;
                let pieces = keep(mapping, runs, memory, raw)?;
                copy(&pieces, data_bytes, memory, &data)?;
                data_bytes = cover(mapping, &pieces, data_bytes, &mut extents);
            }
        }
    }
    seal(&data)?;
    Ok(Parked { image: image(capture, extents), data })
}

fn image(capture: &Capture, extents: Vec<Extent>) -> Image {
    Image {
        identity: capture.identity.clone(),
        registers: capture.registers.clone(),
        process: capture.process.clone(),
        mappings: capture.mappings.clone(),
        extents,
        note: capture.note.clone(),
        device: capture.device.clone(),
    }
}

fn seal(data: &File) -> Result<(), CaptureError> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    copying(fcntl(data, FcntlArg::F_ADD_SEALS(seals))).map(drop)
}

fn copying<T>(copied: std::result::Result<T, Errno>) -> Result<T, CaptureError> {
    copied.map_err(|error| no_copy(error.into()))
}

fn no_copy(error: io::Error) -> CaptureError {
    CaptureError::Read { path: "the copy of the process's memory".to_owned(), error }
}

/// The runs of a mapping that hold data: not zero, or zeros that are too few to leave out.
fn runs(mapping: &Mapping, data: &[Span], memory: &Memory) -> Result<Vec<Span>, CaptureError> {
    let (mut runs, end) = (Vec::new(), mapping.span().end());
    let first = data.partition_point(|span| span.address < mapping.start);
    for batch in data[first..].iter().take_while(|span| span.address < end).flat_map(batches) {
        let bytes = read(memory, batch)?;
        for (at, page) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                extend(&mut runs, batch.address + at as u64 * PAGE_BYTES);
            }
        }
    }
    Ok(runs)
}

fn batches(span: &Span) -> impl Iterator<Item = Span> + use<> {
    parts(span, BATCH_BYTES)
}

fn parts(span: &Span, bytes_max: u64) -> impl Iterator<Item = Span> + use<> {
    let span = *span;
    let starts = (span.address..span.end()).step_by(bytes_max as usize);
    starts.map(move |address| Span { address, bytes: bytes_max.min(span.end() - address) })
}

fn read(memory: &Memory, span: Span) -> Result<Vec<u8>, CaptureError> {
    let mut bytes = vec![0; span.bytes as usize];
    match memory.read(span.address, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(CaptureError::Read { path: format!("memory at {:#x}", span.address), error }),
    }
}

/// Adds a page of data to the last run, or begins another.
fn extend(runs: &mut Vec<Span>, page: u64) {
    match runs.last_mut() {
        Some(last) if page - last.end() <= ZERO_BYTES_KEPT_MAX => last.bytes = page + PAGE_BYTES - last.address,
        _ => runs.push(Span { address: page, bytes: PAGE_BYTES }),
    }
}

/// Has what does not compress kept.
fn keep(mapping: &Mapping, runs: Vec<Span>, memory: &Memory, raw: &dyn RawSink) -> Result<Vec<Piece>, CaptureError> {
    let mut pieces = Vec::new();
    for run in runs {
        if mapping.kind != MappingKind::Anonymous || run.bytes < RAW_BYTES_MIN {
            pieces.push((run, None));
            continue;
        }
        for part in parts(&run, RAW_BYTES_MAX) {
            add_piece(&mut pieces, part, keep_part(part, memory, raw)?);
        }
    }
    Ok(pieces)
}

fn keep_part(part: Span, memory: &Memory, raw: &dyn RawSink) -> Result<Option<[u8; 32]>, CaptureError> {
    if part.bytes < RAW_BYTES_MIN {
        return Ok(None);
    }
    let bytes = read(memory, part)?;
    let starts = [0, (bytes.len() - SAMPLE_BYTES) / 2, bytes.len() - SAMPLE_BYTES];
    for start in starts {
        if !is_incompressible(&bytes[start..start + SAMPLE_BYTES]).map_err(no_copy)? {
            return Ok(None);
        }
    }
    raw.keep(&bytes).map_err(no_copy)
}

/// Adds a piece, in one with the last where neither has a file of its own and they meet.
fn add_piece(pieces: &mut Vec<Piece>, part: Span, digest: Option<[u8; 32]>) {
    match pieces.last_mut() {
        Some((last, None)) if digest.is_none() && last.end() == part.address => last.bytes += part.bytes,
        _ => pieces.push((part, digest)),
    }
}

fn copy(pieces: &[Piece], mut offset: u64, memory: &Memory, data: &File) -> Result<(), CaptureError> {
    let own = pieces.iter().filter(|(_, digest)| digest.is_none());
    for batch in own.flat_map(|(run, _)| batches(run)) {
        data.write_all_at(&read(memory, batch)?, offset).map_err(no_copy)?;
        offset += batch.bytes;
    }
    Ok(())
}

/// Covers a mapping with its pieces and the zeros around them. Answers where the data area then ends.
fn cover(mapping: &Mapping, pieces: &[Piece], mut offset: u64, extents: &mut Vec<Extent>) -> u64 {
    let mut at = mapping.start;
    let mut add = |address, bytes, source| {
        if bytes > 0 {
            extents.push(Extent { address, bytes, source });
        }
    };
    for (run, digest) in pieces {
        add(at, run.address - at, Source::Zero);
        match digest {
            Some(digest) => add(run.address, run.bytes, Source::Raw { digest: *digest, offset: 0 }),
            None => {
                add(run.address, run.bytes, Source::Compressed { offset });
                offset += run.bytes;
            }
        }
        at = run.end();
    }
    add(at, mapping.span().end() - at, Source::Zero);
    offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_snapshot::image::Protection;

    #[test]
    fn few_zeros_between_data_are_kept() {
        let mut runs = Vec::new();
        [0, 1, 34, 68].into_iter().for_each(|page| extend(&mut runs, page * PAGE_BYTES));
        let expected =
            [Span { address: 0, bytes: 35 * PAGE_BYTES }, Span { address: 68 * PAGE_BYTES, bytes: PAGE_BYTES }];
        assert_eq!(runs, expected);
    }

    #[test]
    fn extents_cover_a_mapping_once() {
        let protection = Protection { read: true, write: true, execute: false };
        let mapping = Mapping { start: 0x10000, bytes: 8 * PAGE_BYTES, protection, kind: MappingKind::Anonymous };
        let run = |page, pages| Span { address: 0x10000 + page * PAGE_BYTES, bytes: pages * PAGE_BYTES };
        let covered = |runs: &[Span]| {
            let mut extents = Vec::new();
            let pieces: Vec<_> = runs.iter().map(|run| (*run, None)).collect();
            let end = cover(&mapping, &pieces, PAGE_BYTES, &mut extents);
            (end / PAGE_BYTES, extents.iter().map(|e| (e.bytes / PAGE_BYTES, e.source)).collect::<Vec<_>>())
        };
        let data = |page: u64| Source::Compressed { offset: page * PAGE_BYTES };
        assert_eq!(covered(&[]), (1, vec![(8, Source::Zero)]));
        assert_eq!(covered(&[run(0, 8)]), (9, vec![(8, data(1))]));
        let expected = vec![(1, Source::Zero), (2, data(1)), (1, Source::Zero), (1, data(3)), (3, Source::Zero)];
        assert_eq!(covered(&[run(1, 2), run(4, 1)]), (4, expected));
    }

    #[test]
    fn what_is_kept_apart_takes_no_data() {
        let protection = Protection { read: true, write: true, execute: false };
        let mapping = Mapping { start: 0x10000, bytes: 8 * PAGE_BYTES, protection, kind: MappingKind::Anonymous };
        let mut pieces = Vec::new();
        for (page, digest) in [(0, None), (1, None), (2, Some([1; 32])), (3, None)] {
            add_piece(&mut pieces, Span { address: 0x10000 + page * PAGE_BYTES, bytes: PAGE_BYTES }, digest);
        }
        let mut extents = Vec::new();
        assert_eq!(cover(&mapping, &pieces, 0, &mut extents), 3 * PAGE_BYTES);
        let sources: Vec<_> = extents.iter().map(|extent| (extent.bytes / PAGE_BYTES, extent.source)).collect();
        let raw = Source::Raw { digest: [1; 32], offset: 0 };
        let (first, second) = (Source::Compressed { offset: 0 }, Source::Compressed { offset: 2 * PAGE_BYTES });
        assert_eq!(sources, [(2, first), (1, raw), (1, second), (4, Source::Zero)]);
    }
}
