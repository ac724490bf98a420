//! llama.cpp's log: silent, but its last errors are kept, since a failed call says why only there.
//!
//! Invariants: at most [`LINES_MAX`] lines of [`LINE_BYTES_MAX`] bytes are held (a hostile model chooses the text);
//! the callback never panics, as nothing may unwind into C++.

#![allow(unsafe_code)]

use llama_cpp_sys_2::{GGML_LOG_LEVEL_CONT, GGML_LOG_LEVEL_ERROR, ggml_log_level};
use std::{
    collections::VecDeque,
    ffi::{CStr, c_char, c_void},
    sync::{Mutex, MutexGuard, PoisonError},
};

const LINES_MAX: usize = 6;
const LINE_BYTES_MAX: usize = 400;

static LOG: Mutex<Log> = Mutex::new(Log { errors: VecDeque::new(), continues: false });

/// The errors since they were last taken.
struct Log {
    errors: VecDeque<String>,
    /// Whether the message before this one was an error, which a continuation belongs to.
    continues: bool,
}

impl Log {
    fn push(&mut self, level: ggml_log_level, text: &str) {
        match level {
            GGML_LOG_LEVEL_ERROR => {
                self.errors.push_back(cut(text));
                self.errors.drain(..self.errors.len().saturating_sub(LINES_MAX));
                self.continues = true;
            }
            GGML_LOG_LEVEL_CONT if self.continues => {
                if let Some(line) = self.errors.back_mut() {
                    *line = cut(&format!("{line}{text}"));
                }
            }
            GGML_LOG_LEVEL_CONT => {}
            _ => self.continues = false,
        }
    }

    fn take(&mut self) -> String {
        let lines: Vec<String> = self.errors.drain(..).map(|line| line.trim().to_owned()).collect();
        lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// Sends llama.cpp's and ggml's log here instead of to stderr.
pub(crate) fn capture() {
    // SAFETY: needed because only the C API can set the callback; `record` has the type it asks for, lives for ever, and
    // ignores its user data, so that null is fine.
    unsafe { llama_cpp_sys_2::llama_log_set(Some(record), std::ptr::null_mut()) }
}

/// What went wrong since the last call, on one line; empty when nothing was said.
pub(crate) fn take() -> String {
    log().take()
}

fn log() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LINE_BYTES_MAX)].to_owned()
}

unsafe extern "C" fn record(level: ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: needed because C hands over a pointer; llama.cpp formats each message into a string that ends with NUL and
    // lives until the callback returns, and it is copied before that.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    log().push(level, &text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_errors_only() {
        let mut log = Log { errors: VecDeque::new(), continues: false };
        log.push(2, "loading\n");
        log.push(GGML_LOG_LEVEL_CONT, "ignored\n");
        for n in 0..10 {
            log.push(GGML_LOG_LEVEL_ERROR, &format!("error {n}"));
            log.push(GGML_LOG_LEVEL_CONT, " goes on\n");
        }
        log.push(3, "warning\n");
        log.push(GGML_LOG_LEVEL_CONT, "ignored\n");
        assert_eq!(log.errors.len(), LINES_MAX);
        assert!(log.take().starts_with("error 4 goes on; error 5 goes on"));
        assert_eq!(log.take(), "");
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let mut log = Log { errors: VecDeque::new(), continues: false };
        log.push(GGML_LOG_LEVEL_ERROR, &"é".repeat(1000));
        assert!(log.take().len() <= LINE_BYTES_MAX);
    }
}
