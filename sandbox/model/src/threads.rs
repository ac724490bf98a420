//! How many threads compute in a context, changed between two decodes.
//!
//! llama-cpp-2 0.1.160 takes the number when a context is made and has no call to change it, nor a pointer to make one
//! with; its `Debug` prints the pointer. Left out: a thread pool of our own, which would outlive a decode: a snapshot wants
//! one thread.

#![allow(unsafe_code)]

use crate::error::LoadError;
use llama_cpp_2::context::LlamaContext;
use std::ptr::with_exposed_provenance_mut;

/// The number of threads of one context.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Where the context is; C++ owns it, so it does not move.
    address: usize,
    most: u32,
}

impl Threads {
    /// Those of a context that was made with `most` threads.
    ///
    /// # Errors
    /// The wrapper's `Debug` is not what it was.
    pub(crate) fn of(context: &LlamaContext<'_>, most: u32) -> Result<Self, LoadError> {
        let address = address(&format!("{context:?}")).ok_or(LoadError::Wrapper)?;
        Ok(Self { address, most })
    }

    /// Has decodes from now on use `count` threads, within 1 and what the context was made with; gives how many.
    pub(crate) fn set(&self, _exclusive: &mut LlamaContext<'_>, count: u32) -> u32 {
        let count = count.clamp(1, self.most);
        let threads = i32::try_from(count).expect("no more than the context was made with");
        // SAFETY: needed because the wrapper has no call for it; it holds because the address is the one that the pinned
        // wrapper's derived `Debug` prints of its only pointer, the context lives as long as the wrapper, which the caller
        // borrows exclusively, and the call changes two numbers that the next decode reads.
        unsafe { llama_cpp_sys_2::llama_set_n_threads(with_exposed_provenance_mut(self.address), threads, threads) };
        count
    }
}

/// The pointer in `LlamaContext { context: 0x7f… }`.
fn address(shown: &str) -> Option<usize> {
    let hex = shown.strip_prefix("LlamaContext { context: 0x")?.strip_suffix(" }")?;
    usize::from_str_radix(hex, 16).ok().filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_known_form_is_an_address() {
        assert_eq!(address("LlamaContext { context: 0x7f00 }"), Some(0x7f00));
        for other in ["LlamaContext { context: 0x0 }", "LlamaContext { context: 7f00 }", "LlamaContext", "0x7f00"] {
            assert_eq!(address(other), None, "{other}");
        }
    }
}
