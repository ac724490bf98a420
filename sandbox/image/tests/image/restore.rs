//! A restored process goes on exactly where the captured one was.

use crate::harness::{How, Life, PROGRAM, Subject, capture};
use sandbox_image::{Ahead, Data, Memory, NoDevice, Touches, park, written};
use sandbox_snapshot::image::{Extent, Image, MappingKind, Source, Span};
use std::{collections::BTreeSet, fs, os::fd::AsFd};

#[test]
fn it_answers_as_the_captured_one_does_whose_data_it_shares() {
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected: Vec<_> = (0..3).map(|_| subject.line.ask_all()).collect();
    for _ in 0..3 {
        let mut restored = subject.restore(&parked.image, Data::Shared(parked.data.as_fd())).unwrap();
        let answers: Vec<_> = (0..3).map(|_| restored.line.ask_all()).collect();
        assert_eq!(answers, expected);
        restored.end();
    }
}

#[test]
fn it_answers_as_the_captured_one_does_whose_data_is_written() {
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected = subject.line.ask_all();
    let write = |memory: &Memory| parked.write(memory);
    let mut restored = subject.restore(&parked.image, Data::Written(&write)).unwrap();
    assert_eq!(restored.line.ask_all(), expected);
    restored.end();
}

#[test]
fn it_answers_right_what_matters() {
    let subject = Subject::start();
    let parked = subject.park();
    let mut restored = subject.restore(&parked.image, Data::Shared(parked.data.as_fd())).unwrap();
    let mut ask = |command| restored.line.ask(command);
    assert_eq!(ask("errno"), "errno Some(9)");
    assert!(ask("count").ends_with("vectors true"));
    assert_eq!(ask("signal"), "signal 2 true Ok(SIGUSR2)");
    assert_eq!(ask("thread"), "thread 1001");
    assert_eq!(ask("clock"), "clock true");
    assert_eq!(ask("descriptors"), "descriptors [0, 1, 2]");
    restored.end();
}

#[test]
fn what_will_be_written_to_is_its_own_ahead_of_need() {
    let mut subject = Subject::start();
    let parked = subject.park();
    let expected = subject.line.ask_all();
    let restore = |ahead| {
        let how = How { ahead, ..How::default() };
        subject.restore_as(&parked.image, Data::Shared(parked.data.as_fd()), &how).unwrap()
    };
    let pages = |life: &Life| {
        let spans = written(life.child.pid(), &parked.image).unwrap();
        spans.iter().flat_map(|span| (span.address..span.end()).step_by(4096)).collect::<BTreeSet<_>>()
    };
    let mut tried = restore(None);
    let before = pages(&tried);
    assert_eq!(tried.line.ask_all(), expected);
    let touched = pages(&tried);
    assert!(touched.len() > before.len() && touched.is_superset(&before), "{} {}", touched.len(), before.len());
    let spans = written(tried.child.pid(), &parked.image).unwrap();
    tried.end();
    let mut spare = restore(Some(Ahead { model: true, written: &spans }));
    assert_eq!(pages(&spare), touched);
    assert_eq!(spare.line.ask_all(), expected);
    spare.end();
}

#[test]
fn what_is_touched_is_told_in_the_order_in_which_it_was() {
    let subject = Subject::start();
    let parked = subject.park();
    let mut restored = subject.restore(&parked.image, Data::Shared(parked.data.as_fd())).unwrap();
    let watch = || Touches::new(restored.child.pid(), &parked.image).unwrap();
    let (mut first, mut touches) = (watch(), watch());
    first.look().unwrap();
    touches.look().unwrap();
    let own = |life: &Life| written(life.child.pid(), &parked.image).unwrap();
    let at_rest = own(&restored);
    restored.line.ask_all();
    touches.look().unwrap();
    let order = touches.order();
    let all: BTreeSet<_> = order.iter().copied().collect();
    assert_eq!(all.len(), order.len(), "each page once");
    let brought = |address| {
        let of_data = |e: &&Extent| {
            matches!(e.source, Source::Compressed { .. }) && (e.address..e.span().end()).contains(&address)
        };
        parked.image.extents.iter().find(of_data).is_some()
    };
    assert!(all.iter().all(|page| brought(*page)), "pages of the image's data only");
    let pages = |spans: &[Span]| spans.iter().flat_map(|s| (s.address..s.end()).step_by(4096)).collect::<BTreeSet<_>>();
    let (before, after) = (pages(&at_rest), pages(&own(&restored)));
    let later: Vec<_> = after.difference(&before).filter(|page| brought(**page)).collect();
    assert!(!later.is_empty() && later.iter().all(|page| all.contains(page)), "what was written to is among them");
    assert!(all.iter().any(|page| !after.contains(page)), "and so is what was only read");
    let first = first.order();
    assert!(first.len() < order.len() && order.starts_with(&first), "what was there at the first look comes first");
    restored.end();
}

