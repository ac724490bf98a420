//! A unified kernel image: systemd's stub, a PE program that UEFI starts, with everything else as further sections.
//!
//! ```text
//!  stub as it is │ .osrel │ .cmdline │ .uname │ .linux │ .initrd
//!  its headers: 5 more sections in the room that is left, NumberOfSections, SizeOfImage
//!  addresses: each section at the next 4 KiB after the one before; in the file at the next 512 bytes
//! ```
//!
//! The form: <https://uapi-group.org/specifications/specs/unified_kernel_image/>, and Microsoft's PE format. Reading is
//! strict, since `ember image inspect` and an update read files that others made.

/// Bytes that should be a UKI or its stub are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a unified kernel image: {0}")]
pub struct UkiError(pub String);

const SECTION_ALIGNMENT: u32 = 4096;
const FILE_ALIGNMENT: u32 = 512;
const SECTION_HEADER: usize = 40;
/// Initialised data that is read: `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const READ_DATA: u32 = 0x4000_0040;
/// What it starts with, as a PE program for x86-64.
const MACHINE_X86_64: u16 = 0x8664;
const SECTIONS_MAX: u16 = 64;

/// What goes into an image.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// systemd's stub.
    pub stub: &'a [u8],
    /// `os-release`: by its fields the boot loader sorts slots.
    pub os_release: &'a str,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The kernel's release.
    pub release: &'a str,
    /// The kernel.
    pub linux: &'a [u8],
    /// The initramfs.
    pub initrd: &'a [u8],
}

/// A section of a PE file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Where it is in memory.
    pub address: u32,
    /// Bytes in memory.
    pub size: u32,
    /// Where it is in the file.
    pub offset: u32,
    /// Bytes in the file, padding included.
    pub stored: u32,
}

impl Section {
    /// Its bytes in `file`, without padding.
    ///
    /// # Errors
    /// [`UkiError`] where the file is too short for it.
    pub fn contents<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], UkiError> {
        let length = self.size.min(self.stored) as usize;
        let start = self.offset as usize;
        file.get(start..start.saturating_add(length))
            .ok_or_else(|| UkiError(format!("section {} lies beyond the file's end", self.name)))
    }
}

/// Makes a UKI.
///
/// # Errors
/// [`UkiError`] where the stub is none, or has no room for the headers.
pub fn build(parts: &Parts) -> Result<Vec<u8>, UkiError> {
    let headers = Headers::read(parts.stub)?;
    let added: [(&str, &[u8]); 5] = [
        (".osrel", parts.os_release.as_bytes()),
        (".cmdline", parts.command_line.as_bytes()),
        (".uname", parts.release.as_bytes()),
        (".linux", parts.linux),
        (".initrd", parts.initrd),
    ];
    let sections = headers.sections(parts.stub)?;
    let room = headers.size_of_headers as usize;
    let mut at = headers.table + sections.len() * SECTION_HEADER;
    if at + added.len() * SECTION_HEADER > room {
        return Err(UkiError("the stub has no room for five more sections".to_owned()));
    }
    let end = sections.iter().map(|s| s.offset + s.stored).max().unwrap_or(headers.size_of_headers);
    let mut address = sections.iter().map(|s| s.address + s.size).max().unwrap_or(0);
    // What lies behind the last section is debugging symbols, which a signer would stumble over.
    let mut image = parts.stub[..end as usize].to_vec();
    for (name, contents) in added {
        image.resize(image.len().next_multiple_of(FILE_ALIGNMENT as usize), 0);
        address = address.next_multiple_of(SECTION_ALIGNMENT);
        let offset = narrow(image.len())?;
        let size = narrow(contents.len())?;
        image.extend_from_slice(contents);
        let stored = size.next_multiple_of(FILE_ALIGNMENT);
        put_section(&mut image[at..at + SECTION_HEADER], name, [size, address, stored, offset]);
        at += SECTION_HEADER;
        address = address.checked_add(size).ok_or_else(too_large)?;
    }
    image.resize(image.len().next_multiple_of(FILE_ALIGNMENT as usize), 0);
    let count = headers.count + added.len() as u16;
    image[headers.coff + 2..][..2].copy_from_slice(&count.to_le_bytes());
    image[headers.coff + 8..][..8].fill(0); // PointerToSymbolTable, NumberOfSymbols
    let optional = headers.coff + 20;
    image[optional + 56..][..4].copy_from_slice(&address.next_multiple_of(SECTION_ALIGNMENT).to_le_bytes());
    image[optional + 64..][..4].fill(0); // CheckSum
    Ok(image)
}

/// The sections of a PE file for x86-64.
///
/// # Errors
/// [`UkiError`] where it is none.
pub fn sections(file: &[u8]) -> Result<Vec<Section>, UkiError> {
    Headers::read(file)?.sections(file)
}

/// What the UKI's os-release calls its version; `None` where it is no UKI, or does not say.
pub fn image_version(file: &[u8]) -> Option<String> {
    let sections = sections(file).ok()?;
    let os_release = sections.iter().find(|section| section.name == ".osrel")?.contents(file).ok()?;
    let text = String::from_utf8_lossy(os_release);
    let version = text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="))?;
    Some(version.trim_matches('"').to_owned())
}

/// Where things are in the headers.
struct Headers {
    /// The COFF header.
    coff: usize,
    /// The section headers.
    table: usize,
    count: u16,
    size_of_headers: u32,
}

