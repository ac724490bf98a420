//! The kernel's machine for filters, as far as [`super::compile`] uses it: what a filter answers is tested without one.

use super::{Filter, Instruction};
use nix::libc;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// What a filter answers to a call.
pub(super) fn run(filter: &Filter, architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
    // call, architecture, instruction pointer, arguments
    let mut data = vec![call, architecture, 0, 0];
    data.extend(arguments.into_iter().flat_map(|argument| [argument as u32, (argument >> 32) as u32]));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jump_true, jump_false, operand } = filter.0[at];
        at += 1;
        match u32::from(code) {
            LOAD => accumulator = data[operand as usize / 4],
            AND => accumulator &= operand,
            JUMP_IF_EQUAL if accumulator == operand => at += usize::from(jump_true),
            JUMP_IF_EQUAL => at += usize::from(jump_false),
            JUMP_IF_AT_LEAST if accumulator >= operand => at += usize::from(jump_true),
            JUMP_IF_AT_LEAST => at += usize::from(jump_false),
            RETURN => return operand,
            code => panic!("instruction {code:#x} is not used"),
        }
    }
}
