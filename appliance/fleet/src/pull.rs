//! One pull: every box from where the last one ended to the end of its ledger, many at once.
//!
//! ```text
//!  boxes ─▶ a queue ─▶ workers, `at_once` of them, each: connect ─▶ inventory ─▶ page ─▶ follow ─▶ store ─▶ page … no more
//!                                    ▲ broke off: again, from the cursor      │ fault: flag, and this box is done
//!                                    └── 3 times, then unreached ◀────────────┘
//! ```
//!
//! All workers share one thread: what they wait for is the network, and the database has one writer. A page is taken in a
//! transaction of its own, so an end at any moment costs the pages that were on their way and no more.

use crate::{
    BoxName, Fault, Flag, Followed, Known, Member, Roster, Seen, Store, StoreError, follow,
    follow::shown,
    session::{Answer, Session, SessionError},
    unix_ms,
};
use appliance_ledger::{
    Position,
    signed::{PageCursor, SignedPage},
};
use appliance_price::Prices;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io, mem,
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Longest page: lines of 48 KiB as JSON writes them, six bytes a byte at worst.
const PAGE_BYTES_MAX: usize = 512 << 10;
const INVENTORY_BYTES_MAX: usize = 1 << 20;
/// Most pages of a box in one pull: its own limit of pages a minute, for more than an hour.
const PAGES_MAX: u32 = 20_000;
/// Connections to a box in a row that give nothing new.
const TRIES_MAX: u32 = 3;
/// Waits for a box that says that it is busy, in a row.
const BUSY_MAX: u32 = 8;
/// Longest that a box may have us wait, seconds.
const RETRY_AFTER_MAX_S: u64 = 60;
const PAUSE: Duration = Duration::from_millis(200);
/// A clock that is off by more is flagged, ms.
const SKEW_MAX_MS: u64 = 60_000;
const LEDGER: &str = "/ember/v1/telemetry/ledger?cursor=";
const INVENTORY: &str = "/ember/v1/telemetry/inventory";

/// How a pull is done.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Boxes at once.
    pub at_once: usize,
    /// How long one box has.
    pub box_time: Duration,
    /// Most bytes of its ledger that one box may tell, less than a page more; the next pull goes on there.
    pub box_bytes_max: u64,
}

/// How the pull of a box has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that it has is here.
    Complete,
    /// It did not answer, or not to the end; the next pull goes on there.
    Unreached(String),
    /// What it said was not taken, or was taken to its end and has something wrong with it: a gap, a record told again otherwise,
    /// a clock that is off.
    Flagged {
        /// What is wrong.
        flag: Flag,
        /// Where, and in words.
        detail: String,
    },
}

/// What came of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// The box.
    #[serde(rename = "box")]
    pub name: BoxName,
    /// Records that were new.
    pub records: u64,
    /// Pages.
    pub pages: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// What goes on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A page of a box was taken in, with so many new records.
    Page(&'a BoxName, u64),
    /// A box is done.
    Done(&'a Pulled),
}

/// Why there is no pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel gives no ring.
    #[error("no io_uring: {0}")]
    Ring(io::Error),
}

