//! Server (and, until it is loaded, warden) ↔ runner.
//!
//! ```text
//!  warden                      runner
//!    │ ── Load ────────────────▶ │
//!    │ ◀─────── Loaded | LoadFailed
//!  server
//!    │ ── Threads ─────────────▶ │      between two steps
//!    │ ◀──────────── Threads ─── │      from now on
//!    │ ── Generate{id} ────────▶ │
//!    │ ◀────── Started{id} ───── │      the prompt is tokenized and fits
//!    │ ◀────── Text{id} ──────── │ ×n   whole UTF-8, stop strings already removed
//!    │ ◀────── Finished{id} ──── │      or Failed{id}: nothing more comes for this id
//!    │ ── Cancel{id} ──────────▶ │      answered by Finished{Cancelled}, at most one token later
//!    │ ── Pause{id} ───────────▶ │      at most one token later, until Resume{id}: nothing but the answer to a Cancel
//! ```
//!
//! Invariants: `id` is chosen by the server and is unique on its connection; every request gets exactly one last
//! message ([`FromRunner::Finished`], [`FromRunner::Failed`] or its single reply); a runner holds no randomness, so
//! every [`Generate`] brings its seed. A message that breaks these ends the connection, not the receiver. Runners know
//! callers by a [`Tenant`] only, and never let one profit from what another asked.

use appliance_types::Task;
use serde::{Deserialize, Serialize};

/// A request's number on one connection.
pub type Id = u64;

/// What a runner is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToRunner {
    /// Load the model; first and once.
    Load(Load),
    /// Produce text.
    Generate {
        /// Number for the replies.
        id: Id,
        /// What to produce.
        generate: Box<Generate>,
    },
    /// Turn a text into a vector.
    Embed {
        /// Number for the reply.
        id: Id,
        /// The text or tokens.
        input: Prompt,
        /// Take as much of it as fits the context, rather than refuse it.
        truncate: bool,
    },
    /// Turn text into tokens.
    Tokenize {
        /// Number for the reply.
        id: Id,
        /// The text.
        text: String,
        /// Add the model's begin and end tokens.
        add_special: bool,
        /// Read special tokens' text as those tokens.
        parse_special: bool,
    },
    /// Turn tokens into text.
    Detokenize {
        /// Number for the reply.
        id: Id,
        /// The tokens.
        tokens: Vec<u32>,
    },
    /// Render messages with the model's chat template.
    ApplyTemplate {
        /// Number for the reply.
        id: Id,
        /// The messages.
        messages: Vec<Message>,
    },
    /// Compute on this many threads, up to those that were loaded with.
    Threads {
        /// How many; at least 1.
        count: u32,
    },
    /// Stop working on a request.
    Cancel {
        /// The request.
        id: Id,
    },
    /// Compute nothing for a request's text; it keeps its slot until another request needs that.
    Pause {
        /// The request.
        id: Id,
    },
    /// Compute for a paused request again.
    Resume {
        /// The request.
        id: Id,
    },
}

/// How to load the model, whose file is at [`MODEL_PATH`] in the runner's root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// What the model is for.
    pub task: Task,
    /// Tokens a sequence may hold.
    pub context_tokens: u32,
    /// Sequences at once.
    pub slots: u32,
    /// Threads that compute.
    pub threads: u32,
    /// The function's system prompt: the first message of a chat that brings none.
    pub system: Option<String>,
}

/// Where a runner finds its model.
pub const MODEL_PATH: &str = "/model.gguf";
/// The descriptor of a runner's socket.
pub const SOCKET_FD: i32 = 3;

/// Text or tokens to begin from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Prompt {
    /// Messages, rendered with the model's chat template. Special tokens in their content stay literal text.
    Chat(Vec<Message>),
    /// Raw text. Special tokens in it stay literal text.
    Text(String),
    /// Tokens, checked against the vocabulary.
    Tokens(Vec<u32>),
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The speaker's name, where one was given.
    pub name: Option<String>,
    /// The calls that an assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool's message is.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of text alone.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What its result names it by.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON: an object, if the caller is right.
    pub arguments: String,
}

