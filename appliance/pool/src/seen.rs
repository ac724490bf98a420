//! What of a prompt an instance may have computed before: pure.
//!
//! ```text
//!  asked    Once upon a time there was a │ small ember that … │ … │      a mark for the letters up to each bar
//!  prompt   Once upon a time there was a │ small lamp  that … │         the first mark is the same: of what stands before
//!                                          ◀── may be known ─▶│         the second bar anything may be
//! ```
//! A runner keeps what it computed of a prompt and of its answer, finds it for its tenant only, and for
//! [`REUSE_REQUESTS`] requests. So what it finds begins one of the last prompts that the tenant asked of it: this is those
//! prompts' marks, a sixteenth of their size. Spaces do not count, for templates add and take away some. What stands in a
//! chat is found by other chats as whole messages; a tenant that sent templates of its own as text beside chats may have all.
//!
//! Left out: a prompt's beginning that all chats have ([`super::claims`] adds it); templates that change letters.

use sandbox_wire::runner::{Generate, Id, Prompt, REUSE_REQUESTS, Role, Tenant};
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hasher},
    mem,
};

/// Letters to a mark, bytes.
const MARK: usize = 64;
/// Tokens that a runner may have computed beyond those that it told, but for a stop string's.
const UNTOLD: u32 = 16;

/// How much of the beginning of a prompt may be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Of the part that counts, bytes: letters of a text, or four to a token.
    pub(crate) bytes: usize,
    /// Tokens beside them.
    pub(crate) tokens: u32,
}

impl Known {
    /// All may be.
    const ALL: Self = Self { bytes: usize::MAX, tokens: 0 };
}

/// What an instance was asked last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(VecDeque<Asked>);

#[derive(Clone, Debug)]
struct Asked {
    id: Id,
    tenant: Tenant,
    kind: mem::Discriminant<Prompt>,
    parts: Vec<Marks>,
    /// Tokens of its answer, at most, which go on after it: a chat's are a message of their own.
    answered: Option<u32>,
}

/// A number for each beginning of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marks(Vec<u32>);

impl Seen {
    /// What of a prompt may be known here, which is asked now.
    pub(crate) fn ask(&mut self, id: Id, generate: &Generate) -> Known {
        let Some(tenant) = generate.tenant else { return Known::default() };
        let kind = mem::discriminant(&generate.prompt);
        let parts = marks(&generate.prompt);
        let known = self.known(tenant, kind, &generate.prompt, &parts);
        self.0.push_back(Asked { id, tenant, kind, parts, answered: untold(generate) });
        if self.0.len() > REUSE_REQUESTS {
            self.0.pop_front();
        }
        known
    }

    /// So many more tokens of an answer came.
    pub(crate) fn answer(&mut self, id: Id, tokens: u32) {
        if let Some(asked) = self.0.iter_mut().rfind(|asked| asked.id == id) {
            asked.answered = asked.answered.map(|before| before.saturating_add(tokens));
        }
    }

    fn known(&self, tenant: Tenant, kind: mem::Discriminant<Prompt>, prompt: &Prompt, parts: &[Marks]) -> Known {
        let own = || self.0.iter().filter(|asked| asked.tenant == tenant);
        if own().any(|asked| asked.kind != kind) {
            return Known::ALL;
        }
        let Some(counts) = counts(prompt).and_then(|part| parts.get(part)) else { return Known::ALL };
        let each = own().flat_map(|asked| asked.parts.iter().map(|part| (part, asked.answered.unwrap_or(0))));
        each.map(|(part, answered)| part.known(counts, answered)).fold(Known::default(), Known::or)
    }
}

impl Known {
    /// With what all chats of the function begin with, so many tokens. What a user says in a chat comes after it.
    pub(crate) fn beside(self, generate: &Generate, head: u32) -> Self {
        match generate.prompt {
            Prompt::Chat(_) => self,
            Prompt::Text(_) | Prompt::Tokens(_) => Self { tokens: self.tokens.saturating_add(head), ..self },
        }
    }

