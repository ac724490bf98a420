//! Log-probabilities in the two shapes that OpenAI has for them.
//!
//! A token need not be whole UTF-8: its text is then shown with replacement characters, and a chat's shape has the
//! bytes beside it. JSON has no infinities: a probability of nothing is written as [`NEVER`], as OpenAI does.

use sandbox_wire::runner::{TokenLogprob, TopLogprob};
use serde::Serialize;
use std::{borrow::Cow, collections::BTreeMap};

/// The logarithm written for a probability of nothing.
const NEVER: f32 = -9999.0;

/// `choices[].logprobs` of a chat.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs<'a> {
    content: Vec<Entry<'a>>,
    refusal: (),
}

/// A token with its alternatives.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    #[serde(flatten)]
    token: Token<'a>,
    top_logprobs: Vec<Token<'a>>,
}

#[derive(Serialize)]
struct Token<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> ChatLogprobs<'a> {
    pub(crate) fn new(tokens: &'a [TokenLogprob]) -> Self {
        Self { content: entries(tokens), refusal: () }
    }
}

/// Tokens with their alternatives: the elements of a chat's `content`, and all of Ollama's `logprobs`.
pub(crate) fn entries(tokens: &[TokenLogprob]) -> Vec<Entry<'_>> {
    tokens.iter().map(entry).collect()
}

fn entry(entry: &TokenLogprob) -> Entry<'_> {
    Entry {
        token: token(&entry.bytes, entry.logprob),
        top_logprobs: entry.top.iter().map(|top| token(&top.bytes, top.logprob)).collect(),
    }
}

fn token(bytes: &[u8], logprob: f32) -> Token<'_> {
    Token { token: String::from_utf8_lossy(bytes), logprob: finite(logprob), bytes }
}

/// `choices[].logprobs` of a text completion: lists that run in parallel.
#[derive(Serialize)]
pub(crate) struct TextLogprobs<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<f32>,
    top_logprobs: Option<Vec<BTreeMap<Cow<'a, str>, f32>>>,
    text_offset: Vec<usize>,
}

impl<'a> TextLogprobs<'a> {
    /// The shape of `entries`, the first of which stands `offset` characters into the text; moves `offset` past them.
    pub(crate) fn new(entries: &'a [TokenLogprob], offset: &mut usize) -> Self {
        let tokens: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.bytes)).collect();
        let advance = |token: &Cow<'_, str>| std::mem::replace(offset, *offset + token.chars().count());
        let text_offset = tokens.iter().map(advance).collect();
        let has_top = entries.iter().any(|entry| !entry.top.is_empty());
        Self {
            tokens,
            token_logprobs: entries.iter().map(|entry| finite(entry.logprob)).collect(),
            top_logprobs: has_top.then(|| entries.iter().map(|entry| alternatives(&entry.top)).collect()),
            text_offset,
        }
    }
}

/// The alternatives by their text; of two with one text the likelier, which comes first, counts.
fn alternatives(top: &[TopLogprob]) -> BTreeMap<Cow<'_, str>, f32> {
    let mut map = BTreeMap::new();
    for TopLogprob { bytes, logprob } in top {
        map.entry(String::from_utf8_lossy(bytes)).or_insert(finite(*logprob));
    }
    map
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn two() -> Vec<TokenLogprob> {
        let top = |bytes: &[u8], logprob| TopLogprob { bytes: bytes.to_vec(), logprob };
        vec![
            TokenLogprob { bytes: b"h\xc3".to_vec(), logprob: -0.5, top: vec![top(b"a", -0.25), top(b"a", -2.0)] },
            TokenLogprob { bytes: b"\xa9".to_vec(), logprob: f32::NEG_INFINITY, top: vec![] },
        ]
    }

    #[test]
    fn a_chats_shape() {
        let json = serde_json::to_string(&ChatLogprobs::new(&two()[1..])).unwrap();
        let expected = "{\"content\":[{\"token\":\"\u{fffd}\",\"logprob\":-9999.0,\"bytes\":[169],\"top_logprobs\":[]}],\"refusal\":null}";
        assert_eq!(json, expected);
    }

    #[test]
    fn a_completions_shape() {
        let mut offset = 3;
        let json = serde_json::to_string(&TextLogprobs::new(&two(), &mut offset)).unwrap();
        let expected = "{\"tokens\":[\"h\u{fffd}\",\"\u{fffd}\"],\"token_logprobs\":[-0.5,-9999.0],\"top_logprobs\":[{\"a\":-0.25},{}],\"text_offset\":[3,5]}";
        assert_eq!((json.as_str(), offset), (expected, 6));
    }
}
