//! Super-blocks with scales and minima of their runs: Q2_K, Q4_K, Q5_K.

use super::legacy::twos;
use super::search::{affine, affine_error, affine_integers, round};
use super::{half, put};
use crate::simd::array;
use half::f16;

/// A super-block, as it is stored: d scale q - dmin min.
#[derive(Clone, Copy)]
struct Super<const RUNS: usize> {
    d: f16,
    dmin: f16,
    scales: [f32; RUNS],
    mins: [f32; RUNS],
}

/// What a pass over the runs finds: Σ of errors, and the sums of the least squares for d and dmin.
struct Pass<const RUNS: usize> {
    found: Super<RUNS>,
    error: f32,
    fitted: (f16, f16),
}

/// Quantises runs of `RUN` values to integers of 0..=top, with integers of 0..=most for scales and
/// minima.
///
/// Each run's best scale and minimum give their integers; then, some times, the integers next to
/// them are tried, and the two common scales are fitted anew.
#[inline(always)]
fn super_block<const RUN: usize, const RUNS: usize>(
    x: &[f32; 256],
    w: Option<&[f32; 256]>,
    top: f32,
    most: f32,
) -> (Super<RUNS>, [u8; 256]) {
    let (x, _) = x.as_chunks::<RUN>();
    let w = w.map(|w| w.as_chunks::<RUN>().0);
    let ones = [1.0; RUN];
    let weights = |j: usize| w.map_or(&ones, |w| &w[j]);
    let best: [(f32, f32); RUNS] = array(|j| affine(&x[j], weights(j), top, 0.0));
    let largest = best
        .iter()
        .fold((0f32, 0f32), |(s, m), b| (s.max(b.0), m.max(-b.1)));
    let (d, dmin) = (half(largest.0 / most), half(largest.1 / most));
    let mut from = Super {
        d,
        dmin,
        scales: best.map(|b| ratio(b.0, d.to_f32())),
        mins: best.map(|b| ratio(-b.1, dmin.to_f32())),
    };
    let mut chosen = (f32::INFINITY, from);
    for _ in 0..4 {
        let pass = pass::<RUN, RUNS>(x, weights, (top, most), from);
        if pass.error < chosen.0 {
            chosen = (pass.error, pass.found);
        } else {
            break;
        }
        from = pass.found;
        (from.d, from.dmin) = pass.fitted;
    }
    let found = chosen.1;
    let mut q = [0; 256];
    for (j, q) in q.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let (scale, offset) = found.of(found.scales[j], found.mins[j]);
        let (ints, _) = affine_integers(&x[j], &ones, top, (ratio(1.0, scale), offset));
        *q = ints.map(|q| q as u8);
    }
    (found, q)
}

impl<const RUNS: usize> Super<RUNS> {
    /// Scale and offset of a run with these integers.
    #[inline(always)]
    fn of(&self, scale: f32, min: f32) -> (f32, f32) {
        (self.d.to_f32() * scale, -(self.dmin.to_f32() * min))
    }
}

/// Tries the integers around those of `from`, with its d and dmin.
#[inline(always)]
fn pass<'a, const RUN: usize, const RUNS: usize>(
    x: &[[f32; RUN]],
    w: impl Fn(usize) -> &'a [f32; RUN],
    (top, most): (f32, f32),
    from: Super<RUNS>,
) -> Pass<RUNS> {
    let mut found = from;
    let mut total = 0.0;
    // Σ w (s q)², Σ w s q m, Σ w m², Σ w x s q, Σ w x m
    let mut sums = [0.0; 5];
    for j in 0..RUNS {
        let (x, w) = (&x[j], w(j));
        let mut best = (f32::INFINITY, 0.0, 0.0, [0.0; 3]);
        for k in 0..9 {
            let near = |at: f32, by: i32| round(at).max(0.0) + (by - 1) as f32;
            let scale = near(from.scales[j].min(most), k % 3).max(0.0).min(most);
            let min = near(from.mins[j].min(most), k / 3).max(0.0).min(most);
            let line = from.of(scale, min);
            let (q, moments) = affine_integers(x, w, top, (ratio(1.0, line.0), line.1));
            let error = affine_error(x, w, &q, line);
            if error < best.0 {
                best = (error, scale, min, moments);
            }
        }
        let (error, scale, min, [q, qq, xq]) = best;
        (found.scales[j], found.mins[j]) = (scale, min);
        total += error;
        let (mut ww, mut wx) = (0.0, 0.0);
        for (x, w) in x.iter().zip(w) {
            ww += w;
            wx += w * x;
        }
        let terms = [
            scale * scale * qq,
            scale * min * q,
            min * min * ww,
            scale * xq,
            min * wx,
        ];
        sums = array(|i| sums[i] + terms[i]);
    }
    Pass {
        found,
        error: total,
        fitted: fit(sums, (from.d, from.dmin)),
    }
}

/// d and dmin that minimise Σ w (d s q - dmin m - x)²; those of before where nothing is determined.
#[inline(always)]
fn fit([ss, sm, mm, xs, xm]: [f32; 5], before: (f16, f16)) -> (f16, f16) {
    let det = ss * mm - sm * sm;
    if mm == 0.0 && ss > 0.0 {
        return (half(xs / ss), before.1);
    }
    if det <= 1e-6 * ss * mm {
        return before;
    }
    let (d, dmin) = ((xs * mm - xm * sm) / det, (xs * sm - xm * ss) / det);
    if d > 0.0 && dmin > 0.0 {
        (half(d), half(dmin))
    } else {
        before
    }
}

/// a / b, or 0 where there is none.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { 0.0 } else { a / b }
}

#[inline(always)]
pub(super) fn q2_k(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 84]) {
    let (found, q) = super_block::<16, 16>(x, w, 3.0, 15.0);
    for (j, out) in out[..16].iter_mut().enumerate() {
        *out = found.scales[j] as u8 | (found.mins[j] as u8) << 4;
    }
    twos(&q, &mut out[16..]);
    put(out, 80, found.d);
    put(out, 82, found.dmin);
}

#[inline(always)]
pub(super) fn q4_k(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 144]) {
    let (found, q) = super_block::<32, 8>(x, w, 15.0, 63.0);
    k_scales(&found, out);
    k_nibbles(&q, &mut out[16..]);
}

#[inline(always)]
pub(super) fn q5_k(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 176]) {
    let (found, q) = super_block::<32, 8>(x, w, 31.0, 63.0);
    k_scales(&found, out);
    for (l, out) in out[16..48].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, g| bits | q[32 * g + l] >> 4 << g);
    }
    k_nibbles(&q, &mut out[48..]);
}

/// The first sixteen bytes of Q4_K and Q5_K; see `blocks`.
#[inline(always)]
fn k_scales(found: &Super<8>, out: &mut [u8]) {
    put(out, 0, found.d);
    put(out, 2, found.dmin);
    let (s, m) = (found.scales.map(|s| s as u8), found.mins.map(|m| m as u8));
    for g in 0..4 {
        out[4 + g] = s[g] | s[g + 4] >> 4 << 6;
        out[8 + g] = m[g] | m[g + 4] >> 4 << 6;
        out[12 + g] = s[g + 4] & 15 | m[g + 4] << 4;
    }
}

/// Sub-blocks 2i and 2i + 1 in the low and the high nibbles of 32 bytes.
#[inline(always)]
fn k_nibbles(q: &[u8; 256], out: &mut [u8]) {
    for (i, out) in out[..128].iter_mut().enumerate() {
        let at = i / 32 * 64 + i % 32;
        *out = q[at] & 15 | q[at + 32] << 4;
    }
}
