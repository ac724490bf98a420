//! Limits as the files and values of each version: pure.

use super::Hierarchy;
use std::path::PathBuf;

/// What a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, bytes. Swap is not to be used.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Whole CPUs' worth of time.
    pub cpus: u32,
}

/// A file and what it must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) path: PathBuf,
    pub(super) value: String,
    /// Swap accounting may be compiled out or switched off.
    pub(super) optional: bool,
}

/// Weight of all instances together, in proportion to a group or process that has none set.
const WEIGHT: u64 = 10;
const PERIOD_US: u64 = 100_000;
const PAGE_BYTES: u64 = 4096;

/// The settings of a group whose folders are those of `group`, in the order in which they must be written.
pub(super) fn settings(group: &Hierarchy, limits: &Limits) -> Vec<Setting> {
    // The kernel keeps whole pages; what is read back must be what was written.
    let memory = (limits.memory_bytes / PAGE_BYTES * PAGE_BYTES).to_string();
    let quota_us = PERIOD_US * u64::from(limits.cpus);
    let setting = |path: PathBuf, value: String| Setting { path, value, optional: false };
    let optional = |path: PathBuf, value: String| Setting { path, value, optional: true };
    match group {
        Hierarchy::V2 { root } => vec![
            setting(root.join("memory.max"), memory),
            optional(root.join("memory.swap.max"), "0".into()),
            setting(root.join("memory.oom.group"), "1".into()),
            setting(root.join("pids.max"), limits.pids.to_string()),
            setting(root.join("cpu.max"), format!("{quota_us} {PERIOD_US}")),
        ],
        Hierarchy::V1 { memory: folder, pids, cpu, .. } => vec![
            setting(folder.join("memory.limit_in_bytes"), memory.clone()),
            // Memory and swap together; may not be below the limit of memory alone, so it comes second.
            optional(folder.join("memory.memsw.limit_in_bytes"), memory),
            setting(pids.join("pids.max"), limits.pids.to_string()),
            setting(cpu.join("cpu.cfs_period_us"), PERIOD_US.to_string()),
            setting(cpu.join("cpu.cfs_quota_us"), quota_us.to_string()),
        ],
    }
}

/// The setting of the folder that holds all groups: when cores are short, inference goes before what else this host does.
///
/// Threads of one inference wait for each other hundreds of times a token, so one that is kept waiting for a core keeps
/// all waiting. Measured with two compilers on two cores: 0.9 tokens/s without, 16 with.
pub(super) fn weight(all: &Hierarchy) -> Setting {
    let (path, default) = match all {
        Hierarchy::V2 { root } => (root.join("cpu.weight"), 100),
        Hierarchy::V1 { cpu, .. } => (cpu.join("cpu.shares"), 1024),
    };
    Setting { path, value: (WEIGHT * default).to_string(), optional: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory_bytes: (64 << 20) + 5, pids: 12, cpus: 2 };

    fn lines(group: &Hierarchy) -> Vec<String> {
        let line = |setting: Setting| format!("{}={}", setting.path.display(), setting.value);
        settings(group, &LIMITS).into_iter().map(line).collect()
    }

    #[test]
    fn v2() {
        let expected = [
            "/g/memory.max=67108864",
            "/g/memory.swap.max=0",
            "/g/memory.oom.group=1",
            "/g/pids.max=12",
            "/g/cpu.max=200000 100000",
        ];
        assert_eq!(lines(&Hierarchy::V2 { root: "/g".into() }), expected);
    }

    #[test]
    fn inference_weighs_ten_times_the_default() {
        let line = |all: &Hierarchy| format!("{}={}", weight(all).path.display(), weight(all).value);
        assert_eq!(line(&Hierarchy::V2 { root: "/g".into() }), "/g/cpu.weight=1000");
        let v1 = Hierarchy::V1 { memory: "/m".into(), pids: "/p".into(), cpu: "/c".into(), cpuacct: "/a".into() };
        assert_eq!(line(&v1), "/c/cpu.shares=10240");
    }

    #[test]
    fn v1_limits_memory_before_memory_and_swap() {
        let group = Hierarchy::V1 { memory: "/m".into(), pids: "/p".into(), cpu: "/c".into(), cpuacct: "/a".into() };
        let expected = [
            "/m/memory.limit_in_bytes=67108864",
            "/m/memory.memsw.limit_in_bytes=67108864",
            "/p/pids.max=12",
            "/c/cpu.cfs_period_us=100000",
            "/c/cpu.cfs_quota_us=200000",
        ];
        assert_eq!(lines(&group), expected);
    }
}
