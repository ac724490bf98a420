//! The head of a snapshot: everything but the frames.
//!
//! ```text
//!  offset   bytes
//!  ┌──────────────────────────────────────────────────────────────────────────────────────────────────────┐
//!  │ 0         8   magic "EMBERIMG"                                                            ┐          │
//!  │ 8         4   version                                                                     │          │
//!  │ 12        4   description_bytes, D                                                        │ sealed   │
//!  │ 16        4   frame count, F                                                              │          │
//!  │ 20        4   device_bytes, V; 0, nothing of the process is on a device                   │          │
//!  │ 24        8   file_bytes: length of the whole file                                        ┘          │
//!  │ 32       32   seal: keyed BLAKE3 of bytes 0 to 32 and of all from 64 to the end of the head          │
//!  │ 64        D   description: identity · registers · process · mappings · extents, as postcard ┐        │
//!  │ 64+D    40F   frame table, each: raw_bytes 4 · compressed_bytes 4 · tag 32                  │ sealed │
//!  │ 64+D+40F  V   device section: what the device wants to find again, of its own making        │        │
//!  │           …   zeros to a multiple of 4096                                                   ┘        │
//!  ├──────────────────────────────────────────────────────────────────────────────────────────────────────┤
//!  │ frames, one after another, each padded to a multiple of 4096 and tagged with its padding             │
//!  └──────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Integers are little-endian. Invariants: every byte of the file is under the seal or a tag; from the first 64 bytes
//! only bounded lengths are believed before the seal is checked; offsets are sums of lengths and stored nowhere; there
//! is one file for one image and key, size of frames and level.

use crate::{
    check::at_most,
    error::SnapshotError,
    frame::{self, Entry, Frame},
    image::{DeviceState, Image, PAGE_BYTES},
    limits::{DESCRIPTION_BYTES_MAX, DEVICE_BYTES_MAX, FRAMES_MAX},
    seal::SealKey,
};

/// What must be read to know how long the head is, bytes.
pub const HEADER_BYTES: usize = 64;
/// The version that this build writes and reads.
pub const VERSION: u32 = 3;

const MAGIC: &[u8; 8] = b"EMBERIMG";
const SEAL_OFFSET: usize = 32;
const ENTRY_BYTES: usize = 40;

/// The first 64 bytes, less magic, version and seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    description_bytes: u32,
    frame_count: u32,
    device_bytes: u32,
    file_bytes: u64,
}

/// What of a head does not depend on its frames.
pub(crate) struct Described {
    description: Vec<u8>,
    device: DeviceState,
}

/// How long the head is that begins with `header`, bytes; at most a few MiB, whatever it says.
///
/// # Errors
/// It is no snapshot, of another version, or says impossible lengths.
pub fn head_bytes(header: &[u8]) -> Result<usize, SnapshotError> {
    Ok(Header::parse(header)?.head_bytes())
}

/// How long the head of an image with so many frames will be, and what describes it.
pub(crate) fn describe(image: &Image, frame_count: usize) -> Result<(usize, Described), SnapshotError> {
    let description =
        postcard::to_stdvec(image).map_err(|error| SnapshotError::Description { reason: error.to_string() })?;
    at_most("bytes of the description", description.len() as u64, DESCRIPTION_BYTES_MAX.into())?;
    at_most("frames", frame_count as u64, FRAMES_MAX as u64)?;
    let device = image.device.clone();
    Ok((padded_bytes(description.len(), frame_count, device.0.len()), Described { description, device }))
}

/// The head as it is stored.
pub(crate) fn write(key: &SealKey, described: &Described, entries: &[Entry], file_bytes: u64) -> Vec<u8> {
    let Described { description, device: DeviceState(device) } = described;
    let head_bytes = padded_bytes(description.len(), entries.len(), device.len());
    let mut head = Vec::with_capacity(head_bytes);
    head.extend_from_slice(MAGIC);
    for field in [VERSION, description.len() as u32, entries.len() as u32, device.len() as u32] {
        head.extend_from_slice(&field.to_le_bytes());
    }
    head.extend_from_slice(&file_bytes.to_le_bytes());
    head.extend_from_slice(&[0; HEADER_BYTES - SEAL_OFFSET]);
    head.extend_from_slice(description);
    for entry in entries {
        head.extend_from_slice(&entry.raw_bytes.to_le_bytes());
        head.extend_from_slice(&entry.compressed_bytes.to_le_bytes());
        head.extend_from_slice(&entry.tag);
    }
    head.extend_from_slice(device);
    head.resize(head_bytes, 0);
    let seal = key.seal(&head[..SEAL_OFFSET], &head[HEADER_BYTES..]);
    head[SEAL_OFFSET..HEADER_BYTES].copy_from_slice(seal.as_bytes());
    head
}

