//! Pages of the ledger's own lines, for who keeps a copy elsewhere: each line with its proofs, so that a copy can be checked
//! without asking anybody.
//!
//! ```text
//!  cursor ─▶ the line before it: its chain value ─▶ whole lines from there, up to what is synced ─▶ next cursor
//!               └ `previous`: what a reader must have got last; another value is another ledger
//! ```
//!
//! Invariants: a page ends at a line's end, within one segment, and holds nothing that is not on the disk, so that what was
//! shown is never taken back; its lines follow from each other, which is checked here. A cursor behind the end is an error
//! and not an empty page: then this ledger is older than who asks. One that lies before the oldest segment goes on there.

use crate::{
    frame::{Chain, Content, Frame, LINE_BYTES_MAX},
    query::{Page, QueryError},
    segment::{Position, name},
};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Longest page, bytes of lines: a packet has room for it and what goes with it.
const PAGE_BYTES_MAX: usize = 48 << 10;

/// How far the log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The oldest segment that is kept.
    pub(crate) oldest: u64,
    /// Behind the last line on the disk.
    pub(crate) end: Position,
}

/// Reads the page at `from`.
///
/// # Errors
/// [`QueryError::Cursor`], [`QueryError::Beyond`], [`QueryError::Restarted`] where a segment was just removed, or
/// [`QueryError::Index`] where the disk fails or is damaged.
pub(crate) fn read(folder: &Path, extent: Extent, from: Position) -> Result<Page, QueryError> {
    let Extent { oldest, end } = extent;
    if from > end {
        return Err(QueryError::Beyond { end: end.packed() });
    }
    let from = if from.segment < oldest { Position { segment: oldest, offset: 0 } } else { from };
    let (file, length) = open(folder, from.segment, end)?;
    if from.offset > length {
        return Err(QueryError::Cursor { reason: format!("{} ends before byte {}", name(from.segment), from.offset) });
    }
    if from.offset == length && from.segment < end.segment {
        let before = chain_before(&file, Position { offset: length, ..from })?;
        let next = Position { segment: from.segment + 1, offset: 0 };
        let (file, length) = open(folder, next.segment, end)?;
        return page(&file, length, next, Some(before));
    }
    page(&file, length, from, None)
}

/// A segment, and up to where it holds lines that are on the disk. One before the last may have been removed since it was said
/// which are kept: who asks again is told of those that are.
fn open(folder: &Path, segment: u64, end: Position) -> Result<(File, u32), QueryError> {
    let path = folder.join(name(segment));
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if segment < end.segment => QueryError::Restarted,
        _ => failed(format!("{}: {error}", path.display())),
    })?;
    if segment == end.segment {
        return Ok((file, end.offset));
    }
    let length = file.metadata().map_err(|error| failed(error.to_string()))?.len();
    Ok((file, u32::try_from(length).unwrap_or(u32::MAX)))
}

fn page(file: &File, length: u32, from: Position, before: Option<Chain>) -> Result<Page, QueryError> {
    let bytes = read_at(file, from.offset, (length.saturating_sub(from.offset) as usize).min(PAGE_BYTES_MAX))?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let previous = match from.offset {
        0 => head_previous(&bytes[..whole], before)?,
        _ => chain_before(file, from)?,
    };
    let mut chain = previous;
    let mut lines = Vec::new();
    let mut offset = from.offset;
    for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        let frame = Frame::parse(line).ok().filter(|frame| frame.follows(chain));
        let Some(frame) = frame else { break };
        let Ok(text) = std::str::from_utf8(line) else { break };
        chain = frame.chain;
        offset += line.len() as u32;
        lines.push(text.trim_end_matches('\n').to_owned());
    }
    let next = Position { segment: from.segment, offset };
    if lines.is_empty() && from.offset < length {
        return Err(failed(format!("damaged at {next}")));
    }
    Ok(Page { from: from.packed(), next: next.packed(), previous, chain, lines })
}

