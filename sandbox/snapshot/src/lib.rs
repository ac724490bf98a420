//! The format of snapshots: a captured runner to bytes, and bytes that nobody vouches for to a runner that can be restored.
//!
//! ```text
//!  capture ──▶ Capture, Pages ──▶ encode ──▶ file ──▶ Snapshot::open ──▶ Image ─────────▶ restore
//!                                                          └──▶ decode_frame ──▶ data area ──▶ │
//! ```
//!
//! Pure: no files, clock or system calls; bytes come and go through arguments. The layout of the file is drawn in
//! `head.rs`, that of a frame in `frame.rs`; what must hold of an image is written in `check.rs`.
//!
//! Invariants: nothing of a file is believed before a keyed hash over it was checked, and what was checked is still
//! treated as hostile: every count, length, address and offset is bounded and in its place, and executable memory never
//! comes from a snapshot. No input makes this crate panic, nor allocate more than some 100 MiB, and that only behind a
//! right seal.

mod check;
mod encode;
mod error;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod head;
pub mod image;
pub mod limits;
mod pages;
mod plan;
mod seal;
mod snapshot;
#[cfg(test)]
mod tests;

pub use encode::{EncodeOptions, encode, is_incompressible};
pub use error::{Fault, IdentityPart, SnapshotError};
pub use frame::{Frame, FrameDecoder};
pub use head::{HEADER_BYTES, VERSION, head_bytes};
pub use pages::Pages;
pub use snapshot::Snapshot;
