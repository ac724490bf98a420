//! How text is to be produced: the fields that `/v1/chat/completions` and `/v1/completions` share.
//!
//! Defaults are OpenAI's where OpenAI has one (`temperature` and `top_p` 1) and llama.cpp's for what OpenAI lacks
//! (`top_k` 40, `min_p` 0.05), which keep small models from their unlikeliest tokens; Ollama's are in `crate::ollama`. An absent `max_tokens` is the
//! function's `output_tokens`; one above it is refused, as OpenAI does, rather than quietly lowered. `cache_prompt: false`
//! has a request computed as if it were the first, to the last bit while it is alone in its instance.

use crate::{
    ApiError,
    field::{Fault, Field, Kind, Object, Read},
};
use sandbox_wire::runner::{Constraint, Generate, Prompt, STOPS_MAX, Sampling, Tenant, Tools};
use std::collections::BTreeMap;

/// What a request wants of the text, apart from its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How to choose tokens; `seed` in it is not yet set.
    pub(crate) sampling: Sampling,
    /// The caller's seed, folded.
    pub(crate) seed: Option<u32>,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
    /// The caller's limit, and the field it came in.
    pub(crate) tokens_max: Option<(u32, &'static str)>,
    /// What the text must conform to.
    pub(crate) constraint: Constraint,
    /// What it may call.
    pub(crate) tools: Option<Tools>,
    /// Report log-probabilities.
    pub(crate) logprobs: Option<u8>,
    /// Use what earlier requests of the same caller left computed, and leave this one's for later; llama-server's field.
    pub(crate) cache_prompt: bool,
}

/// What a function allows one request, and what the caller left open.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The function's `limits.output_tokens`.
    pub output_tokens: u32,
    /// Time left to work, ms.
    pub deadline_ms: u64,
    /// A random seed, for a request that brings none.
    pub seed: u32,
    /// Whose requests may use what was computed for this one.
    pub tenant: Tenant,
}

impl Settings {
    /// What a runner is asked for `prompt`.
    ///
    /// # Errors
    /// The request wants more tokens than the function allows.
    pub fn generate(&self, prompt: Prompt, bounds: &Bounds) -> Result<Generate, ApiError> {
        let seed = self.seed.unwrap_or_else(|| fold_seed(bounds.seed.into()));
        Ok(Generate {
            prompt,
            sampling: Sampling { seed, ..self.sampling.clone() },
            stop: self.stop.clone(),
            tokens_max: self.tokens_within(bounds.output_tokens)?,
            deadline_ms: bounds.deadline_ms,
            constraint: self.constraint.clone(),
            tools: self.tools.clone(),
            logprobs: self.logprobs,
            tenant: self.cache_prompt.then_some(bounds.tenant),
        })
    }

    /// The same with tools.
    pub(crate) fn with_tools(self, tools: Option<Tools>, format: &str) -> Read<Self> {
        match &tools {
            Some(_) if self.constraint != Constraint::None => {
                Err(Fault::here("not together with `tools`").within(format))
            }
            _ => Ok(Self { tools, ..self }),
        }
    }

    fn tokens_within(&self, output_tokens: u32) -> Result<u32, ApiError> {
        match self.tokens_max {
            None => Ok(output_tokens),
            Some((tokens, _)) if tokens <= output_tokens => Ok(tokens),
            Some((tokens, param)) => Err(ApiError::invalid_param(
                param,
                format!("`{param}`: {tokens} tokens asked for; the function allows {output_tokens}"),
            )),
        }
    }

    /// Reads the fields that both endpoints share.
    pub(crate) fn read(body: &Object<'_>) -> Read<Self> {
        body.get("n", one)?;
        Ok(Self {
            sampling: sampling(body, &OPENAI)?,
            seed: body.get("seed", |seed| seed.integer(i64::MIN..=i64::MAX))?.map(fold_seed),
            stop: body.get("stop", stops)?.unwrap_or_default(),
            tokens_max: body.get("max_tokens", positive)?.map(|tokens| (tokens, "max_tokens")),
            constraint: body.get("response_format", crate::format::constraint)?.unwrap_or(Constraint::None),
            tools: None,
            logprobs: None,
            cache_prompt: body.get("cache_prompt", Field::boolean)?.unwrap_or(true),
        })
    }
}

/// Whether to stream, and whether the stream ends with usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Streaming {
    /// Answer in pieces.
    pub(crate) stream: bool,
    /// End with a chunk of usage.
    pub(crate) include_usage: bool,
}

