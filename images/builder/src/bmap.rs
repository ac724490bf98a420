//! Which blocks of an image have data, so that a writer skips the rest: the `.bmap` file of bmap-tools, version 2.0.
//!
//! Blocks of 4096 bytes; a block of zeros counts as a hole, whatever the file system that holds the image says, so the map
//! depends on the image's bytes alone. The exception are zeros that mean something, such as a free entry of a FAT: the
//! disk may hold something else there, and a writer leaves holes as they are. Each range has its SHA-256, and so has the map itself, computed with the
//! place of its own checksum as zeros. The form: <https://github.com/yoctoproject/bmaptool>.

use crate::ImageError;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    io::{self, Read},
    ops,
};

/// Longest file that is taken for a map: each range of an image has a line.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// A run of blocks with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first block.
    pub first: u64,
    /// The last block.
    pub last: u64,
    /// SHA-256 of their bytes.
    pub sha256: [u8; 32],
}

/// What an image has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its length, bytes.
    pub bytes: u64,
    /// Its data, in order.
    pub ranges: Vec<Range>,
}

impl Map {
    /// Reads an image to its end.
    ///
    /// # Errors
    /// Of the reader.
    pub fn of(image: impl Read) -> io::Result<Self> {
        Self::with(image, &[])
    }

    /// Reads an image to its end, in which the bytes of `used`, sorted, are data also where they are zeros.
    ///
    /// # Errors
    /// Of the reader.
    pub fn with(mut image: impl Read, used: &[ops::Range<u64>]) -> io::Result<Self> {
        let (mut bytes, mut number, mut ranges) = (0, 0, Vec::new());
        let mut open: Option<(u64, Sha256)> = None;
        let mut block = [0; BLOCK];
        loop {
            let length = fill(&mut image, &mut block)?;
            let here = bytes..bytes + length as u64;
            let is_used = used.iter().any(|used| used.start < here.end && here.start < used.end);
            if is_used || block[..length].iter().any(|byte| *byte != 0) {
                open.get_or_insert_with(|| (number, Sha256::new())).1.update(&block[..length]);
            } else if let Some((first, hasher)) = open.take() {
                ranges.push(Range { first, last: number - 1, sha256: hasher.finalize().into() });
            }
            bytes += length as u64;
            if length < BLOCK {
                break;
            }
            number += 1;
        }
        if let Some((first, hasher)) = open {
            ranges.push(Range { first, last: number, sha256: hasher.finalize().into() });
        }
        Ok(Self { bytes, ranges })
    }

    /// Blocks with data.
    pub fn mapped(&self) -> u64 {
        self.ranges.iter().map(|range| range.last - range.first + 1).sum()
    }

    /// The file's text.
    pub fn xml(&self) -> String {
        let unsummed = self.xml_with(&"0".repeat(64));
        let sum = hex(&Sha256::digest(unsummed.as_bytes()).into());
        self.xml_with(&sum)
    }

    /// Reads the file's text: version 2 with SHA-256, as bmap-tools writes it, whose sum of itself must hold.
    ///
    /// # Errors
    /// [`ImageError::Map`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        check_sum(text)?;
        let text = without_comments(text)?;
        let version = field(&text, "<bmap version=\"", "\"")?;
        if !version.starts_with("2.") || element(&text, "ChecksumType")? != "sha256" {
            return Err(bad("it is not of version 2 with SHA-256"));
        }
        let (bytes, blocks) = (number(element(&text, "ImageSize")?)?, number(element(&text, "BlocksCount")?)?);
        if number(element(&text, "BlockSize")?)? != BLOCK as u64 || bytes.div_ceil(BLOCK as u64) != blocks {
            return Err(bad("its blocks are not the image's, of 4096 bytes"));
        }
        let mut ranges: Vec<Range> = Vec::new();
        for line in element(&text, "BlockMap")?.split("<Range ").skip(1) {
            let range = range(line)?;
            let after_last = ranges.last().is_none_or(|last| last.last < range.first);
            if !after_last || range.first > range.last || range.last >= blocks {
                return Err(bad("its ranges are not in order, or not in the image"));
            }
            ranges.push(range);
        }
        Ok(Self { bytes, ranges })
    }

    fn xml_with(&self, sum: &str) -> String {
        let blocks = self.bytes.div_ceil(BLOCK as u64);
        let mut xml = format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n  <ImageSize> {} </ImageSize>\n  <BlockSize> {BLOCK} \
             </BlockSize>\n  <BlocksCount> {blocks} </BlocksCount>\n  <MappedBlocksCount> {} </MappedBlocksCount>\n  \
             <ChecksumType> sha256 </ChecksumType>\n  <BmapFileChecksum> {sum} </BmapFileChecksum>\n  <BlockMap>\n",
            self.bytes,
            self.mapped(),
        );
        for range in &self.ranges {
            let blocks = if range.first == range.last {
                range.first.to_string()
            } else {
                format!("{}-{}", range.first, range.last)
            };
            writeln!(xml, "    <Range chksum=\"{}\"> {blocks} </Range>", hex(&range.sha256))
                .expect("a String takes all text");
        }
        xml + "  </BlockMap>\n</bmap>\n"
    }
}

/// The sum is of the whole text with zeros in its place.
fn check_sum(text: &str) -> Result<(), ImageError> {
    let sum = element(text, "BmapFileChecksum")?;
    let unsummed = text.replacen(sum, &"0".repeat(sum.len()), 1);
    if hex(&Sha256::digest(unsummed.as_bytes()).into()) == sum.to_ascii_lowercase() {
        return Ok(());
    }
    Err(bad("it is damaged: its sum is not that of its text"))
}

