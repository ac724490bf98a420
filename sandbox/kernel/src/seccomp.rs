//! The system calls that a sandboxed process may make; any other ends it.
//!
//! ```text
//!  policy (rules: call, checks of its arguments, answer) ──compile()──▶ Filter (classic BPF) ──install()──▶ in force
//!
//!  foreign architecture? ── yes ──▶ kill
//!  call number = …?  ──▶ checks of the first rule hold? ──▶ its answer
//!                                  │ no
//!                                  ▼ next rule of this call … none is left ──▶ kill
//!  no rule ──▶ kill
//! ```
//!
//! There are two filters. [`starting`] is put on by the child itself, as its last step before it becomes the program: no
//! instruction of the program runs without it, and the program need not be trusted to confine itself. It has to allow the
//! one `execveat` that starts the program. That call is pinned to a descriptor which closes at that very exec and whose
//! number lies above the limit on descriptors, so that it can never be open again, and to the addresses of its arguments
//! in a memory that the exec replaces. [`sealed`] is for a process that needs no start, because its memory is restored:
//! it has neither `execveat` nor `openat` nor anything else of a start, and can be put on top of the first.
//!
//! Invariants: a filter can only be narrowed later, never taken off. Numbers are compared whole, so that the x32 calls,
//! which carry a bit of their own, match nothing. Arguments are compared at the width that the kernel reads. No memory is
//! ever made executable: what runs is what was in the program's file.
//!
//! Left out: pointers are not followed, which a filter cannot do. Hence `clone3`, whose flags lie behind one, is answered
//! ENOSYS, and the C library falls back to `clone`. x86-64 only, as the rest of the fence.
#![allow(unsafe_code)]

#[cfg(test)]
mod interpreter;
mod policy;

pub use policy::{Start, sealed, starting};

use nix::{Result, errno::Errno, libc};

/// One instruction: `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

/// A filter, ready to be installed.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} instructions", self.0.len())
    }
}

impl Filter {
    /// How many instructions it has.
    pub fn instructions(&self) -> u16 {
        u16::try_from(self.0.len()).expect("a policy compiles to a few hundred instructions")
    }

    /// Its instructions as the kernel reads them, 8 bytes each: for a process that installs it by a table of calls.
    pub fn encode(&self) -> Vec<u8> {
        let encode = |instruction: &Instruction| {
            let [a, b] = instruction.code.to_ne_bytes();
            let [e, f, g, h] = instruction.operand.to_ne_bytes();
            [a, b, instruction.jump_true, instruction.jump_false, e, f, g, h]
        };
        self.0.iter().flat_map(encode).collect()
    }

    /// Puts the calling thread under it, for good. One system call; allocates nothing. Needs no_new_privs.
    pub(crate) fn install(&self) -> Result<()> {
        let program = libc::sock_fprog { len: self.instructions(), filter: self.0.as_ptr().cast_mut().cast() };
        // SAFETY: nix has no seccomp. The program's length is its own, it outlives the call, an instruction is laid out as
        // a sock_filter, and the kernel only reads it.
        let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        Errno::result(set).map(drop)
    }
}

/// What a call that matches is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    /// The call is not made, and its caller is told this.
    Fail(Errno),
}

/// A condition on an argument: what the mask leaves of it is this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    argument: u8,
    mask: u64,
    value: u64,
}

/// An answer to a call, if all checks hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    call: u32,
    checks: Vec<Check>,
    answer: Answer,
}

/// Offsets in `struct seccomp_data` of `linux/seccomp.h`.
const CALL_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;
/// `AUDIT_ARCH_X86_64` of `linux/audit.h`: little-endian, 64 bits, EM_X86_64.
const X86_64: u32 = 0xc000_003e;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

const fn plain(code: u32, operand: u32) -> Instruction {
    Instruction { code: code as u16, jump_true: 0, jump_false: 0, operand }
}

