//! What `ember top` knows and was told: samples, and keys. Pure.
//!
//! ```text
//!  watching ──/──▶ typing a filter ──Enter, Escape──▶ watching
//!     │ p: paused and back   s: the next order   q, Escape, Ctrl-C: the end
//! ```

use super::{
    sample::{InstanceRow, Sample},
    scrape::{Buckets, Scrape, Series},
};
use appliance_types::Tier;
use std::{collections::VecDeque, ops::ControlFlow};

/// Samples that are kept: rates and quantiles are of what lies between the first of them and the last.
const SAMPLES_MAX: usize = 30;
/// Longest filter: that of a name.
const FILTER_MAX: usize = 63;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Press {
    Letter(char),
    Back,
    Enter,
    Escape,
    Interrupt,
}

/// What functions are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Tier,
    Name,
    Memory,
    Rate,
}

impl Order {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Tier => "tier",
            Self::Name => "name",
            Self::Memory => "memory",
            Self::Rate => "requests",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Tier => Self::Name,
            Self::Name => Self::Memory,
            Self::Memory => Self::Rate,
            Self::Rate => Self::Tier,
        }
    }
}

/// A function, as its row shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) tier: Tier,
    pub(super) instances: usize,
    pub(super) slots_busy: u64,
    pub(super) slots: u64,
    pub(super) waiting: u64,
    pub(super) private_bytes: u64,
    pub(super) shared_bytes: u64,
    pub(super) parked_bytes: u64,
    pub(super) rate: f64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) url: String,
    pub(super) colored: bool,
    pub(super) order: Order,
    pub(super) filter: String,
    pub(super) typing: bool,
    /// Why the last look failed.
    pub(super) fault: Option<String>,
    paused: bool,
    samples: VecDeque<Sample>,
}

impl State {
    pub(super) fn new(url: &str, colored: bool) -> Self {
        Self {
            url: url.to_owned(),
            colored,
            order: Order::Tier,
            filter: String::new(),
            typing: false,
            fault: None,
            paused: false,
            samples: VecDeque::new(),
        }
    }

    /// A look has ended. What was seen before stays where it failed, and is not mixed with what a server says that began anew.
    pub(super) fn take(&mut self, sampled: Result<Sample, String>) {
        match sampled {
            Err(fault) => self.fault = Some(fault),
            Ok(sample) => {
                let began = |sample: &Sample| sample.scrape.sum("ember_start_time_seconds");
                if self.samples.back().is_some_and(|last| began(last) != began(&sample)) {
                    self.samples.clear();
                }
                self.fault = None;
                self.samples.push_back(sample);
                if self.samples.len() > SAMPLES_MAX {
                    self.samples.pop_front();
                }
            }
        }
    }

    /// A key was pressed; whether that is the end.
    pub(super) fn press(&mut self, press: Press) -> ControlFlow<()> {
        match press {
            Press::Interrupt => return ControlFlow::Break(()),
            Press::Letter(letter) if self.typing => {
                if self.filter.len() < FILTER_MAX && !letter.is_control() {
                    self.filter.push(letter);
                }
            }
            Press::Back if self.typing => drop(self.filter.pop()),
            Press::Enter if self.typing => self.typing = false,
            Press::Escape if self.typing => {
                self.typing = false;
                self.filter.clear();
            }
            Press::Letter('q') | Press::Escape => return ControlFlow::Break(()),
            Press::Letter('p' | ' ') => self.paused = !self.paused,
            Press::Letter('s') => self.order = self.order.next(),
            Press::Letter('/') => self.typing = true,
            Press::Letter(_) | Press::Back | Press::Enter => {}
        }
        ControlFlow::Continue(())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn last(&self) -> Option<&Sample> {
        self.samples.back()
    }

    /// How long it has been looked at, s; 0 before the second look.
    pub(super) fn watched_s(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) => last.at.saturating_duration_since(first.at).as_secs_f64(),
            _ => 0.0,
        }
    }

    /// How often in a second something was counted while it was looked at.
    pub(super) fn rate(&self, name: &str, wanted: impl Fn(&Series) -> bool) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        let more = last.scrape.sum_where(name, &wanted) - first.scrape.sum_where(name, &wanted);
        if self.watched_s() > 0.0 { more.max(0.0) / self.watched_s() } else { 0.0 }
    }

    /// Times to the first token while it was looked at; of all since the start of the server before the second look.
    pub(super) fn first_tokens(&self, cold: bool) -> Buckets {
        let of = |scrape: &Scrape| {
            scrape.buckets("ember_first_token_seconds", |series| (series.label("tier") != "running") == cold)
        };
        let Some(last) = self.samples.back().map(|sample| of(&sample.scrape)) else { return Buckets::default() };
        match self.samples.front() {
            Some(first) if self.samples.len() > 1 => last.since(&of(&first.scrape)),
            _ => last,
        }
    }

    /// The functions that the filter lets through, in order.
    pub(super) fn functions(&self) -> Vec<Function> {
        let Some(sample) = self.last() else { return Vec::new() };
        let wanted = sample.functions.iter().filter(|row| row.name.contains(&self.filter));
        let mut rows: Vec<Function> = wanted.map(|row| self.function(sample, &row.name, row.tier)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        match self.order {
            Order::Name => {}
            Order::Tier => rows.sort_by_key(|row| std::cmp::Reverse(row.tier)),
            Order::Memory => rows.sort_by_key(|row| std::cmp::Reverse(row.private_bytes + row.parked_bytes)),
            Order::Rate => rows.sort_by(|a, b| b.rate.total_cmp(&a.rate)),
        }
        rows
    }

    fn function(&self, sample: &Sample, name: &str, tier: Tier) -> Function {
        let of_it = || sample.instances.iter().filter(|row| row.function == name);
        let sum = |field: fn(&InstanceRow) -> Option<u64>| of_it().filter_map(field).sum();
        let is_its = |series: &Series| series.label("function") == name;
        Function {
            name: name.to_owned(),
            tier,
            instances: of_it().filter(|row| row.instance.is_some()).count(),
            slots_busy: sum(|row| row.slots_busy),
            slots: sum(|row| row.slots),
            waiting: sample.scrape.sum_where("ember_queue_depth", is_its) as u64,
            private_bytes: sum(|row| row.private_bytes),
            // Instances share one image.
            shared_bytes: of_it().filter_map(|row| row.shared_bytes).max().unwrap_or_default(),
            parked_bytes: sum(|row| row.parked_bytes),
            rate: self.rate("ember_requests_total", is_its),
        }
    }

    /// Why requests were answered with an error since the start of the server, the most frequent first.
    pub(super) fn refusals(&self) -> Vec<(String, u64)> {
        let Some(sample) = self.last() else { return Vec::new() };
        let each = sample.scrape.each("ember_refusals_total").filter(|series| series.value > 0.0);
        let mut rows: Vec<_> = each.map(|series| (series.label("reason").to_owned(), series.value as u64)).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        rows
    }
}