/// What an answer may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// The tools, each of another name; never none.
    pub definitions: Vec<Tool>,
    /// Whether one has to be called.
    pub call: Call,
    /// Whether there may be several calls.
    pub parallel: bool,
}

/// A tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// A JSON schema that arguments conform to where a call is a must.
    pub parameters: Option<String>,
    /// All of it, as the caller sent it: JSON.
    pub definition: String,
}

/// Whether a tool has to be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// The model decides.
    May,
    /// One of them.
    Must,
    /// This one.
    Named(String),
}

/// Who speaks in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Sets the rules; `developer` of the newer API too.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
    /// A tool's result.
    Tool,
}

impl Role {
    /// The role's name, as chat templates know it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// A request for text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// What to begin from.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it; at most [`STOPS_MAX`], none empty.
    pub stop: Vec<String>,
    /// Tokens to produce at most; never 0.
    pub tokens_max: u32,
    /// Time to work at most, from receipt, ms.
    pub deadline_ms: u64,
    /// What the text must conform to.
    pub constraint: Constraint,
    /// What it may call. Where it has to, the text is calls, and there is no other constraint.
    pub tools: Option<Tools>,
    /// Report the log-probability of each token and of this many likeliest others; at most [`TOP_LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
    /// Whose it is: what the runner keeps of it serves later requests of the same tenant only. Without one nothing is
    /// looked up and nothing is kept, and what was kept before is dropped should it move a digit of this answer.
    pub tenant: Option<Tenant>,
}

/// A caller, as far as a runner knows it: a number that tells it from others, means nothing, and is drawn anew with
/// every start of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant(pub u128);

/// What a runner keeps of an answer serves so many requests that it begins after it.
pub const REUSE_REQUESTS: usize = 64;
/// Most stop strings of a request.
pub const STOPS_MAX: usize = 16;
/// Most alternatives reported for a token.
pub const TOP_LOGPROBS_MAX: u8 = 20;

/// How to choose tokens. The server has checked the ranges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the likeliest token always; up to 2.
    pub temperature: f32,
    /// Keep the likeliest tokens that hold this much probability together; 1 keeps all.
    pub top_p: f32,
    /// Keep this many; 0 keeps all.
    pub top_k: u32,
    /// Keep those at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Seed of the random choice.
    pub seed: u32,
    /// Taken off a token's logit for every time it was produced; -2 to 2.
    pub frequency_penalty: f32,
    /// Taken off once for a token that was produced; -2 to 2.
    pub presence_penalty: f32,
    /// Divides the logit of a token that is among the last [`repeat_tokens`](Self::repeat_tokens) produced (multiplies it
    /// where it is negative); 1 does nothing; 0.1 to 10.
    pub repeat_penalty: f32,
    /// How far back that looks; all that was produced where it is longer.
    pub repeat_tokens: u32,
    /// Added to the logits of tokens; -100 to 100. Tokens outside the vocabulary are refused by the runner.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// The likeliest token always, nothing added or taken off.
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_penalty: 1.0,
            repeat_tokens: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// What produced text must conform to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Constraint {
    /// Anything.
    None,
    /// A JSON object.
    JsonObject,
    /// JSON that a JSON schema (its text) allows.
    JsonSchema(String),
}

