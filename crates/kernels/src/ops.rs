//! Row operations: norm, addition, rotation, and the rounding of activations to 16 bits.

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

/// Largest magnitude of a rounded activation.
pub(crate) const Q_MAX: f32 = 32767.0;
/// Blocks whose largest magnitude is below count as zero: their scale could not be inverted.
const TINY: f32 = 1e-30;

/// One row of activations rounded to 16 bits, a block of 32 at a time: `x ≈ d q`,
/// `sum16` and `sum32` the sums of `d q` over 16 and 32 values. A NaN or an infinity makes `d` NaN,
/// and with it every product.
pub(crate) struct Rounded<'a> {
    pub(crate) q: &'a mut [i16],
    pub(crate) d: &'a mut [f32],
    pub(crate) sum16: &'a mut [f32],
    pub(crate) sum32: &'a mut [f32],
}

/// Rounds one row; `x` holds whole blocks and the parts of `to` are at least as long as needed.
#[inline(always)]
pub(crate) fn round_row<S: Simd>(s: S, x: &[f32], to: &mut Rounded<'_>) {
    let zero = s.splat(0.0);
    let magnitude = |x| s.max(x, s.sub(zero, x));
    let blocks = x
        .as_chunks::<32>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0);
    let sums = to
        .sum16
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(&mut *to.sum32);
    for (((x, q), d), (sum16, sum32)) in blocks.zip(&mut *to.d).zip(sums) {
        let [low, high] = [s.load(half_of(x, 0)), s.load(half_of(x, 1))];
        let largest = s.largest(s.max(magnitude(low), magnitude(high)));
        // Zero times a number is zero, times anything else NaN.
        let poison = s.sum(s.fma(low, zero, s.mul(high, zero)));
        let tiny = largest < TINY;
        *d = if tiny { 0.0 } else { largest / Q_MAX } + poison;
        let inverse = s.splat(if tiny { 0.0 } else { Q_MAX / largest });
        let (low, high) = (s.round(s.mul(low, inverse)), s.round(s.mul(high, inverse)));
        s.store_int(s.to_int(low, high), q);
        // Sums of integers below 2^20: exact.
        let (low, high) = (s.sum(low), s.sum(high));
        *sum16 = [*d * low, *d * high];
        *sum32 = *d * (low + high);
    }
}

/// The first or the second 16 of 32 values.
#[inline(always)]
fn half_of(x: &[f32; 32], i: usize) -> &[f32; LANES] {
    &x.as_chunks().0[i]
}

/// Whether two rows of values are the same to the bit, NaNs and signs of zero included.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
