//! The ledger as a process of its own: this program run again, with the queue as its standard input.

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use appliance_ledger::{Sender, pair, records, run};
use appliance_types::{Outcome, Record, RequestId};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use std::{
    io::stdin,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const FOLDER: &str = "LEDGER_TEST_FOLDER";
/// Kills where `EMBER_LEDGER_KILLS` does not say otherwise.
const KILLS: usize = 200;

fn record(number: u64) -> Record {
    Record {
        ended_unix_ms: number,
        outcome: Outcome::Completed,
        status: 200,
        ..Record::new(RequestId::from_random(number.into()), "key".parse().unwrap(), "assistant".parse().unwrap())
    }
}

/// Not a test: what [`spawn`] runs.
#[test]
#[ignore = "the child of the tests below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    run(&folder, stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
}

fn spawn(folder: &Path, queue: &OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env(FOLDER, folder)
        .stdin(queue.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Queues a record, giving the core to the ledger while its queue is full.
fn send(sender: &Sender, number: u64) {
    while sender.send(&record(number)).is_err() {
        std::thread::yield_now();
    }
}

fn numbers(folder: &Path) -> Vec<u64> {
    records(folder).unwrap().map(|record| record.unwrap().ended_unix_ms).collect()
}

#[test]
fn the_end_of_the_queue_ends_it_after_the_last_record() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ledger) = pair().unwrap();
    let mut process = spawn(folder.path(), &ledger);
    drop(ledger);
    let sender = Sender::new(server);
    (0..100).for_each(|number| send(&sender, number));
    drop(sender);
    assert!(process.wait().unwrap().success());
    assert_eq!(numbers(folder.path()), (0..100).collect::<Vec<_>>());
}

#[test]
fn sigterm_ends_it_after_what_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ledger) = pair().unwrap();
    let sender = Sender::new(server);
    // Both before it starts: the signal must not overtake the records.
    (0..100).for_each(|number| send(&sender, number));
    // Inherited by all threads of the child, where the signal then waits for the ledger to watch it.
    SigSet::from(Signal::SIGTERM).thread_block().unwrap();
    let mut process = spawn(folder.path(), &ledger);
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert_eq!(numbers(folder.path()), (0..100).collect::<Vec<_>>());
}

#[test]
fn kills_under_load_lose_nothing_that_was_written_and_nothing_that_was_queued() {
    let kills = std::env::var("EMBER_LEDGER_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let folder = tempfile::tempdir().unwrap();
    let (server, ledger) = pair().unwrap();
    let sender = Sender::new(server);
    let mut next = 0;
    let mut survived = Vec::new();
    for kill in 0..kills {
        let mut process = spawn(folder.path(), &ledger);
        // More than the queue holds now and then, so that the process is in the middle of appending when the last is
        // queued; few now and then, so that it is still opening.
        (0..[40, 1_200, 10, 150][kill % 4]).for_each(|_| {
            send(&sender, next);
            next += 1;
        });
        process.kill().unwrap();
        process.wait().unwrap();
        if kill % 40 == 0 {
            let now = numbers(folder.path());
            assert!(now.starts_with(&survived), "a record that was in the ledger is gone");
            survived = now;
        }
    }
    let mut process = spawn(folder.path(), &ledger);
    drop((sender, ledger));
    assert!(process.wait().unwrap().success());

    let found = numbers(folder.path());
    assert!(found.starts_with(&survived));
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "in order, none twice");
    assert_eq!(found.last(), Some(&(next - 1)));
    // A batch that was taken and not written dies with the process.
    let lost = next - found.len() as u64;
    assert!(lost <= 256 * kills as u64, "{lost}");
    println!(
        "{kills} kills, {} of {next} records; {lost} were taken off the queue and died with a process",
        found.len()
    );
}
