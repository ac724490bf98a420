//! Images that say wrong things, as one whose seal is right may: each is refused with what is wrong.

use super::*;

/// A way to spoil something.
type Change<'a, T> = &'a dyn Fn(&mut T);

fn image() -> Image {
    let (capture, memory) = runner();
    encode(capture, &memory, &EncodeOptions::default(), &KEY, &mut io::Cursor::new(Vec::new())).unwrap().into_image()
}

/// Says what is wrong with a runner's image after `change`.
fn fault_after(change: impl FnOnce(&mut Image)) -> String {
    let mut image = image();
    change(&mut image);
    image.check().expect_err("a hostile image passed").to_string()
}

fn set_word(image: &mut Image, word: usize, value: u64) {
    image.registers.general[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn the_runner_itself_passes() {
    image().check().unwrap();
}

#[test]
fn mappings_are_whole_pages_in_order_and_apart() {
    let cases: [(Change<'_, Mapping>, &str); 6] = [
        (&|m| m.bytes = 0, "it holds nothing"),
        (&|m| m.start += 1, "it is not aligned"),
        (&|m| m.bytes += 8, "it is not aligned"),
        (&|m| m.start = 0, "it is out of range"),
        (&|m| m.bytes = u64::MAX - PAGE + 1, "it is out of range"),
        (&|m| m.start = TEXT + 5 * PAGE, "it begins before its predecessor ends"),
    ];
    for (change, expected) in cases {
        let found = fault_after(|image| change(&mut image.mappings[2]));
        assert!(found.starts_with("mapping at") && found.ends_with(expected), "{found}");
    }
}

#[test]
fn nothing_is_writable_and_executable() {
    let all = Protection { read: true, write: true, execute: true };
    for index in 0..image().mappings.len() {
        let found = fault_after(|image| image.mappings[index].protection = all);
        assert!(found.ends_with("its protection is not allowed for its kind"), "{found}");
    }
}

#[test]
fn only_text_and_vdso_are_executable() {
    for index in [2, 3, 4, 5, 6, 7] {
        let found = fault_after(|image| image.mappings[index].protection = READ_EXECUTE);
        assert!(found.ends_with("its protection is not allowed for its kind"), "{found}");
    }
}

#[test]
fn text_and_model_come_from_their_files_only() {
    let hostile = [
        Source::Zero,
        Source::Compressed { offset: 0 },
        Source::Raw { digest: [9; 32], offset: 0 },
        Source::Model { offset: 0 },
    ];
    for source in hostile {
        let found = fault_after(|image| image.extents[0].source = source);
        assert!(found.ends_with("its mapping cannot have such a source"), "{found}");
    }
    let model = |image: &mut Image| {
        let extent = image.extents.iter_mut().find(|extent| extent.address == MODEL).unwrap();
        extent.source = Source::Compressed { offset: 0 };
    };
    assert!(fault_after(model).ends_with("its mapping cannot have such a source"));
}

#[test]
fn a_second_stack_or_vdso_is_refused() {
    for kind in [MappingKind::Stack, MappingKind::Vdso, MappingKind::Vvar] {
        let found = fault_after(|image| {
            let mut second = *image.mappings.iter().find(|mapping| mapping.kind == kind).unwrap();
            second.start = VDSO + 100 * PAGE;
            image.mappings.push(second);
        });
        assert!(found.ends_with("there is another of its kind"), "{found}");
    }
}

#[test]
fn extents_cover_mappings_exactly_once() {
    let cases: [(Change<'_, Vec<Extent>>, &str); 6] = [
        (&|e| e.truncate(0), "bytes before it belong to no extent, or to two"),
        (&|e| e.truncate(e.len() - 1), "bytes before it belong to no extent, or to two"),
        (&|e| e.insert(1, e[0]), "it begins before its predecessor ends"),
        (&|e| e[0].bytes += PAGE, "it lies in no mapping, or across the end of one"),
        (&|e| e.push(Extent { address: VDSO, ..e[0] }), "it lies in no mapping, or across the end of one"),
        (&|e| e[0].bytes = 0, "it holds nothing"),
    ];
    for (change, expected) in cases {
        let found = fault_after(|image| change(&mut image.extents));
        assert!(found.starts_with("extent at") && found.ends_with(expected), "{found}");
    }
}

#[test]
fn offsets_are_of_pages_and_do_not_wrap() {
    for (offset, expected) in [(1, "it is not aligned"), (u64::MAX - PAGE + 1, "it is out of range")] {
        let found = fault_after(|image| image.extents[0].source = Source::Text { offset });
        assert!(found.ends_with(expected), "{found}");
    }
}

#[test]
fn the_data_area_is_used_exactly_once() {
    for offset in [0, 1 << 30] {
        let found = fault_after(|image| {
            let is_stored = |extent: &&mut Extent| matches!(extent.source, Source::Compressed { .. });
            image.extents.iter_mut().filter(is_stored).last().unwrap().source = Source::Compressed { offset };
        });
        assert!(found.ends_with("the data area before it belongs to no extent, or to two"), "{found}");
    }
}

#[test]
fn counts_are_bounded() {
    let many = |image: &mut Image| image.mappings = vec![image.mappings[0]; MAPPINGS_MAX + 1];
    assert_eq!(fault_after(many), "mappings: 4097; the limit is 4096");
    let many = |image: &mut Image| image.extents = vec![image.extents[0]; EXTENTS_MAX + 1];
    assert_eq!(fault_after(many), "extents: 16385; the limit is 16384");
    let many = |image: &mut Image| image.identity.cpu_features = vec![0; CPU_FEATURES_MAX + 1];
    assert_eq!(fault_after(many), "words of CPU features: 257; the limit is 256");
}

#[test]
fn registers_point_into_memory_that_fits() {
    assert_eq!(fault_after(|i| set_word(i, 16, DATA)), format!("rip is {DATA:#x}: not in memory that may be run"));
    assert_eq!(fault_after(|i| set_word(i, 19, TEXT)), format!("rsp is {TEXT:#x}: not in memory that may be written"));
    assert!(fault_after(|i| i.registers.general.truncate(200)).starts_with("length of the general registers"));
    assert!(fault_after(|i| i.registers.extended.clear()).starts_with("length of the extended state"));
}

#[test]
fn the_process_is_what_a_kernel_takes() {
    let cases: [(Change<'_, Process>, &str); 16] = [
        (&|p| p.comm = vec![b'x'; 16], "bytes of the thread's name: 16"),
        (&|p| p.comm[3] = 0, "a byte of the thread's name"),
        (&|p| p.end_code = p.start_code, "end_code"),
        (&|p| p.brk = p.start_brk - 1, "brk"),
        (&|p| p.start_data = 0, "start_data"),
        (&|p| p.env_end = u64::MAX, "env_end"),
        (&|p| p.start_stack = 1, "start_stack"),
        (&|p| p.auxv.push(0), "length of the auxiliary vector"),
        (&|p| p.auxv = vec![0; 2048], "bytes of the auxiliary vector"),
        (&|p| p.tid_address = HEAP + 16 * PAGE - 3, "tid_address"),
        (&|p| p.robust_list = TEXT, "robust_list"),
        (&|p| p.rseq.as_mut().unwrap().length = 1 << 20, "length of rseq"),
        (&|p| p.rseq.as_mut().unwrap().address += 8, "rseq"),
        (&|p| p.sigaltstack.as_mut().unwrap().bytes = u64::MAX, "sigaltstack"),
        (&|p| p.signal_actions[0].handler = DATA, "handler of a signal"),
        (&|p| p.signal_actions[1].restorer = STACK, "restorer of a signal"),
    ];
    for (change, expected) in cases {
        let found = fault_after(|image| change(&mut image.process));
        assert!(found.starts_with(expected), "{found}");
    }
    for signal in [0, 9, 11, 19, 65] {
        let found = fault_after(|image| image.process.signal_actions[1].signal = signal);
        assert!(found.starts_with("signal with an action"), "{found}");
    }
}

#[test]
fn the_encoder_refuses_what_the_decoder_would() {
    let (mut capture, memory) = runner();
    capture.mappings[2].protection.execute = true;
    let mut file = io::Cursor::new(Vec::new());
    assert!(encode(capture, &memory, &EncodeOptions::default(), &KEY, &mut file).is_err());
    assert!(file.get_ref().is_empty());
}

#[test]
fn data_outside_of_mappings_is_not_captured() {
    for span in [Span { address: MODEL - PAGE, bytes: PAGE }, Span { address: HEAP, bytes: 17 * PAGE }] {
        let (mut capture, memory) = runner();
        capture.data = vec![span];
        let error =
            encode(capture, &memory, &EncodeOptions::default(), &KEY, &mut io::Cursor::new(Vec::new())).unwrap_err();
        assert!(matches!(error, SnapshotError::Extent { fault: Fault::OutsideMapping, .. }), "{error}");
    }
}