impl Headers {
    fn read(file: &[u8]) -> Result<Self, UkiError> {
        let bad = |what: &str| UkiError(what.to_owned());
        if file.get(..2) != Some(b"MZ") {
            return Err(bad("it does not begin with MZ"));
        }
        let pe = u32_at(file, 0x3c)? as usize;
        let coff = pe.checked_add(4).ok_or_else(too_large)?;
        if file.get(pe..coff) != Some(b"PE\0\0") {
            return Err(bad("it has no PE header"));
        }
        if u16_at(file, coff)? != MACHINE_X86_64 {
            return Err(bad("it is not for x86-64"));
        }
        let count = u16_at(file, coff + 2)?;
        if count > SECTIONS_MAX {
            return Err(bad("it has too many sections"));
        }
        let optional = coff + 20;
        if u16_at(file, optional)? != 0x20b {
            return Err(bad("its optional header is not PE32+"));
        }
        let table = optional + usize::from(u16_at(file, coff + 16)?);
        Ok(Self { coff, table, count, size_of_headers: u32_at(file, optional + 60)? })
    }

    fn sections(&self, file: &[u8]) -> Result<Vec<Section>, UkiError> {
        let read = |number: u16| {
            let at = self.table + usize::from(number) * SECTION_HEADER;
            let name = file.get(at..at + 8).ok_or_else(ends_early)?;
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            let [size, address, stored, offset] = [8, 12, 16, 20].map(|field| u32_at(file, at + field));
            let section = Section { name, size: size?, address: address?, stored: stored?, offset: offset? };
            let end = section.offset.checked_add(section.stored).ok_or_else(too_large)?;
            section.address.checked_add(section.size).ok_or_else(too_large)?;
            if end as usize > file.len() {
                return Err(UkiError(format!("section {} lies beyond the file's end", section.name)));
            }
            Ok(section)
        };
        (0..self.count).map(read).collect()
    }
}

fn put_section(header: &mut [u8], name: &str, [size, address, stored, offset]: [u32; 4]) {
    header.fill(0);
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, value) in [(8, size), (12, address), (16, stored), (20, offset), (36, READ_DATA)] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

fn u16_at(file: &[u8], at: usize) -> Result<u16, UkiError> {
    let bytes = file.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(ends_early)?;
    Ok(u16::from_le_bytes(*bytes))
}

fn u32_at(file: &[u8], at: usize) -> Result<u32, UkiError> {
    let bytes = file.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(ends_early)?;
    Ok(u32::from_le_bytes(*bytes))
}

fn narrow(length: usize) -> Result<u32, UkiError> {
    u32::try_from(length).map_err(|_| too_large())
}

fn too_large() -> UkiError {
    UkiError("it is larger than PE files can be".to_owned())
}

fn ends_early() -> UkiError {
    UkiError("it ends within its headers".to_owned())
}

/// The least PE program that an image can be made of: for tests of what reads images. It starts nothing.
pub fn least_stub() -> Vec<u8> {
    let mut file = vec![0; 1536];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    file[0x44..0x46].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
    file[0x44 + 16] = 240;
    file[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
    file[0x58 + 60..0x58 + 64].copy_from_slice(&1024_u32.to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The least that counts as a stub: headers with room, and one section of 512 bytes.
    pub(crate) fn stub() -> Vec<u8> {
        let mut file = least_stub();
        let coff = 0x44;
        file[coff + 2] = 1;
        file[coff + 8..coff + 16].fill(9); // a symbol table, behind the sections
        let table = coff + 20 + 240;
        put_section(&mut file[table..table + SECTION_HEADER], ".text", [500, 4096, 512, 1024]);
        file.extend_from_slice(b"symbols");
        file
    }

    fn parts<'a>(stub: &'a [u8], linux: &'a [u8], initrd: &'a [u8]) -> Parts<'a> {
        Parts { stub, os_release: "ID=ember\n", command_line: "quiet", release: "6.12.1", linux, initrd }
    }

    #[test]
    fn reads_what_it_writes() {
        let (linux, initrd) = (vec![1; 5000], vec![2; 513]);
        let image = build(&parts(&stub(), &linux, &initrd)).unwrap();
        let sections = sections(&image).unwrap();
        let names: Vec<_> = sections.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, [".text", ".osrel", ".cmdline", ".uname", ".linux", ".initrd"]);
        let contents: Vec<_> = sections[1..].iter().map(|s| s.contents(&image).unwrap()).collect();
        assert_eq!(contents, [b"ID=ember\n", b"quiet".as_slice(), b"6.12.1", &linux, &initrd]);
        for pair in sections.windows(2) {
            assert!(pair[1].address >= pair[0].address + pair[0].size && pair[1].address % SECTION_ALIGNMENT == 0);
            assert!(pair[1].offset >= pair[0].offset + pair[0].stored && pair[1].offset % FILE_ALIGNMENT == 0);
        }
        assert_eq!(image.len() % FILE_ALIGNMENT as usize, 0);
        assert!(!image.windows(7).any(|w| w == b"symbols"));
    }

    #[test]
    fn a_stub_without_room_is_refused() {
        let mut full = stub();
        let optional = 0x44 + 20;
        full[optional + 60..optional + 64].copy_from_slice(&500_u32.to_le_bytes());
        assert!(build(&parts(&full, b"", b"")).unwrap_err().to_string().contains("no room"));
    }

    #[test]
    fn every_cut_is_refused_or_whole() {
        let image = build(&parts(&stub(), b"linux", b"initrd")).unwrap();
        for length in 0..image.len() - FILE_ALIGNMENT as usize {
            assert!(sections(&image[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..600), keep in 0_usize..400) {
            let stub = stub();
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&stub[..keep]);
            if let Ok(sections) = sections(&bytes) {
                for section in sections {
                    let _ = section.contents(&bytes);
                }
            }
            let _ = build(&parts(&bytes, b"linux", b"initrd"));
        }
    }
}
