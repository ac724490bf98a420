//! The model endpoints: OpenAI's three, Ollama's three, and llama-server's three.
//!
//! ```text
//!  body ─▶ parse ─▶ function ─▶ meter ─▶ limits ─▶ generation ─┬▶ whole:  answers ─▶ one body
//!                                                              └▶ stream: a step, an event; pulled by the client
//! ```
//!
//! A stream's head is sent once its prompt is accepted, so that everything that can be refused is refused with a status;
//! but one that waits for longer than [`HEARTBEAT`] gets its head then, and from there on a comment with its place in the
//! queue each time that passes. What fails after the head is one event with the error, and no `[DONE]`. In which words all
//! this is said is [`Dialect`]'s; there is one path for all.

use super::{
    allowance::{prompt_tokens, tokens_of},
    body,
    desk::Meter,
    functions::Function,
    generation::{Generation, Step, ask, out_of_place},
    handler::{Call, random},
    instances,
    purse::Tokens,
    reply::{self, Answered, Reply},
};
use appliance_api::{
    Answer, ApiError, Bounds, Dialect, Head, Offer, Shape, StreamWriter, Sum, chat,
    chat::ChatRequest,
    completion,
    completion::CompletionRequest,
    embedding,
    embedding::EmbeddingRequest,
    llama,
    llama::{DetokenizeRequest, TemplateRequest, TokenizeRequest},
    ollama,
    ollama::Ask,
};
use appliance_edge::{ReplyBody, Request};
use appliance_pool::Work;
use appliance_runtime::timeout;
use appliance_types::{Record, RequestId};
use bytes::Bytes;
use futures_lite::stream;
use sandbox_wire::runner::{FromRunner, Generate};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a stream waits without a sign of life. Shorter, and wakes that take their time would lose their headers and
/// refusals their status, by which clients' libraries try again; longer, and people give up, as proxies do after 5 s or more.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Longest vector that a model may give; the longest known are a tenth of it.
const EMBEDDING_LENGTH_MAX: usize = 1 << 17;

/// `POST /v1/chat/completions`
pub(super) async fn chat(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let request = ChatRequest::parse(&body)?;
    let (function, mut meter) = begin(call, call.function(&request.model)?, &body).await?;
    let (stream, include_usage) = (request.stream, request.include_usage);
    let prompts = [meter.check(request.into_generate(&bounds(call, &function)))?];
    allow(call, &mut meter, &function, &prompts)?;
    let offer = Offer::of(&prompts[0]);
    let how = How { dialect: Dialect::OpenAi, shape: Shape::Chat, stream, include_usage, offer };
    answer(call, how, generation(call, function, meter, chat::PROMPT_PARAM, prompts.into())).await
}

/// `POST /v1/completions`
pub(super) async fn completion(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let request = CompletionRequest::parse(&body)?;
    let (function, mut meter) = begin(call, call.function(&request.model)?, &body).await?;
    let (stream, include_usage) = (request.stream, request.include_usage);
    let how = How { dialect: Dialect::OpenAi, shape: Shape::Text, stream, include_usage, offer: None };
    let prompts = meter.check(request.into_generates(&bounds(call, &function)))?;
    allow(call, &mut meter, &function, &prompts)?;
    answer(call, how, generation(call, function, meter, completion::PROMPT_PARAM, prompts)).await
}

/// `POST /v1/embeddings`
pub(super) async fn embedding(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let request = EmbeddingRequest::parse(&body)?;
    let (function, meter, vectors) = embedded(call, &body, &request, false).await?;
    let reply = embedding::reply(function.manifest.name.as_str(), &vectors, request.encoding, &meter.usage());
    Ok(completed(call, meter, reply))
}

/// `POST /api/chat`
pub(super) async fn ollama_chat(call: &Call, request: Request) -> Answered {
    let body = body::whole(request, call.state.request_bytes_max).await?;
    asked(call, &body, Shape::Chat, ollama::chat(&body)?).await
}

/// `POST /api/generate`
pub(super) async fn ollama_generate(call: &Call, request: Request) -> Answered {
    let body = body::whole(request, call.state.request_bytes_max).await?;
    asked(call, &body, Shape::Text, ollama::generate(&body)?).await
}

/// `POST /api/embed`
pub(super) async fn ollama_embed(call: &Call, request: Request) -> Answered {
    let body = body::whole(request, call.state.request_bytes_max).await?;
    let (request, truncate) = ollama::embed(&body)?;
    let (function, meter, vectors) = embedded(call, &body, &request, truncate).await?;
    let reply = ollama::embed_reply(function.manifest.name.as_str(), &vectors, &sum(call, &meter));
    Ok(completed(call, meter, reply))
}