const fn load(offset: u32) -> Instruction {
    plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

const fn answer(value: u32) -> Instruction {
    plain(libc::BPF_RET | libc::BPF_K, value)
}

/// Goes on if the value loaded is this, and leaves out the next `skipped` instructions otherwise.
fn unless_skip(value: u32, skipped: usize) -> Instruction {
    let jump_false = u8::try_from(skipped).expect("the rules of one call are short");
    Instruction { jump_false, ..plain(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value) }
}

/// Leaves out the next `skipped` instructions if the value loaded is this or more.
fn skip_from(value: u32, skipped: usize) -> Instruction {
    let jump_true = u8::try_from(skipped).expect("half of the rules is short");
    Instruction { jump_true, ..plain(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, value) }
}

/// Rules must be in the order of their calls; of one call the first that holds answers.
fn compile(rules: &[Rule]) -> Filter {
    let own_architecture = Instruction { jump_true: 1, ..unless_skip(X86_64, 0) };
    let mut program = vec![load(ARCHITECTURE_OFFSET), own_architecture, answer(KILL), load(CALL_OFFSET)];
    let calls: Vec<_> = rules.chunk_by(|one, next| one.call == next.call).collect();
    program.extend(search(&calls));
    Filter(program)
}

/// Finds a call by halves: the kernel tries a filter with each call there is when it is installed, and at each call later.
fn search(calls: &[&[Rule]]) -> Vec<Instruction> {
    if let [] | [_] = calls {
        let mut found: Vec<_> = calls.iter().flat_map(|rules| compile_call(rules)).collect();
        found.push(answer(KILL));
        return found;
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let first_high = high[0][0].call;
    let low = search(low);
    let mut program = vec![skip_from(first_high, low.len())];
    program.extend(low);
    program.extend(search(high));
    program
}

fn compile_call(rules: &[Rule]) -> Vec<Instruction> {
    let mut body: Vec<_> = rules.iter().flat_map(compile_rule).collect();
    body.push(answer(KILL));
    body.insert(0, unless_skip(rules[0].call, body.len()));
    body
}

/// The checks, each of which skips what is left of the rule when it does not hold, and the answer.
fn compile_rule(rule: &Rule) -> Vec<Instruction> {
    let value = match rule.answer {
        Answer::Allow => libc::SECCOMP_RET_ALLOW,
        Answer::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
    };
    let mut reversed = vec![answer(value)];
    for half in rule.checks.iter().flat_map(Check::halves).rev() {
        reversed.push(unless_skip(half.value, reversed.len()));
        reversed.extend(half.mask());
        reversed.push(load(half.offset));
    }
    reversed.reverse();
    reversed
}

/// A check of 32 bits, which is what the filter's machine can compare.
struct Half {
    offset: u32,
    mask: u32,
    value: u32,
}

impl Half {
    fn mask(&self) -> Option<Instruction> {
        (self.mask != u32::MAX).then_some(plain(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, self.mask))
    }
}

impl Check {
    /// The halves of the argument that the mask does not leave out.
    fn halves(&self) -> impl DoubleEndedIterator<Item = Half> {
        let offset = ARGUMENTS_OFFSET + 8 * u32::from(self.argument);
        let low = Half { offset, mask: self.mask as u32, value: self.value as u32 };
        let high = Half { offset: offset + 4, mask: (self.mask >> 32) as u32, value: (self.value >> 32) as u32 };
        [low, high].into_iter().filter(|half| half.mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{interpreter::run, *};

    const A: Check = Check { argument: 0, mask: u64::MAX, value: 0x1_0000_0002 };
    const B: Check = Check { argument: 5, mask: 0xff, value: 7 };

    fn rule(call: u32, checks: &[Check], answer: Answer) -> Rule {
        Rule { call, checks: checks.to_vec(), answer }
    }

    fn filter() -> Filter {
        compile(&[
            rule(1, &[A, B], Answer::Allow),
            rule(1, &[B], Answer::Fail(Errno::EPERM)),
            rule(2, &[], Answer::Fail(Errno::ENOSYS)),
            rule(3, &[], Answer::Allow),
        ])
    }

    fn answered(call: u32, first: u64, last: u64) -> u32 {
        run(&filter(), X86_64, call, [first, 0, 0, 0, 0, last])
    }

    #[test]
    fn the_first_rule_that_holds_answers() {
        assert_eq!(answered(1, 0x1_0000_0002, 7), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answered(1, 0x1_0000_0002, 0xffff_ff07), libc::SECCOMP_RET_ALLOW);
        let refused = libc::SECCOMP_RET_ERRNO | Errno::EPERM as u32;
        assert_eq!([answered(1, 2, 7), answered(1, 0x1_0000_0003, 7), answered(1, 0x2_0000_0002, 7)], [refused; 3]);
        assert_eq!(answered(2, 0, 0), libc::SECCOMP_RET_ERRNO | Errno::ENOSYS as u32);
        assert_eq!(answered(3, 9, 9), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn everything_else_is_killed() {
        for (call, first, last) in [(0, 0, 0), (4, 0, 0), (u32::MAX, 0, 0), (1, 0x1_0000_0002, 8), (1 << 30 | 3, 0, 0)]
        {
            assert_eq!(answered(call, first, last), KILL, "{call}");
        }
    }

    #[test]
    fn each_call_is_found_among_many() {
        for count in [0, 1, 2, 3, 7, 30] {
            let rules: Vec<_> = (0..count).map(|at| rule(5 + 3 * at, &[], Answer::Allow)).collect();
            let filter = compile(&rules);
            for call in 0..128 {
                let is_allowed = rules.iter().any(|rule| rule.call == call);
                let expected = if is_allowed { libc::SECCOMP_RET_ALLOW } else { KILL };
                assert_eq!(run(&filter, X86_64, call, [0; 6]), expected, "{call} of {count}");
            }
        }
    }

    #[test]
    fn foreign_architectures_are_killed() {
        const I386: u32 = 0x4000_0003;
        for architecture in [I386, 0, X86_64 ^ 1] {
            assert_eq!(run(&filter(), architecture, 3, [0; 6]), KILL);
        }
    }

    #[test]
    fn it_is_encoded_as_the_kernel_reads_it() {
        assert_eq!(filter().encode().len(), 8 * usize::from(filter().instructions()));
        assert_eq!(filter().encode()[..8], [0x20, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
    }
}
