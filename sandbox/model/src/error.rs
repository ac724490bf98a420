//! What can go wrong before a model answers, and how failures of a request are made.
//!
//! A model that cannot be used is a [`LoadError`] and ends the runner; a request that cannot be served is the wire's own
//! [`Failure`], so that it travels as it is.

use sandbox_wire::runner::Failure;
use std::path::PathBuf;

/// Why a model cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// llama.cpp did not start.
    #[error("llama.cpp did not start: {reason}")]
    Backend {
        /// What it said.
        reason: String,
    },
    /// llama.cpp could not read the file.
    #[error("load `{path}`: {reason}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// The file is read, but does not do what the function needs.
    #[error("the model does not fit the function: {reason}")]
    Unfit {
        /// What is missing.
        reason: String,
    },
    /// A field of the load order is out of range.
    #[error("`{field}` is {value}; it must be 1 to {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u32,
        /// The most it may hold.
        max: u32,
    },
    /// llama.cpp could not make room for the context.
    #[error("make a context of {context_tokens} tokens: {reason}")]
    Context {
        /// Tokens asked for.
        context_tokens: u32,
        /// What llama.cpp said.
        reason: String,
    },
    /// Our pinned wrapper of llama.cpp is not the one that we know.
    #[error("llama-cpp-2 does not show where its context is")]
    Wrapper,
    /// The function's own prompt leaves no room for a question.
    #[error("the system prompt has {prefix_tokens} tokens; the context holds {context_tokens}")]
    SystemTooLong {
        /// Tokens every chat would begin with.
        prefix_tokens: u32,
        /// Tokens a sequence may hold.
        context_tokens: u32,
    },
    /// The function's own prompt could not be fed.
    #[error("feed the system prompt: {reason}")]
    Prefix {
        /// What llama.cpp said.
        reason: String,
    },
}

impl LoadError {
    /// The failure of feeding the function's own prompt.
    pub(crate) fn of_prefix(failure: Failure) -> Self {
        match failure {
            Failure::Internal { message } => Self::Prefix { reason: message },
            other => Self::Prefix { reason: format!("{other:?}") },
        }
    }
}

/// A failure that is the caller's fault.
pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Failure {
    Failure::Invalid { param: param.to_owned(), message: message.into() }
}

/// A failure of llama.cpp, with what it logged about it.
pub(crate) fn internal(error: impl std::fmt::Display) -> Failure {
    let message = match crate::log::take() {
        said if said.is_empty() => error.to_string(),
        said => format!("{error}: {said}"),
    };
    Failure::Internal { message }
}
