//! One `emberd serve` in a folder of its own.
//!
//! ```text
//!  start ──▶ ready ──▶ stop ─────────────────────▶ nothing is left        SIGTERM, exit 0
//!             │  ▲
//!             │  └───── start_again ──┐
//!             └──▶ kill ──────────────┘                                   SIGKILL of the supervisor
//! ```
//!
//! Several at once share a [`Turn`]. A test that ends without `stop` has failed: then what runs is ended anyhow and emberd's log is printed.

use crate::{Client, Function, Process, Raw, Role, Run, remains::Remains, tree, wait::HANG, wait::until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    sync::mpsc::{self, Receiver},
    thread,
};
use tempfile::TempDir;

/// Lines of emberd's log that a failed test shows.
const LOG_LINES_SHOWN_MAX: usize = 60;

/// How emberd is started, beside what all tests need.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The program that starts it, with its first arguments; none: it is started as it is.
    pub launcher: Vec<String>,
    /// Flags of `emberd serve`.
    pub flags: Vec<String>,
    /// Where requests are answered; none: on a free port of this machine's loopback.
    pub listen: Option<SocketAddr>,
    /// The turn of several that run at once; none: it takes its own.
    pub turn: Option<Turn>,
}

/// The machine, as long as nobody else runs an Ember on it.
#[derive(Clone, Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, never read")] Arc<File>);

/// A running Ember.
pub struct Ember {
    folder: TempDir,
    launch: Launch,
    address: SocketAddr,
    supervisor: Supervisor,
    remains: Remains,
    stopped: bool,
    _turn: Turn,
}

struct Supervisor {
    pid: i32,
    end: Receiver<std::io::Result<ExitStatus>>,
}

impl Ember {
    /// Starts emberd with its defaults.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts emberd with a configuration file.
    pub fn start_with(config: &str) -> Self {
        Self::begin(Launch::default(), config, |_| ())
    }

    /// Starts emberd in some way, with a configuration file.
    pub fn launch(launch: Launch, config: &str) -> Self {
        Self::begin(launch, config, |_| ())
    }

    /// Starts emberd in a folder that was made ready for it: below it `data` is where emberd keeps everything, and where there is a
    /// `bin/emberd`, that is started.
    pub fn prepared(config: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::begin(Launch::default(), config, prepare)
    }

    /// Starts emberd in some way, in a folder that was made ready for it as for [`Ember::prepared`].
    pub fn begin(launch: Launch, config: &str, prepare: impl FnOnce(&Path)) -> Self {
        let turn = launch.turn.clone().unwrap_or_else(Turn::take);
        let folder = TempDir::with_prefix("ember-test-").expect("a temporary folder");
        prepare(folder.path());
        let remains = Remains::before();
        fs::write(folder.path().join("emberd.toml"), config).expect("write the configuration");
        let (supervisor, address) = Supervisor::start(folder.path(), &launch);
        let mut ember = Self { folder, launch, address, supervisor, remains, stopped: false, _turn: turn };
        ember.look();
        ember
    }

    /// Starts emberd and deploys a function.
    pub fn serving(function: &Function) -> Self {
        Self::start().with(function)
    }

    /// This Ember with a function deployed by the `ember` command.
    #[track_caller]
    pub fn with(mut self, function: &Function) -> Self {
        self.deploy(function).ok();
        self.look();
        self
    }

    /// This Ember with an instance of a function up.
    #[track_caller]
    pub fn awake(mut self, function: &str) -> Self {
        self.run(&["wake", function]).ok();
        self.look();
        self
    }

    /// Runs `ember deploy` on a function.
    pub fn deploy(&self, function: &Function) -> Run {
        self.run(&["deploy", &self.manifest(function)])
    }

    /// Writes a function's manifest, and says where.
    pub fn manifest(&self, function: &Function) -> String {
        let manifest = self.folder.path().join(format!("{}.toml", function.name()));
        fs::write(&manifest, function.to_toml()).expect("write a manifest");
        manifest.display().to_string()
    }

