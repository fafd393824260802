//! Formats of levels times a scale, where the scales of a super-block are small numbers themselves:
//! Q3_K, Q6_K, IQ4_XS, NVFP4; and IQ4_NL, with one scale a block.

use super::legacy::{nibbles, twos};
use super::search::{Levels, Table, Uniform, best_scale, farthest, gain, integers};
use super::{half, put};
use crate::blocks::octets::ue4m3_half;
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES};
use crate::simd::array;
use half::f16;

/// The values of IQ4_NL and IQ4_XS.
const IQ4: Table<16> = Table {
    levels: {
        let mut levels = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            levels[i] = IQ4_VALUES[i] as f32;
            i += 1;
        }
        levels
    },
    indices: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    step: 14.0,
};

/// The values of NVFP4, doubled; zero once.
const E2M1: Table<15> = Table {
    levels: {
        let mut levels = [0.0; 15];
        let mut i = 0;
        while i < 8 {
            levels[7 + i] = E2M1_DOUBLED[i] as f32;
            levels[7 - i] = -(E2M1_DOUBLED[i] as f32);
            i += 1;
        }
        levels[7] = 0.0;
        levels
    },
    indices: [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7],
    step: 2.0,
};

/// A super-block: its scale, the scales of its runs as integers, and its values as they are stored.
struct Super<const RUNS: usize> {
    d: f16,
    scales: [f32; RUNS],
    q: [u8; 256],
}

/// Quantises runs of `RUN` values with integer scales of `low`..-low.
///
/// Each run's best scale gives its integer; then, twice, the integers next to it are tried, and the
/// common scale is fitted anew.
#[inline(always)]
fn super_block<L: Levels, const RUN: usize, const RUNS: usize>(
    levels: L,
    x: &[f32; 256],
    w: Option<&[f32; 256]>,
    low: f32,
) -> Super<RUNS> {
    let (x, _) = x.as_chunks::<RUN>();
    let w = w.map(|w| w.as_chunks::<RUN>().0);
    let ones = [1.0; RUN];
    let weights = |j: usize| w.map_or(&ones, |w| &w[j]);
    let best: [f32; RUNS] = array(|j| best_scale(levels, &x[j], weights(j)));
    let mut d = half(farthest(&best) / low);
    let mut found = Super {
        d,
        scales: [0.0; RUNS],
        q: [0; 256],
    };
    let mut most = 0.0;
    let mut scales = best.map(|s| ratio(s, d.to_f32()));
    for _ in 0..3 {
        let (mut total, mut xq, mut qq) = (0.0, 0.0, 0.0);
        for (j, scale) in scales.iter_mut().enumerate() {
            let near = super::search::round(*scale);
            let mut chosen = [0.0; 4];
            for near in [near, near - 1.0, near + 1.0] {
                let t = near.max(low).min(-low - 1.0);
                let [gain, xq, qq] = gain(levels, &x[j], weights(j), d.to_f32() * t);
                if gain > chosen[0] {
                    chosen = [gain, t * xq, t * t * qq, t];
                }
            }
            total += chosen[0];
            xq += chosen[1];
            qq += chosen[2];
            *scale = chosen[3];
        }
        if total > most {
            most = total;
            (found.d, found.scales) = (d, scales);
        }
        let fitted = half(ratio(xq, qq));
        if fitted == d {
            break;
        }
        d = fitted;
    }
    for (j, q) in found.q.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        *q = integers(levels, &x[j], found.d.to_f32() * found.scales[j]);
    }
    found
}

/// a / b, or 0 where there is none.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { 0.0 } else { a / b }
}

#[inline(always)]
pub(super) fn q3_k(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    let Super { d, scales, q } = super_block::<_, 16, 16>(Uniform::signed(4.0), x, w, -32.0);
    for (l, out) in out[..32].iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, g| bits | q[32 * g + l] >> 2 << g);
    }
    twos(&q, &mut out[32..]);
    let packed = &mut out[96..108];
    packed.fill(0);
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32.0) as u8;
        packed[j % 8] |= (scale & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
    }
    put(out, 108, d);
}

#[inline(always)]
pub(super) fn q6_k(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 210]) {
    let Super { d, scales, q } = super_block::<_, 16, 16>(Uniform::signed(32.0), x, w, -128.0);
    for (i, out) in out[..128].iter_mut().enumerate() {
        let at = i / 64 * 128 + i % 64;
        *out = q[at] & 15 | (q[at + 64] & 15) << 4;
    }
    twos(&q.map(|q| q >> 4), &mut out[128..]);
    for (scale, out) in scales.iter().zip(&mut out[192..]) {
        *out = (*scale as i8).cast_unsigned();
    }
    put(out, 208, d);
}

#[inline(always)]
pub(super) fn iq4_xs(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 136]) {
    let Super { d, scales, q } = super_block::<_, 32, 8>(IQ4, x, w, -32.0);
    put(out, 0, d);
    let mut high = 0;
    out[4..8].fill(0);
    for (g, scale) in scales.iter().enumerate() {
        let scale = (scale + 32.0) as u8;
        out[4 + g / 2] |= (scale & 15) << (4 * (g % 2));
        high |= u16::from(scale >> 4) << (2 * g);
    }
    out[2..4].copy_from_slice(&high.to_le_bytes());
    for (q, out) in q.as_chunks().0.iter().zip(out[8..].chunks_exact_mut(16)) {
        nibbles(q, out);
    }
}

#[inline(always)]
pub(super) fn iq4_nl(x: &[f32; 32], w: Option<&[f32; 32]>, out: &mut [u8; 18]) {
    let d = half(best_scale(IQ4, x, w.unwrap_or(&[1.0; 32])));
    put(out, 0, d);
    nibbles(&integers(IQ4, x, d.to_f32()), &mut out[2..]);
}

/// The best of the scales that can be stored next to the best one.
#[inline(always)]
pub(super) fn nvfp4(x: &[f32; 64], w: Option<&[f32; 64]>, out: &mut [u8; 36]) {
    let w = w.unwrap_or(&[1.0; 64]).as_chunks::<16>().0;
    for (run, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let best = best_scale(E2M1, x, &w[run]).abs();
        let above = (1..=126).find(|code| ue4m3_half(*code) >= best);
        let above: u8 = above.unwrap_or(126);
        let mut chosen = (0.0, 0);
        for code in above.saturating_sub(2)..=(above + 1).min(126) {
            let [gain, ..] = gain(E2M1, x, &w[run], ue4m3_half(code));
            if gain > chosen.0 {
                chosen = (gain, code);
            }
        }
        out[run] = chosen.1;
        let q = integers(E2M1, x, ue4m3_half(chosen.1));
        for i in 0..8 {
            out[4 + 8 * run + i] = q[i] | q[i + 8] << 4;
        }
    }
}