/// What a runner says. Hostile until checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromRunner {
    /// The model is ready.
    Loaded(ModelInfo),
    /// The model cannot be used; the runner ends.
    LoadFailed {
        /// What llama.cpp said.
        reason: String,
    },
    /// Reply to [`ToRunner::Threads`]: no more than these compute from now on.
    Threads {
        /// How many.
        count: u32,
    },
    /// The runner has work and nothing to say of it; at most once a second.
    Alive,
    /// A prompt is accepted and being fed.
    Started {
        /// The request.
        id: Id,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, already in the KV cache.
        cached_tokens: u32,
    },
    /// A piece of the answer.
    Text {
        /// The request.
        id: Id,
        /// The piece.
        text: Text,
    },
    /// The answer is complete.
    Finished {
        /// The request.
        id: Id,
        /// How it ended.
        finished: Finished,
    },
    /// The request failed, the runner did not.
    Failed {
        /// The request.
        id: Id,
        /// Why.
        failure: Failure,
    },
    /// Reply to [`ToRunner::Embed`].
    Embedding {
        /// The request.
        id: Id,
        /// A vector of length one.
        values: Vec<f32>,
        /// Tokens of the input.
        tokens: u32,
        /// Time computing, µs.
        compute_us: u64,
    },
    /// Reply to [`ToRunner::Tokenize`].
    Tokens {
        /// The request.
        id: Id,
        /// The tokens.
        tokens: Vec<u32>,
    },
    /// Reply to [`ToRunner::Detokenize`] and [`ToRunner::ApplyTemplate`].
    Rendered {
        /// The request.
        id: Id,
        /// The text.
        text: String,
    },
}

impl FromRunner {
    /// The request that a message belongs to.
    pub fn id(&self) -> Option<Id> {
        match self {
            Self::Loaded(_) | Self::LoadFailed { .. } | Self::Threads { .. } | Self::Alive => None,
            Self::Started { id, .. }
            | Self::Text { id, .. }
            | Self::Finished { id, .. }
            | Self::Failed { id, .. }
            | Self::Embedding { id, .. }
            | Self::Tokens { id, .. }
            | Self::Rendered { id, .. } => Some(*id),
        }
    }

    /// Whether nothing more may come for this message's request.
    pub fn is_last(&self) -> bool {
        !matches!(
            self,
            Self::Loaded(_)
                | Self::LoadFailed { .. }
                | Self::Threads { .. }
                | Self::Alive
                | Self::Started { .. }
                | Self::Text { .. }
        )
    }
}

/// What a loaded model is. Texts come from the model file: show them, trust them with nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Context the model was trained for, tokens.
    pub context_trained_tokens: u32,
    /// Length of an embedding.
    pub embedding_length: u32,
    /// Whether the file brings a chat template that can be used; ChatML otherwise.
    pub chat_template: bool,
    /// Sequences at once.
    pub slots: u32,
    /// Tokens of the function's system prompt held in the KV cache.
    pub system_tokens: u32,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Whole UTF-8; may be empty when only log-probabilities are new.
    pub text: String,
    /// Tokens that this piece is made of.
    pub tokens: u32,
    /// Log-probabilities of those tokens, when asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// The log-probability of a produced token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's bytes, which need not be whole UTF-8.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens in its place, likeliest first.
    pub top: Vec<TopLogprob>,
}

/// An alternative to a produced token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, found in the KV cache.
    pub cached_tokens: u32,
    /// Tokens produced, the end token not counted.
    pub completion_tokens: u32,
    /// Time feeding the prompt, µs.
    pub prefill_us: u64,
    /// Time producing tokens, µs.
    pub decode_us: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `tokens_max`, or the context is full.
    Length,
    /// [`ToRunner::Cancel`].
    Cancelled,
    /// `deadline_ms` passed.
    Deadline,
}

/// Why a request cannot be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Failure {
    /// The prompt does not fit.
    ContextExceeded {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens a sequence may hold.
        context_tokens: u32,
    },
    /// The caller's fault.
    Invalid {
        /// The field at fault, in OpenAI's naming.
        param: String,
        /// What is wrong.
        message: String,
    },
    /// The model does not do this (an embedding asked of a chat model).
    Unsupported {
        /// What is wrong.
        message: String,
    },
    /// llama.cpp failed.
    Internal {
        /// What it said.
        message: String,
    },
}
