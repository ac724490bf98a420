//! Small files of one folder, replaced as a whole.
//!
//! ```text
//!  NAME.new: create (never through a link), own, write, fsync ─▶ rename to NAME ─▶ fsync the folder
//! ```
//!
//! Root may work in a folder that belongs to another uid: a file is created only where there is none, which does not
//! follow links, and what is read has to be a plain file. Nobody of that uid runs while root does so.

use crate::KeyError;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// Longest file read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Whose files are made, where that is not the process's own uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A folder that exists.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) owner: Option<Owner>,
}

impl Folder {
    /// The bytes of the file `name`, if there is one.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        let path = self.path.join(name);
        match read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeyError::File { action: "read", path, source }),
        }
    }

    /// Makes `bytes` the whole of the file `name`; on return it is on disk.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        self.write(&new, &path, bytes).map_err(|source| KeyError::File { action: "write", path, source })
    }

    fn write(&self, new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        remove_if_there(new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        if let Some(Owner { uid, gid }) = self.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        File::open(&self.path)?.sync_all()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0..=FILE_BYTES_MAX => Ok(bytes),
        _ => Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"))),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