/// What Ollama's clients ask for: text; or without a prompt, that a function be up or let go.
async fn asked(call: &Call, body: &Bytes, shape: Shape, ask: Ask) -> Answered {
    match ask {
        Ask::Text(request) => {
            let (function, mut meter) = begin(call, call.function(&request.model)?, body).await?;
            let stream = request.stream;
            let param = if shape == Shape::Chat { chat::PROMPT_PARAM } else { completion::PROMPT_PARAM };
            let prompts = [meter.check(request.into_generate(&bounds(call, &function)))?];
            allow(call, &mut meter, &function, &prompts)?;
            let offer = Offer::of(&prompts[0]);
            let how = How { dialect: Dialect::Ollama, shape, stream, include_usage: false, offer };
            let generation = generation(call, function, meter, param, prompts.into());
            answer(call, how, generation).await
        }
        // The cheapest that an instance can be asked; it is billed as all else is, the wake included.
        Ask::Load { model } => {
            let work = Work::Tokenize { text: String::new(), add_special: false, parse_special: false };
            let function = call.function(&model)?;
            let loaded = ollama::load_reply(shape, &call.head(&function), "load");
            simple(call, Some(&model), body, work, "model", |message| match message {
                FromRunner::Tokens { .. } => Some(loaded),
                _ => None,
            })
            .await
        }
        Ask::Unload { model } => {
            let function = call.function(&model)?;
            if !call.caller.key.is_admin() {
                return Err(ApiError::permission("only an admin key ends instances; idle ones end by themselves"));
            }
            instances::stop(call, &model).await?;
            Ok(reply::json_bytes(ollama::load_reply(shape, &call.head(&function), "unload")))
        }
    }
}

/// The vectors of what is asked to be embedded.
async fn embedded(
    call: &Call,
    body: &Bytes,
    request: &EmbeddingRequest,
    truncate: bool,
) -> Result<(Arc<Function>, Meter, Vec<Vec<f32>>), ApiError> {
    let (function, mut meter) = begin(call, call.function(&request.model)?, body).await?;
    let tokens = request.inputs.iter().map(prompt_tokens).fold(0, u32::saturating_add);
    let context_tokens = function.manifest.limits.context_tokens;
    let prompts = u32::try_from(request.inputs.len()).unwrap_or(u32::MAX).saturating_mul(context_tokens);
    call.allow(&mut meter, &function, tokens, Tokens { prompts, answers: 0 })?;
    let vectors = vectors(call, &function, request, truncate, &mut meter).await;
    let vectors = meter.check(vectors)?;
    Ok((function, meter, vectors))
}

/// `POST /tokenize`
pub(super) async fn tokenize(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let TokenizeRequest { model, content, add_special, parse_special } = TokenizeRequest::parse(&body)?;
    let work = Work::Tokenize { text: content, add_special, parse_special };
    simple(call, model.as_deref(), &body, work, "content", |message| match message {
        FromRunner::Tokens { tokens, .. } => Some(llama::tokenize_reply(&tokens)),
        _ => None,
    })
    .await
}

/// `POST /detokenize`
pub(super) async fn detokenize(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let DetokenizeRequest { model, tokens } = DetokenizeRequest::parse(&body)?;
    simple(call, model.as_deref(), &body, Work::Detokenize(tokens), "tokens", |message| match message {
        FromRunner::Rendered { text, .. } => Some(llama::detokenize_reply(&text)),
        _ => None,
    })
    .await
}

/// `POST /apply-template`
pub(super) async fn apply_template(call: &Call, request: Request) -> Answered {
    let body = body::json(request, call.state.request_bytes_max).await?;
    let TemplateRequest { model, messages } = TemplateRequest::parse(&body)?;
    simple(call, model.as_deref(), &body, Work::ApplyTemplate(messages), "messages", |message| match message {
        FromRunner::Rendered { text, .. } => Some(llama::template_reply(&text)),
        _ => None,
    })
    .await
}

/// Begins the account of a call to `function`, which has its say about the body's length first.
async fn begin(call: &Call, function: Arc<Function>, body: &Bytes) -> Result<(Arc<Function>, Meter), ApiError> {
    let mut meter = call.meter(&function, body.len()).await?;
    meter.check(body::within(body, function.manifest.limits.request_bytes))?;
    Ok((function, meter))
}

