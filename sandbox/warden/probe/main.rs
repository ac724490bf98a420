//! `sandbox-probe`: parts of the tests that need programs of their own.
//!
//! Without arguments it stands in for a runner: it speaks the runner's protocol and tries, from inside its sandbox, what
//! it is told to try. As `sandbox-probe warden MODELS TAG LOAD_TIMEOUT_MS` it is a warden on standard input, with itself as
//! the runner. As `sandbox-probe try ESCAPE` it tries a way out where there is no sandbox. As `/init` of an image it is emberd,
//! but for `serve`: there the warden's tests run, so that they find the appliance's kernel and what PID 1 made of it; where the
//! image has none, PID 1 is frozen, as by a kernel that hangs.
//!
//! The stand-in lives by the runner's filter, so it keeps to calls that the runner makes: no `fs::read`, which asks for a
//! file's status, and its socket is not duplicated.

use sandbox_kernel::{escape, memory::host_bytes, socket::inherited};
use sandbox_warden::WardenConfig;
use sandbox_wire::{
    frame::{Decoder, FROM_RUNNER_BYTES_MAX, TO_RUNNER_BYTES_MAX, encode},
    runner::{FinishReason, Finished, FromRunner, MODEL_PATH, ModelInfo, ToRunner},
};
use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Where an image has emberd and the warden's tests, which have no folder but this one for programs of their own.
const EMBERD: &str = "/emberd";
const TESTS: &str = "/warden-tests";
const TESTS_FOLDER: &str = "/";
/// Those that are for an appliance.
const TESTS_ARGUMENTS: [&str; 3] = ["--test-threads=1", "--nocapture", "no_way_out_gets_through"];

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let is_init = arguments.next().is_some_and(|name| name == "/init");
    let arguments: Vec<String> = arguments.collect();
    let outcome = match &*arguments {
        [role, ..] if is_init && role == "serve" && !Path::new(TESTS).exists() => freeze_init(),
        [role, ..] if is_init && role == "serve" => {
            become_program(Command::new(TESTS).args(TESTS_ARGUMENTS).env("TMPDIR", TESTS_FOLDER))
        }
        arguments if is_init => become_program(Command::new(EMBERD).args(arguments)),
        [] => Probe::serve(),
        [role, models, tag, timeout_ms] if role == "warden" => warden(models, tag, timeout_ms),
        [role, escape] if role == "try" => try_outside(escape),
        _ => Err("it takes no arguments, or `warden MODELS TAG LOAD_TIMEOUT_MS`, or `try ESCAPE`".into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sandbox-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn warden(models: &str, tag: &str, timeout_ms: &str) -> Result<ExitCode, Box<dyn Error>> {
    // A file of its own: the kernel refuses to give a process the program that it already runs (`PR_SET_MM`).
    let runner = Path::new(models).with_file_name("runner");
    if !runner.exists() {
        fs::copy(std::env::current_exe()?, &runner)?;
    }
    let (models, snapshots) = (PathBuf::from(models), Path::new(models).join("snapshots"));
    let mut config = WardenConfig::new(models, snapshots, runner, tag.to_owned(), 2, host_bytes()?);
    config.load_timeout = Duration::from_millis(timeout_ms.parse()?);
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    sandbox_warden::run(config, socket)?;
    Ok(ExitCode::SUCCESS)
}

/// By the kernel's own means, which no process withstands.
fn freeze_init() -> Result<ExitCode, Box<dyn Error>> {
    let frozen = Path::new("/sys/fs/cgroup/frozen");
    fs::create_dir(frozen)?;
    fs::write(frozen.join("cgroup.procs"), "1")?;
    fs::write(frozen.join("cgroup.freeze"), "1")?;
    loop {
        thread::park();
    }
}

fn become_program(command: &mut Command) -> Result<ExitCode, Box<dyn Error>> {
    Err(command.exec().into())
}

fn try_outside(name: &str) -> Result<ExitCode, Box<dyn Error>> {
    escape::named(name).ok_or("no such way out")?.attempt()?;
    Ok(ExitCode::SUCCESS)
}

struct Probe {
    socket: UnixStream,
    decoder: Decoder,
    kept: Option<File>,
    weights: Vec<u64>,
    /// Ends at the first request for text.
    brittle: bool,
    /// Answers no request for text.
    drowsy: bool,
}

impl Probe {
    fn serve() -> Result<ExitCode, Box<dyn Error>> {
        let mut probe = Self {
            socket: UnixStream::from(inherited()?),
            decoder: Decoder::new(TO_RUNNER_BYTES_MAX),
            kept: None,
            weights: Vec::new(),
            brittle: false,
            drowsy: false,
        };
        while let Some(message) = probe.receive()? {
            match message {
                ToRunner::Load(load) => probe.load(load.system.as_deref().unwrap_or(""))?,
                // Any message that carries a text will do for an order.
                ToRunner::Tokenize { id, text, .. } if text == "sum" => {
                    let text = sum_of(&probe.weights);
                    probe.send(&FromRunner::Rendered { id, text })?;
                }
                ToRunner::Tokenize { id, text, .. } => match carry_out(&text) {
                    Done::Said(text) => probe.send(&FromRunner::Rendered { id, text })?,
                    Done::Exit(code) => return Ok(ExitCode::from(code)),
                },
                ToRunner::Threads { count } => probe.send(&FromRunner::Threads { count })?,
                ToRunner::Generate { .. } if probe.brittle => std::process::abort(),
                ToRunner::Generate { .. } if probe.drowsy => {}
                ToRunner::Generate { id, .. } => probe.tried(id)?,
                other => return Err(format!("unexpected {other:?}").into()),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn receive(&mut self) -> Result<Option<ToRunner>, Box<dyn Error>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.socket.read(&mut buffer)? {
                0 => return Ok(None),
                bytes => self.decoder.push(&buffer[..bytes]),
            }
        }
    }

    fn send(&mut self, message: &FromRunner) -> Result<(), Box<dyn Error>> {
        let mut frame = Vec::new();
        encode(message, FROM_RUNNER_BYTES_MAX, &mut frame)?;
        Ok(self.socket.write_all(&frame)?)
    }

    fn tried(&mut self, id: u64) -> Result<(), Box<dyn Error>> {
        let finished = Finished {
            reason: FinishReason::Stop,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            prefill_us: 0,
            decode_us: 0,
        };
        self.send(&FromRunner::Finished { id, finished })
    }

    /// Answers `Load` as the order in the system prompt says.
    fn load(&mut self, order: &str) -> Result<(), Box<dyn Error>> {
        match order {
            "refuse" => self.send(&FromRunner::LoadFailed { reason: "as ordered".into() }),
            "silent" => Ok(()),
            "fail" => Err("failed as ordered".into()),
            "garbage" => Ok(self.socket.write_all(&[0xff; 8])?),
            "hog" => {
                hog();
                Ok(())
            }
            "keep" => {
                // One descriptor more than it was given.
                self.kept = Some(File::open(MODEL_PATH)?);
                self.loaded()
            }
            "brittle" => {
                self.brittle = true;
                self.loaded()
            }
            "drowsy" => {
                self.drowsy = true;
                self.loaded()
            }
            "weights" => {
                self.weights = weights();
                self.loaded()
            }
            _ => self.loaded(),
        }
    }

    fn loaded(&mut self) -> Result<(), Box<dyn Error>> {
        let weight_bytes = read(MODEL_PATH)?;
        let info = ModelInfo { name: "probe".into(), weight_bytes, ..ModelInfo::default() };
        self.send(&FromRunner::Loaded(info))
    }
}

/// 20 MiB that do not compress, the same every time (xorshift64, Marsaglia 2003).
fn weights() -> Vec<u64> {
    let next = |last: &u64| {
        let mut next = *last;
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        Some(next)
    };
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15), next).take((20 << 20) / 8).collect()
}

fn sum_of(weights: &[u64]) -> String {
    weights.iter().fold(0_u64, |sum, weight| sum.rotate_left(1).wrapping_add(*weight)).to_string()
}

enum Done {
    Said(String),
    Exit(u8),
}

fn carry_out(order: &str) -> Done {
    let (verb, rest) = order.split_once(' ').unwrap_or((order, ""));
    Done::Said(match verb {
        "read" => said(read(rest)),
        "escape" => attempt(rest),
        "environment" => format!("{:?}", std::env::vars().collect::<Vec<_>>()),
        "threads" => threads(),
        "hog" => hog(),
        "say" => said(io::stderr().write_all(rest.as_bytes())),
        "abort" => std::process::abort(),
        "exit" => return Done::Exit(rest.parse().unwrap_or(255)),
        _ => format!("no such order: {order}"),
    })
}

/// How many bytes a file has.
fn read(path: &str) -> io::Result<u64> {
    let (mut file, mut buffer, mut total) = (File::open(path)?, [0; 4096], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            bytes => total += bytes as u64,
        }
    }
}

