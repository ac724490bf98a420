//! From tokens to the pieces of an answer: which tokens, with which log-probabilities, make up the text that may be shown.
//!
//! A token belongs to the piece that shows its first byte. Tokens that only spell a stop string belong to none.

use crate::stop::{Released, StopFilter};
use sandbox_wire::runner::{Text, TokenLogprob};
use std::collections::VecDeque;

/// The answer so far, as far as it is not shown.
#[derive(Debug)]
pub(crate) struct TextStream {
    filter: StopFilter,
    unshown: VecDeque<Token>,
    /// Bytes of all tokens taken, and of those shown.
    taken_bytes: usize,
    shown_bytes: usize,
}

#[derive(Debug)]
struct Token {
    starts_at: usize,
    logprob: Option<TokenLogprob>,
}

impl TextStream {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { filter: StopFilter::new(stops), unshown: VecDeque::new(), taken_bytes: 0, shown_bytes: 0 }
    }

    /// Whether a stop string ended the answer.
    pub(crate) fn is_stopped(&self) -> bool {
        self.filter.is_stopped()
    }

    /// Takes a token; returns what may be shown now.
    pub(crate) fn push(&mut self, bytes: &[u8], logprob: Option<TokenLogprob>) -> Option<Text> {
        self.unshown.push_back(Token { starts_at: self.taken_bytes, logprob });
        self.taken_bytes += bytes.len();
        let released = self.filter.push(bytes);
        self.show(released)
    }

    /// Ends the answer; returns what is left to show.
    pub(crate) fn finish(&mut self) -> Option<Text> {
        if self.is_stopped() {
            return None;
        }
        let released = self.filter.finish();
        self.shown_bytes += released.bytes;
        let text = self.piece(released.text, self.unshown.len());
        (!text.text.is_empty() || !text.logprobs.is_empty()).then_some(text)
    }

    fn show(&mut self, released: Released) -> Option<Text> {
        if released.text.is_empty() {
            return None;
        }
        self.shown_bytes += released.bytes;
        let shown = self.unshown.iter().take_while(|token| token.starts_at < self.shown_bytes).count();
        Some(self.piece(released.text, shown))
    }

    fn piece(&mut self, text: String, tokens: usize) -> Text {
        let logprobs = self.unshown.drain(..tokens).filter_map(|token| token.logprob).collect();
        Text { text, tokens: u32::try_from(tokens).unwrap_or(u32::MAX), logprobs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logprob(bytes: &str) -> Option<TokenLogprob> {
        Some(TokenLogprob { bytes: bytes.into(), logprob: -1.0, top: Vec::new() })
    }

    fn tokens(text: &Text) -> Vec<String> {
        text.logprobs.iter().map(|token| String::from_utf8_lossy(&token.bytes).into_owned()).collect()
    }

    fn push(stream: &mut TextStream, token: &str) -> Option<Text> {
        stream.push(token.as_bytes(), logprob(token))
    }

    #[test]
    fn each_token_goes_with_its_first_byte() {
        let mut stream = TextStream::new(&["STOP".to_owned()]);
        let first = push(&mut stream, "a S").unwrap();
        assert_eq!((first.text.as_str(), tokens(&first)), ("a ", vec!["a S".to_owned()]));
        assert_eq!(push(&mut stream, "TO"), None);
        let second = push(&mut stream, "X").unwrap();
        assert_eq!((second.text.as_str(), second.tokens), ("STOX", 2));
        assert_eq!(stream.finish(), None);
    }

    #[test]
    fn tokens_of_a_stop_string_are_not_shown() {
        let mut stream = TextStream::new(&["STOP".to_owned()]);
        assert_eq!(push(&mut stream, "ST"), None);
        assert_eq!(push(&mut stream, "OP and more"), None);
        assert!(stream.is_stopped());
        assert_eq!(stream.finish(), None);
    }

    #[test]
    fn log_probabilities_of_tokens_without_text_come_at_the_end() {
        let mut stream = TextStream::new(&[]);
        assert_eq!(push(&mut stream, ""), None);
        let rest = stream.finish().unwrap();
        assert_eq!((rest.text.as_str(), rest.tokens, rest.logprobs.len()), ("", 1, 1));
    }
}
