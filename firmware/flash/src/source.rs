//! What an image has, in pieces, from a file or a stream, plain or compressed; read, hashed and decoded on a thread of its
//! own.
//!
//! ```text
//!  head (64 KiB) │ chunk (1 MiB): runs of grains (64 KiB) that are not all zeros │ chunk │ …
//! ```
//! A block map says what to read, and each of its ranges is checked; without one a plain file's holes are passed over.
//! Either way a grain of zeros is a hole: the target's holes are zeros in the end.

use crate::{
    buffer::Buffer,
    error::{FlashError, io_error},
};
use images_builder::bmap::{self, BLOCK, Map};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    mem,
    ops::Range,
    path::{Path, PathBuf},
};

/// What is held back until everything else is there.
pub(crate) const HEAD: usize = 1 << 16;
/// Bytes of a chunk, which is a write.
pub(crate) const CHUNK: usize = 1 << 20;
const GRAIN: usize = 1 << 16;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Longest image, so that sums of offsets fit.
const IMAGE_BYTES_MAX: u64 = 1 << 45;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// A piece of an image.
pub(crate) enum Piece {
    /// Its first 64 KiB, or fewer where it is shorter.
    Head(Vec<u8>),
    /// A chunk and its runs with data.
    Chunk(Chunk),
}

/// A part of an image that has data.
pub(crate) struct Chunk {
    /// Where in the image it begins.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) buffer: Buffer,
    /// How many of them were read.
    pub(crate) filled: usize,
    /// What of them is data.
    pub(crate) runs: Vec<Run>,
}

/// A run of a chunk, and its hash.
pub(crate) struct Run {
    pub(crate) range: Range<usize>,
    pub(crate) hash: blake3::Hash,
}

/// The block map beside the image at `path`: `IMAGE.bmap`, and for `IMAGE.zst` also that of `IMAGE`.
///
/// # Errors
/// [`FlashError::File`], [`FlashError::Image`] where it is none.
pub fn block_map(path: &Path) -> Result<Option<Map>, FlashError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".bmap");
    let plain = path.extension().is_some_and(|extension| extension == "zst");
    let candidates = [Some(PathBuf::from(beside)), plain.then(|| path.with_extension("bmap"))];
    let Some(found) = candidates.into_iter().flatten().find(|path| path.exists()) else { return Ok(None) };
    let length = fs::metadata(&found).map_err(FlashError::at(&found))?.len();
    if length > bmap::TEXT_BYTES_MAX {
        return Err(FlashError::Image(format!("{} is too long for a block map", found.display())));
    }
    let text = fs::read_to_string(&found).map_err(FlashError::at(&found))?;
    let parsed = Map::parse(&text).map_err(|error| FlashError::Image(format!("{}: {error}", found.display())))?;
    Ok(Some(parsed))
}

/// An image that is being read.
pub(crate) struct Source {
    input: Input,
    position: u64,
    /// What to read; all without.
    regions: Option<Vec<Region>>,
    /// The image's length where it is known before it was read.
    pub(crate) bytes: Option<u64>,
}

struct Region {
    range: Range<u64>,
    sha256: Option<[u8; 32]>,
}

enum Input {
    Plain(File),
    Stream(Box<dyn Read + Send>),
}

impl Source {
    /// Opens `image`, of which `map` tells.
    pub(crate) fn open(image: &Image, map: Option<&Map>) -> Result<Self, FlashError> {
        let (input, bytes, holes) = match image {
            Image::Stdin => (Input::Stream(decoded(io::stdin())?), None, None),
            Image::File(path) => open_file(path)?,
        };
        if let (Some(bytes), Some(map)) = (bytes, map)
            && bytes != map.bytes
        {
            let reason = format!("it has {bytes} bytes, its block map tells of {}", map.bytes);
            return Err(FlashError::Image(reason));
        }
        let regions = map.map(regions_of).or(holes);
        Ok(Self { input, position: 0, regions, bytes: bytes.or(map.map(|map| map.bytes)) })
    }

    /// Bytes that will be read, where that is known.
    pub(crate) fn to_read(&self) -> Option<u64> {
        let lengths = |regions: &Vec<Region>| regions.iter().map(|region| region.range.end - region.range.start).sum();
        self.regions.as_ref().map(lengths).or(self.bytes)
    }

