//! Builds the bootable image from one recipe, and says what is in one.
//!
//! ```text
//!  appliance.toml ─▶ recipe
//!                      │    debian: kernel, systemd-boot (downloaded, never installed)
//!                      │       │
//!                      ▼       ▼
//!  programs ───▶ initramfs ◀─ modules (those that are wanted, and what they need)
//!                      │
//!                      ▼
//!              uki = stub + os-release + command line + kernel + initramfs
//!                      │
//!                      ▼
//!              disk = GPT { ESP (FAT32): systemd-boot, uki · data (ext4): functions and models, if any }  ─▶ ember.img, ember.img.bmap
//! ```
//!
//! Invariants: the same inputs give the same bytes, whatever the clock and the folder, signatures for Secure Boot left aside; no root, no loop device, no mount;
//! a finished image appears under its name whole or not at all. Left out: what runs on the appliance (`firmware/`).

pub mod bmap;
mod build;
pub mod data;
pub mod debian;
pub mod disk;
mod error;
pub mod initramfs;
mod inspect;
pub mod modules;
pub mod preload;
pub mod qemu;
pub mod recipe;
mod sign;

pub use build::{Built, build};
pub use error::ImageError;
pub use images_uki as uki;
pub use inspect::{Inspection, inspect};
pub use preload::Preload;
pub use recipe::Recipe;
pub use sign::Signer;
