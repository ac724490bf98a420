//! Update bundles: what an update is, who vouches for it, and how it gets into the slot that does not run.
//!
//! ```text
//!   0  "EMBERUPD"
//!   8  u32 length of the manifest, u32 length of the signature, little-endian; 4096 at most each
//!  16  manifest (TOML): version, minimum, compatible, size and BLAKE3 of the UKI
//!      signature of the manifest, as `minisign -S` writes it
//!      UKI, to the end
//! ```
//! The signature vouches for the manifest, the manifest's BLAKE3 for the UKI, so nothing of a bundle that nobody vouches for
//! is written, and what is written is checked before it gets a name that the boot loader knows.
//!
//! Invariants: reading stops at the first fault, with its reason, and leaves the folder of slots as it was; the slot that
//! runs is never written. Left out: how a bundle comes here (the server and the warden), and starting what was installed.

mod bundle;
mod error;
mod install;
pub mod minisign;

pub use bundle::{Manifest, Reader, write};
pub use error::BundleError;
/// What this build's bundles are for.
pub const MACHINE: &str = "ember-x86-64";

pub use install::{Installed, Place, Status};
