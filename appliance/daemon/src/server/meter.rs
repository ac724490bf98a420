//! The account of one request that reached a function: what it used, kept until it ends.
//!
//! ```text
//!  new ─▶ (dispatched ─▶ started ─▶ text* ─▶ finished)*  ─▶ completed | failed ─▶ end
//!                 └──────────── ended at any point: cancelled, with what was used until then
//! ```
//!
//! What is paid for is the server's own count: time by the pool's account of the instance, tokens of text at least as many as
//! pieces came, of prompts what the pool believes. What a runner says beyond that is shown, up to what there can be: tokens up to the context, time up to what has passed. Lengths are of the monotonic clock; the wall clock only stamps, and may show anything.
//!
//! When it is told, and to whom, is [`super::desk`]'s.

use super::{allowance::Allowance, handler::unix_ms, purse::Purse, report::Report, state::State};
use appliance_admit::Class;
use appliance_api::{ApiError, Timings, Usage};
use appliance_keys::Key;
use appliance_pool::{Dispatched, Tab, Used};
use appliance_price::{Measured, Prices};
use appliance_telemetry::{Ended, Operation};
use appliance_types::{FunctionName, Outcome, Record, RequestId};
use sandbox_wire::runner::Finished;
use std::{sync::Arc, time::Instant};

/// Stands for the status of a request whose client left before there was one, as it does in nginx's logs.
const CLIENT_LEFT: u16 = 499;

/// The account of one request.
pub(super) struct Account {
    /// What ended jobs used.
    record: Record,
    job: Option<Job>,
    /// What the current job uses of its instance.
    tab: Option<Arc<Tab>>,
    began: Instant,
    operation: Operation,
    /// Tokens that a sequence may hold.
    context_tokens: u32,
    dispatched: bool,
    /// Jobs of whose prompts a runner claimed what cannot be.
    claims_corrected: u64,
    /// What its key was granted for it; settled with the record.
    allowance: Option<Allowance>,
    /// Of when it came.
    prices: Arc<Prices>,
    /// What budgets granted for it; settled with the record.
    purse: Option<Purse>,
}

/// What a job has used so far, by this side's clock: exact figures come with its end.
struct Job {
    queue_us: u64,
    wake_us: u64,
    began: Instant,
    first_text: Option<Instant>,
    tokens_in: u32,
    tokens_cached: u32,
    tokens_out: u32,
    /// Pieces of text that came.
    pieces: u32,
}

impl Account {
    pub(super) fn new(
        state: &State,
        request: RequestId,
        key: &Key,
        function: &FunctionName,
        context_tokens: u32,
        bytes_in: usize,
    ) -> Self {
        let came_unix_ms = unix_ms();
        let prices = state.prices_at(came_unix_ms);
        let record = Record {
            came_unix_ms,
            status: CLIENT_LEFT,
            bytes_in: bytes_in as u64,
            project: key.project.clone(),
            ..Record::new(request, key.name.clone(), function.clone())
        };
        Self {
            record,
            job: None,
            tab: None,
            began: Instant::now(),
            operation: Operation::Other,
            context_tokens,
            dispatched: false,
            claims_corrected: 0,
            allowance: None,
            prices,
            purse: None,
        }
    }

