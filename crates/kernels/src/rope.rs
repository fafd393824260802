//! Tables of cosines and sines for rotary embeddings.
//!
//! The angle is `position as f32 · inv_freq` in f32, as the reference implementations have it; its
//! cosine and sine are taken in f64 and rounded, then multiplied by `mscale`. All layers of a model
//! turn by the same angles, so the last table is kept.

use std::sync::{Arc, Mutex, PoisonError};

/// Rotary position embedding: which frequencies turn which pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair; the first `2 * inv_freq.len()` values of a head turn.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine (YaRN's attention factor; 1 elsewhere).
    pub mscale: f32,
    /// Which values form a pair.
    pub layout: RopeLayout,
}

/// Which values of a head form a rotated pair, of `rot` rotated values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// `(i, i + rot/2)`: Hugging Face.
    HalfSplit,
    /// `(2i, 2i + 1)`: Meta and GGUF.
    Interleaved,
}

/// Cosines and sines `[positions, pairs]`.
#[derive(Debug)]
pub(crate) struct Turns {
    inv_freq: Vec<f32>,
    mscale: f32,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    fn new(rope: &Rope, positions: &[u32]) -> Turns {
        let mut cos = Vec::with_capacity(positions.len() * rope.inv_freq.len());
        let mut sin = Vec::with_capacity(cos.capacity());
        for &position in positions {
            for freq in &rope.inv_freq {
                let (s, c) = f64::from(position as f32 * freq).sin_cos();
                cos.push(c as f32 * rope.mscale);
                sin.push(s as f32 * rope.mscale);
            }
        }
        Turns {
            inv_freq: rope.inv_freq.clone(),
            mscale: rope.mscale,
            positions: positions.to_vec(),
            cos,
            sin,
        }
    }

    fn is_for(&self, rope: &Rope, positions: &[u32]) -> bool {
        let same_freq = self.inv_freq == rope.inv_freq && self.mscale == rope.mscale;
        same_freq && self.positions == positions
    }

    /// Cosines and sines of the `i`-th position.
    pub(crate) fn of(&self, i: usize) -> (&[f32], &[f32]) {
        let pairs = self.inv_freq.len();
        let row = i * pairs..(i + 1) * pairs;
        (&self.cos[row.clone()], &self.sin[row])
    }
}

/// The last table made.
#[derive(Debug, Default)]
pub(crate) struct LastTurns(Mutex<Option<Arc<Turns>>>);

impl LastTurns {
    /// The table for these positions: the last one, if it fits, or a new one.
    pub(crate) fn get(&self, rope: &Rope, positions: &[u32]) -> Arc<Turns> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(turns) if turns.is_for(rope, positions) => Arc::clone(turns),
            _ => Arc::clone(last.insert(Arc::new(Turns::new(rope, positions)))),
        }
    }
}
