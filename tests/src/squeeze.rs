//! A group of processes of which the kernel says that it is short of memory, because it is.
//!
//! Two folders where the host mounts version 1's memory controller: the kernel tells of pressure in version 2's groups, also
//! in those that limit nothing. Nothing runs in it before [`Squeeze::begin`], and nothing is left of it when it is dropped.

use crate::wait::until;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};
use tempfile::NamedTempFile;

/// What the group may use, bytes, and what it writes to over and over.
const LIMIT_BYTES: u64 = 24 << 20;
const WRITTEN_MIB: u64 = 96;

/// The group.
pub struct Squeeze {
    folders: Vec<PathBuf>,
    written: NamedTempFile,
    writer: Option<Child>,
}

impl Squeeze {
    /// A group in which nothing runs yet.
    pub fn prepare() -> Self {
        let name = format!("squeeze-{}", std::process::id());
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let roots = roots.into_iter().filter(|root| root.join("cgroup.procs").exists());
        let folders: Vec<_> = roots.map(|root| root.join(&name)).collect();
        folders.iter().for_each(|folder| fs::create_dir(folder).expect("make a cgroup, as root"));
        // `/tmp` may be memory itself.
        let written = NamedTempFile::new_in("/var/tmp").expect("a file on a disk");
        Self { folders, written, writer: None }
    }

    /// The file that tells of its pressure.
    pub fn pressure(&self) -> PathBuf {
        let files = self.folders.iter().map(|folder| folder.join("memory.pressure"));
        files.into_iter().find(|file| file.exists()).expect("the kernel tells of pressure (CONFIG_PSI, psi=1)")
    }

    /// Has it write to four times the memory that it may use, until [`end`](Self::end).
    pub fn begin(&mut self) {
        let limits = self.folders.iter().flat_map(|folder| {
            ["memory.limit_in_bytes", "memory.high"]
                .map(|limit| folder.join(limit))
                .into_iter()
                .filter(|file| file.exists())
        });
        let limits: Vec<_> = limits.collect();
        assert_eq!(limits.len(), 1, "one controller limits memory: {limits:?}");
        fs::write(&limits[0], LIMIT_BYTES.to_string()).expect("set a limit");
        let enter: String =
            self.folders.iter().map(|folder| format!("echo 0 > {}/cgroup.procs; ", folder.display())).collect();
        let write = format!(
            "dd if=/dev/zero of={} bs=64k count={} conv=notrunc",
            self.written.path().display(),
            WRITTEN_MIB * 16
        );
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(format!("{enter} while :; do {write} 2> /dev/null; done")).process_group(0);
        self.writer = Some(shell.spawn().expect("start a shell"));
    }

    /// Has it do nothing any more.
    pub fn end(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        // The shell and what it has started.
        killpg(Pid::from_raw(writer.id() as i32), Signal::SIGKILL).expect("the shell is our child");
        writer.wait().expect("the shell is our child");
        until("nothing runs in it", || self.is_empty().then_some(()));
    }

    fn is_empty(&self) -> bool {
        let members = |folder: &PathBuf| fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        self.folders.iter().all(|folder| members(folder).is_empty())
    }
}

impl Drop for Squeeze {
    fn drop(&mut self) {
        self.end();
        self.folders.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}
