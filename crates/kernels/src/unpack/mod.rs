//! Weight rows of every quantised type, unpacked to one common form.
//!
//! A row falls into groups of 16 blocks that share a scale, one block to a lane (see `layout`). In
//! unpacked form a group is a few vectors of unsigned bytes, word `lane` of vector v holding values
//! 4v..4v+4 of the lane's block, with a vector of scales and one of offsets:
//! `w = (byte - ZERO) · scale + offset`. Every factor of a scale is exact in f32 and every product
//! but the last as well, so that the form gives the bits of `dequantize` (up to the sign of a zero).
//!
//! Lane 4l + i of a group is its block 4i + l: so a transposition of words inside quarters brings 16
//! blocks that lie behind each other into lanes.
//!
//! Each format is one short function over a group's bytes; see `blocks` for the layouts.

use crate::Type;
use crate::layout::Part;
use crate::simd::{Simd, array, eight, four, part};

pub(crate) mod kquants;
pub(crate) mod legacy;
pub(crate) mod octets;

pub(crate) use kquants::k_scales;

/// Most bytes in 16 blocks of a format.
const GROUP_BYTES: usize = 16 * 34;

/// Sixteen unpacked blocks. Formats with blocks of 16 values fill four of the vectors.
pub(crate) struct Group<S: Simd> {
    pub(crate) q: [S::B; 8],
    pub(crate) scale: S::F,
    pub(crate) offset: S::F,
}

/// Two unpacked blocks of 32 behind each other, with the scale and the offset of each.
pub(crate) struct Pair<S: Simd> {
    pub(crate) q: S::B,
    pub(crate) scale: [f32; 2],
    pub(crate) offset: [f32; 2],
}

/// Takes the steps of a row in order.
pub(crate) trait Take<S: Simd> {
    fn group(&mut self, s: S, group: Group<S>);
    fn pair(&mut self, s: S, pair: Pair<S>);
    /// Told of the bytes of steps before they are unpacked.
    #[inline(always)]
    fn reading(&mut self, _: S, _: &[u8]) {}
}

/// One storage format.
pub(crate) trait Format {
    /// Bytes of 16 blocks.
    const BYTES: usize;
    /// Values with one scale: 16 or 32.
    const BLOCK: usize = 32;
    /// What is subtracted from an unpacked byte.
    const ZERO: i32 = 0;
    /// Whether there are offsets.
    const OFFSET: bool = false;

    /// Unpacks 16 blocks from `BYTES` bytes.
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S>;

    /// Unpacks two blocks of 32; only for formats whose rows need not be a multiple of 128.
    #[inline(always)]
    fn pair<S: Simd>(_: S, _: &[u8]) -> Pair<S> {
        unreachable!("rows of these formats leave no pairs")
    }
}

/// The bytes of a part of a row.
#[inline(always)]
pub(crate) fn bytes_of<'a, F: Format>(part: &Part, data: &'a [u8]) -> &'a [u8] {
    match part.last {
        true => &data[part.groups.start * F::BYTES..],
        false => &data[part.groups.start * F::BYTES..part.groups.end * F::BYTES],
    }
}

/// Unpacks a row of a format or a part of one, of so many groups, step by step.
#[inline(always)]
pub(crate) fn row<S: Simd, F: Format>(s: S, groups: usize, data: &[u8], to: &mut impl Take<S>) {
    let full = data.len() / F::BYTES;
    let (whole, rest) = data.split_at(full * F::BYTES);
    to.reading(s, rest);
    for group in whole.chunks_exact(F::BYTES) {
        to.reading(s, group);
        to.group(s, F::group(s, group));
    }
    if groups > full {
        let mut padded = [0; GROUP_BYTES];
        padded[..rest.len()].copy_from_slice(rest);
        to.group(s, F::group(s, &padded[..F::BYTES]));
    } else {
        for two in rest.chunks(F::BYTES / 8) {
            if two.len() == F::BYTES / 8 {
                to.pair(s, F::pair(s, two));
            } else {
                let mut padded = [0; GROUP_BYTES / 8];
                padded[..two.len()].copy_from_slice(two);
                to.pair(s, F::pair(s, &padded[..F::BYTES / 8]));
            }
        }
    }
}

