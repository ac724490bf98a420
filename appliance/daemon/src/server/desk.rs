//! One core's desk: where a request's account is opened, says how far it is, and is closed, all into the core's ring.
//!
//! ```text
//!  Account ─▶ open ──(ring full: waits a little, then 503)──▶ Meter ─ drop ─▶ close
//!               │                                              ▲
//!               └─ the first of a core starts its beat: once a second every account that is open says what it has used;
//!                  a beat that finds none is the last, so a core at rest does not tick
//! ```
//! Invariant: exactly one close for each [`Meter`], made by its drop; so a client that leaves, which drops the request's
//! future or its reply's stream, is accounted for like any other. The room of a close is set aside before work begins,
//! hence no close is ever lost to a full ring. A beat that has no room is skipped: the next one says all of it.

use super::{allowance::Allowance, meter::Account, purse::Purse};
use appliance_api::{ApiError, Timings, Usage};
use appliance_ledger::Client;
use appliance_meter::{Full, Producer, Ticket};
use appliance_pool::{Dispatched, Tab};
use appliance_price::Prices;
use appliance_runtime::{sleep, spawn};
use appliance_telemetry::{Ended, Shard};
use appliance_types::{Record, Stage};
use sandbox_wire::runner::Finished;
use std::{
    cell::{RefCell, RefMut},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// A request that is younger says nothing yet: most have ended by the next beat.
const QUIET: Duration = Duration::from_millis(500);
/// How long a request waits for room in the ring, a pause at a time; past that the ledger is no longer merely busy.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSES_MAX: usize = 10;
/// When to try again after that, s.
const RETRY_AFTER_S: u64 = 1;

/// What is admitted can still be billed; nothing more is.
const DISK_FULL: &str = "the disk that holds the bills is nearly full; the operator has to free some of it";

/// A core's end of its ring, and the requests that are open there.
pub(super) struct Desk(RefCell<Inner>);

struct Inner {
    producer: Producer,
    ledger: Client,
    /// Where this core counts.
    shard: Shard,
    open: BTreeMap<u64, Running>,
    next: u64,
    beats: bool,
}

struct Running {
    account: Rc<RefCell<Account>>,
    ticket: Ticket,
    since: Instant,
}

impl Desk {
    pub(super) fn new(producer: Producer, ledger: Client, shard: Shard) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Inner { producer, ledger, shard, open: BTreeMap::new(), next: 0, beats: false })))
    }

    /// Where this core counts.
    pub(super) fn shard(&self) -> Shard {
        self.0.borrow().shard.clone()
    }

    /// Opens an account, once there is room for all that will be said of it.
    ///
    /// # Errors
    /// 503: the ledger lags behind, or its disk is nearly full; nothing was begun.
    pub(super) async fn open(self: &Rc<Self>, account: Account) -> Result<Meter, ApiError> {
        if self.0.borrow().ledger.is_low() {
            return Err(ApiError::unavailable(DISK_FULL.to_owned(), RETRY_AFTER_S).because("ledger_full"));
        }
        let account = Rc::new(RefCell::new(account));
        for _ in 0..PAUSES_MAX {
            match self.try_open(&account) {
                Ok(meter) => return Ok(meter),
                Err(Full) => {
                    self.shard().ring_paused();
                    sleep(PAUSE).await;
                }
            }
        }
        self.try_open(&account).map_err(|full| {
            self.shard().ring_full();
            ApiError::unavailable(full.to_string(), RETRY_AFTER_S).because("ring_full")
        })
    }

    fn try_open(self: &Rc<Self>, account: &Rc<RefCell<Account>>) -> Result<Meter, Full> {
        let (number, starts) = {
            let mut desk = self.0.borrow_mut();
            let ticket = desk.producer.open(&account.borrow().now())?;
            desk.shard.entered(Stage::Open);
            let number = desk.next;
            desk.next += 1;
            desk.open.insert(number, Running { account: Rc::clone(account), ticket, since: Instant::now() });
            (number, !std::mem::replace(&mut desk.beats, true))
        };
        if starts {
            spawn(beat(Rc::clone(self)));
        }
        Ok(Meter { desk: Rc::clone(self), account: Rc::clone(account), number })
    }

    fn close(&self, number: u64, record: &Record, ended: Ended) {
        let mut desk = self.0.borrow_mut();
        desk.shard.ended(record, ended);
        let Some(Running { ticket, .. }) = desk.open.remove(&number) else { return desk.shard.dropped() };
        desk.producer.close(ticket, record);
        desk.shard.entered(Stage::Closed);
    }

    /// Has every open account say what it has used; whether there are any.
    fn beat(&self) -> bool {
        let Inner { producer, open, beats, shard, .. } = &mut *self.0.borrow_mut();
        for Running { account, ticket, .. } in open.values().filter(|running| running.since.elapsed() >= QUIET) {
            if !producer.progress(ticket, &account.borrow().now()) {
                break;
            }
            shard.entered(Stage::Progress);
        }
        *beats = !open.is_empty();
        *beats
    }
}

