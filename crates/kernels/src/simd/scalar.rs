//! The scalar level: arrays of 16 floats in plain Rust, for every processor.

use super::{Simd, array};

/// The scalar level; needs no proof.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    array(f)
}

#[inline(always)]
fn lanes(f: impl Fn(usize) -> i16) -> [i16; 32] {
    array(f)
}

/// Halves folded onto each other until one lane is left.
#[inline(always)]
fn fold(mut x: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

/// Widens an IEEE half by its bits: also what `dequantize` uses.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let widened = if magnitude >= 0x7c00 {
        // Infinity and NaN (made quiet, as the processors' own conversions do).
        let quiet = if magnitude > 0x7c00 { 0x40_0000 } else { 0 };
        0x7f80_0000 | (magnitude & 0x3ff) << 13 | quiet
    } else if magnitude >= 0x400 {
        (magnitude << 13) + ((127 - 15) << 23)
    } else {
        // Subnormal: magnitude · 2^-24, exact.
        (magnitude as f32 * (1.0 / 16_777_216.0)).to_bits()
    };
    f32::from_bits(sign | widened)
}

impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i16; 32];

    const WIDE: bool = false;
    const SCALAR: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 16], to: &mut [f32; 16]) {
        *to = x;
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> [f32; 16] {
        let (x, _) = bytes.as_chunks::<4>();
        each(|i| f32::from_le_bytes(x[i]))
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> [f32; 16] {
        let (x, _) = bytes.as_chunks::<2>();
        each(|i| widen_f16(u16::from_le_bytes(x[i])))
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> [f32; 16] {
        let (x, _) = bytes.as_chunks::<2>();
        each(|i| f32::from_bits(u32::from(u16::from_le_bytes(x[i])) << 16))
    }
    #[inline(always)]
    fn load_i8(self, bytes: &[u8; 16]) -> [f32; 16] {
        each(|i| f32::from(bytes[i].cast_signed()))
    }
    #[inline(always)]
    fn load_i16(self, x: &[i16; 16]) -> [f32; 16] {
        each(|i| f32::from(x[i]))
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        widen_f16(bits)
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, x: [f32; 16]) -> [f32; 16] {
        // Adding 1.5 · 2^23 leaves no bits for a fraction; ties go to even.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| (x[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn pow2(self, n: [f32; 16]) -> [f32; 16] {
        each(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, x: [f32; 16]) -> f32 {
        fold(x, |a, b| a + b)
    }
    #[inline(always)]
    fn sum4(self, x: [[f32; 16]; 4]) -> [f32; 4] {
        x.map(|x| self.sum(x))
    }
    #[inline(always)]
    fn largest(self, x: [f32; 16]) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn dot32(self, w: &[i16; 32], x: &[i16; 32]) -> [f32; 16] {
        let product = |i: usize| i32::from(w[i]) * i32::from(x[i]);
        each(|i| product(2 * i).wrapping_add(product(2 * i + 1)) as f32)
    }

    #[inline(always)]
    fn to_int(self, low: [f32; 16], high: [f32; 16]) -> [i16; 32] {
        lanes(|i| {
            if i < 16 {
                low[i] as i16
            } else {
                high[i - 16] as i16
            }
        })
    }
    #[inline(always)]
    fn widen(self, bytes: &[u8; 32]) -> [i16; 32] {
        bytes.map(i16::from)
    }
    #[inline(always)]
    fn widen_signed(self, bytes: &[u8; 32]) -> [i16; 32] {
        bytes.map(|b| i16::from(b.cast_signed()))
    }
    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> [i16; 32] {
        lanes(|i| {
            i16::from(if i < 16 {
                bytes[i] & 15
            } else {
                bytes[i - 16] >> 4
            })
        })
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], bytes: &[u8; 16]) -> [i16; 32] {
        self.nibbles(bytes)
            .map(|n| i16::from(table[n as usize & 15]))
    }
    #[inline(always)]
    fn sixteens(self, bits: u32) -> [i16; 32] {
        lanes(|i| ((bits >> i & 1) << 4) as i16)
    }
    #[inline(always)]
    fn halves(self, low: i16, high: i16) -> [i16; 32] {
        lanes(|i| if i < 16 { low } else { high })
    }
    #[inline(always)]
    fn add_int(self, a: [i16; 32], b: [i16; 32]) -> [i16; 32] {
        lanes(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn mul_int(self, a: [i16; 32], b: [i16; 32]) -> [i16; 32] {
        lanes(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn and(self, a: [i16; 32], mask: i16) -> [i16; 32] {
        a.map(|a| a & mask)
    }
    #[inline(always)]
    fn shr(self, a: [i16; 32], by: u32) -> [i16; 32] {
        a.map(|a| a >> by)
    }
    #[inline(always)]
    fn shl(self, a: [i16; 32], by: u32) -> [i16; 32] {
        a.map(|a| a << by)
    }
    #[inline(always)]
    fn store_int(self, x: [i16; 32], to: &mut [i16; 32]) {
        *to = x;
    }
}
