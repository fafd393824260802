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
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES, e8m0_half, scales_and_mins};
use crate::layout::Layout;
use crate::simd::{Simd, array, eight, four, part};

/// Most bytes in 16 blocks of a format.
const GROUP_BYTES: usize = 16 * 34;

/// Sixteen unpacked blocks. Formats with blocks of 16 values fill four of the vectors.
pub(crate) struct Group<S: Simd> {
    pub(crate) q: [S::B; 8],
    pub(crate) scale: S::F,
    pub(crate) offset: S::F,
}

/// Two unpacked blocks of 32 behind each other, with the scale and the offset of each in the eight
/// lanes of its bytes.
pub(crate) struct Pair<S: Simd> {
    pub(crate) q: S::B,
    pub(crate) scale: S::F,
    pub(crate) offset: S::F,
}

/// Takes the parts of a row in order.
pub(crate) trait Take<S: Simd> {
    fn group(&mut self, s: S, group: Group<S>);
    fn pair(&mut self, s: S, pair: Pair<S>);
    /// Told of the bytes of each part before they are unpacked.
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

    /// Unpacks two blocks; only for formats whose rows need not be a multiple of 256.
    #[inline(always)]
    fn pair<S: Simd>(_: S, _: &[u8]) -> Pair<S> {
        unreachable!("rows of these formats are multiples of 256 values")
    }
}

/// Unpacks one row of a format, part by part.
#[inline(always)]
pub(crate) fn row<S: Simd, F: Format>(s: S, layout: Layout, data: &[u8], to: &mut impl Take<S>) {
    let full = data.len() / F::BYTES;
    let (groups, rest) = data.split_at(full * F::BYTES);
    to.reading(s, rest);
    for group in groups.chunks_exact(F::BYTES) {
        to.reading(s, group);
        to.group(s, F::group(s, group));
    }
    if layout.groups > full {
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
            Type::Q4_0 => $f::<$s, unpack::Q4_0>($($arg),*),
            Type::Q4_1 => $f::<$s, unpack::Q4_1>($($arg),*),
            Type::Q5_0 => $f::<$s, unpack::Q5_0>($($arg),*),
            Type::Q5_1 => $f::<$s, unpack::Q5_1>($($arg),*),
            Type::Q8_0 => $f::<$s, unpack::Q8_0>($($arg),*),
            Type::Q2_K => $f::<$s, unpack::Q2_K>($($arg),*),
            Type::Q3_K => $f::<$s, unpack::Q3_K>($($arg),*),
            Type::Q4_K => $f::<$s, unpack::Q4_K>($($arg),*),
            Type::Q5_K => $f::<$s, unpack::Q5_K>($($arg),*),
            Type::Q6_K => $f::<$s, unpack::Q6_K>($($arg),*),
            Type::IQ4_NL => $f::<$s, unpack::IQ4_NL>($($arg),*),
            Type::IQ4_XS => $f::<$s, unpack::IQ4_XS>($($arg),*),
            Type::MXFP4 => $f::<$s, unpack::MXFP4>($($arg),*),
            Type::F32 | Type::F16 | Type::BF16 => unreachable!("floats have no integer form"),
        }
    };
}
pub(crate) use with_format;

