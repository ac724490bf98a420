//! What is said to be left of recorded writes is what a disk may have, state after state.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};
use tests::{
    Random,
    write_log::{Cut, Disk, Entry, WriteLog, copy_part},
};

const SECTOR: usize = 512;
const DISK_SECTORS: usize = 64;

/// A step of a made-up life.
#[derive(Clone, Copy)]
enum Step {
    Write(usize, usize, u8),
    Flush,
    Discard,
}

fn sector(numbers: [u64; 4]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    bytes.resize(SECTOR, 0);
    bytes
}

fn log(folder: &Path, steps: &[Step]) -> PathBuf {
    let mut bytes = sector([0x006a_7366_7773_6872, 1, steps.len() as u64, SECTOR as u64]);
    for step in steps {
        match *step {
            Step::Write(first, sectors, fill) => {
                bytes.extend(sector([first as u64, sectors as u64, 0, 0]));
                bytes.extend(vec![fill; sectors * SECTOR]);
            }
            Step::Flush => bytes.extend(sector([0, 0, 1, 0])),
            Step::Discard => bytes.extend(sector([7, 9, 4, 0])),
        }
    }
    let path = folder.join("log");
    fs::write(&path, bytes).unwrap();
    path
}

fn empty_disk(folder: &Path) -> (PathBuf, Disk) {
    let path = folder.join("disk");
    fs::write(&path, vec![0; DISK_SECTORS * SECTOR]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    (path, Disk::new(file))
}

const STEPS: [Step; 8] = [
    Step::Write(0, 2, 1),
    Step::Flush,
    Step::Flush,
    Step::Write(1, 2, 2),
    Step::Discard,
    Step::Write(2, 1, 3),
    Step::Flush,
    Step::Write(0, 1, 4),
];

#[test]
fn a_log_is_read_up_to_its_last_whole_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = log(folder.path(), &STEPS);
    let whole = WriteLog::read(&path).unwrap();
    let at = SECTOR as u64;
    assert_eq!(WriteLog::recorded(&path).unwrap(), 8);
    assert_eq!(whole.entries().len(), 8);
    assert_eq!(whole.entries()[0], Entry::Write { offset: 0, bytes: 2 * at, data: 2 * at });
    assert_eq!(whole.entries()[4], Entry::Discard);

    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    assert_eq!(WriteLog::read(&path).unwrap().entries(), &whole.entries()[..7]);
}

#[test]
fn what_is_no_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = log(folder.path(), &STEPS);
    let good = fs::read(&path).unwrap();
    for (at, expected) in [(0, "it begins with"), (8, "it begins with"), (SECTOR + 16, "entry 0 has flags 0x40")] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        let error = WriteLog::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{at}: {error}");
    }
}

#[test]
fn cuts_at_flushes_are_where_something_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let log = WriteLog::read(&log(folder.path(), &STEPS)).unwrap();
    let (path, mut disk) = empty_disk(folder.path());
    let shown = log.cuts_at_flushes().into_iter().map(|cut| {
        assert!(cut.kept.is_empty());
        disk.show(&log, &cut).unwrap();
        let bytes = fs::read(&path).unwrap();
        (cut.flushed, [0, 1, 2].map(|sector| bytes[sector * SECTOR]))
    });
    assert_eq!(shown.collect::<Vec<_>>(), [(0, [0, 0, 0]), (2, [1, 1, 0]), (7, [1, 2, 3]), (8, [4, 2, 3])]);
}

/// Some life of a disk.
fn steps(random: &mut Random) -> Vec<Step> {
    let mut step = |at: usize| match random.below(4) {
        0 => Step::Flush,
        _ => {
            let sectors = 1 + random.below(8);
            Step::Write(random.below(DISK_SECTORS - sectors), sectors, at as u8 + 1)
        }
    };
    (0..100).map(&mut step).collect()
}

/// The disk by the plainest means.
fn model(steps: &[Step], cut: &Cut) -> Vec<u8> {
    let mut disk = vec![0; DISK_SECTORS * SECTOR];
    let all = (0..cut.flushed).map(|at| (at, u64::MAX));
    for (at, bytes) in all.chain(cut.kept.iter().copied()) {
        if let Step::Write(first, sectors, fill) = steps[at] {
            let length = (sectors * SECTOR).min(bytes as usize);
            disk[first * SECTOR..][..length].fill(fill);
        }
    }
    disk
}

#[test]
fn each_random_cut_is_one_that_a_disk_may_have_and_is_shown_as_it_is() {
    for seed in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let steps = steps(&mut Random::seeded(seed));
        let log = WriteLog::read(&log(folder.path(), &steps)).unwrap();
        let cuts = |seed| log.cuts_at_random(60, &mut Random::seeded(seed), |_| SECTOR as u64);
        assert_eq!(cuts(seed), cuts(seed));
        assert_ne!(cuts(seed), cuts(seed + 1));

        let (path, mut disk) = empty_disk(folder.path());
        let mut before = fs::read(&path).unwrap();
        for cut in cuts(seed) {
            let next = steps[cut.flushed..].iter().position(|step| matches!(step, Step::Flush));
            let end = next.map_or(steps.len(), |next| cut.flushed + next);
            assert!(cut.kept.iter().all(|(at, _)| (cut.flushed..end).contains(at)), "{cut:?}");
            assert!(cut.kept.iter().filter(|(at, bytes)| matches!(steps[*at], Step::Write(_, sectors, _) if *bytes != (sectors * SECTOR) as u64)).count() <= 1);

            let changed = disk.show(&log, &cut).unwrap();
            let after = fs::read(&path).unwrap();
            assert!(after == model(&steps, &cut), "{cut:?}");
            let differs = (0..after.len()).filter(|at| before[*at] != after[*at]);
            for at in differs {
                assert!(changed.iter().any(|range| range.contains(&(at as u64))), "byte {at} of {cut:?}");
            }
            before = after;
        }
    }
}

#[test]
fn a_part_is_copied_with_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let bytes: u64 = 64 << 20;
    fs::write(&from, vec![1; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&from).unwrap();
    file.set_len(bytes).unwrap();
    copy_part(&file, 4096..bytes, &to).unwrap();
    let copy = fs::read(&to).unwrap();
    assert_eq!(copy.len() as u64, bytes - 4096);
    assert!(copy[..4096].iter().all(|byte| *byte == 1) && copy[4096..].iter().all(|byte| *byte == 0));
    copy_part(&File::open(&from).unwrap(), 8192..bytes, &to).unwrap();
    assert!(fs::read(&to).unwrap().iter().all(|byte| *byte == 0));
}
