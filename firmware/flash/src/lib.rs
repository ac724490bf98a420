//! Writes an image to a disk, or to a file that stands for one, and proves that it is there.
//!
//! ```text
//!  image: file or stdin, plain or zstd                                     target: disk or file
//!     │ source: what has data (.bmap, or the file's holes), hashed              │
//!     ▼                                                                         ▼
//!  a thread of its own ──1 MiB pieces──▶ writer: O_DIRECT, eight at once   mark ▶ data ▶ holes are zeros ▶ read back
//!                                                                            ▶ machine.toml ▶ backup table ▶ head
//! ```
//!
//! Invariants:
//! - the image's first 64 KiB, which has the partition table, is written last; until then a mark stands there, so a disk
//!   that was not written to its end neither boots nor passes for whole, and the next run knows it; the table's second
//!   copy that was at its end is gone from the first write on;
//! - when it ends well, every byte of the image is on the target, those of its holes too: what a disk held before is no
//!   free space to a file system that was made elsewhere;
//! - a mounted disk, and one that this system runs from, is refused unless told otherwise, by what sysfs says and by
//!   opening it exclusively.
//!
//! Left out: asking the operator, and showing progress (`appliance/cli`).

mod buffer;
mod config;
pub mod disks;
mod error;
mod flash;
mod source;
mod target;
mod writer;

pub use disks::{Disk, disks};
pub use error::FlashError;
pub use flash::{Job, Report, Step, flash};
pub use source::{Image, block_map};
pub use target::{Guard, Kind, Target};
