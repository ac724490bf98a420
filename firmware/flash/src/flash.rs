//! The steps, in their order: nothing that can be refused is left for later than the first write.

use crate::{
    buffer::Buffer,
    config,
    error::{FlashError, io_error},
    source::{CHUNK, HEAD, Image, Piece, Source, is_zero},
    target::{Opened, Target, too_small},
    writer::{DEPTH, Ways, Writer, Written, holes, verify},
};
use firmware_gpt as gpt;
use images_builder::bmap::Map;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::mpsc as async_mpsc;

/// What is to be done.
#[derive(Debug)]
pub struct Job {
    /// The image.
    pub image: Image,
    /// Its block map.
    pub map: Option<Map>,
    /// Where it goes.
    pub target: Target,
    /// `machine.toml` for its boot partition; who gives it has checked it.
    pub config: Option<String>,
    /// Read back what was written.
    pub verify: bool,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the image that were read, of how many.
    Write(u64, Option<u64>),
    /// What lies between the data becomes zeros.
    Clear,
    /// Bytes that were read back and are right, of how many.
    Verify(u64, u64),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The image's length.
    pub image_bytes: u64,
    /// The target's length.
    pub target_bytes: u64,
    /// Bytes that were written.
    pub written: u64,
    /// Time until they were on the disk.
    pub writing: Duration,
    /// Time that reading them back took.
    pub verifying: Option<Duration>,
    /// The partition table's second copy moved to the disk's end.
    pub table_moved: bool,
}

/// Does `job`.
///
/// # Errors
/// [`FlashError`]; the target then has a mark that it is not whole, unless [`FlashError::nothing_written`].
pub fn flash(job: Job, mut progress: impl FnMut(Step)) -> Result<Report, FlashError> {
    let source = Source::open(&job.image, job.map.as_ref()).map_err(FlashError::before_writing)?;
    source.bytes.map_or(Ok(()), long_enough).map_err(FlashError::before_writing)?;
    let opened = job.target.open(source.bytes)?;
    let path = job.target.path();
    let began = Instant::now();
    tokio_uring::start(async {
        let ways = Ways::of(&opened).map_err(FlashError::at(path))?;
        opened.mark().map_err(FlashError::write(0))?;
        let Data { mut head, written, bytes } = write_data(source, &ways, &opened, &mut progress).await?;
        let target_bytes = if opened.grows { opened.bytes.max(bytes) } else { opened.bytes };
        progress(Step::Clear);
        for hole in holes(&written, head.len() as u64, bytes) {
            clear(&opened.file, hole)?;
        }
        opened.file.sync_all().map_err(FlashError::write(0))?;
        let writing = began.elapsed();
        let mut total: u64 = written.iter().map(|piece| piece.length as u64).sum();
        let verifying = if job.verify { Some(read_back(&ways, &written, &mut progress).await?) } else { None };
        if let Some(text) = &job.config {
            let place = gpt::boot_partition(&head).map_err(FlashError::Image)?;
            config::inject(&opened.file, place, text).map_err(|error| FlashError::Config(error.to_string()))?;
        }
        let last = end(&opened, &mut head, bytes, target_bytes)?;
        total += last.iter().map(|piece| piece.length as u64).sum::<u64>();
        if job.verify {
            verify(&ways, &last, |_| {}).await?;
        }
        Ok(Report {
            image_bytes: bytes,
            target_bytes,
            written: total,
            writing,
            verifying,
            table_moved: last.len() > 1 && target_bytes > bytes,
        })
    })
}

struct Data {
    head: Vec<u8>,
    written: Vec<Written>,
    bytes: u64,
}

