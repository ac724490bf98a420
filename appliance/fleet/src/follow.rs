//! Whether a page follows from what is known of its box. Pure: a page and what is known in; records and the next cursor, or
//! a fault, out.
//!
//! ```text
//!  known: key, cursor, chain value there
//!    page of another box, key or signature ────────────────▶ lied, rekeyed
//!    begins at the cursor, `previous` is the chain value ──▶ goes on
//!                          `previous` is another ──────────▶ forked: this ledger has another past
//!    begins at a later segment, which follows ─────────────▶ goes on
//!                               which does not follow ─────▶ goes on, with a gap: what lies between was removed unseen;
//!                                                            without, where its owner has just accepted it as it is
//!    begins anywhere else ─────────────────────────────────▶ lied
//!    each line: checksum, chain value, content, place ─────▶ else lied, or unreadable: of a version that is not known here
//! ```
//!
//! Invariants: what goes on ends behind where it began, or holds no line; nothing is taken of a page with a fault. The first
//! key that a box shows, over TLS that proves its name, is its key from then on.

use appliance_edge::authority::is_signed;
use appliance_ledger::{
    Position,
    frame::{Chain, Content, Frame, FrameError},
    signed::{PageCursor, SignedPage},
};
use appliance_types::{Entry, Stage};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most lines of a page; the box's own limit is in bytes, and no line is shorter than its proofs.
const PAGE_LINES_MAX: usize = 1024;
/// Longest page, bytes of lines. A box's own limit is 48 KiB.
const LINES_BYTES_MAX: usize = 64 << 10;
/// Most letters of what a box says that are shown.
const SHOWN_MAX: usize = 120;

/// What is wrong with a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// Its ledger ends before what was pulled of it: an old disk.
    RolledBack,
    /// Its ledger has another past than what was pulled of it.
    Forked,
    /// What it said does not prove itself.
    Lied,
    /// It signs with another key.
    Rekeyed,
    /// It tells a record again with another content.
    Contradicted,
    /// It removed lines before they were pulled.
    Gap,
    /// It writes what is not known here: a newer version.
    Unreadable,
    /// Its clock is off.
    Clock,
}

/// All flags, the gravest first.
pub const FLAG_KINDS: [Flag; 8] = [
    Flag::RolledBack,
    Flag::Forked,
    Flag::Lied,
    Flag::Rekeyed,
    Flag::Contradicted,
    Flag::Gap,
    Flag::Unreadable,
    Flag::Clock,
];

impl Flag {
    /// Its name, in lists and in the database.
    pub const fn word(self) -> &'static str {
        match self {
            Flag::RolledBack => "rolled_back",
            Flag::Forked => "forked",
            Flag::Lied => "lied",
            Flag::Rekeyed => "rekeyed",
            Flag::Contradicted => "contradicted",
            Flag::Gap => "gap",
            Flag::Unreadable => "unreadable",
            Flag::Clock => "clock",
        }
    }

    /// The flag of this name.
    pub fn of_word(word: &str) -> Option<Self> {
        FLAG_KINDS.into_iter().find(|flag| flag.word() == word)
    }

    /// Whether it goes by itself once its cause has; the others stay until somebody has looked.
    pub const fn passes(self) -> bool {
        matches!(self, Flag::Clock | Flag::Unreadable)
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Something wrong, and where in the box's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub flag: Flag,
    /// Where.
    pub at: PageCursor,
    /// In words; nothing in it controls a terminal.
    pub detail: String,
}

impl Fault {
    /// A fault at a cursor.
    pub fn new(flag: Flag, at: PageCursor, detail: impl AsRef<str>) -> Self {
        Self { flag, at, detail: shown(detail.as_ref()) }
    }
}

/// What a box says, fit to be shown: short, without control characters and what turns or hides the letters around it.
pub(crate) fn shown(text: &str) -> String {
    let misleads = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|letter| if misleads(letter) { ' ' } else { letter }).take(SHOWN_MAX * 2).collect()
}

/// What is known of a box's ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// How often its owner took it for a new one.
    pub generation: u32,
    /// Its public key, once it has shown one.
    pub key: Option<String>,
    /// Behind the last line that was pulled.
    pub cursor: PageCursor,
    /// That line's chain value.
    pub chain: Chain,
}

/// What a page gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The requests that ended in it, and where.
    pub ended: Vec<(PageCursor, Entry)>,
    /// What is known after it.
    pub known: Known,
    /// What was removed before it.
    pub gap: Option<Fault>,
    /// Whether there is more to ask for.
    pub more: bool,
}

