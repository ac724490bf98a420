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
//! Left out: a prompt's beginning that all chats have ([`super::claims`] adds it); templates that change letters, or put two
//! messages together with nothing between them.

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
    /// Of each part that has one.
    marks: Vec<Marks>,
    /// What is after the last mark of a prompt that its answer goes on after: a chat's is a message of its own.
    end: Option<End>,
}

/// A number for each beginning of a text, [`MARK`] letters longer than the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marks(Vec<u32>);

#[derive(Clone, Debug)]
struct End {
    letters: Vec<u8>,
    /// Tokens that were answered, and the most that can be.
    answered: u32,
    most: u32,
}

impl Seen {
    /// What of a prompt may be known here, which is asked now. More than `bytes_max` of letters cannot be fed.
    pub(crate) fn ask(&mut self, id: Id, generate: &Generate, bytes_max: usize) -> Known {
        let Some(tenant) = generate.tenant else { return Known::default() };
        let kind = mem::discriminant(&generate.prompt);
        let counts = counts(&generate.prompt).map(|part| letters(&generate.prompt, part, bytes_max));
        let known = self.known(tenant, kind, counts.as_deref());
        self.0.push_back(Asked {
            id,
            tenant,
            kind,
            marks: marks(&generate.prompt, bytes_max),
            end: end(generate, counts),
        });
        if self.0.len() > REUSE_REQUESTS {
            self.0.pop_front();
        }
        known
    }

    /// So many more tokens of an answer came.
    pub(crate) fn answer(&mut self, id: Id, tokens: u32) {
        if let Some(end) = self.0.iter_mut().rfind(|asked| asked.id == id).and_then(|asked| asked.end.as_mut()) {
            end.answered = end.answered.saturating_add(tokens).min(end.most);
        }
    }

    fn known(&self, tenant: Tenant, kind: mem::Discriminant<Prompt>, letters: Option<&[u8]>) -> Known {
        let own = || self.0.iter().filter(|asked| asked.tenant == tenant);
        if own().any(|asked| asked.kind != kind) {
            return Known::ALL;
        }
        let Some(letters) = letters else { return Known::ALL };
        let counts = Marks::new(letters);
        own().map(|asked| asked.known(&counts, letters)).fold(Known::default(), Known::or)
    }
}