    /// Hands out every piece in order; the image's length. `buffer` gives memory and may wait, `sink` takes pieces and
    /// says whether more are wanted.
    pub(crate) fn read(
        mut self,
        mut buffer: impl FnMut() -> Option<Buffer>,
        mut sink: impl FnMut(Piece) -> bool,
    ) -> Result<u64, FlashError> {
        let mut head = Head::new();
        let to_end = self.regions.is_none();
        let everything = || vec![Region { range: 0..IMAGE_BYTES_MAX, sha256: None }];
        for region in self.regions.take().unwrap_or_else(everything) {
            let mut sum = region.sha256.map(|_| Sha256::new());
            self.go_to(region.range.start)?;
            while self.position < region.range.end {
                let Some(buffer) = buffer() else { return Ok(self.position) };
                let chunk = self.chunk(buffer, region.range.end)?;
                let bytes = &chunk.buffer[..chunk.filled];
                sum.iter_mut().for_each(|sum| sum.update(bytes));
                let ended = chunk.filled < wanted(chunk.offset, region.range.end);
                let wants_more = head.take(chunk.offset, bytes).is_none_or(&mut sink) && sink(Piece::Chunk(chunk));
                if !wants_more {
                    return Ok(self.position);
                }
                if ended && to_end {
                    break;
                }
                if ended {
                    return Err(FlashError::Image(format!("it ends at byte {}", self.position)));
                }
            }
            region.check(sum)?;
        }
        if to_end && self.position == IMAGE_BYTES_MAX {
            return Err(FlashError::Image("it does not end".to_owned()));
        }
        let bytes = self.end(to_end)?;
        if let Some(head) = head.rest(bytes) {
            sink(head);
        }
        Ok(bytes)
    }

    fn chunk(&mut self, mut buffer: Buffer, end: u64) -> Result<Chunk, FlashError> {
        let offset = self.position;
        let filled = self.fill(&mut buffer[..wanted(offset, end)])?;
        let in_head = (HEAD as u64).saturating_sub(offset).min(filled as u64) as usize;
        let runs = runs(&buffer[..filled], in_head);
        Ok(Chunk { offset, buffer, filled, runs })
    }

    /// The image's length, now that all of it was read; a stream is read out, since its end may say that it is damaged.
    fn end(&mut self, is_read_out: bool) -> Result<u64, FlashError> {
        if is_read_out {
            return Ok(self.position);
        }
        match &mut self.input {
            Input::Plain(_) => Ok(self.bytes.unwrap_or(self.position)),
            Input::Stream(stream) => {
                let more = io::copy(stream, &mut io::sink()).map_err(unreadable(self.position))?;
                let bytes = self.position + more;
                match self.bytes {
                    Some(expected) if expected != bytes => {
                        Err(FlashError::Image(format!("it has {bytes} bytes, its block map tells of {expected}")))
                    }
                    _ => Ok(bytes),
                }
            }
        }
    }

    fn go_to(&mut self, offset: u64) -> Result<(), FlashError> {
        let at = self.position;
        let passed = match &mut self.input {
            Input::Plain(file) => file.seek(SeekFrom::Start(offset)).map_err(unreadable(offset))?,
            Input::Stream(stream) => {
                let skipped = io::copy(&mut stream.take(offset - at), &mut io::sink()).map_err(unreadable(at))?;
                at + skipped
            }
        };
        self.position = passed;
        if passed < offset { Err(FlashError::Image(format!("it ends at byte {passed}"))) } else { Ok(()) }
    }

    /// Reads until `bytes` is full or the end; how much.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, FlashError> {
        let mut length = 0;
        while length < bytes.len() {
            let read = match &mut self.input {
                Input::Plain(file) => file.read(&mut bytes[length..]),
                Input::Stream(stream) => stream.read(&mut bytes[length..]),
            };
            match read {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(self.position + length as u64)(error)),
            }
        }
        self.position += length as u64;
        Ok(length)
    }
}

/// What a chunk at `offset` of a region that ends at `end` may have: chunks lie between multiples of their length.
fn wanted(offset: u64, end: u64) -> usize {
    let boundary = (offset / CHUNK as u64 + 1) * CHUNK as u64;
    (end.min(boundary) - offset) as usize
}

