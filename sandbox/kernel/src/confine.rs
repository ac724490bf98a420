//! The layers of a sandbox as calls of a [`Table`], for a child that becomes a restored process rather than a program.
//!
//! ```text
//!  spawn.rs   steps, walked by a child that then execs      files in its root, its program in its Landlock domain
//!  here       the same layers, as data                      an empty root, an empty domain: all it needs is mapped
//! ```
//! [`confine`] is run while what the parent has open is still open, [`seal`] last of all. A call that fails names its
//! layer ([`Table::layer`]); whether each layer holds is read from outside all the same ([`crate::audit`]), as with a
//! child that execs.
//!
//! Left out: what precedes any layer (the gate, at which the parent places the child and maps its ids:
//! [`crate::spawn::admit`]) and its descriptors, which the restore places between the two.

use crate::{
    cgroup::{Entrance, MYSELF},
    identity::{CAPABILITY_VERSION_3, SECUREBITS, capabilities_known},
    limits::RLIMITS,
    mounts::{MOUNT_POINT, ROOT_OPTIONS, inert},
    seccomp::{self, Filter},
    spec::{HOST_NAME, INSIDE_ID, LANDLOCK},
    table::Table,
};
use nix::{
    libc,
    mount::{MntFlags, MsFlags},
};
use std::{ffi::CStr, os::fd::RawFd, sync::LazyLock};

/// Adds all layers but the last two: the cgroups of `entrance`, where clone3 has not entered them, namespaces entered late, identity, root, capabilities, the Landlock domain of
/// `ruleset` if there is one, and death with the parent, which a change of identity had cleared.
pub fn confine(table: &mut Table, entrance: &Entrance, ruleset: Option<RawFd>) {
    table.begin("cgroup");
    let myself = table.put(MYSELF);
    for tasks in entrance.numbers() {
        table.call_with(libc::SYS_write, &[tasks as u64, myself, MYSELF.len() as u64], 1);
    }
    table.begin("cgroup namespace");
    table.call(libc::SYS_unshare, &[libc::CLONE_NEWCGROUP as u64]);
    table.begin("session");
    table.call(libc::SYS_setsid, &[]);
    table.begin("uts namespace");
    let name = table.put(HOST_NAME.as_bytes());
    table.call(libc::SYS_sethostname, &[name, HOST_NAME.len() as u64]);
    identity(table);
    root(table);
    capabilities(table);
    table.begin("no new privileges");
    table.call(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    if let Some(ruleset) = ruleset {
        table.begin(LANDLOCK);
        table.call(libc::SYS_landlock_restrict_self, &[ruleset as u64, 0]);
    }
    table.begin("supervision");
    table.call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64]);
    table.begin("descriptors");
}

/// Adds the last layers: limits, below which descriptors could not be placed, and the filter of a process that has started
/// ([`seccomp::sealed`]).
pub fn seal(table: &mut Table) {
    limits(table);
    static SEALED: LazyLock<Filter> = LazyLock::new(seccomp::sealed);
    filter(table, &SEALED);
}

fn filter(table: &mut Table, filter: &Filter) {
    table.begin("seccomp");
    let instructions = table.put(&filter.encode());
    // `struct sock_fprog`: a length of 16 bits, and a pointer on the next word.
    let program = [u64::from(filter.instructions()), instructions].map(u64::to_ne_bytes);
    let program = table.put(program.as_flattened());
    table.call(libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER.into(), 0, program]);
}

fn identity(table: &mut Table) {
    let id = u64::from(INSIDE_ID);
    table.begin("identity");
    table.call(libc::SYS_setgroups, &[0, 0]);
    table.call(libc::SYS_setresgid, &[id, id, id]);
    table.call(libc::SYS_setresuid, &[id, id, id]);
}

/// See [`crate::mounts`], whose root this is, without a file in it.
fn root(table: &mut Table) {
    table.begin("root");
    let [here, top, tmpfs, source] = [c".", c"/", c"tmpfs", c"ember"].map(|text| text_of(table, text));
    let (point, options) = (text_of(table, MOUNT_POINT), text_of(table, ROOT_OPTIONS));
    let private = (MsFlags::MS_REC | MsFlags::MS_PRIVATE).bits();
    let read_only = (MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | inert()).bits();
    table.call(libc::SYS_mount, &[0, top, 0, private, 0]);
    table.call(libc::SYS_mount, &[source, point, tmpfs, inert().bits(), options]);
    table.call(libc::SYS_chdir, &[point]);
    table.call(libc::SYS_pivot_root, &[here, here]);
    table.call(libc::SYS_umount2, &[here, MntFlags::MNT_DETACH.bits() as u64]);
    table.call(libc::SYS_chdir, &[top]);
    table.call(libc::SYS_mount, &[0, top, 0, read_only, 0]);
}

fn text_of(table: &mut Table, text: &CStr) -> u64 {
    table.put(text.to_bytes_with_nul())
}

fn limits(table: &mut Table) {
    table.begin("resource limits");
    for limit in RLIMITS {
        let soft_and_hard = [limit.max.to_ne_bytes(); 2];
        let soft_and_hard = table.put(soft_and_hard.as_flattened());
        table.call(libc::SYS_prlimit64, &[0, limit.resource as u64, soft_and_hard, 0]);
    }
}