#[test]
fn it_runs_its_program_and_nothing_else() {
    let subject = Subject::start();
    let parked = subject.park();
    let write = |memory: &Memory| parked.write(memory);
    let restored = subject.restore(&parked.image, Data::Written(&write)).unwrap();
    let of_it = |name| format!("/proc/{}/{name}", restored.child.pid());
    let program = fs::read_link(of_it("exe")).unwrap();
    assert_eq!(program, fs::canonicalize(PROGRAM).unwrap());
    let maps = fs::read_to_string(of_it("maps")).unwrap();
    for line in maps.lines() {
        let (permissions, name) = (line.split(' ').nth(1).unwrap(), line.split_whitespace().nth(5).unwrap_or_default());
        assert!(!permissions.starts_with("rwx"), "{line}");
        let runs = [program.to_str().unwrap(), "[vdso]", "[vsyscall]"];
        assert!(!permissions.contains('x') || runs.contains(&name), "{line}");
    }
    // It has the parts that the captured one had, and no more: not the table that it came from either.
    let mapped = |path: &str| fs::read_to_string(path).unwrap().lines().filter(|line| line.contains('[')).count();
    assert_eq!(mapped(&of_it("maps")), mapped(&format!("/proc/{}/maps", subject.pid())));
    let bytes: u64 = parked.image.mappings.iter().map(|mapping| mapping.bytes).sum();
    assert_eq!(maps.lines().filter(|line| !line.ends_with("[vsyscall]")).map(bytes_in).sum::<u64>(), bytes);
    restored.end();
}

/// The length of a mapping in a line of `/proc/PID/maps`.
fn bytes_in(line: &str) -> u64 {
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
}

#[test]
fn a_capture_of_it_is_the_same_again() {
    let subject = Subject::start();
    let first = subject.park();
    let write = |memory: &Memory| first.write(memory);
    let restored = subject.restore(&first.image, Data::Written(&write)).unwrap();
    let held = capture(restored.child.pid(), &subject.program, &subject.model, &NoDevice).unwrap();
    let second = park(&held, &()).unwrap();
    held.resume().unwrap();
    restored.end();
    assert!(second.image.registers == first.image.registers);
    assert_eq!(second.image.process, first.image.process);
    // Neighbours of one kind may have become one mapping.
    for kind in [MappingKind::Anonymous, MappingKind::Text, MappingKind::Model, MappingKind::Heap, MappingKind::Stack] {
        assert_eq!(bytes_of(&second.image, kind), bytes_of(&first.image, kind), "{kind:?}");
    }
}

fn bytes_of(image: &Image, kind: MappingKind) -> u64 {
    image.mappings.iter().filter(|mapping| mapping.kind == kind).map(|mapping| mapping.bytes).sum()
}

#[test]
fn what_was_restored_can_be_captured_and_restored_again() {
    let mut subject = Subject::start();
    let first = subject.park();
    let write = |memory: &Memory| first.write(memory);
    let mut restored = subject.restore(&first.image, Data::Written(&write)).unwrap();
    assert_eq!(restored.line.ask_all(), subject.line.ask_all());
    let held = capture(restored.child.pid(), &subject.program, &subject.model, &NoDevice).unwrap();
    let second = park(&held, &()).unwrap();
    held.resume().unwrap();
    restored.end();
    second.image.check().unwrap();
    let mut restored = subject.restore(&second.image, Data::Shared(second.data.as_fd())).unwrap();
    assert_eq!(restored.line.ask_all(), subject.line.ask_all());
    restored.end();
}