    /// The same of an operation.
    pub(super) fn of_operation(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// The same of a class.
    pub(super) fn of_class(mut self, class: Class) -> Self {
        self.record.batch = class == Class::Batch;
        self
    }

    /// What it is charged by.
    pub(super) fn prices(&self) -> Arc<Prices> {
        Arc::clone(&self.prices)
    }

    /// Budgets granted this for it.
    pub(super) fn afforded(&mut self, purse: Purse) {
        self.purse = Some(purse);
    }

    /// How long its next job may take before its money is used up, ms; `None` where there is no budget.
    pub(super) fn affordable_ms(&self, memory_bytes: u64) -> Option<u64> {
        let cap = self.cap_nanos()?;
        Some(self.prices.affordable_ms(cap, memory_bytes).saturating_sub(self.prices.billed_ms(&self.measured())))
    }

    /// Whether what it was granted is used up.
    pub(super) fn is_spent(&self) -> bool {
        self.cap_nanos().is_some_and(|cap| self.prices.cost_nanos(&self.measured()) >= cap)
    }

    /// It is stopped where it is because its money is used up.
    pub(super) fn stopped_by_budget(&mut self) {
        self.record.budget_reached = true;
        self.break_off();
    }

    fn cap_nanos(&self) -> Option<u64> {
        self.purse.as_ref().and_then(Purse::cap_nanos)
    }

    /// What it used until now.
    fn measured(&self) -> Measured {
        let mut used = Measured::from(&self.record);
        if let Some(tab) = &self.tab {
            let so_far = tab.peek(Instant::now());
            add(&mut used.wake_us, so_far.wake.us);
            add(&mut used.work_us, so_far.run.us);
            add(&mut used.cpu_us, so_far.total().cpu_us);
        }
        if let Some(job) = &self.job {
            used.tokens_in = used.tokens_in.saturating_add(job.tokens_in.saturating_sub(job.tokens_cached));
            used.tokens_cached = used.tokens_cached.saturating_add(job.tokens_cached);
            used.tokens_out = used.tokens_out.saturating_add(job.tokens_out);
        }
        used
    }

    /// Its key was granted this for it.
    pub(super) fn allowed(&mut self, allowance: Option<Allowance>) {
        self.allowance = allowance;
    }

    /// A job is asked for, which uses this.
    pub(super) fn submitted(&mut self, tab: Arc<Tab>) {
        self.take_tab();
        self.tab = Some(tab);
    }

    /// A job has its slot. Said again when its instance died and another took over: then the later counts.
    pub(super) fn dispatched(&mut self, dispatched: &Dispatched) {
        if !self.dispatched {
            self.dispatched = true;
            self.record.tier = dispatched.tier;
        }
        self.record.memory_bytes = dispatched.memory_bytes;
        self.job = Some(Job {
            queue_us: dispatched.queue_us,
            wake_us: dispatched.wake_us,
            began: Instant::now(),
            first_text: None,
            tokens_in: 0,
            tokens_cached: 0,
            tokens_out: 0,
            pieces: 0,
        });
    }

    /// What its runner claimed of its prompt cannot be.
    pub(super) fn corrected(&mut self) {
        self.claims_corrected += 1;
    }

    /// Its prompt is being fed.
    pub(super) fn started(&mut self, prompt_tokens: u32, cached_tokens: u32) {
        if let Some(job) = &mut self.job {
            (job.tokens_in, job.tokens_cached) = (prompt_tokens, cached_tokens);
        }
    }

    /// It produced text.
    pub(super) fn text(&mut self, tokens: u32) {
        if let Some(job) = &mut self.job {
            let first = *job.first_text.get_or_insert_with(Instant::now);
            if self.record.first_text_us == 0 {
                self.record.first_text_us = us(self.began, first);
            }
            job.tokens_out = job.tokens_out.saturating_add(tokens);
            job.pieces = job.pieces.saturating_add(1);
        }
    }

    /// It ended, having used exactly this.
    pub(super) fn finished(&mut self, finished: &Finished) {
        let passed_us = us(self.began, Instant::now());
        self.close(|record, job| {
            let prefill_us = finished.prefill_us.min(passed_us);
            add(&mut record.prefill_us, prefill_us);
            add(&mut record.decode_us, finished.decode_us.min(passed_us - prefill_us));
            (job.tokens_in, job.tokens_cached) = (finished.prompt_tokens, finished.cached_tokens);
            // A token makes one piece at most, but for one that was held back to the end.
            job.tokens_out = finished.completion_tokens.max(job.tokens_out).max(job.pieces.saturating_sub(1));
        });
    }

    /// A job without text ended, having used this.
    pub(super) fn computed(&mut self, tokens: u32, compute_us: u64) {
        let passed_us = us(self.began, Instant::now());
        self.close(|record, job| {
            add(&mut record.prefill_us, compute_us.min(passed_us));
            job.tokens_in = tokens;
        });
    }

    /// The reply's head is sent, with status 200.
    pub(super) fn replying(&mut self) {
        self.record.status = 200;
    }

    /// So much of the reply's body is on its way.
    pub(super) fn sent(&mut self, bytes: usize) {
        add(&mut self.record.bytes_out, bytes as u64);
    }

    /// It was answered in full.
    pub(super) fn completed(&mut self) {
        self.record.status = 200;
        self.record.outcome = Outcome::Completed;
    }

    /// It was not. A status that was sent already stays.
    pub(super) fn failed(&mut self, error: &ApiError) {
        if self.record.status == CLIENT_LEFT {
            self.record.status = error.status;
        }
        self.record.outcome = match error.status {
            504 => Outcome::DeadlineExceeded,
            502 => Outcome::RunnerFailed,
            400..=499 | 503 => Outcome::Refused,
            _ => Outcome::Failed,
        };
    }

    /// What ended jobs used; where the request waited, that of the current one too.
    pub(super) fn record(&self) -> Record {
        let mut record = self.record.clone();
        if let Some(job) = &self.job {
            add(&mut record.queue_us, job.queue_us);
            add(&mut record.wake_us, job.wake_us);
        }
        record
    }

    /// The reply's usage, receipt included.
    pub(super) fn usage(&self) -> Usage {
        let mut record = self.record.clone();
        self.prices.charge(&mut record, self.cap_nanos());
        Usage::from_record(&record, &self.prices)
    }

    /// llama-server's timings.
    pub(super) fn timings(&self) -> Timings {
        Timings::from_record(&self.record)
    }

    /// A job that did not end by itself used the time until now.
    fn break_off(&mut self) {
        let now = Instant::now();
        self.close(|record, job| {
            let decoding = job.first_text.unwrap_or(now);
            add(&mut record.prefill_us, us(job.began, decoding));
            add(&mut record.decode_us, us(decoding, now));
        });
    }

    /// Takes the current job's part of its instance over to the record; what it uses later is not billed.
    fn take_tab(&mut self) {
        if let Some(tab) = self.tab.take() {
            add_used(&mut self.record, &tab.close(Instant::now()));
        }
    }

    fn close(&mut self, end: impl FnOnce(&mut Record, &mut Job)) {
        self.take_tab();
        let Some(mut job) = self.job.take() else { return };
        let record = &mut self.record;
        end(record, &mut job);
        add(&mut record.queue_us, job.queue_us);
        add(&mut record.wake_us, job.wake_us);
        add_tokens(record, &job, self.context_tokens);
    }
}

impl Account {
    /// What it has used until now, by this side's clock, and what that costs. What is billed should nothing more be heard
    /// of it.
    pub(super) fn now(&self) -> Record {
        let mut record = self.record();
        record.ended_unix_ms = unix_ms();
        if let Some(job) = &self.job {
            let now = Instant::now();
            let decoding = job.first_text.unwrap_or(now);
            add(&mut record.prefill_us, us(job.began, decoding));
            add(&mut record.decode_us, us(decoding, now));
            add_tokens(&mut record, job, self.context_tokens);
        }
        if let Some(tab) = &self.tab {
            add_used(&mut record, &tab.peek(Instant::now()));
        }
        self.prices.charge(&mut record, self.cap_nanos());
        record
    }

