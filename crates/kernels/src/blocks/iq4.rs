//! Four-bit indices into a table of values: IQ4_NL, IQ4_XS, MXFP4.

use super::{f16_at, nibble, u16_at};

/// The sixteen values of IQ4_NL and IQ4_XS.
pub(crate) const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the sixteen values of the 4-bit float E2M1.
pub(crate) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// d f16 @0, nibbles [16] @2: d T[n]
pub(super) fn iq4_nl(b: &[u8; 18], e: usize) -> f32 {
    f16_at(b, 0) * f32::from(IQ4_VALUES[usize::from(nibble(&b[2..], e))])
}

/// d f16 @0, high scale bits u16 @2, low scale nibbles [4] @4, nibbles [128] @8:
/// d (scale - 32) T[n], per sub-block of 32 with nibbles in split halves
pub(super) fn iq4_xs(b: &[u8; 136], e: usize) -> f32 {
    let g = e / 32;
    let low = b[4 + g / 2] >> (4 * (g % 2)) & 15;
    let high = (u16_at(b, 2) >> (2 * g) & 3) as u8;
    let scale = i32::from(low | high << 4) - 32;
    let n = nibble(&b[8 + 16 * g..], e % 32);
    f16_at(b, 0) * scale as f32 * f32::from(IQ4_VALUES[usize::from(n)])
}

/// exponent u8 @0, nibbles [16] @1: 2^(exponent - 128) · twice the E2M1 value
pub(super) fn mxfp4(b: &[u8; 17], e: usize) -> f32 {
    e8m0_half(b[0]) * f32::from(E2M1_DOUBLED[usize::from(nibble(&b[1..], e))])
}

/// 2^(exponent - 128); the two lowest are subnormal.
#[inline(always)]
pub(crate) fn e8m0_half(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        e => (u32::from(e) - 1) << 23,
    })
}
