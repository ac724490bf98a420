//! Bytes that nobody vouches for, opened and decoded: no panic, no memory but what the limits allow.
//!
//! ```text
//! mkdir -p sandbox/snapshot/fuzz/corpus/decode
//! cargo +nightly fuzz run --fuzz-dir sandbox/snapshot/fuzz decode \
//!     sandbox/snapshot/fuzz/corpus/decode sandbox/snapshot/fuzz/seeds -- -malloc_limit_mb=256 -max_len=65536
//! ```
//!
//! `make test` runs the same function on some thousand mutations (`src/tests/smoke.rs`).

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sandbox_snapshot::fuzz::decode(bytes);
});
