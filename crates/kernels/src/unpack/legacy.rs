//! Formats of 32 values with one scale, and IQ4_XS, which holds the same nibbles.

use super::{Format, Group, Pair};
use super::{columns, eights, half, halves_of_nibbles, nibbles, pair_of_halves, pair_of_nibbles};
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES, e8m0_half};
use crate::simd::{Simd, array, eight, four, part};

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
            offset: [0.0; 2],
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
            offset: [0.0; 2],
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
            offset: [0.0; 2],
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
            scale: [e8m0_half(data[0]), e8m0_half(data[17])],
            offset: [0.0; 2],
        }
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