/// The image and frames of a head whose seal is right; what the image says is not checked yet.
pub(crate) fn read(head: &[u8], file_bytes: u64, key: &SealKey) -> Result<(Image, Vec<Frame>), SnapshotError> {
    let header = Header::parse(head)?;
    let expected = header.head_bytes();
    let Some(head) = head.get(..expected) else {
        return Err(SnapshotError::HeadCut { expected: expected as u64, got: head.len() as u64 });
    };
    let seal: [u8; 32] = head[SEAL_OFFSET..HEADER_BYTES].try_into().expect("32 bytes");
    if key.seal(&head[..SEAL_OFFSET], &head[HEADER_BYTES..]) != seal {
        return Err(SnapshotError::Seal);
    }
    if header.file_bytes != file_bytes {
        return Err(SnapshotError::FileLength { expected: header.file_bytes, got: file_bytes });
    }
    let (description, table) = head[HEADER_BYTES..].split_at(header.description_bytes as usize);
    let (table, device) = table.split_at(header.frame_count as usize * ENTRY_BYTES);
    let entries = read_table(table)?;
    let frames = frame::place(&entries, expected as u64);
    let end = frames.last().map_or(expected as u64, |frame| frame.file_range().end);
    if end != file_bytes {
        return Err(SnapshotError::FileLength { expected: end, got: file_bytes });
    }
    let device = DeviceState(device[..header.device_bytes as usize].to_vec());
    Ok((Image { device, ..read_description(description)? }, frames))
}

fn read_description(description: &[u8]) -> Result<Image, SnapshotError> {
    let refuse = |reason: String| SnapshotError::Description { reason };
    match postcard::take_from_bytes(description) {
        Ok((image, [])) => Ok(image),
        Ok((_, rest)) => Err(refuse(format!("{} bytes left over", rest.len()))),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn read_table(table: &[u8]) -> Result<Vec<Entry>, SnapshotError> {
    let check = |(index, bytes)| {
        let entry = read_entry(bytes);
        entry.fault().map_or(Ok(entry), |fault| Err(SnapshotError::Frame { index, fault }))
    };
    table.chunks_exact(ENTRY_BYTES).enumerate().map(check).collect()
}

fn read_entry(bytes: &[u8]) -> Entry {
    Entry {
        raw_bytes: u32_at(bytes, 0),
        compressed_bytes: u32_at(bytes, 4),
        tag: bytes[8..].try_into().expect("an entry ends with its tag"),
    }
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(SnapshotError::HeadCut { expected: HEADER_BYTES as u64, got: bytes.len() as u64 });
        };
        if !bytes.starts_with(MAGIC) {
            return Err(SnapshotError::Magic);
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(SnapshotError::Version { found: u32_at(bytes, 8), supported: VERSION });
        }
        let header = Self {
            description_bytes: u32_at(bytes, 12),
            frame_count: u32_at(bytes, 16),
            device_bytes: u32_at(bytes, 20),
            file_bytes: u64::from_le_bytes(*bytes[24..].first_chunk().expect("8 bytes before the seal")),
        };
        at_most("bytes of the description", header.description_bytes.into(), DESCRIPTION_BYTES_MAX.into())?;
        at_most("frames", header.frame_count.into(), FRAMES_MAX as u64)?;
        at_most("bytes of the device section", header.device_bytes.into(), DEVICE_BYTES_MAX.into())?;
        Ok(header)
    }

    fn head_bytes(self) -> usize {
        padded_bytes(self.description_bytes as usize, self.frame_count as usize, self.device_bytes as usize)
    }
}

fn padded_bytes(description_bytes: usize, frame_count: usize, device_bytes: usize) -> usize {
    (HEADER_BYTES + description_bytes + frame_count * ENTRY_BYTES + device_bytes).next_multiple_of(PAGE_BYTES as usize)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().expect("the field lies within"))
}
