//! Whether an image can be restored, and may be.
//!
//! Invariants of an image that passed: every count and total is bounded; mappings are whole pages of user space, in
//! order, apart; nothing is writable and executable; what is executable is the runner's text or the kernel's vDSO, and
//! text comes from the runner's binary only; extents cover each mapping exactly once, and those from the data area
//! cover that exactly once, so that nothing is stored that is not restored and nothing is restored twice; every
//! address that the kernel or the first instruction will use lies in memory fit for it.
//!
//! Left out: whether offsets lie within the files they point into, which only the one who opened the files can tell.

use crate::{
    error::{Fault, SnapshotError},
    image::{
        Accelerator, DeviceState, Extent, Identity, Image, Mapping, MappingKind, PAGE_BYTES, Registers, Source, Span,
    },
    limits::*,
};

mod process;

/// Offsets in `user_regs_struct`: 16 words before the instruction pointer, 19 before the stack pointer.
const RIP: usize = 16 * 8;
const RSP: usize = 19 * 8;

type Result<T = ()> = std::result::Result<T, SnapshotError>;

impl Image {
    /// Says whether the image can be restored.
    ///
    /// # Errors
    /// The first thing found that cannot be, or must not be.
    pub fn check(&self) -> Result {
        check_identity(&self.identity)?;
        check_mappings(&self.mappings)?;
        check_cover(&self.mappings, &self.extents)?;
        check_data_area(&self.extents)?;
        at_most("bytes of the note", self.note.len() as u64, NOTE_BYTES_MAX as u64)?;
        check_device(&self.identity.accelerators, &self.device)?;
        self.check_registers()?;
        process::check(self)
    }

    /// Length of the data area: what all frames decode to, bytes. Right for a checked image.
    pub fn data_bytes(&self) -> u64 {
        self.extents.iter().filter(|e| matches!(e.source, Source::Compressed { .. })).map(|e| e.bytes).sum()
    }

    /// The mapping that an address lies in. Right for checked mappings.
    pub fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        let mapping = self.mappings.get(after.checked_sub(1)?)?;
        (address < mapping.span().end()).then_some(mapping)
    }

    fn check_registers(&self) -> Result {
        let Registers { general, extended } = &self.registers;
        let length = |field, length: usize| field_fault(field, length as u64, Fault::OutOfRange);
        if general.len() != GENERAL_BYTES {
            return Err(length("length of the general registers", general.len()));
        }
        if !(EXTENDED_BYTES_MIN..=EXTENDED_BYTES_MAX).contains(&extended.len()) {
            return Err(length("length of the extended state", extended.len()));
        }
        self.check_executable("rip", word(general, RIP))?;
        self.check_writable("rsp", word(general, RSP), 1)
    }

    fn check_executable(&self, field: &'static str, address: u64) -> Result {
        let fits = self.mapping_at(address).is_some_and(|mapping| mapping.protection.execute);
        ensure(fits, || field_fault(field, address, Fault::NotExecutable))
    }

    fn check_writable(&self, field: &'static str, address: u64, bytes: u64) -> Result {
        let end = Span { address, bytes }.end();
        let fits = self.mapping_at(address).is_some_and(|m| m.protection.write && end <= m.span().end());
        ensure(fits, || field_fault(field, address, Fault::NotWritable))
    }
}

fn check_identity(identity: &Identity) -> Result {
    let release = identity.kernel_release.len();
    if release == 0 {
        return Err(field_fault("length of the kernel release", 0, Fault::Empty));
    }
    at_most("bytes of the kernel release", release as u64, KERNEL_RELEASE_BYTES_MAX as u64)?;
    at_most("words of CPU features", identity.cpu_features.len() as u64, CPU_FEATURES_MAX as u64)
}

/// There is state of a device exactly where the identity names one.
fn check_device(accelerators: &[Accelerator], device: &DeviceState) -> Result {
    at_most("accelerators", accelerators.len() as u64, ACCELERATORS_MAX as u64)?;
    for name in accelerators.iter().flat_map(|accelerator| [&accelerator.model, &accelerator.driver]) {
        at_most("bytes of an accelerator's name", name.len() as u64, ACCELERATOR_NAME_BYTES_MAX as u64)?;
    }
    let device_bytes = device.0.len() as u64;
    at_most("bytes of the device section", device_bytes, DEVICE_BYTES_MAX.into())?;
    let fits = accelerators.is_empty() == device.0.is_empty();
    ensure(fits, || field_fault("length of the device section", device_bytes, Fault::Value))
}

pub(crate) fn check_mappings(mappings: &[Mapping]) -> Result {
    at_most("mappings", mappings.len() as u64, MAPPINGS_MAX as u64)?;
    let (mut end, mut mapped_bytes) = (ADDRESS_MIN, 0);
    for (index, mapping) in mappings.iter().enumerate() {
        let fault = check_span(mapping.span(), end)
            .or_else(|| check_protection(mapping))
            .or_else(|| is_repeated(mapping.kind, &mappings[..index]).then_some(Fault::Repeated));
        if let Some(fault) = fault {
            return Err(SnapshotError::Mapping { address: mapping.start, fault });
        }
        end = mapping.span().end();
        mapped_bytes += mapping.bytes;
    }
    at_most("bytes mapped", mapped_bytes, MAPPED_BYTES_MAX)
}

