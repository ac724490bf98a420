//! Choosing tokens: llama.cpp's samplers in the order of its own server, and a grammar where text must conform.
//!
//! ```text
//!  logits ─ bias ─ penalties ─ top_k ─ top_p ─ min_p ─ temperature ─ dist(seed) ─▶ token ─ grammar allows? ─▶ token
//!                                                                                    │ no
//!                          logits ─ grammar ─ the same chain again ◀─────────────────┘
//! ```
//!
//! A grammar takes long over a whole vocabulary, so it judges one token first and sees all of them only when it refuses.
//! Invariants: all numbers are finite and in range before llama.cpp sees them; a grammar never accepts a token that it does
//! not allow (llama.cpp aborts on that). Penalties count produced tokens only, as OpenAI's do.

use crate::{
    error::{internal, invalid},
    logprobs,
    model::Model,
    schema::Grammar,
    vocabulary::Vocabulary,
};
use llama_cpp_2::{
    sampling::LlamaSampler,
    token::{LlamaToken, data::LlamaTokenData, data_array::LlamaTokenDataArray, logit_bias::LlamaLogitBias},
};
use sandbox_wire::runner::{Failure, Sampling};

const MIN_KEEP: usize = 1;
const LOGIT_BIASES_MAX: usize = 4096;

/// How one answer's tokens are chosen.
#[derive(Debug)]
pub(crate) struct Sampler {
    chain: LlamaSampler,
    /// The chain only takes the likeliest token, which needs no chain.
    is_plain: bool,
    grammar: Option<LlamaSampler>,
    candidates: LlamaTokenDataArray,
}

impl Sampler {
    /// A sampler that penalises over `window` produced tokens.
    pub(crate) fn new(
        model: &Model,
        vocabulary: &Vocabulary<'_>,
        sampling: &Sampling,
        grammar: Option<&Grammar>,
        window: i32,
    ) -> Result<Self, Failure> {
        check(sampling)?;
        let biases = biases(vocabulary, &sampling.logit_bias)?;
        let tokens = model.llama().n_vocab();
        let mut chain = Vec::new();
        if !biases.is_empty() {
            chain.push(LlamaSampler::logit_bias(tokens, &biases));
        }
        if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
            let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
            chain.push(LlamaSampler::penalties(tokens, window, 1.0, frequency, presence));
        }
        if sampling.repeat_penalty != 1.0 && sampling.repeat_tokens > 0 {
            let last = i32::try_from(sampling.repeat_tokens).unwrap_or(i32::MAX).min(window);
            chain.push(LlamaSampler::penalties(tokens, last, sampling.repeat_penalty, 0.0, 0.0));
        }
        let is_plain = chain.is_empty() && sampling.temperature == 0.0;
        chain.extend(choice(sampling));
        Ok(Self {
            chain: LlamaSampler::chain(chain, true),
            is_plain,
            grammar: grammar.map(|grammar| compile(model, grammar)).transpose()?,
            candidates: LlamaTokenDataArray::new(Vec::new(), false),
        })
    }

    /// Chooses the next token and remembers it.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<LlamaToken, Failure> {
        let mut token = self.pick(logits, false)?;
        if !self.allows(token) {
            token = self.pick(logits, true)?;
        }
        self.accept(token)?;
        Ok(token)
    }

    fn pick(&mut self, logits: &[f32], constrained: bool) -> Result<LlamaToken, Failure> {
        if self.is_plain && !constrained {
            return Ok(token_at(logprobs::likeliest(logits)));
        }
        let data = |(token, &logit)| LlamaTokenData::new(token_at(token), logit, 0.0);
        self.candidates.data.clear();
        self.candidates.data.extend(logits.iter().enumerate().map(data));
        (self.candidates.selected, self.candidates.sorted) = (None, false);
        if let Some(grammar) = self.grammar.as_mut().filter(|_| constrained) {
            grammar.apply(&mut self.candidates);
        }
        self.chain.apply(&mut self.candidates);
        self.selected()
    }

    /// What the chain selected, unless the grammar has ruled out everything.
    fn selected(&self) -> Result<LlamaToken, Failure> {
        let selected = self.candidates.selected.and_then(|index| self.candidates.data.get(index));
        let possible = selected.filter(|candidate| candidate.logit() > f32::NEG_INFINITY);
        possible.map(LlamaTokenData::id).ok_or_else(|| internal("no token can follow"))
    }

    fn allows(&mut self, token: LlamaToken) -> bool {
        let Some(grammar) = &mut self.grammar else { return true };
        let mut one = LlamaTokenDataArray::new(vec![LlamaTokenData::new(token, 1.0, 0.0)], false);
        grammar.apply(&mut one);
        one.data.first().is_some_and(|candidate| candidate.logit() > f32::NEG_INFINITY)
    }

    fn accept(&mut self, token: LlamaToken) -> Result<(), Failure> {
        if let Some(grammar) = &mut self.grammar {
            grammar.try_accept(token).map_err(internal)?;
        }
        if self.is_plain { Ok(()) } else { self.chain.try_accept(token).map_err(internal) }
    }
}