/// Calls `$f::<$s, Format>($args)` with the format of a quantised type.
macro_rules! with_format {
    ($ty:expr, $f:ident :: <$s:ty, _> ($($arg:expr),*)) => {
        match $ty {
            Type::Q4_0 => $f::<$s, unpack::legacy::Q4_0>($($arg),*),
            Type::Q4_1 => $f::<$s, unpack::legacy::Q4_1>($($arg),*),
            Type::Q5_0 => $f::<$s, unpack::legacy::Q5_0>($($arg),*),
            Type::Q5_1 => $f::<$s, unpack::legacy::Q5_1>($($arg),*),
            Type::Q8_0 => $f::<$s, unpack::legacy::Q8_0>($($arg),*),
            Type::Q2_K => $f::<$s, unpack::kquants::Q2_K>($($arg),*),
            Type::Q3_K => $f::<$s, unpack::kquants::Q3_K>($($arg),*),
            Type::Q4_K => $f::<$s, unpack::kquants::Q4_K>($($arg),*),
            Type::Q5_K => $f::<$s, unpack::kquants::Q5_K>($($arg),*),
            Type::Q6_K => $f::<$s, unpack::kquants::Q6_K>($($arg),*),
            Type::IQ4_NL => $f::<$s, unpack::legacy::IQ4_NL>($($arg),*),
            Type::IQ4_XS => $f::<$s, unpack::legacy::IQ4_XS>($($arg),*),
            Type::MXFP4 => $f::<$s, unpack::legacy::MXFP4>($($arg),*),
            Type::IQ2_XXS => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ2_XXS>>($($arg),*),
            Type::IQ2_XS => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ2_XS>>($($arg),*),
            Type::IQ2_S => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ2_S>>($($arg),*),
            Type::IQ3_XXS => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ3_XXS>>($($arg),*),
            Type::IQ3_S => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ3_S>>($($arg),*),
            Type::IQ1_S => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ1_S>>($($arg),*),
            Type::IQ1_M => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::IQ1_M>>($($arg),*),
            Type::TQ1_0 => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::TQ1_0>>($($arg),*),
            Type::TQ2_0 => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::TQ2_0>>($($arg),*),
            Type::NVFP4 => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::NVFP4>>($($arg),*),
            Type::Q1_0 => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::Q1_0>>($($arg),*),
            Type::Q2_0 => $f::<$s, unpack::octets::Coded<$crate::blocks::octets::Q2_0>>($($arg),*),
            Type::F32 | Type::F16 | Type::BF16 => unreachable!("floats have no integer form"),
        }
    };
}
pub(crate) use with_format;

/// Values with one scale in the unpacked form of a quantised type.
pub(crate) fn block(ty: Type) -> usize {
    match ty {
        Type::Q2_K | Type::Q3_K | Type::Q6_K => 16,
        Type::IQ2_XS | Type::IQ2_S | Type::IQ1_M | Type::NVFP4 | Type::Q1_0 | Type::Q2_0 => 16,
        _ => 32,
    }
}

/// An IEEE half.
#[inline(always)]
fn half<S: Simd>(s: S, data: &[u8], at: usize) -> f32 {
    s.f16(u16::from_le_bytes(*part(data, at)))
}

/// Two numbers, each in 8 lanes.
#[inline(always)]
fn eights<S: Simd>(s: S, a: f32, b: f32) -> S::F {
    s.load(&array(|i| if i < 8 { a } else { b }))
}

/// The low and the high nibbles.
#[inline(always)]
fn nibbles<S: Simd>(s: S, x: S::B) -> [S::B; 2] {
    [s.and(x, 15), s.and(s.shr(x, [4; 4]), 15)]
}

/// Blocks of 16 bytes at `at`, each `BYTES` from the next, in lanes.
#[inline(always)]
fn columns<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> [S::B; 4] {
    let block = |i: usize| i * BYTES + at;
    s.transpose(four!(
        |i| s.quarters(four!(|l| part(data, block(4 * i + l))))
    ))
}

/// The values 0..16 of 16 blocks, whose low nibbles they are, and 16..32, their high nibbles.
#[inline(always)]
fn halves_of_nibbles<S: Simd>(s: S, x: [S::B; 4]) -> [S::B; 8] {
    let both = four!(|i| nibbles(s, x[i]));
    eight!(|i| both[i % 4][i / 4])
}

/// Two blocks of 16 bytes at `at`: low nibbles of the first, its high nibbles, and of the second.
#[inline(always)]
fn pair_of_nibbles<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> S::B {
    let (a, b) = (part(data, at), part(data, BYTES + at));
    s.and(s.shr(s.quarters([a, a, b, b]), [0, 4, 0, 4]), 15)
}

/// The halves at byte `at` of two blocks.
#[inline(always)]
fn pair_of_halves<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> [f32; 2] {
    [half(s, data, at), half(s, data, BYTES + at)]
}
