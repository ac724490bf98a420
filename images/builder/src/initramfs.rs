//! The initramfs: a cpio archive of the form that Linux unpacks (`newc`), compressed with zstd.
//!
//! ```text
//!  entry   "070701", 13 × 8 hex digits │ name, NUL │ padding to 4 │ contents │ padding to 4
//!  …
//!  "TRAILER!!!"                          (Documentation/driver-api/early-userspace/buffer-format.rst)
//! ```
//!
//! Invariants: folders come before what is in them; entries are sorted by path, belong to root, and have no time, so the
//! archive depends on names, modes and contents alone.

use std::collections::BTreeMap;

const FOLDER: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// `/dev/console`, which the kernel opens for PID 1 before anything is mounted.
const CONSOLE: (u32, u32) = (5, 1);
/// The kernel's decoder takes what zstd's highest ordinary level makes.
const ZSTD_LEVEL: i32 = 19;

/// What lies in the initramfs, by path from its root without a leading slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    contents: Vec<u8>,
}

impl Tree {
    /// A tree with `/dev/console`.
    pub fn new() -> Self {
        let mut tree = Self::default();
        tree.add("dev/console", Entry { mode: CHARACTER_DEVICE, device: CONSOLE, contents: Vec::new() });
        tree
    }

    /// A file that everybody may read, and root write; with `program`, everybody may execute it.
    pub fn file(&mut self, path: &str, contents: Vec<u8>, program: bool) {
        let mode = if program { 0o100_755 } else { 0o100_644 };
        self.add(path, Entry { mode, device: (0, 0), contents });
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (slash, _) in path.match_indices('/') {
            let folder = Entry { mode: FOLDER, device: (0, 0), contents: Vec::new() };
            self.entries.entry(path[..slash].to_owned()).or_insert(folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive's bytes.
    pub fn cpio(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write(&mut archive, number, path, entry);
        }
        write(&mut archive, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), contents: Vec::new() });
        archive
    }

    /// The archive, compressed.
    pub fn compressed(&self) -> Vec<u8> {
        zstd::bulk::compress(&self.cpio(), ZSTD_LEVEL).expect("compressing to memory fails for want of memory only")
    }
}

fn write(archive: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let length = u32::try_from(entry.contents.len()).expect("a program or module is far smaller than 4 GiB");
    let (major, minor) = entry.device;
    let name = path.len() as u32 + 1;
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let fields = [number, entry.mode, 0, 0, links, 0, length, 0, 0, major, minor, name, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(&entry.contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    fn tree() -> Tree {
        let mut tree = Tree::new();
        tree.file("/init", b"program".to_vec(), true);
        tree.file("lib/modules/a.ko", vec![7; 4097], false);
        tree
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let paths: Vec<_> = tree().entries.keys().cloned().collect();
        assert_eq!(paths, ["dev", "dev/console", "init", "lib", "lib/modules", "lib/modules/a.ko"]);
    }

    #[test]
    fn another_program_reads_it() {
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio, a Debian package that `make test` installs");
        child.stdin.take().unwrap().write_all(&tree().cpio()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let has = |mode: &str, end: &str| listing.lines().any(|l| l.starts_with(mode) && l.ends_with(end));
        assert!(has("crw-------", "dev/console") && listing.contains("5,   1"), "{listing}");
        assert!(has("-rwxr-xr-x", " init") && has("drwxr-xr-x", " lib/modules"), "{listing}");
        assert!(listing.contains("4097") && has("-rw-r--r--", "lib/modules/a.ko"), "{listing}");
    }

    #[test]
    fn order_of_adding_changes_nothing() {
        let mut other = Tree::default();
        other.file("lib/modules/a.ko", vec![7; 4097], false);
        other.file("init", b"program".to_vec(), true);
        other.add("dev/console", Entry { mode: CHARACTER_DEVICE, device: CONSOLE, contents: Vec::new() });
        assert_eq!(other.compressed(), tree().compressed());
    }
}
