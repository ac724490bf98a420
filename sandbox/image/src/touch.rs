//! What a restored process has touched: what a trial shows, so that the next one restored has it ahead of need.
//!
//! ```text
//!  look     A . . .    A B . .    A B . D       pages that its page table has, each time
//!  order    A          A B        A B D         as they came; those that came between two looks by address
//! ```
//! Left out: which of the pages beside one that is read were asked for: the kernel maps 64 KiB at a time of a file.

use crate::{
    error::{CaptureError, Result},
    pages::Pagemap,
};
use sandbox_kernel::pidfd::Pid;
use sandbox_snapshot::image::{Image, PAGE_BYTES, Source, Span};
use std::ops::Range;

/// Pages looked at in one read.
const BATCH_PAGES: u64 = 8192;

/// Pages of a process's own in the memory that its image gave it, by ascending address: those that it has written to since
/// it was restored, and those that were copied for it then. What it has mapped since is left out.
///
/// # Errors
/// The process is gone, or its page table cannot be read.
pub fn written(process: Pid, image: &Image) -> Result<Vec<Span>, CaptureError> {
    let pagemap = Pagemap::open(process.as_raw())?;
    let mut written = Vec::new();
    for mapping in image.mappings.iter().filter(|mapping| mapping.protection.write && !mapping.kind.is_kernels()) {
        written.extend(pagemap.pages(mapping.start..mapping.span().end())?.own);
    }
    Ok(written)
}

/// The order in which a process reads from or writes to the memory that its image brings along.
pub struct Touches {
    pagemap: Pagemap,
    batches: Vec<Batch>,
    order: Vec<u64>,
}

struct Batch {
    range: Range<u64>,
    /// Of each page, whether it was touched.
    touched: Vec<bool>,
}

impl Touches {
    /// Of a process restored from this image.
    ///
    /// # Errors
    /// The process is gone.
    pub fn new(process: Pid, image: &Image) -> Result<Self, CaptureError> {
        let brought = image.extents.iter().filter(|extent| matches!(extent.source, Source::Compressed { .. }));
        let batches = brought.flat_map(|extent| batches(extent.span())).collect();
        Ok(Self { pagemap: Pagemap::open(process.as_raw())?, batches, order: Vec::new() })
    }

    /// Takes down what was touched since the last look.
    ///
    /// # Errors
    /// The process is gone.
    pub fn look(&mut self) -> Result<(), CaptureError> {
        for Batch { range, touched } in &mut self.batches {
            for (at, (before, now)) in touched.iter_mut().zip(self.pagemap.touched(range)?).enumerate() {
                if now && !*before {
                    self.order.push(range.start + at as u64 * PAGE_BYTES);
                }
                *before |= now;
            }
        }
        Ok(())
    }

    /// Addresses of pages, those first that were touched first.
    pub fn order(self) -> Vec<u64> {
        self.order
    }
}

fn batches(span: Span) -> impl Iterator<Item = Batch> {
    let step = BATCH_PAGES * PAGE_BYTES;
    (span.address..span.end()).step_by(step as usize).map(move |start| {
        let range = start..span.end().min(start + step);
        Batch { touched: vec![false; ((range.end - range.start) / PAGE_BYTES) as usize], range }
    })
}