/// Asks limits and budgets for what answering `prompts` may take.
fn allow(call: &Call, meter: &mut Meter, function: &Function, prompts: &[Generate]) -> Result<(), ApiError> {
    let context_tokens = function.manifest.limits.context_tokens;
    let answers = prompts.iter().map(|generate| generate.tokens_max.min(context_tokens)).fold(0, u32::saturating_add);
    let all_full = u32::try_from(prompts.len()).unwrap_or(u32::MAX).saturating_mul(context_tokens);
    call.allow(meter, function, tokens_of(prompts, context_tokens), Tokens { prompts: all_full, answers })
}

fn bounds(call: &Call, function: &Function) -> Bounds {
    let limits = &function.manifest.limits;
    Bounds {
        output_tokens: limits.output_tokens,
        deadline_ms: limits.timeout_ms,
        seed: random() as u32,
        tenant: call.tenant,
    }
}

fn generation(
    call: &Call,
    function: Arc<Function>,
    meter: Meter,
    prompt_param: &'static str,
    prompts: Vec<Generate>,
) -> Generation {
    let terms = call.asked.terms(&call.caller.key);
    Generation::new(Arc::clone(&call.state), function, meter, call.asked, terms, prompt_param, prompts)
}

/// How an answer is wanted.
struct How {
    dialect: Dialect,
    shape: Shape,
    stream: bool,
    include_usage: bool,
    /// What the answer may call.
    offer: Option<Arc<Offer>>,
}

async fn answer(call: &Call, how: How, generation: Generation) -> Answered {
    if how.stream { streamed(call, how, generation).await } else { whole(call, how, generation).await }
}

async fn whole(call: &Call, how: How, mut generation: Generation) -> Answered {
    let mut answers = Vec::new();
    let empty = || Answer::offered(how.offer.clone());
    let mut answer = empty();
    while let Some(step) = generation.next().await? {
        match step {
            // Batch that gave up its slot is begun again, and what it said before is void.
            Step::Started => answer = empty(),
            Step::Text(piece) => generation.meter.check(answer.push(piece))?,
            Step::Finished(reason) => {
                answer.finish(reason);
                answers.push(std::mem::replace(&mut answer, empty()));
            }
        }
    }
    let Generation { function, meter, .. } = generation;
    let body = how.dialect.whole(how.shape, &call.head(&function), &answers, &sum(call, &meter));
    Ok(completed(call, meter, body))
}

/// What a call came to so far.
fn sum(call: &Call, meter: &Meter) -> Sum {
    Sum { usage: meter.usage(), timings: meter.timings(), record: meter.record(), total: call.came.elapsed() }
}

/// The whole reply to a call that went well.
fn completed(call: &Call, mut meter: Meter, body: Vec<u8>) -> Reply {
    meter.sent(body.len());
    meter.completed();
    with_headers(reply::json_bytes(body), &meter.record(), call.came)
}

async fn streamed(call: &Call, how: How, mut generation: Generation) -> Answered {
    // The first step is that the prompt is accepted, or an error.
    let accepted = timeout(HEARTBEAT, generation.next()).await.ok().transpose()?;
    generation.meter.replying();
    let record = accepted.map(|_| generation.meter.record());
    let (id, created_unix_s, came) = (call.id, call.came_unix_s, call.came);
    let (held, stream_type) = (record.is_none(), how.dialect.stream_type());
    let events = Events { generation, how, id, created_unix_s, came, writer: None, held, ended: false };
    let stream = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        events.generation.meter.sent(bytes.len());
        Some((Bytes::from(bytes), events))
    });
    let reply = reply::with_type(stream_type, ReplyBody::Stream(Box::pin(stream)));
    Ok(match record {
        Some(record) => with_headers(reply, &record, call.came),
        // Where it is found, and how long it waits, is not known yet.
        None => reply,
    })
}

