//! A process under a filter of system calls is restored, held to it, and captured all the same.

use crate::harness::{How, Subject, capture};
use nix::libc::{self, c_long};
use sandbox_image::{Data, NoDevice};
use sandbox_kernel::{pidfd::Ended, table::Table};
use std::os::fd::AsFd;

/// What a subject needs to count, and what a restore needs at its end.
const ALLOWED: [c_long; 3] = [libc::SYS_read, libc::SYS_write, libc::SYS_munmap];

/// One instruction of a filter: {code: u16, if true: u8, if false: u8, operand: u32}.
fn instruction(code: u32, if_true: u8, if_false: u8, operand: u32) -> u64 {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
}

fn filter() -> Vec<u64> {
    let answer = |operand| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, operand);
    let mut filter = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in ALLOWED {
        filter.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32));
        filter.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    filter.push(answer(libc::SECCOMP_RET_KILL_PROCESS));
    filter
}

fn seal(table: &mut Table) {
    let filter = filter();
    let mut put = |words: &[u64]| table.put(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>());
    let instructions = put(&filter);
    let program = put(&[filter.len() as u64, instructions]);
    table.call(libc::SYS_seccomp, &[u64::from(libc::SECCOMP_SET_MODE_FILTER), 0, program]);
}

#[test]
fn it_is_restored_captured_and_held_to_its_filter() {
    let mut subject = Subject::start();
    let parked = subject.park();
    let sealed = How { seal: &seal, ..How::default() };
    let mut life = subject.restore_as(&parked.image, Data::Shared(parked.data.as_fd()), &sealed).unwrap();
    assert_eq!(life.line.ask("count"), subject.line.ask("count"));
    assert_eq!(life.line.ask("clock"), "clock true");
    // It asks for the time without a call, and for a thread with one.
    assert_eq!(life.line.ask("thread"), "");
    assert_eq!(life.child.wait(), Ok(Ended::Signal(libc::SIGSYS)));
}

#[test]
fn what_its_filter_forbids_is_still_learned() {
    let mut subject = Subject::start();
    let parked = subject.park();
    let sealed = How { seal: &seal, ..How::default() };
    let write = |memory: &sandbox_image::Memory| parked.write(memory);
    let mut life = subject.restore_as(&parked.image, Data::Written(&write), &sealed).unwrap();
    let held = capture(life.child.pid(), &subject.program, &subject.model, &NoDevice).unwrap();
    assert_eq!(held.image().process, parked.image.process);
    held.resume().unwrap();
    assert_eq!(life.line.ask("count"), subject.line.ask("count"));
    assert_eq!(life.line.ask("thread"), "");
    assert_eq!(life.child.wait(), Ok(Ended::Signal(libc::SIGSYS)));
}
