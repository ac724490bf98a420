//! One llama.cpp context, and the steps that make an answer in it.
//!
//! The engine computes one sequence at a time. All state of an answer is in its [`Sequence`], so that several can share a
//! decode later: `step` is the place where their tokens would be gathered into one batch.
//!
//! Invariants: a prompt that does not fit is refused before any work; at least one token of every prompt is fed, so that
//! there are logits to choose from; what an answer left in the KV cache is gone when it has ended.

use crate::{
    cache::{self, Cache, PREFIX, SEQUENCES, WORK},
    embedding,
    error::{LoadError, internal, invalid},
    logprobs::LogSoftmax,
    model::Model,
    prompt::Prompter,
    sampler::Sampler,
    sequence::{Sequence, count},
    stream::TextStream,
};
use appliance_types::Task;
use llama_cpp_2::{
    context::{LlamaContext, params::LlamaContextParams},
    llama_batch::LlamaBatch,
    token::LlamaToken,
};
use sandbox_wire::runner::{
    Failure, FinishReason, Finished, Generate, Load, Message, ModelInfo, Prompt, STOPS_MAX, TOP_LOGPROBS_MAX, Text,
    TokenLogprob, TopLogprob,
};
use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// Tokens of a prompt fed in one step; between steps the caller looks for cancels.
pub const PREFILL_TOKENS_MAX: usize = 256;
const CONTEXT_TOKENS_MAX: u32 = 1 << 24;
const THREADS_MAX: u32 = 512;
const STOP_BYTES_MAX: usize = 1 << 10;
const DETOKENIZE_TOKENS_MAX: usize = 1 << 20;

/// A loaded model at work.
pub struct Engine<'m> {
    model: &'m Model,
    prompter: Prompter<'m>,
    pub(crate) context: LlamaContext<'m>,
    pub(crate) batch: LlamaBatch<'static>,
    cache: Cache,
    pub(crate) task: Task,
    pub(crate) context_tokens: u32,
}

/// What a step brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The next piece of the answer.
    pub text: Option<Text>,
    /// The end of the answer; the sequence is then spent.
    pub finished: Option<Finished>,
}

/// How far a step came, before its time is known.
#[derive(Default)]
struct Advance {
    text: Option<Text>,
    reason: Option<FinishReason>,
}

impl<'m> Engine<'m> {
    /// Makes a context as `load` says, and feeds what every chat of the function begins with.
    ///
    /// # Errors
    /// The model does not do the function's task, the numbers are out of range, or llama.cpp refuses.
    pub fn new(model: &'m Model, load: &Load) -> Result<Self, LoadError> {
        check_load(load)?;
        check_task(model, load.task)?;
        let prompter = Prompter::new(model, load.system.clone());
        let prefix = prefix(model, &prompter, load)?;
        let context = model.context(params(model, load, count(prefix.len()))?)?;
        let batch_tokens = if load.task == Task::Embedding { load.context_tokens as usize } else { PREFILL_TOKENS_MAX };
        let mut engine = Self {
            model,
            prompter,
            context,
            batch: LlamaBatch::new(batch_tokens, 1),
            cache: Cache::new(prefix),
            task: load.task,
            context_tokens: load.context_tokens,
        };
        engine.feed_prefix().map_err(LoadError::of_prefix)?;
        Ok(engine)
    }