/// Pulls `members` of a roster into the database at `path`; what came of each, in their order.
///
/// # Errors
/// [`PullError`]: the database or the ring. What is wrong with a box is its outcome.
pub fn pull(
    roster: &Roster,
    members: Vec<Member>,
    path: &Path,
    settings: Settings,
    progress: impl FnMut(Progress<'_>) + 'static,
) -> Result<Vec<Pulled>, PullError> {
    let store = RefCell::new(Store::open(path)?);
    let work = Rc::new(Work {
        roster: roster.clone(),
        queue: RefCell::new(members.iter().cloned().enumerate().collect()),
        done: RefCell::new(Vec::with_capacity(members.len())),
        failed: RefCell::new(None),
        store,
        settings,
        progress: RefCell::new(Box::new(progress)),
    });
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(PullError::Ring)?;
    let workers = settings.at_once.clamp(1, members.len().max(1));
    runtime.block_on(async {
        let running: Vec<_> = (0..workers).map(|_| tokio_uring::spawn(Rc::clone(&work).run())).collect();
        for worker in running {
            // A worker that panicked has lost its box, which is told below; its message is on stderr.
            let _ = worker.await;
        }
    });
    if let Some(error) = work.failed.take() {
        return Err(error.into());
    }
    let mut done: BTreeMap<usize, Pulled> = work.done.take().into_iter().collect();
    let lost = |member: Member| {
        let reason = "its pull met a fault of ours, told above".to_owned();
        Pulled { name: member.name, records: 0, pages: 0, outcome: Outcome::Unreached(reason) }
    };
    let of = |(index, member)| done.remove(&index).unwrap_or_else(|| lost(member));
    Ok(members.into_iter().enumerate().map(of).collect())
}

/// Who is told what goes on.
type Listener = Box<dyn FnMut(Progress<'_>)>;

struct Work {
    roster: Roster,
    queue: RefCell<VecDeque<(usize, Member)>>,
    done: RefCell<Vec<(usize, Pulled)>>,
    /// The database's fault, which ends all.
    failed: RefCell<Option<StoreError>>,
    store: RefCell<Store>,
    settings: Settings,
    progress: RefCell<Listener>,
}

/// What was taken of a box so far.
#[derive(Clone, Debug, Default)]
struct Tally {
    records: u64,
    pages: u32,
    bytes: u64,
    /// The gravest of what it was flagged for and goes on with.
    flagged: Option<Fault>,
}

impl Tally {
    fn flag(&mut self, fault: Option<Fault>) {
        self.flagged = self.flagged.take().into_iter().chain(fault).min_by_key(|fault| fault.flag);
    }
}

/// Why a box is done before its end.
#[derive(Debug)]
enum Stop {
    /// The connection: again may help.
    Broken(String),
    /// It cannot help.
    Hopeless(String),
    Fault(Fault),
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Moved => Stop::Broken(error.to_string()),
            error => Stop::Store(error),
        }
    }
}

impl From<SessionError> for Stop {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Credentials { .. } => Stop::Hopeless(error.to_string()),
            error => Stop::Broken(shown(&error.to_string())),
        }
    }
}

impl Work {
    async fn run(self: Rc<Self>) {
        loop {
            let next = self.queue.borrow_mut().pop_front();
            let Some((index, member)) = next.filter(|_| self.failed.borrow().is_none()) else { return };
            match self.box_to_its_end(&member).await {
                Ok(pulled) => {
                    (self.progress.borrow_mut())(Progress::Done(&pulled));
                    self.done.borrow_mut().push((index, pulled));
                }
                Err(error) => *self.failed.borrow_mut() = Some(error),
            }
        }
    }

    async fn box_to_its_end(&self, member: &Member) -> Result<Pulled, StoreError> {
        let tally = RefCell::new(Tally::default());
        let ended = timeout(self.settings.box_time, self.tries(member, &tally)).await;
        let Tally { records, pages, flagged, .. } = tally.take();
        let late = || {
            Err(Stop::Hopeless(format!(
                "not at its end after {} s and {pages} pages",
                self.settings.box_time.as_secs()
            )))
        };
        let (now, mut store) = (unix_ms(), self.store.borrow_mut());
        let of =
            |fault: Fault| Outcome::Flagged { flag: fault.flag, detail: format!("at {}: {}", fault.at, fault.detail) };
        let (outcome, error) = match ended.unwrap_or_else(|_| late()) {
            Ok(()) => (flagged.map_or(Outcome::Complete, of), None),
            Err(Stop::Store(error)) => return Err(error),
            Err(Stop::Broken(reason) | Stop::Hopeless(reason)) => (Outcome::Unreached(reason.clone()), Some(reason)),
            Err(Stop::Fault(fault)) => {
                store.flag(&member.name, &fault, now)?;
                let error = format!("{} at {}: {}", fault.flag, fault.at, fault.detail);
                (of(fault), Some(error))
            }
        };
        store.tried(&member.name, error.as_deref(), now)?;
        Ok(Pulled { name: member.name.clone(), records, pages, outcome })
    }