/// Checks a page that the box `name` gave when it was asked for what follows `known`.
///
/// # Errors
/// [`Fault`]; nothing of the page is of use then.
pub fn follow(name: &str, known: &Known, page: &SignedPage) -> Result<Followed, Fault> {
    is_of_the_box(name, known, page)?;
    let gap = begins_well(known, page)?;
    let (ended, next, chain) = read_lines(page)?;
    if (next, chain) != (page.next, page.chain) {
        return Err(lied(known, format!("its lines end at {next}, and it says {}, or by another chain", page.next)));
    }
    if page.more == page.lines.is_empty() {
        return Err(lied(known, "it promises more after a page without lines, or none after one with"));
    }
    let known = Known { generation: known.generation, key: Some(page.key.clone()), cursor: next, chain };
    Ok(Followed { ended, known, gap, more: page.more })
}

fn lied(known: &Known, detail: impl AsRef<str>) -> Fault {
    Fault::new(Flag::Lied, known.cursor, detail)
}

fn is_of_the_box(name: &str, known: &Known, page: &SignedPage) -> Result<(), Fault> {
    if page.name != name {
        return Err(lied(known, format!("it calls itself {:?}", clip(&page.name))));
    }
    if known.key.as_ref().is_some_and(|key| *key != page.key) {
        let detail = "it signs with another key: another box, or one that lost its telemetry folder";
        return Err(Fault::new(Flag::Rekeyed, known.cursor, detail));
    }
    let signature = unhex::<64>(&page.signature);
    let proved = unhex::<32>(&page.key).zip(signature);
    match proved.is_some_and(|(key, signature)| is_signed(&key, page.message().as_bytes(), &signature)) {
        true => Ok(()),
        false => Err(lied(known, "the page is not signed by its key")),
    }
}

/// Whether it begins where it may.
fn begins_well(known: &Known, page: &SignedPage) -> Result<Option<Fault>, Fault> {
    let (cursor, from) = (known.cursor.0, page.from.0);
    let follows = page.previous == known.chain;
    if from == cursor {
        let other = "the chain value there is another than was pulled";
        return if follows { Ok(None) } else { Err(Fault::new(Flag::Forked, known.cursor, other)) };
    }
    if from.segment <= cursor.segment || from.offset != 0 {
        return Err(lied(
            known,
            format!("asked for what follows {}, it told what follows {}", known.cursor, page.from),
        ));
    }
    let removed = || {
        Fault::new(Flag::Gap, known.cursor, format!("lines up to {} were removed before they were pulled", page.from))
    };
    let accepted = known.generation > 0 && known.cursor == PageCursor::default();
    Ok((!follows && !accepted).then(removed))
}

type Lines = (Vec<(PageCursor, Entry)>, PageCursor, Chain);

/// Checks each line by itself and in its place.
fn read_lines(page: &SignedPage) -> Result<Lines, Fault> {
    let (mut at, mut chain) = (page.from.0, page.previous);
    let fault = |flag, at: Position, detail: String| Fault::new(flag, PageCursor(at), detail);
    let bytes = page.bytes();
    if page.lines.len() > PAGE_LINES_MAX || bytes > LINES_BYTES_MAX {
        return Err(fault(Flag::Lied, at, format!("a page of {} lines and {bytes} bytes", page.lines.len())));
    }
    let mut ended = Vec::new();
    let mut line = String::new();
    for text in &page.lines {
        line.clear();
        line.push_str(text);
        line.push('\n');
        let frame = Frame::parse(line.as_bytes()).map_err(|error| fault(Flag::Lied, at, error.to_string()))?;
        if !frame.follows(chain) || text.contains('\n') {
            return Err(fault(Flag::Lied, at, FrameError::Chain.to_string()));
        }
        match frame.content() {
            Ok(Content::Head(head)) if at.offset == 0 && head.segment == at.segment && head.previous == chain => {}
            Ok(Content::Entry(entry)) if at.offset > 0 => {
                if entry.stage == Stage::Closed {
                    ended.push((PageCursor(at), *entry));
                }
            }
            Ok(_) => return Err(fault(Flag::Lied, at, "a line where it cannot stand".to_owned())),
            Err(error) => return Err(fault(Flag::Unreadable, at, error.to_string())),
        }
        chain = frame.chain;
        let length = u32::try_from(line.len()).ok().and_then(|length| at.offset.checked_add(length));
        at.offset = length.ok_or_else(|| fault(Flag::Lied, at, "a segment without an end".to_owned()))?;
    }
    Ok((ended, PageCursor(at), chain))
}

fn clip(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N || !bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests;
