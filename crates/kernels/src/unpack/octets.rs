//! Formats of small integers times a scale, read eight at a time by scalar code (see
//! `blocks::octets`) into the common form.

use super::{Format, Group};
use crate::blocks::octets::Octets;
use crate::simd::{LANES, Simd, eight};
use std::marker::PhantomData;

/// The format `C`.
pub(crate) struct Coded<C>(PhantomData<C>);

impl<C: Octets> Format for Coded<C> {
    const BYTES: usize = LANES * C::RUN / C::LEN * C::BYTES;
    const BLOCK: usize = C::RUN;
    const ZERO: i32 = 128;
    #[inline(always)]
    fn group<S: Simd>(s: S, data: &[u8]) -> Group<S> {
        let mut vectors = [[0; 64]; 8];
        let mut scales = [0.0; LANES];
        read::<C>(data, &mut vectors, &mut scales);
        Group {
            q: eight!(|i| s.flip(s.bytes(&vectors[i]))),
            scale: s.load(&scales),
            offset: s.splat(0.0),
        }
    }
}

/// Sixteen runs as signed bytes and scales, each run in its lane. The same for every level: compiled once.
#[inline(never)]
fn read<C: Octets>(data: &[u8], vectors: &mut [[u8; 64]; 8], scales: &mut [f32; LANES]) {
    let runs = C::LEN / C::RUN;
    for block in 0..LANES {
        let (b, run) = (&data[block / runs * C::BYTES..][..C::BYTES], block % runs);
        let lane = block % 4 * 4 + block / 4;
        scales[lane] = C::scale(b, run);
        for o in 0..C::RUN / 8 {
            let octet = C::octet(b, run * (C::RUN / 8) + o).map(i8::cast_unsigned);
            let (low, high) = octet.split_at(4);
            vectors[2 * o][4 * lane..][..4].copy_from_slice(low);
            vectors[2 * o + 1][4 * lane..][..4].copy_from_slice(high);
        }
    }
}