/// Values with one scale in the unpacked form of a quantised type.
pub(crate) fn block(ty: Type) -> usize {
    match ty {
        Type::Q2_K | Type::Q3_K | Type::Q6_K => 16,
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

/// The halves at byte `at` of two blocks, over their lanes.
#[inline(always)]
fn pair_of_halves<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> S::F {
    eights(s, half(s, data, at), half(s, data, BYTES + at))
}

pub(crate) struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 16 * 18;
    const ZERO: i32 = 8;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        Group {
            q: halves_of_nibbles(s, columns::<S, 18>(s, data, 2)),
            scale: s.turned_halves::<18>(data),
            offset: s.splat(0.0),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        Pair {
            q: pair_of_nibbles::<S, 18>(s, data, 2),
            scale: pair_of_halves::<S, 18>(s, data, 0),
            offset: s.splat(0.0),
        }
    }
}

pub(crate) struct Q4_1;
impl Format for Q4_1 {
    const BYTES: usize = 16 * 20;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        Group {
            q: halves_of_nibbles(s, columns::<S, 20>(s, data, 4)),
            scale: s.turned_halves::<20>(data),
            offset: s.turned_halves::<20>(&data[2..]),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        Pair {
            q: pair_of_nibbles::<S, 20>(s, data, 4),
            scale: pair_of_halves::<S, 20>(s, data, 0),
            offset: pair_of_halves::<S, 20>(s, data, 2),
        }
    }
}

/// Sixteen blocks with nibbles at `at` and fifth bits in the four bytes before.
#[inline(always)]
fn fives<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> [S::B; 8] {
    let mut values = [[s.bits(0, 0); 4]; 2];
    #[expect(clippy::needless_range_loop, reason = "two arrays are filled")]
    for i in 0..4 {
        let block = |l: usize| (4 * i + l) * BYTES + at;
        let both = nibbles(s, s.quarters(four!(|l| part(data, block(l)))));
        for high in 0..2 {
            let bits = |l: usize| u16::from_le_bytes(*part(data, block(l) - 4 + 2 * high));
            let mask = (0..4).fold(0, |mask, l| mask | u64::from(bits(l)) << (16 * l));
            values[high][i] = s.or(both[high], s.bits(mask, 16));
        }
    }
    let (low, high) = (s.transpose(values[0]), s.transpose(values[1]));
    eight!(|i| if i < 4 { low[i % 4] } else { high[i % 4] })
}

/// Two blocks of the same.
#[inline(always)]
fn pair_of_fives<S: Simd, const BYTES: usize>(s: S, data: &[u8], at: usize) -> S::B {
    let bits = |b: usize| u64::from(u32::from_le_bytes(*part(data, b * BYTES + at - 4)));
    let high = s.bits(bits(0) | bits(1) << 32, 16);
    s.or(pair_of_nibbles::<S, BYTES>(s, data, at), high)
}

pub(crate) struct Q5_0;
impl Format for Q5_0 {
    const BYTES: usize = 16 * 22;
    const ZERO: i32 = 16;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        Group {
            q: fives::<S, 22>(s, data, 6),
            scale: s.turned_halves::<22>(data),
            offset: s.splat(0.0),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        Pair {
            q: pair_of_fives::<S, 22>(s, data, 6),
            scale: pair_of_halves::<S, 22>(s, data, 0),
            offset: s.splat(0.0),
        }
    }
}

pub(crate) struct Q5_1;
impl Format for Q5_1 {
    const BYTES: usize = 16 * 24;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        Group {
            q: fives::<S, 24>(s, data, 8),
            scale: s.turned_halves::<24>(data),
            offset: s.turned_halves::<24>(&data[2..]),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        Pair {
            q: pair_of_fives::<S, 24>(s, data, 8),
            scale: pair_of_halves::<S, 24>(s, data, 0),
            offset: pair_of_halves::<S, 24>(s, data, 2),
        }
    }
}

pub(crate) struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 16 * 34;
    const ZERO: i32 = 128;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let (low, high) = (columns::<S, 34>(s, data, 2), columns::<S, 34>(s, data, 18));
        Group {
            q: eight!(|i| s.flip(if i < 4 { low[i % 4] } else { high[i % 4] })),
            scale: s.turned_halves::<34>(data),
            offset: s.splat(0.0),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        let quarters = four!(|i| part(data, 34 * (i / 2) + 2 + 16 * (i % 2)));
        Pair {
            q: s.flip(s.quarters(quarters)),
            scale: pair_of_halves::<S, 34>(s, data, 0),
            offset: s.splat(0.0),
        }
    }
}

/// A table of signed bytes as one of unsigned bytes, 128 above.
const fn above(table: [i8; 16]) -> [u8; 16] {
    let mut above = [0; 16];
    let mut i = 0;
    while i < 16 {
        above[i] = table[i].cast_unsigned() ^ 0x80;
        i += 1;
    }
    above
}
const IQ4: [u8; 16] = above(IQ4_VALUES);
const E2M1: [u8; 16] = above(E2M1_DOUBLED);

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ4_NL;
impl Format for IQ4_NL {
    const BYTES: usize = 16 * 18;
    const ZERO: i32 = 128;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let mut group = Q4_0::group(s, data);
        group.q = eight!(|i| s.lookup(&IQ4, group.q[i]));
        group
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        let mut pair = Q4_0::pair(s, data);
        pair.q = s.lookup(&IQ4, pair.q);
        pair
    }
}

