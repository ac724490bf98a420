//! All families, each once, with its help.
//!
//! Amounts of money are integers of 10^-9 of a currency, which the label `currency` names.

use crate::{
    FUNCTIONS_MAX,
    histogram::Histogram,
    render::{Labels, Out, family},
    shard::{Counts, Operation, Series},
    standing::{Budget, Standing},
};
use appliance_types::Tier;
use std::{collections::BTreeMap, fmt};

/// What functions that are not told apart go by; no function has such a name.
const OTHERS: &str = "_other";
const PROVIDER: &str = "ember";
/// Who is asked how it stands.
const PARTS: [&str; 2] = ["pool", "warden"];

const TIERS: [Tier; 4] = [Tier::Cold, Tier::Stored, Tier::Parked, Tier::Running];

impl Out<'_> {
    /// What was counted of requests.
    pub(crate) fn counts(&mut self, counts: &Counts) -> fmt::Result {
        self.of_requests(counts)?;
        self.of_functions(counts)?;
        self.of_server(counts)
    }

    /// How the box stands, and what was counted of its parts.
    pub(crate) fn standing(&mut self, counts: &Counts, standing: &Standing) -> fmt::Result {
        self.of_pool(standing)?;
        self.of_wakes(standing)?;
        self.of_resources(standing)?;
        self.of_warden(standing)?;
        self.of_rings(counts, standing)?;
        self.of_ledger(counts, standing)?;
        self.of_budgets(standing)?;
        self.of_connections(standing)?;
        self.of_process(standing)
    }

    /// OpenTelemetry's metrics.
    fn of_requests(&mut self, counts: &Counts) -> fmt::Result {
        let duration = family(
            "gen_ai_server_request_duration",
            "Time from a request's arrival to the last byte of its answer, by what came of it.",
        );
        self.histograms(duration.seconds(), durations(counts))?;
        let first =
            family("gen_ai_server_time_to_first_token", "Time to the first token of requests answered in full.");
        self.histograms(first.seconds(), by_operation(counts, |series| &series.first_token))?;
        let each = family(
            "gen_ai_server_time_per_output_token",
            "Time per token after the first, of requests answered in full.",
        );
        self.histograms(each.seconds(), by_operation(counts, |series| &series.per_token))?;
        let tokens = family("gen_ai_client_token_usage", "Tokens of prompts (input) and of answers (output).");
        self.histograms(tokens, token_usage(counts))
    }

    fn of_functions(&mut self, counts: &Counts) -> fmt::Result {
        let requests = family("ember_requests", "Requests that reached a function and have ended.");
        self.counters(requests, requests_ended(counts))?;
        let cached = family("ember_tokens_cached", "Tokens of prompts that were found in the KV cache.");
        self.counters(cached, by_function(counts, |series| series.tokens_cached))?;
        let cost = family("ember_cost_nanos", "What requests were charged, in billionths of the currency.");
        self.counters(cost, by_function(counts, |series| series.cost_nanos))?;
        let instance = family("ember_instance", "Time of instances that was requests', their wakes included.");
        self.counters(instance.seconds(), by_function(counts, |series| seconds(series.instance_us)))?;
        let cpu = family("ember_cpu", "CPU time of instances that was requests'.");
        self.counters(cpu.seconds(), by_function(counts, |series| seconds(series.cpu_us)))?;
        let reserved = family("ember_reserved_byte", "Memory reserved for requests, times its time.");
        self.counters(reserved.seconds(), by_function(counts, |series| series.reserved_byte_ms as f64 / 1e3))?;
        let bodies = family("ember_request_body", "Bodies of requests.");
        self.counters(bodies.bytes(), by_function(counts, |series| series.bytes_in))?;
        let replies = family("ember_response_body", "Bodies of responses.");
        self.counters(replies.bytes(), by_function(counts, |series| series.bytes_out))?;
        let stopped = family("ember_requests_stopped_by_budget", "Answers that a budget ended.");
        self.counters(stopped, by_function(counts, |series| series.budget_reached))?;
        let corrected = family("ember_claims_corrected", "Prompts of whose tokens a runner claimed what cannot be.");
        self.counters(corrected, by_function(counts, |series| series.claims_corrected))
    }

    fn of_server(&mut self, counts: &Counts) -> fmt::Result {
        let first = family("ember_first_token", "Time to the first token, by where the function was found.");
        self.histograms(first.seconds(), by_tier(&counts.first_token))?;
        let wake = family("ember_wake_wait", "Time that requests waited for a wake, by where it found the function.");
        self.histograms(wake.seconds(), by_tier(&counts.wake_wait))?;
        let class = |batch: &bool| if *batch { "batch" } else { "interactive" };
        let waits = counts.queue_wait.iter().map(|(batch, waits)| (vec![("class", class(batch))], waits)).collect();
        let queue = family("ember_queue_wait", "Time that requests waited for a slot.");
        self.histograms(queue.seconds(), waits)?;
        let refusals = counts.refusals.iter().map(|(reason, count)| (vec![("reason", *reason)], *count)).collect();
        self.counters(family("ember_refusals", "Requests that were answered with an error, by why."), refusals)
    }

    fn of_pool(&mut self, standing: &Standing) -> fmt::Result {
        if let Some(instances) = &standing.instances {
            let states = [("busy", instances.busy), ("idle", instances.idle), ("waking", instances.waking)];
            let rows = states.into_iter().map(|(state, count)| (vec![("state", state)], count)).collect();
            self.gauges(family("ember_instances", "Instances that are up or being woken."), rows)?;
            self.gauge(
                family("ember_slots", "Requests that the instances which are up can run at once."),
                instances.slots,
            )?;
            self.gauge(family("ember_slots_busy", "Requests that run."), instances.slots_busy)?;
            self.gauges(family("ember_queue_depth", "Requests that wait for a slot."), waiting(standing))?;
        }
        Ok(())
    }

    fn of_wakes(&mut self, standing: &Standing) -> fmt::Result {
        let count = standing.wakes.iter().map(|wakes| (vec![("tier", tier_name(wakes.tier))], wakes.count)).collect();
        self.counters(family("ember_wakes", "Instances woken, by where their functions were found."), count)?;
        let parts = standing.wakes.iter().flat_map(|wakes| {
            let labels = |part| vec![("tier", tier_name(wakes.tier)), ("part", part)];
            wakes.parts_us.iter().map(move |(part, us)| (labels(*part), seconds(*us)))
        });
        let part = family("ember_wake_part", "Time of wakes, by part: find, process, ready, handover.");
        self.counters(part.seconds(), parts.collect())?;
        if standing.instances.is_some() {
            self.counter(family("ember_wakes_failed", "Wakes that gave no instance."), standing.wakes_failed)?;
        }
        Ok(())
    }

    fn of_resources(&mut self, standing: &Standing) -> fmt::Result {
        if let Some(cores) = &standing.cores {
            self.gauge(family("ember_cores", "Cores for inference."), cores.total)?;
            self.gauge(family("ember_cores_leased", "Cores leased to busy instances and wakes."), cores.leased)?;
        }
        if let Some(memory) = &standing.memory {
            self.gauge(family("ember_memory", "Memory for functions.").bytes(), memory.total)?;
            let usable = family("ember_memory_usable", "The same, less what is withheld while memory is short.");
            self.gauge(usable.bytes(), memory.usable)?;
            let leased = family("ember_memory_leased", "Promised to instances, wakes, models and parked functions.");
            self.gauge(leased.bytes(), memory.leased)?;
        }
        Ok(())
    }

    fn of_warden(&mut self, standing: &Standing) -> fmt::Result {
        if let Some(functions) = &standing.functions {
            let count = |tier| functions.iter().filter(|function| function.tier == tier).count() as u64;
            let rows = TIERS.into_iter().map(|tier| (vec![("tier", tier_name(tier))], count(tier))).collect();
            self.gauges(family("ember_functions", "Deployed functions, by how ready they are."), rows)?;
        }
        if let Some(sandboxes) = standing.sandboxes {
            self.gauge(family("ember_sandboxes", "Processes in sandboxes that the warden keeps."), sandboxes)?;
        }
        if let Some(snapshots) = &standing.snapshots {
            self.gauge(family("ember_snapshots", "Snapshots there are."), snapshots.count)?;
            self.gauge(family("ember_snapshots_file", "Of snapshots, on disk.").bytes(), snapshots.file_bytes)?;
            self.gauge(family("ember_snapshots_parked", "Of snapshots, in memory.").bytes(), snapshots.parked_bytes)?;
        }
        let retired = family("ember_snapshots_retired", "Snapshots that could not be used and were removed.");
        self.counter(retired, standing.snapshots_retired)
    }

    fn of_ledger(&mut self, counts: &Counts, standing: &Standing) -> fmt::Result {
        let entries = counts.entries.iter().map(|(stage, count)| (vec![("stage", *stage)], *count)).collect();
        self.counters(family("ember_ledger_entries", "Entries told to the ledger, by stage."), entries)?;
        let dropped = family("ember_ledger_dropped", "Entries that were lost on the way; it stays 0.");
        self.counter(dropped, counts.dropped)?;
        let lag = family("ember_ledger_lag_entries", "Entries that the ledger has not made durable yet, of all cores.");
        self.gauge(lag, standing.rings.iter().map(|ring| ring.used).sum())?;
        let low = family("ember_ledger_space_low", "1 while the ledger's disk is so full that nothing is admitted.");
        self.gauge(low, standing.ledger.low.into())?;
        match standing.ledger.free_bytes {
            Some(bytes) => self.gauge(family("ember_disk_free", "Free on the disk of the data folder.").bytes(), bytes),
            None => Ok(()),
        }
    }

    fn of_rings(&mut self, counts: &Counts, standing: &Standing) -> fmt::Result {
        let cores: Vec<_> = (0..standing.rings.len()).map(|core| core.to_string()).collect();
        let rings = || cores.iter().zip(&standing.rings).map(|(core, ring)| (vec![("core", core.as_str())], ring));
        let used = rings().map(|(labels, ring)| (labels, ring.used)).collect();
        self.gauges(family("ember_ring_entries", "Entries in a core's ring, not durable yet."), used)?;
        let capacity = rings().map(|(labels, ring)| (labels, ring.capacity)).collect();
        self.gauges(family("ember_ring_capacity", "Entries that a core's ring holds."), capacity)?;
        let pauses = family("ember_ring_pauses", "Times that a request waited a little for room in a ring.");
        self.counter(pauses, counts.ring_pauses)?;
        let full = family("ember_ring_full", "Requests turned away since a ring stayed full.");
        self.counter(full, counts.ring_full)
    }

    fn of_budgets(&mut self, standing: &Standing) -> fmt::Result {
        self.gauge(
            family("ember_budgets", "Budgets there are, those without series included."),
            standing.budgets_total,
        )?;
        let labels = |budget: &'_ Budget| {
            let (of, period) = (budget.of.clone(), budget.period.clone());
            [("of", of), ("period", period), ("currency", standing.currency.clone())]
        };
        let labels: Vec<_> = standing.budgets.iter().map(labels).collect();
        let rows = |value: fn(&Budget) -> u64| -> Vec<(Labels<'_>, u64)> {
            let row = |(labels, budget)| (borrowed(labels), value(budget));
            labels.iter().zip(&standing.budgets).map(row).collect()
        };
        let limit = family("ember_budget_limit_nanos", "What may be spent in a period, in billionths of the currency.");
        self.gauges(limit, rows(|budget| budget.limit_nanos))?;
        let spent = family("ember_budget_spent_nanos", "What is spent in the period so far.");
        self.gauges(spent, rows(|budget| budget.spent_nanos))?;
        let reserved = family("ember_budget_reserved_nanos", "What is reserved by requests that run.");
        self.gauges(reserved, rows(|budget| budget.reserved_nanos))?;
        let alarms = [("soft", standing.budget_alarms_soft), ("hard", standing.budget_alarms_hard)];
        let alarms = alarms.into_iter().map(|(level, count)| (vec![("level", level)], count)).collect();
        self.counters(family("ember_budget_alarms", "Times that a budget's limit was reached."), alarms)?;
        self.counter(family("ember_budget_refusals", "Requests refused for want of money."), standing.budget_refusals)
    }

    fn of_connections(&mut self, standing: &Standing) -> fmt::Result {
        let connections = &standing.connections;
        self.gauge(family("ember_connections", "Connections of clients that are open."), connections.open)?;
        let ends = [
            ("accepted", connections.accepted),
            ("refused", connections.refused),
            ("cut", connections.cut),
            ("handshake_failed", connections.handshakes_failed),
        ];
        let ends = ends.into_iter().map(|(what, count)| (vec![("what", what)], count)).collect();
        self.counters(family("ember_connection_events", "What became of connections."), ends)?;
        self.counter(family("ember_http_requests", "Requests of any kind."), connections.requests)?;
        self.counter(family("ember_panics", "Requests that met a fault of ours."), connections.panics)
    }

    fn of_process(&mut self, standing: &Standing) -> fmt::Result {
        let up = |part: &'static str| u64::from(!standing.silent.contains(&part));
        let parts = PARTS.into_iter().map(|part| (vec![("part", part)], up(part))).collect();
        self.gauges(family("ember_part_up", "Whether a part of the box told how it stands, in time."), parts)?;
        let start = family("ember_start_time", "When the server began, since the Unix epoch.");
        self.gauges(start.seconds(), vec![(Vec::new(), standing.started_unix_s)])?;
        let build = vec![(vec![("version", standing.version)], 1_u64)];
        self.gauges(family("ember_build_info", "The build that runs."), build)
    }
}

