//! What was captured is what is restored.

use super::*;
use proptest::prelude::*;

/// Every page of the image holds what the process had there.
fn assert_same_memory(image: &Image, area: &[u8], memory: &Memory) {
    for extent in &image.extents {
        for (address, at) in (extent.address..extent.span().end()).zip(extent.source.offset()..).step_by(PAGE as usize)
        {
            match extent.source {
                Source::Compressed { .. } => {
                    assert_eq!(area[at as usize..][..PAGE as usize], memory.page(address)[..], "page at {address:#x}");
                }
                Source::Zero => assert!(memory.page(address).iter().all(|byte| *byte == 0), "page at {address:#x}"),
                Source::Model { .. } | Source::Text { .. } | Source::Raw { .. } => {}
            }
        }
    }
}

fn assert_restores(capture: Capture, memory: &Memory, options: &EncodeOptions<'_>) -> Image {
    let (image, area) = load(&file_of(capture.clone(), memory, options), &KEY, &capture.identity).unwrap();
    let Capture { identity, registers, process, mappings, kept, .. } = capture;
    assert_eq!((&identity, &registers, &process), (&image.identity, &image.registers, &image.process));
    assert_eq!(mappings, image.mappings);
    let elsewhere = |extent: &&Extent| !matches!(extent.source, Source::Zero | Source::Compressed { .. });
    assert_eq!(kept, image.extents.iter().filter(elsewhere).copied().collect::<Vec<_>>());
    assert_same_memory(&image, &area, memory);
    image
}

#[test]
fn a_runner_comes_back() {
    let (capture, memory) = runner();
    let image = assert_restores(capture, &memory, &EncodeOptions::default());
    let stored = image.data_bytes() / PAGE;
    assert_eq!(stored, 3 + 10 + 90 + 200 + 1, "zero pages are left out but for a gap of 7");
}

#[test]
fn a_runner_comes_back_from_small_frames() {
    let (capture, memory) = runner();
    let image = assert_restores(capture, &memory, &SMALL_FRAMES);
    assert_eq!(image.data_bytes() / PAGE, 3 + 3 + 90 + 200 + 1);
}

#[test]
fn encoding_twice_makes_the_same_file() {
    let (capture, memory) = runner();
    let options = EncodeOptions::default();
    assert_eq!(file_of(capture.clone(), &memory, &options), file_of(capture, &memory, &options));
}

#[test]
fn the_encoder_returns_what_the_decoder_opens() {
    let (capture, memory) = runner();
    let mut file = io::Cursor::new(Vec::new());
    let written = encode(capture, &memory, &SMALL_FRAMES, &KEY, &mut file).unwrap();
    let opened = Snapshot::open(file.get_ref(), file.get_ref().len() as u64, &KEY, &identity()).unwrap();
    assert_eq!(written.image(), opened.image());
    assert_eq!(written.frames(), opened.frames());
}

#[test]
fn what_the_trial_touched_first_is_in_the_first_frame() {
    let (capture, memory) = runner();
    let first_touch = [STACK + 7 * PAGE + 40, ARENA + 900 * PAGE];
    let options = EncodeOptions { first_touch: &first_touch, ..SMALL_FRAMES };
    let image = assert_restores(capture, &memory, &options);
    let offset_of = |address| {
        let extent = image.extents.iter().rfind(|extent| extent.address <= address).unwrap();
        extent.source.offset() + address - extent.address
    };
    assert_eq!(offset_of(STACK + 7 * PAGE), 0);
    assert_eq!(offset_of(ARENA + 900 * PAGE), PAGE);
}

#[test]
fn a_process_without_data_has_no_frame() {
    let (mut capture, _) = runner();
    capture.data.clear();
    let image = assert_restores(capture, &Memory::default(), &EncodeOptions::default());
    assert_eq!(image.data_bytes(), 0);
}

#[test]
fn workers_may_share_a_snapshot() {
    fn shared<T: Send + Sync>() {}
    fn own<T: Send>() {}
    shared::<Snapshot>();
    own::<FrameDecoder>();
}

#[test]
fn noise_is_incompressible_and_text_is_not() {
    let mut memory = Memory::default();
    memory.fill(0, 1, 1, 256);
    memory.fill(PAGE, 1, 1, 100);
    assert!(is_incompressible(&memory.page(0)).unwrap());
    assert!(!is_incompressible(&memory.page(PAGE)).unwrap());
}

/// One page of a mapping: absent, present and zero, or with this much noise.
#[derive(Clone, Copy, Debug)]
enum Content {
    Absent,
    Zero,
    Bytes { seed: u64, noise: u32 },
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        2 => Just(Content::Absent),
        1 => Just(Content::Zero),
        3 => (any::<u32>(), 0u32..=256).prop_map(|(seed, noise)| Content::Bytes { seed: seed.into(), noise }),
    ]
}

/// Mappings behind one another, at these distances in pages.
fn arenas() -> impl Strategy<Value = Vec<(u64, Vec<Content>)>> {
    prop::collection::vec((0u64..3, prop::collection::vec(content(), 1..24)), 0..6)
}

/// Puts `arenas` between the runner's own mappings; returns the addresses of their pages.
fn add_arenas(capture: &mut Capture, memory: &mut Memory, arenas: &[(u64, Vec<Content>)]) -> Vec<u64> {
    let mut at = ARENA + 0x1000_0000;
    let mut touchable = Vec::new();
    let (mut mappings, mut data) = (Vec::new(), Vec::new());
    for (distance, pages) in arenas {
        at += distance * PAGE;
        mappings.push(mapping(at, pages.len() as u64, READ_WRITE, MappingKind::Anonymous));
        for content in pages {
            if let Content::Bytes { seed, noise } = *content {
                memory.fill(at, 1, seed, noise);
            }
            if !matches!(content, Content::Absent) {
                data.push(Span { address: at, bytes: PAGE });
            }
            touchable.push(at);
            at += PAGE;
        }
    }
    capture.mappings.extend(mappings);
    capture.mappings.sort_by_key(|mapping| mapping.start);
    capture.data.extend(data);
    capture.data.sort_by_key(|span| span.address);
    touchable
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_runner_comes_back(
        arenas in arenas(),
        signal_mask in any::<u64>(),
        extended_bytes in EXTENDED_BYTES_MIN..EXTENDED_BYTES_MAX,
        cpu_features in prop::collection::vec(any::<u64>(), 0..20),
        release in "[ -~]{1,64}",
        (level, frame_pages, piece_pages, gap_pages) in (1i32..6, 1u32..40, 1u32..40, 0u64..5),
        touches in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let (mut capture, mut memory) = small_runner();
        capture.process.signal_mask = signal_mask;
        capture.registers.extended = vec![7; extended_bytes];
        capture.identity.cpu_features = cpu_features;
        capture.identity.kernel_release = release;
        let pages = add_arenas(&mut capture, &mut memory, &arenas);
        let first_touch: Vec<u64> = match pages.len() {
            0 => Vec::new(),
            count => touches.iter().map(|touch| pages[touch.index(count)] + 123).collect(),
        };
        let options = EncodeOptions {
            level,
            frame_bytes: frame_pages * 4096,
            piece_bytes: piece_pages * 4096,
            zero_gap_bytes: gap_pages * PAGE,
            first_touch: &first_touch,
        };
        assert_restores(capture, &memory, &options);
    }
}
