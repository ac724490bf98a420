//! The ledger as a process of its own: this program run again, which finds the ring and its bell where we have them open.

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use appliance_ledger::{records, run};
use appliance_meter::{Producer, bell, create};
use appliance_types::{Outcome, Record, RequestId};
use nix::{
    fcntl::OFlag,
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use std::{
    env,
    fs::OpenOptions,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

const FOLDER: &str = "LEDGER_TEST_FOLDER";
const RING: &str = "LEDGER_TEST_RING";
/// Kills in the midst of appending.
const KILLS: usize = 200;
const BELL: &str = "LEDGER_TEST_BELL";

fn record(number: u64) -> Record {
    Record {
        ended_unix_ms: number,
        outcome: Outcome::Completed,
        status: 200,
        ..Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "assistant".parse().unwrap())
    }
}

/// Not a test: what [`Kept::spawn`] runs.
#[test]
#[ignore = "the child of the tests below"]
fn child() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    let ring = OpenOptions::new().read(true).write(true).open(env::var_os(RING).unwrap()).unwrap();
    let bell = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(env::var_os(BELL).unwrap());
    run(&folder, &[ring.into()], bell.unwrap().into(), None).unwrap();
}

/// What the supervisor keeps.
struct Kept {
    folder: tempfile::TempDir,
    ring: OwnedFd,
    hears: OwnedFd,
}

/// The ring and its bell, and the server's end of both.
fn kept(records: u64) -> (Kept, Producer) {
    let (ring, (rings, hears)) = (create(records).unwrap(), bell().unwrap());
    let producer = Producer::attach(&ring, rings, 1).unwrap();
    (Kept { folder: tempfile::tempdir().unwrap(), ring, hears }, producer)
}

impl Kept {
    fn spawn(&self) -> Child {
        let ours = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored"])
            .env(FOLDER, self.folder.path())
            .env(RING, ours(&self.ring))
            .env(BELL, ours(&self.hears))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn numbers(&self) -> Vec<u64> {
        numbers(self.folder.path())
    }
}

fn numbers(folder: &Path) -> Vec<u64> {
    records(folder).unwrap().map(|record| record.unwrap().ended_unix_ms).collect()
}

/// Opens and closes a request, giving the core to the ledger while the ring is full.
fn send(producer: &mut Producer, number: u64) {
    let ticket = loop {
        match producer.open(&record(number)) {
            Ok(ticket) => break ticket,
            Err(_) => thread::yield_now(),
        }
    };
    producer.close(ticket, &record(number));
}

#[test]
fn the_end_of_all_who_ring_ends_it_after_the_last_entry() {
    let (kept, mut producer) = kept(1 << 10);
    let mut process = kept.spawn();
    (0..100).for_each(|number| send(&mut producer, number));
    let open = producer.open(&record(100)).unwrap();
    assert!(producer.progress(&open, &Record { tokens_out: 7, ended_unix_ms: 101, ..record(100) }));
    drop(producer);
    assert!(process.wait().unwrap().success());
    assert_eq!(kept.numbers(), (0..100).chain([101]).collect::<Vec<_>>());
    let last = records(kept.folder.path()).unwrap().last().unwrap().unwrap();
    assert_eq!((last.outcome, last.tokens_out), (Outcome::Interrupted, 7));
}

#[test]
fn sigterm_ends_it_after_what_is_there() {
    let (kept, mut producer) = kept(1 << 10);
    // Both before it starts: the signal must not overtake the entries.
    (0..100).for_each(|number| send(&mut producer, number));
    let _runs_on = producer.open(&record(100)).unwrap();
    // Inherited by all threads of the child, where the signal then waits for the ledger to watch it.
    SigSet::from(Signal::SIGTERM).thread_block().unwrap();
    let mut process = kept.spawn();
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert_eq!(kept.numbers(), (0..100).collect::<Vec<_>>());
}

#[test]
fn kill_loses_nothing_and_doubles_nothing() {
    let (kept, mut producer) = kept(1 << 7);
    let mut next = 0;
    for _ in 0..KILLS {
        let mut process = kept.spawn();
        // More than the ring holds, so that the process is in the middle of appending when the last is sent.
        for _ in 0..120 {
            send(&mut producer, next);
            next += 1;
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let mut process = kept.spawn();
    drop(producer);
    assert!(process.wait().unwrap().success());
    assert_eq!(kept.numbers(), (0..next).collect::<Vec<_>>());
}
