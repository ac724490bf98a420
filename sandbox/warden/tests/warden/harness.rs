//! A real warden in a process of its own, and the server's side of its socket. Needs root.

use appliance_types::{ModelDigest, Task, Tier};
use sandbox_kernel::{
    cgroup::Hierarchy,
    socket::{packet_pair, receive_packet, send_packet},
};
use sandbox_wire::{
    frame::{Decoder, FROM_RUNNER_BYTES_MAX, TO_RUNNER_BYTES_MAX, decode_packet, encode, encode_packet},
    runner::{FromRunner, ToRunner},
    warden::{
        Awake, Call, ExitCause, InstanceId, Message, ModelEntry, PACKET_BYTES_MAX, Reply, Request, RunnerSpec,
        WardenError,
    },
};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The smallest GGUF: no pairs, no tensors.
pub(crate) const MODEL: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

type Answered = (Result<Reply, WardenError>, Option<OwnedFd>);

pub(crate) struct Warden {
    process: Child,
    socket: Option<OwnedFd>,
    folder: tempfile::TempDir,
    tag: String,
    crashed: bool,
    next: u64,
    answered: HashMap<u64, Answered>,
    exited: HashMap<InstanceId, ExitCause>,
    retired: Vec<(String, String)>,
}

impl Warden {
    pub(crate) fn start() -> Self {
        Self::with_load_timeout(60_000)
    }

    pub(crate) fn with_load_timeout(timeout_ms: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("test-{}-{number}", std::process::id());
        Self::begin(tempfile::tempdir().unwrap(), tag, timeout_ms)
    }

    fn begin(folder: tempfile::TempDir, tag: String, timeout_ms: u64) -> Self {
        let (ours, theirs) = packet_pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sandbox-probe"))
            .args(["warden".as_ref(), folder.path().join("models").as_os_str(), tag.as_ref()])
            .arg(timeout_ms.to_string())
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let (answered, exited, retired) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { process, socket: Some(ours), folder, tag, crashed: false, next: 0, answered, exited, retired }
    }

    /// Kills the warden as a crash would, and starts the next on what it left.
    pub(crate) fn crash_and_restart(mut self) -> Self {
        self.crashed = true;
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.socket = None;
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::begin(folder, self.tag.clone(), 60_000)
    }

    pub(crate) fn send(&mut self, call: Call, descriptor: Option<&File>) -> u64 {
        self.next += 1;
        let packet = encode_packet(&Request { id: self.next, call }, PACKET_BYTES_MAX).unwrap();
        send_packet(self.socket.as_ref().unwrap(), &packet, descriptor.map(AsFd::as_fd)).unwrap();
        self.next
    }

