//! A segment: lines from its head on, then zeros up to its end.
//!
//! ```text
//!  00000007.log                                                            00000008.log
//!  ┌──────┬───────┬───────┬───────┬───────┬───────────────────────┐        ┌──────┬───
//!  │ head │ entry │ entry │ entry │ entry │ zeros, allocated      │ ─────▶ │ head │ …
//!  └──────┴───────┴───────┴───────┴───────┴───────────────────────┘  chain └──────┴───
//!         └─ one append ──┘       └ synced: all before its append
//! ```
//!
//! What is invalid is one of two things. Below the `synced` of a later line, or in a segment that has a successor, it is
//! damage: it was on the disk once, is kept as it is, and reported by position. Otherwise a crash tore the last append,
//! of which nobody was told that it is durable: it is cut from its first invalid byte on, whole lines behind that too.
//! Where the damage hit the last append of all, and no later line bears witness, the two cannot be told apart: it is
//! cut, and the cut is reported by position.

use crate::frame::{Chain, Content, Frame, FrameError, Head};
use std::fmt;

/// A place in the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number; from 1.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u32,
}

impl Position {
    /// Packed into one number of the same order. Segments number below 2³¹: at one a second, 68 years.
    pub const fn packed(self) -> u64 {
        self.segment << 32 | self.offset as u64
    }

    /// What was packed.
    pub const fn unpacked(packed: u64) -> Self {
        Self { segment: packed >> 32, offset: packed as u32 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}", name(self.segment), self.offset)
    }
}

/// The name of a segment's file.
pub fn name(segment: u64) -> String {
    format!("{segment:08}.log")
}

/// The number of a segment, from the name of its file.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let canonical = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|number| canonical && *number > 0)
}

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin.
    pub at: Position,
    /// How many; 0 where whole lines do not follow from those before.
    pub bytes: u32,
    /// What is wrong with the first of them.
    pub reason: FrameError,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} bytes: {}", self.at, self.bytes, self.reason)
    }
}

/// What a segment holds.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Its number.
    pub segment: u64,
    /// Its lines with their offsets, the head first.
    pub lines: Vec<(u32, Frame<'a>)>,
    /// All that is invalid, in order.
    pub damage: Vec<Damage>,
    /// Offset behind the last byte that is not zero.
    pub used: u32,
}

/// Reads the bytes of a segment. `previous` is the chain value that the segment before ended with, where it is known.
pub fn scan(segment: u64, bytes: &[u8], previous: Option<Chain>) -> Scan<'_> {
    scan_at(Position { segment, offset: 0 }, bytes, previous)
}

/// Reads bytes of a segment that begin at a line of it. `previous` is the chain value before it, where it is known.
pub fn scan_at(from: Position, bytes: &[u8], previous: Option<Chain>) -> Scan<'_> {
    let Position { segment, offset: base } = from;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut scanner = Scanner { segment, chain: previous, lines: Vec::new(), damage: Vec::new() };
    let mut at = 0;
    while at < used {
        let piece = piece(&bytes[at..used]);
        scanner.take(base + at as u32, piece);
        at += piece.len();
    }
    if base == 0 && scanner.lines.is_empty() && scanner.damage.is_empty() {
        scanner.note(0, 0, FrameError::Shape);
    }
    Scan { segment, lines: scanner.lines, damage: scanner.damage, used: base + used as u32 }
}

impl Scan<'_> {
    /// The chain value of the last line.
    pub fn chain(&self) -> Option<Chain> {
        self.lines.last().map(|(_, frame)| frame.chain)
    }

    /// Where the torn tail begins, in the newest segment.
    pub fn torn(&self) -> Option<u32> {
        let tears = |damage: &&Damage| damage.reason != FrameError::Chain && !self.was_synced(damage.at.offset);
        self.damage.iter().find(tears).map(|damage| damage.at.offset)
    }

    /// The head was, before the segment got its name; the rest where a later line says so.
    fn was_synced(&self, offset: u32) -> bool {
        offset == 0 || self.lines.iter().any(|(at, frame)| *at > offset && frame.synced > offset)
    }
}

/// A run of zeros, or all up to a newline.
fn piece(bytes: &[u8]) -> &[u8] {
    let length = match bytes.iter().position(|byte| *byte != 0) {
        Some(0) => bytes.iter().position(|byte| *byte == b'\n').map(|newline| newline + 1),
        zeros => zeros,
    };
    &bytes[..length.unwrap_or(bytes.len())]
}

struct Scanner<'a> {
    segment: u64,
    /// What the next line must follow; unknown after damage.
    chain: Option<Chain>,
    lines: Vec<(u32, Frame<'a>)>,
    damage: Vec<Damage>,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, at: u32, piece: &'a [u8]) {
        match Frame::parse(piece) {
            Ok(frame) => {
                if let Err(reason) = self.check(at, &frame) {
                    self.note(at, 0, reason);
                }
                self.chain = Some(frame.chain);
                self.lines.push((at, frame));
            }
            Err(reason) => {
                self.note(at, piece.len() as u32, reason);
                self.chain = None;
            }
        }
    }

    fn check(&self, at: u32, frame: &Frame<'a>) -> Result<(), FrameError> {
        let previous = if at == 0 { Some(self.head(frame)?.previous) } else { self.chain };
        previous.is_none_or(|previous| frame.follows(previous)).then_some(()).ok_or(FrameError::Chain)
    }

    fn head(&self, frame: &Frame<'a>) -> Result<Head, FrameError> {
        match frame.content()? {
            Content::Head(head) if head.segment == self.segment && self.chain.is_none_or(|c| c == head.previous) => {
                Ok(head)
            }
            _ => Err(FrameError::Chain),
        }
    }

    /// Notes damage; what touches the last is one with it.
    fn note(&mut self, offset: u32, bytes: u32, reason: FrameError) {
        match self.damage.last_mut() {
            Some(last) if last.bytes > 0 && last.at.offset + last.bytes == offset => last.bytes += bytes,
            _ => self.damage.push(Damage { at: Position { segment: self.segment, offset }, bytes, reason }),
        }
    }
}