fn attempt(name: &str) -> String {
    match escape::named(name).map(escape::Escape::attempt) {
        Some(Ok(())) => "escaped".to_owned(),
        Some(Err(errno)) => format!("refused {errno}"),
        None => "no such way out".to_owned(),
    }
}

fn said<T: std::fmt::Debug>(outcome: io::Result<T>) -> String {
    match outcome {
        Ok(value) => format!("ok {value:?}"),
        Err(error) => format!("error {:?}", error.kind()),
    }
}

/// Starts threads until the kernel refuses; says how many.
fn threads() -> String {
    let done = Arc::new(AtomicBool::new(false));
    let mut started = Vec::new();
    while started.len() < 1_000 {
        let done = Arc::clone(&done);
        let wait = move || {
            while !done.load(Ordering::Acquire) {
                thread::park();
            }
        };
        match thread::Builder::new().stack_size(64 << 10).spawn(wait) {
            Ok(thread) => started.push(thread),
            Err(_) => break,
        }
    }
    let count = started.len();
    done.store(true, Ordering::Release);
    for thread in started {
        thread.thread().unpark();
        drop(thread.join());
    }
    count.to_string()
}

/// Touches more memory than any test's limit.
fn hog() -> String {
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() < 1_024 {
        held.push(vec![1; 1 << 20]);
    }
    format!("{} MiB", held.iter().map(Vec::len).sum::<usize>() >> 20)
}