impl Region {
    fn check(&self, sum: Option<Sha256>) -> Result<(), FlashError> {
        let found = sum.map(|sum| <[u8; 32]>::from(sum.finalize()));
        if found == self.sha256 {
            return Ok(());
        }
        let Range { start, end } = self.range;
        Err(FlashError::Image(format!("bytes {start} to {end} are not those of its block map")))
    }
}

/// The head, gathered from the chunks that have parts of it, and handed out once.
struct Head {
    bytes: Vec<u8>,
    is_out: bool,
}

impl Head {
    fn new() -> Self {
        Self { bytes: vec![0; HEAD], is_out: false }
    }

    /// Keeps what `bytes` at `offset` have of it; the whole once they reach past it.
    fn take(&mut self, offset: u64, bytes: &[u8]) -> Option<Piece> {
        if self.is_out {
            return None;
        }
        let from = offset.min(HEAD as u64) as usize;
        let length = bytes.len().min(HEAD - from);
        self.bytes[from..from + length].copy_from_slice(&bytes[..length]);
        if offset + (bytes.len() as u64) < HEAD as u64 { None } else { self.rest(u64::MAX) }
    }

    /// What there is of it in an image of `bytes`, unless it is out.
    fn rest(&mut self, bytes: u64) -> Option<Piece> {
        if mem::replace(&mut self.is_out, true) {
            return None;
        }
        self.bytes.truncate(bytes.min(HEAD as u64) as usize);
        Some(Piece::Head(mem::take(&mut self.bytes)))
    }
}

type Opened = (Input, Option<u64>, Option<Vec<Region>>);

fn open_file(path: &Path) -> Result<Opened, FlashError> {
    let mut file = File::open(path).map_err(FlashError::at(path))?;
    let metadata = file.metadata().map_err(FlashError::at(path))?;
    let mut magic = Vec::new();
    if metadata.is_file() {
        (&file).take(4).read_to_end(&mut magic).map_err(FlashError::at(path))?;
        file.rewind().map_err(FlashError::at(path))?;
    }
    if magic == ZSTD || !metadata.is_file() {
        return Ok((Input::Stream(decoded(file)?), None, None));
    }
    let bytes = metadata.len();
    let holes = data_of(&file, bytes).map_err(FlashError::at(path))?;
    file.rewind().map_err(FlashError::at(path))?;
    Ok((Input::Plain(file), Some(bytes), Some(holes)))
}

/// What `input` says, decompressed where it is zstd.
fn decoded(mut input: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>, FlashError> {
    let mut magic = Vec::new();
    input.by_ref().take(4).read_to_end(&mut magic).map_err(unreadable(0))?;
    let is_zstd = magic == ZSTD;
    let whole = io::Cursor::new(magic).chain(input);
    if !is_zstd {
        return Ok(Box::new(BufReader::with_capacity(CHUNK, whole)));
    }
    Ok(Box::new(zstd::Decoder::new(whole).map_err(unreadable(0))?))
}

fn regions_of(map: &Map) -> Vec<Region> {
    let region = |range: &bmap::Range| Region {
        range: range.first * BLOCK as u64..((range.last + 1) * BLOCK as u64).min(map.bytes),
        sha256: Some(range.sha256),
    };
    map.ranges.iter().map(region).collect()
}

/// What of a file is no hole, in whole grains.
fn data_of(file: &File, bytes: u64) -> io::Result<Vec<Region>> {
    let mut regions: Vec<Region> = Vec::new();
    let mut at = 0;
    while at < bytes {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(io_error(errno)),
        };
        let hole = lseek(file, data as i64, Whence::SeekHole).map_err(io_error)? as u64;
        let grain = GRAIN as u64;
        let start = (data / grain * grain).max(at);
        at = hole.div_ceil(grain).saturating_mul(grain).min(bytes);
        match regions.last_mut() {
            Some(last) if last.range.end >= start => last.range.end = at,
            _ => regions.push(Region { range: start..at, sha256: None }),
        }
    }
    Ok(regions)
}

