//! A sandbox as a value: what it is given, and the steps by which a fresh child shuts itself in.
//!
//! ```text
//!  parent                              child (all namespaces new, still with every capability in its own)
//!    │ clone3 ────────────────────────▶ │ die with parent · wait at the gate
//!    │ id maps, oom score               │
//!    │ open the gate ─────────────────▶ │ cgroups, where clone3 has not entered them · cgroup namespace · session · host name
//!    │                                  │ identity: groups, gid, uid           (capabilities stay: no root is mapped)
//!    │                                  │ mounts: private, tmpfs root, the files, pivot, read-only
//!    │                                  │ limits · capabilities gone and locked · no new privileges · Landlock
//!    │                                  │ die with parent (a change of uid had cleared it) · is there a parent?
//!    │                                  │ descriptors 0-3 placed, the rest close-on-exec · seccomp
//!    │ ◀──────── end of file ────────── │ execveat
//!    │ ◀──── step number and errno ──── │ or the step that failed
//! ```
//!
//! Why this order: identity comes before the mounts, since files can only be made in the new tmpfs by an id that is
//! mapped; capabilities go after the mounts, which need them; descriptors are placed late, since 0-3 may be in use until
//! then; the filter comes last, since it allows none of what comes before it. The cgroup namespace is entered after the gate rather than by clone3, so that its root is the instance's own
//! group and not the warden's.

use crate::{
    limits::{DESCRIPTORS_MAX, RLIMITS, Rlimit},
    seccomp::Filter,
};
use std::{ffi::CString, os::fd::RawFd};

/// The id that a sandboxed process sees as its own.
pub const INSIDE_ID: u32 = 65534;
/// The host name that it sees.
pub const HOST_NAME: &str = "runner";
/// The number under which it finds its socket.
pub const SOCKET: RawFd = 3;
/// First descriptor that is not handed on.
pub const DESCRIPTORS_KEPT: RawFd = 4;
/// Least number of a descriptor that is used until exec: above those handed on, so that placing one hides no other, and
/// above all that the program can ever have, so that what the filter allows of it is no use to the program.
pub const DESCRIPTORS_OWN: RawFd = DESCRIPTORS_MAX as RawFd;

/// Descriptors as the child finds them, from [`DESCRIPTORS_OWN`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Read end of the pipe that holds the child back; a byte lets it go, an end of file ends it.
    pub gate: RawFd,
    /// Its write end, of which the child has a copy.
    pub opener: RawFd,
    /// Write end of the pipe that names a failed step.
    pub report: RawFd,
    /// Becomes standard input and output: `/dev/null`.
    pub null: RawFd,
    /// Becomes standard error.
    pub stderr: RawFd,
    /// Becomes descriptor 3.
    pub socket: RawFd,
    /// The Landlock ruleset that allows the program and the files, unless the kernel has none and that was accepted.
    pub ruleset: Option<RawFd>,
    /// The program, executed by descriptor.
    pub program: RawFd,
}

/// A file that the sandbox sees, read-only, at the top of its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// A detached mount of it (see [`crate::mounts::detach_file`]).
    pub mount: RawFd,
    /// Its name, without a slash.
    pub name: CString,
}

/// One thing that the child asks of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Be killed when the thread that cloned us ends.
    DieWithParent,
    /// Close the copy of the end that opens our gate, or we would never see that the parent's is gone.
    DropOpener(RawFd),
    /// Wait until the parent has written cgroups and id maps.
    AwaitRelease(RawFd),
    /// Move ourselves into a group of cgroup v1, by its file of tasks.
    EnterCgroup(RawFd),
    /// See our own cgroup as the root of all.
    EnterCgroupNamespace,
    /// Leave the parent's session and terminal.
    NewSession,
    /// Take back blocked signals.
    ClearSignalMask,
    /// Hide the host's name.
    NameHost,
    /// Drop supplementary groups.
    ClearGroups,
    /// Become this group, for good.
    SetGroup(u32),
    /// Become this user, for good.
    SetUser(u32),
    /// Let no mount event in or out.
    PrivateMounts,
    /// Mount the tiny tmpfs that will be the root, and stand in it.
    MountRoot,
    /// Put a file into it.
    AttachFile(File),
    /// Make it the root and let the old one go.
    EnterRoot,
    /// Make it read-only.
    SealRoot,
    /// Set a resource limit, soft and hard.
    Limit(Rlimit),
    /// Forbid all capabilities to any program executed later.
    DropBoundingSet,
    /// Forget ambient capabilities.
    ClearAmbient,
    /// Lock the meaning of user id 0 away.
    LockSecurebits,
    /// Drop all capabilities.
    DropCapabilities,
    /// Let no exec ever give privileges.
    ForbidNewPrivileges,
    /// Enter a Landlock domain.
    EnterDomain(RawFd),
    /// End unless the parent still holds the other end of the report pipe.
    ConfirmParent(RawFd),
    /// Make a descriptor available under a number.
    Place {
        /// The descriptor.
        from: RawFd,
        /// Its number in the program.
        to: RawFd,
    },
    /// Close all from this number on at exec.
    CloseFrom(RawFd),
    /// Forbid all system calls but those of a filter.
    FilterCalls(Filter),
    /// Become the program.
    Exec(RawFd),
}

/// The layer whose ruleset the parent makes.
pub(crate) const LANDLOCK: &str = "landlock";

