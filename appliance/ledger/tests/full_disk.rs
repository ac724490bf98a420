//! The ledger on a real file system that gets full: a tmpfs of 64 KiB. Needs root, to mount it in a namespace of its own.

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use appliance_ledger::{Config, Log, LogError, Space, disk::Folder, records};
use appliance_types::{Entry, Record, RequestId, Stage};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};
use std::fs;

const CONFIG: Config = Config { segment_bytes: 8192, retain_bytes: 1 << 30, retain_ms: None, free_bytes_min: 0 };

fn entry(sequence: u64) -> Entry {
    let record = Record::new(RequestId::from_random(sequence.into()), "key".parse().unwrap(), "f".parse().unwrap());
    Entry { boot: 1, core: 0, sequence, stage: Stage::Closed, record }
}

#[test]
fn a_full_tmpfs_stops_admission_first_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Of this thread alone: it ends with the test.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();

    let open = || Log::open_on(Folder::lock(folder.path()).unwrap(), CONFIG, 1).unwrap();
    let (mut log, _) = open();
    let mut next = 0;
    while log.space() == Space::Ample {
        log.append(&[entry(next)]).unwrap();
        next += 1;
        log.tend(1).unwrap();
        assert!(next < 1000, "it gets full");
    }
    let admitted = next;
    let error = loop {
        match log.append(&[entry(next)]) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    assert!(next - admitted >= 5, "half of a segment was left for what was admitted: {}", next - admitted);
    drop(log);
    let count = || records(folder.path()).unwrap().map(Result::unwrap).count() as u64;
    assert_eq!(count(), next);

    // A start on the full disk goes on, and says at once that space is low.
    let (mut log, recovery) = open();
    assert_eq!((recovery.entries, recovery.cut, recovery.damaged), (next, None, 0));
    assert_eq!(log.space(), Space::Low);
    fs::remove_file(folder.path().join("00000001.log")).unwrap();
    assert_eq!(log.tend(1).unwrap(), Space::Ample, "there is room for the next segment again");
    log.append(&[entry(next)]).unwrap();
    drop(log);
    umount(folder.path()).unwrap();
}
