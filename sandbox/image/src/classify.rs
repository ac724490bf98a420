//! What each mapping of a captured process is, and whether an image can hold it. Pure.
//!
//! ```text
//!  the kernel's       vDSO and its data                      moved
//!  the program's      run, or read and never written         Text        mapped from the verified program
//!                     written, or relocated and sealed       Anonymous   all of its bytes are kept
//!  the model's        read only                              Model       mapped from the model store
//!  no file's          private, not run                       Anonymous, Heap, Stack
//!  anything else                                             refused
//! ```
//! Invariants: nothing that may be run comes from anywhere but the program's file, unchanged; nothing is both written
//! and run; nothing is shared with anyone.

use crate::maps::Mapping;
use sandbox_snapshot::image::{MappingKind, Protection};

/// The file beneath a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beneath {
    /// None.
    Nothing,
    /// The program that the process runs.
    Program,
    /// The model.
    Model,
    /// Some other.
    Other,
}

/// What a mapping is, or why no image can hold it. `changed`: it has pages that are not its file's any more.
pub(crate) fn kind(mapping: &Mapping, beneath: Beneath, changed: bool) -> Result<MappingKind, &'static str> {
    match mapping.name.as_str() {
        "[vdso]" => return Ok(MappingKind::Vdso),
        "[vvar]" => return Ok(MappingKind::Vvar),
        "[vvar_vclock]" => return Ok(MappingKind::VvarVclock),
        _ => {}
    }
    if mapping.write && mapping.execute {
        return Err("both writable and executable");
    }
    match beneath {
        Beneath::Other => Err("of a file that is neither the program nor the model"),
        Beneath::Model => model(mapping, changed),
        Beneath::Program => program(mapping, changed),
        Beneath::Nothing => anonymous(mapping),
    }
}

fn model(mapping: &Mapping, changed: bool) -> Result<MappingKind, &'static str> {
    match mapping {
        _ if changed => Err("model that was changed in memory"),
        Mapping { execute: true, .. } => Err("model that is executable"),
        Mapping { write: true, .. } => Err("model that is writable"),
        _ => Ok(MappingKind::Model),
    }
}

fn program(mapping: &Mapping, changed: bool) -> Result<MappingKind, &'static str> {
    match mapping {
        Mapping { execute: true, .. } if changed => Err("code that was changed in memory"),
        Mapping { shared: true, .. } => Err("program that is mapped shared"),
        Mapping { write: false, .. } if !changed => Ok(MappingKind::Text),
        _ => Ok(MappingKind::Anonymous),
    }
}

fn anonymous(mapping: &Mapping) -> Result<MappingKind, &'static str> {
    match mapping {
        Mapping { execute: true, .. } => Err("code that is of no file"),
        Mapping { shared: true, .. } => Err("shared memory"),
        _ if mapping.has(b"sl") => Err("sealed"),
        _ if mapping.has(b"lo") => Err("locked in memory"),
        _ if mapping.name == "[heap]" => Ok(MappingKind::Heap),
        _ if mapping.has(b"gd") => Ok(MappingKind::Stack),
        _ => Ok(MappingKind::Anonymous),
    }
}

/// What may be done with a mapping.
pub(crate) fn protection(mapping: &Mapping) -> Protection {
    Protection { read: mapping.read, write: mapping.write, execute: mapping.execute }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(permissions: &str, name: &str) -> Mapping {
        let has = |letter| permissions.contains(letter);
        let (read, write, execute, shared) = (has('r'), has('w'), has('x'), has('s'));
        Mapping { read, write, execute, shared, name: name.to_owned(), ..Mapping::default() }
    }

    #[test]
    fn the_kernels_own_is_known_by_name() {
        for (name, expected) in
            [("[vdso]", MappingKind::Vdso), ("[vvar]", MappingKind::Vvar), ("[vvar_vclock]", MappingKind::VvarVclock)]
        {
            assert_eq!(kind(&mapping("rx", name), Beneath::Nothing, false), Ok(expected));
        }
    }

    #[test]
    fn the_program_is_text_until_it_is_written() {
        let of = |permissions, changed| kind(&mapping(permissions, "/bin/a"), Beneath::Program, changed);
        assert_eq!(of("rx", false), Ok(MappingKind::Text));
        assert_eq!(of("r", false), Ok(MappingKind::Text));
        assert_eq!(of("r", true), Ok(MappingKind::Anonymous));
        assert_eq!(of("rw", false), Ok(MappingKind::Anonymous));
        assert_eq!(of("rx", true), Err("code that was changed in memory"));
        assert_eq!(of("rs", false), Err("program that is mapped shared"));
    }

    #[test]
    fn the_model_is_only_read() {
        let of = |permissions, changed| kind(&mapping(permissions, "/model"), Beneath::Model, changed);
        assert_eq!(of("r", false), Ok(MappingKind::Model));
        assert_eq!(of("rs", false), Ok(MappingKind::Model));
        assert_eq!(of("r", true), Err("model that was changed in memory"));
        assert!(of("rw", false).is_err() && of("rx", false).is_err());
    }

    #[test]
    fn memory_of_no_file_is_private_and_never_run() {
        let of = |permissions, name| kind(&mapping(permissions, name), Beneath::Nothing, true);
        assert_eq!(of("rw", ""), Ok(MappingKind::Anonymous));
        assert_eq!(of("", ""), Ok(MappingKind::Anonymous));
        assert_eq!(of("rw", "[heap]"), Ok(MappingKind::Heap));
        assert_eq!(of("rx", ""), Err("code that is of no file"));
        assert_eq!(of("rwx", ""), Err("both writable and executable"));
        assert_eq!(of("rws", ""), Err("shared memory"));
        let stack = Mapping { flags: vec![*b"gd"], ..mapping("rw", "[stack]") };
        assert_eq!(kind(&stack, Beneath::Nothing, true), Ok(MappingKind::Stack));
        let locked = Mapping { flags: vec![*b"lo"], ..mapping("rw", "") };
        assert_eq!(kind(&locked, Beneath::Nothing, true), Err("locked in memory"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(kind(&mapping("r", "/etc/passwd"), Beneath::Other, false).is_err());
    }
}
