//! The one thread that makes children.
//!
//! A child asks to be killed when the thread that cloned it ends, so this thread ends last: after every instance. One
//! after the other is fine: a spawn takes a few milliseconds, loading a model many times that.

use sandbox_kernel::{
    cgroup::Cgroup,
    spawn::{Child, LayerError, Sandbox, spawn},
};
use sandbox_wire::warden::WardenError;
use std::{
    ffi::CStr,
    io::{self, PipeWriter},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
};

/// Name of the model's file in a runner's root: [`sandbox_wire::runner::MODEL_PATH`] without its slash.
const MODEL_NAME: &CStr = c"model.gguf";
const ARGUMENTS: &[&CStr] = &[c"ember-runner"];
/// A crash must not start a debugger, which could only fail in there.
const ENVIRONMENT: &[&CStr] = &[c"GGML_NO_BACKTRACE=1"];

/// What a child is made of.
#[derive(Debug)]
pub(crate) struct Order {
    /// The model, as a detached mount.
    pub(crate) model: OwnedFd,
    /// The runner's end of its socket.
    pub(crate) socket: OwnedFd,
    /// The runner's standard error.
    pub(crate) stderr: PipeWriter,
    /// Its user and group on the host.
    pub(crate) host_id: u32,
    /// Its limits.
    pub(crate) cgroup: Arc<Cgroup>,
}

type Answer = SyncSender<Result<Child, LayerError>>;

/// A way to the thread, which ends when the last of these is dropped.
#[derive(Debug)]
pub(crate) struct Spawner(Sender<(Order, Answer)>);

impl Spawner {
    pub(crate) fn start(program: OwnedFd) -> io::Result<Self> {
        let (orders, queue) = channel();
        thread::Builder::new().name("spawner".into()).spawn(move || serve(&program, &queue))?;
        Ok(Self(orders))
    }

    /// Starts a child, and returns once the runner's program runs.
    pub(crate) fn spawn(&self, order: Order) -> Result<Child, WardenError> {
        let (answer, answered) = sync_channel(1);
        self.0.send((order, answer)).expect("the thread lives as long as we do");
        answered.recv().expect("every order is answered").map_err(|error| sandbox_error(error.layer, error.reason))
    }
}

pub(crate) fn sandbox_error(layer: &str, reason: impl ToString) -> WardenError {
    WardenError::Sandbox { layer: layer.to_owned(), reason: reason.to_string() }
}

fn serve(program: &OwnedFd, queue: &Receiver<(Order, Answer)>) {
    for (order, answer) in queue {
        // Whoever asked is waiting; if not, dropping the child kills it.
        let _ = answer.send(carry_out(program, &order));
    }
}

fn carry_out(program: &OwnedFd, order: &Order) -> Result<Child, LayerError> {
    spawn(&Sandbox {
        program: program.as_fd(),
        arguments: ARGUMENTS,
        environment: ENVIRONMENT,
        host_id: order.host_id,
        files: &[(order.model.as_fd(), MODEL_NAME)],
        socket: order.socket.as_fd(),
        stderr: order.stderr.as_fd(),
        cgroup: &order.cgroup,
    })
}