/// Runs of grains with data, from byte `from`, which belongs to no run before it.
fn runs(bytes: &[u8], from: usize) -> Vec<Run> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for start in (from..bytes.len()).step_by(GRAIN) {
        let end = bytes.len().min(start + GRAIN);
        if is_zero(&bytes[start..end]) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges.into_iter().map(|range| Run { hash: blake3::hash(&bytes[range.clone()]), range }).collect()
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

fn unreadable(at: u64) -> impl FnOnce(io::Error) -> FlashError {
    move |error| FlashError::Image(format!("cannot be read at byte {at}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    /// The image as its pieces say, holes as zeros.
    fn assembled(source: Source) -> Result<Vec<u8>, FlashError> {
        let mut image = Vec::new();
        let mut put = |offset: usize, bytes: &[u8]| {
            image.resize(image.len().max(offset + bytes.len()), 0);
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let bytes = source.read(
            || Some(Buffer::new(CHUNK)),
            |piece| {
                match piece {
                    Piece::Head(head) => put(0, &head),
                    Piece::Chunk(chunk) => {
                        for run in chunk.runs {
                            let bytes = &chunk.buffer[run.range.clone()];
                            assert_eq!(blake3::hash(bytes), run.hash);
                            assert!(chunk.offset + run.range.start as u64 >= HEAD as u64);
                            put(chunk.offset as usize + run.range.start, bytes);
                        }
                    }
                }
                true
            },
        )?;
        image.resize(bytes as usize, 0);
        Ok(image)
    }

    fn written(folder: &Path, image: &[u8]) -> Image {
        let path = folder.join("image");
        let file = File::create(&path).unwrap();
        file.set_len(image.len() as u64).unwrap();
        for (number, block) in image.chunks(BLOCK).enumerate().filter(|(_, block)| !is_zero(block)) {
            file.write_all_at(block, (number * BLOCK) as u64).unwrap();
        }
        Image::File(path)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_the_way_the_image_is_the_same(
            bytes in prop_oneof![0..200_000_usize, 2_000_000..5_000_000_usize],
            data in prop::collection::vec((0..5_000_000_usize, 1..300_000_usize), 0..6),
        ) {
            let mut image = vec![0; bytes];
            for (from, length) in data {
                let to = bytes.min(from + length);
                image[from.min(to)..to].fill(0xa5);
            }
            let folder = tempfile::tempdir().unwrap();
            let file = written(folder.path(), &image);
            let map = Map::of(image.as_slice()).unwrap();
            prop_assert!(assembled(Source::open(&file, None).unwrap()).unwrap() == image, "holes");
            prop_assert!(assembled(Source::open(&file, Some(&map)).unwrap()).unwrap() == image, "block map");
            let packed = folder.path().join("image.zst");
            fs::write(&packed, zstd::encode_all(image.as_slice(), 1).unwrap()).unwrap();
            let packed = Image::File(packed);
            prop_assert!(assembled(Source::open(&packed, None).unwrap()).unwrap() == image, "zstd");
            prop_assert!(assembled(Source::open(&packed, Some(&map)).unwrap()).unwrap() == image, "zstd, block map");
        }
    }

    #[test]
    fn what_its_block_map_does_not_tell_of_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = vec![1; 3 << 20];
        let map = Map::of(image.as_slice()).unwrap();
        image[2 << 20] = 2;
        let file = written(folder.path(), &image);
        let reason = |image: &Image| {
            let read = Source::open(image, Some(&map)).and_then(assembled);
            read.unwrap_err().to_string()
        };
        assert_eq!(reason(&file), "the image: bytes 0 to 3145728 are not those of its block map");
        let packed = folder.path().join("image.zst");
        let whole = zstd::encode_all(vec![1; 3 << 20].as_slice(), 1).unwrap();
        fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
        assert!(reason(&Image::File(packed.clone())).contains("cannot be read"));
        fs::write(&packed, zstd::encode_all(vec![1; 2 << 20].as_slice(), 1).unwrap()).unwrap();
        assert_eq!(reason(&Image::File(packed.clone())), "the image: it ends at byte 2097152");
        fs::write(&packed, zstd::encode_all(vec![1; 4 << 20].as_slice(), 1).unwrap()).unwrap();
        assert!(reason(&Image::File(packed)).contains("its block map tells of 3145728"));
    }

    #[test]
    fn a_file_s_holes_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = vec![0; 64 << 20];
        image[40 << 20] = 1;
        let source = Source::open(&written(folder.path(), &image), None).unwrap();
        assert_eq!((source.to_read(), source.bytes), (Some(GRAIN as u64), Some(64 << 20)));
    }
}
