//! The merging at the heart of both BPE families.
//!
//! Idea: a text is a chain of symbols. Again and again the adjacent pair with the lowest rank is joined
//! (the leftmost one among equals), until no pair has a rank. SentencePiece's highest score first and
//! byte-level BPE's lowest rank first are the same loop once scores are turned into ranks.
//!
//! Why it is fast:
//! 1. Short chains (almost every word) are kept in a flat array with each pair's rank beside it: finding the
//!    lowest is one pass over a few cache lines, and a merge re-ranks two neighbours.
//! 2. Long chains go through a heap and a doubly linked list, O(n log n), so ten megabytes without a
//!    space do not take hours. Outdated heap entries are skipped, not searched for.
//!
//! Knows nothing of vocabularies: ranks come through a trait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vocab::NONE;

/// One symbol of the chain: the bytes `start..end` of the text and the token that they are, or `NONE`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) id: u32,
}

/// Says which adjacent symbols may be joined.
pub(crate) trait Ranks {
    /// The rank of joining `left` and `right` (lower goes first) and the token that they make.
    fn rank(&mut self, left: Symbol, right: Symbol) -> Option<(u32, u32)>;
}

/// Chains of up to this many symbols are merged by scanning.
const SCAN: usize = 64;
/// The rank of a pair that cannot be joined. A real pair of this rank does not exist: ranks are ids,
/// line numbers, or keys of scores that are numbers.
const NEVER: u32 = u32::MAX;

/// Buffers that are kept from one text to the next.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Rank and token of the pair that starts at each symbol, for short chains.
    pairs: Vec<(u32, u32)>,
    /// Rank above left index, then the pair's end and token, for long chains.
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// Previous and next live symbol, for long chains.
    links: Vec<(u32, u32)>,
}

/// Tokens whose own text was seen to merge into just that token. For these, and only these, a piece of text that
/// equals the token's needs no merging.
#[derive(Debug)]
pub(crate) struct Seen(Vec<AtomicBool>);

impl Seen {
    pub(crate) fn new(tokens: usize) -> Seen {
        let unseen = std::iter::repeat_with(AtomicBool::default);
        Seen(unseen.take(tokens).collect())
    }

    /// Whether the token's text was seen to merge into the token.
    #[inline]
    pub(crate) fn is_itself(&self, id: u32) -> bool {
        let seen = self.0.get(id as usize);
        seen.is_some_and(|seen| seen.load(Ordering::Relaxed))
    }

    /// Remembers what merging the text of token `id` gave.
    pub(crate) fn note(&self, id: u32, merged: &[Symbol]) {
        if let (Some(seen), [one]) = (self.0.get(id as usize), merged)
            && one.id == id
        {
            seen.store(true, Ordering::Relaxed);
        }
    }
}

/// Joins symbols in place until no pair has a rank; `symbols` holds what is left, in order.
pub(crate) fn merge(symbols: &mut Vec<Symbol>, ranks: &mut impl Ranks, buffers: &mut Buffers) {
    if symbols.len() <= SCAN {
        merge_scanning(symbols, ranks, &mut buffers.pairs);
    } else {
        merge_heap(symbols, ranks, buffers);
    }
}

fn merge_scanning(symbols: &mut Vec<Symbol>, ranks: &mut impl Ranks, pairs: &mut Vec<(u32, u32)>) {
    pairs.clear();
    pairs.extend(
        symbols
            .windows(2)
            .map(|w| ranks.rank(w[0], w[1]).unwrap_or((NEVER, NONE))),
    );
    loop {
        let mut best = (NEVER, 0);
        for (i, &(rank, _)) in pairs.iter().enumerate() {
            if rank < best.0 {
                best = (rank, i);
            }
        }
        let (rank, i) = best;
        if rank == NEVER {
            return;
        }
        symbols[i] = Symbol {
            start: symbols[i].start,
            end: symbols[i + 1].end,
            id: pairs[i].1,
        };
        symbols.remove(i + 1);
        pairs.remove(i);
        if i > 0 {
            pairs[i - 1] = ranks
                .rank(symbols[i - 1], symbols[i])
                .unwrap_or((NEVER, NONE));
        }
        if i < pairs.len() {
            pairs[i] = ranks
                .rank(symbols[i], symbols[i + 1])
                .unwrap_or((NEVER, NONE));
        }
    }
}

