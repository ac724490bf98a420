//! The real runner on one end of a socket pair, the test on the other.
//!
//! One runner at a time on the whole machine (a lock file, as tests may be threads or processes): its threads spin, and two
//! of them on the same cores take each other's time. Nothing waits without end: a read gives up after [`PATIENCE`].

use appliance_types::Task;
use sandbox_wire::{
    frame::{Decoder, FROM_RUNNER_BYTES_MAX, TO_RUNNER_BYTES_MAX, encode},
    runner::{
        Constraint, Failure, Finished, FromRunner, Generate, Id, Load, Message, ModelInfo, Prompt, Role, Sampling,
        Text, ToRunner,
    },
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// The default model.
pub(crate) fn model() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing; run `make model`", path.display());
    path
}

/// A runner, its socket, and the lock that keeps others from running beside it.
pub(crate) struct Peer {
    child: Child,
    socket: Option<UnixStream>,
    decoder: Decoder,
    /// Came already, and is to be read first.
    set_aside: VecDeque<FromRunner>,
    next_id: Id,
    pub(crate) info: ModelInfo,
    _alone: File,
}

/// All that came for one request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) pieces: Vec<Text>,
    pub(crate) finished: Finished,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

impl Peer {
    /// Starts a runner that was told nothing yet.
    pub(crate) fn start(model: &Path) -> Self {
        let alone = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("runner.lock")).unwrap();
        alone.lock().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        // The shell moves its standard input to descriptor 3 and becomes the runner.
        let child = Command::new("/bin/sh")
            .args(["-c", r#"exec "$0" "$1" 3<&0 </dev/null"#, env!("CARGO_BIN_EXE_ember-runner")])
            .arg(model)
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let decoder = Decoder::new(FROM_RUNNER_BYTES_MAX);
        Self {
            child,
            socket: Some(ours),
            decoder,
            set_aside: VecDeque::new(),
            next_id: 1,
            info: ModelInfo::default(),
            _alone: alone,
        }
    }

    /// Starts a runner and loads the default model.
    pub(crate) fn load(load: Load) -> Self {
        let mut peer = Self::start(&model());
        peer.send(&ToRunner::Load(load));
        match peer.receive() {
            Some(FromRunner::Loaded(info)) => peer.info = info,
            other => panic!("instead of Loaded: {other:?}"),
        }
        peer
    }

    /// A chat function with 512 tokens of context.
    pub(crate) fn chat() -> Self {
        Self::load(load(Task::Chat))
    }

    pub(crate) fn id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn send(&mut self, message: &ToRunner) {
        let mut bytes = Vec::new();
        encode(message, TO_RUNNER_BYTES_MAX, &mut bytes).unwrap();
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The next message; `None` once the runner has closed its end.
    pub(crate) fn receive(&mut self) -> Option<FromRunner> {
        if let Some(message) = self.set_aside.pop_front() {
            return Some(message);
        }
        let mut buffer = [0; 1 << 16];
        loop {
            match self.decoder.next_message().unwrap() {
                // On a busy machine a step may take a second.
                Some(FromRunner::Alive) => continue,
                Some(message) => return Some(message),
                None => {}
            }
            match self.socket.as_mut().unwrap().read(&mut buffer) {
                Ok(0) => return None,
                Ok(bytes) => self.decoder.push(&buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the runner says nothing: {error}"),
            }
        }
    }

    /// Sends a request and returns its id.
    pub(crate) fn ask(&mut self, generate: Generate) -> Id {
        let id = self.id();
        self.send(&ToRunner::Generate { id, generate: Box::new(generate) });
        id
    }

    /// Receives all there is for one request.
    pub(crate) fn answer(&mut self, id: Id) -> Result<Answer, Failure> {
        let mut started = None;
        let mut pieces = Vec::new();
        loop {
            let message = self.receive().expect("the runner ended");
            assert_eq!(message.id(), Some(id), "{message:?}");
            match message {
                FromRunner::Started { prompt_tokens, cached_tokens, .. } => {
                    assert!(started.replace((prompt_tokens, cached_tokens)).is_none());
                }
                FromRunner::Text { text, .. } => pieces.push(text),
                FromRunner::Finished { finished, .. } => {
                    let (prompt_tokens, cached_tokens) = started.expect("Started comes first");
                    return Ok(Answer { prompt_tokens, cached_tokens, pieces, finished });
                }
                FromRunner::Failed { failure, .. } => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn generate(&mut self, generate: Generate) -> Result<Answer, Failure> {
        let id = self.ask(generate);
        self.answer(id)
    }

    /// Receives all there is for several requests.
    pub(crate) fn answers(&mut self, ids: &[Id]) -> Vec<Answer> {
        let mut messages: Vec<VecDeque<FromRunner>> = ids.iter().map(|_| VecDeque::new()).collect();
        while messages.iter().any(|of_one| !of_one.back().is_some_and(FromRunner::is_last)) {
            let message = self.receive().expect("the runner ended");
            let at = ids.iter().position(|id| message.id() == Some(*id)).expect("one of these");
            messages[at].push_back(message);
        }
        let mut whole = |messages: VecDeque<FromRunner>| {
            self.set_aside = messages;
            let id = self.set_aside[0].id().expect("checked above");
            self.answer(id).expect("an answer")
        };
        messages.into_iter().map(&mut whole).collect()
    }

    pub(crate) fn embed(&mut self, input: Prompt) -> FromRunner {
        let id = self.id();
        self.send(&ToRunner::Embed { id, input, truncate: false });
        self.receive().unwrap()
    }

    pub(crate) fn tokenize(&mut self, text: &str, parse_special: bool) -> Vec<u32> {
        let id = self.id();
        self.send(&ToRunner::Tokenize { id, text: text.to_owned(), add_special: true, parse_special });
        match self.receive() {
            Some(FromRunner::Tokens { tokens, .. }) => tokens,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn rendered(&mut self, ask: impl FnOnce(Id) -> ToRunner) -> Result<String, Failure> {
        let id = self.id();
        self.send(&ask(id));
        match self.receive() {
            Some(FromRunner::Rendered { text, .. }) => Ok(text),
            Some(FromRunner::Failed { failure, .. }) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Closes the socket.
    pub(crate) fn close(&mut self) {
        self.socket = None;
    }

    /// Waits for the end; returns the exit code and what was said on stderr.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both only fail for a child that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn load(task: Task) -> Load {
    Load { task, context_tokens: 512, slots: 1, threads: 2, system: None }
}

pub(crate) fn user(content: &str) -> Message {
    Message::new(Role::User, content)
}

pub(crate) fn system(content: &str) -> Message {
    Message { role: Role::System, ..user(content) }
}

/// A chat of one message, answered greedily with at most 24 tokens.
pub(crate) fn greedy(content: &str) -> Generate {
    of(Prompt::Chat(vec![user(content)]))
}

/// A prompt, answered greedily with at most 24 tokens.
pub(crate) fn of(prompt: Prompt) -> Generate {
    Generate {
        prompt,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        tokens_max: 24,
        deadline_ms: 60_000,
        constraint: Constraint::None,
        tools: None,
        logprobs: None,
        tenant: None,
    }
}