fn borrowed<'a>(labels: &'a [(&'static str, String); 3]) -> Labels<'a> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// All functions that are told apart, and the others where they did anything.
fn functions(counts: &Counts) -> impl Iterator<Item = (&str, &Series)> {
    let others = (counts.others != Series::default()).then_some((OTHERS, &counts.others));
    counts.functions.iter().map(|(function, series)| (function.as_str(), series)).chain(others)
}

fn by_function<V>(counts: &Counts, value: impl Fn(&Series) -> V) -> Vec<(Labels<'_>, V)> {
    functions(counts).map(|(function, series)| (vec![("function", function)], value(series))).collect()
}

fn requests_ended(counts: &Counts) -> Vec<(Labels<'_>, u64)> {
    let rows = functions(counts).flat_map(|(function, series)| {
        series.requests.iter().map(move |((tier, outcome), count)| {
            (vec![("function", function), ("tier", tier_name(*tier)), ("outcome", *outcome)], *count)
        })
    });
    rows.collect()
}

fn genai<'a>(function: &'a str, operation: Operation) -> Labels<'a> {
    let operation = operation.name().unwrap_or(OTHERS);
    vec![("gen_ai_operation_name", operation), ("gen_ai_provider_name", PROVIDER), ("gen_ai_request_model", function)]
}

