//! Formats whose values are small integers times a scale, eight at a time: one description of each
//! for `dequantize` and for the products.
//!
//! Every product of a scale and an integer is exact in f32, so that the order of factors is free.

#![expect(non_camel_case_types, reason = "the formats' own names")]

use super::{f16_at, u16_at};
use crate::blocks::E2M1_DOUBLED;
use crate::blocks::grids::{IQ1, IQ2_S as GRID2_S, IQ2_XS as GRID2_XS, IQ2_XXS as GRID2_XXS};
use crate::blocks::grids::{IQ3_S as GRID3_S, IQ3_XXS as GRID3_XXS};
use crate::simd::array;

/// One such format. The block `b` has `BYTES` bytes.
pub(crate) trait Octets {
    /// Bytes of a block.
    const BYTES: usize;
    /// Values of a block.
    const LEN: usize = 256;
    /// Values with one scale: 16 or 32.
    const RUN: usize;

    /// Scale of the `run`-th `RUN` values.
    fn scale(b: &[u8], run: usize) -> f32;
    /// Values 8o..8o+8, as integers.
    fn octet(b: &[u8], o: usize) -> [i8; 8];
}

/// A block's values.
pub(super) fn dequantize<C: Octets>(data: &[u8], out: &mut [f32]) {
    let blocks = data
        .chunks_exact(C::BYTES)
        .zip(out.chunks_exact_mut(C::LEN));
    for (b, values) in blocks {
        for (run, values) in values.chunks_exact_mut(C::RUN).enumerate() {
            let scale = C::scale(b, run);
            for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *values = C::octet(b, run * (C::RUN / 8) + i).map(|n| scale * f32::from(n));
            }
        }
    }
}

/// Inverts the values whose bit is set.
#[inline]
fn signed(values: [i8; 8], signs: u8) -> [i8; 8] {
    array(|i| {
        let minus = -(signs >> i & 1).cast_signed();
        (values[i] ^ minus) - minus
    })
}

