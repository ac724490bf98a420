//! Where the host mounts the controllers that a sandbox needs.
//!
//! v2 is chosen when it has them all. A hybrid host mounts v2 too, but with none or few controllers: it counts as v1.
//! A host that splits them between both is refused by name rather than half limited.

use super::{CgroupError, files::read};
use std::path::{Path, PathBuf};

/// The controllers that limits need.
pub(super) const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The mounts in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree for all controllers.
    V2 {
        /// Its mount.
        root: PathBuf,
    },
    /// A tree for each controller; `cpu` and `cpuacct` may be one.
    V1 {
        /// The memory controller's.
        memory: PathBuf,
        /// The pids controller's.
        pids: PathBuf,
        /// The cpu controller's.
        cpu: PathBuf,
        /// The cpu accounting's.
        cpuacct: PathBuf,
    },
}

/// A mounted cgroup file system.
struct Mount<'a> {
    path: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Hierarchy {
    /// The host's.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] names the controllers that neither version has.
    pub fn of_host() -> Result<Self, CgroupError> {
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        Self::choose(&mounts, |root| read(&root.join("cgroup.controllers")).unwrap_or_default())
    }

    /// Chooses from the text of `/proc/PID/mountinfo`; `controllers` reads what a v2 mount has.
    fn choose(mountinfo: &str, controllers: impl Fn(&Path) -> String) -> Result<Self, CgroupError> {
        let mounts: Vec<_> = mountinfo.lines().filter_map(parse).collect();
        let v2 = mounts.iter().find(|mount| mount.kind == "cgroup2").map(|mount| PathBuf::from(mount.path));
        let complete = |root: &PathBuf| {
            let present = controllers(root);
            CONTROLLERS.iter().all(|wanted| present.split_whitespace().any(|word| word == *wanted))
        };
        match v2.filter(complete) {
            Some(root) => Ok(Self::V2 { root }),
            None => Self::choose_v1(&mounts),
        }
    }

    fn choose_v1(mounts: &[Mount<'_>]) -> Result<Self, CgroupError> {
        let find = |controller: &str| {
            let has = |mount: &&Mount<'_>| {
                mount.kind == "cgroup" && mount.options.split(',').any(|option| option == controller)
            };
            mounts.iter().find(has).map(|mount| PathBuf::from(mount.path))
        };
        match (find("memory"), find("pids"), find("cpu"), find("cpuacct")) {
            (Some(memory), Some(pids), Some(cpu), Some(cpuacct)) => Ok(Self::V1 { memory, pids, cpu, cpuacct }),
            _ => {
                let wanted = ["memory", "pids", "cpu", "cpuacct"];
                let missing: Vec<_> = wanted.into_iter().filter(|name| find(name).is_none()).collect();
                Err(CgroupError::Missing { missing: missing.join(", ") })
            }
        }
    }

    /// Whether it is version 2.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Each folder in which a group has to be made, once.
    pub(super) fn roots(&self) -> Vec<&Path> {
        match self {
            Self::V2 { root } => vec![root],
            Self::V1 { memory, pids, cpu, cpuacct } => {
                let mut roots: Vec<&Path> = vec![memory, pids, cpu, cpuacct];
                roots.sort_unstable();
                roots.dedup();
                roots
            }
        }
    }

    /// The same with each folder replaced by one below it.
    pub(super) fn below(&self, relative: &Path) -> Self {
        match self {
            Self::V2 { root } => Self::V2 { root: root.join(relative) },
            Self::V1 { memory, pids, cpu, cpuacct } => Self::V1 {
                memory: memory.join(relative),
                pids: pids.join(relative),
                cpu: cpu.join(relative),
                cpuacct: cpuacct.join(relative),
            },
        }
    }
}

/// `id parent dev root PATH options [tags…] - KIND source OPTIONS`
fn parse(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let path = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    kind.starts_with("cgroup").then_some(Mount { path, kind, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "\
23 1 0:5 / / rw - ext4 /dev/vda rw
31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 23 0:28 / /sys/fs/cgroup/memory rw shared:2 - cgroup cgroup rw,memory
33 23 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 23 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 23 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset";

    fn has(controllers: &str) -> impl Fn(&Path) -> String {
        move |_| controllers.to_owned()
    }

    #[test]
    fn v2_with_all_controllers_wins() {
        let expected = Hierarchy::V2 { root: "/sys/fs/cgroup".into() };
        assert_eq!(Hierarchy::choose(V2, has("cpuset cpu io memory hugetlb pids")), Ok(expected));
    }

    #[test]
    fn a_hybrid_host_counts_as_v1() {
        let chosen = Hierarchy::choose(HYBRID, has("hugetlb")).unwrap();
        let joint = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(
            chosen,
            Hierarchy::V1 {
                memory: "/sys/fs/cgroup/memory".into(),
                pids: "/sys/fs/cgroup/pids".into(),
                cpu: joint.clone(),
                cpuacct: joint,
            }
        );
        assert_eq!(chosen.roots().len(), 3);
    }

    #[test]
    fn a_controller_that_nobody_has_is_named() {
        let error = |text, controllers| Hierarchy::choose(text, has(controllers)).unwrap_err().to_string();
        assert!(error(V2, "cpu memory").contains("memory, pids, cpu, cpuacct"));
        let without_pids = HYBRID.lines().filter(|line| !line.contains("pids")).collect::<Vec<_>>().join("\n");
        assert!(error(&without_pids, "pids").contains("missing: pids;"));
        assert!(error("", "").contains("memory"));
    }
}