    /// What was loaded.
    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            chat_template: self.prompter.has_own_template(),
            slots: 1,
            system_tokens: count(self.cache.prefix().len()),
            ..self.model.info()
        }
    }

    /// Checks a request and makes its sequence; nothing is computed yet. Deadlines count from `received`.
    ///
    /// # Errors
    /// The request is at fault, or the model does not produce text.
    pub fn begin(&mut self, generate: &Generate, received: Instant) -> Result<Sequence, Failure> {
        let started = Instant::now();
        if self.task == Task::Embedding {
            return Err(Failure::Unsupported { message: "an embedding function does not produce text".to_owned() });
        }
        check_limits(generate)?;
        let (vocabulary, window) = (self.prompter.vocabulary(), self.context_tokens as i32);
        let sampler = Sampler::new(self.model, vocabulary, &generate.sampling, &generate.constraint, window)?;
        let tokens = self.prompter.tokens(&generate.prompt)?;
        self.check_fits(tokens.len(), self.context_tokens - 1)?;
        let cached = self.cache.begin(&mut self.context, &tokens)?;
        let tokens_max = tokens.len().saturating_add(generate.tokens_max as usize).min(self.context_tokens as usize);
        Ok(Sequence {
            fed: cached,
            cached,
            prompt: tokens.len(),
            tokens,
            tokens_max,
            produced: 0,
            sampler,
            stream: TextStream::new(&generate.stop),
            logprobs: generate.logprobs.map(usize::from),
            deadline: received.checked_add(Duration::from_millis(generate.deadline_ms)),
            prefill: started.elapsed(),
            decode: Duration::ZERO,
        })
    }

    /// Advances an answer by one decode.
    ///
    /// # Errors
    /// llama.cpp failed; the sequence is then spent.
    pub fn step(&mut self, sequence: &mut Sequence) -> Result<Step, Failure> {
        let (started, feeding) = (Instant::now(), sequence.is_feeding());
        let advance = if sequence.is_overdue(started) {
            Ok(Advance { text: sequence.stream.finish(), reason: Some(FinishReason::Deadline) })
        } else {
            self.advance(sequence)
        };
        *(if feeding { &mut sequence.prefill } else { &mut sequence.decode }) += started.elapsed();
        if !matches!(advance, Ok(Advance { reason: None, .. })) {
            cache::clear(&mut self.context);
        }
        advance.map(|Advance { text, reason }| Step { text, finished: reason.map(|reason| sequence.finished(reason)) })
    }

    /// Ends an answer that nobody waits for.
    pub fn cancel(&mut self, sequence: Sequence) -> Finished {
        cache::clear(&mut self.context);
        sequence.finished(FinishReason::Cancelled)
    }

    /// Splits text into tokens.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let tokens = self.prompter.vocabulary().tokenize(text, add_special, parse_special);
        tokens.into_iter().filter_map(|token| u32::try_from(token.0).ok()).collect()
    }

    /// Joins tokens to text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// A token is not in the vocabulary, or there are too many.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<String, Failure> {
        if tokens.len() > DETOKENIZE_TOKENS_MAX {
            return Err(invalid("tokens", format!("{} tokens; at most {DETOKENIZE_TOKENS_MAX}", tokens.len())));
        }
        let tokens = self.prompter.vocabulary().check_all("tokens", tokens)?;
        Ok(String::from_utf8_lossy(&self.prompter.vocabulary().detokenize(&tokens)).into_owned())
    }

    /// Renders messages with the chat template, up to where the answer begins.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn apply_template(&self, messages: &[Message]) -> Result<String, Failure> {
        self.prompter.text(messages)
    }

    /// The tokens of an input to embed.
    pub(crate) fn input_tokens(&self, input: &Prompt) -> Result<Vec<LlamaToken>, Failure> {
        if matches!(input, Prompt::Chat(_)) {
            return Err(invalid("input", "messages cannot be embedded"));
        }
        self.prompter.tokens(input)
    }

    pub(crate) fn check_fits(&self, prompt_tokens: usize, tokens_max: u32) -> Result<(), Failure> {
        let (prompt_tokens, context_tokens) = (count(prompt_tokens), self.context_tokens);
        if prompt_tokens <= tokens_max {
            Ok(())
        } else {
            Err(Failure::ContextExceeded { prompt_tokens, context_tokens })
        }
    }

    fn feed_prefix(&mut self) -> Result<(), Failure> {
        let prefix = self.cache.prefix().to_vec();
        for (chunk, tokens) in prefix.chunks(PREFILL_TOKENS_MAX).enumerate() {
            self.feed(PREFIX, tokens, chunk * PREFILL_TOKENS_MAX)?;
        }
        Ok(())
    }

    fn advance(&mut self, sequence: &mut Sequence) -> Result<Advance, Failure> {
        let end = sequence.tokens.len().min(sequence.fed + PREFILL_TOKENS_MAX);
        self.feed(WORK, &sequence.tokens[sequence.fed..end], sequence.fed)?;
        sequence.fed = end;
        if end < sequence.tokens.len() {
            return Ok(Advance::default());
        }
        self.produce(sequence)
    }

    /// Chooses the next token from the logits of the last one fed.
    fn produce(&mut self, sequence: &mut Sequence) -> Result<Advance, Failure> {
        let logits = self.context.get_logits_ith(self.batch.n_tokens() - 1);
        let token = sequence.sampler.choose(logits)?;
        sequence.tokens.push(token);
        if self.prompter.vocabulary().is_end(token) {
            return Ok(Advance { text: sequence.stream.finish(), reason: Some(FinishReason::Stop) });
        }
        sequence.produced += 1;
        let bytes = self.prompter.vocabulary().piece(token);
        let logprob = sequence.logprobs.map(|top| self.logprob(logits, token, bytes.clone(), top));
        let text = sequence.stream.push(&bytes, logprob);
        let reason = match () {
            () if sequence.stream.is_stopped() => Some(FinishReason::Stop),
            () if sequence.tokens.len() >= sequence.tokens_max => Some(FinishReason::Length),
            () => None,
        };
        let rest = reason.and_then(|_| sequence.stream.finish());
        Ok(Advance { text: join(text, rest), reason })
    }

    fn logprob(&self, logits: &[f32], token: LlamaToken, bytes: Vec<u8>, top: usize) -> TokenLogprob {
        let softmax = LogSoftmax::new(logits);
        let alternative = |token: usize| TopLogprob {
            bytes: self.prompter.vocabulary().piece(LlamaToken(token as i32)),
            logprob: softmax.of(token),
        };
        let top = softmax.likeliest(top).into_iter().map(alternative).collect();
        TokenLogprob { bytes, logprob: softmax.of(token.0 as usize), top }
    }

    /// Computes tokens of a sequence from `position` on; the logits of the last can be read.
    fn feed(&mut self, sequence: i32, tokens: &[LlamaToken], position: usize) -> Result<(), Failure> {
        self.batch.clear();
        for (index, &token) in tokens.iter().enumerate() {
            let position = i32::try_from(position + index).map_err(internal)?;
            self.batch.add(token, position, &[sequence], index + 1 == tokens.len()).map_err(internal)?;
        }
        self.context.decode(&mut self.batch).map_err(internal)
    }
}

