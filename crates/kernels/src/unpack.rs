//! Weight rows of every quantised type, unpacked to one common form.
//!
//! A row becomes 16-bit integers, one f32 scale per 32 of them and, for the types with mins, one
//! f32 offset per 16 or 32: `w = q · scale + offset`. Integer scales of sub-blocks of 16 are folded
//! into the integers. Every factor of a scale is exact in f32 and every product but the last as
//! well, so that the form gives the bits of `dequantize` (up to the sign of a zero).
//!
//! The loops are plain Rust over arrays of constant length, written so that the compiler turns
//! each into a few vector instructions inside the level's functions.

use crate::Type;
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES, e8m0_half, scales_and_mins};
use crate::simd::Simd;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;

/// How many values share an offset, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offsets {
    None,
    Per32,
    Per16,
}

/// The offsets of a quantised type.
#[inline(always)]
pub(crate) fn offsets(ty: Type) -> Offsets {
    match ty {
        Type::Q4_1 | Type::Q5_1 | Type::Q4_K | Type::Q5_K => Offsets::Per32,
        Type::Q2_K => Offsets::Per16,
        _ => Offsets::None,
    }
}

/// One unpacked row: `q [cols]`, `scale [cols/32]`, `offset [cols/32 or cols/16]` (unused: empty).
pub(crate) struct Unpacked<'a> {
    pub(crate) q: &'a mut [i16],
    pub(crate) scale: &'a mut [f32],
    pub(crate) offset: &'a mut [f32],
}

/// Largest |q| of any type: 31 for five bits, 128 for Q8_0, 32 · 128 for Q6_K with its scale.
///
/// `Simd::dot32` adds products in pairs: 2 · 32767 · 4096 is far below 2^31.
#[cfg(test)]
pub(crate) const LARGEST: i32 = 4096;

/// Unpacks one row of a quantised type. Panics if lengths do not fit (checked by `Matrix`).
#[inline(always)]
pub(crate) fn row<S: Simd>(s: S, ty: Type, data: &[u8], to: &mut Unpacked<'_>) {
    match ty {
        Type::Q4_0 => q4_0(s, data, to),
        Type::Q4_1 => q4_1(s, data, to),
        Type::Q5_0 => q5_0(s, data, to),
        Type::Q5_1 => q5_1(s, data, to),
        Type::Q8_0 => q8_0(s, data, to),
        Type::Q2_K => q2_k(s, data, to),
        Type::Q3_K => q3_k(s, data, to),
        Type::Q4_K => q4_k(s, data, to),
        Type::Q5_K => q5_k(s, data, to),
        Type::Q6_K => q6_k(s, data, to),
        Type::IQ4_NL => iq4_nl(s, data, to),
        Type::IQ4_XS => iq4_xs(s, data, to),
        Type::MXFP4 => mxfp4(s, data, to),
        Type::F32 | Type::F16 | Type::BF16 => unreachable!("floats have no integer form"),
    }
}

/// `M` bytes of a block from byte `at`. Offsets are constants, so nothing is checked at run time.
#[inline(always)]
fn part<const M: usize>(block: &[u8], at: usize) -> &[u8; M] {
    match block[at..].first_chunk() {
        Some(part) => part,
        None => unreachable!("a field lies inside its block"),
    }
}

/// The IEEE half at byte `at`.
#[inline(always)]
fn half<S: Simd>(s: S, block: &[u8], at: usize) -> f32 {
    s.f16(u16::from_le_bytes(*part(block, at)))
}

/// 16 bytes of nibbles in split halves, minus `zero`.
#[inline(always)]
fn nibbles(bytes: &[u8; 16], zero: i16, q: &mut [i16; 32]) {
    for (i, b) in bytes.iter().enumerate() {
        q[i] = i16::from(b & 15) - zero;
        q[i + 16] = i16::from(b >> 4) - zero;
    }
}