    /// Connects again where a connection broke off, as long as each gives something.
    async fn tries(&self, member: &Member, tally: &RefCell<Tally>) -> Result<(), Stop> {
        let mut fruitless = 0;
        loop {
            let before = tally.borrow().pages;
            let reason = match self.connection(member, tally).await {
                Err(Stop::Broken(reason)) => reason,
                ended => return ended,
            };
            fruitless = if tally.borrow().pages > before { 0 } else { fruitless + 1 };
            if fruitless >= TRIES_MAX {
                return Err(Stop::Broken(reason));
            }
            sleep(PAUSE * fruitless).await;
        }
    }

    async fn connection(&self, member: &Member, tally: &RefCell<Tally>) -> Result<(), Stop> {
        let mut session = Session::open(&self.roster, member).await?;
        let mut told = Some(self.look(member, &mut session, tally).await?);
        loop {
            let known = self.store.borrow().known(&member.name)?;
            let answer = patient(&mut session, &format!("{LEDGER}{}", known.cursor), PAGE_BYTES_MAX).await?;
            let page = page_of(&known, &answer)?;
            let followed = follow(member.name.as_str(), &known, &page).map_err(Stop::Fault)?;
            // Not before a page has proved whose they are, and before anything that they are the prices of.
            let prices = told.take().unwrap_or_default();
            if let Some(fault) = self.store.borrow_mut().priced(&member.name, prices)? {
                return Err(Stop::Fault(fault));
            }
            self.taken(member, &known, &followed, tally)?;
            if !followed.more {
                return Ok(());
            }
            let mut tally = tally.borrow_mut();
            tally.bytes += page.bytes() as u64;
            if tally.pages >= PAGES_MAX || tally.bytes >= self.settings.box_bytes_max {
                let Tally { pages, bytes, .. } = *tally;
                return Err(Stop::Hopeless(format!("not at its end after {pages} pages, {bytes} bytes")));
            }
        }
    }

    /// Takes a page in.
    fn taken(
        &self,
        member: &Member,
        known: &Known,
        followed: &Followed,
        tally: &RefCell<Tally>,
    ) -> Result<(), StoreError> {
        let mut store = self.store.borrow_mut();
        let (fresh, flagged) = store.take(&member.name, known, followed, unix_ms())?;
        if !followed.more {
            store.unflag(&member.name, Flag::Unreadable)?;
        }
        let mut tally = tally.borrow_mut();
        tally.flag(flagged);
        tally.records += fresh;
        tally.pages += u32::from(followed.more);
        (self.progress.borrow_mut())(Progress::Page(&member.name, fresh));
        Ok(())
    }

    /// Asks a box how it stands; by which prices it says that it charges.
    async fn look(&self, member: &Member, session: &mut Session, tally: &RefCell<Tally>) -> Result<Vec<Prices>, Stop> {
        let answer = patient(session, INVENTORY, INVENTORY_BYTES_MAX).await?;
        if !answer.status.is_success() {
            return Err(Stop::Broken(format!("its inventory is refused with status {}", answer.status.as_u16())));
        }
        let now = unix_ms();
        let known = self.store.borrow().known(&member.name)?;
        let mut inventory = serde_json::from_slice::<Inventory>(&answer.body).map_err(|error| {
            Stop::Fault(Fault::new(Flag::Lied, known.cursor, format!("its inventory is none: {error}")))
        })?;
        let prices = mem::take(&mut inventory.prices);
        let seen = inventory.seen(now);
        let mut store = self.store.borrow_mut();
        store.seen(&member.name, &seen, now)?;
        if seen.skew_ms.unsigned_abs() > SKEW_MAX_MS {
            let detail = format!(
                "its clock is {} s {} ours",
                seen.skew_ms.unsigned_abs() / 1_000,
                if seen.skew_ms > 0 { "ahead of" } else { "behind" }
            );
            let fault = Fault::new(Flag::Clock, known.cursor, detail);
            store.flag(&member.name, &fault, now)?;
            tally.borrow_mut().flag(Some(fault));
        } else {
            store.unflag(&member.name, Flag::Clock)?;
        }
        Ok(prices)
    }
}

