//! General registers as the bytes that an image keeps.
//!
//! An image's registers stand at the `syscall` instruction of the call that the thread waits in: `rip` at the
//! instruction, `rax` the call's number, `orig_rax` all ones. Going on makes the call anew, with the same arguments.

use nix::libc;
use sandbox_kernel::trace::Registers;

/// `orig_rax` of a thread that is in no system call.
pub(crate) const NO_CALL: u64 = u64::MAX;
/// The `syscall` instruction.
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Errors of the kernel's own that a thread shows while it is stopped in a call (`linux/errno.h`).
const RESTARTS: [i64; 4] = [-512, -513, -514, -516];

/// The registers as they were before the call that the thread is stopped in; `None` when it is in none that can be made
/// anew.
pub(crate) fn rewound(mut registers: Registers) -> Option<Registers> {
    let result = registers.rax as i64;
    let again = RESTARTS.contains(&result) || result == -i64::from(libc::EINTR);
    // What `restart_syscall` goes on with, only the kernel knows.
    if [NO_CALL, libc::SYS_restart_syscall as u64].contains(&registers.orig_rax) || !again {
        return None;
    }
    registers.rax = registers.orig_rax;
    registers.rip = registers.rip.wrapping_sub(SYSCALL.len() as u64);
    registers.orig_rax = NO_CALL;
    Some(registers)
}

/// The registers of a thread that is about to make a call from the `syscall` instruction at `rip`.
pub(crate) fn calling(mut registers: Registers, number: libc::c_long, arguments: [u64; 6]) -> Registers {
    registers.rax = number as u64;
    registers.orig_rax = NO_CALL;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
    registers
}

/// The bytes of `user_regs_struct`.
pub(crate) fn to_bytes(r: &Registers) -> Vec<u8> {
    let words = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The registers in the bytes of `user_regs_struct`.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Registers> {
    let (words, []) = bytes.as_chunks::<8>() else { return None };
    let words: [u64; 27] = words.iter().map(|word| u64::from_ne_bytes(*word)).collect::<Vec<_>>().try_into().ok()?;
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, ..] = words;
    let [.., rip, cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs] = words;
    #[rustfmt::skip]
    let registers = Registers {
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax,
        rip, cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs,
    };
    Some(registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> Registers {
        let bytes: Vec<u8> = (1..=27_u64).flat_map(u64::to_ne_bytes).collect();
        from_bytes(&bytes).unwrap()
    }

    #[test]
    fn bytes_and_back() {
        let registers = numbered();
        assert_eq!((registers.r15, registers.orig_rax, registers.rip, registers.gs), (1, 16, 17, 27));
        assert_eq!(from_bytes(&to_bytes(&registers)), Some(registers));
        assert_eq!(from_bytes(&[0; 215]), None);
        assert_eq!(from_bytes(&[0; 224]), None);
    }

    #[test]
    fn a_waiting_thread_is_put_before_its_call() {
        let waiting = Registers { rax: -512_i64 as u64, orig_rax: 0, rip: 0x1002, ..numbered() };
        let before = rewound(waiting).unwrap();
        assert_eq!((before.rax, before.orig_rax, before.rip), (0, NO_CALL, 0x1000));
        assert_eq!(rewound(Registers { orig_rax: NO_CALL, ..waiting }), None);
        assert_eq!(rewound(Registers { rax: 5, ..waiting }), None);
        assert_eq!(rewound(Registers { orig_rax: libc::SYS_restart_syscall as u64, ..waiting }), None);
    }

    #[test]
    fn a_call_is_made_with_its_arguments() {
        let calling = calling(numbered(), 11, [1, 2, 3, 4, 5, 6]);
        assert_eq!((calling.rax, calling.rdi, calling.r9, calling.orig_rax), (11, 1, 6, NO_CALL));
    }
}
