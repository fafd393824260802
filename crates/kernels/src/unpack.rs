//! Weight rows of every quantised type, unpacked to one common form.
//!
//! A row becomes 16-bit integers, one f32 scale per 32 of them and, for the types with mins, one
//! f32 offset per 16 or 32: `w = q · scale + offset`. Integer scales of sub-blocks of 16 are folded
//! into the integers. Every factor of a scale is exact in f32 and every product but the last as
//! well, so that the form gives the bits of `dequantize` (up to the sign of a zero).
//!
//! Each format is one short loop over its blocks in terms of the level's vectors of 32 integers; see
//! `blocks` for the layouts.

use crate::Type;
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES, e8m0_half, scales_and_mins};
use crate::simd::{Simd, array};

/// Values that share a scale. Exact: |q| is at most 4096 (32 · 128, Q6_K with its scale), |x| at most
/// 32768, and a lane of `Simd::dot32` adds two products, so at most 2^28, far below 2^31.
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

#[inline(always)]
fn q4_0<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<18>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        s.store_int(s.add_int(s.nibbles(part(b, 2)), s.halves(-8, -8)), q);
    }
}

#[inline(always)]
fn q4_1<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<20>().0.iter().zip(to.q.as_chunks_mut().0);
    for (((b, q), scale), offset) in blocks.zip(&mut *to.scale).zip(&mut *to.offset) {
        *scale = half(s, b, 0);
        *offset = half(s, b, 2);
        s.store_int(s.nibbles(part(b, 4)), q);
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
        let n = s.add_int(
            s.nibbles(part(b, 6)),
            s.sixteens(u32::from_le_bytes(*part(b, 2))),
        );
        s.store_int(s.add_int(n, s.halves(-16, -16)), q);
    }
}

#[inline(always)]
fn q5_1<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<24>().0.iter().zip(to.q.as_chunks_mut().0);
    for (((b, q), scale), offset) in blocks.zip(&mut *to.scale).zip(&mut *to.offset) {
        *scale = half(s, b, 0);
        *offset = half(s, b, 2);
        let n = s.add_int(
            s.nibbles(part(b, 8)),
            s.sixteens(u32::from_le_bytes(*part(b, 4))),
        );
        s.store_int(n, q);
    }
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data.as_chunks::<34>().0;
    for ((b, q), scale) in blocks
        .iter()
        .zip(to.q.as_chunks_mut().0)
        .zip(&mut *to.scale)
    {
        *scale = half(s, b, 0);
        s.store_int(s.widen_signed(part(b, 2)), q);
    }
}

#[inline(always)]
fn q2_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<84>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    let scales = to.scale.as_chunks_mut::<8>().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut::<16>().0) {
        let (d, dmin) = (half(s, b, 80), half(s, b, 82));
        let sub: &[u8; 16] = part(b, 0);
        *scale = [d; 8];
        let mins = s.load_i8(&sub.map(|sub| sub >> 4));
        s.store(s.mul(s.splat(-dmin), mins), offset);
        let sub = sub.map(|sub| i16::from(sub & 15));
        for h in 0..2 {
            let bytes = s.widen(part(b, 16 + 32 * h));
            for k in 0..4 {
                let j = 4 * h + k;
                let n = s.and(s.shr(bytes, 2 * k as u32), 3);
                s.store_int(
                    s.mul_int(n, s.halves(sub[2 * j], sub[2 * j + 1])),
                    &mut q[j],
                );
            }
        }
    }
}

#[inline(always)]
fn q3_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<110>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        *scale = [half(s, b, 108); 8];
        let (high, sub) = (s.widen(part(b, 0)), q3_k_scales(part(b, 96)));
        for h in 0..2 {
            let bytes = s.widen(part(b, 32 + 32 * h));
            for k in 0..4 {
                let j = 4 * h + k;
                let low = s.and(s.shr(bytes, 2 * k as u32), 3);
                let high = s.shl(s.and(s.shr(high, j as u32), 1), 2);
                let n = s.add_int(s.add_int(low, high), s.halves(-4, -4));
                s.store_int(
                    s.mul_int(n, s.halves(sub[2 * j], sub[2 * j + 1])),
                    &mut q[j],
                );
            }
        }
    }
}

