//! What the child of a restore does: an image as a table of system calls. Pure: values in, data out.
//!
//! ```text
//!  1 wait at the gate     until the parent traces it and has put it where it belongs
//!  2 forget its own       restartable sequences, then all memory but the region and the vDSO, which steps aside
//!  3 become the image     vDSO to its place, mappings, data
//!  4 tell the kernel      mm fields and brk, name, rseq, robust list, thread id, signals
//!  5 take its place       what confines it, descriptors to their numbers and all others closed, what seals it
//! ```
//! Invariants: a mapping of the image never replaces another ([`MAP_FIXED_NOREPLACE`](libc::MAP_FIXED_NOREPLACE)), data
//! only replaces fresh memory of its own mapping; nothing is ever writable and executable; only the program's file is
//! mapped executable.

use crate::{
    error::{RestoreError, Result},
    vdso::Move,
};
use nix::libc::{self, c_int};
use sandbox_kernel::{
    table::{MAY_FAIL, REGION_BYTES, Table},
    trace::Rseq,
};
use sandbox_snapshot::{
    image::{Extent, Image, Mapping, MappingKind, Process, Protection, SignalAction, Source, Span},
    limits::{ADDRESS_END, ADDRESS_MIN},
};
use std::os::fd::RawFd;

/// Data of at most this many bytes is copied. A page costs about 2 µs to copy into fresh memory, a mapping about 4.
const COPIED_BYTES_MAX: u64 = 8 << 10;
const SIGNAL_SET_BYTES: u64 = 8;
const ROBUST_LIST_BYTES: u64 = 24;
const RSEQ_UNREGISTER: u64 = 1;
/// Length of `prctl_mm_map`.
const MM_MAP_BYTES: u64 = 104;

/// Descriptors, by their numbers in the child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers<'a> {
    pub(crate) program: RawFd,
    pub(crate) model: RawFd,
    /// The data area, unless it is written in place.
    pub(crate) data: Option<RawFd>,
    /// Whether the model's pages are mapped at once rather than when they are touched.
    pub(crate) populate: bool,
    /// Files of raw pages, by digest.
    pub(crate) raw: &'a [([u8; 32], RawFd)],
}

/// Waits until the parent opens the gate; ends if the parent does, also where it did before it could be asked for. The
/// child's own copy of the end that opens the gate is closed first, or it would never see the other's end.
pub(crate) fn wait_at_gate(table: &mut Table, gate: RawFd, opener: RawFd) {
    table.call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64]);
    table.call(libc::SYS_close, &[opener as u64]);
    let byte = table.put(&[0]);
    table.call_with(libc::SYS_read, &[gate as u64, byte, 1], 1);
}

/// Unmaps all that the child inherited, and moves the vDSO where the image has it.
pub(crate) fn forget(table: &mut Table, inherited: Option<Rseq>, moves: &[Move]) {
    if let Some(Rseq { address, bytes, signature }) = inherited {
        table.call(libc::SYS_rseq, &[address, bytes.into(), RSEQ_UNREGISTER, signature.into()]);
    }
    let mut stage = table.stage();
    let mut staged = Vec::new();
    for Move { from, to, bytes } in moves {
        mremap(table, *from, stage, *bytes);
        staged.push((stage, *to, *bytes));
        stage += bytes;
    }
    let (base, end) = (table.base(), table.base() + REGION_BYTES);
    table.call(libc::SYS_munmap, &[ADDRESS_MIN, base - ADDRESS_MIN]);
    table.call(libc::SYS_munmap, &[end, ADDRESS_END - end]);
    staged.into_iter().for_each(|(from, to, bytes)| mremap(table, from, to, bytes));
}

fn mremap(table: &mut Table, from: u64, to: u64, bytes: u64) {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    table.call(libc::SYS_mremap, &[from, bytes, bytes, flags, to]);
}

/// Maps the image's memory.
pub(crate) fn map(table: &mut Table, image: &Image, numbers: &Numbers<'_>) -> Result<(), RestoreError> {
    let mut extents = image.extents.as_slice();
    for mapping in image.mappings.iter().filter(|mapping| !mapping.kind.is_kernels()) {
        let (own, rest) = extents.split_at(extents.partition_point(|extent| extent.address < mapping.span().end()));
        map_one(table, mapping, own, numbers)?;
        extents = rest;
    }
    Ok(())
}