/// A stream's events, made when they are asked for.
struct Events {
    generation: Generation,
    how: How,
    id: RequestId,
    created_unix_s: u64,
    came: Instant,
    /// That of the current choice.
    writer: Option<(usize, StreamWriter)>,
    /// Whether its head was sent because it waits, which the body has not said yet.
    held: bool,
    ended: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.held) {
            return Some(self.heartbeat().await);
        }
        let mut out = Vec::new();
        while out.is_empty() {
            if self.ended {
                return None;
            }
            if !self.generation.waits() && self.begin_choice(&mut out) {
                continue;
            }
            match self.step().await {
                None => out = self.heartbeat().await,
                Some(Ok(step)) => self.write(step, &mut out),
                Some(Err(error)) => {
                    self.ended = true;
                    out = self.how.dialect.error_piece(&error);
                }
            }
        }
        Some(out)
    }

    /// The next step; `None` when there is none for too long.
    async fn step(&mut self) -> Option<Result<Option<Step>, ApiError>> {
        match self.generation.may_stall() {
            true => timeout(HEARTBEAT, self.generation.next()).await.ok(),
            false => Some(self.generation.next().await),
        }
    }

    async fn heartbeat(&self) -> Vec<u8> {
        let place = self.generation.place().await.map(|waits| (waits.position, waits.estimate));
        self.how.dialect.waiting(self.how.shape, &self.head(), place)
    }

    fn head(&self) -> Head<'_> {
        let model = self.generation.function.manifest.name.as_str();
        Head { request: self.id, created_unix_s: self.created_unix_s, model }
    }

    /// Begins the current choice unless it has begun.
    fn begin_choice(&mut self, out: &mut Vec<u8>) -> bool {
        let index = self.generation.index();
        if self.writer.as_ref().is_some_and(|(current, _)| *current == index) {
            return false;
        }
        let How { dialect, shape, include_usage, .. } = self.how;
        let writer = StreamWriter::new(dialect, shape, &self.head(), index, include_usage, self.how.offer.clone());
        writer.start(out);
        self.writer = Some((index, writer));
        true
    }

    fn write(&mut self, step: Option<Step>, out: &mut Vec<u8>) {
        let Some((_, writer)) = &mut self.writer else { return };
        match step {
            Some(Step::Started) => {}
            Some(Step::Text(piece)) => writer.text(piece, out),
            Some(Step::Finished(reason)) => writer.finish(reason, &self.generation.meter.timings(), out),
            None => {
                let meter = &self.generation.meter;
                let (record, total) = (meter.record(), self.came.elapsed());
                writer.end(&Sum { usage: meter.usage(), timings: meter.timings(), record, total }, out);
                self.ended = true;
                self.generation.meter.completed();
            }
        }
    }
}

async fn vectors(
    call: &Call,
    function: &Function,
    request: &EmbeddingRequest,
    truncate: bool,
    meter: &mut Meter,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let mut vectors = Vec::with_capacity(request.inputs.len());
    for input in &request.inputs {
        let work = Work::Embed { input: input.clone(), truncate };
        let (how, message) = ask(call, function, work, embedding::PROMPT_PARAM, meter).await?;
        request.check_dimensions(how.model.embedding_length)?;
        match message {
            FromRunner::Embedding { values, tokens, compute_us, .. }
                if values.len() <= (how.model.embedding_length as usize).min(EMBEDDING_LENGTH_MAX) =>
            {
                meter.computed(tokens, compute_us);
                vectors.push(values);
            }
            _ => return Err(out_of_place()),
        }
    }
    Ok(vectors)
}

/// An endpoint that is one question to a runner, and one answer.
async fn simple(
    call: &Call,
    model: Option<&str>,
    body: &Bytes,
    work: Work,
    param: &str,
    render: impl FnOnce(FromRunner) -> Option<Vec<u8>>,
) -> Answered {
    let (function, mut meter) = begin(call, call.function_or_only(model)?, body).await?;
    call.allow(&mut meter, &function, 0, Tokens::default())?;
    let answered = ask(call, &function, work, param, &mut meter).await;
    let rendered = answered.and_then(|(_, message)| render(message).ok_or_else(out_of_place));
    let body = meter.check(rendered)?;
    meter.computed(0, 0);
    Ok(completed(call, meter, body))
}

/// Adds what a caller wants to know of where the time went.
fn with_headers(mut reply: Reply, record: &Record, came: Instant) -> Reply {
    let (queue, wake) = (ms(record.queue_us), ms(record.wake_us));
    let mut timing = format!("queue;dur={queue}, wake;dur={wake}");
    if record.prefill_us > 0 {
        timing += &format!(", prefill;dur={}, decode;dur={}", ms(record.prefill_us), ms(record.decode_us));
    }
    reply::set(&mut reply, "x-ember-tier", &record.tier.to_string());
    reply::set(&mut reply, "x-ember-queue-ms", &queue);
    reply::set(&mut reply, "x-ember-wake-ms", &wake);
    reply::set(&mut reply, "openai-processing-ms", &came.elapsed().as_millis().to_string());
    reply::set(&mut reply, "server-timing", &timing);
    reply
}

/// Microseconds as text in milliseconds.
fn ms(us: u64) -> String {
    format!("{}.{:03}", us / 1_000, us % 1_000)
}