fn merge_heap(symbols: &mut Vec<Symbol>, ranks: &mut impl Ranks, buffers: &mut Buffers) {
    let Buffers { heap, links, .. } = buffers;
    let last = symbols.len() - 1;
    links.clear();
    links.extend((0..symbols.len()).map(|i| {
        (
            if i == 0 { NONE } else { i as u32 - 1 },
            if i == last { NONE } else { i as u32 + 1 },
        )
    }));
    let mut seeds = std::mem::take(heap).into_vec();
    seeds.clear();
    seeds.extend((0..last).filter_map(|i| entry(symbols, ranks, i as u32, i as u32 + 1)));
    *heap = BinaryHeap::from(seeds);

    while let Some(Reverse((key, end, id))) = heap.pop() {
        let left = key as u32;
        let (before, right) = links[left as usize];
        // Outdated: the left symbol was swallowed (it is empty), or its pair has grown since.
        let l = symbols[left as usize];
        if l.start == l.end || right == NONE || symbols[right as usize].end != end {
            continue;
        }
        symbols[left as usize] = Symbol {
            start: l.start,
            end,
            id,
        };
        symbols[right as usize].end = symbols[right as usize].start;
        let after = links[right as usize].1;
        links[left as usize].1 = after;
        if after != NONE {
            links[after as usize].0 = left;
            heap.extend(entry(symbols, ranks, left, after));
        }
        if before != NONE {
            heap.extend(entry(symbols, ranks, before, left));
        }
    }
    symbols.retain(|s| s.start != s.end);
}

/// The heap's entry for a pair: ordered by rank, then by place.
#[inline]
fn entry(
    symbols: &[Symbol],
    ranks: &mut impl Ranks,
    left: u32,
    right: u32,
) -> Option<Reverse<(u64, u32, u32)>> {
    let (l, r) = (symbols[left as usize], symbols[right as usize]);
    let (rank, id) = ranks.rank(l, r)?;
    Some(Reverse((
        u64::from(rank) << 32 | u64::from(left),
        r.end,
        id,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Joins two runs of bytes when their concatenation is among `pieces`; the index is rank and token.
    struct Listed<'a>(&'a [u8], &'a [Vec<u8>]);

    impl Ranks for Listed<'_> {
        fn rank(&mut self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
            let joined = &self.0[left.start as usize..right.end as usize];
            self.1
                .iter()
                .position(|p| p == joined)
                .map(|i| (i as u32 / 2, i as u32))
        }
    }

    fn symbols(text: &[u8]) -> Vec<Symbol> {
        (0..text.len() as u32)
            .map(|i| Symbol {
                start: i,
                end: i + 1,
                id: 1000 + u32::from(text[i as usize]),
            })
            .collect()
    }

    fn ends(symbols: &[Symbol]) -> Vec<(u32, u32, u32)> {
        symbols.iter().map(|s| (s.start, s.end, s.id)).collect()
    }

    proptest! {
        #[test]
        fn heap_equals_scan(
            text in prop::collection::vec(0u8..3, 2..120),
            mut pieces in prop::collection::vec(prop::collection::vec(0u8..3, 2..6), 0..40),
        ) {
            pieces.dedup();
            let (mut a, mut b) = (symbols(&text), symbols(&text));
            merge_scanning(&mut a, &mut Listed(&text, &pieces), &mut Vec::new());
            merge_heap(&mut b, &mut Listed(&text, &pieces), &mut Buffers::default());
            prop_assert_eq!(ends(&a), ends(&b));
        }
    }

    #[test]
    fn leftmost_of_equals_goes_first() {
        let pieces = [b"aa".to_vec()];
        for n in [3, 101] {
            let text = vec![b'a'; n];
            let mut chain = symbols(&text);
            merge(
                &mut chain,
                &mut Listed(&text, &pieces),
                &mut Buffers::default(),
            );
            assert_eq!(chain.len(), n / 2 + 1);
            assert_eq!(chain.last().map(|s| s.end - s.start), Some(1));
        }
    }
}
