//! Row operations: norm, addition, rotation.

use crate::RopeLayout;
use crate::exp::{load_part, store_part};
use crate::simd::{LANES, Simd};

/// out = gain · x / sqrt(mean(x²) + eps), one row. All of one length.
#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == gain.len() && x.len() == out.len());
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let last = load_part(s, x_rest, 0.0);
    let mut sum = s.mul(last, last);
    for chunk in xs {
        let v = s.load(chunk);
        sum = s.fma(v, v, sum);
    }
    let mean = s.sum(sum) / x.len() as f32;
    let scale = s.splat(1.0 / (mean + eps).sqrt());
    let (gains, gain_rest) = gain.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for ((x, gain), out) in xs.iter().zip(gains).zip(outs) {
        s.store(s.mul(s.load(gain), s.mul(s.load(x), scale)), out);
    }
    if !out_rest.is_empty() {
        let v = s.mul(load_part(s, gain_rest, 0.0), s.mul(last, scale));
        store_part(s, v, out_rest);
    }
}

/// x += y, of one length.
#[inline(always)]
pub(crate) fn add<S: Simd>(_: S, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// x += scale · y. Rounded twice, so that every level gives the same bits.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd>(_: S, x: &mut [f32], y: &[f32], scale: f32) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += scale * y;
    }
}

/// Turns the pairs of each head of one token: `x [heads, head_dim]`, `cos` and `sin` of one length,
/// at most `head_dim / 2`. Neither product is fused, so that all levels agree.
#[inline(always)]
pub(crate) fn rotate<S: Simd>(
    _: S,
    x: &mut [f32],
    head_dim: usize,
    layout: RopeLayout,
    cos: &[f32],
    sin: &[f32],
) {
    let half = cos.len();
    assert!(half == sin.len() && head_dim > 0 && half <= head_dim / 2);
    for head in x.chunks_exact_mut(head_dim) {
        match layout {
            RopeLayout::HalfSplit => {
                let (first, second) = head[..2 * half].split_at_mut(half);
                let turns = cos.iter().zip(sin);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeLayout::Interleaved => {
                let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                for ([a, b], (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// Whether two rows of values are the same to the bit, NaNs and signs of zero included.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
