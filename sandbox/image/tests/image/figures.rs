//! What a restore costs, printed: `cargo test --release -p sandbox-image --test image figures -- --nocapture`.
//!
//! Nothing is asserted but that all answer: how busy a machine is, is not ours to judge.

use crate::harness::{How, NAMESPACES, Subject};
use sandbox_image::{Data, Step};
use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

const ROUNDS: usize = 100;

/// One column of figures, microseconds: the share of each step, and the time from the start to the first answer.
struct Column {
    name: &'static str,
    steps: Vec<(Step, Vec<u128>)>,
    answered: Vec<u128>,
}

impl Column {
    fn take(name: &'static str, subject: &Subject, namespaces: i32) -> Self {
        let parked = subject.park();
        let mut column = Self { name, steps: Vec::new(), answered: Vec::new() };
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let how = How { namespaces, ..How::default() };
            let mut life = subject.restore_as(&parked.image, Data::Shared(parked.data.as_fd()), &how).unwrap();
            assert_eq!(life.line.ask("errno"), "errno Some(9)");
            column.answered.push(begun.elapsed().as_micros());
            column.add(&life.steps);
            life.end();
        }
        column
    }

    fn add(&mut self, steps: &[(Step, Duration)]) {
        let mut before = Duration::ZERO;
        for (at, (step, done)) in steps.iter().enumerate() {
            if self.steps.len() == at {
                self.steps.push((*step, Vec::new()));
            }
            self.steps[at].1.push((*done - before).as_micros());
            before = *done;
        }
    }

    fn print(mut self) {
        println!("{}, µs, medians of {ROUNDS}", self.name);
        for (step, shares) in &mut self.steps {
            println!("  {:10} {:6}", format!("{step:?}"), median(shares));
        }
        let shares = self.steps.iter_mut().map(|(_, shares)| median(shares)).sum::<u128>();
        println!("  {:10} {shares:6}", "sum");
        self.answered.sort_unstable();
        println!("  start to first answer {}, least {}", self.answered[ROUNDS / 2], self.answered[0]);
    }
}

fn median(shares: &mut [u128]) -> u128 {
    shares.sort_unstable();
    shares[shares.len() / 2]
}

#[test]
fn figures() {
    let subject = Subject::start();
    Column::take("no new namespaces", &subject, 0).print();
    Column::take("pid, mount, IPC, host name and network namespaces", &subject, NAMESPACES).print();
}
