//! A capture leaves the process as it was, and sees all of it.

use crate::harness::Subject;
use sandbox_image::park;
use sandbox_snapshot::image::{MappingKind, Source};

#[test]
fn a_captured_process_goes_on_as_if_nothing_had_been() {
    let (mut captured, mut left_alone) = (Subject::start(), Subject::start());
    for _ in 0..5 {
        captured.capture().unwrap().resume().unwrap();
        assert_eq!(captured.line.ask_all(), left_alone.line.ask_all());
    }
}

#[test]
fn two_captures_of_a_process_at_rest_are_the_same() {
    let subject = Subject::start();
    let first = subject.capture().unwrap();
    let image = first.image().clone();
    drop(first);
    assert_eq!(*subject.capture().unwrap().image(), image);
}

#[test]
fn an_image_can_be_restored_and_holds_no_file_and_no_zeros() {
    let subject = Subject::start();
    let held = subject.capture().unwrap();
    let parked = park(&held, &()).unwrap();
    parked.image.check().unwrap();
    for kind in [MappingKind::Text, MappingKind::Model, MappingKind::Heap, MappingKind::Stack, MappingKind::Vdso] {
        assert!(parked.image.mappings.iter().any(|mapping| mapping.kind == kind), "{kind:?}");
    }
    let files = |source: &Source| matches!(source, Source::Text { .. } | Source::Model { .. });
    assert!(parked.image.extents.iter().filter(|extent| files(&extent.source)).count() >= 3);
    // 16 MiB are mapped of which little is written.
    let bytes = parked.image.data_bytes();
    assert!(bytes < 24 << 20, "{bytes}");
    assert_eq!(parked.data.metadata().unwrap().len(), bytes);
}
