//! Text to tokens and back.
//!
//! Invariants: a [`LlamaToken`] made here from a number is within the vocabulary; llama.cpp aborts on others.

use crate::{error::invalid, model::Model};
use llama_cpp_2::{token::LlamaToken, token_type::LlamaTokenAttr, vocab::LlamaVocab};
use sandbox_wire::runner::Failure;

/// A model's vocabulary.
pub(crate) struct Vocabulary<'m> {
    vocab: LlamaVocab<'m>,
    tokens: u32,
}

impl<'m> Vocabulary<'m> {
    pub(crate) fn new(model: &'m Model) -> Self {
        let vocab = model.llama().vocab();
        let tokens = u32::try_from(vocab.n_tokens()).unwrap_or(0);
        Self { vocab, tokens }
    }

    /// The token of a number that a caller sent.
    pub(crate) fn check(&self, param: &str, token: u32) -> Result<LlamaToken, Failure> {
        let outside = || invalid(param, format!("token {token} is not in the vocabulary of {} tokens", self.tokens));
        if token >= self.tokens { Err(outside()) } else { i32::try_from(token).map(LlamaToken).map_err(|_| outside()) }
    }

    /// The tokens of numbers that a caller sent.
    pub(crate) fn check_all(&self, param: &str, tokens: &[u32]) -> Result<Vec<LlamaToken>, Failure> {
        tokens.iter().map(|&token| self.check(param, token)).collect()
    }

    /// Splits text; `add_special` adds begin and end tokens as the model wants them, `parse_special` reads the text of
    /// control tokens as those tokens.
    pub(crate) fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<LlamaToken> {
        self.vocab.tokenize(text.as_bytes(), add_special, parse_special)
    }

    /// The text of tokens, control tokens included; need not be UTF-8.
    pub(crate) fn detokenize(&self, tokens: &[LlamaToken]) -> Vec<u8> {
        self.vocab.detokenize(tokens, false, true)
    }

    /// What a token adds to an answer: nothing for a control token.
    pub(crate) fn piece(&self, token: LlamaToken) -> Vec<u8> {
        self.vocab.token_to_piece(token, false, None)
    }

    /// Whether a token ends an answer.
    pub(crate) fn is_end(&self, token: LlamaToken) -> bool {
        self.vocab.is_eog(token)
    }

    /// The token that a prompt must begin with, where the model wants one.
    pub(crate) fn begin(&self) -> Option<LlamaToken> {
        Some(self.vocab.bos()).filter(|token| self.vocab.should_add_bos() && token.0 >= 0)
    }

    /// The text that a chat template knows as `bos_token`; empty when there is none.
    pub(crate) fn begin_text(&self) -> String {
        self.text(self.vocab.bos())
    }

    /// The text that a chat template knows as `eos_token`; empty when there is none.
    pub(crate) fn end_text(&self) -> String {
        self.text(self.vocab.eos())
    }

    /// The texts that `parse_special` would read as control tokens.
    pub(crate) fn special_texts(&self) -> Vec<String> {
        let special = LlamaTokenAttr::Control | LlamaTokenAttr::Unknown;
        self.vocab.tokens().filter(|&token| self.vocab.attr(token).intersects(special)).map(|t| self.text(t)).collect()
    }

    fn text(&self, token: LlamaToken) -> String {
        if token.0 < 0 {
            return String::new();
        }
        self.vocab.text(token).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    }
}
