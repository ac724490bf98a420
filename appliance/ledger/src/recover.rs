//! What a crash left: verified, cut to its last whole append, and made durable before anyone is told what it holds.
//!
//! ```text
//!  names ─▶ each segment: [sync, forget the cache] ─▶ read ─▶ scan ─▶ damage is noted
//!                the last two, that a crash can      │          └ newest: torn tail ─▶ zeros over it, sync
//!                have left unsynced                  └ others: cut the zeros off
//!  reserve ─▶ zeros over a head that never counted ─▶ kept
//! ```
//!
//! What a killed process wrote and did not sync is in the kernel's cache alone. It is synced before it counts; else a
//! power cut could take what this start has promised. The cache is dropped afterwards, because after a failed sync it
//! shows what the disk never got. Each step can be cut off and done again.

use crate::{
    disk::{Disk, DiskFile},
    frame::{Chain, Content, Frame, FrameError, Head, LINE_BYTES_MAX, Origin},
    log::{Active, Config, RESERVE, RESERVE_NEW, Sealed},
    segment::{self, Damage, Position, Scan, name},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
};

/// Most places of damage that are reported one by one.
const DAMAGE_MAX: usize = 64;

/// What was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whole entries.
    pub entries: u64,
    /// Where the torn tail was cut, and how many bytes of it.
    pub cut: Option<(Position, u32)>,
    /// What was damaged after it had been written, in order; the first [`DAMAGE_MAX`] of it.
    pub damage: Vec<Damage>,
    /// All places of damage.
    pub damaged: u64,
    /// Lines taken in from an older version's file.
    pub imported: u64,
    /// Lines of that file that could not be read, by the offset where they begin; as many as are reported.
    pub not_imported: Vec<u64>,
    /// The chain value at the end.
    pub chain: Chain,
}

/// What there is to go on with.
pub(crate) struct Recovered<F> {
    /// The newest segment, where it can be appended to.
    pub(crate) active: Option<Active<F>>,
    pub(crate) sealed: BTreeMap<u64, Sealed>,
    pub(crate) reserve: Option<F>,
    pub(crate) last: HashMap<(u64, u16), u64>,
    pub(crate) recovery: Recovery,
}

/// Verifies the folder and repairs what a crash left.
pub(crate) fn recover<D: Disk>(disk: &D, config: &Config) -> io::Result<Recovered<D::File>> {
    let names = disk.names()?;
    let mut segments: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    segments.sort_unstable();
    let mut recovered = Recovered {
        active: None,
        sealed: BTreeMap::new(),
        reserve: None,
        last: HashMap::new(),
        recovery: Recovery::default(),
    };
    let mut previous = None;
    for (index, segment) in segments.iter().enumerate() {
        if index > 0 && segments[index - 1] + 1 != *segment {
            recovered.note_missing(segments[index - 1] + 1);
            previous = None;
        }
        let newer = segments.len() - 1 - index;
        previous = recovered.take(disk, *segment, newer, previous)?;
    }
    recovered.reserve = reserve(disk, &names, config)?;
    // Names that a crash left on their way count from now on.
    disk.sync_folder()?;
    Ok(recovered)
}

impl<F: DiskFile> Recovered<F> {
    /// Takes one segment; returns the chain value that the next must go on from.
    fn take<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        segment: u64,
        newer: usize,
        previous: Option<Chain>,
    ) -> io::Result<Option<Chain>> {
        let file = disk.open(&name(segment))?;
        if newer <= 1 {
            file.sync()?;
            file.forget()?;
        }
        let bytes = file.read()?;
        let mut scan = segment::scan(segment, &bytes, previous);
        let cut = scan.torn().filter(|_| newer == 0);
        if let Some(offset) = cut {
            self.cut(&file, &mut scan, Position { segment, offset })?;
        }
        self.note_all(&scan);
        let chain = scan.chain();
        if let Some(chain) = chain {
            self.recovery.chain = chain;
        }
        if newer > 0 {
            self.seal(&file, segment, &scan, bytes.len())?;
        } else {
            self.go_on(file, segment, &scan, bytes.len() as u32);
        }
        Ok(chain)
    }

    /// Puts zeros over a torn tail and forgets its lines.
    fn cut(&mut self, file: &F, scan: &mut Scan<'_>, at: Position) -> io::Result<()> {
        let bytes = scan.used - at.offset;
        file.write(u64::from(at.offset), &vec![0; bytes as usize])?;
        file.sync()?;
        self.recovery.cut = Some((at, bytes));
        scan.lines.retain(|(offset, _)| *offset < at.offset);
        scan.damage.retain(|damage| damage.at.offset < at.offset);
        scan.used = at.offset;
        Ok(())
    }

    fn seal(&mut self, file: &F, segment: u64, scan: &Scan<'_>, length: usize) -> io::Result<()> {
        if (scan.used as usize) < length {
            file.truncate(u64::from(scan.used))?;
        }
        self.sealed.insert(segment, Sealed { bytes: u64::from(scan.used), ended_unix_ms: None });
        Ok(())
    }

    /// Goes on in the newest segment, where that has a line to go on from and its head says so.
    fn go_on(&mut self, file: F, segment: u64, scan: &Scan<'_>, length: u32) {
        match scan.lines.last() {
            Some((_, frame)) => {
                self.active = Some(Active { file, segment, length, end: scan.used, chain: frame.chain });
            }
            None => {
                self.sealed.insert(segment, Sealed { bytes: u64::from(length), ended_unix_ms: None });
            }
        }
    }

    fn note_all(&mut self, scan: &Scan<'_>) {
        scan.damage.iter().cloned().for_each(|damage| self.note(damage));
        for (offset, frame) in &scan.lines {
            if let Err(reason) = self.note_line(frame) {
                let at = Position { segment: scan.segment, offset: *offset };
                self.note(Damage { at, bytes: 0, reason });
            }
        }
    }

    fn note_line(&mut self, frame: &Frame<'_>) -> Result<(), FrameError> {
        if frame.is_head() {
            if let Content::Head(head) = frame.content()? {
                self.note_begin(&head);
            }
            return Ok(());
        }
        let Origin { boot, core, sequence } = frame.origin()?;
        self.recovery.entries += 1;
        let last = self.last.entry((boot, core)).or_default();
        *last = sequence.max(*last);
        Ok(())
    }

    fn note_begin(&mut self, head: &Head) {
        if let Some(sealed) = self.sealed.get_mut(&(head.segment.saturating_sub(1))) {
            sealed.ended_unix_ms = Some(head.begun_unix_ms);
        }
    }

    fn note_missing(&mut self, segment: u64) {
        self.note(Damage { at: Position { segment, offset: 0 }, bytes: 0, reason: FrameError::Missing });
    }

    fn note(&mut self, damage: Damage) {
        self.recovery.damaged += 1;
        if self.recovery.damage.len() < DAMAGE_MAX {
            self.recovery.damage.push(damage);
        }
    }
}

/// Finds the reserve that the last life left. It may hold a head that never counted.
fn reserve<D: Disk>(disk: &D, names: &[String], config: &Config) -> io::Result<Option<D::File>> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(RESERVE_NEW) {
        disk.remove(RESERVE_NEW)?;
    }
    if !has(RESERVE) {
        return Ok(None);
    }
    let file = disk.open(RESERVE)?;
    if file.length()? != u64::from(config.segment_bytes) {
        disk.remove(RESERVE)?;
        return Ok(None);
    }
    file.write(0, &[0; LINE_BYTES_MAX])?;
    file.sync()?;
    Ok(Some(file))
}