fn durations(counts: &Counts) -> Vec<(Labels<'_>, &Histogram)> {
    let rows = functions(counts).flat_map(|(function, series)| {
        series.duration.iter().map(move |((operation, error), histogram)| {
            let mut labels = genai(function, *operation);
            labels.extend(error.map(|error| ("error_type", error)));
            (labels, histogram)
        })
    });
    rows.collect()
}

fn by_operation<'c>(
    counts: &'c Counts,
    of: impl Fn(&'c Series) -> &'c BTreeMap<Operation, Histogram>,
) -> Vec<(Labels<'c>, &'c Histogram)> {
    let rows = functions(counts).flat_map(|(function, series)| {
        of(series).iter().map(move |(operation, histogram)| (genai(function, *operation), histogram))
    });
    rows.collect()
}

fn token_usage(counts: &Counts) -> Vec<(Labels<'_>, &Histogram)> {
    let mut input = by_operation(counts, |series| &series.tokens_in);
    input.iter_mut().for_each(|(labels, _)| labels.push(("gen_ai_token_type", "input")));
    let mut output = by_operation(counts, |series| &series.tokens_out);
    output.iter_mut().for_each(|(labels, _)| labels.push(("gen_ai_token_type", "output")));
    input.append(&mut output);
    input
}

fn by_tier(histograms: &BTreeMap<Tier, Histogram>) -> Vec<(Labels<'_>, &Histogram)> {
    histograms.iter().map(|(tier, histogram)| (vec![("tier", tier_name(*tier))], histogram)).collect()
}

