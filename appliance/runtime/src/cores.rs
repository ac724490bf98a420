//! Executors: one a core, each on its own thread.
//!
//! A core is claimed by `sched_setaffinity` on the thread and not by the library's placement, which reads `/sys`
//! (absent in a sandbox) and ignores the affinity that the process was given.

use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use nix::{errno::Errno, sched, unistd::Pid};
use std::{
    future::Future,
    io,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Memory for each of an executor's three rings. The default of 10 MiB would pin 30 MiB a core, and sockets use none.
const RING_MEMORY_BYTES: usize = 64 << 10;
/// Threads of a core that run what blocks (see [`unblock`](crate::unblock)).
const BLOCKING_THREADS: usize = 2;
/// The kernel gives the memory of closed rings back late, so a quick restart may be refused at first.
const START_ATTEMPTS_MAX: u32 = 8;
const START_BACKOFF: Duration = Duration::from_millis(10);

/// Why executors did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread could not be made.
    #[error("cannot start thread `{name}`: {source}")]
    Thread {
        /// The thread's name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The core is not one this process may run on.
    #[error("cannot run on core {core}: {source}")]
    Affinity {
        /// The core asked for.
        core: usize,
        /// What the system said.
        source: Errno,
    },
    /// The executor's rings could not be made.
    #[error("cannot make an io_uring executor on core {core}: {reason}")]
    Executor {
        /// The core asked for.
        core: usize,
        /// What the library said.
        reason: String,
    },
}

/// The executors that [`run_per_core`] started.
#[must_use = "join the cores, or their threads outlive the caller"]
#[derive(Debug)]
pub struct Cores<T> {
    threads: Vec<JoinHandle<Option<T>>>,
}

impl<T> Cores<T> {
    /// Waits until every core's main future has ended; `None` stands for a core whose main future panicked.
    pub fn join(self) -> Vec<Option<T>> {
        self.threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    }
}

/// The cores that this process may run on, in ascending order.
pub fn available_cores() -> io::Result<Vec<usize>> {
    let set = sched::sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..sched::CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
}

/// Starts one executor on each of `cores`, in threads named `name-0`, `name-1`, and so on.
///
/// `begin` is called here, in order, with each core's index; what it returns is called on that core and makes its main
/// future. Returns when all executors run. When one cannot start, the main futures of none do, and no thread is left.
pub fn run_per_core<Begin, Main, MainFuture>(
    cores: &[usize],
    name: &str,
    mut begin: Begin,
) -> Result<Cores<MainFuture::Output>, StartError>
where
    Begin: FnMut(usize) -> Main,
    Main: FnOnce() -> MainFuture + Send + 'static,
    MainFuture: Future + 'static,
    MainFuture::Output: Send + 'static,
{
    let (ready, started) = mpsc::channel();
    let mut launched = Vec::with_capacity(cores.len());
    for (index, core) in cores.iter().copied().enumerate() {
        let (release, go) = mpsc::channel::<()>();
        let (main, ready, name) = (begin(index), ready.clone(), format!("{name}-{index}"));
        let refused = ready.clone();
        match thread::Builder::new().name(name.clone()).spawn(move || run_core(core, ready, go, main)) {
            Ok(thread) => launched.push((release, thread)),
            Err(source) => drop(refused.send(Err(StartError::Thread { name, source }))),
        }
    }
    drop(ready);
    let (releases, threads): (Vec<_>, Vec<_>) = launched.into_iter().unzip();
    let cores = Cores { threads };
    if let Err(error) = started.into_iter().collect::<Result<Vec<()>, StartError>>() {
        drop(releases);
        cores.join();
        return Err(error);
    }
    releases.iter().for_each(|release| release.send(()).expect("a started core waits for its release"));
    Ok(cores)
}

/// Life of a core's thread: claim the core, make the executor, say so, wait until all cores have, run.
fn run_core<Main, MainFuture>(
    core: usize,
    ready: mpsc::Sender<Result<(), StartError>>,
    go: mpsc::Receiver<()>,
    main: Main,
) -> Option<MainFuture::Output>
where
    Main: FnOnce() -> MainFuture,
    MainFuture: Future + 'static,
    MainFuture::Output: 'static,
{
    let made = claim(core).and_then(|()| executor(core));
    let (executor, said) = match made {
        Ok(executor) => (Some(executor), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // A caller that has met another core's error listens no more, and `go` tells that below.
    let _unheard = ready.send(said);
    drop(ready);
    go.recv().ok()?;
    executor?.run(async { crate::catch_unwind(main()).await.ok() })
}

fn claim(core: usize) -> Result<(), StartError> {
    let mut set = sched::CpuSet::new();
    set.set(core)
        .and_then(|()| sched::sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|source| StartError::Affinity { core, source })
}

/// Makes an executor, trying again while the kernel is short of memory for rings.
fn executor(core: usize) -> Result<LocalExecutor, StartError> {
    let mut backoff = START_BACKOFF;
    for _ in 1..START_ATTEMPTS_MAX {
        match builder().make() {
            Err(error) if is_transient(&error) => thread::sleep(backoff),
            made => return made.map_err(|error| refused(core, &error)),
        }
        backoff *= 2;
    }
    builder().make().map_err(|error| refused(core, &error))
}

fn builder() -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(RING_MEMORY_BYTES)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
}

fn is_transient(error: &GlommioError<()>) -> bool {
    let os_error = match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source.raw_os_error(),
        _ => None,
    };
    os_error == Some(Errno::ENOMEM as i32)
}

fn refused(core: usize, error: &GlommioError<()>) -> StartError {
    StartError::Executor { core, reason: error.to_string() }
}
