//! The account of an instance's life: whose each µs of it was, from the wake's beginning to the end.
//!
//! ```text
//!  wake ──▶ up ──▶ ├─ A ─┤├── A B ──┤├─ B ─┤├ idle ┤ ──▶ end
//!  │        │      dispatch  dispatch  end    end          each event ends an interval, which is divided
//!  │        └ over those in work, by tokens fed and shown in the interval; in equal parts where there were none
//!  └ over those who waited for it, by how long each did; the rest is the box's
//! ```
//!
//! Invariant: the parts of an interval are whole µs and add up to it, so that what requests are billed and the box's own
//! [`System`] account add up to the lives exactly, which are summed by themselves ([`Books`]). CPU time goes the same way.
//! How long a wake took and when an instance's life was over is the warden's word, which goes by the process and not by when
//! it is heard; what was divided of the time between is [`System::late`]. Lives of processes that no server ever had are told
//! as a whole.
//! Memory is time × bytes: what is reserved is fixed for a life, what is used is what was read at the interval's end.
//! What a caller that left has claimed ([`Tab`]) is paid before the rest is divided. An instance that says something has an
//! interval of [`INTERVAL_MAX`] at most.
//! Cost: a token is one look through those in work; memory is allocated when a request begins, never for a token.

use super::{InstanceId, Ticket};
use crate::tab::{Share, Tab};
use appliance_types::FunctionName;
use sandbox_wire::warden::{Purpose, Spent};
use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest interval of an instance that says something: whoever leaves is not billed the CPU time of his last one.
const INTERVAL_MAX: Duration = Duration::from_millis(100);

/// What the kernel says of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// CPU time since it began, µs.
    pub(crate) cpu_us: u64,
    /// Memory that it uses, bytes.
    pub(crate) used_bytes: u64,
}

/// Where readings come from; none for an instance that is not known or cannot be read.
pub(crate) struct Sensor(Box<dyn FnMut(InstanceId) -> Option<Reading> + Send>);

impl Sensor {
    pub(crate) fn new(read: impl FnMut(InstanceId) -> Option<Reading> + Send + 'static) -> Self {
        Self(Box::new(read))
    }

    pub(super) fn read(&mut self, instance: InstanceId) -> Option<Reading> {
        (self.0)(instance)
    }
}

impl Default for Sensor {
    /// One that knows nothing.
    fn default() -> Self {
        Self::new(|_| None)
    }
}

impl fmt::Debug for Sensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sensor")
    }
}

/// What nobody is billed for, of one function, since the server began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// An instance was up and had nothing to do.
    pub idle: Share,
    /// A wake that no caller waited for, and the box's own work.
    pub provision: Share,
    /// What was begun and came to nothing: failed wakes, work tried again elsewhere or given up by batch, and what a
    /// runner did after its caller had left.
    pub waste: Share,
    /// Processes made to be measured and captured.
    pub capture: Share,
    /// Processes made to try a snapshot.
    pub trial: Share,
    /// Processes restored ahead of need, until they were.
    pub spare: Share,
    /// The lives themselves, until now.
    pub life: Share,
    /// What of the lives was after their end, before the server had heard of it: divided or billed, and no machine's.
    pub late: Share,
    /// Wakes begun that have ended, and lives that are not over.
    pub instances: u64,
}

impl System {
    /// A part of a life that no account has.
    pub(super) fn lived(&mut self, purpose: Purpose, spent: Spent) {
        let share = Share::from(spent);
        let part = match purpose {
            Purpose::Wake => {
                self.instances += 1;
                &mut self.waste
            }
            Purpose::Capture => &mut self.capture,
            Purpose::Trial => &mut self.trial,
            Purpose::Spare => &mut self.spare,
        };
        part.add(share);
        self.life.add(share);
    }
}

/// All functions' own accounts.
#[derive(Debug, Default)]
pub(crate) struct Books(BTreeMap<FunctionName, System>);

impl Books {
    pub(crate) fn of(&mut self, function: &FunctionName) -> &mut System {
        if !self.0.contains_key(function) {
            self.0.insert(function.clone(), System::default());
        }
        self.0.get_mut(function).expect("inserted above")
    }

    pub(crate) fn all(&self) -> BTreeMap<FunctionName, System> {
        self.0.clone()
    }
}

/// A request that waited for a wake.
pub(super) struct Waiter<'a> {
    pub(super) tab: &'a Tab,
    pub(super) came: Instant,
    /// Whether somebody can be billed for it.
    pub(super) billed: bool,
}

/// One request in work.
#[derive(Debug)]
struct Line {
    ticket: Ticket,
    tab: Arc<Tab>,
    /// Whether somebody can be billed for it.
    billed: bool,
    /// Seen in the interval, and those that may still be believed.
    tokens: u64,
    prompt_left: u64,
    text_left: u64,
    paused: bool,
    left: bool,
    claimed_now: bool,
}

