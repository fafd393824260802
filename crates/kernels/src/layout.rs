//! How rows lie in unpacked form, weights and activations alike: see `unpack`.

use crate::simd::LANES;
use std::ops::Range;

/// How a row is laid out in unpacked form; the same for weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Vectors of 64 bytes in a group: 8 for blocks of 32 values, 4 for blocks of 16.
    pub(crate) vectors: usize,
    /// Groups of 16 blocks; the last may be filled up with zeros.
    pub(crate) groups: usize,
    /// Up to four blocks beyond, as two vectors of two blocks each, value by value.
    pub(crate) pairs: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
}

impl Layout {
    /// Of rows of `cols` values in blocks of 16 or 32.
    pub(crate) fn new(block: usize, cols: usize) -> Layout {
        let blocks = cols / block;
        let (full, rest) = (blocks / LANES, blocks % LANES);
        // A group costs as much as three pairs. Few formats with blocks of 16 leave any.
        let pairs = match rest {
            0..=4 if block == 32 => rest.div_ceil(2),
            _ => 0,
        };
        Layout {
            vectors: block / 4,
            groups: full + usize::from(rest > 0 && pairs == 0),
            pairs,
            blocks,
        }
    }

    /// Groups and pairs of a row.
    pub(crate) fn steps(self) -> usize {
        self.groups + self.pairs
    }

    /// The row in parts of about one size, of 2048 columns at most; the last has the pairs.
    pub(crate) fn parts(self) -> impl Iterator<Item = Part> {
        let (count, step) = (self.count(), self.part_groups());
        (0..count).map(move |index| {
            let last = index + 1 == count;
            let groups = (index * step).min(self.groups)..self.groups.min((index + 1) * step);
            let end = if last {
                self.blocks
            } else {
                groups.end * LANES
            };
            Part {
                blocks: groups.start * LANES..end,
                pairs: if last { self.pairs } else { 0 },
                last,
                index,
                groups,
            }
        })
    }

    /// Groups of each part but the last.
    pub(crate) fn part_groups(self) -> usize {
        let most = 2048 / 4 / LANES / self.vectors;
        self.groups
            .div_ceil(self.groups.div_ceil(most).max(1))
            .max(1)
    }

    /// Parts of a row.
    pub(crate) fn count(self) -> usize {
        self.groups.div_ceil(self.part_groups()).max(1)
    }
}

/// Some columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) groups: Range<usize>,
    pub(crate) pairs: usize,
    pub(crate) blocks: Range<usize>,
    /// Whether the row ends with it.
    pub(crate) last: bool,
    pub(crate) index: usize,
}

impl Part {
    /// Groups and pairs.
    pub(crate) fn steps(&self) -> usize {
        self.groups.len() + self.pairs
    }

    /// Groups that have a block of this number, counted within each: all or all but the last.
    #[inline(always)]
    pub(crate) fn chain(&self, block: usize) -> usize {
        let blocks = self.blocks.len().min(self.groups.len() * LANES);
        (blocks + LANES - 1 - block) / LANES
    }

    /// Blocks of the pairs, and the first of them counted from the part's first.
    #[inline(always)]
    pub(crate) fn beyond(&self) -> Range<usize> {
        (self.groups.len() * LANES).min(self.blocks.len())..self.blocks.len()
    }
}

/// The lane of a group's block, or the block of a lane.
#[inline(always)]
pub(crate) const fn turned(i: usize) -> usize {
    i % 4 * 4 + i / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_block_once() {
        for block in [16, 32] {
            for blocks in 1..1000 {
                let layout = Layout::new(block, block * blocks);
                let (mut next, mut groups, mut pairs) = (0, 0, 0);
                let parts: Vec<_> = layout.parts().collect();
                assert_eq!(parts.len(), layout.count());
                for (i, part) in parts.iter().enumerate() {
                    assert_eq!((part.blocks.start, part.index), (next, i));
                    assert!(part.groups.len() * LANES * block <= 2048);
                    assert_eq!(part.groups.start, groups);
                    assert!(layout.groups == 0 || !part.groups.is_empty());
                    assert_eq!(part.last, i + 1 == parts.len());
                    (next, groups) = (part.blocks.end, part.groups.end);
                    pairs += part.pairs;
                    let chains: usize = (0..LANES).map(|b| part.chain(b)).sum();
                    assert_eq!(chains + part.beyond().len(), part.blocks.len());
                }
                assert_eq!((next, groups, pairs), (blocks, layout.groups, layout.pairs));
            }
        }
    }
}