/// Two pieces that come at once, as one.
fn join(first: Option<Text>, second: Option<Text>) -> Option<Text> {
    let (Some(mut first), Some(second)) = (first.clone(), second.clone()) else { return first.or(second) };
    first.text.push_str(&second.text);
    first.tokens += second.tokens;
    first.logprobs.extend(second.logprobs);
    Some(first)
}

fn check_load(load: &Load) -> Result<(), LoadError> {
    let fields = [
        ("context_tokens", load.context_tokens, CONTEXT_TOKENS_MAX),
        ("threads", load.threads, THREADS_MAX),
        ("slots", load.slots, CONTEXT_TOKENS_MAX),
    ];
    let wrong = fields.into_iter().find(|(_, value, max)| !(1..=*max).contains(value));
    wrong.map_or(Ok(()), |(field, value, max)| Err(LoadError::OutOfRange { field, value, max }))
}

/// Encoders have no logits to choose tokens from.
fn check_task(model: &Model, task: Task) -> Result<(), LoadError> {
    let is_encoder = model.architecture_metadata("attention.causal").as_deref() == Some("false")
        || model.metadata("general.architecture").is_some_and(|name| name.starts_with("t5"));
    if is_encoder && task != Task::Embedding {
        return Err(LoadError::Unfit { reason: "it does not produce text; use task = \"embedding\"".to_owned() });
    }
    Ok(())
}

/// What every chat of the function begins with; nothing for a model whose state cannot be shared in part.
fn prefix(model: &Model, prompter: &Prompter<'_>, load: &Load) -> Result<Vec<LlamaToken>, LoadError> {
    if load.task != Task::Chat || model.is_recurrent() {
        return Ok(Vec::new());
    }
    let prefix = prompter.prefix();
    let (prefix_tokens, context_tokens) = (count(prefix.len()), load.context_tokens);
    if prefix_tokens >= context_tokens {
        return Err(LoadError::SystemTooLong { prefix_tokens, context_tokens });
    }
    Ok(prefix)
}

/// KV in f16, flash attention where llama.cpp finds it good, the model mapped.
fn params(model: &Model, load: &Load, prefix_tokens: u32) -> Result<LlamaContextParams, LoadError> {
    let threads = i32::try_from(load.threads).expect("checked to be small");
    let params = LlamaContextParams::default().with_n_threads(threads).with_n_threads_batch(threads);
    let context = |tokens: u32| NonZeroU32::new(tokens);
    if load.task == Task::Embedding {
        let params = params.with_n_ctx(context(load.context_tokens));
        return embedding::params(model, params, load.context_tokens);
    }
    let chunk = count(PREFILL_TOKENS_MAX);
    Ok(params
        .with_n_ctx(context(load.context_tokens + prefix_tokens))
        .with_n_batch(chunk)
        .with_n_ubatch(chunk)
        .with_n_seq_max(SEQUENCES)
        .with_kv_unified(true))
}

fn check_limits(generate: &Generate) -> Result<(), Failure> {
    if generate.tokens_max == 0 {
        return Err(invalid("max_tokens", "0 tokens leave nothing to do"));
    }
    if generate.stop.len() > STOPS_MAX {
        return Err(invalid("stop", format!("{} stop strings; at most {STOPS_MAX}", generate.stop.len())));
    }
    if generate.stop.iter().any(|stop| !(1..=STOP_BYTES_MAX).contains(&stop.len())) {
        return Err(invalid("stop", format!("a stop string must have 1 to {STOP_BYTES_MAX} bytes")));
    }
    match generate.logprobs {
        Some(top) if top > TOP_LOGPROBS_MAX => {
            Err(invalid("top_logprobs", format!("{top}; at most {TOP_LOGPROBS_MAX}")))
        }
        _ => Ok(()),
    }
}