/// What the head of a segment says that it follows; it must be what the segment before ended with, where that is known.
fn head_previous(bytes: &[u8], before: Option<Chain>) -> Result<Chain, QueryError> {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    match Frame::parse(line).and_then(|frame| frame.content()) {
        Ok(Content::Head(head)) if before.is_none_or(|before| before == head.previous) => Ok(head.previous),
        Ok(_) => Err(failed("a segment does not follow from the one before".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The chain value of the line that ends at a position.
fn chain_before(file: &File, at: Position) -> Result<Chain, QueryError> {
    let begin = at.offset.saturating_sub(LINE_BYTES_MAX as u32);
    let bytes = read_at(file, begin, (at.offset - begin) as usize)?;
    let inner = bytes.len().saturating_sub(1);
    let start = bytes[..inner].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let no_line = |_| QueryError::Cursor { reason: format!("no line ends at {at}") };
    Frame::parse(&bytes[start..]).map(|frame| frame.chain).map_err(no_line)
}

fn read_at(file: &File, offset: u32, length: usize) -> Result<Vec<u8>, QueryError> {
    let mut bytes = vec![0; length];
    let read = |error: io::Error| failed(error.to_string());
    file.read_exact_at(&mut bytes, offset.into()).map_err(read)?;
    Ok(bytes)
}

fn failed(reason: String) -> QueryError {
    QueryError::Index { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::Folder,
        log::{Config, Log},
        testing::entry,
    };

    const CONFIG: Config =
        Config { segment_bytes: 16 << 10, retain_bytes: 1 << 20, retain_ms: None, free_bytes_min: 0 };

    /// A ledger of many entries over several segments.
    fn ledger(entries: u64) -> (tempfile::TempDir, Extent) {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open_on(Folder::lock(folder.path()).unwrap(), CONFIG, 1).unwrap();
        for sequence in 0..entries {
            log.append(&[entry(1, sequence, sequence)]).unwrap();
        }
        let extent = Extent { oldest: log.oldest(), end: log.end() };
        (folder, extent)
    }

    #[test]
    fn pages_follow_from_each_other_up_to_the_end() {
        let (folder, extent) = ledger(200);
        assert!(extent.end.segment > 3, "{extent:?}");
        let (mut at, mut chain, mut entries) = (Position::default(), Chain::default(), 0);
        loop {
            let page = read(folder.path(), extent, at).unwrap();
            assert_eq!(page.previous, chain);
            if page.lines.is_empty() {
                break;
            }
            for line in &page.lines {
                let line = format!("{line}\n");
                let frame = Frame::parse(line.as_bytes()).unwrap();
                assert!(frame.follows(chain));
                chain = frame.chain;
                entries += u64::from(!frame.is_head());
            }
            assert_eq!(page.chain, chain);
            at = Position::unpacked(page.next);
        }
        assert_eq!((entries, at), (200, extent.end));
    }

    #[test]
    fn what_was_removed_is_passed_over() {
        let (folder, mut extent) = ledger(200);
        extent.oldest = 3;
        let page = read(folder.path(), extent, Position { segment: 1, offset: 9 }).unwrap();
        assert_eq!(Position::unpacked(page.from), Position { segment: 3, offset: 0 });
        assert_ne!(page.previous, Chain::default(), "its head says what came before");
    }

    #[test]
    fn what_is_removed_while_it_is_asked_for_is_to_be_asked_again() {
        let (folder, extent) = ledger(200);
        std::fs::remove_file(folder.path().join(name(1))).unwrap();
        assert_eq!(read(folder.path(), extent, Position::default()), Err(QueryError::Restarted));
        std::fs::remove_file(folder.path().join(name(extent.end.segment))).unwrap();
        let last = Position { segment: extent.end.segment, offset: 0 };
        assert!(
            matches!(read(folder.path(), extent, last), Err(QueryError::Index { .. })),
            "this one is never removed"
        );
    }

    #[test]
    fn a_cursor_that_is_no_lines_end_or_lies_behind_the_end_is_refused() {
        let (folder, extent) = ledger(9);
        let at = |offset| read(folder.path(), extent, Position { segment: 1, offset });
        assert!(matches!(at(extent.end.offset - 1), Err(QueryError::Cursor { .. })));
        assert_eq!(at(extent.end.offset + 1), Err(QueryError::Beyond { end: extent.end.packed() }));
        assert!(at(extent.end.offset).unwrap().lines.is_empty());
        let (folder, extent) = ledger(200);
        let past_a_sealed_one = Position { segment: 1, offset: 1 << 20 };
        assert!(matches!(read(folder.path(), extent, past_a_sealed_one), Err(QueryError::Cursor { .. })));
    }

    #[test]
    fn what_is_not_synced_or_damaged_is_not_shown() {
        let (folder, extent) = ledger(9);
        let earlier = read(folder.path(), extent, Position::default()).unwrap();
        let fifth = earlier.lines[..5].iter().map(|line| line.len() as u32 + 1).sum();
        let shorter = Extent { end: Position { segment: 1, offset: fifth }, ..extent };
        assert_eq!(read(folder.path(), shorter, Position::default()).unwrap().lines, earlier.lines[..5]);
        let path = folder.path().join(name(1));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[fifth as usize + 3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(folder.path(), extent, Position::default()).unwrap().lines, earlier.lines[..5]);
        let damaged = read(folder.path(), extent, Position { segment: 1, offset: fifth });
        assert!(matches!(damaged, Err(QueryError::Index { reason }) if reason.contains("damaged")));
    }
}