impl Streaming {
    pub(crate) fn read(body: &Object<'_>) -> Read<Self> {
        let stream = body.get("stream", Field::boolean)?.unwrap_or_default();
        let options = body.get("stream_options", Field::object)?;
        if options.is_some() && !stream {
            return Err(Fault::here("only together with `stream`").within("stream_options"));
        }
        let include_usage = options.map(|options| options.get("include_usage", Field::boolean)).transpose();
        let include_usage = include_usage.map_err(|fault| fault.within("stream_options"))?.flatten();
        Ok(Self { stream, include_usage: include_usage.unwrap_or_default() })
    }
}

/// A token limit: a whole number above 0.
pub(crate) fn positive(field: Field<'_>) -> Read<u32> {
    field.integer(1..=u32::MAX.into()).map(|number| u32::try_from(number).expect("within range"))
}

/// One choice, since that is what is produced.
pub(crate) fn one(field: Field<'_>) -> Read<()> {
    field.integer(1..=1).map(|_| ())
}

/// Refuses a list with anything in it.
pub(crate) fn empty(field: Field<'_>) -> Read<()> {
    if field.list(|_| Ok(()))?.is_empty() { Ok(()) } else { Err(Fault::here("not supported")) }
}

/// Refuses any value.
pub(crate) fn unsupported(_: Field<'_>) -> Read<()> {
    Err(Fault::here("not supported"))
}

/// Any seed as one that llama.cpp takes literally: it reads `u32::MAX` as "draw one".
pub(crate) fn fold_seed(seed: i64) -> u32 {
    let folded = (seed ^ (seed >> 32)) as u32;
    if folded == u32::MAX { 0 } else { folded }
}

/// What a dialect chooses tokens by where a request does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repeat_penalty: f32,
}

const OPENAI: Defaults = Defaults { temperature: 1.0, top_p: 1.0, min_p: 0.05, repeat_penalty: 1.0 };
/// How far back a `repeat_penalty` looks: llama.cpp's and Ollama's default.
const REPEAT_TOKENS: u32 = 64;

/// How to choose tokens, of the fields that have one name in all dialects.
pub(crate) fn sampling(body: &Object<'_>, defaults: &Defaults) -> Read<Sampling> {
    let number = |name, range, default: f32| Ok(body.get(name, |field| field.number(range))?.unwrap_or(default));
    let from_minus_one = |name| body.get(name, |field| field.integer(-1..=i32::MAX.into()));
    let repeat_tokens = from_minus_one("repeat_last_n")?.map(|last| u32::try_from(last).unwrap_or(u32::MAX));
    Ok(Sampling {
        temperature: number("temperature", 0.0..=2.0, defaults.temperature)?,
        top_p: number("top_p", 0.0..=1.0, defaults.top_p)?,
        top_k: from_minus_one("top_k")?.map_or(40, |k| k.max(0) as u32),
        min_p: number("min_p", 0.0..=1.0, defaults.min_p)?,
        seed: 0,
        frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)?,
        presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)?,
        repeat_penalty: number("repeat_penalty", 0.1..=10.0, defaults.repeat_penalty)?,
        repeat_tokens: repeat_tokens.unwrap_or(REPEAT_TOKENS),
        logit_bias: body.get("logit_bias", logit_bias)?.unwrap_or_default(),
    })
}

/// Biases by token; of two for one token the later counts. How many there may be is bounded as all objects are.
fn logit_bias(field: Field<'_>) -> Read<Vec<(u32, f32)>> {
    let object = field.object()?;
    let entry = |(token, bias): (&str, Field<'_>)| -> Read<(u32, f32)> {
        let id = token.parse().map_err(|_| Fault::here(format!("`{}` is not a token", token.escape_debug())))?;
        Ok((id, bias.number(-100.0..=100.0).map_err(|fault| fault.within(token))?))
    };
    let biases: BTreeMap<_, _> = object.iter().map(entry).collect::<Read<_>>()?;
    Ok(biases.into_iter().collect())
}

/// A text that ends an answer, or several.
pub(crate) fn stops(field: Field<'_>) -> Read<Vec<String>> {
    let stops = match field.kind() {
        Kind::String => vec![stop(field)?],
        Kind::List => field.list(stop)?,
        _ => return Err(field.expected("a string or a list of strings")),
    };
    match stops.len() {
        0..=STOPS_MAX => Ok(stops),
        count => Err(Fault::here(format!("{count} stop strings; the most is {STOPS_MAX}"))),
    }
}

fn stop(field: Field<'_>) -> Read<String> {
    let stop = field.string()?;
    if stop.is_empty() { Err(Fault::here("an empty string stops nothing")) } else { Ok(stop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_fold_to_what_is_not_drawn() {
        assert_eq!(fold_seed(42), 42);
        assert_ne!(fold_seed(42), fold_seed(42 + (1 << 32)));
        for seed in [i64::MIN, -1, 0, u32::MAX.into(), i64::MAX] {
            assert_ne!(fold_seed(seed), u32::MAX, "{seed}");
        }
    }
}
