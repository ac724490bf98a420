//! A changed, cut, foreign or wrongly keyed snapshot is refused before any of it is used.

use super::*;

fn small_file() -> Vec<u8> {
    let (capture, memory) = small_runner();
    file_of(capture, &memory, &SMALL_FRAMES)
}

fn refused(file: &[u8]) -> SnapshotError {
    load(file, &KEY, &identity()).expect_err("a changed snapshot was taken")
}

#[test]
fn every_flipped_bit_of_the_head_is_refused() {
    let mut file = small_file();
    for index in 0..head_bytes(&file).unwrap() {
        for bit in 0..8 {
            file[index] ^= 1 << bit;
            assert!(load(&file, &KEY, &identity()).is_err(), "bit {bit} of byte {index}");
            file[index] ^= 1 << bit;
        }
    }
    load(&file, &KEY, &identity()).unwrap();
}

#[test]
fn every_flipped_byte_of_a_frame_is_refused_by_its_tag() {
    let mut file = small_file();
    let snapshot = Snapshot::open(&file, file.len() as u64, &KEY, &identity()).unwrap();
    assert!(snapshot.frames().len() > 1);
    for (index, frame) in snapshot.frames().iter().enumerate() {
        for at in frame.file_range() {
            file[at as usize] ^= 0x40;
            let error = refused(&file);
            assert!(matches!(error, SnapshotError::Tag { index: found } if found == index), "byte {at}: {error}");
            file[at as usize] ^= 0x40;
        }
    }
}

#[test]
fn a_flip_in_each_extent_is_refused() {
    let (capture, memory) = runner();
    let mut file = file_of(capture, &memory, &EncodeOptions::default());
    let snapshot = Snapshot::open(&file, file.len() as u64, &KEY, &identity()).unwrap();
    for frame in snapshot.frames() {
        let middle = frame.offset as usize + frame.stored_bytes / 2;
        file[middle] ^= 1;
        assert!(matches!(refused(&file), SnapshotError::Tag { .. }));
        file[middle] ^= 1;
    }
}

#[test]
fn swapped_frames_are_refused() {
    let (capture, memory) = runner();
    let mut file = file_of(capture, &memory, &SMALL_FRAMES);
    let snapshot = Snapshot::open(&file, file.len() as u64, &KEY, &identity()).unwrap();
    let alike = |pair: &[Frame]| pair[0].stored_bytes == pair[1].stored_bytes;
    let first = snapshot.frames().windows(2).position(alike).unwrap();
    let (frame, length) = (snapshot.frames()[first], snapshot.frames()[first].stored_bytes);
    let (left, right) = file[frame.offset as usize..][..2 * length].split_at_mut(length);
    assert_ne!(left, right);
    left.swap_with_slice(right);
    assert!(matches!(refused(&file), SnapshotError::Tag { index } if index == first));
}

#[test]
fn every_truncation_is_refused() {
    let (capture, memory) = runner();
    let file = file_of(capture, &memory, &SMALL_FRAMES);
    let borders = (0..file.len()).step_by(4096).flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    let short = (0..HEADER_BYTES + 8).chain([file.len() - 1]);
    for length in borders.chain(short) {
        let error = refused(&file[..length]);
        let expected = matches!(error, SnapshotError::HeadCut { .. } | SnapshotError::FileLength { .. });
        assert!(expected, "{length} bytes: {error}");
    }
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let mut file = small_file();
    file.extend_from_slice(&[0; 4096]);
    assert!(matches!(refused(&file), SnapshotError::FileLength { .. }));
}

#[test]
fn another_key_is_refused() {
    let error = load(&small_file(), &[1; 32], &identity()).unwrap_err();
    assert!(matches!(error, SnapshotError::Seal));
}

#[test]
fn another_version_is_named() {
    let mut file = small_file();
    file[8] = 9;
    assert_eq!(refused(&file).to_string(), "snapshot of version 9; this build reads 3");
}

#[test]
fn another_identity_is_refused_with_what_differs() {
    let file = small_file();
    let same = identity();
    let others = [
        (IdentityPart::RunnerBuild, Identity { runner_build: [8; 32], ..same.clone() }),
        (IdentityPart::KernelRelease, Identity { kernel_release: "6.18.1".to_owned(), ..same.clone() }),
        (IdentityPart::CpuFeatures, Identity { cpu_features: vec![7], ..same.clone() }),
        (IdentityPart::Model, Identity { model: appliance_types::ModelDigest::from_bytes([8; 32]), ..same.clone() }),
        (IdentityPart::Manifest, Identity { manifest: [8; 32], ..same.clone() }),
        (IdentityPart::Function, Identity { function: "other".parse().unwrap(), ..same }),
    ];
    for (expected, other) in others {
        let error = load(&file, &KEY, &other).unwrap_err();
        assert!(matches!(error, SnapshotError::OtherIdentity { part, .. } if part == expected), "{error}");
    }
}

#[test]
fn a_capture_that_stopped_half_way_is_no_snapshot() {
    let (capture, memory) = runner();
    for room in [0, 4096, 40_000, 100_000] {
        let mut disk = Full { file: io::Cursor::new(Vec::new()), room };
        let error = encode(capture.clone(), &memory, &EncodeOptions::default(), &KEY, &mut disk).unwrap_err();
        assert!(matches!(error, SnapshotError::Write { .. }), "{error}");
        let left = disk.file.into_inner();
        assert!(matches!(refused(&left), SnapshotError::HeadCut { .. } | SnapshotError::Magic));
    }
}

/// A disk that is full after `room` bytes.
struct Full {
    file: io::Cursor<Vec<u8>>,
    room: usize,
}

impl io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { self.file.write(&bytes[..taken]) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for Full {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
