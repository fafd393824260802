//! Formats with one scale a block and a published rule of rounding. Source of the rules: gguf-py's
//! `quants.py` and ggml's `ggml-quants.c`, whose order of operations is kept.
//!
//! Where an importance is given, scales are searched for instead.

use super::search::{Uniform, affine, best_scale, farthest, integers};
use super::{half, put};
use half::f16;

/// 1 / d, or 0 for 0.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let mut range = (x[0], x[0]);
    for x in x {
        range = (range.0.min(*x), range.1.max(*x));
    }
    range
}

/// Signed integers of `bits` bits around zero, kept as unsigned ones, and their scale.
#[inline(always)]
fn symmetric(x: &[f32; 32], w: Option<&[f32; 32]>, bits: u32) -> (f16, [u8; 32]) {
    let half_range = (1 << (bits - 1)) as f32;
    let Some(w) = w else {
        let d = farthest(x) / -half_range;
        let inverse = inverse(d);
        let top = 2.0 * half_range - 1.0;
        let q = x.map(|x| (x * inverse + (half_range + 0.5)).min(top) as u8);
        return (f16::from_f32(d), q);
    };
    let levels = Uniform::signed(half_range);
    let d = half(best_scale(levels, x, w));
    (d, integers(levels, x, d.to_f32()))
}

/// Unsigned integers of `bits` bits above a smallest value; scale and smallest value.
#[inline(always)]
fn asymmetric(x: &[f32; 32], w: Option<&[f32; 32]>, bits: u32) -> (f16, f16, [u8; 32]) {
    let top = ((1 << bits) - 1) as f32;
    let Some(w) = w else {
        let (min, max) = range(x);
        let d = (max - min) / top;
        let inverse = inverse(d);
        let q = x.map(|x| ((x - min) * inverse + 0.5).min(top) as u8);
        return (f16::from_f32(d), f16::from_f32(min), q);
    };
    let (d, min) = affine(x, w, top, f32::INFINITY);
    let (d, m) = (half(d), half(min));
    let q = integers(
        Uniform::unsigned(top),
        &x.map(|x| x - m.to_f32()),
        d.to_f32(),
    );
    (d, m, q)
}

/// Nibbles in split halves.
#[inline(always)]
pub(super) fn nibbles(q: &[u8; 32], out: &mut [u8]) {
    for (i, out) in out[..16].iter_mut().enumerate() {
        *out = q[i] & 15 | (q[i + 16] & 15) << 4;
    }
}

