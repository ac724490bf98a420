//! One llama.cpp context, and the steps that make an answer in it.
//!
//! All state of an answer is in its [`Sequence`]; a step gathers what each has to feed into one batch ([`crate::share`]),
//! computes it at once, and lets each choose its next token.
//!
//! ```text
//!  sequences   unfed 1    unfed 1    unfed 700
//!                 │          │          │ 64
//!  batch       [ a         b          c c c c c … ]  ── decode ──▶ logits of a, of b, and of c's last once all is fed
//! ```
//!
//! Invariants: a prompt that does not fit is refused before any work; at least one token of every prompt is fed, so that
//! there are logits to choose from; what an answer left in the KV cache is found by its own tenant only ([`crate::cache`]).
//!
//! What an answer says depends on nothing but its request, to the last bit, while it is alone, its threads stay as many, and
//! its request names no tenant (`cache_prompt: false`). Else llama.cpp may sum in another order, and at temperature 0 a token whose likelihood is
//! within rounding of another's may differ, and with it what follows:
//! - beside others a decode has several rows, which other kernels multiply; a turn that finds the last one in the cache
//!   feeds fewer tokens at once than one that does not, for the same effect;
//! - attention runs over all cells up to the last one used, from 512 on split between the threads by number, and adds values
//!   in f16. So what is kept for anybody moves the split, and so does a change of the number of threads. Neither what the others' tokens are nor whose shows in it.
//!
//! With the default model, logarithms of likelihoods stayed within 0.2 of those of the request alone: the runner's tests
//! hold 0.25, and that texts part only where two tokens are so close.

