//! Variables of the firmware, as efivarfs shows them: a file each, four bytes of attributes before what it holds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel shows them.
pub(crate) const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// The boot loader's.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// UEFI's own.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Kept without power, and there for boot loader and system.
const ATTRIBUTES: u32 = 7;
const ATTRIBUTES_BYTES: usize = 4;

/// A text that the boot loader left, such as `LoaderEntrySelected`.
pub(crate) fn loader_text(folder: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(folder.join(format!("{name}-{LOADER}"))).ok()?;
    text(bytes.get(ATTRIBUTES_BYTES..)?)
}

/// A variable of UEFI's; `None` where there is none.
pub(crate) fn global(folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(place(folder, name)) {
        Ok(bytes) => Ok(bytes.get(ATTRIBUTES_BYTES..).map(<[u8]>::to_vec)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the firmware starts only what is signed by who it knows.
pub(crate) fn is_secure(folder: &Path) -> bool {
    matches!(global(folder, "SecureBoot"), Ok(Some(value)) if value == [1])
}

/// Writes a variable of UEFI's, in one call, as efivarfs wants it.
pub(crate) fn set_global(folder: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    fs::write(place(folder, name), [&ATTRIBUTES.to_le_bytes(), value].concat())
}

/// Removes a variable of UEFI's.
pub(crate) fn remove_global(folder: &Path, name: &str) -> io::Result<()> {
    fs::remove_file(place(folder, name))
}

/// Names of UEFI's variables that begin with `start`.
pub(crate) fn globals(folder: &Path, start: &str) -> io::Result<Vec<String>> {
    let names = fs::read_dir(folder)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let end = format!("-{GLOBAL}");
    Ok(names.filter_map(|name| name.strip_suffix(&end).map(str::to_owned)).filter(|n| n.starts_with(start)).collect())
}

fn place(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-{GLOBAL}"))
}

/// UTF-16, little-endian, up to a NUL.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    String::from_utf16(units.split(|unit| *unit == 0).next()?).ok()
}

/// The same the other way, NUL included.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_behind_their_attributes() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join(format!("LoaderEntrySelected-{LOADER}"));
        fs::write(&name, [&6_u32.to_le_bytes(), utf16("ember-a+2-1.efi").as_slice()].concat()).unwrap();
        assert_eq!(loader_text(folder.path(), "LoaderEntrySelected").as_deref(), Some("ember-a+2-1.efi"));
        assert_eq!(loader_text(folder.path(), "LoaderInfo"), None);
        fs::write(&name, [6, 0]).unwrap();
        assert_eq!(loader_text(folder.path(), "LoaderEntrySelected"), None);
        set_global(folder.path(), "Boot0001", b"option").unwrap();
        assert_eq!(global(folder.path(), "Boot0001").unwrap().as_deref(), Some(b"option".as_slice()));
        assert_eq!(global(folder.path(), "Boot0002").unwrap(), None);
        assert_eq!(globals(folder.path(), "Boot").unwrap(), ["Boot0001"]);
        for (value, expected) in [(0, false), (1, true)] {
            set_global(folder.path(), "SecureBoot", &[value]).unwrap();
            assert_eq!(is_secure(folder.path()), expected);
        }
    }
}