/// Seven signs and an eighth that makes the number of inversions even.
#[inline]
fn even(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

#[inline]
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Nibble `i`, the low one of a byte first.
#[inline]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

/// Two fours of a codebook.
#[inline]
fn fours<const N: usize>(grid: &[[i8; 4]; N], first: usize, second: usize) -> [i8; 8] {
    let (a, b) = (grid[first], grid[second]);
    array(|i| if i < 4 { a[i] } else { b[i - 4] })
}

/// (s + 1/2) / 4 times d: the scales of the IQ2 formats.
#[inline]
fn iq2_scale(b: &[u8], s: u8) -> f32 {
    f16_at(b, 0) * ((0.5 + f32::from(s)) * 0.25)
}

/// d f16 @0, then for each 32 values 4 indices u8 and a word u32: four times seven signs, from the
/// lowest bit on, and a scale in the top four bits
pub(crate) struct IQ2_XXS;
impl Octets for IQ2_XXS {
    const BYTES: usize = 66;
    const RUN: usize = 32;
    fn scale(b: &[u8], run: usize) -> f32 {
        iq2_scale(b, b[2 + 8 * run + 7] >> 4)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let at = 2 + 8 * (o / 4);
        let signs = even(u32_at(b, at + 4) >> (7 * (o % 4)));
        signed(GRID2_XXS[usize::from(b[at + o % 4])], signs)
    }
}

/// d f16 @0, u16 [32] @2 (index in nine bits, seven signs), scale nibbles [8] @66
pub(crate) struct IQ2_XS;
impl Octets for IQ2_XS {
    const BYTES: usize = 74;
    const RUN: usize = 16;
    fn scale(b: &[u8], run: usize) -> f32 {
        iq2_scale(b, nibble(&b[66..], run))
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let q = u16_at(b, 2 + 2 * o);
        signed(GRID2_XS[usize::from(q & 511)], even(u32::from(q >> 9)))
    }
}

/// d f16 @0, low bits of the indices [32] @2, signs [32] @34, top two bits of the indices [8] @66,
/// scale nibbles [8] @74
pub(crate) struct IQ2_S;
impl Octets for IQ2_S {
    const BYTES: usize = 82;
    const RUN: usize = 16;
    fn scale(b: &[u8], run: usize) -> f32 {
        iq2_scale(b, nibble(&b[74..], run))
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let high = b[66 + o / 4] >> (2 * (o % 4)) & 3;
        signed(GRID2_S[index(b[2 + o], high)], b[34 + o])
    }
}

/// An index from its low byte and the bits above.
#[inline]
fn index(low: u8, high: u8) -> usize {
    usize::from(low) | usize::from(high) << 8
}

/// d f16 @0, indices [64] @2, for each 32 values a word u32 @66 as in IQ2_XXS: d (s + 1/2) / 2
pub(crate) struct IQ3_XXS;
impl Octets for IQ3_XXS {
    const BYTES: usize = 98;
    const RUN: usize = 32;
    fn scale(b: &[u8], run: usize) -> f32 {
        let s = b[66 + 4 * run + 3] >> 4;
        f16_at(b, 0) * ((0.5 + f32::from(s)) * 0.5)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let at = |i: usize| usize::from(b[2 + 2 * o + i]);
        let signs = even(u32_at(b, 66 + 4 * (o / 4)) >> (7 * (o % 4)));
        signed(fours(&GRID3_XXS, at(0), at(1)), signs)
    }
}

/// d f16 @0, low bits of the indices [64] @2, their ninth bits [8] @66, signs [32] @74, scale
/// nibbles [4] @106: d (2 s + 1)
pub(crate) struct IQ3_S;
impl Octets for IQ3_S {
    const BYTES: usize = 110;
    const RUN: usize = 32;
    fn scale(b: &[u8], run: usize) -> f32 {
        f16_at(b, 0) * f32::from(2 * nibble(&b[106..], run) + 1)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let at = |i: usize| index(b[2 + i], b[66 + i / 8] >> (i % 8) & 1);
        signed(fours(&GRID3_S, at(2 * o), at(2 * o + 1)), b[74 + o])
    }
}

/// An entry of the codebook of IQ1_S and IQ1_M with an eighth added or taken away; times 8.
#[inline]
fn iq1(index: usize, minus: bool) -> [i8; 8] {
    let delta = if minus { -1 } else { 1 };
    IQ1[index].map(|n| n + delta)
}

/// d f16 @0, low bits of the indices [32] @2, u16 [8] @34: three top bits of four indices, a scale
/// of three bits, and the sign of the eighth: d (2 s + 1)
pub(crate) struct IQ1_S;
impl Octets for IQ1_S {
    const BYTES: usize = 50;
    const RUN: usize = 32;
    fn scale(b: &[u8], run: usize) -> f32 {
        let s = b[34 + 2 * run + 1] >> 4 & 7;
        f16_at(b, 0) * (f32::from(2 * s + 1) * 0.125)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let high = u16_at(b, 34 + 2 * (o / 4));
        let top = (high >> (3 * (o % 4)) & 7) as u8;
        iq1(index(b[2 + o], top), high >> 15 == 1)
    }
}

/// Low bits of the indices [32] @0, nibbles [16] @32: three top bits of an index and the sign of the
/// eighth; u16 [4] @48: four scales of three bits each, and in the top nibbles, lowest first, the
/// bits of d: d (2 s + 1)
pub(crate) struct IQ1_M;
impl Octets for IQ1_M {
    const BYTES: usize = 56;
    const RUN: usize = 16;
    fn scale(b: &[u8], run: usize) -> f32 {
        let d = [49, 51, 53, 55].map(|at| b[at] >> 4);
        let d = f16_at(&[d[0] | d[1] << 4, d[2] | d[3] << 4], 0);
        let s = u16_at(b, 48 + 2 * (run / 4)) >> (3 * (run % 4)) & 7;
        d * (f32::from(2 * s + 1) * 0.125)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let high = nibble(&b[32..], o);
        iq1(index(b[o], high & 7), high >> 3 == 1)
    }
}

/// Ternary digits, five to a byte: 160 values in bytes 0..32, digit by digit, 80 in bytes 32..48,
/// and 16 in the bytes 48..52, four digits each; d f16 @52: d (digit - 1). A byte is a fraction of
/// 256 in base 3, rounded up
pub(crate) struct TQ1_0;
impl Octets for TQ1_0 {
    const BYTES: usize = 54;
    const RUN: usize = 32;
    fn scale(b: &[u8], _: usize) -> f32 {
        f16_at(b, 52)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
        array(|i| {
            let e = 8 * o + i;
            let (digit, at) = match e {
                0..160 => (e / 32, e % 32),
                160..240 => (e / 16 % 5, 32 + e % 16),
                _ => (e / 4 % 4, 48 + e % 4),
            };
            let fraction = b[at].wrapping_mul(POWERS[digit]);
            ((u16::from(fraction) * 3) >> 8) as i8 - 1
        })
    }
}

/// 2-bit q [64] @0, as in Q2_K, d f16 @64: d (q - 1)
pub(crate) struct TQ2_0;
impl Octets for TQ2_0 {
    const BYTES: usize = 66;
    const RUN: usize = 32;
    fn scale(b: &[u8], _: usize) -> f32 {
        f16_at(b, 64)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let (at, k) = (32 * (o / 16) + 8 * (o % 4), o / 4 % 4);
        array(|i| (b[at + i] >> (2 * k) & 3).cast_signed() - 1)
    }
}

/// Four scales u8 @0, nibbles [32] @4: for each 16 values 8 bytes, the low nibbles first: the 4-bit
/// floats of MXFP4 times a float without sign, of four bits exponent and three mantissa
pub(crate) struct NVFP4;
impl Octets for NVFP4 {
    const BYTES: usize = 36;
    const LEN: usize = 64;
    const RUN: usize = 16;
    fn scale(b: &[u8], run: usize) -> f32 {
        ue4m3_half(b[run])
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        let at = 4 + 8 * (o / 2);
        array(|i| E2M1_DOUBLED[usize::from(b[at + i] >> (4 * (o % 2)) & 15)])
    }
}

/// Half the value of an 8-bit float without sign (its top bit is ignored); 0x7f stands for 0.
#[inline]
pub(crate) fn ue4m3_half(x: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(x >> 3 & 15), f32::from(x & 7));
    match exponent {
        _ if x == 0x7f => 0.0,
        0 => mantissa / 1024.0,
        // 2^(exponent - 8)
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 119) << 23),
    }
}

/// d f16 @0, bits [16] @2: d or -d
pub(crate) struct Q1_0;
impl Octets for Q1_0 {
    const BYTES: usize = 18;
    const LEN: usize = 128;
    const RUN: usize = 16;
    fn scale(b: &[u8], _: usize) -> f32 {
        f16_at(b, 0)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        array(|i| (b[2 + o] >> i & 1).cast_signed() * 2 - 1)
    }
}

/// d f16 @0, 2-bit q [16] @2, four neighbours to a byte: d (q - 1)
pub(crate) struct Q2_0;
impl Octets for Q2_0 {
    const BYTES: usize = 18;
    const LEN: usize = 64;
    const RUN: usize = 16;
    fn scale(b: &[u8], _: usize) -> f32 {
        f16_at(b, 0)
    }
    fn octet(b: &[u8], o: usize) -> [i8; 8] {
        array(|i| (b[2 + 2 * o + i / 4] >> (2 * (i % 4)) & 3).cast_signed() - 1)
    }
}