fn map_one(table: &mut Table, mapping: &Mapping, own: &[Extent], numbers: &Numbers<'_>) -> Result<(), RestoreError> {
    let whole = own.len() == 1 && mapping.kind != MappingKind::Stack;
    let file = if whole { numbers.file(&own[0])? } else { None };
    if let Some((file, offset)) = file {
        mmap(
            table,
            &own[0],
            mapping.protection,
            libc::MAP_FIXED_NOREPLACE | numbers.populating(mapping.kind),
            (file, offset),
        );
        return Ok(());
    }
    if matches!(mapping.kind, MappingKind::Text | MappingKind::Model) {
        return map_each(table, mapping, own, numbers);
    }
    let grows = if mapping.kind == MappingKind::Stack { libc::MAP_GROWSDOWN } else { 0 };
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | grows) as u64;
    table.call(libc::SYS_mmap, &[mapping.start, mapping.bytes, bits(mapping.protection), flags, u64::MAX, 0]);
    fill(table, mapping, own, numbers)
}

fn map_each(table: &mut Table, mapping: &Mapping, own: &[Extent], numbers: &Numbers<'_>) -> Result<(), RestoreError> {
    for extent in own {
        let file = numbers.file(extent)?.ok_or(RestoreError::NoFile { address: extent.address })?;
        mmap(table, extent, mapping.protection, libc::MAP_FIXED_NOREPLACE | numbers.populating(mapping.kind), file);
    }
    Ok(())
}

/// Puts data into fresh memory: copied where it is little or where memory must stay of one piece, else mapped.
fn fill(table: &mut Table, mapping: &Mapping, own: &[Extent], numbers: &Numbers<'_>) -> Result<(), RestoreError> {
    for extent in own {
        let Some((file, offset)) = numbers.file(extent)? else { continue };
        let little = mapping.protection.write && extent.bytes <= COPIED_BYTES_MAX;
        if little || mapping.kind == MappingKind::Stack {
            let arguments = [file as u64, extent.address, extent.bytes, offset];
            table.call_with(libc::SYS_pread64, &arguments, extent.bytes as i64);
        } else {
            mmap(table, extent, mapping.protection, libc::MAP_FIXED, (file, offset));
        }
    }
    Ok(())
}

fn mmap(table: &mut Table, extent: &Extent, protection: Protection, fixed: c_int, (file, offset): (RawFd, u64)) {
    let flags = (libc::MAP_PRIVATE | fixed) as u64;
    table.call(libc::SYS_mmap, &[extent.address, extent.bytes, bits(protection), flags, file as u64, offset]);
}

fn bits(protection: Protection) -> u64 {
    let bit = |set: bool, bit: c_int| if set { bit } else { 0 };
    let bits = bit(protection.read, libc::PROT_READ)
        | bit(protection.write, libc::PROT_WRITE)
        | bit(protection.execute, libc::PROT_EXEC);
    bits as u64
}

impl Numbers<'_> {
    fn populating(&self, kind: MappingKind) -> c_int {
        if self.populate && kind == MappingKind::Model { libc::MAP_POPULATE } else { 0 }
    }

    /// The file that an extent's bytes are in, and where; `None` when they need none.
    fn file(&self, extent: &Extent) -> Result<Option<(RawFd, u64)>, RestoreError> {
        match extent.source {
            Source::Zero => Ok(None),
            Source::Text { offset } => Ok(Some((self.program, offset))),
            Source::Model { offset } => Ok(Some((self.model, offset))),
            Source::Compressed { offset } => Ok(self.data.map(|data| (data, offset))),
            Source::Raw { digest, offset } => {
                let found = self.raw.iter().find(|(of, _)| *of == digest);
                let (_, file) = found.ok_or(RestoreError::NoFile { address: extent.address })?;
                Ok(Some((*file, offset)))
            }
        }
    }
}

/// Maps for reading what lies in files, the model aside, and gives what is to be `written` memory of its own. What there is
/// no memory for is mapped when it is touched.
pub(crate) fn touch(table: &mut Table, image: &Image, written: &[Span]) {
    let shared = |extent: &&Extent| !matches!(extent.source, Source::Zero | Source::Model { .. });
    let mut advise = |span: Span, advice: c_int| {
        table.call_with(libc::SYS_madvise, &[span.address, span.bytes, advice as u64], MAY_FAIL);
    };
    image.extents.iter().filter(shared).for_each(|extent| advise(extent.span(), libc::MADV_POPULATE_READ));
    written.iter().for_each(|span| advise(*span, libc::MADV_POPULATE_WRITE));
}

