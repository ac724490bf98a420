//! What a runner claims of a prompt's tokens, held against the prompt: pure.
//!
//! The server has no vocabulary, so it cannot count tokens; it knows what no tokenizer gets below:
//!
//! ```text
//!  tokens       exactly so many
//!  text         a token a word, for tokens do not reach over the spaces between words, and a token each LONGEST bytes
//!  messages     the same of what a user said last: every template renders that, while some leave out other turns
//! ```
//! A word is what stands between ASCII spaces and has an ASCII letter or digit: of others some normalizers leave nothing. An
//! embedding model may read a word of any length as one unknown token, so there length counts for nothing.
//!
//! What was found in the cache was computed before, for the same tenant by the same instance ([`super::seen`]), or is what
//! all chats begin with. The rest is computed, and is held against the same count; one token of a prompt always is.
//!
//! Left out: a vocabulary whose tokens do reach over spaces (llama.cpp's `superbpe`) is believed a token a word, which is more
//! than it needs; tokens and words are not the same number, so a claim may be off by what lies between. Claims move what
//! tokens cost, where a price book charges for them, and never what time and memory do.

use crate::{Work, seen};
use sandbox_wire::runner::{FromRunner, Prompt};
use seen::{Known, counts};

/// Bytes that a token stands for at most, spaces not counted: vocabularies hold runs of up to 128 spaces, and shorter ones of
/// dashes and the like.
pub(crate) const LONGEST: usize = 128;
/// Tokens that a template puts before the first message at most, beside the function's system prompt.
const HEAD: u32 = 1_024;

/// What is true of a prompt whatever its runner claims, tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Least {
    /// It has so many.
    tokens: u32,
    /// So many of them were computed.
    computed: u32,
}

/// Tokens of one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) tokens: u32,
    pub(crate) cached: u32,
}

impl Least {
    /// Of a job's prompt in a context of `context` tokens, of which so much may be known.
    pub(crate) fn of(work: &Work, known: Known, context: u32) -> Self {
        let [tokens, computed] = match work {
            Work::Generate(generate) => [Known::default(), known].map(|known| beyond(&generate.prompt, known)),
            // What does not fit is cut off, wherever that is.
            Work::Embed { input, truncate } => {
                let most = if *truncate { 1 } else { usize::MAX };
                [embedded(input).min(most); 2]
            }
            Work::Tokenize { .. } | Work::Detokenize(_) | Work::ApplyTemplate(_) | Work::Wake => [0; 2],
        };
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX).min(context);
        Self { tokens: count(tokens), computed: count(computed) }
    }

    /// What can be true of a claim.
    pub(crate) fn believe(self, claim: Claim) -> Claim {
        let tokens = claim.tokens.max(self.tokens);
        let computed = self.computed.max(1).min(tokens);
        Claim { tokens, cached: claim.cached.min(tokens - computed) }
    }
}

impl Claim {
    /// What a message claims, if it does.
    pub(crate) fn told(message: &FromRunner) -> Option<Self> {
        match message {
            FromRunner::Started { prompt_tokens, cached_tokens, .. } => {
                Some(Self { tokens: *prompt_tokens, cached: *cached_tokens })
            }
            FromRunner::Finished { finished, .. } => {
                Some(Self { tokens: finished.prompt_tokens, cached: finished.cached_tokens })
            }
            FromRunner::Embedding { tokens, .. } => Some(Self { tokens: *tokens, cached: 0 }),
            _ => None,
        }
    }

    /// Puts this in place of what a message claims.
    pub(crate) fn put(self, message: &mut FromRunner) {
        match message {
            FromRunner::Started { prompt_tokens, cached_tokens, .. } => {
                (*prompt_tokens, *cached_tokens) = (self.tokens, self.cached);
            }
            FromRunner::Finished { finished, .. } => {
                (finished.prompt_tokens, finished.cached_tokens) = (self.tokens, self.cached);
            }
            FromRunner::Embedding { tokens, .. } => *tokens = self.tokens,
            _ => {}
        }
    }
}

/// Tokens that all chats of a function begin with, as its runner told when it was loaded; no more than there can be.
pub(crate) fn head(system_tokens: u32, system: Option<&str>) -> u32 {
    let said = u32::try_from(system.map_or(0, str::len)).unwrap_or(u32::MAX);
    system_tokens.min(said.saturating_add(HEAD))
}

