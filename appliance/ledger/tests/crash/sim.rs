//! A disk in memory that can be cut at any effect, and keeps what was not synced in pieces that may or may not last.
//!
//! ```text
//!  write ─▶ cache, and pending in pieces of a sector ── sync ──▶ durable
//!                          │ power cut: any subset of the pieces, any of them torn at any byte
//!                          └▶ durable, and the cache is gone            kill: the cache stays
//! ```
//!
//! Names change in order; a power cut leaves a prefix of the changes that the folder's sync has not confirmed.

use appliance_ledger::disk::{Disk, DiskFile};
use std::{cell::RefCell, collections::BTreeMap, io, path::Path, rc::Rc};

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Bytes { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Make(String, usize),
    Move(String, String),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    cached: Vec<u8>,
    pending: Vec<Change>,
}

/// All of a disk at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    effects: usize,
    syncs: usize,
    fail_sync: Option<usize>,
    free: Option<u64>,
}

/// What a power cut leaves: a bit for each pending piece, a number of changes of names, and where the last piece that
/// is left is torn.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) pieces: Vec<bool>,
    pub(crate) names: usize,
    pub(crate) torn: Option<usize>,
}

/// The disk, and its moments where it is asked to keep them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sim {
    state: Rc<RefCell<State>>,
    history: Option<Rc<RefCell<Vec<State>>>>,
}

impl Sim {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Rc::new(RefCell::new(state)), history: None }
    }

    /// Keeps its state after each effect.
    pub(crate) fn recording(state: State) -> Self {
        Self { history: Some(Rc::default()), ..Self::new(state) }
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn history(&self) -> Vec<State> {
        self.history.as_ref().map(|history| history.borrow().clone()).unwrap_or_default()
    }

    pub(crate) fn fail_sync(&self, number: usize) {
        self.state.borrow_mut().fail_sync = Some(number);
    }

    pub(crate) fn limit(&self, free: u64) {
        self.state.borrow_mut().free = Some(free);
    }

    pub(crate) fn syncs(&self) -> usize {
        self.state.borrow().syncs
    }

    fn effect<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.borrow_mut();
        state.effects += 1;
        let result = act(&mut state);
        if let Some(history) = &self.history {
            history.borrow_mut().push(state.clone());
        }
        result
    }
}

impl State {
    /// Pieces that a power cut may leave or take.
    pub(crate) fn pieces(&self) -> usize {
        self.inodes.iter().map(|inode| inode.pending.len()).sum()
    }

    /// Changes of names that are not confirmed.
    pub(crate) fn name_changes(&self) -> usize {
        self.pending_names.len()
    }

    /// Length of the last pending piece, where it is of bytes.
    pub(crate) fn last_piece(&self) -> usize {
        match self.inodes.iter().rev().find_map(|inode| inode.pending.last()) {
            Some(Change::Bytes { bytes, .. }) => bytes.len(),
            _ => 0,
        }
    }

    /// The files, by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&String, &[u8])> {
        self.names.iter().map(|(name, inode)| (name, &self.inodes[*inode].cached[..]))
    }

    /// Flips a bit, in cache and on the disk.
    pub(crate) fn flip(&mut self, name: &str, bit: usize) {
        let inode = &mut self.inodes[self.names[name]];
        inode.durable[bit / 8] ^= 1 << (bit % 8);
        inode.cached[bit / 8] ^= 1 << (bit % 8);
    }

    /// What is there after the power was cut at this moment.
    pub(crate) fn cut(&self, cut: &Cut) -> State {
        let mut left = State { free: self.free, ..State::default() };
        let last = cut.pieces.iter().rposition(|kept| *kept);
        let mut number = 0;
        for inode in &self.inodes {
            let mut durable = inode.durable.clone();
            let kept: Vec<(usize, &Change)> =
                inode.pending.iter().enumerate().map(|(index, change)| (number + index, change)).collect();
            number += inode.pending.len();
            let kept = || kept.iter().filter(|(index, _)| cut.pieces[*index]);
            for (_, change) in kept() {
                if let Change::Length(length) = change {
                    durable.resize(*length, 0);
                }
            }
            for (index, change) in kept() {
                if let Change::Bytes { offset, bytes } = change {
                    let length = if Some(*index) == last { cut.torn.unwrap_or(bytes.len()) } else { bytes.len() };
                    overlay(&mut durable, *offset, &bytes[..length.min(bytes.len())]);
                }
            }
            left.inodes.push(Inode { cached: durable.clone(), durable, pending: Vec::new() });
        }
        let mut names = self.durable_names.clone();
        self.pending_names.iter().take(cut.names).for_each(|change| rename(&mut names, change));
        left.names.clone_from(&names);
        left.durable_names = names;
        left
    }

    /// What is there after the process was killed at this moment.
    pub(crate) fn kill(&self) -> State {
        State { effects: 0, syncs: 0, fail_sync: None, ..self.clone() }
    }
}