use crate::{
    cache::{self, Cache, PREFIX},
    embedding,
    error::{LoadError, internal, invalid},
    logprobs::LogSoftmax,
    model::Model,
    prompt::Prompter,
    reuse::Left,
    sampler::Sampler,
    sequence::{Sequence, count},
    share::{PREFILL_TOKENS_MAX, decode_tokens_max, shares},
    stream::TextStream,
    threads::Threads,
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

/// Tokens of all sequences together.
const CONTEXT_TOKENS_MAX: u32 = 1 << 24;
const THREADS_MAX: u32 = 512;
/// llama.cpp has at most 256 sequences, and one holds the prefix.
const SLOTS_MAX: u32 = 255;
const STOP_BYTES_MAX: usize = 1 << 10;
const DETOKENIZE_TOKENS_MAX: usize = 1 << 20;

/// A loaded model at work.
pub struct Engine<'m> {
    model: &'m Model,
    prompter: Prompter<'m>,
    pub(crate) context: LlamaContext<'m>,
    /// Dropped after the context, which may use them.
    pub(crate) threads: Threads,
    pub(crate) batch: LlamaBatch<'static>,
    cache: Cache,
    slots: u32,
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
        let slots = slots(load);
        let batch_tokens = match load.task {
            Task::Embedding => load.context_tokens as usize,
            Task::Chat | Task::Completion => decode_tokens_max(slots as usize),
        };
        let mut engine = Self {
            model,
            prompter,
            threads: Threads::of(&context, load.threads)?,
            context,
            batch: LlamaBatch::new(batch_tokens, 1),
            cache: Cache::new(prefix, slots, !model.is_recurrent() && !model.is_sliding()),
            slots,
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
            slots: self.slots,
            system_tokens: count(self.cache.prefix().len()),
            ..self.model.info()
        }
    }

    /// Answers that can be made at once.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Has what is computed from now on use `count` threads, within 1 and what was loaded with; gives how many.
    pub fn set_threads(&mut self, count: u32) -> u32 {
        self.threads.set(&mut self.context, count)
    }

    /// Checks a request and makes its sequence; nothing is computed yet. Deadlines count from `received`.
    ///
    /// # Errors
    /// The request is at fault, the model does not produce text, or every slot has an answer.
    pub fn begin(&mut self, generate: &Generate, received: Instant) -> Result<Sequence, Failure> {
        let started = Instant::now();
        if self.task == Task::Embedding {
            return Err(Failure::Unsupported { message: "an embedding function does not produce text".to_owned() });
        }
        check_limits(generate)?;
        let (vocabulary, window) = (self.prompter.vocabulary(), self.context_tokens as i32);
        let grammar = self.prompter.grammar(generate)?;
        let sampler = Sampler::new(self.model, vocabulary, &generate.sampling, grammar.as_ref(), window)?;
        let tokens = self.prompter.tokens(&generate.prompt, generate.tools.as_ref())?;
        self.check_fits(tokens.len(), self.context_tokens - 1)?;
        let (slot, cached, since) = self.cache.begin(&mut self.context, generate.tenant, &tokens)?;
        let tokens_max = tokens.len().saturating_add(generate.tokens_max as usize).min(self.context_tokens as usize);
        Ok(Sequence {
            slot: Some(slot),
            since,
            tenant: generate.tenant,
            fed: cached,
            cached,
            prompt: tokens.len(),
            tokens,
            tokens_max,
            produced: 0,
            sampler,
            stream: TextStream::new(&self.prompter.stops(generate)),
            logprobs: generate.logprobs.map(usize::from),
            deadline: received.checked_add(Duration::from_millis(generate.deadline_ms)),
            prefill: started.elapsed(),
            decode: Duration::ZERO,
        })
    }

    /// Advances answers by one decode, which they share. What came of each stands at its place.
    ///
    /// # Errors
    /// llama.cpp failed; that sequence is then spent.
    pub fn step(&mut self, sequences: &mut [&mut Sequence]) -> Vec<Result<Step, Failure>> {
        let started = Instant::now();
        let feeding: Vec<bool> = sequences.iter().map(|sequence| sequence.is_feeding()).collect();
        let advances = self.advance(sequences, started);
        let took = started.elapsed();
        let each = sequences.iter_mut().zip(feeding).zip(advances);
        each.map(|((sequence, feeding), advance)| {
            *(if feeding { &mut sequence.prefill } else { &mut sequence.decode }) += took;
            match &advance {
                Ok(Advance { reason: None, .. }) => {}
                Ok(_) => self.vacate(sequence, sequence.left()),
                Err(_) => self.vacate(sequence, None),
            }
            advance
                .map(|Advance { text, reason }| Step { text, finished: reason.map(|reason| sequence.finished(reason)) })
        })
        .collect()
    }

    /// Ends an answer that nobody waits for.
    pub fn cancel(&mut self, mut sequence: Sequence) -> Finished {
        self.shelve(&mut sequence);
        sequence.finished(FinishReason::Cancelled)
    }

    /// Takes the slot of an answer for another. All that it knows but its part of the KV cache is kept, so that it goes on
    /// after [`Engine::take_up`] where it was.
    pub fn shelve(&mut self, sequence: &mut Sequence) {
        self.vacate(sequence, sequence.left());
        sequence.fed = 0;
    }

    /// Gives an answer a slot again. What is not found there of its tokens is fed anew.
    ///
    /// # Errors
    /// Every slot has an answer, or llama.cpp failed; the sequence is then spent.
    pub fn take_up(&mut self, sequence: &mut Sequence) -> Result<(), Failure> {
        let (slot, fed, _) = self.cache.begin(&mut self.context, sequence.tenant, &sequence.tokens)?;
        (sequence.slot, sequence.fed) = (Some(slot), fed);
        Ok(())
    }

    /// Ends an answer without a slot whose time is over.
    pub fn expire(&self, sequence: &mut Sequence) -> Step {
        Step { text: sequence.stream.finish(), finished: Some(sequence.finished(FinishReason::Deadline)) }
    }

    fn vacate(&mut self, sequence: &mut Sequence, left: Option<Left<LlamaToken>>) {
        if let Some(slot) = sequence.slot.take() {
            self.cache.end(&mut self.context, slot, left);
        }
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
        self.prompter.tokens(input, None)
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
            self.batch.clear();
            self.gather(PREFIX, tokens, chunk * PREFILL_TOKENS_MAX)?;
            self.context.decode(&mut self.batch).map_err(internal)?;
        }
        Ok(())
    }

    /// Ends what is overdue, and computes a share of all the rest.
    fn advance(&mut self, sequences: &mut [&mut Sequence], now: Instant) -> Vec<Result<Advance, Failure>> {
        let in_time: Vec<usize> = (0..sequences.len()).filter(|index| !sequences[*index].is_overdue(now)).collect();
        let unfed: Vec<usize> = in_time.iter().map(|index| sequences[*index].unfed()).collect();
        let shares = shares(&unfed);
        let computed = self.compute(sequences, &in_time, &shares);
        let mut advances: Vec<_> = sequences.iter().map(|_| None).collect();
        for (index, share) in in_time.into_iter().zip(shares) {
            let advance = computed.clone().and_then(|ends| match ends[index] {
                Some(end) => self.fed(sequences[index], share, end),
                None => Ok(Advance::default()),
            });
            advances[index] = Some(advance);
        }
        let overdue =
            |sequence: &mut Sequence| Advance { text: sequence.stream.finish(), reason: Some(FinishReason::Deadline) };
        let each = advances.into_iter().zip(sequences);
        each.map(|(advance, sequence)| advance.unwrap_or_else(|| Ok(overdue(sequence)))).collect()
    }

    /// One decode; gives where in the batch each sequence's tokens end, for those that have a share.
    fn compute(
        &mut self,
        sequences: &[&mut Sequence],
        chosen: &[usize],
        shares: &[usize],
    ) -> Result<Vec<Option<i32>>, Failure> {
        self.batch.clear();
        let mut ends = vec![None; sequences.len()];
        for (index, share) in chosen.iter().zip(shares).filter(|(_, share)| **share > 0) {
            let sequence = &sequences[*index];
            let slot = sequence.slot.ok_or_else(|| internal("an answer without a slot cannot be advanced"))?;
            self.gather(slot, &sequence.tokens[sequence.fed..sequence.fed + share], sequence.fed)?;
            ends[*index] = Some(self.batch.n_tokens() - 1);
        }
        if self.batch.n_tokens() > 0 {
            self.threads.gather(&mut self.context);
            self.context.decode(&mut self.batch).map_err(internal)?;
        }
        Ok(ends)
    }

    /// Adds tokens of a sequence to the batch, from `position` on; the logits of the last can be read after the decode.
    fn gather(&mut self, sequence: i32, tokens: &[LlamaToken], position: usize) -> Result<(), Failure> {
        for (index, &token) in tokens.iter().enumerate() {
            let position = i32::try_from(position + index).map_err(internal)?;
            self.batch.add(token, position, &[sequence], index + 1 == tokens.len()).map_err(internal)?;
        }
        Ok(())
    }

    /// A sequence's share is in the cache; where that was all, the next token can be chosen.
    fn fed(&mut self, sequence: &mut Sequence, share: usize, end: i32) -> Result<Advance, Failure> {
        sequence.fed += share;
        if sequence.unfed() > 0 { Ok(Advance::default()) } else { self.produce(sequence, end) }
    }

    /// Chooses the next token from the logits of the last one fed, which stood at `end` of the batch.
    fn produce(&mut self, sequence: &mut Sequence, end: i32) -> Result<Advance, Failure> {
        let logits = self.context.get_logits_ith(end);
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
        ("slots", load.slots, SLOTS_MAX),
    ];
    let wrong = fields.into_iter().find(|(_, value, max)| !(1..=*max).contains(value));
    wrong.map_or(Ok(()), |(field, value, max)| Err(LoadError::OutOfRange { field, value, max }))?;
    let (value, max) = (load.context_tokens.saturating_mul(load.slots), CONTEXT_TOKENS_MAX);
    if value > max { Err(LoadError::OutOfRange { field: "context_tokens × slots", value, max }) } else { Ok(()) }
}

/// Answers at once. A text to embed is computed alone.
fn slots(load: &Load) -> u32 {
    if load.task == Task::Embedding { 1 } else { load.slots }
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
    let (slots, decode_tokens) = (slots(load), count(decode_tokens_max(load.slots as usize)));
    Ok(params
        .with_n_ctx(context(load.context_tokens * slots + prefix_tokens))
        .with_n_batch(decode_tokens)
        .with_n_ubatch(decode_tokens)
        .with_n_seq_max(cache::sequences(slots))
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