pub(crate) struct MXFP4;
impl Format for MXFP4 {
    const BYTES: usize = 16 * 17;
    const ZERO: i32 = 128;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let q = halves_of_nibbles(s, columns::<S, 17>(s, data, 1));
        Group {
            q: eight!(|i| s.lookup(&E2M1, q[i])),
            scale: s.turn(s.load(&array(|i| e8m0_half(data[17 * i])))),
            offset: s.splat(0.0),
        }
    }
    #[inline(always)]
    fn pair<S: Simd>(s: S, data: &[u8]) -> Pair<S> {
        Pair {
            q: s.lookup(&E2M1, pair_of_nibbles::<S, 17>(s, data, 1)),
            scale: eights(s, e8m0_half(data[0]), e8m0_half(data[17])),
            offset: s.splat(0.0),
        }
    }
}

/// Scales and offsets of two blocks of Q4_K or Q5_K from their first 16 bytes, turned, with `odd`
/// times the scales of the odd sub-blocks: what `Simd::k_scales` is unless a level knows better.
#[inline(always)]
pub(crate) fn k_scales<S: Simd>(s: S, first: &[u8; 16], second: &[u8; 16], odd: f32) -> [S::F; 2] {
    let (a, b) = (
        scales_and_mins(part(first, 4)),
        scales_and_mins(part(second, 4)),
    );
    let scales = array(|i| if i < 8 { a[i] } else { b[i - 8] });
    let mins = array(|i| if i < 8 { a[i + 8] } else { b[i] });
    let d = eights(s, half(s, first, 0), half(s, second, 0));
    let d = s.mul(d, s.load(&array(|i| if i % 2 == 0 { 1.0 } else { odd })));
    let dmin = eights(s, -half(s, first, 2), -half(s, second, 2));
    [
        s.turn(s.mul(s.load_i8(&scales), d)),
        s.turn(s.mul(s.load_i8(&mins), dmin)),
    ]
}

/// The 32-byte runs of two blocks of Q4_K or Q5_K, two to a vector, in lanes.
#[inline(always)]
fn k_columns<S: Simd>(s: S, first: &[u8], second: &[u8], at: usize) -> [S::B; 4] {
    let from = |i: usize| if i < 2 { first } else { second };
    s.transpose(four!(|i| s.bytes(part(from(i), at + 64 * (i % 2)))))
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q4_K;
impl Format for Q4_K {
    const BYTES: usize = 2 * 144;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let (first, second) = data.split_at(144);
        // High nibbles stay where they are, times 16.
        let [scale, offset] = s.k_scales(part(first, 0), part(second, 0), 1.0 / 16.0);
        let runs = k_columns(s, first, second, 16);
        let q = four!(|i| s.zip(s.and(runs[i], 0x0f), s.and(runs[i], 0xf0)));
        Group {
            q: eight!(|i| q[i % 4][i / 4]),
            scale,
            offset,
        }
    }
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q5_K;
impl Format for Q5_K {
    const BYTES: usize = 2 * 176;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let (first, second) = data.split_at(176);
        let [scale, offset] = s.k_scales(part(first, 0), part(second, 0), 1.0);
        // Bit g of byte l is the fifth of value l of sub-block g; vector i holds the sub-blocks
        // 4i..4i+4 of a block in its low and high nibbles.
        let mut low = [s.bits(0, 0); 4];
        let mut high = low;
        for i in 0..4 {
            let block = if i < 2 { first } else { second };
            let bits = s.quarters(four!(|l| part(block, 16 + 16 * (l % 2))));
            let nibbles = nibbles(s, s.bytes(part(block, 48 + 64 * (i % 2))));
            let (even, odd) = if i % 2 == 0 {
                (s.shl(bits, [4, 4, 2, 2]), s.shl(bits, [3, 3, 1, 1]))
            } else {
                (s.shr(bits, [0, 0, 2, 2]), s.shr(bits, [1, 1, 3, 3]))
            };
            low[i] = s.or(nibbles[0], s.and(even, 16));
            high[i] = s.or(nibbles[1], s.and(odd, 16));
        }
        let (low, high) = (s.transpose(low), s.transpose(high));
        let q = four!(|i| s.zip(low[i], high[i]));
        Group {
            q: eight!(|i| q[i % 4][i / 4]),
            scale,
            offset,
        }
    }
}

/// One block with scales for 16: values as they stand, 64 to a vector, and everything else.
#[inline(always)]
fn sixteens<S: Simd>(s: S, values: [S::B; 4], scale: S::F, offset: S::F) -> Group<S> {
    let q = s.transpose(values);
    Group {
        q: eight!(|i| q[i % 4]),
        scale: s.turn(scale),
        offset: s.turn(offset),
    }
}