/// Adds 16 where the bit of that index is set.
#[inline(always)]
fn fifth_bits(bits: u32, q: &mut [i16; 32]) {
    // The low and the high half of the word shift apart, in 16-bit lanes.
    let halves = [bits as u16, (bits >> 16) as u16];
    for (half, q) in halves.iter().zip(q.as_chunks_mut::<16>().0) {
        for (i, q) in q.iter_mut().enumerate() {
            *q += ((half >> i & 1) << 4).cast_signed();
        }
    }
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<18>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        nibbles(part(b, 2), 8, q);
    }
}

#[inline(always)]
fn q4_1<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<20>().0.iter().zip(to.q.as_chunks_mut().0);
    for (((b, q), scale), offset) in blocks.zip(&mut *to.scale).zip(&mut *to.offset) {
        *scale = half(s, b, 0);
        *offset = half(s, b, 2);
        nibbles(part(b, 4), 0, q);
    }
}

#[inline(always)]
fn q5_0<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<22>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        nibbles(part(b, 6), 16, q);
        fifth_bits(u32::from_le_bytes(*part(b, 2)), q);
    }
}

#[inline(always)]
fn q5_1<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<24>().0.iter().zip(to.q.as_chunks_mut().0);
    for (((b, q), scale), offset) in blocks.zip(&mut *to.scale).zip(&mut *to.offset) {
        *scale = half(s, b, 0);
        *offset = half(s, b, 2);
        nibbles(part(b, 8), 0, q);
        fifth_bits(u32::from_le_bytes(*part(b, 4)), q);
    }
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<34>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        let bytes: &[u8; 32] = part(b, 2);
        for (q, byte) in q.iter_mut().zip(bytes) {
            *q = i16::from(byte.cast_signed());
        }
    }
}

#[inline(always)]
fn q2_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<84>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<256>().0);
    let scales = to.scale.as_chunks_mut::<8>().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut::<16>().0) {
        let (d, dmin) = (half(s, b, 80), half(s, b, 82));
        let sub: &[u8; 16] = part(b, 0);
        *scale = [d; 8];
        for (offset, sub) in offset.iter_mut().zip(sub) {
            *offset = -(dmin * f32::from(sub >> 4));
        }
        for h in 0..2 {
            let bytes: &[u8; 32] = part(b, 16 + 32 * h);
            for k in 0..4 {
                two_bits(bytes, k, 0, &mut q[128 * h + 32 * k..][..32], |j| {
                    i16::from(sub[8 * h + 2 * k + j] & 15)
                });
            }
        }
    }
}

/// Bits 2k of 32 bytes, minus `zero`, times the scale of each half.
#[inline(always)]
fn two_bits(bytes: &[u8; 32], k: usize, zero: i16, q: &mut [i16], scale: impl Fn(usize) -> i16) {
    let halves = bytes
        .as_chunks::<16>()
        .0
        .iter()
        .zip(q.as_chunks_mut::<16>().0);
    for (j, (bytes, q)) in halves.enumerate() {
        let scale = scale(j);
        for (byte, q) in bytes.iter().zip(q) {
            *q = (i16::from(byte >> (2 * k) & 3) - zero) * scale;
        }
    }
}

#[inline(always)]
fn q3_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<110>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<256>().0);
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        *scale = [half(s, b, 108); 8];
        let (hmask, sub) = (part::<32>(b, 0), q3_k_scales(part(b, 96)));
        for h in 0..2 {
            let bytes: &[u8; 32] = part(b, 32 + 32 * h);
            for k in 0..4 {
                let q = &mut q[128 * h + 32 * k..][..32];
                for (j, q) in q.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    let scale = sub[8 * h + 2 * k + j];
                    for (i, q) in q.iter_mut().enumerate() {
                        let (low, high) = (bytes[16 * j + i], hmask[16 * j + i]);
                        let n = low >> (2 * k) & 3 | (high >> (4 * h + k) & 1) << 2;
                        *q = (i16::from(n) - 4) * scale;
                    }
                }
            }
        }
    }
}

/// The sixteen 6-bit scales of Q3_K, minus 32.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [i16; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 {
            bytes[j] & 15
        } else {
            bytes[j - 8] >> 4
        };
        i16::from(low | (bytes[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32
    })
}