/// What an instance begins with.
pub(super) struct Born {
    /// When its wake began.
    pub(super) began: Instant,
    /// CPU time that its process had used by then, µs.
    pub(super) cpu_before_us: u64,
    pub(super) reserved_bytes: u64,
}

/// The account of one instance.
#[derive(Debug)]
pub(crate) struct Account {
    began: Instant,
    cpu_before_us: u64,
    reserved_bytes: u64,
    /// Its life is over, and all of it divided.
    over: bool,
    /// What is divided already: time since `began`, and CPU time.
    until_us: u64,
    cpu_us: u64,
    used_bytes: u64,
    lines: Vec<Line>,
    /// Claimed by callers who left, beyond the interval in which they did.
    owed_us: u64,
}

/// Splits `total` by weights in whole parts that add up to it.
struct Split {
    total: u64,
    weight: u128,
    before: u128,
    given: u64,
}

impl Split {
    fn new(total: u64, weight: u128) -> Self {
        Self { total, weight, before: 0, given: 0 }
    }

    fn next(&mut self, weight: u128) -> u64 {
        self.before += weight;
        let until = (u128::from(self.total) * self.before / self.weight.max(1)) as u64;
        until - std::mem::replace(&mut self.given, until)
    }

    fn rest(&self) -> u64 {
        self.total - self.given
    }
}

impl Line {
    /// Whether it was in work in the interval.
    fn works(&self) -> bool {
        !self.paused
    }
}

impl Account {
    /// That of an instance whose wake ends now; the wake is divided.
    pub(super) fn woken(
        born: Born,
        now: Instant,
        reading: Option<Reading>,
        waiters: &[Waiter<'_>],
        system: &mut System,
    ) -> Self {
        let Born { began, cpu_before_us, reserved_bytes } = born;
        let (until_us, cpu_us, used_bytes, owed_us) = (0, cpu_before_us, 0, 0);
        let (over, lines) = (false, Vec::new());
        let mut account =
            Self { began, cpu_before_us, reserved_bytes, over, until_us, cpu_us, used_bytes, lines, owed_us };
        system.instances += 1;
        let (us, cpu_us) = account.advance(now, reading, system);
        let waited = |waiter: &Waiter<'_>| {
            let since = waiter.came.max(began);
            now.saturating_duration_since(since).as_micros().min(u128::from(us))
        };
        // Nobody pays for more of it than he waited.
        let weight = waiters.iter().map(waited).sum::<u128>().max(us.into());
        let (mut time, mut cpu) = (Split::new(us, weight), Split::new(cpu_us, weight));
        for waiter in waiters {
            let share = account.share(time.next(waited(waiter)), cpu.next(waited(waiter)));
            if !waiter.billed || !waiter.tab.add_wake(share, account.used_bytes) {
                system.provision.add(share);
            }
        }
        system.provision.add(account.share(time.rest(), cpu.rest()));
        account
    }

    /// A request gets a slot. `billed` says whether somebody can be billed for it, the others how many tokens of it can
    /// be believed.
    pub(super) fn join(&mut self, ticket: Ticket, tab: &Arc<Tab>, billed: bool, prompt_max: u64, text_max: u64) {
        let left = !tab.dispatch();
        let (tab, prompt_left, text_left) = (Arc::clone(tab), prompt_max, text_max);
        let (tokens, paused, claimed_now) = (0, false, false);
        self.lines.push(Line { ticket, tab, billed, tokens, prompt_left, text_left, paused, left, claimed_now });
    }

