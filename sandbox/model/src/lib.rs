//! The fence round llama.cpp: the only crate that names it, with a safe surface in the words of `sandbox_wire::runner`.
//!
//! ```text
//!  Model ──▶ Engine ── begin ──▶ Sequence ── step ──▶ Step { text, finished }
//!  (file)    (context, KV)       (one answer)         one decode each
//! ```
//!
//! - [`Model`]: the mapped file. Untrusted: it is parsed by llama.cpp, whose own words come back when it cannot be.
//! - [`Engine`]: one llama.cpp context. It turns prompts into tokens, keeps the prefix that all chats of the function
//!   begin with in the KV cache, and advances [`Sequence`]s by one shared decode at a time, so that its caller can look
//!   at the socket between any two.
//!
//! Invariants: a number or token that llama.cpp would abort on never reaches it; no answer depends on what
//! other tenants asked, but for rounding; no randomness but the request's seed, no clock but durations.
//! Left out: a ggml thread pool that outlives a decode (a snapshot wants one thread).

mod cache;
mod embedding;
mod engine;
mod error;
mod inherited;
mod literal;
mod log;
mod logprobs;
mod model;
mod prompt;
mod reuse;
mod sampler;
mod schema;
mod sequence;
mod share;
mod stop;
mod stream;
mod strftime;
mod template;
mod threads;
mod tools;
mod vocabulary;

pub use embedding::Embedding;
pub use engine::{Engine, Step};
pub use error::LoadError;
pub use inherited::inherited_socket;
pub use model::Model;
pub use sequence::Sequence;
