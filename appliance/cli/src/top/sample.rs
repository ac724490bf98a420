//! One look at the server: what it says of itself, of functions, instances, wakes and money, at one time.

use super::scrape::Scrape;
use crate::{client::Client, error::Error, output};
use appliance_types::{Record, Tier};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Wakes that are remembered.
const WAKES_MAX: usize = 32;
/// How far back the first look at wakes goes.
const WAKES_SINCE: Duration = Duration::from_secs(600);
/// Records of one look: when there are more, the oldest of them are shown, and the rest at the next.
const RECORDS_MAX: usize = 500;
/// Spending is asked for this seldom, since it sums a day of the ledger.
const SPENDING_EACH: Duration = Duration::from_secs(10);

/// What was seen.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) unix_ms: u64,
    pub(super) draining: bool,
    pub(super) scrape: Scrape,
    pub(super) functions: Vec<FunctionRow>,
    pub(super) instances: Vec<InstanceRow>,
    /// The last requests that waited for a wake, the latest first.
    pub(super) wakes: VecDeque<Record>,
    pub(super) spending: Vec<Spent>,
    pub(super) currency: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct FunctionRow {
    pub(super) name: String,
    pub(super) tier: Tier,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct InstanceRow {
    pub(super) function: String,
    pub(super) instance: Option<u64>,
    pub(super) private_bytes: Option<u64>,
    pub(super) parked_bytes: Option<u64>,
    pub(super) shared_bytes: Option<u64>,
    pub(super) slots: Option<u64>,
    pub(super) slots_busy: Option<u64>,
}

/// What a key has spent in the last day.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Spent {
    pub(super) group: String,
    pub(super) requests: u64,
    pub(super) cost_nanos: u64,
}

#[derive(Deserialize)]
struct Drain {
    draining: bool,
}

/// Looks again and again, and remembers what need not be asked for anew.
pub(super) struct Sampler {
    client: Client,
    wakes: VecDeque<Record>,
    records_since_ms: u64,
    spending: Option<(Instant, Vec<Spent>, String)>,
}

impl Sampler {
    pub(super) fn new(client: Client) -> Self {
        let records_since_ms = unix_ms().saturating_sub(WAKES_SINCE.as_millis() as u64);
        Self { client, wakes: VecDeque::new(), records_since_ms, spending: None }
    }

    pub(super) fn url(&self) -> &str {
        self.client.url()
    }

    pub(super) fn sample(&mut self) -> Result<Sample, Error> {
        let (client, at) = (&self.client, Instant::now());
        let (metrics, _) = client.page("/metrics")?;
        let functions = client.typed(&output::data(client.get("/ember/v1/functions")?))?;
        let instances = client.typed(&output::data(client.get("/ember/v1/instances")?))?;
        let Drain { draining } = client.typed(&client.get("/ember/v1/drain")?)?;
        self.look_at_records()?;
        let (spending, currency) = self.spending()?;
        Ok(Sample {
            at,
            unix_ms: unix_ms(),
            draining,
            scrape: Scrape::parse(&metrics),
            functions,
            instances,
            wakes: self.wakes.clone(),
            spending,
            currency,
        })
    }

    fn look_at_records(&mut self) -> Result<(), Error> {
        let path = format!("/ember/v1/usage/records?since={}&limit={RECORDS_MAX}", self.records_since_ms);
        let (lines, _) = self.client.page(&path)?;
        for line in lines.lines() {
            let record: Record = self.client.parsed(line)?;
            self.records_since_ms = self.records_since_ms.max(record.ended_unix_ms);
            // The last of one look are the first of the next.
            let woke = record.tier != Tier::Running && record.wake_us > 0;
            if woke && !self.wakes.iter().any(|wake| wake.request == record.request) {
                self.wakes.push_front(record);
                self.wakes.truncate(WAKES_MAX);
            }
        }
        Ok(())
    }

    fn spending(&mut self) -> Result<(Vec<Spent>, String), Error> {
        let known = self.spending.take().filter(|(at, ..)| at.elapsed() < SPENDING_EACH);
        let (at, spent, currency) = match known {
            Some(known) => known,
            None => {
                let reply = self.client.get("/ember/v1/usage?by=key&since=24h")?;
                let currency = reply["currency"].as_str().unwrap_or_default().to_owned();
                let mut spent: Vec<Spent> = self.client.typed(&output::data(reply))?;
                spent.sort_by_key(|spent| std::cmp::Reverse(spent.cost_nanos));
                (Instant::now(), spent, currency)
            }
        };
        self.spending = Some((at, spent.clone(), currency.clone()));
        Ok((spent, currency))
    }
}

fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