fn waiting(standing: &Standing) -> Vec<(Labels<'_>, u64)> {
    let (shown, others) = standing.queues.split_at(standing.queues.len().min(FUNCTIONS_MAX));
    let row = |function, interactive, batch| {
        let labels = |class| vec![("function", function), ("class", class)];
        [(labels("interactive"), interactive), (labels("batch"), batch)]
    };
    let mut rows: Vec<_> = shown.iter().flat_map(|q| row(q.function.as_str(), q.interactive, q.batch)).collect();
    if !others.is_empty() {
        rows.extend(row(OTHERS, others.iter().map(|q| q.interactive).sum(), others.iter().map(|q| q.batch).sum()));
    }
    rows
}

const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Cold => "cold",
        Tier::Stored => "stored",
        Tier::Parked => "parked",
        Tier::Running => "running",
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cores, Ended, Format, FunctionTier, Instances, Queue, Ring, Shards, Wakes, render};
    use appliance_types::{Outcome, Record, RequestId};

    fn record(function: &str) -> Record {
        Record {
            outcome: Outcome::Completed,
            tier: Tier::Stored,
            first_text_us: 30_000,
            wake_us: 20_000,
            tokens_in: 9,
            tokens_out: 3,
            cost_nanos: 1_234_567_890_123_456_789,
            ..Record::new(RequestId::from_random(1), "app".parse().unwrap(), function.parse().unwrap())
        }
    }

    fn standing() -> Standing {
        let function = "assistant".parse().unwrap();
        Standing {
            version: "1.2.3",
            functions: Some(vec![FunctionTier { function, tier: Tier::Stored }]),
            instances: Some(Instances { busy: 1, ..Instances::default() }),
            queues: vec![Queue { function: "assistant".parse().unwrap(), interactive: 2, batch: 1 }],
            wakes: vec![Wakes { tier: Tier::Stored, count: 4, parts_us: vec![("find", 1_500_000)] }],
            cores: Some(Cores { total: 2, leased: 1 }),
            rings: vec![Ring { used: 1, capacity: 9 }, Ring { used: 2, capacity: 9 }],
            budgets: vec![Budget {
                of: "key:app".to_owned(),
                period: "day".to_owned(),
                limit_nanos: 5,
                spent_nanos: 3,
                reserved_nanos: 1,
            }],
            currency: "USD".to_owned(),
            silent: vec!["warden"],
            ..Standing::default()
        }
    }

    fn page(format: Format) -> String {
        let shards = Shards::new(1);
        let shard = shards.iter().next().unwrap();
        shard.ended(&record("assistant"), Ended { operation: Operation::Chat, took_us: 50_000, claims_corrected: 0 });
        render(shards.merged(|_| true), standing(), format)
    }

    #[test]
    fn names_are_those_of_the_conventions_and_integers_are_whole() {
        let page = page(Format::OpenMetrics);
        let chat = "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"ember\",gen_ai_request_model=\"assistant\"";
        for line in [
            &format!("gen_ai_server_request_duration_seconds_bucket{{le=\"0.08\",{chat}}} 1") as &str,
            &format!("gen_ai_server_request_duration_seconds_bucket{{le=\"+Inf\",{chat}}} 1"),
            &format!("gen_ai_server_time_to_first_token_seconds_sum{{{chat}}} 0.03"),
            &format!("gen_ai_server_time_per_output_token_seconds_count{{{chat}}} 1"),
            &format!("gen_ai_client_token_usage_sum{{{chat},gen_ai_token_type=\"output\"}} 3.0"),
            "ember_cost_nanos_total{function=\"assistant\"} 1234567890123456789",
            "ember_requests_total{function=\"assistant\",tier=\"stored\",outcome=\"completed\"} 1",
            "ember_wake_part_seconds_total{tier=\"stored\",part=\"find\"} 1.5",
            "ember_functions{tier=\"stored\"} 1",
            "ember_functions{tier=\"running\"} 0",
            "ember_queue_depth{function=\"assistant\",class=\"interactive\"} 2",
            "ember_ring_entries{core=\"1\"} 2",
            "ember_ledger_lag_entries 3",
            "ember_ledger_dropped_total 0",
            "ember_budget_spent_nanos{of=\"key:app\",period=\"day\",currency=\"USD\"} 3",
            "ember_part_up{part=\"warden\"} 0",
            "ember_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "no `{line}` in:\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn the_older_format_names_counters_as_its_readers_expect() {
        let page = page(Format::Plain);
        assert!(page.contains("# TYPE ember_ledger_dropped_total counter\n"), "{page}");
        assert!(!page.contains("# EOF") && !page.contains("# UNIT"), "{page}");
    }

    #[test]
    fn each_family_is_written_once_and_helps() {
        let page = page(Format::OpenMetrics);
        let mut names: Vec<_> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        let helps = page.lines().filter(|line| line.starts_with("# HELP ") && line.ends_with('.')).count();
        assert_eq!(helps, all);
    }
}
