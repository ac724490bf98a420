//! Ways to become someone else: ids, capabilities, keys, and the switches of `prctl`.

use super::{Escape, call, text, untried, value, works};
use nix::{Result, libc};

fn prctl(option: libc::c_int, arguments: [usize; 2]) -> Result<()> {
    call(libc::SYS_prctl, [option as usize, arguments[0], arguments[1], 0, 0])
}

/// Version 3 of the capability calls, and this process.
static HEADER: [u32; 2] = [0x2008_0522, 0];

pub(super) const ALL: &[Escape] = &[
    works("become user 0", || call(libc::SYS_setuid, [0])),
    works("become group 0", || call(libc::SYS_setgid, [0])),
    works("become user 0 by setresuid", || call(libc::SYS_setresuid, [0, 0, 0])),
    works("become group 0 by setresgid", || call(libc::SYS_setresgid, [0, 0, 0])),
    works("see files as user 0", || value(libc::SYS_setfsuid, [0]).map(drop)),
    works("join groups", || {
        let groups = [0_u32];
        call(libc::SYS_setgroups, [1, (&raw const groups) as usize])
    }),
    works("set its capabilities", || {
        let none = [0_u32; 6];
        call(libc::SYS_capset, [(&raw const HEADER) as usize, (&raw const none) as usize])
    }),
    untried("claim every capability", || {
        let all = [u32::MAX; 6];
        call(libc::SYS_capset, [(&raw const HEADER) as usize, (&raw const all) as usize])
    }),
    untried("raise an ambient capability", || {
        prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as usize, CAP_SYS_ADMIN])
    }),
    works("set its securebits", || prctl(libc::PR_SET_SECUREBITS, [0, 0])),
    untried("take its filter off", || prctl(libc::PR_SET_SECCOMP, [0, 0])),
    works("ask about filters", || {
        let action = libc::SECCOMP_RET_KILL_PROCESS;
        call(libc::SYS_seccomp, [libc::SECCOMP_GET_ACTION_AVAIL as usize, 0, (&raw const action) as usize])
    }),
    works("become dumpable", || prctl(libc::PR_SET_DUMPABLE, [1, 0])),
    works("outlive its parent", || prctl(libc::PR_SET_PDEATHSIG, [0, 0])),
    works("take a name", || prctl(libc::PR_SET_NAME, [text(c"warden") as usize, 0])),
    untried("move its program break", || prctl(libc::PR_SET_MM, [libc::PR_SET_MM_BRK as usize, 0])),
    works("adopt orphans", || prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0])),
    works("change its personality", || call(libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE as usize])),
    untried("make a key", || {
        let [kind, name] = [text(c"user") as usize, text(c"ember") as usize];
        call(libc::SYS_add_key, [kind, name, text(c"x") as usize, 1, KEYRING_OF_THREAD])
    }),
    untried("request a key", || call(libc::SYS_request_key, [text(c"user") as usize, text(c"ember") as usize, 0, 0])),
    untried("join a keyring", || call(libc::SYS_keyctl, [1, 0])),
];

const CAP_SYS_ADMIN: usize = 21;
/// `KEY_SPEC_THREAD_KEYRING` of `linux/keyctl.h`: -1.
const KEYRING_OF_THREAD: usize = usize::MAX;
