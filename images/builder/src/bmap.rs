//! Which blocks of an image have data, so that a writer skips the rest: the `.bmap` file of bmap-tools, version 2.0.
//!
//! Blocks of 4096 bytes; a block of zeros only counts as a hole, whatever the file system that holds the image says, so
//! the map depends on the image's bytes alone. Each range has its SHA-256, and so has the map itself, computed with the
//! place of its own checksum as zeros. The form: <https://github.com/yoctoproject/bmaptool>.

use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    io::{self, Read},
};

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
    pub fn of(mut image: impl Read) -> io::Result<Self> {
        let (mut bytes, mut number, mut ranges) = (0, 0, Vec::new());
        let mut open: Option<(u64, Sha256)> = None;
        let mut block = [0; BLOCK];
        loop {
            let length = fill(&mut image, &mut block)?;
            let has_data = block[..length].iter().any(|byte| *byte != 0);
            if has_data {
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
    fn the_last_block_may_be_short() {
        let image = vec![1; BLOCK + 7];
        assert_eq!(ranges(&image), [(0, 1)]);
        let map = Map::of(image.as_slice()).unwrap();
        assert_eq!((map.bytes, map.ranges[0].sha256), (BLOCK as u64 + 7, Sha256::digest(&image).into()));
        assert_eq!(ranges(&[]), []);
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
