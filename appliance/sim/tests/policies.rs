//! What the policies cost on the synthetic traces.

use appliance_sim::{Costs, Machine, Report, Synthetic, Trace, policies, simulate, svg};

fn reports(trace: &Trace, machine: &Machine) -> Vec<Report> {
    policies().iter().map(|policy| simulate(trace, machine, &Costs::default(), policy)).collect()
}

fn of(kind: Synthetic) -> Vec<Report> {
    reports(&kind.trace(), &Machine::default())
}

fn named<'r>(reports: &'r [Report], name: &str) -> &'r Report {
    reports.iter().find(|report| report.policy == name).expect("a policy of that name")
}

#[test]
fn the_server_wastes_at_most_half_of_fixed_300_s_at_no_worse_p99() {
    for kind in [Synthetic::Bursty, Synthetic::Diurnal] {
        let reports = of(kind);
        let (ours, fixed) = (named(&reports, "ember"), named(&reports, "fixed 300 s"));
        assert!(2 * ours.wasted_mib_s <= fixed.wasted_mib_s, "{kind}: {ours:?} {fixed:?}");
        assert!(ours.first_token_p99_ms <= fixed.first_token_p99_ms, "{kind}: {ours:?} {fixed:?}");
    }
}

#[test]
fn the_same_trace_gives_the_same_report_and_every_request_is_counted() {
    for kind in Synthetic::ALL {
        let (trace, reports) = (kind.trace(), of(kind));
        assert_eq!(reports, of(kind));
        for report in &reports {
            assert_eq!(report.served + report.refused, trace.requests.len() as u64, "{report:?}");
            let found = report.found_running + report.found_parked + report.found_stored + report.found_cold;
            assert_eq!(found, report.served, "{report:?}");
            assert!(report.wasted_mib_s <= report.held_mib_s, "{report:?}");
        }
        let picture = svg(&kind.to_string(), &reports);
        assert_eq!(picture.matches("<circle").count(), reports.len());
    }
}

#[test]
fn longer_fixed_times_waste_more_and_wake_less() {
    let reports = of(Synthetic::Poisson);
    let [short, middle, long] = ["fixed 60 s", "fixed 300 s", "fixed 600 s"].map(|name| named(&reports, name));
    assert!(short.wasted_mib_s < middle.wasted_mib_s && middle.wasted_mib_s < long.wasted_mib_s);
    assert!(short.wakes > middle.wakes && middle.wakes > long.wakes);
}

#[test]
fn what_does_not_fit_is_refused_and_told() {
    let text = "time_s,function,service_ms\n".to_owned() + &"0,a,100000\n".repeat(10);
    let trace = Trace::parse(&text).unwrap();
    let machine = Machine { slots: 1, instances_max: 1, queue_max: 4, ..Machine::default() };
    let reports = reports(&trace, &machine);
    // One runs, four wait for 30 s, five find the queue full.
    assert!(reports.iter().all(|report| (report.served, report.refused) == (1, 9)), "{reports:?}");
}
