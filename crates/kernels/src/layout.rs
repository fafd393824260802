//! How rows lie in unpacked form, weights and activations alike: see `unpack`.

use crate::simd::LANES;

/// How a row is laid out in unpacked form; the same for weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Vectors of 64 bytes in a group: 8 for blocks of 32 values, 4 for blocks of 16.
    pub(crate) vectors: usize,
    /// Groups of 16 blocks; the last may be filled up with zeros.
    pub(crate) groups: usize,
    /// Up to four blocks beyond, as two vectors of two blocks each, value by value.
    pub(crate) pairs: usize,
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
        }
    }

    /// Groups and pairs of a row.
    pub(crate) fn steps(self) -> usize {
        self.groups + self.pairs
    }
}