async fn beat(desk: Rc<Desk>) {
    loop {
        sleep(BEAT).await;
        if !desk.beat() {
            return;
        }
    }
}

/// The open account of one request.
pub(super) struct Meter {
    desk: Rc<Desk>,
    account: Rc<RefCell<Account>>,
    number: u64,
}

impl Meter {
    /// Never held across an await, so it is free.
    fn account(&self) -> RefMut<'_, Account> {
        self.account.borrow_mut()
    }

    /// Its key was granted this for it.
    pub(super) fn allowed(&mut self, allowance: Option<Allowance>) {
        self.account().allowed(allowance);
    }

    /// What it is charged by.
    pub(super) fn prices(&self) -> Arc<Prices> {
        self.account().prices()
    }

    /// Budgets granted this for it.
    pub(super) fn afforded(&mut self, purse: Purse) {
        self.account().afforded(purse);
    }

    /// How long its next job may take before its money is used up, ms; `None` where there is no budget.
    pub(super) fn affordable_ms(&self, memory_bytes: u64) -> Option<u64> {
        self.account().affordable_ms(memory_bytes)
    }

    /// Whether what it was granted is used up.
    pub(super) fn is_spent(&self) -> bool {
        self.account().is_spent()
    }

    /// It is stopped where it is because its money is used up.
    pub(super) fn stopped_by_budget(&mut self) {
        self.account().stopped_by_budget();
    }

    /// A job is asked for, which uses this.
    pub(super) fn submitted(&mut self, tab: Arc<Tab>) {
        self.account().submitted(tab);
    }

    /// A job has its slot.
    pub(super) fn dispatched(&mut self, dispatched: &Dispatched) {
        self.account().dispatched(dispatched);
    }

    /// What its runner claimed of its prompt cannot be.
    pub(super) fn corrected(&mut self) {
        self.account().corrected();
    }

    /// Its prompt is being fed.
    pub(super) fn started(&mut self, prompt_tokens: u32, cached_tokens: u32) {
        self.account().started(prompt_tokens, cached_tokens);
    }

    /// It produced text.
    pub(super) fn text(&mut self, tokens: u32) {
        self.account().text(tokens);
    }

    /// It ended, having used exactly this.
    pub(super) fn finished(&mut self, finished: &Finished) {
        self.account().finished(finished);
    }

    /// A job without text ended, having used this.
    pub(super) fn computed(&mut self, tokens: u32, compute_us: u64) {
        self.account().computed(tokens, compute_us);
    }

    /// The reply's head is sent, with status 200.
    pub(super) fn replying(&mut self) {
        self.account().replying();
    }

    /// So much of the reply's body is on its way.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.account().sent(bytes);
    }

    /// It was answered in full.
    pub(super) fn completed(&mut self) {
        self.account().completed();
    }

    /// Passes `result` through, noting an error.
    pub(super) fn check<T>(&mut self, result: Result<T, ApiError>) -> Result<T, ApiError> {
        result.inspect_err(|error| self.account().failed(error))
    }

    /// What ended jobs used; where the request waited, that of the current one too.
    pub(super) fn record(&self) -> Record {
        self.account().record()
    }

    /// The reply's usage, receipt included.
    pub(super) fn usage(&self) -> Usage {
        self.account().usage()
    }

    /// llama-server's timings.
    pub(super) fn timings(&self) -> Timings {
        self.account().timings()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let (record, ended) = self.account().end();
        self.desk.close(self.number, &record, ended);
    }
}