/// Scales and offsets of Q4_K and Q5_K, which begin alike.
#[inline(always)]
fn k_scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32; 8], offset: &mut [f32; 8]) {
    let (d, dmin) = (half(s, block, 0), half(s, block, 2));
    let (sub, mins) = scales_and_mins(part(block, 4));
    for i in 0..8 {
        scale[i] = d * f32::from(sub[i]);
        offset[i] = -(dmin * f32::from(mins[i]));
    }
}

#[inline(always)]
fn q4_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<144>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<64>().0.chunks_exact_mut(4));
    let scales = to.scale.as_chunks_mut().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut().0) {
        k_scales(s, b, scale, offset);
        for (i, q) in q.iter_mut().enumerate() {
            let bytes: &[u8; 32] = part(b, 16 + 32 * i);
            for (l, byte) in bytes.iter().enumerate() {
                q[l] = i16::from(byte & 15);
                q[l + 32] = i16::from(byte >> 4);
            }
        }
    }
}

#[inline(always)]
fn q5_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<176>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<64>().0.chunks_exact_mut(4));
    let scales = to.scale.as_chunks_mut().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut().0) {
        k_scales(s, b, scale, offset);
        let high: &[u8; 32] = part(b, 16);
        for (i, q) in q.iter_mut().enumerate() {
            let bytes: &[u8; 32] = part(b, 48 + 32 * i);
            for l in 0..32 {
                q[l] = i16::from(bytes[l] & 15 | (high[l] >> (2 * i) & 1) << 4);
                q[l + 32] = i16::from(bytes[l] >> 4 | (high[l] >> (2 * i + 1) & 1) << 4);
            }
        }
    }
}

#[inline(always)]
fn q6_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<210>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<256>().0);
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        *scale = [half(s, b, 208); 8];
        let sub: &[u8; 16] = part(b, 192);
        for h in 0..2 {
            let high: &[u8; 32] = part(b, 128 + 32 * h);
            for k in 0..4 {
                let low: &[u8; 32] = part(b, 64 * h + 32 * (k % 2));
                let q = &mut q[128 * h + 32 * k..][..32];
                for (j, q) in q.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    let scale = i16::from(sub[8 * h + 2 * k + j].cast_signed());
                    for (i, q) in q.iter_mut().enumerate() {
                        let low = low[16 * j + i] >> (4 * (k / 2)) & 15;
                        let n = low | (high[16 * j + i] >> (2 * k) & 3) << 4;
                        *q = (i16::from(n) - 32) * scale;
                    }
                }
            }
        }
    }
}

/// 16 bytes of nibbles in split halves that index a table.
#[inline(always)]
fn table_nibbles<S: Simd>(s: S, table: &[i8; 16], bytes: &[u8; 16], q: &mut [i16; 32]) {
    let low = s.lookup(table, &bytes.map(|b| b & 15));
    let high = s.lookup(table, &bytes.map(|b| b >> 4));
    for i in 0..16 {
        q[i] = i16::from(low[i]);
        q[i + 16] = i16::from(high[i]);
    }
}

#[inline(always)]
fn iq4_nl<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<18>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        table_nibbles(s, &IQ4_VALUES, part(b, 2), q);
    }
}

#[inline(always)]
fn iq4_xs<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<136>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<256>().0);
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        let d = half(s, b, 0);
        let high = u16::from_le_bytes(*part(b, 2));
        for (g, q) in q.as_chunks_mut().0.iter_mut().enumerate() {
            let low = b[4 + g / 2] >> (4 * (g % 2)) & 15;
            let sub = i16::from(low) | ((high >> (2 * g) & 3) << 4).cast_signed();
            scale[g] = d * f32::from(sub - 32);
            table_nibbles(s, &IQ4_VALUES, part(b, 8 + 16 * g), q);
        }
    }
}

#[inline(always)]
fn mxfp4<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<17>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = e8m0_half(b[0]);
        table_nibbles(s, &E2M1_DOUBLED, part(b, 1), q);
    }
}