/// The sixteen 6-bit scales of Q3_K, minus 32; four bytes to a word.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [i16; 16] {
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
    array(|j| i16::from(words[j / 4].to_le_bytes()[j % 4]) - 32)
}

/// Scales and offsets of Q4_K and Q5_K, which begin alike.
#[inline(always)]
fn k_scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32; 8], offset: &mut [f32; 8]) {
    let (d, dmin) = (half(s, block, 0), half(s, block, 2));
    let both = scales_and_mins(part(block, 4));
    let factors = array(|i| if i < 8 { d } else { -dmin });
    let mut all = [0.0; 16];
    s.store(s.mul(s.load_i8(&both), s.load(&factors)), &mut all);
    scale.copy_from_slice(&all[..8]);
    offset.copy_from_slice(&all[8..]);
}

#[inline(always)]
fn q4_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<144>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    let scales = to.scale.as_chunks_mut().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut().0) {
        k_scales(s, b, scale, offset);
        for i in 0..4 {
            let bytes = s.widen(part(b, 16 + 32 * i));
            s.store_int(s.and(bytes, 15), &mut q[2 * i]);
            s.store_int(s.shr(bytes, 4), &mut q[2 * i + 1]);
        }
    }
}

#[inline(always)]
fn q5_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<176>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    let scales = to.scale.as_chunks_mut().0.iter_mut();
    for (((b, q), scale), offset) in blocks.zip(scales).zip(to.offset.as_chunks_mut().0) {
        k_scales(s, b, scale, offset);
        let high = s.widen(part(b, 16));
        let fifth = |g: usize| s.shl(s.and(s.shr(high, g as u32), 1), 4);
        for i in 0..4 {
            let bytes = s.widen(part(b, 48 + 32 * i));
            s.store_int(s.add_int(s.and(bytes, 15), fifth(2 * i)), &mut q[2 * i]);
            s.store_int(
                s.add_int(s.shr(bytes, 4), fifth(2 * i + 1)),
                &mut q[2 * i + 1],
            );
        }
    }
}

#[inline(always)]
fn q6_k<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<210>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        *scale = [half(s, b, 208); 8];
        let sub: &[u8; 16] = part(b, 192);
        let sub = sub.map(|sub| i16::from(sub.cast_signed()));
        for h in 0..2 {
            let high = s.widen(part(b, 128 + 32 * h));
            let low = [s.widen(part(b, 64 * h)), s.widen(part(b, 64 * h + 32))];
            for k in 0..4 {
                let j = 4 * h + k;
                let low = if k < 2 {
                    s.and(low[k], 15)
                } else {
                    s.shr(low[k - 2], 4)
                };
                let high = s.shl(s.and(s.shr(high, 2 * k as u32), 3), 4);
                let n = s.add_int(s.add_int(low, high), s.halves(-32, -32));
                s.store_int(
                    s.mul_int(n, s.halves(sub[2 * j], sub[2 * j + 1])),
                    &mut q[j],
                );
            }
        }
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
        s.store_int(s.lookup(&IQ4_VALUES, part(b, 2)), q);
    }
}

#[inline(always)]
fn iq4_xs<S: Simd>(s: S, data: &[u8], to: &mut Unpacked<'_>) {
    let blocks = data
        .as_chunks::<136>()
        .0
        .iter()
        .zip(to.q.as_chunks_mut::<32>().0.chunks_exact_mut(8));
    for ((b, q), scale) in blocks.zip(to.scale.as_chunks_mut::<8>().0) {
        let d = half(s, b, 0);
        let high = u16::from_le_bytes(*part(b, 2));
        for g in 0..8 {
            let low = b[4 + g / 2] >> (4 * (g % 2)) & 15;
            let sub = i16::from(low) | ((high >> (2 * g) & 3) << 4).cast_signed();
            scale[g] = d * f32::from(sub - 32);
            s.store_int(s.lookup(&IQ4_VALUES, part(b, 8 + 16 * g)), &mut q[g]);
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
        s.store_int(s.lookup(&E2M1_DOUBLED, part(b, 1)), q);
    }
}
