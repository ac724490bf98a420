//! Capture and restore of a process at rest, by ptrace.
//!
//! ```text
//!  process at rest ──Held::capture()──▶ Held: a Capture ──────▶ sandbox-snapshot encodes it, reading its memory
//!                                        │
//!                                        └──park()──▶ Parked: an Image and its data, in a sealed file
//!
//!  Image, program, model, data ──Restore::run()──▶ Restored: a child that goes on where the captured process waited
//! ```
//! | step | file |
//! |---|---|
//! | what a process is made of | `capture.rs`, with `maps.rs`, `pages.rs`, `process.rs` and `classify.rs` to read it, `inject.rs` to ask it |
//! | what it has on an accelerator, off it before and onto it after | `device.rs` |
//! | its memory as a shared file | `park.rs` |
//! | a restore as a table of system calls | `plan.rs`, `vdso.rs` |
//! | the child that runs the table | `restore.rs`, on `sandbox_kernel::table` |
//!
//! Left out: the file format (`sandbox-snapshot`), the layers of the sandbox (given as [`Restore::admit`] and
//! [`Restore::seal`]), and who may be restored when. A restored process has the thread id that libc remembers only if
//! both were the first of a pid namespace.
#![forbid(unsafe_code)]

mod capture;
mod classify;
mod device;
mod error;
mod inject;
mod maps;
mod memory;
mod pages;
mod park;
mod plan;
mod process;
mod registers;
mod restore;
mod steps;
mod touch;
mod vdso;

pub use capture::{Files, Held};
pub use device::{Device, DeviceError, NoDevice};
pub use error::{CaptureError, RestoreError};
pub use memory::Memory;
pub use park::{Parked, RawSink, park};
pub use restore::{Ahead, Data, Restore, Restored};
pub use steps::Step;
pub use touch::{Touches, written};
