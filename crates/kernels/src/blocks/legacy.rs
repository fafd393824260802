//! Formats of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

use super::{f16_at, nibble};

/// d f16 @0, nibbles [16] @2: d (n - 8)
pub(super) fn q4_0(b: &[u8; 18], e: usize) -> f32 {
    let n = i32::from(nibble(&b[2..], e)) - 8;
    f16_at(b, 0) * n as f32
}

/// d f16 @0, m f16 @2, nibbles [16] @4: d n + m
pub(super) fn q4_1(b: &[u8; 20], e: usize) -> f32 {
    let n = nibble(&b[4..], e);
    f16_at(b, 0) * f32::from(n) + f16_at(b, 2)
}

/// d f16 @0, fifth bits u32 @2, nibbles [16] @6: d (n - 16)
pub(super) fn q5_0(b: &[u8; 22], e: usize) -> f32 {
    let n = i32::from(nibble(&b[6..], e) | fifth_bit(&b[2..], e)) - 16;
    f16_at(b, 0) * n as f32
}

/// d f16 @0, m f16 @2, fifth bits u32 @4, nibbles [16] @8: d n + m
pub(super) fn q5_1(b: &[u8; 24], e: usize) -> f32 {
    let n = nibble(&b[8..], e) | fifth_bit(&b[4..], e);
    f16_at(b, 0) * f32::from(n) + f16_at(b, 2)
}

/// d f16 @0, q i8 [32] @2: d q
pub(super) fn q8_0(b: &[u8; 34], e: usize) -> f32 {
    f16_at(b, 0) * f32::from(b[2 + e].cast_signed())
}

/// Bit `e` of 4 bytes, in the place of a fifth bit.
fn fifth_bit(bytes: &[u8], e: usize) -> u8 {
    (bytes[e / 8] >> (e % 8) & 1) << 4
}
