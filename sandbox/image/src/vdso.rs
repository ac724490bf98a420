//! The kernel's own pages, which a restored process must find where the image had them.
//!
//! ```text
//!  [vvar][vvar_vclock][vdso]     one block, its parts in this order and at these distances in every process of a kernel
//! ```
//! Code in the vDSO reads its data by distance, and libc keeps addresses into it: so the parts move together, and an
//! image fits only a kernel whose parts are the same. Before Linux 6.13 there is no [vvar_vclock].

use crate::{
    error::{RestoreError, Result},
    maps::{self, Mapping},
};
use sandbox_snapshot::image::{self, Image, MappingKind};
use std::{fs, io, sync::OnceLock};

/// A part that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: u64,
}

/// Parts of this process, which never move in it.
pub(crate) fn own() -> Result<&'static [Mapping], RestoreError> {
    static OWN: OnceLock<Vec<Mapping>> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let read = read_own().map_err(|error| RestoreError::Prepare { attempted: "read /proc/self/maps", error })?;
    Ok(OWN.get_or_init(|| read))
}

fn read_own() -> io::Result<Vec<Mapping>> {
    let text = fs::read_to_string("/proc/self/maps")?;
    let all = maps::parse(&text).map_err(|line| io::Error::other(format!("unknown text `{line}`")))?;
    Ok(all.into_iter().filter(Mapping::is_vdso).collect())
}

/// Where each part of this process goes.
pub(crate) fn moves(own: &[Mapping], image: &Image) -> Result<Vec<Move>, RestoreError> {
    let theirs: Vec<_> = image.mappings.iter().filter(|mapping| mapping.kind.is_kernels()).collect();
    let same = own.len() == theirs.len() && own.iter().zip(&theirs).all(|(own, their)| is_same(own, their));
    let together = own
        .windows(2)
        .zip(theirs.windows(2))
        .all(|(own, their)| own[1].range.start - own[0].range.start == their[1].start.wrapping_sub(their[0].start));
    if !same || !together {
        return Err(RestoreError::Image("its vDSO is not this kernel's"));
    }
    let part = |(own, their): (&Mapping, &&image::Mapping)| Move {
        from: own.range.start,
        to: their.start,
        bytes: their.bytes,
    };
    Ok(own.iter().zip(&theirs).map(part).collect())
}

fn is_same(own: &Mapping, their: &image::Mapping) -> bool {
    let kind = match own.name.as_str() {
        "[vdso]" => MappingKind::Vdso,
        "[vvar]" => MappingKind::Vvar,
        _ => MappingKind::VvarVclock,
    };
    own.bytes() == their.bytes && kind == their.kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_snapshot::image::{Identity, Process, Protection, Registers};

    const PARTS: [(&str, MappingKind, u64); 3] = [
        ("[vvar]", MappingKind::Vvar, 0x4000),
        ("[vvar_vclock]", MappingKind::VvarVclock, 0x2000),
        ("[vdso]", MappingKind::Vdso, 0x2000),
    ];

    fn ours() -> Vec<Mapping> {
        let mut start = 0x7000_0000;
        let part = |(name, _, bytes): &(&str, _, u64)| {
            let range = start..start + bytes;
            start = range.end;
            Mapping { range, name: (*name).to_owned(), ..Mapping::default() }
        };
        PARTS.iter().map(part).collect()
    }

    fn image(gap: u64) -> Image {
        let mut image = empty();
        let mut start = 0x9000_0000;
        for (_, kind, bytes) in PARTS {
            image.mappings.push(image::Mapping { start, bytes, protection: Protection::default(), kind });
            start += bytes + gap;
        }
        image
    }

    fn empty() -> Image {
        let identity = Identity {
            runner_build: [0; 32],
            kernel_release: String::new(),
            cpu_features: Vec::new(),
            model: appliance_types::ModelDigest::from_bytes([0; 32]),
            manifest: [0; 32],
            function: "f".parse().unwrap(),
            accelerators: Vec::new(),
        };
        #[rustfmt::skip]
        let process = Process {
            comm: Vec::new(), start_code: 0, end_code: 0, start_data: 0, end_data: 0, start_brk: 0, brk: 0,
            start_stack: 0, arg_start: 0, arg_end: 0, env_start: 0, env_end: 0, auxv: Vec::new(), tid_address: 0,
            robust_list: 0, rseq: None, sigaltstack: None, signal_actions: Vec::new(), signal_mask: 0,
        };
        let registers = Registers { general: Vec::new(), extended: Vec::new() };
        let device = image::DeviceState::default();
        Image { identity, registers, process, mappings: Vec::new(), extents: Vec::new(), note: Vec::new(), device }
    }

    #[test]
    fn each_part_goes_where_the_image_has_it() {
        let expected = [
            Move { from: 0x7000_0000, to: 0x9000_0000, bytes: 0x4000 },
            Move { from: 0x7000_4000, to: 0x9000_4000, bytes: 0x2000 },
            Move { from: 0x7000_6000, to: 0x9000_6000, bytes: 0x2000 },
        ];
        assert_eq!(moves(&ours(), &image(0)).unwrap(), expected);
    }

    #[test]
    fn another_kernels_is_refused() {
        assert!(moves(&ours(), &image(0x1000)).is_err());
        assert!(moves(&ours()[1..], &image(0)).is_err());
        let mut larger = image(0);
        larger.mappings[2].bytes += 0x1000;
        assert!(moves(&ours(), &larger).is_err());
        assert!(moves(&ours(), &empty()).is_err());
    }

    #[test]
    fn this_process_has_one() {
        assert!(own().unwrap().iter().any(|part| part.name == "[vdso]"));
    }
}