impl Asked {
    /// How much of a text may be known to who has this.
    fn known(&self, counts: &Marks, letters: &[u8]) -> Known {
        let same = self.marks.iter().map(|marks| marks.same(counts)).max().unwrap_or(0);
        let whole = same == self.marks.first().map_or(0, |marks| marks.0.len());
        let goes_on = self.end.as_ref().filter(|end| whole && letters[same * MARK..].starts_with(&end.letters));
        Known { bytes: (same + 1) * MARK, tokens: goes_on.map_or(0, |end| end.answered) }
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

    fn same(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count()
    }
}

/// The part of a prompt whose tokens are counted: what a user said last is what every template renders.
pub(crate) fn counts(prompt: &Prompt) -> Option<usize> {
    match prompt {
        Prompt::Chat(messages) => messages.iter().rposition(|message| message.role == Role::User),
        Prompt::Text(_) | Prompt::Tokens(_) => Some(0),
    }
}

/// A part's letters; of tokens their numbers.
fn letters(prompt: &Prompt, part: usize, bytes_max: usize) -> Vec<u8> {
    let of = |text: &str| text.split_whitespace().flat_map(str::bytes).take(bytes_max).collect();
    match prompt {
        Prompt::Chat(messages) => messages.get(part).map_or(Vec::new(), |message| of(&message.content)),
        Prompt::Text(text) => of(text),
        Prompt::Tokens(tokens) => tokens.iter().flat_map(|token| token.to_le_bytes()).take(bytes_max).collect(),
    }
}

fn marks(prompt: &Prompt, bytes_max: usize) -> Vec<Marks> {
    let parts = match prompt {
        Prompt::Chat(messages) => messages.len(),
        Prompt::Text(_) | Prompt::Tokens(_) => 1,
    };
    let mut left = bytes_max;
    let part = |part| {
        let letters = letters(prompt, part, left);
        left -= letters.len();
        Marks::new(&letters)
    };
    (0..parts).map(part).filter(|marks| !marks.0.is_empty()).collect()
}

fn end(generate: &Generate, counts: Option<Vec<u8>>) -> Option<End> {
    let letters = counts.filter(|_| !matches!(generate.prompt, Prompt::Chat(_)))?;
    // Of a stop string, which may be a token a byte, and of letters that are not whole, no token is told.
    let stop = generate.stop.iter().map(String::len).max().unwrap_or(0);
    let answered = u32::try_from(stop).unwrap_or(u32::MAX).saturating_add(UNTOLD);
    let (after, most) = (letters.len() / MARK * MARK, answered.saturating_add(generate.tokens_max));
    Some(End { letters: letters[after..].to_vec(), answered, most })
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

    fn ask(seen: &mut Seen, id: Id, generate: Generate) -> Known {
        seen.ask(id, &generate, usize::MAX)
    }

    /// Letters that may be known of what is asked last.
    fn last(asked: &[Generate]) -> usize {
        let mut seen = Seen::default();
        (0..).zip(asked).map(|(id, generate)| seen.ask(id, generate, usize::MAX).bytes).last().unwrap()
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
        ask(&mut seen, 1, text(ANN, long("Tell")));
        seen.answer(1, 30);
        seen.answer(1, 12);
        seen.answer(9, 500);
        ask(&mut seen, 4, chat(BOB, &["Hello."]));
        seen.answer(4, 500);
        assert_eq!(ask(&mut seen, 5, chat(BOB, &["Hello."])).tokens, 0, "an answer is in no message of its caller's");
        let on = text(ANN, format!("{} It was. {}", long("Tell"), long("More")));
        assert_eq!(ask(&mut seen, 2, on), Known { bytes: LONG + MARK, tokens: 42 + UNTOLD });
        assert_eq!(
            ask(&mut seen, 3, text(ANN, long("Sing"))),
            Known { bytes: MARK, tokens: 0 },
            "after another there is none"
        );
    }

    #[test]
    fn a_stop_string_may_be_known_that_was_never_told() {
        let mut seen = Seen::default();
        let stops = vec!["\n".to_owned(), "12345678".to_owned()];
        ask(&mut seen, 1, Generate { stop: stops, ..text(ANN, "Count.") });
        assert_eq!(ask(&mut seen, 2, text(ANN, "Count. 1 2 3")).tokens, UNTOLD + 8);
        assert_eq!(ask(&mut seen, 3, text(ANN, "Sing.")).tokens, 0, "it does not go on after either");
        seen.answer(3, 5_000);
        assert_eq!(ask(&mut seen, 4, text(ANN, "Sing. La.")).tokens, UNTOLD + 100, "no more than was asked for");
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
    fn what_is_kept_of_a_prompt_is_no_more_than_can_be_fed() {
        let mut seen = Seen::default();
        let many = ["", "a", &long("Tell"), &long("Tell"), &long("Sing")];
        seen.ask(1, &chat(ANN, &many), 2 * LONG);
        let kept: Vec<_> = seen.0[0].marks.iter().map(|marks| marks.0.len()).collect();
        assert_eq!(kept, [LONG / MARK, (LONG - 1) / MARK], "up to the limit, and nothing of what is short");
    }

    #[test]
    fn with_what_all_chats_begin_with() {
        let known = Known { bytes: 10, tokens: 2 };
        assert_eq!(known.beside(&text(ANN, "x"), 5), Known { bytes: 10, tokens: 7 });
        assert_eq!(known.beside(&chat(ANN, &["x"]), 5), known, "what a user says comes after it");
    }
}
