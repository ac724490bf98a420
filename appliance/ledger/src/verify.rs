//! All that a ledger holds, proved and changed in nothing: for an operator, beside a running ledger or without one.

use crate::{
    frame::{Chain, Content, FrameError},
    reader::{ReadError, bytes, segments},
    segment::{self, Damage, Position, Scan},
};
use std::path::Path;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments.
    pub segments: u64,
    /// Whole entries.
    pub entries: u64,
    /// Behind the last of them.
    pub end: Position,
    /// Where a torn tail begins, and how many bytes of it; the next start cuts it, and nobody relies on it. A ledger that
    /// is being appended to may show one.
    pub torn: Option<(Position, u32)>,
    /// All that was damaged after it had been written, in order.
    pub damage: Vec<Damage>,
}

/// Reads all segments in `folder`, and checks each line and the chain over all of them.
///
/// # Errors
/// [`ReadError::Io`]: a segment or the folder cannot be read.
pub fn verify(folder: &Path) -> Result<Verified, ReadError> {
    let numbers = segments(folder)?;
    let mut verified = Verified::default();
    let (mut chain, mut expected) = (None, numbers.first().copied());
    for segment in &numbers {
        if let Some(missing) = expected.filter(|expected| expected != segment) {
            let at = Position { segment: missing, offset: 0 };
            verified.damage.push(Damage { at, bytes: 0, reason: FrameError::Missing });
            chain = None;
        }
        expected = Some(segment + 1);
        let newest = numbers.last() == Some(segment);
        if let Some(bytes) = bytes(folder, *segment, newest)? {
            chain = verified.take(&segment::scan(*segment, &bytes, chain), newest);
        }
    }
    Ok(verified)
}

impl Verified {
    /// Takes a segment; returns the chain value that the next must go on from.
    fn take(&mut self, scan: &Scan<'_>, newest: bool) -> Option<Chain> {
        let segment = scan.segment;
        let torn = scan.torn().filter(|_| newest);
        let end = torn.unwrap_or(scan.used);
        self.segments += 1;
        self.end = Position { segment, offset: end };
        self.torn = torn.map(|offset| (self.end, scan.used - offset));
        let mut damage: Vec<Damage> = scan.damage.iter().filter(|damage| damage.at.offset < end).cloned().collect();
        for (offset, frame) in scan.lines.iter().filter(|(offset, _)| *offset < end) {
            match frame.content() {
                Ok(Content::Entry(_)) => self.entries += 1,
                Ok(Content::Head(_)) => {}
                Err(reason) => damage.push(Damage { at: Position { segment, offset: *offset }, bytes: 0, reason }),
            }
        }
        damage.sort_by_key(|damage| damage.at);
        self.damage.append(&mut damage);
        scan.chain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Config, Log,
        disk::Folder,
        segment::name,
        testing::{entry, open},
    };
    use std::fs;

    const CONFIG: Config = Config { segment_bytes: 8192, retain_bytes: 1 << 30, retain_ms: None, free_bytes_min: 0 };

    /// A ledger of several segments, and how many entries it holds.
    fn ledger(folder: &Path) -> u64 {
        let (mut log, _) = Log::open_on(Folder::lock(folder).unwrap(), CONFIG, 1).unwrap();
        for number in 0..30 {
            log.append(&[open(1, 2 * number, number), entry(1, 2 * number + 1, number)]).unwrap();
        }
        60
    }

    /// The bytes of a segment that are in use.
    fn used(folder: &Path, segment: u64) -> (Vec<u8>, usize) {
        let bytes = fs::read(folder.join(name(segment))).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        (bytes, used)
    }

    #[test]
    fn a_sound_ledger_has_all_its_entries_and_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let entries = ledger(folder.path());
        let found = verify(folder.path()).unwrap();
        assert_eq!((found.entries, found.damage, found.torn), (entries, vec![], None));
        assert!(found.segments > 2 && found.end.segment == found.segments, "{:?}", found.end);
        assert_eq!(verify(tempfile::tempdir().unwrap().path()).unwrap(), Verified::default());
    }

    /// One bit of each byte in turn: told by segment and, but where the last append of all is hit, within the line's bytes.
    #[test]
    fn a_flipped_bit_anywhere_is_told_by_position() {
        let folder = tempfile::tempdir().unwrap();
        ledger(folder.path());
        let newest = verify(folder.path()).unwrap().end.segment;
        for segment in [1, 2, newest] {
            let (sound, used) = used(folder.path(), segment);
            let scan = segment::scan(segment, &sound, None);
            let begins: Vec<u32> = scan.lines.iter().map(|(offset, _)| *offset).collect();
            for at in (0..used).step_by(3) {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(folder.path().join(name(segment)), &bytes).unwrap();
                let line = *begins.iter().rfind(|begin| **begin as usize <= at).unwrap();
                let found = verify(folder.path()).unwrap();
                let told = found.damage.iter().map(|damage| damage.at).chain(found.torn.map(|(at, _)| at)).min();
                let expected = Position { segment, offset: line };
                assert_eq!(told, Some(expected), "byte {at} of {segment}: {found:?}");
            }
            fs::write(folder.path().join(name(segment)), &sound).unwrap();
        }
        assert_eq!(verify(folder.path()).unwrap().damage, vec![]);
    }

    #[test]
    fn a_missing_segment_and_a_torn_tail_are_told() {
        let folder = tempfile::tempdir().unwrap();
        ledger(folder.path());
        let newest = verify(folder.path()).unwrap().end.segment;
        fs::remove_file(folder.path().join(name(2))).unwrap();
        let (mut bytes, used) = used(folder.path(), newest);
        bytes[used - 20..used].fill(0);
        fs::write(folder.path().join(name(newest)), &bytes).unwrap();
        let found = verify(folder.path()).unwrap();
        let missing = Damage { at: Position { segment: 2, offset: 0 }, bytes: 0, reason: FrameError::Missing };
        assert_eq!(found.damage, vec![missing]);
        assert_eq!(found.torn.map(|(at, _)| at), Some(found.end));
    }
}
