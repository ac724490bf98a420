//! What cannot be captured is refused, and goes on.

use crate::harness::{Subject, capture};
use sandbox_image::{CaptureError, NoDevice};
use sandbox_kernel::pidfd::Pid;
use std::process::{Child, Command};

struct Other(Child);

impl Other {
    fn start(program: &str, arguments: &[&str]) -> Self {
        Self(Command::new(program).args(arguments).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_process_with_other_files() {
    let (subject, mut sleeper) = (Subject::start(), Other::start("/bin/sleep", &["1000"]));
    let refused = capture(sleeper.pid(), &subject.program, &subject.model, &NoDevice).map(drop);
    assert!(matches!(refused, Err(CaptureError::Mapping { .. })), "{refused:?}");
    assert_eq!(sleeper.0.try_wait().unwrap(), None);
}

#[test]
fn a_process_that_works_until_it_is_killed() {
    let (subject, mut worker) = (Subject::start(), Other::start("/bin/sh", &["-c", "while :; do :; done"]));
    let pid = worker.pid();
    let refused = std::thread::scope(|scope| {
        let refused = scope.spawn(|| capture(pid, &subject.program, &subject.model, &NoDevice).map(drop));
        worker.0.kill().unwrap();
        refused.join().unwrap()
    });
    assert!(matches!(refused, Err(CaptureError::Ended(_) | CaptureError::Trace { .. })), "{refused:?}");
}

#[test]
fn a_process_with_two_threads() {
    let mut subject = Subject::start();
    assert_eq!(subject.line.ask("linger"), "lingers");
    let refused = subject.capture().map(drop);
    assert!(matches!(refused, Err(CaptureError::Restless("more than one thread"))), "{refused:?}");
    subject.line.ask_all();
}

#[test]
fn a_process_that_is_not_there() {
    let subject = Subject::start();
    let refused = capture(Pid::from_raw(i32::MAX), &subject.program, &subject.model, &NoDevice).map(drop);
    assert!(matches!(refused, Err(CaptureError::Trace { attempted: "seize", .. })), "{refused:?}");
}