/// Everything but the head, from a thread that reads.
async fn write_data(
    source: Source,
    ways: &Ways,
    opened: &Opened,
    progress: &mut impl FnMut(Step),
) -> Result<Data, FlashError> {
    let to_read = source.to_read();
    let (free, buffers) = mpsc::channel();
    let (pieces, mut arriving) = async_mpsc::channel(DEPTH);
    for _ in 0..DEPTH * 2 {
        free.send(Buffer::new(CHUNK)).expect("its receiver is here");
    }
    let reader =
        thread::spawn(move || source.read(|| buffers.recv().ok(), |piece| pieces.blocking_send(piece).is_ok()));
    let mut writer = Writer::new(ways);
    let (mut head, mut read) = (Vec::new(), 0);
    while let Some(piece) = arriving.recv().await {
        match piece {
            Piece::Head(bytes) => head = bytes,
            Piece::Chunk(chunk) => {
                let end = chunk.runs.last().map_or(0, |run| chunk.offset + run.range.end as u64);
                if !opened.grows && end > opened.bytes {
                    return Err(FlashError::Image(format!("it does not fit: {}", too_small(opened.bytes, end))));
                }
                read += chunk.filled as u64;
                if let Some(buffer) = writer.write(chunk).await? {
                    // The reader may have ended.
                    let _ = free.send(buffer);
                }
                progress(Step::Write(read, to_read));
            }
        }
    }
    let written = writer.finish().await?;
    let bytes = reader.join().expect("the reader does not panic")?;
    long_enough(bytes)?;
    if !opened.grows && bytes > opened.bytes {
        return Err(FlashError::Image(format!("it does not fit: {}", too_small(opened.bytes, bytes))));
    }
    if opened.grows && bytes > opened.bytes {
        opened.file.set_len(bytes).map_err(FlashError::write(bytes))?;
    }
    Ok(Data { head, written, bytes })
}

fn long_enough(bytes: u64) -> Result<(), FlashError> {
    if bytes < HEAD as u64 { Err(FlashError::Image(format!("{bytes} bytes are no disk"))) } else { Ok(()) }
}

async fn read_back(ways: &Ways, written: &[Written], progress: &mut impl FnMut(Step)) -> Result<Duration, FlashError> {
    let began = Instant::now();
    let total = written.iter().map(|piece| piece.length as u64).sum();
    let mut right = 0;
    verify(ways, written, |bytes| {
        right += bytes;
        progress(Step::Verify(right, total));
    })
    .await?;
    Ok(began.elapsed())
}

/// Makes `hole` zeros: by the disk itself where it can, else it is read, and written where it is not.
fn clear(file: &File, hole: Range<u64>) -> Result<(), FlashError> {
    let length = hole.end - hole.start;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, mode, hole.start as i64, length as i64) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => write_zeros(file, hole),
        Err(errno) => Err(FlashError::Write { offset: hole.start, error: io_error(errno) }),
    }
}

fn write_zeros(file: &File, hole: Range<u64>) -> Result<(), FlashError> {
    let mut bytes = vec![0; CHUNK];
    let mut at = hole.start;
    while at < hole.end {
        let part = &mut bytes[..(hole.end - at).min(CHUNK as u64) as usize];
        file.read_exact_at(part, at).map_err(|error| FlashError::ReadBack { offset: at, error })?;
        if !is_zero(part) {
            part.fill(0);
            file.write_all_at(part, at).map_err(FlashError::write(at))?;
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// The partition table's second copy, then the head: with it the target is whole.
fn end(opened: &Opened, head: &mut [u8], bytes: u64, target_bytes: u64) -> Result<Vec<Written>, FlashError> {
    let mut last = Vec::new();
    let put = |offset: u64, bytes: &[u8]| -> Result<Written, FlashError> {
        let synced = opened.file.write_all_at(bytes, offset).and_then(|()| opened.file.sync_all());
        synced.map_err(FlashError::write(offset))?;
        Ok(Written::of(offset, bytes))
    };
    if gpt::is_there(head) {
        let whole_sectors = target_bytes.max(bytes) / gpt::SECTOR * gpt::SECTOR;
        let backup = gpt::fit(head, whole_sectors).map_err(FlashError::Image)?;
        last.push(put(backup.offset, &backup.bytes)?);
    }
    debug_assert!(head.len() <= HEAD, "the head is what was held back");
    last.push(put(0, head)?);
    Ok(last)
}

impl FlashError {
    /// Nothing was written.
    pub fn nothing_written(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::File { .. } | Self::NoImage(_))
    }

    fn before_writing(self) -> Self {
        match self {
            Self::Image(reason) => Self::NoImage(reason),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_hole_is_zeros_whichever_way() -> io::Result<()> {
        for clear in [clear, write_zeros] {
            let file = tempfile::tempfile()?;
            file.write_all_at(&vec![7; 3 << 20], 0)?;
            clear(&file, 4096..(2 << 20) + 5).unwrap();
            let mut bytes = vec![0; 3 << 20];
            file.read_exact_at(&mut bytes, 0)?;
            assert!(is_zero(&bytes[4096..(2 << 20) + 5]));
            assert!(bytes[..4096].iter().chain(&bytes[(2 << 20) + 5..]).all(|byte| *byte == 7));
        }
        Ok(())
    }
}
