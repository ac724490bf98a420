//! Leaves the initramfs for a tmpfs.
//!
//! The sandbox pivots roots, which the kernel refuses below the initramfs. So all that it holds is moved to a tmpfs, which
//! is then moved over `/`, and PID 1 executes itself there: what it was executed from is deleted, and its memory freed.

use crate::error::InitError;
use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, execv},
};
use std::{ffi::CString, fs, io, os::unix::fs::PermissionsExt, path::Path};

const NEW_ROOT: &str = "/new-root";
/// What PID 1 is called when it has moved: the argument that tells the two apart.
pub(crate) const MOVED: &str = "moved";

/// Does not return unless it fails.
pub(crate) fn leave_initramfs() -> Result<(), InitError> {
    fs::create_dir_all(NEW_ROOT).map_err(InitError::io(NEW_ROOT))?;
    let none = None::<&str>;
    mount(Some("tmpfs"), NEW_ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(InitError::kernel("the new root"))?;
    let new_root = Path::new(NEW_ROOT);
    move_all(Path::new("/"), new_root, new_root).map_err(InitError::io("the initramfs"))?;
    chdir(NEW_ROOT).map_err(InitError::kernel("the new root"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(InitError::kernel("moving the new root"))?;
    chroot(".").map_err(InitError::kernel("the new root"))?;
    chdir("/").map_err(InitError::kernel("the new root"))?;
    let [program, argument] = ["/init", MOVED].map(|text| CString::new(text).expect("it has no NUL"));
    let argv = [program.clone(), argument];
    execv(&program, &argv).map(drop).map_err(InitError::kernel("executing /init again"))
}

/// Moves files and folders; devices stay, since devtmpfs brings its own.
fn move_all(from: &Path, to: &Path, except: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if source == except {
            continue;
        }
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            move_all(&source, &target, except)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(entry.metadata()?.permissions().mode()))?;
            fs::remove_file(&source)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_new_root_moves() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path();
        let new = old.join("new-root");
        fs::create_dir_all(old.join("a/b")).unwrap();
        fs::create_dir(&new).unwrap();
        fs::write(old.join("a/b/file"), "text").unwrap();
        fs::write(old.join("init"), "program").unwrap();
        fs::set_permissions(old.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        move_all(old, &new, &new).unwrap();
        assert_eq!(fs::read_to_string(new.join("a/b/file")).unwrap(), "text");
        assert_eq!(fs::metadata(new.join("init")).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!old.join("init").exists() && !old.join("a/b/file").exists() && !new.join("new-root").exists());
    }
}
