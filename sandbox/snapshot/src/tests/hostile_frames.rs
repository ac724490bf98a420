//! Frames and heads that say wrong things under a right seal, and zstd frames made to harm.

use super::*;
use crate::{frame::Entry, head, seal::SealKey};

/// An authentic snapshot with one frame, of which the table says `raw_bytes` and which is stored as `compressed`.
fn with_frame(raw_bytes: u32, compressed: &[u8]) -> Vec<u8> {
    let key = SealKey::new(&KEY);
    let (capture, memory) = small_runner();
    let options = EncodeOptions { level: 1, ..EncodeOptions::default() };
    let image = encode(capture, &memory, &options, &KEY, &mut io::Cursor::new(Vec::new())).unwrap().into_image();
    let mut stored = compressed.to_vec();
    stored.resize(compressed.len().next_multiple_of(4096), 0);
    let entry = Entry { raw_bytes, compressed_bytes: compressed.len() as u32, tag: *key.tag(&stored).as_bytes() };
    let (head_bytes, description) = head::describe(&image, 1).unwrap();
    let mut file = head::write(&key, &description, &[entry], (head_bytes + stored.len()) as u64);
    file.extend_from_slice(&stored);
    file
}

/// What the image of [`with_frame`] takes from the data area.
const SMALL_DATA_BYTES: usize = 10 * 4096;

fn refusal(file: &[u8]) -> String {
    load(file, &KEY, &identity()).expect_err("a hostile frame was decoded").to_string()
}

#[test]
fn a_frame_of_the_right_length_is_decoded() {
    let frame = zstd::bulk::compress(&vec![5; SMALL_DATA_BYTES], 1).unwrap();
    assert_eq!(load(&with_frame(SMALL_DATA_BYTES as u32, &frame), &KEY, &identity()).unwrap().1[77], 5);
}

#[test]
fn a_bomb_is_refused_before_it_is_decoded() {
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    assert!(bomb.len() < 64 << 10);
    let expected = "frame 0 cannot be decoded: it does not decode to the length in the table";
    assert_eq!(refusal(&with_frame(SMALL_DATA_BYTES as u32, &bomb)), expected);
    assert_eq!(refusal(&with_frame(256 << 20, &bomb)), "frame 0: it is out of range");
}

#[test]
fn a_frame_with_a_window_of_its_own_is_refused() {
    let mut stream = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    stream.window_log(27).unwrap();
    stream.include_contentsize(false).unwrap();
    io::Write::write_all(&mut stream, &vec![5; SMALL_DATA_BYTES]).unwrap();
    let mut frame = stream.finish().unwrap();
    let expected = "frame 0 cannot be decoded: it does not decode to the length in the table";
    assert_eq!(refusal(&with_frame(SMALL_DATA_BYTES as u32, &frame)), expected);
    // The same with its length: descriptor with a four-byte length, the window's byte, the length, the blocks.
    let length = (SMALL_DATA_BYTES as u32).to_le_bytes();
    frame[4] |= 0b10 << 6;
    frame.splice(6..6, length);
    assert_eq!(
        refusal(&with_frame(SMALL_DATA_BYTES as u32, &frame)),
        "frame 0 cannot be decoded: it has a window of its own"
    );
}

#[test]
fn what_is_not_one_whole_frame_is_refused() {
    let frame = zstd::bulk::compress(&vec![5; SMALL_DATA_BYTES], 1).unwrap();
    for hostile in [[&frame[..], &frame].concat(), [&frame[..], b"x"].concat(), frame[..frame.len() - 1].to_vec()] {
        let expected = "frame 0 cannot be decoded: it is not one whole frame";
        assert_eq!(refusal(&with_frame(SMALL_DATA_BYTES as u32, &hostile)), expected);
    }
    for hostile in [&b""[..], b"\x28\xb5\x2f", b"not a frame at all", b"\x50\x2a\x4d\x18\x04\0\0\0skip"] {
        let found = refusal(&with_frame(SMALL_DATA_BYTES as u32, hostile));
        assert!(found.starts_with("frame 0"), "{found}");
    }
}