/// Tells the kernel what it knew of the captured process. `ignored` signals are inherited as such.
pub(crate) fn tell(table: &mut Table, process: &Process, program: RawFd, ignored: u64) {
    tell_layout(table, process, program);
    let name: Vec<u8> = process.comm.iter().chain(&[0]).copied().collect();
    let name = table.put(&name);
    table.call(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name]);
    if let Some(rseq) = process.rseq {
        table.call(libc::SYS_rseq, &[rseq.address, rseq.length.into(), 0, rseq.signature.into()]);
    }
    if process.robust_list != 0 {
        table.call(libc::SYS_set_robust_list, &[process.robust_list, ROBUST_LIST_BYTES]);
    }
    table.call(libc::SYS_set_tid_address, &[process.tid_address]);
    tell_signals(table, process, ignored);
}

fn tell_layout(table: &mut Table, p: &Process, program: RawFd) {
    let auxv = table.put(&p.auxv);
    let auxv_bytes_and_program = p.auxv.len() as u64 | u64::from(program as u32) << 32;
    // In the order of `prctl_mm_map`.
    let fields = [
        [p.start_code, p.end_code, p.start_data, p.end_data],
        [p.start_brk, p.brk, p.start_stack, p.arg_start],
        [p.arg_end, p.env_start, p.env_end, auxv],
    ];
    let map = put_words(table, &[fields.as_flattened(), &[auxv_bytes_and_program]].concat());
    table.call(libc::SYS_prctl, &[libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, map, MM_MAP_BYTES]);
}

fn tell_signals(table: &mut Table, process: &Process, ignored: u64) {
    let stack = match process.sigaltstack {
        Some(stack) => [stack.address, stack.flags.into(), stack.bytes],
        // The child inherits one that is no longer mapped.
        None => [0, libc::SS_DISABLE as u64, 0],
    };
    let stack = put_words(table, &stack);
    table.call(libc::SYS_sigaltstack, &[stack, 0]);
    let set = |action: &SignalAction| (action.signal, [action.handler, action.flags, action.restorer, action.mask]);
    let taken = |signal: &u8| process.signal_actions.iter().any(|action| action.signal == *signal);
    let reset =
        (1..=64).filter(|signal| ignored >> (signal - 1) & 1 == 1 && !taken(signal)).map(|signal| (signal, [0; 4]));
    for (signal, action) in process.signal_actions.iter().map(set).chain(reset) {
        let action = put_words(table, &action);
        table.call(libc::SYS_rt_sigaction, &[signal.into(), action, 0, SIGNAL_SET_BYTES]);
    }
    let mask = put_words(table, &[process.signal_mask]);
    table.call(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as u64, mask, 0, SIGNAL_SET_BYTES]);
}

fn put_words(table: &mut Table, words: &[u64]) -> u64 {
    table.put(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())
}

/// Gives descriptors their numbers and closes all others.
pub(crate) fn place(table: &mut Table, placed: &[(RawFd, RawFd)]) {
    // First above all that is still to be read or written, so that none overwrites another.
    let above = placed.iter().map(|(from, to)| from.max(to) + 1).max().unwrap_or(0);
    for ((from, _), aside) in placed.iter().zip(above..) {
        table.call(libc::SYS_dup2, &[*from as u64, aside as u64]);
    }
    for ((_, to), aside) in placed.iter().zip(above..) {
        table.call(libc::SYS_dup2, &[aside as u64, *to as u64]);
    }
    let mut targets: Vec<RawFd> = placed.iter().map(|(_, to)| *to).collect();
    targets.sort_unstable();
    let mut free = 0;
    for target in targets {
        if free < target {
            close_range(table, free, target - 1);
        }
        free = target + 1;
    }
    close_range(table, free, c_int::MAX);
}

