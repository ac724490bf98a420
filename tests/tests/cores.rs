//! Which cores runners may run on follows their leases: the kernel says so, whatever they do.

use serde_json::json;
use std::collections::BTreeSet;
use tests::{Ember, Function, Process, Role, Stream, chat, until};

/// One whose answers have no end, until their caller leaves.
fn endless(name: &str) -> Function {
    let function = Function::named(name).limit("context = 8192").limit("output_tokens = 100000");
    function.scale("concurrency = 1").scale("keep_warm = \"10m\"")
}

fn speaking(ember: &Ember, function: &str) -> Stream {
    let request = chat(function, "Tell a story.", json!({"max_tokens": 100_000, "logit_bias": {"2": -100}}));
    let mut stream = ember.client().ask_streamed(&request);
    stream.next().expect("it speaks");
    stream
}

fn runner(ember: &mut Ember, function: &str) -> Process {
    until(&format!("{function} has a runner"), || {
        let mut runners = ember.processes(Role::Runner).into_iter();
        runners.find(|runner| runner.cgroup().to_string_lossy().contains(&format!("/{function}-")))
    })
}

/// The cores of this process, among which Ember shares.
fn all() -> BTreeSet<usize> {
    Process::read(std::process::id() as i32).expect("we run").cores()
}

#[test]
fn two_that_are_busy_have_cores_of_their_own_and_one_has_all() {
    assert!(all().len() >= 2, "one core is leased to one at a time");
    let mut ember = Ember::start().with(&endless("one")).with(&endless("two"));
    let first = speaking(&ember, "one");
    let one = runner(&mut ember, "one");
    until("who is alone has all", || (one.cores() == all()).then_some(()));

    let second = speaking(&ember, "two");
    let two = runner(&mut ember, "two");
    until("each has its own", || {
        let (ones, twos) = (one.cores(), two.cores());
        let union: BTreeSet<_> = ones.union(&twos).copied().collect();
        (ones.is_disjoint(&twos) && union == all()).then_some(())
    });

    drop(first);
    until("who goes on has all", || (two.cores() == all()).then_some(()));
    drop(second);
    ember.stop();
}

#[test]
fn inference_keeps_to_its_own_part_of_the_machine() {
    let mut ember = Ember::start_with("inference_cores = 1\n").with(&endless("one"));
    let speaking = speaking(&ember, "one");
    let one = runner(&mut ember, "one");
    assert_eq!(one.cores(), all().into_iter().next_back().into_iter().collect());
    drop(speaking);
    ember.stop();
}
