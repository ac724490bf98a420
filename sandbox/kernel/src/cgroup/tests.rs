//! Groups on a folder that looks like cgroup v2, and on the host's own.

use super::*;
use std::{
    fs,
    process::{Command, Stdio},
};

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, pids: 12, cpus: 1 };

/// A folder with a v2 group's files in it, since only the kernel makes them appear.
fn fake_leaf(groups: &Cgroups, root: &Path, name: &str) -> PathBuf {
    let leaf = root.join(&groups.folder).join(name);
    fs::create_dir(&leaf).unwrap();
    for file in ["memory.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.procs", "cgroup.kill"] {
        fs::write(leaf.join(file), "").unwrap();
    }
    fs::write(leaf.join("memory.stat"), "anon 4096\nfile 8192\nkernel 100\n").unwrap();
    fs::write(leaf.join("memory.current"), "4096\n").unwrap();
    fs::write(leaf.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
    fs::write(leaf.join("cpu.stat"), "usage_usec 77\nuser_usec 70\n").unwrap();
    leaf
}

fn fake_root() -> (tempfile::TempDir, Hierarchy) {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.subtree_control"), "cpu memory pids").unwrap();
    fs::create_dir(root.path().join("ember-t")).unwrap();
    fs::write(root.path().join("ember-t/cgroup.subtree_control"), "cpu memory").unwrap();
    fs::write(root.path().join("ember-t/cpu.weight"), "100").unwrap();
    let hierarchy = Hierarchy::V2 { root: root.path().to_owned() };
    (root, hierarchy)
}

#[test]
fn v2_limits_are_written_and_counters_read() {
    let (root, hierarchy) = fake_root();
    let groups = Cgroups::within(hierarchy, "t").unwrap();
    let delegated = |folder: &str| fs::read_to_string(root.path().join(folder).join("cgroup.subtree_control")).unwrap();
    assert_eq!(delegated("."), "cpu memory pids", "what is enabled is left alone");
    assert_eq!(delegated("ember-t"), "+pids", "what is missing is enabled");
    assert_eq!(fs::read_to_string(root.path().join("ember-t/cpu.weight")).unwrap(), "1000");

    let leaf = fake_leaf(&groups, root.path(), "a-1");
    let group = groups.create("a-1", &LIMITS).unwrap();
    let says = |file: &str| fs::read_to_string(leaf.join(file)).unwrap();
    assert_eq!((says("memory.max"), says("memory.oom.group")), ("67108864".into(), "1".into()));
    assert_eq!((says("pids.max"), says("cpu.max")), ("12".into(), "100000 100000".into()));
    let expected = Usage { private_bytes: 4196, cache_bytes: 8192, cpu_us: 77, oom_kills: 2 };
    assert_eq!(group.usage(), Ok(expected));
    assert_eq!(group.peak_bytes(), Ok(4096), "an old kernel tells what is used now");
    fs::write(leaf.join("memory.peak"), "8192\n").unwrap();
    assert_eq!(group.peak_bytes(), Ok(8192));
    group.kill().unwrap();
    assert_eq!(says("cgroup.kill"), "1");
}

#[test]
fn a_limit_that_is_not_kept_is_an_error() {
    let (root, hierarchy) = fake_root();
    let groups = Cgroups::within(hierarchy, "t").unwrap();
    let leaf = fake_leaf(&groups, root.path(), "a-1");
    fs::remove_file(leaf.join("pids.max")).unwrap();
    std::os::unix::fs::symlink("/dev/null", leaf.join("pids.max")).unwrap();
    let error = groups.create("a-1", &LIMITS).unwrap_err();
    assert!(matches!(error, CgroupError::NotKept { .. }), "{error}");
}

#[test]
fn names_stay_in_their_folder() {
    for bad in ["", "..", "a/b", "A", "a b", &"x".repeat(129)] {
        assert!(checked(bad).is_err(), "{bad}");
    }
}

fn groups(tag: &str) -> Cgroups {
    Cgroups::open(&format!("test-{tag}-{}", std::process::id())).unwrap()
}

fn sleeper(group: &Cgroup) -> std::process::Child {
    let child = Command::new("/bin/sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let place = |folder: &PathBuf| write(&folder.join("cgroup.procs"), &child.id().to_string());
    group.folders.iter().try_for_each(place).unwrap();
    child
}

#[test]
fn a_real_group_is_made_killed_and_removed() {
    let groups = groups("life");
    let group = groups.create("a-1", &LIMITS).unwrap();
    let mut child = sleeper(&group);
    assert_eq!(group.pids().unwrap().len(), 1);
    assert_eq!(group.usage().unwrap().oom_kills, 0);
    group.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    group.remove().unwrap();
    assert_eq!(group.folders.iter().filter(|folder| folder.exists()).count(), 0);
    groups.close().unwrap();
}

#[test]
fn what_a_killed_warden_left_is_swept() {
    let groups = groups("sweep");
    let mut children = ["a-1", "b-2"].map(|name| sleeper(&groups.create(name, &LIMITS).unwrap()));
    assert_eq!(groups.sweep(), Ok(2));
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    assert_eq!(groups.sweep(), Ok(0));
    groups.close().unwrap();
}