    /// It ends now, and has used this.
    pub(super) fn end(&mut self) -> (Record, Ended) {
        self.break_off();
        let cap_nanos = self.cap_nanos();
        self.prices.charge(&mut self.record, cap_nanos);
        if let Some(purse) = &mut self.purse {
            purse.settle(self.record.cost_nanos);
        }
        if let Some(allowance) = &mut self.allowance {
            allowance.used(self.record.tokens_in.saturating_add(self.record.tokens_out));
        }
        self.record.ended_unix_ms = unix_ms();
        if self.dispatched {
            tracing::info!("{}", Report { record: &self.record, prices: &self.prices });
        }
        let claims_corrected = self.claims_corrected;
        if claims_corrected > 0 {
            let Record { request, function, .. } = &self.record;
            tracing::warn!(%request, %function, claims_corrected, "a runner claimed of a prompt's tokens what cannot be");
        }
        let took_us = us(self.began, Instant::now());
        (self.record.clone(), Ended { operation: self.operation, took_us, claims_corrected })
    }
}

fn add_tokens(record: &mut Record, job: &Job, context_tokens: u32) {
    let tokens_in = job.tokens_in.min(context_tokens);
    record.tokens_in = record.tokens_in.saturating_add(tokens_in);
    record.tokens_cached = record.tokens_cached.saturating_add(job.tokens_cached.min(tokens_in));
    record.tokens_out = record.tokens_out.saturating_add(job.tokens_out.min(context_tokens));
}

fn add_used(record: &mut Record, used: &Used) {
    let total = used.total();
    add(&mut record.share_us, used.run.us);
    add(&mut record.wake_share_us, used.wake.us);
    add(&mut record.cpu_us, total.cpu_us);
    add(&mut record.reserved_byte_ms, per_ms(total.reserved_byte_us));
    add(&mut record.used_byte_ms, per_ms(total.used_byte_us));
    record.peak_kib = record.peak_kib.max(u32::try_from(used.peak_bytes.div_ceil(1_024)).unwrap_or(u32::MAX));
}

/// Of byte·µs, whole byte·ms.
fn per_ms(byte_us: u128) -> u64 {
    u64::try_from(byte_us / 1_000).unwrap_or(u64::MAX)
}

fn add(total: &mut u64, more: u64) {
    *total = total.saturating_add(more);
}

fn us(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}