/// The 2-bit fields 2k and 2k + 1 of 32 bytes, for k = 0 or 2: 64 values.
#[inline(always)]
fn twos<S: Simd>(s: S, data: &[u8], at: usize, k: u32) -> S::B {
    let bytes = s.quarters(four!(|l| part(data, at + 16 * (l % 2))));
    let (a, b) = (2 * k, 2 * k + 2);
    s.and(s.shr(bytes, [a, a, b, b]), 3)
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q2_K;
impl Format for Q2_K {
    const BYTES: usize = 84;
    const BLOCK: usize = 16;
    const OFFSET: bool = true;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let values = four!(|i| twos(s, data, 16 + 32 * (i / 2), 2 * (i as u32 % 2)));
        let sub: &[u8; 16] = part(data, 0);
        let scales: [u8; 16] = array(|i| sub[i] & 15);
        let mins: [u8; 16] = array(|i| sub[i] >> 4);
        let (d, dmin) = (half(s, data, 80), -half(s, data, 82));
        let scale = s.mul(s.load_i8(&scales), s.splat(d));
        let offset = s.mul(s.load_i8(&mins), s.splat(dmin));
        sixteens(s, values, scale, offset)
    }
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q3_K;
impl Format for Q3_K {
    const BYTES: usize = 110;
    const BLOCK: usize = 16;
    const ZERO: i32 = 4;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let high = s.quarters(four!(|l| part(data, 16 * (l % 2))));
        let values = four!(|i| {
            let low = twos(s, data, 32 + 32 * (i / 2), 2 * (i as u32 % 2));
            // Bit 2i of each byte for the first 32 values, 2i + 1 for the others.
            let bits = match i {
                0 => s.shl(high, [2, 2, 1, 1]),
                1 => s.shr(high, [0, 0, 1, 1]),
                2 => s.shr(high, [2, 2, 3, 3]),
                _ => s.shr(high, [4, 4, 5, 5]),
            };
            s.or(low, s.and(bits, 4))
        });
        let scales = q3_k_scales(part(data, 96));
        let scale = s.mul(s.load_i8(&scales), s.splat(half(s, data, 108)));
        sixteens(s, values, scale, s.splat(0.0))
    }
}

/// The sixteen 6-bit scales of Q3_K, minus 32, as signed bytes; four bytes to a word.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [u8; 16] {
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
    array(|j| words[j / 4].to_le_bytes()[j % 4].wrapping_sub(32))
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q6_K;
impl Format for Q6_K {
    const BYTES: usize = 210;
    const BLOCK: usize = 16;
    const ZERO: i32 = 32;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let values = four!(|i| {
            let low = nibbles(s, s.bytes(part(data, 64 * (i / 2))))[i % 2];
            let high = s.quarters(four!(|l| part(data, 128 + 32 * (i / 2) + 16 * (l % 2))));
            let bits = if [0, 2].contains(&i) {
                s.shl(high, [4, 4, 2, 2])
            } else {
                s.shr(high, [0, 0, 2, 2])
            };
            s.or(low, s.and(bits, 0x30))
        });
        let scale = s.mul(s.load_i8(part(data, 192)), s.splat(half(s, data, 208)));
        sixteens(s, values, scale, s.splat(0.0))
    }
}

#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ4_XS;
impl Format for IQ4_XS {
    const BYTES: usize = 2 * 136;
    const ZERO: i32 = 128;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let data: &[u8; Self::BYTES] = part(data, 0);
        let runs = s.transpose(four!(
            |i| s.bytes(part(data, 136 * (i / 2) + 8 + 64 * (i % 2)))
        ));
        let q = halves_of_nibbles(s, runs);
        // Six bits of each scale: a nibble, and two bits of a common field; minus 32.
        let sub = |i: usize| {
            let (block, g) = (&data[136 * (i / 8)..], i % 8);
            let low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
            let high = u16::from_le_bytes(*part(block, 2)) >> (2 * g) & 3;
            (low | (high as u8) << 4).wrapping_sub(32)
        };
        let d = eights(s, half(s, data, 0), half(s, data, 136));
        Group {
            q: eight!(|i| s.lookup(&IQ4, q[i])),
            scale: s.turn(s.mul(s.load_i8(&array(sub)), d)),
            offset: s.splat(0.0),
        }
    }
}
