//! The data partition: an ext4, and the files that an image brings along on it.
//!
//! ```text
//!  mke2fs ─▶ empty ─▶ debugfs: each folder, each file, in the order of their names ─▶ the same bytes twice
//! ```
//! By debugfs and not by `mke2fs -d`, which takes over times and the order of folders, so that no two are the same. It ends
//! with 0 whatever fails, so what it says on stderr beyond its version is the failure. All files are root's and read-only.

use crate::{
    ImageError,
    debian::{heard_at, run_at},
    disk::{self, DATA, Slice},
};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// The file system's own need beside files: its journal grows in steps, its tables with it.
const OWN_BYTES: u64 = 16 * MIB;
const OWN_SHARE: u64 = 32;
/// mke2fs and debugfs take the time from here.
const ENVIRONMENT: [(&str, &str); 2] = [("E2FSPROGS_FAKE_TIME", "1"), ("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")];
/// A file that everybody reads and nobody writes.
const FILE_MODE: &str = "0100444";
const SCRIPT: &str = "script";

/// A file that lies on the data partition from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Its path from the partition's root, of letters, digits, `-`, `.` and `/`.
    pub to: String,
    /// What is in it.
    pub from: Source,
}

/// Where a file's contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of so many bytes, whose name on the partition says what it holds, as by a digest.
    File(PathBuf, u64),
}

impl DataFile {
    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        match &self.from {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File(_, bytes) => *bytes,
        }
    }

    /// What makes it another file than others.
    pub(crate) fn tell(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&(self.to.len() as u64).to_le_bytes()).update(self.to.as_bytes());
        hasher.update(&self.bytes().to_le_bytes());
        if let Source::Bytes(bytes) = &self.from {
            hasher.update(bytes);
        }
    }
}

/// What `files` take of a data partition, whole MiB in bytes; 0 where there are none.
pub fn room_for(files: &[DataFile]) -> u64 {
    let bytes: u64 = files.iter().map(|file| file.bytes().next_multiple_of(disk::EXT4_BLOCK)).sum();
    match files.is_empty() {
        true => 0,
        false => (bytes + bytes / OWN_SHARE + OWN_BYTES).next_multiple_of(MIB),
    }
}

/// Makes the file system, with `files`, in its place in the disk at `image`.
pub(crate) fn make(image: &Path, data: &Slice, id: &Uuid, files: &[DataFile]) -> Result<(), ImageError> {
    file_system(image, data, &id.to_string())?;
    if files.is_empty() { Ok(()) } else { fill(image, data, files) }
}

/// mke2fs takes every id that it would choose.
fn file_system(image: &Path, data: &Slice, id: &str) -> Result<(), ImageError> {
    let extended = format!("offset={},hash_seed={id},lazy_itable_init=1,nodiscard", data.offset);
    let (image, size) = (image.to_string_lossy(), format!("{}k", data.bytes / 1024));
    // An inode for each 64 KiB as it ships, and for each 128 KiB of what it grows by: it grows to disks that hold models,
    // where mke2fs's one for 4 KiB would take a sixteenth.
    let form = ["-q", "-F", "-t", "ext4", "-b", "4096", "-i", "65536", "-m", "0", "-L", DATA, "-U", id];
    let rest = ["-O", "verity,metadata_csum", "-E", &extended, &image, &size];
    run_at("mke2fs", &[form.as_slice(), &rest].concat(), None, &ENVIRONMENT).map(drop)
}

fn fill(image: &Path, data: &Slice, files: &[DataFile]) -> Result<(), ImageError> {
    // debugfs reads its script by words: sources get names that are one.
    let fresh = tempfile::tempdir().map_err(|error| ImageError::Disk(error.to_string()))?;
    for (number, file) in files.iter().enumerate() {
        place(&file.from, &fresh.path().join(number.to_string()))?;
    }
    let path = fresh.path().join(SCRIPT);
    fs::write(&path, script(files)).map_err(ImageError::at(&path))?;
    let image = fs::canonicalize(image).map_err(ImageError::at(image))?;
    let volume = format!("{}?offset={}", image.display(), data.offset);
    let [_, said] = heard_at("debugfs", &["-w", "-f", SCRIPT, &volume], Some(fresh.path()), &ENVIRONMENT)?;
    match complaint(&said) {
        None => Ok(()),
        Some(reason) => Err(ImageError::Program { program: "debugfs", reason }),
    }
}

fn place(source: &Source, path: &Path) -> Result<(), ImageError> {
    match source {
        Source::Bytes(bytes) => fs::write(path, bytes).map_err(ImageError::at(path)),
        Source::File(file, _) => {
            let file = std::path::absolute(file).map_err(ImageError::at(file))?;
            symlink(file, path).map_err(ImageError::at(path))
        }
    }
}

/// Folders before what is in them, then files by their numbers.
fn script(files: &[DataFile]) -> String {
    let folders: BTreeSet<&Path> = files.iter().flat_map(|file| Path::new(&file.to).ancestors().skip(1)).collect();
    let mut text = String::new();
    let mut line = |line: std::fmt::Arguments| writeln!(text, "{line}").expect("a String takes all text");
    for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
        line(format_args!("mkdir /{}", folder.display()));
    }
    for (number, DataFile { to, .. }) in files.iter().enumerate() {
        line(format_args!("write {number} /{to}"));
        line(format_args!("set_inode_field /{to} mode {FILE_MODE}"));
    }
    text
}

/// What debugfs said beyond its version.
fn complaint(said: &str) -> Option<String> {
    let said: Vec<_> = said.lines().filter(|line| !line.is_empty() && !line.starts_with("debugfs 1.")).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(to: &str, bytes: &[u8]) -> DataFile {
        DataFile { to: to.to_owned(), from: Source::Bytes(bytes.to_vec()) }
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let files = [file("ember/preload/a.toml", b"a"), file("ember/models/b.gguf", b"b")];
        let expected = "mkdir /ember\nmkdir /ember/models\nmkdir /ember/preload\n\
            write 0 /ember/preload/a.toml\nset_inode_field /ember/preload/a.toml mode 0100444\n\
            write 1 /ember/models/b.gguf\nset_inode_field /ember/models/b.gguf mode 0100444\n";
        assert_eq!(script(&files), expected);
    }

    #[test]
    fn what_debugfs_says_is_a_complaint_and_its_version_is_none() {
        assert_eq!(complaint("debugfs 1.47.0 (5-Feb-2023)\n"), None);
        let said = "debugfs 1.47.0 (5-Feb-2023)\nwrite: Could not allocate block in ext2 filesystem \n";
        assert!(complaint(said).unwrap().starts_with("write: Could not allocate block"));
    }

    #[test]
    fn room_is_whole_and_more_than_the_files_take() {
        assert_eq!(room_for(&[]), 0);
        assert_eq!(room_for(&[file("a", b"a")]), 17 * MIB);
        let model = DataFile { to: "m".to_owned(), from: Source::File("m".into(), 1 << 30) };
        assert_eq!(room_for(&[model]), (1024 + 32 + 16) * MIB);
    }
}