fn without_comments(text: &str) -> Result<String, ImageError> {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once("<!--") {
        kept.push_str(before);
        rest = after.split_once("-->").ok_or_else(|| bad("a comment does not end"))?.1;
    }
    Ok(kept + rest)
}

/// `chksum="HEX"> 3-7 </Range>`
fn range(line: &str) -> Result<Range, ImageError> {
    let sum = field(line, "chksum=\"", "\"")?;
    let blocks = field(line, ">", "</Range>")?.trim();
    let (first, last) = blocks.split_once('-').unwrap_or((blocks, blocks));
    Ok(Range { first: number(first)?, last: number(last)?, sha256: unhex(sum)? })
}

fn element<'a>(text: &'a str, name: &str) -> Result<&'a str, ImageError> {
    field(text, &format!("<{name}>"), &format!("</{name}>")).map(str::trim)
}

fn field<'a>(text: &'a str, before: &str, after: &str) -> Result<&'a str, ImageError> {
    let found = text.split_once(before).and_then(|(_, rest)| rest.split_once(after));
    found.map(|(field, _)| field).ok_or_else(|| ImageError::Map(format!("it has no {before}…{after}")))
}

fn number(text: &str) -> Result<u64, ImageError> {
    text.trim().parse().map_err(|_| ImageError::Map(format!("{text:?} is no number")))
}

fn unhex(text: &str) -> Result<[u8; 32], ImageError> {
    let mut bytes = [0; 32];
    let digits = text.is_ascii() && text.len() == 64;
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)).take_while(|_| digits) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad("a range's sum is no SHA-256"))?;
    }
    if digits { Ok(bytes) } else { Err(bad("a range's sum is no SHA-256")) }
}

fn bad(what: &str) -> ImageError {
    ImageError::Map(what.to_owned())
}

/// Reads until `block` is full or the end; how much.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match reader.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(image: &[u8]) -> Vec<(u64, u64)> {
        Map::of(image).unwrap().ranges.iter().map(|range| (range.first, range.last)).collect()
    }

    #[test]
    fn zeros_are_holes() {
        let mut image = vec![0; BLOCK * 6];
        assert_eq!(ranges(&image), []);
        image[0] = 1;
        image[BLOCK * 2] = 1;
        image[BLOCK * 4 - 1] = 1;
        image[BLOCK * 6 - 1] = 1;
        assert_eq!(ranges(&image), [(0, 0), (2, 3), (5, 5)]);
        assert_eq!(Map::of(image.as_slice()).unwrap().mapped(), 4);
    }

    #[test]
    fn zeros_that_are_used_are_data() {
        let image = vec![0; BLOCK * 6];
        let used = [1..2, BLOCK as u64 * 2 - 1..BLOCK as u64 * 3, BLOCK as u64 * 5..BLOCK as u64 * 5];
        let map = Map::with(image.as_slice(), &used).unwrap();
        assert_eq!(map.ranges.iter().map(|range| (range.first, range.last)).collect::<Vec<_>>(), [(0, 2)]);
    }

    #[test]
    fn the_last_block_may_be_short() {
        let image = vec![1; BLOCK + 7];
        assert_eq!(ranges(&image), [(0, 1)]);
        let map = Map::of(image.as_slice()).unwrap();
        assert_eq!((map.bytes, map.ranges[0].sha256), (BLOCK as u64 + 7, Sha256::digest(&image).into()));
        assert_eq!(ranges(&[]), []);
    }

    #[test]
    fn reads_what_it_writes() {
        let mut image = vec![0; BLOCK * 9 + 5];
        [0, BLOCK * 2, BLOCK * 3, BLOCK * 9 + 4].into_iter().for_each(|at| image[at] = 1);
        let map = Map::of(image.as_slice()).unwrap();
        assert_eq!(Map::parse(&map.xml()).unwrap(), map);
        let empty = Map::of([].as_slice()).unwrap();
        assert_eq!(Map::parse(&empty.xml()).unwrap(), empty);
    }

    #[test]
    fn what_is_no_map_of_ours_is_refused() {
        let map = Map::of([1; 10].as_slice()).unwrap();
        let resummed = |text: &str| {
            let (before, rest) = text.split_once("<BmapFileChecksum> ").unwrap();
            let unsummed = format!("{before}<BmapFileChecksum> {}{}", "0".repeat(64), &rest[64..]);
            let sum = hex(&Sha256::digest(unsummed.as_bytes()).into());
            unsummed.replacen(&"0".repeat(64), &sum, 1)
        };
        let reason =
            |from: &str, to: &str| Map::parse(&resummed(&map.xml().replace(from, to))).unwrap_err().to_string();
        assert!(Map::parse(&map.xml().replace(" 10 ", " 11 ")).unwrap_err().to_string().contains("damaged"));
        assert!(reason("2.0", "1.3").contains("version 2"));
        assert!(reason("> 0 <", "> 1 <").contains("not in the image"));
        assert!(reason("> 0 <", "> x <").contains("\"x\" is no number"));
        assert!(reason("chksum=\"", "chksum=\"0").contains("SHA-256"));
        assert!(reason("</Range>", "</Range><Range chksum=\"").contains("it has no"));
        assert!(reason("<BlockMap>", "<!-- <BlockMap>").contains("comment"));
        assert!(Map::parse("").is_err());
    }

    #[test]
    fn the_map_sums_itself() {
        let xml = Map::of([1; 10].as_slice()).unwrap().xml();
        let (before, rest) = xml.split_once("<BmapFileChecksum> ").unwrap();
        let (sum, after) = rest.split_at(64);
        let unsummed = format!("{before}<BmapFileChecksum> {}{after}", "0".repeat(64));
        assert_eq!(sum, hex(&Sha256::digest(unsummed.as_bytes()).into()));
        assert!(xml.contains("<Range chksum=") && xml.contains("> 0 </Range>"));
    }
}
