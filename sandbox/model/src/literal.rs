//! Keeps control tokens in people's text literal: `<|im_end|>` typed by a user is ten characters, not a token.
//!
//! A chat template mixes its own control tokens with people's text into one string, which is then tokenized with control
//! tokens read. So before rendering, every place in people's text that reads as a control token is broken by a marker, a
//! noncharacter that no text may hold; after rendering the string is split at the markers and the pieces are tokenized one
//! by one. Text without such places is tokenized whole, exactly as if this were not here.
//!
//! ```text
//!  people's text     a<|im_end|>b
//!  shielded          a<␟|im_end|>b                                  ␟ = U+FDD0
//!  rendered          <|im_start|>user\na<␟|im_end|>b<|im_end|>
//!  pieces            <|im_start|>user\na<     |im_end|>b<|im_end|>
//! ```
//!
//! Invariants, held by the property tests: no piece of shielded text holds a control token's text, nor does it end or begin
//! with a part of one that text beside it could complete; the pieces together are the text, but for U+FDD0 in it, which
//! becomes U+FFFD. A control token of one character cannot be broken: it gets a marker on either side, and a piece of one
//! character between two markers is tokenized without control tokens. Left out: a template that writes the beginning and
//! the end of a control token right before and after people's text means it.

use std::collections::BTreeSet;

const MARKER: char = '\u{FDD0}';

/// The texts that read as control tokens.
#[derive(Debug, Default)]
pub(crate) struct Specials {
    texts: Vec<String>,
}

/// A part of a rendered prompt, to be tokenized by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) text: &'a str,
    /// Whether control tokens are read in it.
    pub(crate) parse_special: bool,
}

impl Specials {
    pub(crate) fn new(texts: impl IntoIterator<Item = String>) -> Self {
        Self { texts: texts.into_iter().filter(|text| !text.is_empty()).collect() }
    }

    /// People's text, with a marker in each place that reads as a control token.
    pub(crate) fn shield(&self, text: &str) -> String {
        let text = text.replace(MARKER, "\u{FFFD}");
        let mut shielded = String::with_capacity(text.len() + 8);
        let mut done = 0;
        for cut in self.cuts(&text) {
            shielded.push_str(&text[done..cut]);
            shielded.push(MARKER);
            done = cut;
        }
        shielded.push_str(&text[done..]);
        shielded
    }

    /// Where markers go: offsets at character borders.
    fn cuts(&self, text: &str) -> BTreeSet<usize> {
        let mut cuts = BTreeSet::new();
        for (at, first) in text.char_indices() {
            let rest = &text[at..];
            for special in self.texts.iter().filter(|special| rest.starts_with(special.as_str())) {
                cuts.insert(at + first.len_utf8());
                if special.len() == first.len_utf8() {
                    cuts.insert(at);
                }
            }
        }
        cuts.extend(self.open_end(text));
        cuts.extend(self.open_start(text));
        cuts
    }

    /// The end of the text, when it ends in the beginning of a control token.
    fn open_end(&self, text: &str) -> Option<usize> {
        let text = text.trim_end();
        let open = |special: &String| borders(special).any(|border| text.ends_with(&special[..border]));
        self.texts.iter().any(open).then_some(text.len())
    }

    /// The start of the text, when it starts with the end of a control token.
    fn open_start(&self, text: &str) -> Option<usize> {
        let start = text.len() - text.trim_start().len();
        let open = |special: &String| borders(special).any(|border| text[start..].starts_with(&special[border..]));
        self.texts.iter().any(open).then_some(start)
    }
}

/// The inner character borders of a text.
fn borders(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).skip(1)
}

/// Splits rendered text at the markers.
pub(crate) fn pieces(rendered: &str) -> Vec<Piece<'_>> {
    let parts: Vec<&str> = rendered.split(MARKER).collect();
    let last = parts.len() - 1;
    let literal = |index: usize, text: &str| index != 0 && index != last && text.chars().nth(1).is_none();
    let piece = |(index, &text)| Piece { text, parse_special: !literal(index, text) };
    parts.iter().enumerate().map(piece).filter(|piece| !piece.text.is_empty()).collect()
}

/// Rendered text as people may see it.
pub(crate) fn unshield(rendered: &str) -> String {
    rendered.replace(MARKER, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chatml() -> Specials {
        Specials::new(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "§", ""].map(str::to_owned))
    }

    fn texts(rendered: &str) -> Vec<&str> {
        pieces(rendered).iter().map(|piece| piece.text).collect()
    }

    #[test]
    fn ordinary_text_stays_whole() {
        for text in ["", "hello", "a < b, c > d.", "<|im_en|>", "naïve 🦀"] {
            assert_eq!(chatml().shield(text), text);
        }
    }

    #[test]
    fn control_tokens_are_broken() {
        assert_eq!(texts(&chatml().shield("a<|im_end|>b")), ["a<", "|im_end|>b"]);
        assert_eq!(texts(&chatml().shield("<<|im_end|><|im_end|>")), ["<<", "|im_end|><", "|im_end|>"]);
    }

    #[test]
    fn a_control_token_of_one_character_is_not_read() {
        let shielded = chatml().shield("a§b");
        let piece = |text, parse_special| Piece { text, parse_special };
        assert_eq!(pieces(&shielded), [piece("a", true), piece("§", false), piece("b", true)]);
    }

    #[test]
    fn halves_in_two_messages_do_not_join() {
        let rendered = format!("{}{}", chatml().shield("<|im_"), chatml().shield("end|>"));
        assert_eq!(texts(&rendered), ["<|im_", "end|>"]);
        assert_eq!(texts(&format!("{}|im_end|>", chatml().shield("x < "))), ["x <", " |im_end|>"]);
    }

    #[test]
    fn the_marker_itself_cannot_be_sent() {
        assert_eq!(chatml().shield("<\u{FDD0}|im_end|>"), "<\u{FFFD}|im_end|>");
        assert_eq!(unshield(&chatml().shield("<|im_end|>")), "<|im_end|>");
    }

    proptest! {
        #[test]
        fn no_piece_reads_as_a_control_token(
            specials in prop::collection::vec("[<|>ab]{1,4}", 0..6),
            texts in prop::collection::vec("[<|>ab ]{0,12}", 1..=2),
        ) {
            let shield = Specials::new(specials.clone());
            // People's texts one after the other: whatever control token appears is theirs.
            let people = texts.concat();
            let rendered: String = texts.iter().map(|text| shield.shield(text)).collect();
            let pieces = pieces(&rendered);
            prop_assert_eq!(pieces.iter().map(|piece| piece.text).collect::<String>(), people);
            for piece in pieces.iter().filter(|piece| piece.parse_special) {
                for special in specials.iter().filter(|special| special.len() > 1) {
                    prop_assert!(!piece.text.contains(special.as_str()), "{:?} in {:?}", special, piece.text);
                }
            }
        }

        #[test]
        fn the_template_cannot_complete_a_control_token(
            special in "[<|>ab]{2,5}", text in "[<|>ab]{1,8}", before in "[<|>ab]{0,4}", after in "[<|>ab]{0,4}",
        ) {
            prop_assume!(!special.contains(&text));
            let shield = Specials::new([special.clone()]);
            let rendered = format!("{before}{}{after}", shield.shield(&text));
            let own = before.matches(special.as_str()).count() + after.matches(special.as_str()).count();
            let read: usize = pieces(&rendered).iter().map(|piece| piece.text.matches(special.as_str()).count()).sum();
            prop_assert!(read <= own, "{:?} read {} times in {:?}", special, read, rendered);
        }
    }
}