/// Bytes behind the end of a file do not show.
fn overlay(file: &mut [u8], offset: usize, bytes: &[u8]) {
    let end = (offset + bytes.len()).min(file.len());
    if offset < end {
        file[offset..end].copy_from_slice(&bytes[..end - offset]);
    }
}

fn rename(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Make(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameChange::Move(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        rename(&mut self.names, &change);
        self.pending_names.push(change);
    }

    fn take(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.free {
            Some(free) if *free < bytes => Err(io::ErrorKind::StorageFull.into()),
            Some(free) => {
                *free -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn give(&mut self, bytes: usize) {
        self.free = self.free.map(|free| free + bytes as u64);
    }
}

/// A file of the disk.
#[derive(Debug)]
pub(crate) struct SimFile {
    sim: Sim,
    inode: usize,
}

impl Disk for Sim {
    type File = SimFile;

    fn path(&self) -> &Path {
        Path::new("sim")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state.borrow().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.effect(|state| {
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.change(NameChange::Make(name.to_owned(), inode));
            Ok(inode)
        })?;
        Ok(SimFile { sim: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.state.borrow().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { sim: self.clone(), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.effect(|state| {
            assert!(state.names.contains_key(from) && !state.names.contains_key(to), "{from} to {to}");
            state.change(NameChange::Move(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.effect(|state| {
            let length = state.inodes[state.names[name]].cached.len();
            state.give(length);
            state.change(NameChange::Remove(name.to_owned()));
            Ok(())
        })
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.effect(|state| {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state.borrow().free.unwrap_or(u64::MAX))
    }
}

impl SimFile {
    fn effect<T>(&self, act: impl FnOnce(&mut State, usize) -> io::Result<T>) -> io::Result<T> {
        self.sim.effect(|state| act(state, self.inode))
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.sim.state.borrow().inodes[self.inode].cached.len() as u64)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.sim.state.borrow().inodes[self.inode].cached.clone())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        self.effect(|state, inode| {
            let inode = &mut state.inodes[inode];
            assert!(offset + bytes.len() <= inode.cached.len(), "writes never make a file longer");
            inode.cached[offset..offset + bytes.len()].copy_from_slice(bytes);
            let mut done = 0;
            while done < bytes.len() {
                let length = (SECTOR - (offset + done) % SECTOR).min(bytes.len() - done);
                let piece = Change::Bytes { offset: offset + done, bytes: bytes[done..done + length].to_vec() };
                inode.pending.push(piece);
                done += length;
            }
            Ok(())
        })
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.effect(|state, inode| {
            state.take(length)?;
            let inode = &mut state.inodes[inode];
            inode.cached.resize(length as usize, 0);
            inode.pending.push(Change::Length(length as usize));
            Ok(())
        })
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.effect(|state, inode| {
            let freed = state.inodes[inode].cached.len() - length as usize;
            state.give(freed);
            let inode = &mut state.inodes[inode];
            inode.cached.truncate(length as usize);
            inode.pending.push(Change::Length(length as usize));
            Ok(())
        })
    }

    /// A failed sync takes what was pending to be written, as Linux does, and the disk has none of it.
    fn sync(&self) -> io::Result<()> {
        self.effect(|state, inode| {
            let fails = state.fail_sync == Some(state.syncs);
            state.syncs += 1;
            let inode = &mut state.inodes[inode];
            inode.pending.clear();
            if fails {
                return Err(io::Error::from_raw_os_error(5));
            }
            inode.durable.clone_from(&inode.cached);
            Ok(())
        })
    }

    fn forget(&self) -> io::Result<()> {
        let mut state = self.sim.state.borrow_mut();
        let inode = &mut state.inodes[self.inode];
        if inode.pending.is_empty() {
            inode.cached.clone_from(&inode.durable);
        }
        Ok(())
    }
}
