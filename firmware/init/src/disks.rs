//! Finds the image's partitions by their names and mounts them.
//!
//! Disks appear when their drivers and buses are done, USB ones after a second or more, so it is waited for.

use crate::error::InitError;
use nix::mount::{MsFlags, mount};
use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// The boot partition's place.
pub(crate) const ESP: &str = "/esp";
/// The data partition's place.
pub(crate) const DATA: &str = "/data";

const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Mounts both.
pub(crate) fn mount_both() -> Result<(), InitError> {
    let until = Instant::now() + WAIT_MAX;
    for (name, kind, place, options) in [("esp", "vfat", ESP, "umask=0077"), ("data", "ext4", DATA, "")] {
        let device = wait_for(name, until)?;
        fs::create_dir_all(place).map_err(InitError::io(place))?;
        let flags = PLAIN.union(MsFlags::MS_NOATIME);
        mount(Some(&device), place, Some(kind), flags, Some(options)).map_err(InitError::kernel(place))?;
    }
    Ok(())
}

fn wait_for(name: &str, until: Instant) -> Result<PathBuf, InitError> {
    loop {
        if let Some(device) = find(Path::new("/sys/class/block"), name) {
            return Ok(Path::new("/dev").join(device));
        }
        if Instant::now() >= until {
            return Err(InitError::Missing(format!("partition named {name}")));
        }
        sleep(LOOK_EVERY);
    }
}

/// The device of the partition with this name.
fn find(class: &Path, name: &str) -> Option<String> {
    let wanted = format!("PARTNAME={name}");
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
        let line = |start: &str| uevent.lines().find_map(|line| line.strip_prefix(start));
        if !uevent.lines().any(|line| line == wanted) {
            return None;
        }
        line("DEVNAME=").map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for (device, name) in [("vda1", "esp"), ("vda2", "data"), ("sdb1", "database")] {
            let path = folder.path().join(device);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("uevent"), format!("MAJOR=1\nDEVNAME={device}\nPARTNAME={name}\n")).unwrap();
        }
        assert_eq!(find(folder.path(), "data"), Some("vda2".to_owned()));
        assert_eq!(find(folder.path(), "root"), None);
    }
}