/// What is wrong with a span that may begin at `begin`.
pub(crate) fn check_span(span: Span, begin: u64) -> Option<Fault> {
    if span.bytes == 0 {
        Some(Fault::Empty)
    } else if !span.address.is_multiple_of(PAGE_BYTES) || !span.bytes.is_multiple_of(PAGE_BYTES) {
        Some(Fault::Unaligned)
    } else if span.address < ADDRESS_MIN || span.end() > ADDRESS_END {
        Some(Fault::OutOfRange)
    } else if span.address < begin {
        Some(Fault::OutOfOrder)
    } else {
        None
    }
}

fn check_protection(mapping: &Mapping) -> Option<Fault> {
    let protection = mapping.protection;
    let allowed = match mapping.kind {
        MappingKind::Anonymous | MappingKind::Stack | MappingKind::Heap => !protection.execute,
        MappingKind::Text => !protection.write,
        MappingKind::Vdso => protection.execute && !protection.write,
        MappingKind::Model | MappingKind::Vvar | MappingKind::VvarVclock => !protection.write && !protection.execute,
    };
    (!allowed).then_some(Fault::Protection)
}

fn is_repeated(kind: MappingKind, before: &[Mapping]) -> bool {
    (kind.is_kernels() || kind == MappingKind::Stack) && before.iter().any(|mapping| mapping.kind == kind)
}

/// Each mapping but the kernel's own is covered by extents exactly once, and nothing else is.
fn check_cover(mappings: &[Mapping], extents: &[Extent]) -> Result {
    at_most("extents", extents.len() as u64, EXTENTS_MAX as u64)?;
    let mut rest = extents;
    for mapping in mappings.iter().filter(|mapping| !mapping.kind.is_kernels()) {
        rest = cover(mapping, rest)?;
    }
    match rest.first() {
        Some(extra) => Err(SnapshotError::Extent { address: extra.address, fault: Fault::OutsideMapping }),
        None => Ok(()),
    }
}

/// Takes the extents that cover `mapping` off the front; the others are left.
fn cover<'a>(mapping: &Mapping, mut extents: &'a [Extent]) -> Result<&'a [Extent]> {
    let (mut at, end) = (mapping.start, mapping.span().end());
    while at < end {
        let Some((extent, rest)) = extents.split_first() else {
            return Err(SnapshotError::Extent { address: at, fault: Fault::Gap });
        };
        if let Some(fault) = check_extent(extent, at, mapping) {
            return Err(SnapshotError::Extent { address: extent.address, fault });
        }
        (at, extents) = (extent.span().end(), rest);
    }
    Ok(extents)
}

fn check_extent(extent: &Extent, at: u64, mapping: &Mapping) -> Option<Fault> {
    if let Some(fault) = check_span(extent.span(), at) {
        Some(fault)
    } else if extent.address != at {
        Some(Fault::Gap)
    } else if extent.span().end() > mapping.span().end() {
        Some(Fault::OutsideMapping)
    } else if !mapping.kind.holds(&extent.source) {
        Some(Fault::Source)
    } else {
        check_offset(extent)
    }
}

fn check_offset(extent: &Extent) -> Option<Fault> {
    let offset = extent.source.offset();
    if !offset.is_multiple_of(PAGE_BYTES) {
        Some(Fault::Unaligned)
    } else if offset.checked_add(extent.bytes).is_none_or(|end| end > i64::MAX as u64) {
        Some(Fault::OutOfRange)
    } else {
        None
    }
}

/// Extents from the data area, taken by offset, begin at 0 and follow one another.
fn check_data_area(extents: &[Extent]) -> Result {
    let mut stored: Vec<_> = extents.iter().filter(|e| matches!(e.source, Source::Compressed { .. })).collect();
    stored.sort_unstable_by_key(|extent| extent.source.offset());
    let mut end = 0;
    for extent in stored {
        if extent.source.offset() != end {
            return Err(SnapshotError::Extent { address: extent.address, fault: Fault::DataGap });
        }
        end += extent.bytes;
    }
    at_most("bytes of the data area", end, DATA_BYTES_MAX)
}

fn ensure(holds: bool, error: impl FnOnce() -> SnapshotError) -> Result {
    if holds { Ok(()) } else { Err(error()) }
}

pub(crate) fn at_most(what: &'static str, count: u64, limit: u64) -> Result {
    ensure(count <= limit, || SnapshotError::TooMany { what, count, limit })
}

fn field_fault(field: &'static str, value: u64, fault: Fault) -> SnapshotError {
    SnapshotError::Field { field, value, fault }
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().expect("the length was checked"))
}
