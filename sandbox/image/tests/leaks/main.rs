//! Nothing is left of a restore: of many, of many at once, and of those that fail half way.
//!
//! Alone in its process, one test at a time, so that what this process has can be counted.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report, in its helpers too")]

#[path = "../image/harness.rs"]
mod harness;
mod killed;

use harness::{How, Life, Subject};
use nix::{errno::Errno, libc};
use sandbox_image::{Data, Parked, RestoreError};
use sandbox_kernel::{pidfd::Ended, table::Table};
use sandbox_snapshot::image::{Image, MappingKind, Source};
use std::{
    fs, io,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What this process has: descriptors, tables in memory, children.
fn belongings() -> (usize, usize, String) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let start = |line: &str| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let is_table = |line: &&str| (64..2048).contains(&(start(line) >> 30));
    let children = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let path = task.unwrap().path().join("children");
        fs::read_to_string(path).unwrap_or_default()
    });
    (fs::read_dir("/proc/self/fd").unwrap().count(), maps.lines().filter(is_table).count(), children.collect())
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something some times, then many times, and sees that the second changed nothing.
fn leaves_nothing(mut act: impl FnMut()) {
    (0..4).for_each(|_| act());
    let before = belongings();
    (0..16).for_each(|_| act());
    assert_eq!(belongings(), before);
}

fn shared(parked: &Parked) -> Data<'_> {
    Data::Shared(parked.data.as_fd())
}

#[test]
fn a_hundred_restores_in_a_row_all_answer_right() {
    let _alone = alone();
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected = subject.line.ask_all();
    let once = || {
        let mut restored = subject.restore(&parked.image, shared(&parked)).unwrap();
        assert_eq!(restored.line.ask_all(), expected);
        assert_eq!(restored.steps.len(), 11);
        restored.end();
    };
    (0..80).for_each(|_| once());
    leaves_nothing(once);
}

#[test]
fn eight_at_once_all_answer_right() {
    let _alone = alone();
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected = subject.line.ask_all();
    let one = || {
        let mut restored = subject.restore(&parked.image, shared(&parked)).unwrap();
        assert_eq!(restored.line.ask_all(), expected);
        restored.end();
    };
    leaves_nothing(|| std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(one)))));
}

#[test]
fn eight_of_one_image_live_side_by_side() {
    let _alone = alone();
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected: Vec<_> = (0..2).map(|_| subject.line.ask_all()).collect();
    let mut restored: Vec<_> = (0..8).map(|_| subject.restore(&parked.image, shared(&parked)).unwrap()).collect();
    for answers in &expected {
        restored.iter_mut().for_each(|life| assert_eq!(life.line.ask_all(), *answers));
    }
    restored.into_iter().for_each(Life::end);
}

/// Restores an image that was spoilt, with a seal; the error.
fn refused(spoil: impl Fn(&mut Image), seal: &dyn Fn(&mut Table)) -> RestoreError {
    let subject = Subject::start();
    let parked = subject.park();
    let mut image = parked.image.clone();
    spoil(&mut image);
    let mut error = None;
    leaves_nothing(|| {
        let restored = subject.restore_as(&image, shared(&parked), &How { seal, ..How::default() });
        error = Some(restored.map(drop).unwrap_err());
    });
    error.unwrap()
}

fn first_of(image: &mut Image, kind: MappingKind) -> &mut sandbox_snapshot::image::Mapping {
    image.mappings.iter_mut().find(|mapping| mapping.kind == kind).unwrap()
}

#[test]
fn a_foreign_vdso_is_refused() {
    let _alone = alone();
    let error = refused(|image| first_of(image, MappingKind::Vdso).bytes += 4096, &|_| {});
    assert!(matches!(error, RestoreError::Image(_)), "{error}");
}

#[test]
fn memory_that_is_mapped_twice_is_refused() {
    let _alone = alone();
    let twice = |image: &mut Image| {
        let stack = *first_of(image, MappingKind::Stack);
        image.mappings.push(stack);
    };
    let error = refused(twice, &|_| {});
    let RestoreError::Call { call, error } = error else { panic!("{error}") };
    assert!(call.starts_with("mmap(") && error == Errno::EEXIST, "{call}: {error}");
}

#[test]
fn data_past_the_end_of_its_file_is_refused() {
    let _alone = alone();
    let past = |image: &mut Image| {
        let stack = first_of(image, MappingKind::Stack).span();
        let mut own = image.extents.iter_mut().filter(|e| e.address >= stack.address && e.address < stack.end());
        let data = own.find(|extent| matches!(extent.source, Source::Compressed { .. })).unwrap();
        data.source = Source::Compressed { offset: 1 << 40 };
    };
    let error = refused(past, &|_| {});
    assert!(matches!(error, RestoreError::Call { error: Errno::ENODATA, .. }), "{error}");
}

#[test]
fn a_raw_file_that_is_missing_is_refused() {
    let _alone = alone();
    let raw = |image: &mut Image| {
        let data = image.extents.iter_mut().find(|extent| matches!(extent.source, Source::Compressed { .. })).unwrap();
        data.source = Source::Raw { digest: [9; 32], offset: 0 };
    };
    let error = refused(raw, &|_| {});
    assert!(matches!(error, RestoreError::NoFile { .. }), "{error}");
}

#[test]
fn registers_of_no_machine_are_refused() {
    let _alone = alone();
    let error = refused(|image| image.registers.general.truncate(200), &|_| {});
    assert!(matches!(error, RestoreError::Image(_)), "{error}");
    let error = refused(|image| image.registers.extended.fill(0xff), &|_| {});
    assert!(matches!(error, RestoreError::Prepare { attempted: "set the extended state", .. }), "{error}");
    let astray = |image: &mut Image| image.registers.general[16 * 8..17 * 8].copy_from_slice(&0x5000_u64.to_ne_bytes());
    let error = refused(astray, &|_| {});
    assert!(matches!(error, RestoreError::Stopped { .. }), "{error}");
}

#[test]
fn a_seal_that_fails_is_refused() {
    let _alone = alone();
    let error = refused(|_| {}, &|table| table.call(libc::SYS_close, &[u64::MAX]));
    assert!(matches!(error, RestoreError::Call { error: Errno::EBADF, .. }), "{error}");
    let error = refused(|_| {}, &|table| table.call(libc::SYS_exit_group, &[7]));
    assert!(matches!(error, RestoreError::Ended(Ended::Exit(7))), "{error}");
}

#[test]
fn a_writer_of_data_that_fails_is_refused() {
    let _alone = alone();
    let subject = Subject::start();
    let parked = subject.park();
    leaves_nothing(|| {
        let write = |_: &sandbox_image::Memory| Err(io::Error::other("no data"));
        let error = subject.restore(&parked.image, Data::Written(&write)).map(drop).unwrap_err();
        assert!(matches!(error, RestoreError::Prepare { attempted: "write data into the child", .. }), "{error}");
    });
}
