//! A process to take snapshots of, and what the tests do with them.

mod corruption;
mod device;
mod hostile_frames;
mod hostile_images;
mod round_trip;
mod smoke;

use crate::{image::*, limits::*, *};
use std::{collections::BTreeMap, io};

pub(crate) const PAGE: u64 = PAGE_BYTES;
pub(crate) const KEY: [u8; 32] = fuzz::KEY;

/// Memory of a process that was never one: pages by address, and zeros elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(pub(crate) BTreeMap<u64, Vec<u8>>);

impl Memory {
    pub(crate) fn page(&self, address: u64) -> Vec<u8> {
        self.0.get(&address).cloned().unwrap_or_else(|| vec![0; PAGE as usize])
    }

    /// Fills pages with what compresses (`noise` 0) up to what does not (256).
    pub(crate) fn fill(&mut self, address: u64, pages: u64, seed: u64, noise: u32) {
        for page in 0..pages {
            let mut bytes = vec![0; PAGE as usize];
            blake3::Hasher::new().update(&(seed + page).to_le_bytes()).finalize_xof().fill(&mut bytes);
            let plain = |(index, byte): (usize, &mut u8)| {
                if index as u32 % 256 >= noise {
                    *byte = 1 + (index / 64) as u8 % 7;
                }
            };
            bytes.iter_mut().enumerate().for_each(plain);
            self.0.insert(address + page * PAGE, bytes);
        }
    }
}

impl Pages for Memory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        for (page, address) in bytes.chunks_exact_mut(PAGE as usize).zip((address..).step_by(PAGE as usize)) {
            page.copy_from_slice(&self.page(address));
        }
        Ok(())
    }
}

pub(crate) const TEXT: u64 = 0x7000_0000_0000;
pub(crate) const DATA: u64 = TEXT + 0x10_0000;
pub(crate) const HEAP: u64 = 0x7100_0000_0000;
pub(crate) const ARENA: u64 = 0x7200_0000_0000;
pub(crate) const MODEL: u64 = 0x7300_0000_0000;
pub(crate) const STACK: u64 = 0x7ffc_0000_0000;
pub(crate) const VDSO: u64 = 0x7ffd_0000_0000;

pub(crate) const READ: Protection = Protection { read: true, write: false, execute: false };
pub(crate) const READ_WRITE: Protection = Protection { read: true, write: true, execute: false };
pub(crate) const READ_EXECUTE: Protection = Protection { read: true, write: false, execute: true };

pub(crate) fn mapping(start: u64, pages: u64, protection: Protection, kind: MappingKind) -> Mapping {
    Mapping { start, bytes: pages * PAGE, protection, kind }
}

pub(crate) fn identity() -> Identity {
    Identity {
        runner_build: [1; 32],
        kernel_release: "6.18.0 #1 SMP".to_owned(),
        cpu_features: vec![7, 0xffff_0000_1234_5678],
        model: appliance_types::ModelDigest::from_bytes([2; 32]),
        manifest: [3; 32],
        function: "assistant".parse().unwrap(),
        accelerators: Vec::new(),
    }
}

fn registers() -> Registers {
    let mut general = vec![0; GENERAL_BYTES];
    general[16 * 8..17 * 8].copy_from_slice(&(TEXT + 0x1234).to_le_bytes());
    general[19 * 8..20 * 8].copy_from_slice(&(STACK + 0x7ff0).to_le_bytes());
    Registers { general, extended: vec![0x11; 2432] }
}

fn process() -> Process {
    Process {
        comm: b"ember-runner".to_vec(),
        start_code: TEXT,
        end_code: TEXT + 4 * PAGE,
        start_data: DATA,
        end_data: DATA + 0x1800,
        start_brk: HEAP + 0x10,
        brk: HEAP + 16 * PAGE,
        start_stack: STACK + 0x7fff,
        arg_start: STACK + 0x7ff0,
        arg_end: STACK + 0x7ff8,
        env_start: STACK + 0x7ff8,
        env_end: STACK + 0x7ff8,
        auxv: vec![0; 320],
        tid_address: HEAP + 0x300,
        robust_list: HEAP + 0x310,
        rseq: Some(RseqArea { address: HEAP + 0x400, length: 32, signature: 0x5305_3053 }),
        sigaltstack: Some(SignalStack { address: ARENA, bytes: 2 * PAGE, flags: 0 }),
        signal_actions: vec![
            SignalAction { signal: 11, handler: TEXT + 0x2000, flags: 0x1c00_0004, restorer: TEXT + 0x100, mask: 0 },
            SignalAction { signal: 13, handler: 1, flags: 0x1400_0000, restorer: TEXT + 0x100, mask: 1 << 12 },
        ],
        signal_mask: 0,
    }
}

