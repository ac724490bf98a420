//! One function that turns a [`Sandbox`] into a running child.
//!
//! The caller may have many threads, and clone3 copies only the one that calls. So in the child, between clone3 and
//! exec, nothing allocates, locks or panics: steps, strings and pointer arrays are made before, each step is a few
//! system calls, and a step that fails is reported as two numbers through a pipe that closes at exec.
//!
//! Trap: a child asks to be killed when its parent *thread* ends. Call [`spawn`] from a thread that outlives the child.
#![allow(unsafe_code)]

use crate::{
    cgroup::{Cgroup, CgroupError, Entrance, MYSELF},
    identity, landlock, limits, mounts,
    pidfd::{Ended, Pidfd},
    seccomp::{self, Start},
    spec::{self, Descriptors, File, HOST_NAME, INSIDE_ID, Step, plan},
};
use nix::{
    Result,
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        stat::Mode,
    },
    unistd::{Pid, close, pipe2, read, setsid, write},
};
use std::{
    ffi::{CStr, CString},
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// What a sandboxed process is given; it has nothing else.
#[derive(Debug)]
pub struct Sandbox<'a> {
    /// The program: a static executable, open for reading.
    pub program: BorrowedFd<'a>,
    /// Its arguments, from its name on.
    pub arguments: &'a [&'a CStr],
    /// Its environment.
    pub environment: &'a [&'a CStr],
    /// Its user and group id on the host.
    pub host_id: u32,
    /// Files at the top of its root: detached mounts (see [`mounts::detach_file`]) and their names.
    pub files: &'a [(BorrowedFd<'a>, &'a CStr)],
    /// Its descriptor 3.
    pub socket: BorrowedFd<'a>,
    /// Its standard error.
    pub stderr: BorrowedFd<'a>,
    /// Its limits.
    pub cgroup: &'a Cgroup,
    /// Whether it may run without Landlock where the kernel has none.
    pub may_lack_landlock: bool,
}

/// The layer that could not be set up, and why. Nothing runs then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{layer}: {reason}")]
pub struct LayerError {
    /// The layer's name.
    pub layer: &'static str,
    /// What was attempted, and what the kernel said.
    pub reason: String,
}

impl LayerError {
    /// A layer, what was attempted, and what was said to it.
    pub fn new(layer: &'static str, attempted: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self { layer, reason: format!("{attempted}: {error}") }
    }
}

/// A sandboxed process. Dropping it kills it and takes its zombie away.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Pidfd,
    ended: Option<Ended>,
}

impl Child {
    /// Its number on the host; its own until [`Child::wait`].
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it, and with it all of its pid namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self) -> Result<()> {
        self.pidfd.kill()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> Result<Ended> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        let ended = self.pidfd.wait()?;
        self.ended = Some(ended);
        Ok(ended)
    }

    /// A second handle, to kill it from another thread.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn killer(&self) -> std::io::Result<Pidfd> {
        Ok(Pidfd::from_owned(self.pidfd.as_fd().try_clone_to_owned()?))
    }
}

impl AsFd for Child {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Only the kernel could refuse, and there is nobody left to tell: the warden's sweep is the next guard.
        if self.ended.is_none() && self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}

/// Starts a sandboxed process and returns once its program runs.
///
/// # Errors
/// The layer that failed; the child is then gone.
pub fn spawn(sandbox: &Sandbox<'_>) -> std::result::Result<Child, LayerError> {
    let descriptors = |error| LayerError::new("descriptors", "duplicate", error);
    let ruleset = ruleset(sandbox).map_err(|error| LayerError::new(spec::LANDLOCK, "make a ruleset", error))?;
    let own = Own::prepare(sandbox, ruleset.as_ref()).map_err(descriptors)?;
    let image = Image::new(sandbox);
    let (gate_in, gate) = pipe2(OFlag::O_CLOEXEC).map_err(descriptors)?;
    let (report, report_in) = pipe2(OFlag::O_CLOEXEC).map_err(descriptors)?;
    let (gate_in, report_in) = (raise(gate_in).map_err(descriptors)?, raise(report_in).map_err(descriptors)?);
    let numbers = own.numbers(&gate_in, &gate, &report_in);
    let entrance = sandbox.cgroup.entrance().map_err(cgroup)?;
    let steps = plan(&numbers, &entrance.numbers(), own.files(), seccomp::starting(&image.start(&numbers)));

    let child = clone_child(&entrance, &steps, &image, report_in.as_raw_fd())
        .map_err(|error| LayerError::new("namespaces", "clone3", error))?;
    drop((gate_in, report_in));
    admit(child.pid, sandbox.host_id)?;
    // An EPIPE here means that the child has failed a step already; the report says which.
    let _ = write(&gate, b".");
    await_exec(&report, &steps)?;
    Ok(child)
}

