//! Super-blocks of 256 values with scales of their own for 16 or 32: Q2_K to Q6_K.

use super::{Format, Group, eights, half, nibbles};
use crate::blocks::scales_and_mins;
use crate::simd::{Simd, array, eight, four, part};

/// Scales and offsets of two blocks of Q4_K or Q5_K from their first 16 bytes, turned, with `odd`
/// times the scales of the odd sub-blocks: what `Simd::k_scales` is unless a level knows better.
#[inline(always)]
pub(crate) fn k_scales<S: Simd>(s: S, first: &[u8; 16], second: &[u8; 16], odd: f32) -> [S::F; 2] {
    let (a, b) = (
        scales_and_mins(part(first, 4)),
        scales_and_mins(part(second, 4)),
    );
    let scales = array(|i| if i < 8 { a[i] } else { b[i - 8] });
    let mins = array(|i| if i < 8 { a[i + 8] } else { b[i] });
    let d = eights(s, half(s, first, 0), half(s, second, 0));
    let d = s.mul(d, s.load(&array(|i| if i % 2 == 0 { 1.0 } else { odd })));
    let dmin = eights(s, -half(s, first, 2), -half(s, second, 2));
    [
        s.turn(s.mul(s.load_i8(&scales), d)),
        s.turn(s.mul(s.load_i8(&mins), dmin)),
    ]
}

/// The 32-byte runs of two blocks of Q4_K or Q5_K, two to a vector, in lanes.
#[inline(always)]
fn k_columns<S: Simd>(s: S, first: &[u8], second: &[u8], at: usize) -> [S::B; 4] {
    let from = |i: usize| if i < 2 { first } else { second };
    s.transpose(four!(|i| s.bytes(part(from(i), at + 64 * (i % 2)))))
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q4_K;
impl Format for Q4_K {
    const BYTES: usize = 2 * 144;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let (first, second) = data.split_at(144);
        // High nibbles stay where they are, times 16.
        let [scale, offset] = s.k_scales(part(first, 0), part(second, 0), 1.0 / 16.0);
        let runs = k_columns(s, first, second, 16);
        let q = four!(|i| s.zip(s.and(runs[i], 0x0f), s.and(runs[i], 0xf0)));
        Group {
            q: eight!(|i| q[i % 4][i / 4]),
            scale,
            offset,
        }
    }
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q5_K;
impl Format for Q5_K {
    const BYTES: usize = 2 * 176;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let (first, second) = data.split_at(176);
        let [scale, offset] = s.k_scales(part(first, 0), part(second, 0), 1.0);
        // Bit g of byte l is the fifth of value l of sub-block g; vector i holds the sub-blocks
        // 4i..4i+4 of a block in its low and high nibbles.
        let mut low = [s.bits(0, 0); 4];
        let mut high = low;
        for i in 0..4 {
            let block = if i < 2 { first } else { second };
            let bits = s.quarters(four!(|l| part(block, 16 + 16 * (l % 2))));
            let nibbles = nibbles(s, s.bytes(part(block, 48 + 64 * (i % 2))));
            let (even, odd) = if i % 2 == 0 {
                (s.shl(bits, [4, 4, 2, 2]), s.shl(bits, [3, 3, 1, 1]))
            } else {
                (s.shr(bits, [0, 0, 2, 2]), s.shr(bits, [1, 1, 3, 3]))
            };
            low[i] = s.or(nibbles[0], s.and(even, 16));
            high[i] = s.or(nibbles[1], s.and(odd, 16));
        }
        let (low, high) = (s.transpose(low), s.transpose(high));
        let q = four!(|i| s.zip(low[i], high[i]));
        Group {
            q: eight!(|i| q[i % 4][i / 4]),
            scale,
            offset,
        }
    }
}

