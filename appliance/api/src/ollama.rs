//! Ollama's API: the same requests, in the words of its clients.
//!
//! ```text
//!  /api/chat, /api/generate ─▶ Ask ─▶ Text ─▶ runner::Generate        as from OpenAI's words
//!                                └──▶ Load, Unload                    no prompt
//!  /api/embed ─▶ EmbeddingRequest
//!  runner::Text ─▶ LineWriter ─▶ {…,"done":false}⏎ … {…,"done":true, durations in ns, "ember": receipt}⏎
//! ```
//!
//! A model is a function; the tag `latest`, which Ollama's clients add, is taken off, and any other is no function.
//! Defaults are Ollama's: `temperature` 0.8, `top_p` 0.9, `top_k` 40, `min_p` 0, `repeat_penalty` 1.1 over 64 tokens, and
//! a stream unless refused. Penalties look at what was produced, and not at the prompt.
//!
//! Tools are offered as in OpenAI's words, but always to be called or not as the model likes; a call's arguments are an object.
//!
//! Options of how a model is loaded (`num_ctx`, `num_gpu`, `num_thread` and the like) are ignored, since the function's
//! manifest says that; so is `keep_alive` beside a prompt. What would change the answer and cannot be honoured
//! (`suffix`, `template`, `context`, `images`, `think`, `mirostat`, `typical_p`, `tfs_z`) is refused unless it asks for
//! nothing. Left out: pulling, creating and removing models, which are the operator's.

mod models;
mod reply;
mod request;

pub use models::{Details, Loaded, Shown, Tag, loaded_reply, show_reply, tags_reply, version_reply};
pub use reply::{LineWriter, embed_reply, load_reply, reply};
pub use request::{Ask, TextRequest, chat, embed, function_name, generate, show};

/// `content-type` of a stream of lines.
pub const CONTENT_TYPE_LINES: &str = "application/x-ndjson";
/// The release of Ollama whose API this is: what clients compare to learn what they may ask.
pub const OLLAMA_VERSION: &str = "0.13.0";
