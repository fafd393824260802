//! Super-blocks of 256 values with scales of their own for 16 or 32: Q2_K to Q6_K.
//!
//! Names in the formulas: h = e/128 (half), r = e%128, k = r/32 (quarter of the half), l = r%32,
//! g = e/32 (sub-block of 32), j = e/16 (sub-block of 16).

use super::f16_at;
use crate::simd::array;

/// scales u8 [16] @0 (low nibble scale, high nibble min), 2-bit q [64] @16, d f16 @80, dmin f16 @82:
/// d scale n - dmin min, with n bits 2k of byte 32h + l
pub(super) fn q2_k(b: &[u8; 84], e: usize) -> f32 {
    let (h, k, l, j) = (e / 128, e % 128 / 32, e % 32, e / 16);
    let n = b[16 + 32 * h + l] >> (2 * k) & 3;
    let (scale, min) = (b[j] & 15, b[j] >> 4);
    f16_at(b, 80) * f32::from(scale) * f32::from(n) - f16_at(b, 82) * f32::from(min)
}

/// high bits [32] @0, low 2 bits [64] @32, scales [12] @96, d f16 @108: d (scale - 32) n, with n the
/// low bits as in Q2_K, minus 4 where bit 4h + k of high byte l is 0. The sixteen 6-bit scales: low
/// four bits in nibbles of bytes 0..8 (low nibbles first), high two bits in bytes 8..12
pub(super) fn q3_k(b: &[u8; 110], e: usize) -> f32 {
    let (h, k, l, j) = (e / 128, e % 128 / 32, e % 32, e / 16);
    let low = i32::from(b[32 + 32 * h + l] >> (2 * k) & 3);
    let n = if b[l] >> (4 * h + k) & 1 == 0 {
        low - 4
    } else {
        low
    };
    let s = &b[96..108];
    let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
    let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
    let scale = i32::from(low | high << 4) - 32;
    f16_at(b, 108) * scale as f32 * n as f32
}

/// d f16 @0, dmin f16 @2, scales [12] @4, nibbles [128] @16: d scale n - dmin min. Sub-blocks 2i and
/// 2i + 1 are the low and the high nibbles of bytes 32i..32i+32
pub(super) fn q4_k(b: &[u8; 144], e: usize) -> f32 {
    let n = k_nibble(&b[16..], e);
    let (scale, min) = scale_and_min(&b[4..16], e / 32);
    f16_at(b, 0) * f32::from(scale) * f32::from(n) - f16_at(b, 2) * f32::from(min)
}

/// d f16 @0, dmin f16 @2, scales [12] @4, fifth bits [32] @16 (bit g of byte l), nibbles [128] @48:
/// as Q4_K
pub(super) fn q5_k(b: &[u8; 176], e: usize) -> f32 {
    let n = k_nibble(&b[48..], e) | (b[16 + e % 32] >> (e / 32) & 1) << 4;
    let (scale, min) = scale_and_min(&b[4..16], e / 32);
    f16_at(b, 0) * f32::from(scale) * f32::from(n) - f16_at(b, 2) * f32::from(min)
}

/// low nibbles [128] @0, high 2 bits [64] @128, scales i8 [16] @192, d f16 @208: d scale (n - 32).
/// Nibble: byte 64h + 32(k%2) + l, low for k < 2; high bits: bits 2k of byte 32h + l
pub(super) fn q6_k(b: &[u8; 210], e: usize) -> f32 {
    let (h, k, l, j) = (e / 128, e % 128 / 32, e % 32, e / 16);
    let byte = b[64 * h + 32 * (k % 2) + l];
    let low = if k < 2 { byte & 15 } else { byte >> 4 };
    let high = b[128 + 32 * h + l] >> (2 * k) & 3;
    let n = i32::from(low | high << 4) - 32;
    f16_at(b, 208) * f32::from(b[192 + j].cast_signed()) * n as f32
}

/// Nibble e of Q4_K and Q5_K.
fn k_nibble(bytes: &[u8], e: usize) -> u8 {
    let byte = bytes[32 * (e / 64) + e % 32];
    if (e / 32).is_multiple_of(2) {
        byte & 15
    } else {
        byte >> 4
    }
}

/// The 6-bit scale and min of sub-block g: for g < 4 the low six bits of bytes g and g + 4, else a
/// nibble each of byte g + 4 below the top two bits of bytes g - 4 and g.
fn scale_and_min(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (s[g] & 63, s[g + 4] & 63)
    } else {
        (
            s[g + 4] & 15 | s[g - 4] >> 6 << 4,
            s[g + 4] >> 4 | s[g] >> 6 << 4,
        )
    }
}

/// All eight scales, then all eight mins, four bytes to a word: the fast form of `scale_and_min`.
#[inline(always)]
pub(crate) fn scales_and_mins(s: &[u8; 12]) -> [u8; 16] {
    let word = |i: usize| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let (six, four) = (0x3f3f_3f3f, 0x0f0f_0f0f);
    let top = |x: u32| (x >> 6 & 0x0303_0303) << 4;
    let words = [a & six, c & four | top(a), b & six, c >> 4 & four | top(b)];
    array(|i| words[i / 4].to_le_bytes()[i % 4])
}
