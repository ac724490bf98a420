//! A page of the ledger as a box tells it to its fleet: its JSON, what of it is signed, and its cursors. Both ends use
//! this, so that what is signed is what is checked.
//!
//! ```text
//!  { box, key, from, next, previous, chain, more, lines, signature }
//!      signature = Ed25519( "ember-ledger-page-v1\n" box "\n" from "\n" next "\n" previous "\n" chain "\n" )
//! ```
//! `chain` covers every line up to `next`, so the signature does.

use crate::{frame::Chain, query::Page, segment::Position};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is signed begins with this.
const SIGNED: &str = "ember-ledger-page-v1";

/// Where a page begins, as `SEGMENT:OFFSET`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PageCursor(pub Position);

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.segment, self.0.offset)
    }
}

impl From<PageCursor> for String {
    fn from(cursor: PageCursor) -> String {
        cursor.to_string()
    }
}

impl TryFrom<String> for PageCursor {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parts = text.split_once(':').and_then(|(segment, offset)| {
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let segment: u64 = segment.parse().ok().filter(|number| digits(segment) && *number < 1 << 31)?;
            Some(Position { segment, offset: offset.parse().ok().filter(|_| digits(offset))? })
        });
        parts.map(Self).ok_or("a cursor is what `next` said: SEGMENT:OFFSET")
    }
}

/// A page, signed by its box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPage {
    /// The box's name.
    #[serde(rename = "box")]
    pub name: String,
    /// Its public key, 64 hexadecimal digits.
    pub key: String,
    /// Where the lines begin; later than what was asked for where that is no longer kept.
    pub from: PageCursor,
    /// Where they end, and the next page begins.
    pub next: PageCursor,
    /// The chain value before them.
    pub previous: Chain,
    /// The chain value of the last of them.
    pub chain: Chain,
    /// Whether it is worth asking on.
    pub more: bool,
    /// The lines, without their newlines.
    pub lines: Vec<String>,
    /// Over [`message`](Self::message), 128 hexadecimal digits.
    pub signature: String,
}

impl SignedPage {
    /// Bytes of its lines.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.len() + 1).sum()
    }

    /// A page of the box `name`, whose `key` is told with it, not signed yet.
    pub fn unsigned(name: &str, key: &[u8], page: Page) -> Self {
        let Page { from, next, previous, chain, lines } = page;
        Self {
            name: name.to_owned(),
            key: hex(key),
            from: PageCursor(Position::unpacked(from)),
            next: PageCursor(Position::unpacked(next)),
            previous,
            chain,
            more: !lines.is_empty(),
            lines,
            signature: String::new(),
        }
    }

    /// What is signed.
    pub fn message(&self) -> String {
        let Self { name, from, next, previous, chain, .. } = self;
        let (previous, chain) = (String::from(*previous), String::from(*chain));
        format!("{SIGNED}\n{name}\n{from}\n{next}\n{previous}\n{chain}\n")
    }

    /// This page with its signature.
    #[must_use]
    pub fn signed(self, signature: &[u8]) -> Self {
        Self { signature: hex(signature), ..self }
    }
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_what_next_says() {
        let read = |text: &str| PageCursor::try_from(text.to_owned()).ok();
        let position = Position { segment: 3, offset: 4096 };
        assert_eq!(read("3:4096"), Some(PageCursor(position)));
        assert_eq!(PageCursor(position).to_string(), "3:4096");
        for bad in ["", "3", "x:1", "1:-1", "+1:1", "1:1:1", "9999999999:0", "1:4294967296"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_signed_text_covers_name_cursors_and_chain() {
        let page =
            Page { from: 0, next: 1 << 32 | 7, previous: Chain::default(), chain: Chain::default(), lines: vec![] };
        let page = SignedPage::unsigned("shop-7", &[1; 32], page);
        let zeros = "0".repeat(64);
        assert_eq!(page.message(), format!("ember-ledger-page-v1\nshop-7\n0:0\n1:7\n{zeros}\n{zeros}\n"));
        let text = serde_json::to_string(&page.clone().signed(&[2; 64])).unwrap();
        assert!(text.contains(r#""box":"shop-7""#) && text.contains(r#""next":"1:7""#), "{text}");
        assert_eq!(serde_json::from_str::<SignedPage>(&text).unwrap(), page.signed(&[2; 64]));
    }
}
