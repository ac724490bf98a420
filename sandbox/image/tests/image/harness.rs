//! A subject to capture, and what it takes to restore it.

use appliance_types::FunctionName;
use sandbox_image::{
    Ahead, CaptureError, Data, Device, Files, Held, NoDevice, Parked, Restore, RestoreError, Restored, Step, park,
};
use sandbox_kernel::{
    pidfd::{Ended, Pid},
    spawn::Child,
    table::Table,
};
use sandbox_snapshot::image::{Identity, Image};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    time::Duration,
};

/// New pid, mount, IPC, host name and network namespaces: all that need no id maps.
pub(crate) const NAMESPACES: i32 = nix::libc::CLONE_NEWPID
    | nix::libc::CLONE_NEWNS
    | nix::libc::CLONE_NEWIPC
    | nix::libc::CLONE_NEWUTS
    | nix::libc::CLONE_NEWNET;

/// All that a subject can be asked for, once.
pub(crate) const COMMANDS: [&str; 8] = ["errno", "count", "signal", "allocate", "thread", "model", "count", "clock"];

/// The subject.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sandbox-subject");

/// One end of a conversation with a subject.
pub(crate) struct Line(BufReader<UnixStream>);

impl Line {
    /// A conversation, and the subject's end of it.
    pub(crate) fn new() -> (Self, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self(BufReader::new(ours)), theirs.into())
    }

    /// Asks for one thing, and waits for the answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Asks for everything.
    pub(crate) fn ask_all(&mut self) -> Vec<String> {
        COMMANDS.iter().map(|command| self.ask(command)).collect()
    }
}

/// A subject that was started the ordinary way, and its files.
pub(crate) struct Subject {
    child: std::process::Child,
    pub(crate) line: Line,
    pub(crate) program: File,
    pub(crate) model: File,
}

impl Subject {
    /// Starts one and has it do everything once. Its model has no name afterwards, so that a test that is killed leaves none.
    pub(crate) fn start() -> Self {
        let mut model = tempfile::NamedTempFile::new().unwrap();
        model.write_all(&(0..(3_u32 << 20)).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        let (line, theirs) = Line::new();
        let mut command = Command::new(PROGRAM);
        command.arg(model.path()).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let (program, model) = (File::open(PROGRAM).unwrap(), model.as_file().try_clone().unwrap());
        let mut subject = Self { child, line, program, model };
        subject.line.ask_all();
        subject.line.ask("fail");
        subject
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn capture(&self) -> Result<Held<'static>, CaptureError> {
        self.capture_from(&NoDevice)
    }

    /// Captures what it is now, off a device. Its identity does not name that.
    pub(crate) fn capture_from<'a>(&self, device: &'a dyn Device) -> Result<Held<'a>, CaptureError> {
        capture(self.pid(), &self.program, &self.model, device)
    }

    /// Parks what it is now; it goes on.
    pub(crate) fn park(&self) -> Parked {
        park(&self.capture().unwrap(), &()).unwrap()
    }

    /// Ends it; its files remain.
    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Restores an image of it in a conversation of its own.
    pub(crate) fn restore(&self, image: &Image, data: Data<'_>) -> Result<Life, RestoreError> {
        self.restore_as(image, data, &How::default())
    }

    /// As [`Subject::restore`], into namespaces and with a seal.
    pub(crate) fn restore_as(&self, image: &Image, data: Data<'_>, how: &How<'_>) -> Result<Life, RestoreError> {
        let (line, theirs) = Line::new();
        let null = File::options().write(true).open("/dev/null").unwrap();
        let descriptors = [(theirs.as_fd(), 0), (null.as_fd(), 1), (null.as_fd(), 2)];
        let restore = Restore {
            image,
            program: self.program.as_fd(),
            model: self.model.as_fd(),
            data,
            device: how.device,
            raw: &[],
            descriptors: &descriptors,
            namespaces: how.namespaces,
            ahead: how.ahead,
            entrance: None,
            admit: &|_| Ok(()),
            confine: &|_| {},
            seal: how.seal,
        };
        let Restored { child, steps } = restore.run()?;
        Ok(Life { child, line, steps })
    }
}

/// How a subject is restored.
pub(crate) struct How<'a> {
    pub(crate) namespaces: i32,
    pub(crate) seal: &'a dyn Fn(&mut Table),
    pub(crate) device: &'a dyn Device,
    pub(crate) ahead: Option<Ahead<'a>>,
}

impl Default for How<'_> {
    fn default() -> Self {
        Self { namespaces: NAMESPACES, seal: &|_| {}, device: &NoDevice, ahead: None }
    }
}

/// A restored subject.
pub(crate) struct Life {
    pub(crate) child: Child,
    pub(crate) line: Line,
    pub(crate) steps: Vec<(Step, Duration)>,
}

impl Life {
    /// Ends it by closing its conversation, and sees that it ended well.
    pub(crate) fn end(mut self) {
        drop(self.line);
        assert_eq!(self.child.wait(), Ok(Ended::Exit(0)));
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn capture<'a>(
    pid: Pid,
    program: &File,
    model: &File,
    device: &'a dyn Device,
) -> Result<Held<'a>, CaptureError> {
    Held::capture(pid, identity(), &Files { program, model }, device)
}

fn identity() -> Identity {
    Identity {
        runner_build: [1; 32],
        kernel_release: "any".to_owned(),
        cpu_features: vec![2],
        model: "00".repeat(32).parse().unwrap(),
        manifest: [3; 32],
        function: "subject".parse::<FunctionName>().unwrap(),
        accelerators: Vec::new(),
    }
}
