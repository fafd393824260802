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
fn every(f: impl Fn(usize) -> u8) -> [u8; 64] {
    array(f)
}

/// Word `i` of 64 bytes.
#[inline(always)]
fn word(x: &[u8; 64], i: usize) -> [u8; 4] {
    x.as_chunks().0[i]
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
    type N = [i32; 16];
    type B = [u8; 64];

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
    #[inline]
    fn store_f32(self, x: [f32; 16], to: &mut [u8; 64]) {
        for (x, to) in x.iter().zip(to.as_chunks_mut().0) {
            *to = x.to_le_bytes();
        }
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
    #[inline]
    fn store_f16(self, x: [f32; 16], to: &mut [[u8; 2]; 16]) {
        for (x, to) in x.iter().zip(to) {
            *to = half::f16::from_f32(*x).to_le_bytes();
        }
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
    fn pick(self, a: [f32; 16], b: [f32; 16], x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
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
    fn bytes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }
    #[inline]
    fn quarters(self, from: [&[u8; 16]; 4]) -> [u8; 64] {
        every(|i| from[i / 16][i % 16])
    }
    #[inline]
    fn store_bytes(self, x: [u8; 64], to: &mut [u8; 64]) {
        *to = x;
    }
    #[inline]
    fn and(self, a: [u8; 64], mask: u8) -> [u8; 64] {
        every(|i| a[i] & mask)
    }
    #[inline]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        every(|i| a[i] | b[i])
    }
    #[inline]
    fn raise(self, a: [u8; 64], by: u8) -> [u8; 64] {
        every(|i| a[i].wrapping_add(by))
    }
    #[inline]
    fn flip(self, a: [u8; 64]) -> [u8; 64] {
        every(|i| a[i] ^ 0x80)
    }
    #[inline]
    fn shr(self, a: [u8; 64], by: [u32; 4]) -> [u8; 64] {
        every(|i| (u32::from_le_bytes(word(&a, i / 4)) >> by[i / 16]).to_le_bytes()[i % 4])
    }
    #[inline]
    fn shl(self, a: [u8; 64], by: [u32; 4]) -> [u8; 64] {
        every(|i| (u32::from_le_bytes(word(&a, i / 4)) << by[i / 16]).to_le_bytes()[i % 4])
    }
    #[inline]
    fn lookup(self, table: &[u8; 16], indices: [u8; 64]) -> [u8; 64] {
        every(|i| table[usize::from(indices[i] & 15)])
    }
    #[inline]
    fn bits(self, mask: u64, value: u8) -> [u8; 64] {
        every(|i| if mask >> i & 1 == 1 { value } else { 0 })
    }
    #[inline]
    fn transpose(self, x: [[u8; 64]; 4]) -> [[u8; 64]; 4] {
        array(|k| every(|i| x[i / 4 % 4][i / 16 * 16 + 4 * k + i % 4]))
    }
    #[inline]
    fn across(self, x: [[u8; 64]; 4]) -> [[u8; 64]; 4] {
        array(|k| every(|i| x[i / 16][16 * k + i % 16]))
    }
    #[inline]
    fn word(self, from: &[u8; 4]) -> [u8; 64] {
        every(|i| from[i % 4])
    }
    #[inline]
    fn zip(self, low: [u8; 64], high: [u8; 64]) -> [[u8; 64]; 2] {
        array(|odd| {
            every(|i| {
                let from = if i / 16 % 2 == 0 { &low } else { &high };
                from[(i / 32 * 2 + odd) * 16 + i % 16]
            })
        })
    }
    #[inline]
    fn float_quarters(self, from: [&[f32; 4]; 4]) -> [u8; 64] {
        every(|i| from[i / 16][i % 16 / 4].to_le_bytes()[i % 4])
    }
    #[inline]
    fn as_floats(self, x: [u8; 64]) -> [f32; 16] {
        self.load_f32(&x)
    }
    #[inline]
    fn to_words(self, x: [[f32; 16]; 4]) -> [u8; 64] {
        every(|i| (x[i % 4][i / 4] as i8).cast_unsigned())
    }
    #[inline]
    fn dot(self, sum: [i32; 16], w: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        array(|i| {
            let (w, x) = (word(&w, i), word(&x, i));
            let product = |k: usize| i32::from(w[k]) * i32::from(x[k].cast_signed());
            sum[i] + (product(0) + product(1) + product(2) + product(3))
        })
    }
    #[inline]
    fn times(self, x: &[u8; 64], by: i32) -> [i32; 16] {
        let (x, _) = x.as_chunks::<4>();
        array(|i| i32::from_le_bytes(x[i]).wrapping_mul(by))
    }
    #[inline]
    fn splat_int(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline]
    fn add_ints(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        array(|i| a[i].wrapping_add(b[i]))
    }
    #[inline]
    fn as_ints(self, x: [u8; 64]) -> [i32; 16] {
        self.times(&x, 1)
    }
    #[inline]
    fn store_ints(self, x: [i32; 16], to: &mut [u8; 64]) {
        for (x, to) in x.iter().zip(to.as_chunks_mut().0) {
            *to = x.to_le_bytes();
        }
    }
    #[inline]
    fn float(self, x: [i32; 16]) -> [f32; 16] {
        each(|i| x[i] as f32)
    }
    #[inline]
    fn turn(self, x: [f32; 16]) -> [f32; 16] {
        each(|i| x[i % 4 * 4 + i / 4])
    }
    #[inline]
    fn turned_halves<const BYTES: usize>(self, data: &[u8]) -> [f32; 16] {
        each(|i| {
            let at = (i % 4 * 4 + i / 4) * BYTES;
            widen_f16(u16::from_le_bytes([data[at], data[at + 1]]))
        })
    }
}