fn mappings() -> Vec<Mapping> {
    vec![
        mapping(TEXT, 4, READ_EXECUTE, MappingKind::Text),
        mapping(TEXT + 4 * PAGE, 2, READ, MappingKind::Text),
        mapping(DATA, 3, READ_WRITE, MappingKind::Anonymous),
        mapping(HEAP, 16, READ_WRITE, MappingKind::Heap),
        mapping(ARENA, 1200, READ_WRITE, MappingKind::Anonymous),
        mapping(MODEL, 40, READ, MappingKind::Model),
        mapping(STACK, 8, READ_WRITE, MappingKind::Stack),
        mapping(VDSO - 4 * PAGE, 4, READ, MappingKind::Vvar),
        mapping(VDSO, 2, READ_EXECUTE, MappingKind::Vdso),
    ]
}

fn kept() -> Vec<Extent> {
    let extent = |address, pages, source| Extent { address, bytes: pages * PAGE, source };
    vec![
        extent(TEXT, 4, Source::Text { offset: 0 }),
        extent(TEXT + 4 * PAGE, 2, Source::Text { offset: 4 * PAGE }),
        extent(ARENA + 100 * PAGE, 600, Source::Raw { digest: [9; 32], offset: 2 * PAGE }),
        extent(MODEL, 40, Source::Model { offset: 8 * PAGE }),
    ]
}

/// A small runner: text, data, heap, an arena with repacked weights in it, model, stack and vDSO.
pub(crate) fn runner() -> (Capture, Memory) {
    let mut memory = Memory::default();
    memory.fill(DATA, 3, 100, 40);
    memory.fill(HEAP, 2, 200, 40);
    memory.fill(HEAP + 9 * PAGE, 1, 300, 256);
    memory.fill(ARENA, 90, 400, 30);
    memory.fill(ARENA + 800 * PAGE, 200, 600, 60);
    memory.fill(STACK + 7 * PAGE, 1, 800, 10);
    let data = [(DATA, 3), (HEAP, 16), (ARENA, 100), (ARENA + 700 * PAGE, 500), (STACK + 6 * PAGE, 2)];
    let data = data.map(|(address, pages)| Span { address, bytes: pages * PAGE }).to_vec();
    let capture = Capture {
        identity: identity(),
        registers: registers(),
        process: process(),
        mappings: mappings(),
        kept: kept(),
        data,
        note: b"kept as it is".to_vec(),
        device: DeviceState::default(),
    };
    (capture, memory)
}

/// A runner of few pages in two small frames, for what is tried thousands of times.
pub(crate) fn small_runner() -> (Capture, Memory) {
    let (mut capture, mut memory) = runner();
    memory.0.retain(|address, _| (HEAP..ARENA).contains(address));
    capture.data.retain(|span| (HEAP..ARENA).contains(&span.address));
    (capture, memory)
}

pub(crate) const SMALL_FRAMES: EncodeOptions<'static> =
    EncodeOptions { level: 1, frame_bytes: 2 * 4096, zero_gap_bytes: 0, piece_bytes: 4096, first_touch: &[] };

/// The file that `encode` makes.
pub(crate) fn file_of(capture: Capture, memory: &Memory, options: &EncodeOptions<'_>) -> Vec<u8> {
    let mut file = io::Cursor::new(Vec::new());
    encode(capture, memory, options, &KEY, &mut file).unwrap();
    file.into_inner()
}

/// What a restore does with a file: opens it, decodes all frames, and has an image and a data area.
pub(crate) fn load(file: &[u8], key: &[u8; 32], expected: &Identity) -> Result<(Image, Vec<u8>), SnapshotError> {
    let head = &file[..head_bytes(file)?.min(file.len())];
    let snapshot = Snapshot::open(head, file.len() as u64, key, expected)?;
    let mut area = vec![0; snapshot.data_bytes() as usize];
    let mut decoder = FrameDecoder::new().unwrap();
    for (index, frame) in snapshot.frames().iter().enumerate() {
        let (from, to) = (frame.file_range(), frame.data_range());
        let input = &file[from.start as usize..from.end as usize];
        let output = &mut area[to.start as usize..to.end as usize];
        snapshot.decode_frame(&mut decoder, index, input, output)?;
    }
    Ok((snapshot.into_image(), area))
}