    fn receive(&mut self) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let packet = receive_packet(self.socket.as_ref().unwrap(), &mut buffer).unwrap().expect("the warden is up");
        match decode_packet(&buffer[..packet.length]).unwrap() {
            Message::Reply { id, result } => assert!(self.answered.insert(id, (result, packet.descriptor)).is_none()),
            Message::Exited { instance, cause } => assert!(self.exited.insert(instance, cause).is_none()),
            Message::Gauge { .. } | Message::Lived { .. } => {}
            Message::SnapshotRetired { function, reason } => self.retired.push((function.to_string(), reason)),
        }
    }

    /// Waits for the snapshot that a cold wake leaves behind, and until nobody is at work on it: no instance is up.
    pub(crate) fn settle(&mut self) {
        self.until(|warden| warden.snapshot().exists() && !warden.is_at_work());
    }

    fn is_at_work(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().flatten();
        let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.into_iter().any(|name| name.starts_with("snapshot") || name.starts_with("instance"))
    }

    /// Waits for nothing to be left of any instance, spares too.
    pub(crate) fn left_nothing(&mut self) {
        self.call(Call::Store { function: "probe".parse().unwrap() }).unwrap();
        self.until(|warden| warden.groups() == 0 && warden.children().is_empty());
    }

    /// Waits for what comes without being told, such as the end of a spare.
    pub(crate) fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{} groups, children {:?}", self.groups(), self.children());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn answer(&mut self, id: u64) -> Answered {
        while !self.answered.contains_key(&id) {
            self.receive();
        }
        self.answered.remove(&id).unwrap()
    }

    pub(crate) fn exited(&mut self, instance: InstanceId) -> ExitCause {
        while !self.exited.contains_key(&instance) {
            self.receive();
        }
        self.exited.remove(&instance).unwrap()
    }

    pub(crate) fn call(&mut self, call: Call) -> Result<Reply, WardenError> {
        let id = self.send(call, None);
        self.answer(id).0
    }

    pub(crate) fn add(&mut self, bytes: &[u8], expected: Option<ModelDigest>) -> Result<ModelEntry, WardenError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let id = self.send(Call::ModelAdd { expected }, Some(&file));
        match self.answer(id).0? {
            Reply::ModelAdded(entry) => Ok(entry),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn models(&mut self) -> Vec<ModelEntry> {
        match self.call(Call::Models).unwrap() {
            Reply::Models(models) => models,
            other => panic!("{other:?}"),
        }
    }

    /// Adds the smallest model and wakes an instance on it.
    pub(crate) fn wake(&mut self) -> Runner {
        self.try_wake("", 64 << 20).unwrap()
    }

    pub(crate) fn try_wake(&mut self, system: &str, memory_bytes: u64) -> Result<Runner, WardenError> {
        let digest = self.add(MODEL, None)?.digest;
        let id = self.send(Call::Wake(spec(digest, system, memory_bytes)), None);
        self.woken(id)
    }

    /// The same where there is no snapshot.
    pub(crate) fn wake_cold(&mut self) -> Runner {
        let function = "probe".parse().unwrap();
        assert_eq!(self.call(Call::SnapshotRemove { function }), Ok(Reply::SnapshotRemoved));
        let runner = self.wake();
        assert_eq!(runner.awake.tier, Tier::Cold);
        runner
    }

    /// Wakes and stops one instance where there is no snapshot, and leaves none; how long the wake took, µs.
    pub(crate) fn round_cold(&mut self) -> u64 {
        let runner = self.wake_cold();
        assert_eq!(self.stop(runner.awake.instance), Ok(Reply::Stopped));
        assert_eq!(self.exited(runner.awake.instance), ExitCause::Stopped);
        self.call(Call::SnapshotRemove { function: "probe".parse().unwrap() }).unwrap();
        self.left_nothing();
        runner.awake.wake_us
    }

    /// Snapshots that the warden said are no more, since the last call.
    pub(crate) fn retired(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.retired)
    }

    /// Where snapshots are.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.folder.path().join("models/snapshots")
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.snapshots().join("probe.snap")
    }

    pub(crate) fn woken(&mut self, id: u64) -> Result<Runner, WardenError> {
        let (result, descriptor) = self.answer(id);
        match result? {
            Reply::Awake(awake) => Ok(Runner::new(awake, descriptor.expect("its socket comes along"))),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn stop(&mut self, instance: InstanceId) -> Result<Reply, WardenError> {
        self.call(Call::Stop { instance })
    }

    /// Folders of this warden's cgroups, one for each controller.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let roots = match Hierarchy::of_host().unwrap() {
            Hierarchy::V2 { root } => vec![root],
            Hierarchy::V1 { memory, pids, cpu, cpuacct } => vec![memory, pids, cpu, cpuacct],
        };
        roots.into_iter().map(|root| root.join(format!("ember-{}", self.tag))).filter(|path| path.exists()).collect()
    }

    /// How many groups of instances there are.
    pub(crate) fn groups(&self) -> usize {
        let leaves = |folder: PathBuf| fs::read_dir(folder).unwrap().flatten().filter(|e| e.path().is_dir()).count();
        self.cgroups().into_iter().map(leaves).sum()
    }

    /// The host's number of an instance's process.
    pub(crate) fn pid(&self, instance: InstanceId) -> i32 {
        let procs = self.cgroups()[0].join(format!("probe-{instance}/cgroup.procs"));
        fs::read_to_string(procs).unwrap().trim().parse().expect("one process")
    }

    /// Descriptors that the warden has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    pub(crate) fn children(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect()
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let status = Command::new("/bin/kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
        self.process.wait().unwrap()
    }

    pub(crate) fn hang_up(&mut self) -> ExitStatus {
        self.socket = None;
        self.process.wait().unwrap()
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.process.wait();
        if !std::thread::panicking() && !self.crashed {
            assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "the warden leaves no cgroup");
        }
    }
}

pub(crate) fn spec(model: ModelDigest, system: &str, memory_bytes: u64) -> RunnerSpec {
    RunnerSpec {
        function: "probe".parse().unwrap(),
        model,
        task: Task::Chat,
        memory_bytes,
        reserved_bytes: None,
        cpus: 2,
        context_tokens: 64,
        slots: 1,
        system: Some(system.to_owned()).filter(|system| !system.is_empty()),
    }
}

/// An instance, and the server's end of its socket: when it is dropped the stand-in ends by itself.
pub(crate) struct Runner {
    pub(crate) awake: Awake,
    socket: UnixStream,
    decoder: Decoder,
}

impl Runner {
    fn new(awake: Awake, socket: OwnedFd) -> Self {
        Self { awake, socket: socket.into(), decoder: Decoder::new(FROM_RUNNER_BYTES_MAX) }
    }

    /// Has the stand-in try something; `None` when it has ended, or ends over it.
    pub(crate) fn ask(&mut self, order: &str) -> Option<String> {
        let message = ToRunner::Tokenize { id: 1, text: order.to_owned(), add_special: false, parse_special: false };
        let mut frame = Vec::new();
        encode(&message, TO_RUNNER_BYTES_MAX, &mut frame).unwrap();
        self.socket.write_all(&frame).ok()?;
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_message().unwrap() {
                Some(FromRunner::Rendered { text, .. }) => return Some(text),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            match self.socket.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(bytes) => self.decoder.push(&buffer[..bytes]),
            }
        }
    }
}