/// Asks, and again where the box says that it is busy.
async fn patient(session: &mut Session, path: &str, bytes_max: usize) -> Result<Answer, Stop> {
    for _ in 0..BUSY_MAX {
        let answer = session.get(path, bytes_max).await?;
        if !matches!(answer.status.as_u16(), 429 | 503) {
            return Ok(answer);
        }
        sleep(Duration::from_secs(answer.retry_after_s.unwrap_or(1).clamp(1, RETRY_AFTER_MAX_S))).await;
    }
    Err(Stop::Broken(format!("it was busy {BUSY_MAX} times in a row")))
}

/// The page of an answer to a question for what follows `known`, or what the answer says of the box's ledger.
fn page_of(known: &Known, answer: &Answer) -> Result<SignedPage, Stop> {
    let fault = |flag, detail: String| Err(Stop::Fault(Fault::new(flag, known.cursor, detail)));
    let began = known.cursor != PageCursor(Position::default());
    match answer.status.as_u16() {
        200 => serde_json::from_slice(&answer.body)
            .or_else(|error| fault(Flag::Lied, format!("its page is none: {error}"))),
        409 => fault(Flag::RolledBack, "its ledger ends before what was pulled of it".to_owned()),
        400 if began => fault(Flag::Forked, "no line of its ledger ends where one did".to_owned()),
        // A fault that passes, and of which nothing was said that could be a lie.
        status @ 500.. => Err(Stop::Broken(format!("status {status} for a page of its ledger"))),
        status => fault(Flag::Lied, format!("status {status} for a page of its ledger")),
    }
}

/// What of an inventory is kept.
#[derive(Debug, Deserialize)]
struct Inventory {
    version: String,
    unix_ms: u64,
    #[serde(default)]
    functions: Vec<Value>,
    #[serde(default)]
    disk: Option<Disk>,
    #[serde(default)]
    boots: Vec<Boot>,
    #[serde(default)]
    prices: Vec<Prices>,
}

#[derive(Debug, Deserialize)]
struct Disk {
    free_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Boot {
    unix_ms: u64,
}

impl Inventory {
    fn seen(self, now_ms: u64) -> Seen {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        Seen {
            version: shown(&self.version),
            skew_ms: signed(self.unix_ms).saturating_sub(signed(now_ms)),
            functions: self.functions.len() as u64,
            disk_free_bytes: self.disk.map(|disk| disk.free_bytes),
            started_ms: self.boots.last().map(|boot| boot.unix_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;

    #[test]
    fn a_status_says_what_became_of_the_ledger() {
        let known = Known { cursor: PageCursor(Position { segment: 1, offset: 9 }), ..Known::default() };
        let fault = |known: &Known, status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            match page_of(known, &Answer { status, retry_after_s: None, body: Bytes::from_static(b"[]") }) {
                Err(Stop::Fault(fault)) => Some(fault.flag),
                Err(Stop::Broken(_)) => None,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            [409, 400, 404, 200].map(|status| fault(&known, status)),
            [Flag::RolledBack, Flag::Forked, Flag::Lied, Flag::Lied].map(Some)
        );
        assert_eq!(fault(&Known::default(), 400), Some(Flag::Lied), "nothing was pulled that could be forked");
        assert_eq!([500, 502, 504].map(|status| fault(&known, status)), [None; 3], "asked again with the next pull");
    }

    #[test]
    fn an_inventory_is_kept_fit_to_be_shown() {
        let text = r#"{"version": "1.0\u001b[2J", "unix_ms": 5000, "boots": [{"unix_ms": 1}, {"unix_ms": 2}], "disk": null, "new": {}}"#;
        let seen = serde_json::from_str::<Inventory>(text).unwrap().seen(6_500);
        assert_eq!((seen.version.as_str(), seen.skew_ms, seen.started_ms), ("1.0 [2J", -1_500, Some(2)));
        let ahead = serde_json::from_str::<Inventory>(r#"{"version": "1", "unix_ms": 18446744073709551615}"#).unwrap();
        assert_eq!(ahead.seen(0).skew_ms, i64::MAX);
    }
}