    fn or(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), tokens: self.tokens.max(other.tokens) }
    }
}

impl Marks {
    fn new(letters: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        let mark = |chunk: &[u8]| {
            hasher.write(chunk);
            // Two that are the same by accident make more known than is.
            hasher.finish() as u32
        };
        Self(letters.chunks_exact(MARK).map(mark).collect())
    }

    /// How much of another may be known to who has this, and after it an answer of so many tokens.
    fn known(&self, other: &Self, answered: u32) -> Known {
        let same = self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count();
        let tokens = if same == self.0.len() { answered } else { 0 };
        Known { bytes: (same + 1) * MARK, tokens }
    }
}

/// The part of a prompt whose tokens are counted: what a user said last is what every template renders.
pub(crate) fn counts(prompt: &Prompt) -> Option<usize> {
    match prompt {
        Prompt::Chat(messages) => messages.iter().rposition(|message| message.role == Role::User),
        Prompt::Text(_) | Prompt::Tokens(_) => Some(0),
    }
}

fn marks(prompt: &Prompt) -> Vec<Marks> {
    let letters = |text: &str| Marks::new(text.split_whitespace().collect::<String>().as_bytes());
    match prompt {
        Prompt::Chat(messages) => messages.iter().map(|message| letters(&message.content)).collect(),
        Prompt::Text(text) => vec![letters(text)],
        Prompt::Tokens(tokens) => {
            vec![Marks::new(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>())]
        }
    }
}

