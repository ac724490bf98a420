//! The few things done with files of a cgroup file system, each error carrying its path.

use super::CgroupError;
use nix::{errno::Errno, libc};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

fn failed(path: &Path, error: &io::Error) -> CgroupError {
    CgroupError::File { path: path.to_owned(), reason: error.to_string() }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|error| failed(path, &error))
}

/// Writes a value in one write, as the kernel wants it, to a file that must exist.
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|error| failed(path, &error))
}

pub(super) fn make_folder(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

/// Removes a group; `false` while it is busy.
pub(super) fn remove_folder(path: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as libc::c_int) => Ok(false),
        Err(error) => Err(failed(path, &error)),
    }
}

pub(super) fn folders_in(path: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = fs::read_dir(path).map_err(|error| failed(path, &error))?;
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The number after `name` in a file of `name number` lines; 0 where there is none.
pub(super) fn counter(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}
