//! Pages of a captured process: which are not zero, and what is in them.

use crate::{
    error::SnapshotError,
    image::{PAGE_BYTES, Span},
};
use std::io;

const PAGE: usize = PAGE_BYTES as usize;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// Bytes looked at in one read.
const SCAN_BYTES: u64 = 256 << 10;

/// Memory of a captured process.
pub trait Pages {
    /// Fills `bytes` with what is at `address`; asked for whole pages, within one span of the capture's data.
    ///
    /// # Errors
    /// They cannot be read; the capture is given up.
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// Runs of pages that are not zero; none goes across the border of two spans.
pub(crate) fn find_runs(data: &[Span], pages: &impl Pages) -> Result<Vec<Span>, SnapshotError> {
    let mut runs = Vec::new();
    let mut buffer = vec![0; SCAN_BYTES as usize];
    for span in data {
        let mut run = Span { address: span.address, bytes: 0 };
        for address in (span.address..span.end()).step_by(SCAN_BYTES as usize) {
            let bytes = &mut buffer[..SCAN_BYTES.min(span.end() - address) as usize];
            read(pages, address, bytes)?;
            for (page, address) in bytes.chunks_exact(PAGE).zip((address..).step_by(PAGE)) {
                extend_run(&mut run, &mut runs, address, page);
            }
        }
        runs.extend((run.bytes > 0).then_some(run));
    }
    Ok(runs)
}

/// Takes the page into `run`, or ends it.
fn extend_run(run: &mut Span, runs: &mut Vec<Span>, address: u64, page: &[u8]) {
    if page != ZERO_PAGE {
        run.bytes += PAGE_BYTES;
        return;
    }
    runs.extend((run.bytes > 0).then_some(*run));
    *run = Span { address: address + PAGE_BYTES, bytes: 0 };
}

/// Reads what of `bytes`, which are zero, lies within spans of data; gaps between stay zero.
pub(crate) fn read_data(
    data: &[Span],
    pages: &impl Pages,
    address: u64,
    bytes: &mut [u8],
) -> Result<(), SnapshotError> {
    let end = address + bytes.len() as u64;
    let first = data.partition_point(|span| span.end() <= address);
    for span in data[first..].iter().take_while(|span| span.address < end) {
        let (from, to) = (span.address.max(address), span.end().min(end));
        read(pages, from, &mut bytes[(from - address) as usize..(to - address) as usize])?;
    }
    Ok(())
}

fn read(pages: &impl Pages, address: u64, bytes: &mut [u8]) -> Result<(), SnapshotError> {
    let length = bytes.len();
    pages.read(address, bytes).map_err(|source| SnapshotError::Read { address, bytes: length, source })
}
