//! The fence round the kernel: every system call a sandbox is made of, behind a small safe surface.
//!
//! ```text
//!  Sandbox (a value) ──plan()──▶ [Step, Step, …] ──spawn()──▶ Child (pid, pidfd)
//!                                  pure, tested without root     one clone3; the child walks the steps and execs
//!                                  a Table, where the child is restored (confine)
//!  Limits (a value) ──Cgroups::create()──▶ Cgroup                written, then read back
//!  Child ──audit──▶ as it was asked for, or the layer that is not    read from outside; escape: tried from inside
//! ```
//!
//! Invariants: what a sandbox asks of the kernel is data before it is done; a step that fails ends the child and comes
//! back as the name of its layer; every descriptor made here is close-on-exec. `unsafe` lives in the modules that say
//! `allow(unsafe_code)` and nowhere else.

pub mod audit;
pub mod cgroup;
pub mod confine;
pub mod cores;
pub mod disk;
pub mod escape;
pub mod hardware;
pub mod identity;
pub mod landlock;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod mounts;
pub mod pidfd;
pub mod pressure;
pub mod probe;
pub mod process;
pub mod ready;
pub mod ring;
pub mod seccomp;
pub mod socket;
pub mod spawn;
pub mod spec;
pub mod table;
pub mod trace;