/// Tokens that a prompt has at least beyond what may be known of it.
fn beyond(prompt: &Prompt, known: Known) -> usize {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens.len().saturating_sub(known.bytes / size_of::<u32>()),
        Prompt::Text(text) => read(text, known.bytes),
        Prompt::Chat(messages) => counts(prompt).map_or(0, |part| read(&messages[part].content, known.bytes)),
    };
    tokens.saturating_sub(known.tokens as usize)
}

/// Tokens of a text at least, after so many bytes of letters.
fn read(text: &str, known: usize) -> usize {
    let (mut at, mut words, mut letters) = (0, 0, 0);
    for word in text.split_ascii_whitespace() {
        words += usize::from(at >= known && is_read(word));
        for letter in word.chars().filter(|letter| !letter.is_whitespace()) {
            letters += if at >= known { letter.len_utf8() } else { 0 };
            at += letter.len_utf8();
        }
    }
    words.max(letters.div_ceil(LONGEST))
}

fn embedded(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Text(text) => text.split_ascii_whitespace().filter(|word| is_read(word)).count(),
        Prompt::Chat(_) => 0,
    }
}

fn is_read(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_wire::runner::{Message, Role};

    const NOTHING: Known = Known { bytes: 0, tokens: 0 };

    fn embed(text: &str, truncate: bool) -> u32 {
        Least::of(&Work::Embed { input: Prompt::Text(text.to_owned()), truncate }, NOTHING, 512).tokens
    }

    #[test]
    fn a_word_is_a_token_at_least_and_so_are_many_letters() {
        assert_eq!(read("  Tell me\na story. ", 0), 4);
        assert_eq!(read("— … ?!", 0), 1, "none may be left of them, and some are there");
        assert_eq!(read(" \n\u{a0} ", 0), 0);
        assert_eq!(read(&"長".repeat(100), 0), 3, "300 bytes");
        assert_eq!((embed(&"x".repeat(1_000), false), embed("a b c", false), embed("a b c", true)), (1, 3, 1));
        assert_eq!(embed(&"a ".repeat(1_000), false), 512, "no more than fits");
    }

    #[test]
    fn what_is_known_does_not_count() {
        assert_eq!(read("one two three four", 6), 2, "six letters are known");
        assert_eq!(read("one two three four", 7), 1, "of the third word one is");
        assert_eq!(read(&"長".repeat(100), 150), 2, "150 bytes are left");
        assert_eq!(read("one", usize::MAX), 0);
        let tokens = Prompt::Tokens(vec![1; 9]);
        assert_eq!(beyond(&tokens, Known { bytes: 16, tokens: 2 }), 3, "four tokens, and two more");
        assert_eq!(beyond(&tokens, Known { bytes: 16, tokens: 9 }), 0);
    }

    #[test]
    fn of_a_chat_what_a_user_said_last_counts() {
        let said =
            [(Role::System, "be brief"), (Role::User, "1"), (Role::Assistant, "x y z"), (Role::User, "one two three")];
        let chat = Prompt::Chat(said.map(|(role, text)| Message::new(role, text)).to_vec());
        assert_eq!(beyond(&chat, NOTHING), 3);
        assert_eq!(beyond(&Prompt::Chat(Vec::new()), NOTHING), 0);
    }

    #[test]
    fn claims_that_cannot_be_are_corrected_and_others_are_not() {
        let believed = |tokens, cached, least, computed| {
            let Claim { tokens, cached } = Least { tokens: least, computed }.believe(Claim { tokens, cached });
            (tokens, cached)
        };
        assert_eq!(believed(30, 29, 20, 0), (30, 29));
        assert_eq!(believed(30, 15, 20, 15), (30, 15));
        assert_eq!(believed(30, 16, 20, 15), (30, 15), "more was computed");
        assert_eq!(believed(0, 0, 20, 0), (20, 0));
        assert_eq!(believed(30, 30, 20, 0), (30, 29), "one always is");
        assert_eq!(believed(0, u32::MAX, 20, 20), (20, 0));
        assert_eq!(believed(0, 0, 0, 0), (0, 0), "nothing was asked");
    }

    #[test]
    fn what_all_chats_begin_with_is_no_more_than_there_can_be() {
        assert_eq!(head(30, Some("be brief")), 30);
        assert_eq!(head(u32::MAX, Some("be brief")), HEAD + 8);
        assert_eq!(head(u32::MAX, None), HEAD);
    }
}
