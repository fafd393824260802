//! One token: rows are unpacked in registers and multiplied at once.

use super::{Stage, ask_ahead};
use crate::Type;
use crate::activations::Step;
use crate::matmul::Job;
use crate::simd::Simd;
use crate::tiles::AHEAD;
use crate::unpack::{self, Format, Group, Pair, Take, with_format};
use std::marker::PhantomData;
use std::ops::Range;

/// The products of at most sixteen rows with the only token, straight from their bytes.
#[inline(always)]
pub(crate) fn products<S: Simd>(s: S, job: &Job<'_>, rows: Range<usize>, stage: &mut Stage<'_>) {
    with_format!(job.w.ty(), products_as::<S, _>(s, job, rows, stage));
}

/// As `products`, of one format.
#[inline(always)]
fn products_as<S: Simd, F: Format>(s: S, job: &Job<'_>, rows: Range<usize>, stage: &mut Stage<'_>) {
    (stage.zero, stage.offsets) = (F::ZERO, F::OFFSET);
    let rounded = job.x.rounded(F::BLOCK);
    let (groups, every) = (rounded.layout.groups, rounded.layout.part_groups());
    for (r, row) in rows.enumerate() {
        let mut dot = Dot::<S, F> {
            x: rounded.row(0),
            sum: s.splat(0.0),
            step: 0,
            left: every,
            part: 0,
            pair: 0,
            every,
            row: r,
            stage: &mut *stage,
            format: PhantomData,
        };
        unpack::row::<S, F>(s, groups, job.w.row(row), &mut dot);
        dot.put(s);
    }
}

/// Multiplies a row with a token as it is unpacked.
struct Dot<'a, 'b, S: Simd, F> {
    x: &'a [[u8; 64]],
    /// Of the part's chains.
    sum: S::F,
    step: usize,
    /// Groups until the part ends, and of every part.
    left: usize,
    every: usize,
    part: usize,
    pair: usize,
    row: usize,
    stage: &'a mut Stage<'b>,
    format: PhantomData<F>,
}

impl<S: Simd, F: Format> Dot<'_, '_, S, F> {
    /// Puts the chains of the part that ends where they are added up.
    #[inline(always)]
    fn put(&mut self, s: S) {
        if let Some(to) = self.stage.lines[..self.stage.parts].get_mut(self.part) {
            s.store_f32(self.sum, &mut to[self.row]);
        }
    }
}

impl<S: Simd, F: Format> Take<S> for Dot<'_, '_, S, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data, AHEAD);
    }

    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        let x = Step::of(self.x, F::BLOCK / 4, self.step);
        let mut ints = s.times(x.ints, -F::ZERO);
        for (q, x) in group.q[..F::BLOCK / 4].iter().zip(x.q) {
            ints = s.dot(ints, *q, s.bytes(x));
        }
        let scale = s.mul(group.scale, s.load_f32(x.d));
        self.sum = s.fma(scale, s.float(ints), self.sum);
        if F::OFFSET {
            self.sum = s.fma(group.offset, s.load_f32(x.sums), self.sum);
        }
        self.step += 1;
        self.left -= 1;
        if self.left == 0 {
            self.put(s);
            (self.sum, self.left) = (s.splat(0.0), self.every);
            self.part += 1;
        }
    }

    #[inline(always)]
    fn pair(&mut self, s: S, pair: Pair<S>) {
        let x = Step::of(self.x, F::BLOCK / 4, self.step);
        let ints = s.dot(s.times(x.ints, 0), pair.q, s.bytes(&x.q[0]));
        let to = self.stage.parts + self.pair;
        s.store_ints(ints, &mut self.stage.lines[to][self.row]);
        self.stage.keep_scales(self.pair, self.row, &pair);
        self.step += 1;
        self.pair += 1;
    }
}
