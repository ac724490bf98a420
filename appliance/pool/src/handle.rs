//! The pool as every core sees it: a handle to send by, and the submission that a request holds.

use crate::{
    JOBS_MAX,
    job::{Event, Failed, FunctionConfig, Terms, View, Waits, Work},
    scheduler::{HoldId, Input, Ticket},
    tab::Tab,
};
use appliance_types::FunctionName;
use sandbox_wire::warden::RunnerSpec;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// The pool's task is gone: the server is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is gone")]
pub struct Lost;

/// A handle to the pool, for any core.
///
/// The channel behind it is unbounded; what it can hold is not: [`JOBS_MAX`] submissions, a cancel and a question for
/// each, and what an operator sends by hand.
#[derive(Clone, Debug)]
pub struct Pool {
    inputs: flume::Sender<Input>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tickets: AtomicU64,
    live: AtomicUsize,
}

/// A pool's handle, and what [`run`](crate::run) takes to drive it.
pub fn pool() -> (Pool, Inputs) {
    let (sender, receiver) = flume::unbounded();
    (Pool { inputs: sender.clone(), shared: Arc::default() }, Inputs { receiver, sender })
}

/// The driver's side of a [`Pool`].
#[derive(Debug)]
pub struct Inputs {
    pub(crate) receiver: flume::Receiver<Input>,
    pub(crate) sender: flume::Sender<Input>,
}

impl Inputs {
    pub(crate) fn sender(&self) -> flume::Sender<Input> {
        self.sender.clone()
    }
}

impl Pool {
    /// Deploys a function or changes it; instances of its earlier form end when they are idle.
    pub fn configure(&self, config: FunctionConfig) {
        let _ = self.inputs.send(Input::Configure(Box::new(config)));
    }

    /// Removes a function; requests that wait for it fail, those that run end.
    pub fn remove(&self, function: FunctionName) {
        let _ = self.inputs.send(Input::Remove(function));
    }

    /// Says that the warden is about to hold a function on disk only.
    pub fn storing(&self, function: FunctionName) {
        let _ = self.inputs.send(Input::Storing(function));
    }

    /// Says that it does.
    pub fn stored(&self, function: FunctionName) {
        let _ = self.inputs.send(Input::Stored(function));
    }

    /// Ends a function's instances, each as soon as it is idle.
    pub fn stop(&self, function: FunctionName) {
        let _ = self.inputs.send(Input::Retire(function));
    }

    /// Says that the warden now holds a function in memory, of which it takes so many bytes, so that it is stored when
    /// nobody calls for its time of `park`.
    pub fn hold(&self, function: FunctionName, bytes: u64) {
        let _ = self.inputs.send(Input::Hold(function, bytes));
    }

    /// Waits until there is memory for an instance that is not the pool's, and for the copy that a snapshot is; it is
    /// given back when the [`Reservation`] is dropped.
    ///
    /// # Errors
    /// [`Failed::TooLarge`]; [`Failed::QueueTimeout`] when no memory came free within a minute.
    pub async fn reserve(&self, spec: RunnerSpec, model_bytes: u64) -> Result<Reservation, Failed> {
        let id = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
        let (reply, granted) = flume::bounded(1);
        let _ = self.inputs.send(Input::Reserve { id, spec: Box::new(spec), model_bytes, reply });
        let reservation = Reservation { id, pool: self.clone() };
        let lost = |_| Err(Failed::InstanceLost { reason: Lost.to_string() });
        granted.recv_async().await.unwrap_or_else(lost).map(|()| reservation)
    }

    /// Asks for work of the box's own. What comes of it is read from the [`Submission`].
    ///
    /// # Errors
    /// [`Failed::Overloaded`] when [`JOBS_MAX`] submissions live.
    pub fn submit(&self, function: FunctionName, work: Work) -> Result<Submission, Failed> {
        self.submit_on(function, work, Terms::default())
    }

    /// Asks for work for somebody.
    ///
    /// # Errors
    /// As for [`Pool::submit`].
    pub fn submit_on(&self, function: FunctionName, work: Work, terms: Terms) -> Result<Submission, Failed> {
        if self.shared.live.fetch_add(1, Ordering::Relaxed) >= JOBS_MAX {
            self.shared.live.fetch_sub(1, Ordering::Relaxed);
            return Err(Failed::Overloaded);
        }
        let ticket = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = flume::bounded(work.events_max());
        let tab = Arc::<Tab>::default();
        let submission = Submission { ticket, events, tab: Arc::clone(&tab), pool: self.clone(), ended: false };
        let _ = self.inputs.send(Input::Submit { ticket, function, work, terms, tab, events: sender });
        Ok(submission)
    }

    /// The instances there are, and the functions that are held in memory.
    ///
    /// # Errors
    /// [`Lost`] when the server is ending.
    pub async fn view(&self) -> Result<View, Lost> {
        let (sender, receiver) = flume::bounded(1);
        self.inputs.send(Input::List(sender)).map_err(|_| Lost)?;
        receiver.recv_async().await.map_err(|_| Lost)
    }
}

/// Memory that is held until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    id: HoldId,
    pool: Pool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let _ = self.pool.inputs.send(Input::Release(self.id));
    }
}

/// Work that was asked for. Dropping it before its last event cancels the work.
#[derive(Debug)]
pub struct Submission {
    ticket: Ticket,
    events: flume::Receiver<Event>,
    tab: Arc<Tab>,
    pool: Pool,
    ended: bool,
}

impl Submission {
    /// What happens next; after the last event, [`Failed::InstanceLost`] for ever.
    pub async fn next(&mut self) -> Event {
        let event = match self.events.recv_async().await {
            Ok(event) => event,
            Err(_) => Event::Failed(Failed::InstanceLost { reason: Lost.to_string() }),
        };
        self.ended |= match &event {
            Event::Dispatched(_) | Event::Corrected => false,
            Event::Reply(message) => message.is_last(),
            Event::Failed(_) => true,
        };
        event
    }
}

impl Submission {
    /// What it uses, for its bill. Final once its last event came.
    pub fn tab(&self) -> Arc<Tab> {
        Arc::clone(&self.tab)
    }

    /// Where it waits; `None` when it does not, or the server is ending.
    pub async fn waits(&self) -> Option<Waits> {
        let (sender, receiver) = flume::bounded(1);
        self.pool.inputs.send(Input::Place { ticket: self.ticket, reply: sender }).ok()?;
        receiver.recv_async().await.ok()
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        self.pool.shared.live.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            let _ = self.pool.inputs.send(Input::Cancel(self.ticket));
        }
    }
}