    /// Runs `ember` on this Ember.
    pub fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// `ember` on this Ember, to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tree::program("ember"));
        command.args(arguments).env("EMBER_DATA", self.data());
        command
    }

    /// A folder for the test's own files; gone with the test.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Where emberd keeps everything.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The file of a function's snapshot.
    pub fn snapshot(&self, function: &str) -> PathBuf {
        self.data().join(format!("snapshots/{function}.snap"))
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA of its certificate.
    pub fn ca_pem(&self) -> Vec<u8> {
        fs::read(self.data().join("tls/ca.pem")).expect("the CA's certificate")
    }

    /// The admin key.
    pub fn admin_key(&self) -> String {
        fs::read_to_string(self.data().join("admin.key")).expect("the admin key").trim().to_owned()
    }

    /// A client with the admin key.
    pub fn client(&self) -> Client {
        Client::new(&format!("https://{}", self.address), &self.ca_pem(), Some(&self.admin_key()))
    }

    /// A TLS connection to speak by hand on.
    pub fn raw(&self) -> Raw {
        Raw::connect(self.address, &self.ca_pem())
    }

    /// What emberd has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("emberd.log")).unwrap_or_default()
    }

    /// The records of the requests that ended, as the ledger's segments have them: JSON up to the first tab of each line.
    /// The newest segment may be read with a later page before an earlier one; it is then read again.
    pub fn ledger(&self) -> Vec<Value> {
        until("the ledger is read without a hole", || {
            let folder = fs::read_dir(self.data().join("ledger")).into_iter().flatten().flatten();
            let mut segments: Vec<_> =
                folder.map(|file| file.path()).filter(|path| path.extension() == Some("log".as_ref())).collect();
            segments.sort();
            let text: String = segments.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let content = whole.map(|line| {
                let json = line.trim_matches('\0').split_once('\t')?.0;
                serde_json::from_str::<Value>(json).ok()
            });
            let content: Vec<Value> = content.collect::<Option<_>>()?;
            let closed = content.into_iter().filter(|content| content["stage"] == "closed");
            Some(closed.map(|mut content| content["record"].take()).collect())
        })
    }

    /// The one process in a role, once there is one.
    pub fn process(&mut self, role: Role) -> Process {
        let pid = self.supervisor.pid;
        let found = until(&format!("there is a {role:?}"), || Process::below(pid).into_iter().find(|p| p.is(role)));
        self.look();
        found
    }

    /// All processes in a role that there are now.
    pub fn processes(&mut self, role: Role) -> Vec<Process> {
        self.look();
        Process::below(self.supervisor.pid).into_iter().filter(|process| process.is(role)).collect()
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.supervisor.pid), signal).expect("the supervisor runs");
    }

    /// Stops it as an operator does, and proves that nothing is left.
    pub fn stop(mut self) {
        self.look();
        self.signal(Signal::SIGTERM);
        self.has_stopped();
    }

    /// Waits until it has stopped after a signal, and proves that nothing is left.
    pub fn has_stopped(&mut self) {
        let status = self.supervisor.wait();
        assert_eq!(status.code(), Some(0), "emberd ended with {status}");
        self.stopped = true;
        self.remains.assert_none(&self.data());
    }

    /// Kills the supervisor, as nothing but a fault does, and waits until its children have followed it.
    pub fn kill(&mut self) {
        let family = Process::below(self.supervisor.pid);
        self.look();
        self.signal(Signal::SIGKILL);
        assert_eq!(self.supervisor.wait().signal(), Some(Signal::SIGKILL as i32));
        until("the children have died with the supervisor", || family.iter().all(|p| !p.is_alive()).then_some(()));
    }

    /// Starts emberd again in the same folder.
    pub fn start_again(&mut self) {
        (self.supervisor, self.address) = Supervisor::start(self.folder.path(), &self.launch);
        self.stopped = false;
        self.look();
    }

    /// Remembers what runs, for the proof at the end.
    fn look(&mut self) {
        self.remains.saw(Process::read(self.supervisor.pid).into_iter().collect());
        self.remains.saw(Process::below(self.supervisor.pid));
    }
}

impl Drop for Ember {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        self.look();
        let _ = kill(Pid::from_raw(self.supervisor.pid), Signal::SIGTERM);
        if self.supervisor.end.recv_timeout(HANG).is_err() {
            self.remains.kill();
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN_MAX)..];
        eprintln!("emberd's log, last {} of {} lines:\n{}", shown.len(), lines.len(), shown.join("\n"));
        assert!(thread::panicking(), "a test ends with `stop`");
    }
}

impl Supervisor {
    fn start(folder: &Path, launch: &Launch) -> (Self, SocketAddr) {
        let mut child = spawn(folder, launch);
        let pid = i32::try_from(child.id()).expect("a pid");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (said, saying) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| said.send(line)));
        let (ended, end) = mpsc::channel();
        thread::spawn(move || ended.send(child.wait()));
        let supervisor = Self { pid, end };
        match saying.recv_timeout(HANG) {
            Ok(line) => (supervisor, ready(&line)),
            Err(_) => panic!("emberd does not get ready:\n{}", supervisor.give_up(folder)),
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let status = self.end.recv_timeout(HANG).expect("the supervisor ends after a signal");
        status.expect("the supervisor is our child")
    }

    fn give_up(self, folder: &Path) -> String {
        if self.end.try_recv().is_err() {
            let family = Process::below(self.pid);
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            family.iter().filter(|p| p.is_alive()).for_each(Process::kill);
        }
        fs::read_to_string(folder.join("emberd.log")).unwrap_or_default()
    }
}

fn spawn(folder: &Path, launch: &Launch) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("emberd.log")).expect("open the log");
    let own = folder.join("bin/emberd");
    let emberd = if own.exists() { own } else { tree::program("emberd") };
    let mut command = match launch.launcher.split_first() {
        None => Command::new(emberd),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(emberd);
            command
        }
    };
    command.arg("serve").arg("--config").arg(folder.join("emberd.toml")).arg("--data").arg(folder.join("data"));
    command
        .args(&launch.flags)
        .args(["--listen", &launch.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))).to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    command.spawn().expect("start emberd")
}

fn ready(line: &str) -> SocketAddr {
    let address = line.strip_prefix("ready https://").unwrap_or_else(|| panic!("emberd's first line is {line}"));
    address.parse().expect("an address and a port")
}

impl Turn {
    /// Waits until no other test on this machine runs an Ember.
    pub fn take() -> Self {
        let path = std::env::temp_dir().join("ember-tests.lock");
        let file = File::options().create(true).write(true).truncate(false).open(&path);
        let file = file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        file.lock().expect("a lock on a local file");
        Self(Arc::new(file))
    }
}
