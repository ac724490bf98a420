//! Files and folders, made so that neither a crash nor a link planted by another uid can hurt.

use nix::unistd::{Gid, Uid, fchown};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Who owns a file, and who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// User and group.
    pub(crate) id: u32,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The whole file appears at once, or not at all, and survives a power cut once this has returned.
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    set_access(file.as_file(), access)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

/// Reads a file; `None` when there is none. A link is refused.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    match open(path, 0) {
        Ok(file) => io::read_to_string(file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder, or sets an existing one right. Says whether something that was there had to be changed.
pub(crate) fn ensure_folder(path: &Path, access: Access) -> io::Result<bool> {
    let made = match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let changed = correct(&open(path, nix::libc::O_DIRECTORY)?, access)?;
    Ok(changed && !made)
}

/// Sets owner and mode of an existing file right. Says whether they had to be changed.
pub(crate) fn ensure_file(path: &Path, access: Access) -> io::Result<bool> {
    correct(&open(path, 0)?, access)
}

/// Removes a file; fine if there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | flags).open(path)
}

fn correct(file: &File, access: Access) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    if found == (access.id, access.id, access.mode) {
        return Ok(false);
    }
    set_access(file, access).map(|()| true)
}

fn set_access(file: &File, access: Access) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(access.id)), Some(Gid::from_raw(access.id)))?;
    file.set_permissions(Permissions::from_mode(access.mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const MINE: Access = Access { id: 0, mode: 0o640 };

    fn access(path: &Path) -> Access {
        let metadata = fs::metadata(path).unwrap();
        Access { id: metadata.uid(), mode: metadata.mode() & 0o7777 }
    }

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one", MINE).unwrap();
        replace(&path, b"two", Access { id: 7, mode: 0o600 }).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(access(&path), Access { id: 7, mode: 0o600 });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn wrong_owners_and_modes_are_set_right_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        let wanted = Access { id: 7, mode: 0o700 };
        assert!(!ensure_folder(&path, wanted).unwrap());
        assert_eq!(access(&path), wanted);
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        assert!(ensure_folder(&path, wanted).unwrap());
        assert_eq!(access(&path), wanted);
        assert!(!ensure_folder(&path, wanted).unwrap());
    }

    #[test]
    fn links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        assert!(ensure_folder(&link, MINE).is_err());
        assert!(read(&link).is_err());
        let before = access(&target);
        assert_eq!(access(&target), before);
    }
}