/// One block with scales for 16: values as they stand, 64 to a vector, and everything else.
#[inline(always)]
fn sixteens<S: Simd>(s: S, values: [S::B; 4], scale: S::F, offset: S::F) -> Group<S> {
    let q = s.transpose(values);
    Group {
        q: eight!(|i| q[i % 4]),
        scale: s.turn(scale),
        offset: s.turn(offset),
    }
}

/// The 2-bit fields 2k and 2k + 1 of 32 bytes, for k = 0 or 2: 64 values.
#[inline(always)]
fn twos<S: Simd>(s: S, data: &[u8], at: usize, k: u32) -> S::B {
    let bytes = s.quarters(four!(|l| part(data, at + 16 * (l % 2))));
    let (a, b) = (2 * k, 2 * k + 2);
    s.and(s.shr(bytes, [a, a, b, b]), 3)
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q2_K;
impl Format for Q2_K {
    const BYTES: usize = 84;
    const BLOCK: usize = 16;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let values = four!(|i| twos(s, data, 16 + 32 * (i / 2), 2 * (i as u32 % 2)));
        let sub: &[u8; 16] = part(data, 0);
        let scales: [u8; 16] = array(|i| sub[i] & 15);
        let mins: [u8; 16] = array(|i| sub[i] >> 4);
        let (d, dmin) = (half(s, data, 80), -half(s, data, 82));
        let scale = s.mul(s.load_i8(&scales), s.splat(d));
        let offset = s.mul(s.load_i8(&mins), s.splat(dmin));
        sixteens(s, values, scale, offset)
    }
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q3_K;
impl Format for Q3_K {
    const BYTES: usize = 110;
    const BLOCK: usize = 16;
    const ZERO: i32 = 4;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let high = s.quarters(four!(|l| part(data, 16 * (l % 2))));
        let values = four!(|i| {
            let low = twos(s, data, 32 + 32 * (i / 2), 2 * (i as u32 % 2));
            // Bit 2i of each byte for the first 32 values, 2i + 1 for the others.
            let bits = match i {
                0 => s.shl(high, [2, 2, 1, 1]),
                1 => s.shr(high, [0, 0, 1, 1]),
                2 => s.shr(high, [2, 2, 3, 3]),
                _ => s.shr(high, [4, 4, 5, 5]),
            };
            s.or(low, s.and(bits, 4))
        });
        let scales = q3_k_scales(part(data, 96));
        let scale = s.mul(s.load_i8(&scales), s.splat(half(s, data, 108)));
        sixteens(s, values, scale, s.splat(0.0))
    }
}

/// The sixteen 6-bit scales of Q3_K, minus 32, as signed bytes; four bytes to a word.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [u8; 16] {
    let word = |i: usize| u32::from_le_bytes(*part(bytes, i));
    let (a, b, top) = (word(0), word(4), word(8));
    let high = |i: u32| (top >> (2 * i) & 0x0303_0303) << 4;
    let low = 0x0f0f_0f0f;
    let words = [
        a & low | high(0),
        b & low | high(1),
        a >> 4 & low | high(2),
        b >> 4 & low | high(3),
    ];
    array(|j| words[j / 4].to_le_bytes()[j % 4].wrapping_sub(32))
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q6_K;
impl Format for Q6_K {
    const BYTES: usize = 210;
    const BLOCK: usize = 16;
    const ZERO: i32 = 32;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let values = four!(|i| {
            let low = nibbles(s, s.bytes(part(data, 64 * (i / 2))))[i % 2];
            let high = s.quarters(four!(|l| part(data, 128 + 32 * (i / 2) + 16 * (l % 2))));
            let bits = if [0, 2].contains(&i) {
                s.shl(high, [4, 4, 2, 2])
            } else {
                s.shr(high, [0, 0, 2, 2])
            };
            s.or(low, s.and(bits, 0x30))
        });
        let scale = s.mul(s.load_i8(part(data, 192)), s.splat(half(s, data, 208)));
        sixteens(s, values, scale, s.splat(0.0))
    }
}
