//! Searches for the scale of one block.
//!
//! Idea: with the integers q of its values fixed, the scale that minimises Σ w (x - s q)² is
//! Σ w x q / Σ w q², and leaves (Σ w x q)² / Σ w q² less of Σ w x². So candidates are tried, each one
//! rounds the values to integers, and the integers that leave the least win; a few rounds of
//! rounding with the best scale end the search.
//!
//! Everything is a loop over an array of known length without branches, for the compiler to turn
//! into vectors.

use crate::simd::array;

/// The numbers that a value, divided by its scale, can be stored as.
pub(super) trait Levels: Copy {
    /// Smallest and largest.
    fn ends(self) -> (f32, f32);
    /// About the distance between neighbours at the ends.
    fn step(self) -> f32;
    /// The level nearest to `x`.
    fn nearest(self, x: f32) -> f32;
    /// How a level is stored.
    fn index(self, level: f32) -> u8;
}

/// Integers from `low` to `high`, stored as the distance from `low`.
#[derive(Clone, Copy)]
pub(super) struct Uniform {
    low: f32,
    high: f32,
}

impl Uniform {
    /// -n..n
    #[inline(always)]
    pub(super) fn signed(n: f32) -> Uniform {
        Uniform {
            low: -n,
            high: n - 1.0,
        }
    }

    /// 0..=top
    #[inline(always)]
    pub(super) fn unsigned(top: f32) -> Uniform {
        Uniform {
            low: 0.0,
            high: top,
        }
    }
}

/// To the nearest integer, ties to even; |x| below 2^22.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

impl Levels for Uniform {
    #[inline(always)]
    fn ends(self) -> (f32, f32) {
        (self.low, self.high)
    }
    #[inline(always)]
    fn step(self) -> f32 {
        1.0
    }
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        round(x.max(self.low).min(self.high))
    }
    #[inline(always)]
    fn index(self, level: f32) -> u8 {
        (level - self.low) as u8
    }
}

/// Ascending levels with their indices.
#[derive(Clone, Copy)]
pub(super) struct Table<const N: usize> {
    pub(super) levels: [f32; N],
    pub(super) indices: [u8; N],
    pub(super) step: f32,
}

impl<const N: usize> Levels for Table<N> {
    #[inline(always)]
    fn ends(self) -> (f32, f32) {
        (self.levels[0], self.levels[N - 1])
    }
    #[inline(always)]
    fn step(self) -> f32 {
        self.step
    }
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let mut level = self.levels[0];
        for pair in self.levels.windows(2) {
            let up = if x > 0.5 * (pair[0] + pair[1]) {
                pair[1] - pair[0]
            } else {
                0.0
            };
            level += up;
        }
        level
    }
    #[inline(always)]
    fn index(self, level: f32) -> u8 {
        let found = self.levels.iter().position(|l| *l == level);
        found.map_or(0, |i| self.indices[i])
    }
}

/// Adds in eight lanes, then these in order.
#[inline(always)]
fn sum<const N: usize>(x: [f32; N]) -> f32 {
    let mut lanes = [0.0; 8];
    for x in x.as_chunks::<8>().0 {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x;
        }
    }
    lanes.iter().sum()
}

/// Σ w x q and Σ w q² of the levels nearest to the values times `inverse`.
#[inline(always)]
fn products<L: Levels, const N: usize>(
    levels: L,
    x: &[f32; N],
    w: &[f32; N],
    inverse: f32,
) -> (f32, f32) {
    let q: [f32; N] = array(|i| levels.nearest(x[i] * inverse));
    (
        sum::<N>(array(|i| w[i] * x[i] * q[i])),
        sum::<N>(array(|i| w[i] * q[i] * q[i])),
    )
}

/// The first value of the largest magnitude.
#[inline(always)]
pub(super) fn farthest(x: &[f32]) -> f32 {
    let mut at: f32 = 0.0;
    for x in x {
        if x.abs() > at.abs() {
            at = *x;
        }
    }
    at
}

/// Candidates lie this many tenths of a step below and above the end of the levels.
const BELOW: i32 = 10;
const ABOVE: i32 = 14;