fn capabilities(table: &mut Table) {
    table.begin("capabilities");
    for capability in 0..capabilities_known() {
        table.call(libc::SYS_prctl, &[libc::PR_CAPBSET_DROP as u64, capability]);
    }
    let clear = [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0];
    table.call(libc::SYS_prctl, &clear);
    table.call(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as u64, SECUREBITS as u64]);
    let header = table.put([CAPABILITY_VERSION_3, 0].map(u32::to_ne_bytes).as_flattened());
    let none = table.put(&[0; 24]);
    table.call(libc::SYS_capset, &[header, none]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit,
        cgroup::{Cgroups, Limits},
        landlock,
        pidfd::{Ended, Pid},
        socket::{send_now, stream_pair},
        spawn::{LayerError, NAMESPACES, admit},
        spec::SOCKET,
        table::Region,
    };
    use std::{
        fs,
        io::{Write, pipe},
        os::fd::AsRawFd,
        sync::atomic::{AtomicU64, Ordering},
    };

    const HOST_ID: u32 = 2_000_003_100;

    /// A child that is confined but for one layer, if any, and sealed; then looked at. What the audit found, and how the child ended.
    fn confined(name: &str, namespaces: libc::c_int, left_out: Option<&str>) -> (Result<(), LayerError>, Ended) {
        let groups = Cgroups::open(&format!("confine-{}-{name}", std::process::id())).unwrap();
        let cgroup = groups.create("one", &Limits { memory_bytes: 32 << 20, pids: 4, cpus: 1 }).unwrap();
        let ruleset = landlock::domain([]).unwrap();
        let ((gate, mut opener), (held, release)) = (pipe().unwrap(), stream_pair().unwrap());
        // An address of its own: tests run side by side.
        static NEXT: AtomicU64 = AtomicU64::new(96 << 30);
        let mut table = Table::new(NEXT.fetch_add(1 << 30, Ordering::Relaxed));
        let byte = table.put(b".");
        table.call_with(libc::SYS_read, &[gate.as_raw_fd() as u64, byte, 1], 1);
        let entrance = cgroup.entrance().unwrap();
        confine(&mut table, &entrance, Some(ruleset.as_raw_fd()));
        table.call(libc::SYS_dup2, &[held.as_raw_fd() as u64, SOCKET as u64]);
        seal(&mut table);
        if let Some(layer) = left_out {
            table.leave_out(layer);
        }
        // What the filter lets it do: wait at its socket, and end.
        table.begin("end");
        table.call_with(libc::SYS_recvfrom, &[SOCKET as u64, byte, 1], 1);
        table.call(libc::SYS_exit_group, &[7]);
        let region = Region::load(&table).unwrap();
        let mut child = region.spawn(namespaces, Some(&entrance)).unwrap();
        admit(child.pid(), HOST_ID).unwrap();
        opener.write_all(b".").unwrap();
        let looked = await_rest(child.pid()).map_or(Ok(()), |()| audit::confinement(child.pid(), HOST_ID, &cgroup));
        let _ = send_now(&release, b".");
        let ended = child.wait().unwrap();
        cgroup.remove().unwrap();
        groups.close().unwrap();
        (looked, ended)
    }

    /// Until it waits at its socket; `None` if it has ended over a call. It waits once before, at the gate.
    fn await_rest(child: Pid) -> Option<()> {
        loop {
            let file = |name| fs::read_to_string(format!("/proc/{child}/{name}")).unwrap();
            if file("status").contains("State:\tZ") {
                return None;
            }
            if file("syscall").starts_with(&format!("{} ", libc::SYS_recvfrom)) {
                return Some(());
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_child_is_confined_by_a_table_as_the_audit_wants_it() {
        assert_eq!(confined("whole", NAMESPACES, None), (Ok(()), Ended::Exit(7)));
    }

    #[test]
    fn a_layer_that_is_left_out_is_named_by_the_audit() {
        for layer in ["cgroup namespace", "capabilities", "seccomp"] {
            let (looked, _) = confined("layer", NAMESPACES, Some(layer));
            assert_eq!(looked.unwrap_err().layer, layer);
        }
        let namespaces = [
            ("ipc namespace", libc::CLONE_NEWIPC),
            ("network namespace", libc::CLONE_NEWNET),
            ("pid namespace", libc::CLONE_NEWPID),
        ];
        for (layer, flag) in namespaces {
            let (looked, _) = confined("namespace", NAMESPACES & !flag, None);
            assert_eq!(looked.unwrap_err().layer, layer);
        }
    }

    #[test]
    fn a_layer_without_which_another_cannot_be_had_ends_the_child() {
        // No filter without no_new_privs; no change of a host name or of mounts that are the host's.
        let flawed = [
            (NAMESPACES, Some("no new privileges")),
            (NAMESPACES & !libc::CLONE_NEWUTS, None),
            (NAMESPACES & !libc::CLONE_NEWNS, None),
        ];
        for (namespaces, left_out) in flawed {
            let (_, ended) = confined("flawed", namespaces, left_out);
            assert!(matches!(ended, Ended::Signal(_)), "{left_out:?}: {ended:?}");
        }
    }
}
