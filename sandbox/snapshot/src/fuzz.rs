//! What the fuzzer and its smoke run do with bytes.
//!
//! Mutated bytes nearly always fail at the seal, so each input is tried twice: as it is, and with the seal and all tags
//! put right, as if the key's owner had written it. What is behind the seal has to hold by itself.

use crate::{
    frame::FrameDecoder,
    head::{self, HEADER_BYTES},
    seal::SealKey,
    snapshot::Snapshot,
};

/// The key of snapshots that are fuzzed.
pub const KEY: [u8; 32] = [0x5a; 32];

/// Opens `bytes`, as they are and sealed anew, and decodes all frames of what opens. Returns how many were decoded.
pub fn decode(bytes: &[u8]) -> usize {
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    decode_all(bytes) + decode_all(&sealed)
}

/// Makes the tags and the seal right for what `bytes` hold, as far as they have a head; the length too.
pub fn seal(bytes: &mut [u8]) {
    let file_bytes = bytes.len() as u64;
    let Ok(head_bytes) = head::head_bytes(bytes) else { return };
    if head_bytes > bytes.len() {
        return;
    }
    bytes[24..32].copy_from_slice(&file_bytes.to_le_bytes());
    let key = SealKey::new(&KEY);
    let (head, frames) = bytes.split_at_mut(head_bytes);
    seal_table(&key, head, frames);
    let seal = key.seal(&head[..32], &head[HEADER_BYTES..]);
    head[32..HEADER_BYTES].copy_from_slice(seal.as_bytes());
}

fn seal_table(key: &SealKey, head: &mut [u8], frames: &[u8]) {
    let field = |offset: usize| u32::from_le_bytes(*head[offset..].first_chunk().expect("a header")) as usize;
    let (description_bytes, frame_count) = (field(12), field(16));
    let mut rest = frames;
    for entry in head[HEADER_BYTES + description_bytes..].chunks_exact_mut(40).take(frame_count) {
        let compressed_bytes = u32::from_le_bytes(*entry[4..].first_chunk().expect("40 bytes")) as usize;
        let Some((frame, behind)) = rest.split_at_checked(compressed_bytes.next_multiple_of(4096)) else { return };
        entry[8..].copy_from_slice(key.tag(frame).as_bytes());
        rest = behind;
    }
}

fn decode_all(bytes: &[u8]) -> usize {
    let key = SealKey::new(&KEY);
    let file_bytes = bytes.len() as u64;
    let Ok((image, _)) = head::read(bytes, file_bytes, &key) else { return 0 };
    let Ok(snapshot) = Snapshot::open(bytes, file_bytes, &KEY, &image.identity) else { return 0 };
    let mut decoder = FrameDecoder::new().expect("memory");
    let mut output = Vec::new();
    let decode = |(index, frame): (usize, &crate::Frame)| {
        let range = frame.file_range();
        output.resize(frame.raw_bytes, 0);
        let input = &bytes[range.start as usize..range.end as usize];
        snapshot.decode_frame(&mut decoder, index, input, &mut output).is_ok()
    };
    snapshot.frames().iter().enumerate().map(decode).filter(|decoded| *decoded).count()
}
