//! One key floods a function: what another waits, in the simulator, which decides as the server does.

use appliance_sim::{Costs, Machine, Synthetic, Trace, waits};
use proptest::prelude::*;

/// What a request of the flood's trace takes, ms.
fn service_ms(costs: &Costs) -> f64 {
    (costs.prefill_token * 60 + costs.decode_token * 60).as_secs_f64() * 1000.0
}

#[test]
fn a_flood_raises_another_keys_p99_by_one_service_time_at_most() {
    let (trace, costs) = (Synthetic::Flood.trace(), Costs::default());
    assert_eq!(trace.keys, ["quiet", "flood"]);
    let asked = trace.requests.iter().filter(|request| request.key == 0).count() as u64;
    for (slots, instances_max) in [(4, 4), (1, 4), (4, 1), (1, 1)] {
        let machine = Machine { slots, instances_max, ..Machine::default() };
        let waits = waits(&trace, &machine, &costs).expect("it has keys");
        let [turns, fifo, alone] = [&waits.turns, &waits.fifo, &waits.alone].map(|of| &of[0]);
        assert_eq!((turns.served, turns.refused, alone.served), (asked, 0, asked), "{waits:?}");
        assert!(turns.wait_p99_ms <= alone.wait_p99_ms + service_ms(&costs), "{waits:?}");
        let suffers = fifo.refused > asked / 4 || fifo.wait_p99_ms > 3.0 * service_ms(&costs);
        assert!(suffers, "without turns the flood is felt, or this shows nothing: {waits:?}");
        assert!(waits.turns[1].refused > 0, "it is the flood that is turned away: {waits:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever one key asks for beside another that has one request at a time, all alike: no request of the other waits for
    /// more than one of the flood's, and none is turned away.
    #[test]
    fn who_has_one_request_at_a_time_waits_for_one_service_time_at_most(
        gaps_ms in prop::collection::vec(0_u32..400, 50..300), slots in 1_u32..4,
    ) {
        const SERVICE_MS: u32 = 1000;
        let mut text = "time_s,function,service_ms,key\n".to_owned();
        let mut line = |at_ms: u32, key: &str| {
            text += &format!("{},f,{SERVICE_MS},{key}\n", f64::from(at_ms) / 1000.0);
        };
        let mut at_ms = 0;
        for gap_ms in gaps_ms {
            line(at_ms, "flood");
            at_ms += gap_ms;
        }
        // Twice the service time, and a wake before the first.
        (1..=at_ms / 2500).for_each(|n| line(n * 2500, "quiet"));
        let trace = Trace::parse(&text).unwrap();
        let machine = Machine { slots, instances_max: 1, queue_max: 8, ..Machine::default() };
        if let Some(quiet) = waits(&trace, &machine, &Costs::default()).and_then(|waits| waits.turns.into_iter().find(|key| key.key == "quiet")) {
            prop_assert_eq!(quiet.refused, 0);
            prop_assert!(quiet.wait_p99_ms <= f64::from(SERVICE_MS) + 0.1, "{:?}", quiet);
        }
    }
}
