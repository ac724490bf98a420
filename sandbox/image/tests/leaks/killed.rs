//! Who restores is killed at any moment: whatever it was restoring, or had restored, goes with it.
//!
//! ```text
//!  the test ──starts──▶ this program again: the restorer, which restores on and on and says so each time
//!           ──kills it after some──▶ its children become ours; all of them end, none is left
//! ```

use crate::{alone, harness::Subject, shared};
use nix::{
    errno::Errno,
    sys::{
        prctl::set_child_subreaper,
        signal::Signal,
        wait::{WaitStatus, wait},
    },
};
use std::{
    io::{BufRead, BufReader, Write, stdout},
    process::{Command, Stdio},
};

const ROUNDS: usize = 12;
/// Set in the restorer's environment.
const RESTORER: &str = "SANDBOX_IMAGE_RESTORER";

/// Does nothing unless it was started by the test below.
#[test]
fn restorer() {
    if std::env::var_os(RESTORER).is_none() {
        return;
    }
    let mut subject = Subject::start();
    let parked = subject.park();
    subject.stop();
    let mut lives = Vec::new();
    loop {
        lives.push(subject.restore(&parked.image, shared(&parked)).unwrap());
        stdout().write_all(b"restored\n").unwrap();
        if lives.len() > 4 {
            lives.remove(0).end();
        }
    }
}

#[test]
fn nothing_outlives_who_restores() {
    let _alone = alone();
    set_child_subreaper(true).unwrap();
    for round in 0..ROUNDS {
        kill_a_restorer(round);
        loop {
            match wait() {
                // One that was whole may have seen first that nobody talks to it any more.
                Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _) | WaitStatus::Exited(_, 0)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break assert_eq!(error, Errno::ECHILD),
            }
        }
    }
    set_child_subreaper(false).unwrap();
}

/// Kills a restorer at a moment that differs from round to round.
fn kill_a_restorer(round: usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "killed::restorer", "--nocapture"]).env(RESTORER, "");
    let mut restorer = command.stdout(Stdio::piped()).spawn().unwrap();
    // Its pipe stays open until it is dead, so that it ends by nothing else.
    let mut lines = BufReader::new(restorer.stdout.take().unwrap()).lines().map(Result::unwrap);
    let restored = lines.by_ref().filter(|line| line.ends_with("restored")).take(round + 1).count();
    assert_eq!(restored, round + 1);
    (0..round * 20_000).for_each(|_| std::hint::spin_loop());
    restorer.kill().unwrap();
    restorer.wait().unwrap();
}
