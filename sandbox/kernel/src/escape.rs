//! Ways out of a sandbox, each by its name and ready to be tried: a layer that is set up is not yet a layer that holds.
//!
//! ```text
//!  named("socket AF_INET") ──▶ Escape ──attempt()──▶ Ok        it got through
//!                                                    Err       the kernel refused it
//!                                                    no answer the kernel ended the process over it
//! ```
//! Tried from inside by the warden's tests, one instance for each. An attempt must not be refused because it is badly
//! made, so those that do no harm say that they [work outside](Outside::Works), and are tried there as well, as root.
//!
//! Left out: bugs of the kernel, and side channels of the hardware.
#![allow(unsafe_code)]

mod bombs;
mod files;
mod identity;
mod machine;
mod memory;
mod network;
mod processes;

pub use bombs::MEMORY_BOMBS;

use nix::{Result, errno::Errno, libc};

/// What comes of an attempt outside of any sandbox, by root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It gets through and does no harm to anyone but the process that makes it.
    Works,
    /// It would do harm, or needs what only an instance or only some hosts have.
    Untried,
}

/// One way out.
#[derive(Clone, Copy, Debug)]
pub struct Escape {
    /// Its name.
    pub name: &'static str,
    /// What comes of it outside.
    pub outside: Outside,
    attempt: fn() -> Result<()>,
}

impl Escape {
    /// Tries it.
    ///
    /// # Errors
    /// The kernel refused it, which is how it should be in a sandbox.
    pub fn attempt(&self) -> Result<()> {
        (self.attempt)()
    }
}

/// Every way out.
pub fn all() -> impl Iterator<Item = &'static Escape> {
    let kinds = [network::ALL, files::ALL, processes::ALL, identity::ALL, memory::ALL, machine::ALL, bombs::ALL];
    kinds.into_iter().flatten()
}

/// The way out of this name.
pub fn named(name: &str) -> Option<&'static Escape> {
    all().find(|escape| escape.name == name)
}

const fn works(name: &'static str, attempt: fn() -> Result<()>) -> Escape {
    Escape { name, outside: Outside::Works, attempt }
}

const fn untried(name: &'static str, attempt: fn() -> Result<()>) -> Escape {
    Escape { name, outside: Outside::Untried, attempt }
}

/// A raw call: an attempt is about what the kernel does, not about what a wrapper makes of it.
fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<()> {
    value(number, arguments).map(drop)
}

/// The same, for what it answers.
fn value<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<usize> {
    let argument = |index| arguments.get(index).copied().unwrap_or(0);
    let [a, b, c, d, e, f] = std::array::from_fn(argument);
    // SAFETY: wrappers hide calls, or refuse them themselves. Callers, all below this module, pass numbers, null where the
    // kernel takes it, addresses of strings and structures that outlive the call, or of pages mapped for the attempt.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) }).map(|value| value as usize)
}

/// The address of a string.
const fn text(string: &'static std::ffi::CStr) -> *const libc::c_char {
    string.as_ptr()
}

/// The current directory, where a path is relative to nothing else.
const HERE: usize = libc::AT_FDCWD as usize;
/// The one file of a sandbox.
const MODEL: &std::ffi::CStr = c"/model.gguf";
/// An instance's socket.
const SOCKET: usize = crate::spec::SOCKET as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = all().map(|escape| escape.name).collect();
        assert_eq!(names.len(), all().count());
        assert!(names.len() >= 60, "{}", names.len());
        assert!(names.into_iter().all(|name| named(name).is_some_and(|escape| escape.name == name)));
        assert!(named("none").is_none());
    }
}
