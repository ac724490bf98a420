//! The fuzz target's function on some thousand mutations, the same in every run.

use super::*;

const ROUNDS: u64 = 6000;
/// Numbers that break arithmetic.
const EXTREMES: [u64; 8] = [0, 1, 4095, 1 << 20, 1 << 31, 1 << 47, i64::MAX as u64, u64::MAX];

/// Numbers from a seed.
struct Numbers(blake3::OutputReader);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % limit.max(1) as u64) as usize
    }
}

fn mutate(file: &mut Vec<u8>, head_bytes: usize, numbers: &mut Numbers) {
    // Half of the mutations in the head, where there is more to break.
    let within = [head_bytes.min(file.len()), file.len()][numbers.below(2)];
    let at = numbers.below(within);
    match numbers.below(6) {
        0 | 1 => file[at] ^= 1 << numbers.below(8),
        2 => file[at] = numbers.below(256) as u8,
        3 => {
            let extreme = EXTREMES[numbers.below(EXTREMES.len())].to_le_bytes();
            let length = [4, 8][numbers.below(2)].min(file.len() - at);
            file[at..at + length].copy_from_slice(&extreme[..length]);
        }
        4 => {
            let (from, length) = (numbers.below(file.len()), numbers.below(64));
            let copied = file[from..(from + length).min(file.len())].to_vec();
            let length = copied.len().min(file.len() - at);
            file[at..at + length].copy_from_slice(&copied[..length]);
        }
        _ => file.truncate(file.len() - numbers.below(file.len().min(8192))),
    }
}

#[test]
fn mutated_snapshots_are_refused_or_decoded_and_never_panic() {
    let (capture, memory) = small_runner();
    let file = file_of(capture, &memory, &SMALL_FRAMES);
    let head_bytes = head_bytes(&file).unwrap();
    assert!(fuzz::decode(&file) >= 2, "the unchanged snapshot decodes");
    let mut behind_the_seal = 0;
    for round in 0..ROUNDS {
        let mut numbers = Numbers::new(round);
        let mut mutated = file.clone();
        for _ in 0..1 + numbers.below(3) {
            mutate(&mut mutated, head_bytes, &mut numbers);
        }
        behind_the_seal += u64::from(fuzz::decode(&mutated) > 0);
    }
    assert!(behind_the_seal > ROUNDS / 10, "only {behind_the_seal} mutations came to zstd: sealing anew is broken");
}

/// Where the fuzzer begins: one frame, and the shortest extended state.
const SEED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/runner.snapshot");

#[test]
fn the_fuzzers_seed_is_a_snapshot() {
    assert_eq!(fuzz::decode(&std::fs::read(SEED).unwrap()), 2, "of an older format? run the ignored test below");
}

#[test]
#[ignore = "writes the seed anew; run it by name after the format has changed"]
fn write_the_fuzzers_seed() {
    let (mut capture, mut memory) = small_runner();
    capture.registers.extended.truncate(EXTENDED_BYTES_MIN);
    memory.fill(HEAP + 9 * PAGE, 1, 300, 8);
    let options = EncodeOptions { level: 19, ..EncodeOptions::default() };
    std::fs::write(SEED, file_of(capture, &memory, &options)).unwrap();
}

#[test]
fn noise_is_no_snapshot() {
    for round in 0..1000 {
        let mut numbers = Numbers::new(round);
        let mut noise = vec![0; numbers.below(600)];
        numbers.0.fill(&mut noise);
        assert_eq!(fuzz::decode(&noise), 0);
    }
}