/// What the parent has to do for a child that waits at its gate: ids, and its place when memory runs out.
///
/// # Errors
/// The layer that failed.
pub fn admit(child: Pid, host_id: u32) -> std::result::Result<(), LayerError> {
    identity::write_maps(child, INSIDE_ID, host_id)
        .map_err(|error| LayerError { layer: "user namespace", reason: error.to_string() })?;
    let path = format!("/proc/{child}/oom_score_adj");
    fs::write(&path, OOM_SCORE).map_err(|error| LayerError::new("supervision", path, error))
}

/// Where memory of the whole host runs out, a runner goes before anything else.
const OOM_SCORE: &str = "1000";

fn cgroup(error: CgroupError) -> LayerError {
    LayerError { layer: "cgroup", reason: error.to_string() }
}

fn await_exec(report: &OwnedFd, steps: &[Step]) -> std::result::Result<(), LayerError> {
    let mut failure = [0; 8];
    let length = loop {
        match read(report, &mut failure) {
            Err(Errno::EINTR) => {}
            other => break other.map_err(|error| LayerError::new("supervision", "read the child's report", error))?,
        }
    };
    if length == 0 {
        return Ok(());
    }
    let [a, b, c, d, e, f, g, h] = failure;
    let (index, errno) = (u32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]));
    let step = &steps[(index as usize).min(steps.len() - 1)];
    Err(LayerError::new(step.layer(), format_args!("{step:?}"), Errno::from_raw(errno)))
}

/// What the sandbox may open: its files, and once its program.
fn ruleset(sandbox: &Sandbox<'_>) -> Result<Option<OwnedFd>> {
    let files = sandbox.files.iter().map(|(mount, _)| (*mount, landlock::Use::Read));
    landlock::domain_if_there_is(files.chain([(sandbox.program, landlock::Use::Execute)]), sandbox.may_lack_landlock)
}

/// Descriptors of the sandbox, duplicated above those that the child will overwrite.
struct Own {
    null: OwnedFd,
    stderr: OwnedFd,
    socket: OwnedFd,
    ruleset: Option<OwnedFd>,
    program: OwnedFd,
    files: Vec<(OwnedFd, CString)>,
}

impl Own {
    fn prepare(sandbox: &Sandbox<'_>, ruleset: Option<&OwnedFd>) -> Result<Self> {
        let files = sandbox.files.iter().map(|(mount, name)| Ok((raise(mount)?, (*name).to_owned())));
        Ok(Self {
            null: raise(open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)?,
            stderr: raise(sandbox.stderr)?,
            socket: raise(sandbox.socket)?,
            ruleset: ruleset.map(raise).transpose()?,
            program: raise(sandbox.program)?,
            files: files.collect::<Result<_>>()?,
        })
    }

    fn numbers(&self, gate: &OwnedFd, opener: &OwnedFd, report: &OwnedFd) -> Descriptors {
        Descriptors {
            gate: gate.as_raw_fd(),
            opener: opener.as_raw_fd(),
            report: report.as_raw_fd(),
            null: self.null.as_raw_fd(),
            stderr: self.stderr.as_raw_fd(),
            socket: self.socket.as_raw_fd(),
            ruleset: self.ruleset.as_ref().map(AsRawFd::as_raw_fd),
            program: self.program.as_raw_fd(),
        }
    }

    fn files(&self) -> Vec<File> {
        self.files.iter().map(|(mount, name)| File { mount: mount.as_raw_fd(), name: name.clone() }).collect()
    }
}

fn raise(descriptor: impl AsFd) -> Result<OwnedFd> {
    let raised = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(spec::DESCRIPTORS_OWN))?;
    // SAFETY: fcntl gives a raw number. The kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raised) })
}