/// Fifth bits as a word.
#[inline(always)]
fn fifths(q: &[u8; 32], out: &mut [u8]) {
    let bits = (0..32).fold(0, |bits, i| bits | u32::from(q[i] >> 4) << i);
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

#[inline(always)]
pub(super) fn q4_0(x: &[f32; 32], w: Option<&[f32; 32]>, out: &mut [u8; 18]) {
    let (d, q) = symmetric(x, w, 4);
    put(out, 0, d);
    nibbles(&q, &mut out[2..]);
}

#[inline(always)]
pub(super) fn q4_1(x: &[f32; 32], w: Option<&[f32; 32]>, out: &mut [u8; 20]) {
    let (d, m, q) = asymmetric(x, w, 4);
    put(out, 0, d);
    put(out, 2, m);
    nibbles(&q, &mut out[4..]);
}

#[inline(always)]
pub(super) fn q5_0(x: &[f32; 32], w: Option<&[f32; 32]>, out: &mut [u8; 22]) {
    let (d, q) = symmetric(x, w, 5);
    put(out, 0, d);
    fifths(&q, &mut out[2..]);
    nibbles(&q, &mut out[6..]);
}

#[inline(always)]
pub(super) fn q5_1(x: &[f32; 32], w: Option<&[f32; 32]>, out: &mut [u8; 24]) {
    let (d, m, q) = asymmetric(x, w, 5);
    put(out, 0, d);
    put(out, 2, m);
    fifths(&q, &mut out[4..]);
    nibbles(&q, &mut out[8..]);
}

/// With 8 bits the rule is as good as a search.
#[inline(always)]
pub(super) fn q8_0(x: &[f32; 32], _: Option<&[f32; 32]>, out: &mut [u8; 34]) {
    let d = farthest(x).abs() / 127.0;
    let inverse = inverse(d);
    put(out, 0, f16::from_f32(d));
    for (x, out) in x.iter().zip(&mut out[2..]) {
        *out = ((x * inverse).round() as i8).cast_unsigned();
    }
}

/// The exponent that fits the largest value; then the nearest 4-bit float, the first of two.
#[inline(always)]
pub(super) fn mxfp4(x: &[f32; 32], _: Option<&[f32; 32]>, out: &mut [u8; 17]) {
    let largest = farthest(x).abs();
    let exponent = if largest > 0.0 {
        (largest.log2().floor() + 125.0) as u8
    } else {
        0
    };
    let d = crate::blocks::e8m0_half(exponent);
    let nearest = |x: f32| {
        let mut best = (f32::INFINITY, 0);
        for (i, n) in crate::blocks::E2M1_DOUBLED.iter().enumerate() {
            let error = (d * f32::from(*n) - x).abs();
            if error < best.0 {
                best = (error, i as u8);
            }
        }
        best.1
    };
    out[0] = exponent;
    nibbles(&x.map(nearest), &mut out[1..]);
}

/// 0, 1 or 2 for each value, and the scale: the largest magnitude.
#[inline(always)]
fn ternary<const N: usize>(x: &[f32; N]) -> (f16, [u8; N]) {
    let d = farthest(x).abs();
    let inverse = inverse(d);
    let q = x.map(|x| ((x * inverse).round() as i8 + 1).cast_unsigned());
    (f16::from_f32(d), q)
}

#[inline(always)]
pub(super) fn tq1_0(x: &[f32; 256], _: Option<&[f32; 256]>, out: &mut [u8; 54]) {
    let (d, q) = ternary(x);
    // Where a byte's digits begin, how far they lie apart, and how many there are.
    let digits = |byte: usize| match byte {
        0..32 => (byte, 32, 5),
        32..48 => (160 + byte - 32, 16, 5),
        _ => (240 + byte - 48, 4, 4),
    };
    for (byte, out) in out[..52].iter_mut().enumerate() {
        let (first, step, count) = digits(byte);
        let number = (0..5).fold(0, |number, i| {
            let digit = if i < count { q[first + i * step] } else { 0 };
            number * 3 + u16::from(digit)
        });
        // As a fraction of 256, rounded up.
        *out = (number * 256).div_ceil(243) as u8;
    }
    put(out, 52, d);
}

#[inline(always)]
pub(super) fn tq2_0(x: &[f32; 256], _: Option<&[f32; 256]>, out: &mut [u8; 66]) {
    let (d, q) = ternary(x);
    twos(&q, out);
    put(out, 64, d);
}

/// 2-bit fields: those of the values 32k.. of each half in bits 2k.
#[inline(always)]
pub(super) fn twos(q: &[u8; 256], out: &mut [u8]) {
    for (i, out) in out[..64].iter_mut().enumerate() {
        let at = i / 32 * 128 + i % 32;
        *out = (0..4).fold(0, |byte, k| byte | (q[at + 32 * k] & 3) << (2 * k));
    }
}

/// Signs, and the mean magnitude.
#[inline(always)]
pub(super) fn q1_0(x: &[f32; 128], _: Option<&[f32; 128]>, out: &mut [u8; 18]) {
    let sum = x.iter().fold(0.0, |sum, x| sum + x.abs());
    put(out, 0, f16::from_f32(sum / 128.0));
    for (x, out) in x.as_chunks::<8>().0.iter().zip(&mut out[2..]) {
        *out = (0..8).fold(0, |byte, i| byte | u8::from(x[i] >= 0.0) << i);
    }
}

#[inline(always)]
pub(super) fn q2_0(x: &[f32; 64], _: Option<&[f32; 64]>, out: &mut [u8; 18]) {
    let (d, q) = ternary(x);
    put(out, 0, d);
    for (q, out) in q.as_chunks::<4>().0.iter().zip(&mut out[2..]) {
        *out = (0..4).fold(0, |byte, i| byte | q[i] << (2 * i));
    }
}