/// The scale, of either sign, that stores the values with the least error; 0 if all are 0.
#[inline(always)]
pub(super) fn best_scale<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N]) -> f32 {
    let far = farthest(x);
    if !(far.abs() > 1e-30 && far.is_finite()) {
        return 0.0;
    }
    let (mut best, mut scale) = (0.0, 0.0);
    let (low, high) = levels.ends();
    for end in [low, high] {
        for k in -BELOW..=ABOVE {
            // The farthest value at the end of the levels, or somewhat inside or beyond.
            let end = end + end.signum() * (0.1 * k as f32 * levels.step());
            let (xq, qq) = products(levels, x, w, end / far);
            if xq * xq > best * qq {
                (best, scale) = (xq * xq / qq, xq / qq);
            }
        }
    }
    for _ in 0..3 {
        if scale == 0.0 {
            break;
        }
        let (xq, qq) = products(levels, x, w, 1.0 / scale);
        if xq * xq <= best * qq {
            break;
        }
        (best, scale) = (xq * xq / qq, xq / qq);
    }
    scale
}

/// With this scale: how much less of Σ w x² remains, Σ w x q and Σ w q².
#[inline(always)]
pub(super) fn gain<L: Levels, const N: usize>(
    levels: L,
    x: &[f32; N],
    w: &[f32; N],
    scale: f32,
) -> [f32; 3] {
    if scale == 0.0 {
        return [0.0; 3];
    }
    let (xq, qq) = products(levels, x, w, 1.0 / scale);
    [scale * (2.0 * xq - scale * qq), xq, qq]
}

/// The stored forms of the levels nearest to the values divided by the scale.
#[inline(always)]
pub(super) fn integers<L: Levels, const N: usize>(levels: L, x: &[f32; N], scale: f32) -> [u8; N] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    array(|i| levels.index(levels.nearest(x[i] * inverse)))
}

/// Of values stored as q: Σ w q, Σ w q² and Σ w x q.
pub(super) type Moments = [f32; 3];

/// Integers of 0..=top nearest to (x - offset) · inverse, and their moments.
#[inline(always)]
pub(super) fn affine_integers<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    top: f32,
    (inverse, offset): (f32, f32),
) -> ([f32; N], Moments) {
    let q: [f32; N] = array(|i| round(((x[i] - offset) * inverse).max(0.0).min(top)));
    let moments = [
        sum::<N>(array(|i| w[i] * q[i])),
        sum::<N>(array(|i| w[i] * q[i] * q[i])),
        sum::<N>(array(|i| w[i] * x[i] * q[i])),
    ];
    (q, moments)
}

/// Σ w (scale · q + offset - x)².
#[inline(always)]
pub(super) fn affine_error<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    q: &[f32; N],
    (scale, offset): (f32, f32),
) -> f32 {
    sum::<N>(array(|i| {
        let e = scale * q[i] + offset - x[i];
        w[i] * e * e
    }))
}

/// Scale and offset that store the values best as `scale · q + offset` with q of 0..=top, the
/// offset at most `most`.
#[inline(always)]
pub(super) fn affine<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    top: f32,
    most: f32,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0].min(most), x[0]);
    for x in x {
        (min, max) = (min.min(*x), max.max(*x));
    }
    let spread = max - min;
    if !(spread > 1e-30 && spread.is_finite()) {
        return (0.0, min);
    }
    let (sum_w, sum_x) = (sum::<N>(*w), sum::<N>(array(|i| w[i] * x[i])));
    let mut best = (f32::INFINITY, spread / top, min);
    for k in -12..=16 {
        // Candidates first, then from the best one on.
        let from = match k {
            ..=12 => ((top + 0.1 * k as f32) / spread, min),
            _ => (1.0 / best.1, best.2),
        };
        let (q, [sum_q, sum_qq, sum_xq]) = affine_integers(x, w, top, from);
        let det = sum_w * sum_qq - sum_q * sum_q;
        if det <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xq - sum_x * sum_q) / det;
        let mut offset = (sum_qq * sum_x - sum_q * sum_xq) / det;
        if offset > most {
            (scale, offset) = ((sum_xq - most * sum_q) / sum_qq, most);
        }
        let error = affine_error(x, w, &q, (scale, offset));
        if error < best.0 && scale > 0.0 {
            best = (error, scale, offset);
        } else if k > 12 {
            break;
        }
    }
    (best.1, best.2)
}
