//! OpenAI's HTTP API, Ollama's, and a little of llama-server's as plain functions: JSON bytes to what a runner is asked,
//! what a runner says to JSON bytes.
//!
//! ```text
//!  body ─▶ field ─▶ chat | completion | embedding | llama | ollama ─▶ settings ─▶ runner::Generate …
//!  runner::Text … ─▶ dialect ─▶ reply | stream | ollama ─▶ body, `data: {…}` events or lines
//!  Record + Prices ─▶ receipt ─▶ usage
//! ```
//!
//! Invariants: a value that leaves here for a runner lies within the ranges that `sandbox_wire::runner` names; what
//! cannot be honoured is refused with its `param`, what is unknown is ignored; all memory that a body costs is bounded
//! by a small multiple of its length. Nothing here does I/O, reads a clock or draws a random number: ids, times and
//! seeds come in as arguments.

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod llama;
pub mod model;
pub mod ollama;
pub mod sse;

mod dialect;
mod error;
mod field;
mod format;
mod logprob;
mod message;
mod receipt;
mod reply;
mod settings;
mod stream;
mod tool;
mod usage;

pub use dialect::{Dialect, StreamWriter, Sum};
pub use error::ApiError;
pub use receipt::Receipt;
pub use reply::{ANSWER_BYTES_MAX, Answer, Head, finish_name};
pub use settings::{Bounds, Settings};
pub use stream::{ChunkWriter, Shape};
pub use tool::Offer;
pub use usage::{Timings, Usage};
