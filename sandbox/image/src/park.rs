//! A captured process as an image whose data area is in memory: what a parked function keeps.
//!
//! ```text
//!  process   ┌─ data ─┬ zero ┬ data ┬──── zero ────┬ data ┐   pages of zeros between data are kept where they are few:
//!            └────────┴──────┴──────┴──────────────┴──────┘   a mapping costs more than they do
//!  memfd     │◀────── one extent ───▶│◀─ another ─▶│           sealed: nobody can write to it any more, so all
//!                                                              instances may share it, copied on write
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
    image::{Capture, Extent, Image, Mapping, PAGE_BYTES, Source, Span},
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Zeros between data that are kept: 32 pages.
const ZERO_BYTES_KEPT_MAX: u64 = 32 * PAGE_BYTES;
/// Bytes read at once.
const BATCH_BYTES: u64 = 2 << 20;

/// An image with its data area.
#[derive(Debug)]
pub struct Parked {
    /// The image. All of its own memory is [`Source::Compressed`] or [`Source::Zero`].
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
        let Image { identity, registers, process, mappings, extents, note } = self.image.clone();
        let is_data = |extent: &&Extent| matches!(extent.source, Source::Compressed { .. });
        let data = extents.iter().filter(is_data).map(Extent::span).collect();
        let is_kept = |extent: &Extent| !matches!(extent.source, Source::Compressed { .. } | Source::Zero);
        let kept = extents.into_iter().filter(is_kept).collect();
        Capture { identity, registers, process, mappings, kept, data, note }
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

/// Copies the memory of a captured process into a sealed file.
///
/// # Errors
/// Its memory cannot be read, or there is no room for the copy.
pub fn park(held: &Held) -> Result<Parked, CaptureError> {
    let (capture, memory) = (held.image(), held.memory());
    let data = copying(memfd_create(c"sandbox-image", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING))?.into();
    let mut extents = Vec::new();
    let mut data_bytes = 0;
    for mapping in capture.mappings.iter().filter(|mapping| !mapping.kind.is_kernels()) {
        match capture.kept.binary_search_by_key(&mapping.start, |extent| extent.address) {
            Ok(at) => extents.push(capture.kept[at]),
            Err(_) => {
                let runs = runs(mapping, &capture.data, memory)?;
                copy(&runs, data_bytes, memory, &data)?;
                data_bytes = cover(mapping, &runs, data_bytes, &mut extents);
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
    let span = *span;
    let starts = (span.address..span.end()).step_by(BATCH_BYTES as usize);
    starts.map(move |address| Span { address, bytes: BATCH_BYTES.min(span.end() - address) })
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

fn copy(runs: &[Span], mut offset: u64, memory: &Memory, data: &File) -> Result<(), CaptureError> {
    for batch in runs.iter().flat_map(batches) {
        data.write_all_at(&read(memory, batch)?, offset).map_err(no_copy)?;
        offset += batch.bytes;
    }
    Ok(())
}

/// Covers a mapping with its runs and the zeros around them. Answers where the data area then ends.
fn cover(mapping: &Mapping, runs: &[Span], mut offset: u64, extents: &mut Vec<Extent>) -> u64 {
    let mut at = mapping.start;
    let mut add = |address, bytes, source| {
        if bytes > 0 {
            extents.push(Extent { address, bytes, source });
        }
    };
    for run in runs {
        add(at, run.address - at, Source::Zero);
        add(run.address, run.bytes, Source::Compressed { offset });
        offset += run.bytes;
        at = run.end();
    }
    add(at, mapping.span().end() - at, Source::Zero);
    offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_snapshot::image::{MappingKind, Protection};

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
            let end = cover(&mapping, runs, PAGE_BYTES, &mut extents);
            (end / PAGE_BYTES, extents.iter().map(|e| (e.bytes / PAGE_BYTES, e.source)).collect::<Vec<_>>())
        };
        let data = |page: u64| Source::Compressed { offset: page * PAGE_BYTES };
        assert_eq!(covered(&[]), (1, vec![(8, Source::Zero)]));
        assert_eq!(covered(&[run(0, 8)]), (9, vec![(8, data(1))]));
        let expected = vec![(1, Source::Zero), (2, data(1)), (1, Source::Zero), (1, data(3)), (3, Source::Zero)];
        assert_eq!(covered(&[run(1, 2), run(4, 1)]), (4, expected));
    }
}