/// The end of the chain: narrow the choice down, then choose.
fn choice(sampling: &Sampling) -> Vec<LlamaSampler> {
    if sampling.temperature == 0.0 {
        return vec![LlamaSampler::greedy()];
    }
    let top_k = i32::try_from(sampling.top_k).unwrap_or(i32::MAX);
    let narrowing = [
        (sampling.top_k > 0).then(|| LlamaSampler::top_k(top_k)),
        (sampling.top_p < 1.0).then(|| LlamaSampler::top_p(sampling.top_p, MIN_KEEP)),
        (sampling.min_p > 0.0).then(|| LlamaSampler::min_p(sampling.min_p, MIN_KEEP)),
    ];
    let choosing = [LlamaSampler::temp(sampling.temperature), LlamaSampler::dist(sampling.seed)];
    narrowing.into_iter().flatten().chain(choosing).collect()
}

fn compile(model: &Model, grammar: &Grammar) -> Result<LlamaSampler, Failure> {
    LlamaSampler::grammar(model.llama(), &grammar.text, grammar.root)
        .map_err(|_| invalid(grammar.param, "the JSON schema makes a grammar that llama.cpp refuses"))
}

fn check(sampling: &Sampling) -> Result<(), Failure> {
    in_range("temperature", sampling.temperature, 0.0, 2.0)?;
    in_range("top_p", sampling.top_p, 0.0, 1.0)?;
    in_range("min_p", sampling.min_p, 0.0, 1.0)?;
    in_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
    in_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
    in_range("repeat_penalty", sampling.repeat_penalty, 0.1, 10.0)
}

fn biases(vocabulary: &Vocabulary<'_>, biases: &[(u32, f32)]) -> Result<Vec<LlamaLogitBias>, Failure> {
    const PARAM: &str = "logit_bias";
    if biases.len() > LOGIT_BIASES_MAX {
        return Err(invalid(PARAM, format!("{} tokens; at most {LOGIT_BIASES_MAX}", biases.len())));
    }
    let bias = |&(token, bias): &(u32, f32)| {
        in_range(PARAM, bias, -100.0, 100.0)?;
        Ok(LlamaLogitBias::new(vocabulary.check(PARAM, token)?, bias))
    };
    biases.iter().map(bias).collect()
}

/// NaN is in no range.
fn in_range(param: &str, value: f32, min: f32, max: f32) -> Result<(), Failure> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(invalid(param, format!("{value} is not within {min} to {max}")))
    }
}

/// Vocabularies are indexed by `i32` in llama.cpp.
fn token_at(index: usize) -> LlamaToken {
    LlamaToken(i32::try_from(index).expect("a vocabulary has fewer than 2^31 tokens"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            seed: 1,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_penalty: 1.1,
            repeat_tokens: 64,
            logit_bias: Vec::new(),
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        assert_eq!(check(&sampling()), Ok(()));
        for bad in [f32::NAN, f32::INFINITY, -3.0, 30.0] {
            let faults = [
                ("temperature", Sampling { temperature: bad, ..sampling() }),
                ("top_p", Sampling { top_p: bad, ..sampling() }),
                ("min_p", Sampling { min_p: bad, ..sampling() }),
                ("frequency_penalty", Sampling { frequency_penalty: bad, ..sampling() }),
                ("presence_penalty", Sampling { presence_penalty: bad, ..sampling() }),
                ("repeat_penalty", Sampling { repeat_penalty: bad, ..sampling() }),
            ];
            for (name, fault) in faults {
                assert!(matches!(check(&fault), Err(Failure::Invalid { param, .. }) if param == name), "{name} {bad}");
            }
        }
    }
}