/// Tokens that are computed and never told: of a stop string, which may be a token a byte, and of letters that are not whole.
fn untold(generate: &Generate) -> Option<u32> {
    let stop = generate.stop.iter().map(String::len).max().unwrap_or(0);
    let goes_on = !matches!(generate.prompt, Prompt::Chat(_));
    goes_on.then(|| u32::try_from(stop).unwrap_or(u32::MAX).saturating_add(UNTOLD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_wire::runner::{Constraint, Message, Sampling};

    const ANN: Option<Tenant> = Some(Tenant(1));
    const BOB: Option<Tenant> = Some(Tenant(2));
    /// Letters of [`long`]'s words.
    const LONG: usize = 640;

    fn generate(tenant: Option<Tenant>, prompt: Prompt) -> Generate {
        Generate {
            prompt,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            tokens_max: 100,
            deadline_ms: 900_000,
            constraint: Constraint::None,
            tools: None,
            logprobs: None,
            tenant,
        }
    }

    fn chat(tenant: Option<Tenant>, said: &[&str]) -> Generate {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        generate(tenant, Prompt::Chat(roles.zip(said).map(|(role, text)| Message::new(role, *text)).collect()))
    }

    fn text(tenant: Option<Tenant>, text: impl Into<String>) -> Generate {
        generate(tenant, Prompt::Text(text.into()))
    }

    /// 160 words of four letters, which begin with `first`.
    fn long(first: &str) -> String {
        format!("{first} {}", "word ".repeat(159))
    }

    /// Letters that may be known of what is asked last.
    fn last(asked: &[Generate]) -> usize {
        let mut seen = Seen::default();
        (0..).zip(asked).map(|(id, generate)| seen.ask(id, generate).bytes).last().unwrap()
    }

    #[test]
    fn nothing_is_known_to_a_newcomer() {
        assert_eq!(last(&[chat(ANN, &[&long("Tell")])]), 0);
        assert_eq!(last(&[chat(ANN, &[&long("Tell")]), chat(BOB, &[&long("Tell")])]), 0, "another's is not found");
        assert_eq!(last(&[chat(None, &[&long("Tell")]), chat(None, &[&long("Tell")])]), 0, "nobody's is not kept");
    }

    #[test]
    fn of_what_was_asked_before_the_same_beginning_is_known() {
        let story = format!("{}and then?", long("Tell"));
        assert_eq!(last(&[chat(ANN, &[&long("Tell")]), chat(ANN, &[&story])]), LONG + MARK);
        assert_eq!(
            last(&[chat(ANN, &[&story]), chat(ANN, &[&long("Tell")])]),
            LONG + MARK,
            "of more than is asked now"
        );
        assert_eq!(last(&[chat(ANN, &[&long("Tell")]), chat(ANN, &[&long("Sing")])]), MARK, "within a mark all may be");
        let turns = [chat(ANN, &["Hello.", "Hi.", &long("Tell")]), chat(ANN, &[&long("Tell")])];
        assert_eq!(last(&turns), LONG + MARK, "wherever it stood");
        assert_eq!(last(&[chat(ANN, &["Hello."]), chat(ANN, &["Hello.", "Hi.", &long("Tell")])]), MARK);
    }

    #[test]
    fn spaces_do_not_count() {
        let spaced = format!("  {}\n", long("Tell").replace(' ', " \t"));
        assert_eq!(last(&[chat(ANN, &[&long("Tell")]), chat(ANN, &[&spaced])]), LONG + MARK);
    }

    #[test]
    fn who_asks_in_several_ways_may_have_it_all() {
        assert_eq!(last(&[text(ANN, long("Tell")), chat(ANN, &[&long("Sing")])]), usize::MAX);
        assert_eq!(last(&[chat(ANN, &["Hello."]), text(BOB, "x"), chat(ANN, &["Hello."])]), MARK, "another's way");
    }

    #[test]
    fn an_answer_is_known_to_who_goes_on_after_it() {
        let mut seen = Seen::default();
        seen.ask(1, &text(ANN, long("Tell")));
        seen.answer(1, 30);
        seen.answer(1, 12);
        seen.answer(9, 500);
        seen.ask(4, &chat(BOB, &["Hello."]));
        seen.answer(4, 500);
        assert_eq!(seen.ask(5, &chat(BOB, &["Hello."])).tokens, 0, "an answer is in no message of its caller's");
        let on = text(ANN, format!("{} It was. {}", long("Tell"), long("More")));
        assert_eq!(seen.ask(2, &on), Known { bytes: LONG + MARK, tokens: 42 + UNTOLD });
        assert_eq!(
            seen.ask(3, &text(ANN, long("Sing"))),
            Known { bytes: MARK, tokens: 0 },
            "after another there is none"
        );
    }

    #[test]
    fn a_stop_string_may_be_known_that_was_never_told() {
        let mut seen = Seen::default();
        let stops = vec!["\n".to_owned(), "12345678".to_owned()];
        seen.ask(1, &Generate { stop: stops, ..text(ANN, "Count.") });
        assert_eq!(seen.ask(2, &text(ANN, "Count. 1 2 3")).tokens, UNTOLD + 8);
    }

    #[test]
    fn tokens_are_known_by_their_numbers() {
        let tokens = |count: u32| generate(ANN, Prompt::Tokens((0..count).collect()));
        assert_eq!(last(&[tokens(100), tokens(200)]), (100 * 4 / MARK + 1) * MARK);
        assert_eq!(last(&[tokens(100), generate(ANN, Prompt::Tokens(vec![7; 200]))]), MARK);
    }

    #[test]
    fn what_a_runner_forgets_is_forgotten() {
        let asked = |between| {
            let others = (0..between).map(|at| chat(BOB, &[&long(&format!("{at:04}"))]));
            let all: Vec<_> = [chat(ANN, &[&long("Tell")])].into_iter().chain(others).collect();
            last(&[all, vec![chat(ANN, &[&long("Tell")])]].concat())
        };
        assert_eq!((asked(REUSE_REQUESTS - 1), asked(REUSE_REQUESTS)), (LONG + MARK, 0));
    }

    #[test]
    fn with_what_all_chats_begin_with() {
        let known = Known { bytes: 10, tokens: 2 };
        assert_eq!(known.beside(&text(ANN, "x"), 5), Known { bytes: 10, tokens: 7 });
        assert_eq!(known.beside(&chat(ANN, &["x"]), 5), known, "what a user says comes after it");
    }
}
