//! `ember sim`: what scaling policies cost on a trace.

use crate::{args::Sim, error::Error, output};
use appliance_sim::{Costs, KeyReport, Machine, Report, Synthetic, Trace, Waits, policies, simulate, svg, waits};
use serde_json::{Value, json};
use std::{fs, time::Duration};

/// Most functions that a server has; a simulated one takes as many.
const FUNCTIONS_MAX: u32 = 1024;
/// The policy that wasted memory is told as a share of.
const MEASURE: &str = "fixed 300 s";

/// A trace that was replayed.
struct Replayed {
    name: String,
    requests: usize,
    functions: u32,
    reports: Vec<Report>,
    waits: Option<Waits>,
}

pub(crate) fn sim(sim: &Sim) -> Result<(), Error> {
    if sim.svg.is_some() && sim.trace.is_none() && sim.synthetic.is_none() {
        return Err(Error::Usage("--svg draws one trace: name it, or choose one with --synthetic".into()));
    }
    let (machine, costs) = (machine(sim), costs(sim));
    let replayed: Vec<_> =
        traces(sim)?.into_iter().map(|(name, trace)| replay(name, &trace, &machine, &costs)).collect();
    if let (Some(path), [one]) = (&sim.svg, &replayed[..]) {
        let picture = svg(&one.name, &one.reports);
        fs::write(path, picture).map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    let value = Value::Array(replayed.iter().map(Replayed::json).collect());
    output::print(sim.listing, &value, || Ok(table(&replayed)))
}

fn traces(sim: &Sim) -> Result<Vec<(String, Trace)>, Error> {
    let Some(path) = &sim.trace else {
        let kinds = sim.synthetic.map_or_else(|| Synthetic::OF_SCALING.to_vec(), |kind| vec![kind]);
        return Ok(kinds.into_iter().map(|kind| (kind.to_string(), cut(kind.trace(), sim))).collect());
    };
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let refused = |reason| Error::Trace { path: path.clone(), reason };
    let trace = cut(Trace::parse(&text).map_err(|error| refused(error.to_string()))?, sim);
    if trace.functions > FUNCTIONS_MAX {
        let reason = format!("{} functions; a server has {FUNCTIONS_MAX} at most: use --functions N", trace.functions);
        return Err(refused(reason));
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(vec![(name, trace)])
}

fn cut(trace: Trace, sim: &Sim) -> Trace {
    match sim.functions {
        Some(functions) => trace.first(functions),
        None => trace,
    }
}

fn replay(name: String, trace: &Trace, machine: &Machine, costs: &Costs) -> Replayed {
    let reports = policies().iter().map(|policy| simulate(trace, machine, costs, policy)).collect();
    let waits = waits(trace, machine, costs);
    Replayed { name, requests: trace.requests.len(), functions: trace.functions, reports, waits }
}

fn machine(sim: &Sim) -> Machine {
    let default = Machine::default();
    Machine {
        cores: sim.cores.unwrap_or(default.cores),
        memory_bytes: sim.memory.unwrap_or(default.memory_bytes),
        cpus: sim.cpus.unwrap_or(default.cpus),
        slots: sim.concurrency.unwrap_or(default.slots),
        instances_max: sim.max.unwrap_or(default.instances_max),
        ..default
    }
}

fn costs(sim: &Sim) -> Costs {
    let default = Costs::default();
    let time = |ms: Option<u64>, default| ms.map_or(default, Duration::from_millis);
    let token = |rate: Option<u32>, default| rate.map_or(default, |rate| Duration::from_secs(1) / rate);
    Costs {
        parked_wake: time(sim.parked_wake, default.parked_wake),
        stored_wake: time(sim.stored_wake, default.stored_wake),
        weight_bytes: sim.weights.unwrap_or(default.weight_bytes),
        image_bytes: sim.image.unwrap_or(default.image_bytes),
        prefill_token: token(sim.prefill_rate, default.prefill_token),
        decode_token: token(sim.decode_rate, default.decode_token),
        service: time(sim.service, default.service),
        ..default
    }
}

fn table(replayed: &[Replayed]) -> String {
    let header = [
        "TRACE",
        "POLICY",
        "RUNNING",
        "PARKED",
        "STORED",
        "COLD",
        "P50",
        "P99",
        "WAKES",
        "REFUSED",
        "WASTED MiB·s",
        "OF 300 s",
    ];
    let policies = output::table(header, replayed.iter().flat_map(Replayed::rows));
    let mut keys = replayed.iter().flat_map(Replayed::rows_of_keys).peekable();
    if keys.peek().is_none() {
        return policies;
    }
    let header = ["TRACE", "ORDER", "KEY", "SERVED", "REFUSED", "WAIT P50", "WAIT P99"];
    format!("{policies}\n\n{}", output::table(header, keys))
}

impl Replayed {
    fn rows(&self) -> impl Iterator<Item = [String; 12]> {
        let measure =
            self.reports.iter().find(|report| report.policy == MEASURE).map_or(0, |report| report.wasted_mib_s);
        self.reports.iter().map(move |report| {
            let found = |requests: u64| format!("{:.1} %", requests as f64 * 100.0 / report.served.max(1) as f64);
            [
                self.name.clone(),
                report.policy.clone(),
                found(report.found_running),
                found(report.found_parked),
                found(report.found_stored),
                found(report.found_cold),
                format!("{:.0} ms", report.first_token_p50_ms),
                format!("{:.0} ms", report.first_token_p99_ms),
                report.wakes.to_string(),
                report.refused.to_string(),
                report.wasted_mib_s.to_string(),
                format!("{:.2}", report.wasted_mib_s as f64 / measure.max(1) as f64),
            ]
        })
    }

    /// What each key waits for, by the order in which requests are taken.
    fn rows_of_keys(&self) -> Vec<[String; 7]> {
        let Some(Waits { turns, fifo, alone }) = &self.waits else { return Vec::new() };
        let orders = [("turns", turns), ("fifo", fifo), ("alone", alone)];
        let rows = orders.into_iter().flat_map(|(order, keys)| keys.iter().map(move |key| self.row_of_key(order, key)));
        rows.collect()
    }

    fn row_of_key(&self, order: &str, waits: &KeyReport) -> [String; 7] {
        let KeyReport { key, served, refused, wait_p50_ms, wait_p99_ms } = waits;
        let ms = |ms: &f64| format!("{ms:.0} ms");
        let (served, refused) = (served.to_string(), refused.to_string());
        [self.name.clone(), order.to_owned(), key.clone(), served, refused, ms(wait_p50_ms), ms(wait_p99_ms)]
    }

    fn json(&self) -> Value {
        let Self { name, requests, functions, reports, waits } = self;
        json!({ "trace": name, "requests": requests, "functions": functions, "policies": reports, "waits": waits })
    }
}
