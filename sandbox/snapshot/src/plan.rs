//! Where pages go in the data area.
//!
//! ```text
//!  runs      ┌──────── A ────────┐  ┌ B ┐  ┌── C ──┐       not zero, by address
//!  pieces    │  A1  │  A2  │ A3  │  │ B │  │   C   │       cut at multiples of the size of pieces
//!  touched        3rd                2nd      1st
//!  data area │   C   │ B │  A1 ┊ A2 ┊ A3 │                 by first touch, what is untouched last; neighbours are one
//! ```
//!
//! Pure: spans and addresses in, extents out.

use crate::image::{Extent, Mapping, Source, Span};

/// Joins runs that lie at most `gap_bytes` apart, where `joinable` says of the gap that it may be filled.
pub(crate) fn join(runs: Vec<Span>, gap_bytes: u64, joinable: impl Fn(Span) -> bool) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.address - last.end() <= gap_bytes && joinable(between(*last, run)) => {
                last.bytes = run.end() - last.address;
            }
            _ => joined.push(run),
        }
    }
    joined
}

fn between(before: Span, after: Span) -> Span {
    Span { address: before.end(), bytes: after.address - before.end() }
}

/// Places runs in the data area: extents by ascending offset.
pub(crate) fn place(runs: &[Span], piece_bytes: u64, first_touch: &[u64]) -> Vec<Extent> {
    let pieces: Vec<Span> = runs.iter().flat_map(|run| cut(*run, piece_bytes)).collect();
    let mut ranks = vec![usize::MAX; pieces.len()];
    for (rank, address) in first_touch.iter().enumerate() {
        if let Some(piece) = piece_at(&pieces, *address) {
            ranks[piece] = ranks[piece].min(rank);
        }
    }
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|piece| ranks[*piece]);
    let starts_run = |piece: &Span| runs.binary_search_by_key(&piece.address, |run| run.address).is_ok();
    lay_out(order.into_iter().map(|piece| pieces[piece]), starts_run)
}

/// Cuts a run at the multiples of `piece_bytes`.
fn cut(run: Span, piece_bytes: u64) -> impl Iterator<Item = Span> {
    let mut address = run.address;
    std::iter::from_fn(move || {
        let end = (address + 1).next_multiple_of(piece_bytes).min(run.end());
        let piece = Span { address, bytes: end - address };
        address = end;
        (piece.bytes > 0).then_some(piece)
    })
}

fn piece_at(pieces: &[Span], address: u64) -> Option<usize> {
    let piece = pieces.partition_point(|piece| piece.address <= address).checked_sub(1)?;
    (address < pieces[piece].end()).then_some(piece)
}

/// Lays pieces one after another; a piece that goes on where its run left off lengthens the extent before it.
fn lay_out(pieces: impl Iterator<Item = Span>, starts_run: impl Fn(&Span) -> bool) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut offset = 0;
    for piece in pieces {
        match extents.last_mut() {
            Some(last) if last.span().end() == piece.address && !starts_run(&piece) => last.bytes += piece.bytes,
            _ => extents.push(Extent {
                address: piece.address,
                bytes: piece.bytes,
                source: Source::Compressed { offset },
            }),
        }
        offset += piece.bytes;
    }
    extents
}

/// Adds what is zero: all of the mappings that `extents`, by ascending address, leave open.
pub(crate) fn fill(mappings: &[Mapping], extents: Vec<Extent>) -> Vec<Extent> {
    let mut filled = Vec::with_capacity(2 * extents.len() + mappings.len());
    let mut extents = extents.into_iter().peekable();
    for mapping in mappings.iter().filter(|mapping| !mapping.kind.is_kernels()) {
        let (mut at, end) = (mapping.start, mapping.span().end());
        while let Some(extent) = extents.next_if(|extent| extent.address < end) {
            filled.extend(zero(at, extent.address));
            at = extent.span().end();
            filled.push(extent);
        }
        filled.extend(zero(at, end));
    }
    filled.extend(extents);
    filled
}

fn zero(from: u64, to: u64) -> Option<Extent> {
    (from < to).then(|| Extent { address: from, bytes: to - from, source: Source::Zero })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn span(page: u64, pages: u64) -> Span {
        Span { address: page * PAGE, bytes: pages * PAGE }
    }

    fn placed(page: u64, pages: u64, offset_pages: u64) -> Extent {
        let Span { address, bytes } = span(page, pages);
        Extent { address, bytes, source: Source::Compressed { offset: offset_pages * PAGE } }
    }

    #[test]
    fn small_gaps_are_joined_where_they_may_be() {
        let runs = vec![span(100, 1), span(102, 1), span(110, 1), span(111, 1)];
        let joined = join(runs.clone(), 2 * PAGE, |_| true);
        assert_eq!(joined, [span(100, 3), span(110, 2)]);
        assert_eq!(join(runs, 9 * PAGE, |gap| gap.address != 111 * PAGE), [span(100, 11), span(111, 1)]);
    }

    #[test]
    fn without_a_trial_the_order_is_that_of_addresses() {
        let runs = [span(101, 20), span(200, 1)];
        assert_eq!(place(&runs, 4 * PAGE, &[]), [placed(101, 20, 0), placed(200, 1, 20)]);
    }

    #[test]
    fn what_is_touched_first_comes_first() {
        let runs = [span(100, 10), span(200, 1), span(300, 2)];
        let touched = [301, 999, 200, 300, 105].map(|page: u64| page * PAGE + 17);
        let expected = [placed(300, 2, 0), placed(200, 1, 2), placed(104, 4, 3), placed(100, 4, 7), placed(108, 2, 11)];
        assert_eq!(place(&runs, 4 * PAGE, &touched), expected);
    }

    #[test]
    fn runs_of_two_mappings_stay_apart() {
        let runs = [span(100, 4), span(104, 4)];
        assert_eq!(place(&runs, 4 * PAGE, &[]), [placed(100, 4, 0), placed(104, 4, 4)]);
    }
}
