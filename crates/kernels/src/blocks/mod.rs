//! The block formats, one function per type: the plain reference for everything that is faster.
//!
//! Each format stands here as the formula of one value, or of eight. All multi-byte fields are little-endian,
//! `f16` is an IEEE half, `e` is the index of a value in its block. Source: ggml's
//! `ggml-common.h` and gguf-py's `quants.py`, whose order of operations is kept, so that results
//! are equal to the last bit. A scale may be zero or negative.

pub(crate) mod grids;
mod iq4;
mod kquants;
mod legacy;
pub(crate) mod octets;

pub(crate) use iq4::{E2M1_DOUBLED, IQ4_VALUES, e8m0_half};
pub(crate) use kquants::scales_and_mins;

use crate::simd::widen_f16;
use crate::types::matrix_bytes;
use crate::{Error, Type};

/// Decodes `data`, one row of `out.len()` values stored as `ty`. Exact: every level's kernels are
/// tested against it.
///
/// # Errors
/// [`Error::Columns`] if `out` is no whole number of blocks, [`Error::Bytes`] if `data` is not
/// exactly the bytes of that many blocks.
pub fn dequantize(ty: Type, data: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let (need, _) = matrix_bytes(ty, 1, out.len())?;
    if data.len() != need {
        return Err(Error::Bytes {
            ty,
            rows: 1,
            cols: out.len(),
            need,
            have: data.len(),
        });
    }
    match ty {
        Type::F32 => each::<4>(data, out, |b, _| f32::from_le_bytes(*b)),
        Type::F16 => each::<2>(data, out, |b, _| f16_at(b, 0)),
        Type::BF16 => each::<2>(data, out, |b, _| {
            f32::from_bits(u32::from(u16_at(b, 0)) << 16)
        }),
        Type::Q4_0 => each(data, out, legacy::q4_0),
        Type::Q4_1 => each(data, out, legacy::q4_1),
        Type::Q5_0 => each(data, out, legacy::q5_0),
        Type::Q5_1 => each(data, out, legacy::q5_1),
        Type::Q8_0 => each(data, out, legacy::q8_0),
        Type::Q2_K => each(data, out, kquants::q2_k),
        Type::Q3_K => each(data, out, kquants::q3_k),
        Type::Q4_K => each(data, out, kquants::q4_k),
        Type::Q5_K => each(data, out, kquants::q5_k),
        Type::Q6_K => each(data, out, kquants::q6_k),
        Type::IQ4_NL => each(data, out, iq4::iq4_nl),
        Type::IQ4_XS => each(data, out, iq4::iq4_xs),
        Type::MXFP4 => each(data, out, iq4::mxfp4),
        Type::IQ2_XXS => octets::dequantize::<octets::IQ2_XXS>(data, out),
        Type::IQ2_XS => octets::dequantize::<octets::IQ2_XS>(data, out),
        Type::IQ2_S => octets::dequantize::<octets::IQ2_S>(data, out),
        Type::IQ3_XXS => octets::dequantize::<octets::IQ3_XXS>(data, out),
        Type::IQ3_S => octets::dequantize::<octets::IQ3_S>(data, out),
        Type::IQ1_S => octets::dequantize::<octets::IQ1_S>(data, out),
        Type::IQ1_M => octets::dequantize::<octets::IQ1_M>(data, out),
        Type::TQ1_0 => octets::dequantize::<octets::TQ1_0>(data, out),
        Type::TQ2_0 => octets::dequantize::<octets::TQ2_0>(data, out),
        Type::NVFP4 => octets::dequantize::<octets::NVFP4>(data, out),
        Type::Q1_0 => octets::dequantize::<octets::Q1_0>(data, out),
        Type::Q2_0 => octets::dequantize::<octets::Q2_0>(data, out),
    }
    Ok(())
}

/// Applies a format's formula to every value of every block, each of `BYTES` bytes.
fn each<const BYTES: usize>(
    data: &[u8],
    out: &mut [f32],
    value: impl Fn(&[u8; BYTES], usize) -> f32,
) {
    let (blocks, _) = data.as_chunks::<BYTES>();
    let len = out.len() / blocks.len().max(1);
    for (block, values) in blocks.iter().zip(out.chunks_exact_mut(len.max(1))) {
        for (e, x) in values.iter_mut().enumerate() {
            *x = value(block, e);
        }
    }
}

/// The 16-bit field at byte `at`.
#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The IEEE half at byte `at`.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    widen_f16(u16_at(block, at))
}

/// Nibble `e` of 16 bytes that hold 32 of them in split halves: the low nibbles first.
#[inline(always)]
fn nibble(bytes: &[u8], e: usize) -> u8 {
    if e < 16 {
        bytes[e] & 15
    } else {
        bytes[e - 16] >> 4
    }
}
