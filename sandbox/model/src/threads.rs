//! The threads that compute in a context: how many, changed between two decodes, and the pool of them.
//!
//! ```text
//!  loaded: one thread ──first request──▶ pool of `most` ──▶ computes ◀──▶ sleeps          (a request, none)
//!                                            │ fewer are lent: the pool pauses, and llama.cpp makes threads for each decode
//! ```
//! Left to itself llama.cpp makes its threads for each decode and ends them after it, and the kernel chooses a core for each
//! anew, at times the one that its maker spins on. A pool's threads live on, and sleep at once where there is nothing to do.
//!
//! Invariant: there is no pool before the first request: a snapshot wants one thread. It lives to the end of the process:
//! llama.cpp looks at the pool it had before it takes another, or none.
//!
//! llama-cpp-2 0.1.160 takes the number when a context is made and has no call to change it, nor a pointer to make one
//! with; its `Debug` prints the pointer.

#![allow(unsafe_code)]

use crate::error::LoadError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_sys_2::{
    ggml_threadpool, ggml_threadpool_free, ggml_threadpool_new, ggml_threadpool_params_default,
    llama_attach_threadpool, llama_context, llama_detach_threadpool, llama_set_n_threads,
};
use std::ptr::{NonNull, with_exposed_provenance_mut};

/// How long a thread spins for the next decode before it sleeps, in llama.cpp's unit of some milliseconds: not at all.
const POLL: u32 = 0;

/// The threads of one context.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Where the context is; C++ owns it, so it does not move.
    address: usize,
    most: u32,
    count: u32,
    pool: Option<Pool>,
}

impl Threads {
    /// Those of a context that was made with `most` threads.
    ///
    /// # Errors
    /// The wrapper's `Debug` is not what it was.
    pub(crate) fn of(context: &LlamaContext<'_>, most: u32) -> Result<Self, LoadError> {
        let address = address(&format!("{context:?}")).ok_or(LoadError::Wrapper)?;
        Ok(Self { address, most, count: most, pool: None })
    }

    /// Has decodes from now on use `count` threads, within 1 and what the context was made with; gives how many.
    pub(crate) fn set(&mut self, context: &mut LlamaContext<'_>, count: u32) -> u32 {
        self.count = count.clamp(1, self.most);
        let threads = i32::try_from(self.count).expect("no more than the context was made with");
        // SAFETY: needed because the wrapper has no call for it; it holds by `context`, and because the call changes two
        // numbers that the next decode reads.
        unsafe { llama_set_n_threads(self.context(), threads, threads) };
        self.attach();
        self.gather(context);
        self.count
    }

    /// Has a pool ready, if there is to be one; before each decode of a request.
    pub(crate) fn gather(&mut self, _exclusive: &mut LlamaContext<'_>) {
        if self.pool.is_none() && self.count == self.most && self.most > 1 {
            self.pool = Pool::new(self.most);
            self.attach();
        }
    }

    /// Has decodes from now on use the pool where it is as large as they are.
    fn attach(&self) {
        match &self.pool {
            // SAFETY: needed because the wrapper has no call for it; it holds by `context`, and because the pool lives as
            // long as this, which is dropped after the context (see `Engine`).
            Some(Pool(pool)) if self.count == self.most => unsafe {
                llama_attach_threadpool(self.context(), pool.as_ptr(), pool.as_ptr());
            },
            // SAFETY: as above; the call forgets two pointers.
            _ => unsafe { llama_detach_threadpool(self.context()) },
        }
    }

    /// The address is the one that the pinned wrapper's derived `Debug` prints of its only pointer, and the context lives as
    /// long as the wrapper, which callers of what is public here borrow exclusively.
    fn context(&self) -> *mut llama_context {
        with_exposed_provenance_mut(self.address)
    }
}

/// llama.cpp's pool of threads.
#[derive(Debug)]
struct Pool(NonNull<ggml_threadpool>);

impl Pool {
    /// `threads` of them, the caller's included.
    fn new(threads: u32) -> Option<Self> {
        let threads = i32::try_from(threads).expect("no more than the context was made with");
        // SAFETY: needed because the wrapper has no call for it; the first call gives a plain value, and the second reads
        // it and keeps nothing of it.
        let pool = unsafe {
            let mut params = ggml_threadpool_params_default(threads);
            params.poll = POLL;
            ggml_threadpool_new(&raw mut params)
        };
        NonNull::new(pool).map(Self)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, is freed once, and no decode is under way that could use it.
        unsafe { ggml_threadpool_free(self.0.as_ptr()) };
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
