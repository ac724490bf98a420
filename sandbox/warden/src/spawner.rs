//! The one thread that makes children: runners that load a model, and those that go on where a captured one waited.
//!
//! A child asks to be killed when the thread that cloned it ends, so this thread ends last: after every instance. One
//! after the other is fine: a spawn takes a few milliseconds, loading a model many times that.
//!
//! To make a network namespace takes a fifth of a restore, so it is made ahead: the thread stands in one in which nobody
//! has been, a restored child gets it by being cloned there, and the thread moves on to the next when it has answered. The
//! namespace is owned by the host's user namespace, so that a child has never had a right in it.

use crate::{identity::DEVICE, snapshots::Ready};
use sandbox_image::{self as image, Data, Restore, RestoreError, Restored};
use sandbox_kernel::{
    cgroup::Cgroup,
    confine::{confine, seal},
    cores::stay_within,
    landlock::domain_if_there_is,
    process::leave_network,
    spawn::{Child, LayerError, NAMESPACES, NETWORK, Sandbox, admit, spawn},
    spec::SOCKET,
};
use sandbox_wire::warden::WardenError;
use std::{
    cell::Cell,
    ffi::CStr,
    fs::File,
    io::{self, PipeWriter},
    os::fd::{AsFd, AsRawFd, OwnedFd},
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
    /// What it begins as.
    pub(crate) origin: Origin,
    /// The runner's end of its socket.
    pub(crate) socket: OwnedFd,
    /// The runner's standard error.
    pub(crate) stderr: PipeWriter,
    /// Its user and group on the host.
    pub(crate) host_id: u32,
    /// Its limits.
    pub(crate) cgroup: Arc<Cgroup>,
}

/// What a child begins as.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The runner's program, which will load a model, given as a detached mount.
    Program { model: OwnedFd },
    /// A captured runner, on the model in this file.
    Snapshot {
        ready: Arc<Ready>,
        model: File,
        /// What there is time for.
        ahead: Ahead,
    },
}

/// What is mapped before it is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Nothing.
    Nothing,
    /// What snapshots hold, and what is written to at once.
    Data,
    /// The model, too.
    DataAndModel,
}

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// A layer of the sandbox is missing.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The snapshot could not be restored, for no fault of the sandbox.
    #[error(transparent)]
    Restore(RestoreError),
}

impl From<RestoreError> for SpawnError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Layer(error) => Self::Layer(error),
            other => Self::Restore(other),
        }
    }
}

type Answer = SyncSender<Result<Child, SpawnError>>;

/// A way to the thread, which ends when the last of these is dropped.
#[derive(Debug)]
pub(crate) struct Spawner(Sender<(Order, Answer)>);

impl Spawner {
    /// Children begin on `cores`, by the kernel's numbers.
    pub(crate) fn start(program: File, may_lack_landlock: bool, cores: Vec<usize>) -> io::Result<Self> {
        let (orders, queue) = channel();
        let maker = Maker {
            program,
            null: File::options().read(true).write(true).open("/dev/null")?,
            nothing: domain_if_there_is([], may_lack_landlock)?,
            may_lack_landlock,
            has_network: Cell::new(false),
        };
        thread::Builder::new().name("spawner".into()).spawn(move || {
            if let Err(error) = stay_within(&cores) {
                tracing::warn!(%error, "runners begin on any core");
            }
            maker.serve(&queue);
        })?;
        Ok(Self(orders))
    }

    /// Starts a child, and returns once it runs.
    pub(crate) fn spawn(&self, order: Order) -> Result<Child, SpawnError> {
        let (answer, answered) = sync_channel(1);
        self.0.send((order, answer)).expect("the thread lives as long as we do");
        answered.recv().expect("every order is answered")
    }
}

pub(crate) fn sandbox_error(layer: &str, reason: impl ToString) -> WardenError {
    WardenError::Sandbox { layer: layer.to_owned(), reason: reason.to_string() }
}

/// What all children are made with.
struct Maker {
    program: File,
    null: File,
    /// A Landlock domain in which no file may be opened.
    nothing: Option<OwnedFd>,
    may_lack_landlock: bool,
    /// Whether this thread's network namespace is one in which nobody has been.
    has_network: Cell<bool>,
}

impl Maker {
    fn serve(&self, queue: &Receiver<(Order, Answer)>) {
        self.renew_network();
        for (order, answer) in queue {
            // Whoever asked is waiting; if not, dropping the child kills it.
            let _ = answer.send(self.carry_out(&order));
            self.renew_network();
        }
    }

    /// Where none can be made, the next child makes its own, or fails by the layer's name.
    fn renew_network(&self) {
        if !self.has_network.get() {
            self.has_network.set(leave_network().is_ok());
        }
    }

    fn carry_out(&self, order: &Order) -> Result<Child, SpawnError> {
        match &order.origin {
            Origin::Program { model } => Ok(self.exec(order, model)?),
            Origin::Snapshot { ready, model, ahead } => self.restore(order, ready, model, *ahead),
        }
    }

    fn exec(&self, order: &Order, model: &OwnedFd) -> Result<Child, LayerError> {
        spawn(&Sandbox {
            program: self.program.as_fd(),
            arguments: ARGUMENTS,
            environment: ENVIRONMENT,
            host_id: order.host_id,
            files: &[(model.as_fd(), MODEL_NAME)],
            socket: order.socket.as_fd(),
            stderr: order.stderr.as_fd(),
            cgroup: &order.cgroup,
            may_lack_landlock: self.may_lack_landlock,
        })
    }

    fn restore(&self, order: &Order, ready: &Ready, model: &File, ahead: Ahead) -> Result<Child, SpawnError> {
        let entrance = order.cgroup.entrance();
        let entrance = entrance.map_err(|error| LayerError { layer: "cgroup", reason: error.to_string() })?;
        let (null, stderr, socket) = (self.null.as_fd(), order.stderr.as_fd(), order.socket.as_fd());
        let raw: Vec<_> = ready.raw.iter().map(|raw| (raw.digest, raw.file.as_fd())).collect();
        let restored = Restore {
            image: &ready.parked.image,
            program: self.program.as_fd(),
            model: model.as_fd(),
            data: Data::Shared(ready.parked.data.as_fd()),
            ahead: (ahead != Ahead::Nothing).then_some(image::Ahead {
                model: ahead == Ahead::DataAndModel,
                written: ready.tried.get().map_or(&[], |tried| &tried.written),
            }),
            device: &DEVICE,
            raw: &raw,
            descriptors: &[(null, 0), (null, 1), (stderr, 2), (socket, SOCKET)],
            namespaces: if self.has_network.take() { NAMESPACES & !NETWORK } else { NAMESPACES },
            entrance: Some(&entrance),
            admit: &|child| admit(child, order.host_id),
            confine: &|table| confine(table, &entrance, self.nothing.as_ref().map(AsRawFd::as_raw_fd)),
            seal: &seal,
        };
        let Restored { child, steps } = restored.run()?;
        tracing::debug!(function = %ready.function(), ?steps, "restored");
        Ok(child)
    }
}
