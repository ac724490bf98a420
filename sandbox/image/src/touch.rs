//! What a restored process has written to: what a trial shows, so that the next one restored has it ahead of need.

use crate::{
    error::{CaptureError, Result},
    pages::Pagemap,
};
use sandbox_kernel::pidfd::Pid;
use sandbox_snapshot::image::{Image, Span};

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