/// Arguments and environment as execveat takes them: arrays of pointers that end with null.
struct Image<'a> {
    path: *const libc::c_char,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Image<'a> {
    fn new(sandbox: &Sandbox<'a>) -> Self {
        let pointers = |strings: &[&CStr]| {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (arguments, environment) = (pointers(sandbox.arguments), pointers(sandbox.environment));
        Self { path: c"".as_ptr(), arguments, environment, strings: std::marker::PhantomData }
    }

    /// The exec that the child will make with it.
    fn start(&self, descriptors: &Descriptors) -> Start {
        let Descriptors { program, report, .. } = *descriptors;
        let image = [self.path as u64, self.arguments.as_ptr() as u64, self.environment.as_ptr() as u64];
        Start { program, report, image }
    }
}

/// The namespaces that a sandbox is made with; that of cgroups is entered later.
pub const NAMESPACES: libc::c_int =
    libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS | NETWORK | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// That of the network among them: to be left out by a thread that stands in one in which nobody has been.
pub const NETWORK: libc::c_int = libc::CLONE_NEWNET;
/// `CLONE_CLEAR_SIGHAND` of `linux/sched.h`, which does not fit the C library's `int`.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

fn clone_child(entrance: &Entrance, steps: &[Step], image: &Image<'_>, report: RawFd) -> Result<Child> {
    // SAFETY: in the child only `child` runs, which never returns and keeps to calls that are safe after a fork.
    match unsafe { fork_into(NAMESPACES, entrance.folder.as_ref().map(AsFd::as_fd)) }? {
        Some(child) => Ok(child),
        None => child(steps, image, report),
    }
}

/// Makes a child in new namespaces that ends at once: the throwaway of a probe.
pub(crate) fn fork_and_end(namespaces: libc::c_int) -> Result<Ended> {
    // SAFETY: in the child only _exit runs.
    match unsafe { fork_into(namespaces, None) }? {
        Some(mut child) => child.wait(),
        // SAFETY: safe after a fork; it runs no destructors, which belong to the parent.
        None => unsafe { libc::_exit(0) },
    }
}

/// A copy of this process in new namespaces, and in the v2 cgroup of this folder; `None` in the copy.
///
/// # Safety
/// The copy has only the calling thread. It must not return from its caller's frame, and may only make calls that are
/// safe after a fork of many threads: no allocation, no lock, no panic.
pub(crate) unsafe fn fork_into(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let arguments = libc::clone_args {
        flags: (namespaces | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND | into_cgroup,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |folder| folder.as_raw_fd() as u64),
    };
    // SAFETY: nix's clone has no flags of 64 bits and no pidfd. Without CLONE_VM the child gets a copy of our memory and
    // goes on from here on a copy of this stack, so `stack` is 0. The arguments outlive the call, their size is their own.
    match Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) })? {
        0 => Ok(None),
        pid => {
            // SAFETY: with CLONE_PIDFD the kernel has stored a descriptor that it made for us.
            let pidfd = Pidfd::from_owned(unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Some(Child { pid: Pid::from_raw(pid as libc::pid_t), pidfd, ended: None }))
        }
    }
}

/// The child's whole life before its program. See the header for what it must not do.
fn child(steps: &[Step], image: &Image<'_>, report: RawFd) -> ! {
    let mut index: u32 = 0;
    for step in steps {
        if let Err(error) = run(step, image) {
            fail(report, index, error);
        }
        index = index.wrapping_add(1);
    }
    // The last step is exec, which returns only to fail; without one there is nothing to run.
    fail(report, index, Errno::ENOEXEC)
}

fn fail(report: RawFd, index: u32, error: Errno) -> ! {
    let failure = [index, error as u32];
    // SAFETY: write and _exit are safe after a fork, where std's are not promised to be. The array outlives the call,
    // and its length is its own; _exit runs no destructors, which belong to the parent.
    unsafe {
        libc::write(report, failure.as_ptr().cast(), size_of_val(&failure));
        libc::_exit(127)
    }
}