    /// A request leaves its slot.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(at) = self.lines.iter().position(|line| line.ticket == ticket) else { return };
        let line = self.lines.remove(at);
        line.tab.rests();
        // Claimed since the interval was divided.
        self.owed_us += line.tab.claimed_us();
    }

    pub(super) fn pause(&mut self, ticket: Ticket, paused: bool) {
        self.lines.iter_mut().filter(|line| line.ticket == ticket).for_each(|line| line.paused = paused);
    }

    /// A prompt is being fed.
    pub(super) fn prompt(&mut self, ticket: Ticket, tokens: u32) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.ticket == ticket) {
            line.tokens += u64::from(tokens).min(std::mem::take(&mut line.prompt_left));
        }
    }

    /// A piece of text came: it took a token at least, whatever its runner says.
    pub(super) fn text(&mut self, ticket: Ticket, tokens: u32) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.ticket == ticket) {
            let tokens = u64::from(tokens.max(1)).min(line.text_left);
            line.text_left -= tokens;
            line.tokens += tokens;
        }
    }

    /// Divides what passed since the last event.
    pub(super) fn settle(&mut self, now: Instant, reading: Option<Reading>, system: &mut System) {
        if self.over {
            return;
        }
        let (us, cpu_us) = self.advance(now, reading, system);
        let claimed_us = self.pay(us);
        let weight = |lines: &[Line], is: &dyn Fn(&Line) -> bool| {
            let (count, tokens) = lines
                .iter()
                .filter(|line| is(line))
                .fold((0, 0), |(count, tokens), line| (count + 1, tokens + u128::from(line.tokens)));
            if tokens == 0 { (count, true) } else { (tokens, false) }
        };
        let pays = |line: &Line| line.works() && !line.claimed_now;
        let ((time_weight, evenly), (cpu_weight, cpu_evenly)) =
            (weight(&self.lines, &pays), weight(&self.lines, &Line::works));
        let (mut time, mut cpu) = (Split::new(us - claimed_us, time_weight), Split::new(cpu_us, cpu_weight));
        let tokens = |line: &Line, evenly| if evenly { 1 } else { u128::from(line.tokens) };
        for line in self.lines.iter().filter(|line| line.works()) {
            let us = if line.claimed_now { 0 } else { time.next(tokens(line, evenly)) };
            let share = self.share(us, cpu.next(tokens(line, cpu_evenly)));
            if !line.billed {
                system.provision.add(share);
            } else if line.left || !line.tab.add_run(share, self.used_bytes) {
                system.waste.add(share);
            }
        }
        // Claims are time that is billed; what was used in it is not known to who claimed.
        let claimed = Share { us: 0, reserved_byte_us: 0, ..self.share(claimed_us, 0) };
        system.waste.add(claimed);
        let rest = self.share(time.rest(), cpu.rest());
        if self.lines.iter().any(Line::works) {
            system.waste.add(rest)
        } else {
            system.idle.add(rest)
        }
        for line in &mut self.lines {
            (line.tokens, line.claimed_now) = (0, false);
        }
        self.publish(now);
    }

    /// Has those in work know what is not in their sums; to be called after each change of who is.
    pub(super) fn publish(&self, now: Instant) {
        let in_work = self.lines.iter().filter(|line| line.works()).count() as u64;
        for line in &self.lines {
            line.tab.runs(
                now,
                if line.works() && line.billed && !self.over { in_work } else { 0 },
                self.reserved_bytes,
            );
        }
    }

    /// Its life is over, and was this. What was divided or is claimed beyond that is told apart.
    pub(super) fn end(&mut self, spent: Spent, system: &mut System) {
        let (until_us, used_bytes) = (self.until_us, self.used_bytes);
        let reading = Reading { cpu_us: self.cpu_before_us + spent.cpu_us, used_bytes };
        self.settle(self.began + Duration::from_micros(spent.us), Some(reading), system);
        self.over = true;
        self.publish(self.began);
        // Claimed since the last interval was divided; from here on a close claims nothing.
        self.owed_us += self.lines.iter().map(|line| line.tab.claimed_us()).sum::<u64>();
        let owed_us = std::mem::take(&mut self.owed_us);
        let claimed = Share { used_byte_us: 0, ..self.share(owed_us, 0) };
        system.life.add(claimed);
        system.late.add(claimed);
        system.late.add(self.share(until_us.saturating_sub(spent.us), 0));
    }

    /// Whether an interval has become long.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= Duration::from_micros(self.until_us) + INTERVAL_MAX
    }

    /// Takes what callers who left have claimed out of an interval; what part of it that is.
    fn pay(&mut self, us: u64) -> u64 {
        for line in self.lines.iter_mut().filter(|line| !line.left && line.tab.is_closed()) {
            (line.left, line.claimed_now) = (true, true);
            self.owed_us += line.tab.claimed_us();
        }
        let paid = self.owed_us.min(us);
        self.owed_us -= paid;
        paid
    }

    /// Ends the interval: its time and CPU time, which are added to the instance's life.
    fn advance(&mut self, now: Instant, reading: Option<Reading>, system: &mut System) -> (u64, u64) {
        let until_us = (now.saturating_duration_since(self.began).as_micros() as u64).max(self.until_us);
        let us = until_us - std::mem::replace(&mut self.until_us, until_us);
        let mut cpu_us = 0;
        if let Some(Reading { cpu_us: until, used_bytes }) = reading {
            cpu_us = until.saturating_sub(self.cpu_us);
            self.cpu_us = self.cpu_us.max(until);
            self.used_bytes = used_bytes;
        }
        system.life.add(self.share(us, cpu_us));
        (us, cpu_us)
    }

    fn share(&self, us: u64, cpu_us: u64) -> Share {
        let over = |bytes: u64| u128::from(us) * u128::from(bytes);
        Share { us, cpu_us, reserved_byte_us: over(self.reserved_bytes), used_byte_us: over(self.used_bytes) }
    }
}

#[cfg(test)]
mod tests;