#[test]
fn frames_hold_exactly_what_extents_take() {
    let frame = zstd::bulk::compress(&vec![5; SMALL_DATA_BYTES + 4096], 1).unwrap();
    let found = refusal(&with_frame(SMALL_DATA_BYTES as u32 + 4096, &frame));
    assert_eq!(found, "extents take 40960 bytes of the data area; frames decode to 45056");
}

#[test]
fn impossible_lengths_are_refused_before_the_seal() {
    let (capture, memory) = small_runner();
    let file = file_of(capture, &memory, &SMALL_FRAMES);
    for (offset, expected) in [
        (12, "bytes of the description: 4294967295; the limit is 2097152"),
        (16, "frames: 4294967295; the limit is 32768"),
        (20, "bytes of the device section: 4294967295; the limit is 65536"),
    ] {
        let mut hostile = file.clone();
        hostile[offset..offset + 4].fill(0xff);
        assert_eq!(head_bytes(&hostile).unwrap_err().to_string(), expected);
    }
}

#[test]
fn buffers_have_the_length_of_what_goes_into_them() {
    let (capture, memory) = small_runner();
    let file = file_of(capture, &memory, &SMALL_FRAMES);
    let snapshot = Snapshot::open(&file, file.len() as u64, &KEY, &identity()).unwrap();
    let frame = snapshot.frames()[0];
    let input = &file[frame.offset as usize..][..frame.stored_bytes];
    let mut output = vec![0; frame.raw_bytes];
    let mut decoder = FrameDecoder::new().unwrap();
    for (input, length) in [(input, frame.raw_bytes - 1), (&input[1..], frame.raw_bytes)] {
        let error = snapshot.decode_frame(&mut decoder, 0, input, &mut output[..length]).unwrap_err();
        assert!(matches!(error, SnapshotError::BufferLength { .. }), "{error}");
    }
    let error = snapshot.decode_frame(&mut decoder, 99, input, &mut output).unwrap_err();
    assert!(matches!(error, SnapshotError::NoFrame { index: 99, .. }));
}

#[test]
fn frames_are_whole_pages_up_to_two_mebibytes() {
    for frame_bytes in [0, 4095, FRAME_RAW_BYTES_MAX + 4096] {
        let (capture, memory) = small_runner();
        let options = EncodeOptions { frame_bytes, ..SMALL_FRAMES };
        let error = encode(capture, &memory, &options, &KEY, &mut io::Cursor::new(Vec::new())).unwrap_err();
        assert!(matches!(error, SnapshotError::FrameSize { .. }), "{error}");
    }
}

#[test]
fn noise_fits_the_longest_stored_frame() {
    let mut memory = Memory::default();
    let pages = u64::from(FRAME_RAW_BYTES_MAX) / PAGE;
    memory.fill(ARENA, pages, 1, 256);
    let (mut capture, _) = runner();
    capture.mappings[4].bytes = pages * PAGE;
    capture.kept.remove(2);
    capture.data = vec![Span { address: ARENA, bytes: pages * PAGE }];
    let options = EncodeOptions { frame_bytes: FRAME_RAW_BYTES_MAX, ..SMALL_FRAMES };
    let file = file_of(capture, &memory, &options);
    let snapshot = Snapshot::open(&file, file.len() as u64, &KEY, &identity()).unwrap();
    let [frame] = snapshot.frames() else { panic!("one frame") };
    assert!((FRAME_RAW_BYTES_MAX..=FRAME_STORED_BYTES_MAX).contains(&(frame.stored_bytes as u32)));
    load(&file, &KEY, &identity()).unwrap();
}

#[test]
fn a_flood_of_extents_is_counted_before_it_is_looked_at() {
    let (capture, memory) = small_runner();
    let mut image =
        encode(capture, &memory, &SMALL_FRAMES, &KEY, &mut io::Cursor::new(Vec::new())).unwrap().into_image();
    image.extents = vec![Extent { address: 0, bytes: 0, source: Source::Zero }; 600_000];
    let (head_bytes, description) = head::describe(&image, 0).unwrap();
    let file = head::write(&SealKey::new(&KEY), &description, &[], head_bytes as u64);
    assert_eq!(refusal(&file), "extents: 600000; the limit is 16384");
}