fn run(step: &Step, image: &Image<'_>) -> Result<()> {
    match step {
        Step::DieWithParent => set_pdeathsig(Signal::SIGKILL),
        Step::DropOpener(opener) => close(*opener),
        Step::AwaitRelease(gate) => await_release(*gate),
        Step::EnterCgroup(tasks) => enter_cgroup(*tasks),
        Step::EnterCgroupNamespace => unshare(CloneFlags::CLONE_NEWCGROUP),
        Step::NewSession => setsid().map(drop),
        Step::ClearSignalMask => sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None),
        Step::NameHost => nix::unistd::sethostname(HOST_NAME),
        Step::ClearGroups => identity::clear_groups(),
        Step::SetGroup(id) => identity::set_group(*id),
        Step::SetUser(id) => identity::set_user(*id),
        Step::PrivateMounts => mounts::make_private(),
        Step::MountRoot => mounts::mount_root(),
        Step::AttachFile(File { mount, name }) => mounts::attach_file(*mount, name),
        Step::EnterRoot => mounts::enter_root(),
        Step::SealRoot => mounts::seal_root(),
        Step::Limit(limit) => limits::apply(*limit),
        Step::DropBoundingSet => identity::drop_bounding_set(),
        Step::ClearAmbient => identity::clear_ambient(),
        Step::LockSecurebits => identity::lock_securebits(),
        Step::DropCapabilities => identity::drop_capabilities(),
        Step::ForbidNewPrivileges => identity::forbid_new_privileges(),
        Step::EnterDomain(ruleset) => landlock::enter(*ruleset),
        Step::ConfirmParent(report) => confirm_parent(*report),
        Step::Place { from, to } => place(*from, *to),
        Step::CloseFrom(first) => close_from(*first),
        Step::FilterCalls(filter) => filter.install(),
        Step::Exec(program) => exec(*program, image),
    }
}

fn borrow(fd: &RawFd) -> BorrowedFd<'_> {
    // SAFETY: the plan holds numbers, since the child is another process. Its descriptors are copies of those that the
    // parent held open across clone3, and none is used once its step has closed it.
    unsafe { BorrowedFd::borrow_raw(*fd) }
}

fn await_release(gate: RawFd) -> Result<()> {
    let mut byte = [0];
    match read(borrow(&gate), &mut byte)? {
        0 => Err(Errno::EPIPE),
        _ => Ok(()),
    }
}

fn enter_cgroup(tasks: RawFd) -> Result<()> {
    write(borrow(&tasks), MYSELF).map(drop)
}

fn confirm_parent(report: RawFd) -> Result<()> {
    let mut pipe = [PollFd::new(borrow(&report), PollFlags::empty())];
    poll(&mut pipe, PollTimeout::ZERO)?;
    match pipe[0].revents() {
        Some(events) if events.contains(PollFlags::POLLERR) => Err(Errno::EPIPE),
        _ => Ok(()),
    }
}

fn place(from: RawFd, to: RawFd) -> Result<()> {
    // SAFETY: nix's dup2 wants ownership of a target that need not be open. In the child, alone with its descriptors,
    // overwriting a number below DESCRIPTORS_KEPT hides nothing that is still needed.
    Errno::result(unsafe { libc::dup2(from, to) }).map(drop)
}

fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: nix has no close_range. It takes numbers; with CLOEXEC nothing is closed before exec.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(marked).map(drop)
}

fn exec(program: RawFd, image: &Image<'_>) -> Result<()> {
    // SAFETY: nix's execveat allocates. Both arrays end with null and point to C strings that outlive the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            image.path,
            image.arguments.as_ptr(),
            image.environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(failed).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cgroup::{Cgroups, Limits},
        socket::stream_pair,
    };
    use std::{io::Write, os::unix::fs::PermissionsExt};

    /// Spawns a file that holds these bytes, as root alone can.
    fn spawned(program: &[u8], mode: u32) -> LayerError {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(program).unwrap();
        file.as_file().set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        let program = fs::File::open(file.path()).unwrap();
        // A file that is open for writing cannot be executed.
        let _path = file.into_temp_path();
        let groups = Cgroups::open(&format!("spawn-{}-{mode}", std::process::id())).unwrap();
        let cgroup = groups.create("one", &Limits { memory_bytes: 32 << 20, pids: 4, cpus: 1 }).unwrap();
        let (socket, stderr) = stream_pair().unwrap();
        let failed = spawn(&Sandbox {
            program: program.as_fd(),
            arguments: &[c"x"],
            environment: &[],
            host_id: 2_000_002_000,
            files: &[],
            socket: socket.as_fd(),
            stderr: stderr.as_fd(),
            cgroup: &cgroup,
            may_lack_landlock: false,
        });
        let failed = failed.map(|child| child.pid()).unwrap_err();
        cgroup.remove().unwrap();
        groups.close().unwrap();
        failed
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_told_through_the_filter() {
        for (bytes, mode, reason) in [(&b"no program"[..], 0o755, "ENOEXEC"), (b"\x7fELF", 0o644, "EACCES")] {
            let failed = spawned(bytes, mode);
            assert_eq!(failed.layer, "program", "{failed}");
            assert!(failed.reason.contains(reason), "{failed}");
        }
    }
}
