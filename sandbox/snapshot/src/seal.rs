//! Keyed BLAKE3 over what a snapshot stores.
//!
//! Head and frames have keys of their own, derived from the caller's: a tag of a frame, whose bytes are what some
//! process held, never passes for the seal of a head.

use blake3::Hash;

const HEAD_CONTEXT: &str = "ember sandbox/snapshot 2026-11-24 seal of a head";
const FRAME_CONTEXT: &str = "ember sandbox/snapshot 2026-11-24 tag of a frame";

/// The key of one snapshot, in its two uses.
#[derive(Clone)]
pub(crate) struct SealKey {
    head: [u8; 32],
    frame: [u8; 32],
}

impl SealKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self { head: blake3::derive_key(HEAD_CONTEXT, key), frame: blake3::derive_key(FRAME_CONTEXT, key) }
    }

    /// The seal of a head, given in two pieces: before and after the seal's own place.
    pub(crate) fn seal(&self, before: &[u8], after: &[u8]) -> Hash {
        blake3::Hasher::new_keyed(&self.head).update(before).update(after).finalize()
    }

    /// The tag of a frame as stored, with its padding.
    pub(crate) fn tag(&self, stored: &[u8]) -> Hash {
        blake3::keyed_hash(&self.frame, stored)
    }
}

/// Tells that there is a key, and not which.
impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}
