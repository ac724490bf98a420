//! Writes and reads of a target, several at once, by io_uring, past the page cache where the target allows.

use crate::{
    buffer::{ALIGNMENT, Buffer},
    error::FlashError,
    source::{CHUNK, Chunk},
    target::Opened,
};
use std::{collections::VecDeque, fs::File, io, mem, ops::Range, os::unix::fs::FileExt, rc::Rc};
use tokio::task::JoinHandle;
use tokio_uring::{buf::BoundedBuf, fs::File as RingFile};

/// Writes, or reads, at once.
pub(crate) const DEPTH: usize = 8;

/// What was written: where, how much, its hash.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) offset: u64,
    pub(crate) length: usize,
    pub(crate) hash: blake3::Hash,
}

impl Written {
    /// Of `bytes` at `offset`.
    pub(crate) fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, length: bytes.len(), hash: blake3::hash(bytes) }
    }

    fn end(&self) -> u64 {
        self.offset + self.length as u64
    }
}

/// A target's two ways in.
pub(crate) struct Ways {
    ring: Rc<RingFile>,
    file: File,
    is_direct: bool,
}

impl Ways {
    pub(crate) fn of(opened: &Opened) -> io::Result<Self> {
        let ring = opened.direct.as_ref().unwrap_or(&opened.file).try_clone()?;
        Ok(Self {
            ring: Rc::new(RingFile::from_std(ring)),
            file: opened.file.try_clone()?,
            is_direct: opened.direct.is_some(),
        })
    }

    /// How much of `length` bytes goes by the ring: direct writes are whole blocks, the rest goes through the page cache.
    fn by_ring(&self, length: usize) -> usize {
        if self.is_direct { length / ALIGNMENT * ALIGNMENT } else { length }
    }
}

/// Chunks that are on their way to the target.
pub(crate) struct Writer<'a> {
    ways: &'a Ways,
    running: VecDeque<JoinHandle<Result<Buffer, FlashError>>>,
    written: Vec<Written>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(ways: &'a Ways) -> Self {
        Self { ways, running: VecDeque::new(), written: Vec::new() }
    }

    /// Begins to write `chunk`'s runs; memory that is free again, once enough are on their way.
    pub(crate) async fn write(&mut self, chunk: Chunk) -> Result<Option<Buffer>, FlashError> {
        let mut parts = Vec::new();
        for run in &chunk.runs {
            let offset = chunk.offset + run.range.start as u64;
            self.written.push(Written { offset, length: run.range.len(), hash: run.hash });
            let cut = run.range.start + self.ways.by_ring(run.range.len());
            let tail = cut..run.range.end;
            let at = chunk.offset + cut as u64;
            self.ways.file.write_all_at(&chunk.buffer[tail], at).map_err(FlashError::write(at))?;
            parts.push((run.range.start..cut, offset));
        }
        self.running.push_back(tokio_uring::spawn(write_parts(self.ways.ring.clone(), chunk.buffer, parts)));
        if self.running.len() < DEPTH { Ok(None) } else { self.oldest().await }
    }

    async fn oldest(&mut self) -> Result<Option<Buffer>, FlashError> {
        match self.running.pop_front() {
            Some(task) => task.await.expect("a write does not panic").map(Some),
            None => Ok(None),
        }
    }

    /// Waits for all; what was written, in order.
    pub(crate) async fn finish(&mut self) -> Result<Vec<Written>, FlashError> {
        while self.oldest().await?.is_some() {}
        Ok(mem::take(&mut self.written))
    }
}

async fn write_parts(
    file: Rc<RingFile>,
    buffer: Buffer,
    parts: Vec<(Range<usize>, u64)>,
) -> Result<Buffer, FlashError> {
    let (mut bytes, start) = buffer.into_parts();
    for (range, offset) in parts.into_iter().filter(|(range, _)| !range.is_empty()) {
        let part = bytes.slice(start + range.start..start + range.end);
        let (done, part) = file.write_all_at(part, offset).await;
        done.map_err(FlashError::write(offset))?;
        bytes = part.into_inner();
    }
    Ok(Buffer::from_parts(bytes, start))
}

/// Reads back what was written; `progress` hears of bytes that are as they should be.
pub(crate) async fn verify(ways: &Ways, written: &[Written], mut progress: impl FnMut(u64)) -> Result<(), FlashError> {
    let mut free: Vec<Buffer> = Vec::new();
    let mut running: VecDeque<(Written, JoinHandle<_>)> = VecDeque::new();
    let mut next = written.iter();
    loop {
        while running.len() < DEPTH
            && let Some(piece) = next.next()
        {
            let buffer = free.pop().unwrap_or_else(|| Buffer::new(CHUNK));
            let by_ring = ways.by_ring(piece.length);
            let task = tokio_uring::spawn(read_part(ways.ring.clone(), buffer, by_ring, piece.offset));
            running.push_back((piece.clone(), task));
        }
        let Some((piece, task)) = running.pop_front() else { return Ok(()) };
        let failed = |error| FlashError::ReadBack { offset: piece.offset, error };
        let mut buffer: Buffer = task.await.expect("a read does not panic").map_err(failed)?;
        let by_ring = ways.by_ring(piece.length);
        let at = piece.offset + by_ring as u64;
        ways.file.read_exact_at(&mut buffer[by_ring..piece.length], at).map_err(failed)?;
        if blake3::hash(&buffer[..piece.length]) != piece.hash {
            return Err(FlashError::Differs { offset: piece.offset, length: piece.length });
        }
        progress(piece.length as u64);
        free.push(buffer);
    }
}

async fn read_part(file: Rc<RingFile>, buffer: Buffer, length: usize, offset: u64) -> io::Result<Buffer> {
    let (bytes, start) = buffer.into_parts();
    if length == 0 {
        return Ok(Buffer::from_parts(bytes, start));
    }
    let (done, part) = file.read_exact_at(bytes.slice(start..start + length), offset).await;
    done?;
    Ok(Buffer::from_parts(part.into_inner(), start))
}

/// What lies between what was written, up to `end`.
pub(crate) fn holes(written: &[Written], from: u64, end: u64) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = from;
    for piece in written {
        if piece.offset > at {
            holes.push(at..piece.offset);
        }
        at = at.max(piece.end());
    }
    if end > at {
        holes.push(at..end);
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_lies_between() {
        let at = |offset, length| Written { offset, length, hash: blake3::hash(b"") };
        assert_eq!(holes(&[], 10, 20).first(), Some(&(10..20)));
        assert_eq!(holes(&[at(10, 5), at(20, 5)], 10, 30), [15..20, 25..30]);
        assert_eq!(holes(&[at(12, 8)], 10, 20).first(), Some(&(10..12)));
        assert!(holes(&[at(10, 10)], 10, 20).is_empty());
    }
}