impl Step {
    /// The layer of the sandbox that a step belongs to, as errors name it.
    pub const fn layer(&self) -> &'static str {
        match self {
            Self::DieWithParent | Self::DropOpener(_) | Self::AwaitRelease(_) | Self::ConfirmParent(_) => "supervision",
            Self::EnterCgroup(_) => "cgroup",
            Self::EnterCgroupNamespace => "cgroup namespace",
            Self::NewSession | Self::ClearSignalMask => "session",
            Self::NameHost => "uts namespace",
            Self::ClearGroups | Self::SetGroup(_) | Self::SetUser(_) => "identity",
            Self::PrivateMounts | Self::MountRoot | Self::AttachFile(_) | Self::EnterRoot | Self::SealRoot => "root",
            Self::Limit(_) => "resource limits",
            Self::DropBoundingSet | Self::ClearAmbient | Self::LockSecurebits | Self::DropCapabilities => {
                "capabilities"
            }
            Self::ForbidNewPrivileges => "no new privileges",
            Self::EnterDomain(_) => LANDLOCK,
            Self::Place { .. } | Self::CloseFrom(_) => "descriptors",
            Self::FilterCalls(_) => "seccomp",
            Self::Exec(_) => "program",
        }
    }
}

/// The steps of a sandbox, in order.
pub fn plan(descriptors: &Descriptors, cgroups: &[RawFd], files: Vec<File>, filter: Filter) -> Vec<Step> {
    let mut steps =
        vec![Step::DieWithParent, Step::DropOpener(descriptors.opener), Step::AwaitRelease(descriptors.gate)];
    steps.extend(cgroups.iter().copied().map(Step::EnterCgroup));
    steps.extend([Step::EnterCgroupNamespace, Step::NewSession, Step::ClearSignalMask, Step::NameHost]);
    steps.extend([Step::ClearGroups, Step::SetGroup(INSIDE_ID), Step::SetUser(INSIDE_ID)]);
    steps.extend([Step::PrivateMounts, Step::MountRoot]);
    steps.extend(files.into_iter().map(Step::AttachFile));
    steps.extend([Step::EnterRoot, Step::SealRoot]);
    steps.extend(RLIMITS.map(Step::Limit));
    steps.extend([Step::DropBoundingSet, Step::ClearAmbient, Step::LockSecurebits, Step::DropCapabilities]);
    steps.push(Step::ForbidNewPrivileges);
    steps.extend(descriptors.ruleset.map(Step::EnterDomain));
    steps.extend([Step::DieWithParent, Step::ConfirmParent(descriptors.report)]);
    steps.extend(place(descriptors));
    steps.extend([Step::CloseFrom(DESCRIPTORS_KEPT), Step::FilterCalls(filter), Step::Exec(descriptors.program)]);
    steps
}

fn place(descriptors: &Descriptors) -> [Step; 4] {
    let Descriptors { null, stderr, socket, .. } = *descriptors;
    [(null, 0), (null, 1), (stderr, 2), (socket, SOCKET)].map(|(from, to)| Step::Place { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp;

    const DESCRIPTORS: Descriptors = Descriptors {
        gate: 10,
        opener: 19,
        report: 11,
        null: 12,
        stderr: 13,
        socket: 14,
        ruleset: Some(17),
        program: 15,
    };

    fn steps() -> Vec<Step> {
        plan(&DESCRIPTORS, &[18], vec![File { mount: 16, name: c"model.gguf".to_owned() }], seccomp::sealed())
    }

    fn position(wanted: &Step) -> usize {
        let steps = steps();
        let last = steps.iter().rposition(|step| step == wanted);
        last.unwrap_or_else(|| panic!("{wanted:?} is not in {steps:?}"))
    }

    #[test]
    fn each_step_comes_when_it_can_hold() {
        let order = [
            Step::DropOpener(19),
            Step::AwaitRelease(10),
            Step::EnterCgroup(18),
            Step::EnterCgroupNamespace,
            Step::ClearGroups,
            Step::SetGroup(INSIDE_ID),
            Step::SetUser(INSIDE_ID),
            Step::PrivateMounts,
            Step::MountRoot,
            Step::AttachFile(File { mount: 16, name: c"model.gguf".to_owned() }),
            Step::EnterRoot,
            Step::SealRoot,
            Step::DropBoundingSet,
            Step::LockSecurebits,
            Step::DropCapabilities,
            Step::ForbidNewPrivileges,
            Step::EnterDomain(17),
            Step::DieWithParent,
            Step::ConfirmParent(11),
            Step::Place { from: 14, to: 3 },
            Step::CloseFrom(4),
            Step::FilterCalls(seccomp::sealed()),
            Step::Exec(15),
        ];
        assert!(order.map(|step| position(&step)).is_sorted());
    }

    #[test]
    fn nothing_follows_the_program_and_the_child_can_die_before_it_waits() {
        assert_eq!(steps().first(), Some(&Step::DieWithParent));
        assert_eq!(steps().last(), Some(&Step::Exec(15)));
    }

    #[test]
    fn descriptors_0_to_3_are_given_and_no_more() {
        let placed: Vec<_> = steps()
            .into_iter()
            .filter_map(|step| match step {
                Step::Place { from, to } => Some((from, to)),
                _ => None,
            })
            .collect();
        assert_eq!(placed, [(12, 0), (12, 1), (13, 2), (14, 3)]);
    }

    #[test]
    fn every_limit_is_set() {
        for limit in RLIMITS {
            position(&Step::Limit(limit));
        }
    }
}
