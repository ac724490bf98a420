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
//! Of a prompt at least one token is always computed, so what was found in the cache is less than the prompt.
//!
//! Left out: a vocabulary whose tokens do reach over spaces (llama.cpp's `superbpe`) is believed a token a word, which is more
//! than it needs; how much below that was found. Claims of it move what tokens cost, where a price book charges for them, and never
//! what time and memory do.

use appliance_pool::Work;
use sandbox_wire::runner::{Prompt, Role};

/// Bytes that a token stands for at most, spaces not counted: vocabularies hold runs of up to 128 spaces, and shorter ones of
/// dashes and the like.
const LONGEST: usize = 128;

/// Tokens of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Believed {
    pub(super) tokens_in: u32,
    pub(super) tokens_cached: u32,
    /// Whether more was claimed than can be.
    pub(super) corrected: bool,
}

/// The fewest tokens that a job's prompt has in a context of `context_tokens`; 0 where they are not counted.
pub(super) fn least(work: &Work, context_tokens: u32) -> u32 {
    let least = match work {
        Work::Generate(generate) => of(&generate.prompt, |text| words(text).max(letters(text).div_ceil(LONGEST))),
        // What does not fit is cut off, wherever that is.
        Work::Embed { input, truncate: true } => of(input, words).min(1),
        Work::Embed { input, truncate: false } => of(input, words),
        Work::Tokenize { .. } | Work::Detokenize(_) | Work::ApplyTemplate(_) | Work::Wake => 0,
    };
    u32::try_from(least).unwrap_or(u32::MAX).min(context_tokens)
}

/// What can be true of a claim about a prompt of at least `least` tokens.
pub(super) fn believe(tokens_in: u32, tokens_cached: u32, least: u32) -> Believed {
    let told = (tokens_in, tokens_cached);
    let tokens_in = tokens_in.max(least);
    let tokens_cached = tokens_cached.min(tokens_in.saturating_sub(1));
    Believed { tokens_in, tokens_cached, corrected: told != (tokens_in, tokens_cached) }
}

fn of(prompt: &Prompt, count: impl Fn(&str) -> usize) -> usize {
    match prompt {
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Text(text) => count(text),
        Prompt::Chat(messages) => {
            let asked = messages.iter().rfind(|message| message.role == Role::User);
            asked.map_or(0, |message| count(&message.content))
        }
    }
}

fn words(text: &str) -> usize {
    text.split_ascii_whitespace().filter(|word| word.bytes().any(|byte| byte.is_ascii_alphanumeric())).count()
}

/// Bytes that are no space of any kind.
fn letters(text: &str) -> usize {
    text.chars().filter(|letter| !letter.is_whitespace()).map(char::len_utf8).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_wire::runner::Message;

    fn embed(text: &str, truncate: bool) -> u32 {
        least(&Work::Embed { input: Prompt::Text(text.to_owned()), truncate }, 512)
    }

    #[test]
    fn a_word_is_a_token_at_least_and_so_are_many_letters() {
        let count = |text: &str| words(text).max(letters(text).div_ceil(LONGEST));
        assert_eq!(count("  Tell me\na story. "), 4);
        assert_eq!(count("— … ?!"), 1, "none may be left of them, and some are there");
        assert_eq!(count(" \n\u{a0} "), 0);
        assert_eq!(count(&"長".repeat(100)), 3, "300 bytes");
        assert_eq!((embed(&"x".repeat(1_000), false), embed("a b c", false), embed("a b c", true)), (1, 3, 1));
        assert_eq!(embed(&"a ".repeat(1_000), false), 512, "no more than fits");
    }

    #[test]
    fn of_a_chat_what_a_user_said_last_counts() {
        let said =
            [(Role::System, "be brief"), (Role::User, "1"), (Role::Assistant, "x y z"), (Role::User, "one two three")];
        let messages = said.map(|(role, text)| Message::new(role, text)).to_vec();
        assert_eq!(of(&Prompt::Chat(messages), words), 3);
        assert_eq!(of(&Prompt::Tokens(vec![1; 9]), words), 9);
    }

    #[test]
    fn claims_that_cannot_be_are_corrected_and_others_are_not() {
        let believed = |tokens_in, tokens_cached, corrected| Believed { tokens_in, tokens_cached, corrected };
        assert_eq!(believe(30, 29, 20), believed(30, 29, false));
        assert_eq!(believe(0, 0, 20), believed(20, 0, true));
        assert_eq!(believe(30, 30, 20), believed(30, 29, true));
        assert_eq!(believe(0, u32::MAX, 20), believed(20, 19, true));
        assert_eq!(believe(0, 0, 0), believed(0, 0, false), "nothing was asked");
    }
}