fn close_range(table: &mut Table, first: RawFd, last: RawFd) {
    table.call(libc::SYS_close_range, &[first as u64, last as u64, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
    use sandbox_kernel::table::Call;
    use sandbox_snapshot::image::PAGE_BYTES;

    const PROGRAM: RawFd = 10;
    const MODEL: RawFd = 11;
    const DATA: RawFd = 12;
    const RAW: RawFd = 13;
    const BASE: u64 = 64 << 30;

    const RX: Protection = Protection { read: true, write: false, execute: true };
    const R: Protection = Protection { read: true, write: false, execute: false };
    const RW: Protection = Protection { read: true, write: true, execute: false };

    fn numbers(data: Option<RawFd>) -> Numbers<'static> {
        Numbers { program: PROGRAM, model: MODEL, data, populate: false, raw: &[([7; 32], RAW)] }
    }

    /// The calls for one mapping of so many pages, with extents of {pages, source}.
    fn calls(kind: MappingKind, protection: Protection, extents: &[(u64, Source)], data: Option<RawFd>) -> Vec<Call> {
        let start = 0x10_0000;
        let mut address = start;
        let own: Vec<_> = extents
            .iter()
            .map(|(pages, source)| {
                let extent = Extent { address, bytes: pages * PAGE_BYTES, source: *source };
                address = extent.span().end();
                extent
            })
            .collect();
        let mut table = Table::new(BASE);
        let mapping = Mapping { start, bytes: address - start, protection, kind };
        map_one(&mut table, &mapping, &own, &numbers(data)).unwrap();
        table.calls().to_vec()
    }

    fn mmap_of(call: &Call) -> (u64, u64, u64, RawFd) {
        assert_eq!(call.number, libc::SYS_mmap as u64);
        let [_, bytes, protection, flags, file, _] = call.arguments;
        (bytes / PAGE_BYTES, protection, flags, file as RawFd)
    }

    const fn flags(flags: c_int) -> u64 {
        flags as u64
    }

    const PRIVATE: u64 = flags(libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE);
    const OVER: u64 = flags(libc::MAP_PRIVATE | libc::MAP_FIXED);
    const FRESH: u64 = PRIVATE | flags(libc::MAP_ANONYMOUS);

    #[test]
    fn code_comes_from_the_program_and_weights_from_the_model() {
        let text = calls(MappingKind::Text, RX, &[(3, Source::Text { offset: 0 })], Some(DATA));
        assert_eq!(text.iter().map(mmap_of).collect::<Vec<_>>(), [(3, flags(PROT_READ | PROT_EXEC), PRIVATE, PROGRAM)]);
        let model = calls(MappingKind::Model, R, &[(9, Source::Model { offset: 0 })], Some(DATA));
        assert_eq!(model.iter().map(mmap_of).collect::<Vec<_>>(), [(9, flags(PROT_READ), PRIVATE, MODEL)]);
    }

    #[test]
    fn memory_is_fresh_and_data_lies_over_it() {
        let rw = flags(PROT_READ | PROT_WRITE);
        let extents =
            [(4, Source::Zero), (8, Source::Compressed { offset: 0 }), (5, Source::Raw { digest: [7; 32], offset: 0 })];
        let shared = calls(MappingKind::Anonymous, RW, &extents, Some(DATA));
        let expected = [(17, rw, FRESH, -1), (8, rw, OVER, DATA), (5, rw, OVER, RAW)];
        assert_eq!(shared.iter().map(mmap_of).collect::<Vec<_>>(), expected);
        // Written in place later: only what is kept in files is mapped.
        let written = calls(MappingKind::Anonymous, RW, &extents, None);
        assert_eq!(written.iter().map(mmap_of).collect::<Vec<_>>(), [expected[0], expected[2]]);
        // One piece of data needs no memory beneath.
        let whole = calls(MappingKind::Heap, RW, &[(8, Source::Compressed { offset: 0 })], Some(DATA));
        assert_eq!(whole.iter().map(mmap_of).collect::<Vec<_>>(), [(8, rw, PRIVATE, DATA)]);
    }

    #[test]
    fn little_data_and_the_stack_are_copied() {
        let copied = |call: &Call, pages: u64| {
            assert_eq!((call.number, call.arguments[0]), (libc::SYS_pread64 as u64, DATA as u64));
            assert_eq!(call.result_min as u64, pages * PAGE_BYTES);
        };
        let little = [(6, Source::Zero), (1, Source::Compressed { offset: 0 })];
        copied(&calls(MappingKind::Anonymous, RW, &little, Some(DATA))[1], 1);
        let stack = calls(MappingKind::Stack, RW, &[(90, Source::Compressed { offset: 0 })], Some(DATA));
        assert_eq!(mmap_of(&stack[0]).2, FRESH | flags(libc::MAP_GROWSDOWN));
        copied(&stack[1], 90);
        // What may not be written cannot be copied into.
        let constant = calls(MappingKind::Anonymous, R, &little, Some(DATA));
        assert_eq!(mmap_of(&constant[1]), (1, flags(PROT_READ), OVER, DATA));
    }

    #[test]
    fn no_descriptor_is_lost_to_another() {
        let mut table = Table::new(BASE);
        place(&mut table, &[(3, 0), (0, 3), (9, 5)]);
        let made = |number: libc::c_long| {
            let of_number = table.calls().iter().filter(move |call| call.number == number as u64);
            of_number.map(|call| (call.arguments[0] as RawFd, call.arguments[1] as RawFd)).collect::<Vec<_>>()
        };
        assert_eq!(made(libc::SYS_dup2), [(3, 10), (0, 11), (9, 12), (10, 0), (11, 3), (12, 5)]);
        assert_eq!(made(libc::SYS_close_range), [(1, 2), (4, 4), (6, c_int::MAX)]);
    }
}
