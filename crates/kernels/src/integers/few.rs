//! Few tokens: some rows are unpacked into a panel, a block to a lane, and met in small tiles.

use super::{Ahead, Stage, ask_ahead};
use crate::Type;
use crate::activations::Step;
use crate::buffer::Buffer;
use crate::layout::{Layout, Part};
use crate::matmul::{Job, Next};
use crate::simd::{Simd, array};
use crate::unpack::{self, Format, Group, Pair, Take, with_format};
use std::marker::PhantomData;
use std::ops::Range;

/// A part of some of sixteen unpacked rows, a block to a lane; rows that are not there are anything. Four
/// rows lie together, step by step: `[rows / 4][steps]` of `FourRows`.
pub(crate) struct Blocks<'a> {
    lines: &'a mut [[u8; 64]],
    pub(super) vectors: usize,
    steps: usize,
    /// Of the sixteen.
    rows: Range<usize>,
}

impl<'a> Blocks<'a> {
    /// Room for a part of a multiple of four rows.
    pub(crate) fn new(
        layout: Layout,
        part: &Part,
        rows: Range<usize>,
        to: &'a mut Buffer<u8>,
    ) -> Blocks<'a> {
        let lines = rows.len() / FOUR * part.steps() * FourRows::lines(layout.vectors);
        Blocks {
            lines: to.ensure(lines * 64).as_chunks_mut().0,
            vectors: layout.vectors,
            steps: part.steps(),
            rows,
        }
    }

    /// Four rows.
    #[inline(always)]
    pub(super) fn four(&self, i: usize) -> &[[u8; 64]] {
        let lines = self.steps * FourRows::lines(self.vectors);
        &self.lines[i * lines..][..lines]
    }
}

/// Rows of a tile with few tokens.
pub(super) const FOUR: usize = 4;

/// One step of four rows: `q [vectors][4]`, `scale [4]`, `offset [4]`; of a pair only one vector.
pub(super) struct FourRows<'a> {
    pub(super) q: &'a [[[u8; 64]; FOUR]],
    scale: &'a [[u8; 64]; FOUR],
    offset: &'a [[u8; 64]; FOUR],
}

impl<'a> FourRows<'a> {
    /// Lines of 64 bytes for so many vectors.
    #[inline(always)]
    pub(super) const fn lines(vectors: usize) -> usize {
        (vectors + 2) * FOUR
    }

    /// The step at `step` of what begins at `lines`.
    #[inline(always)]
    pub(super) fn of(lines: &'a [[u8; 64]], vectors: usize, step: usize) -> FourRows<'a> {
        let lines = &lines[step * FourRows::lines(vectors)..][..FourRows::lines(vectors)];
        let fours = lines.as_chunks::<FOUR>().0;
        FourRows {
            q: &fours[..vectors],
            scale: &fours[vectors],
            offset: &fours[vectors + 1],
        }
    }
}

/// Unpacks a part of rows, at most those there is room for.
#[inline(always)]
pub(crate) fn unpack_rows<S: Simd>(
    s: S,
    job: &Job<'_>,
    rows: Range<usize>,
    part: &Part,
    to: &mut Blocks<'_>,
    stage: &mut Stage<'_>,
) {
    with_format!(job.w.ty(), blocks_as::<S, _>(s, job, rows, part, to, stage));
}

/// As `unpack_rows`, of one format.
#[inline(always)]
fn blocks_as<S: Simd, F: Format>(
    s: S,
    job: &Job<'_>,
    rows: Range<usize>,
    part: &Part,
    to: &mut Blocks<'_>,
    stage: &mut Stage<'_>,
) {
    (stage.zero, stage.offsets) = (F::ZERO, F::OFFSET);
    let lines = part.steps() * FourRows::lines(F::BLOCK / 4);
    for (i, (r, row)) in to.rows.clone().zip(rows).enumerate() {
        let mut keep = Keep::<F> {
            lines: &mut to.lines[i / FOUR * lines..][..lines],
            row: r,
            step: 0,
            pair: 0,
            stage: &mut *stage,
            format: PhantomData,
        };
        let data = unpack::bytes_of::<F>(part, job.w.row(row));
        unpack::row::<S, F>(s, part.groups.len(), data, &mut keep);
    }
}

/// How far ahead of its use memory is asked for by rows that are unpacked into a panel: the tiles before
/// have asked for most of it.
const AHEAD_OF_PANEL: usize = 4 << 10;

/// Stores a row as it is unpacked, in its place among four.
struct Keep<'a, 'b, F> {
    lines: &'a mut [[u8; 64]],
    row: usize,
    step: usize,
    pair: usize,
    stage: &'a mut Stage<'b>,
    format: PhantomData<F>,
}

impl<F: Format> Keep<'_, '_, F> {
    /// The places of the next step in this row.
    #[inline(always)]
    fn next(&mut self) -> &mut [[[u8; 64]; FOUR]] {
        let lines = FourRows::lines(F::BLOCK / 4);
        let to = &mut self.lines[self.step * lines..][..lines];
        self.step += 1;
        to.as_chunks_mut::<FOUR>().0
    }
}

impl<S: Simd, F: Format> Take<S> for Keep<'_, '_, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data, AHEAD_OF_PANEL);
    }

    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        let (vectors, row) = (F::BLOCK / 4, self.row % FOUR);
        let to = self.next();
        for (q, to) in group.q[..vectors].iter().zip(to.iter_mut()) {
            s.store_bytes(*q, &mut to[row]);
        }
        s.store_f32(group.scale, &mut to[vectors][row]);
        s.store_f32(group.offset, &mut to[vectors + 1][row]);
    }

    #[inline(always)]
    fn pair(&mut self, s: S, pair: Pair<S>) {
        let row = self.row % FOUR;
        s.store_bytes(pair.q, &mut self.next()[0][row]);
        self.stage.keep_scales(self.pair, self.row, &pair);
        self.pair += 1;
    }
}

/// The products of a part of unpacked rows with few tokens.
#[inline(always)]
pub(crate) fn some<S: Simd>(
    s: S,
    job: &Job<'_>,
    part: &Part,
    blocks: &Blocks<'_>,
    stage: &mut Stage<'_>,
    next: Option<Next>,
) {
    match (blocks.vectors, stage.offsets) {
        (8, false) => some_as::<S, 8, false>(s, job, part, blocks, stage, next),
        (8, true) => some_as::<S, 8, true>(s, job, part, blocks, stage, next),
        (_, false) => some_as::<S, 4, false>(s, job, part, blocks, stage, next),
        (_, true) => some_as::<S, 4, true>(s, job, part, blocks, stage, next),
    }
}

/// As `some`, for groups of V vectors: some tokens, for these all rows.
#[inline(always)]
fn some_as<S: Simd, const V: usize, const OFFSETS: bool>(
    s: S,
    job: &Job<'_>,
    part: &Part,
    blocks: &Blocks<'_>,
    stage: &mut Stage<'_>,
    next: Option<Next>,
) {
    let n = job.x.n;
    let mut ahead = Ahead::new(job, next, n.div_ceil(3) * (blocks.rows.len() / FOUR));
    for first in (0..n).step_by(NEAR_TOKENS) {
        let end = n.min(first + NEAR_TOKENS);
        for row in blocks.rows.clone().step_by(if S::WIDE { 4 } else { 2 }) {
            let mut t = first;
            while t < end {
                ahead.ask(s);
                let mut some = Meeting::<V, OFFSETS> {
                    job,
                    part,
                    blocks,
                    stage: &mut *stage,
                };
                // Two tiles of two rather than one of three and one of one.
                t += match (S::WIDE, end - t) {
                    (true, 3 | 5..) => some.tile::<S, 4, 3>(s, row, t),
                    (true, 2 | 4) => some.tile::<S, 4, 2>(s, row, t),
                    (true, _) => some.tile::<S, 4, 1>(s, row, t),
                    (false, 2..) => some.tile::<S, 2, 2>(s, row, t),
                    (false, _) => some.tile::<S, 2, 1>(s, row, t),
                };
            }
        }
    }
}

/// Tokens whose activations stay in the nearest cache.
const NEAR_TOKENS: usize = 6;

/// A part of some rows with the activations it meets.
struct Meeting<'a, 'b, const V: usize, const OFFSETS: bool> {
    job: &'a Job<'a>,
    part: &'a Part,
    blocks: &'a Blocks<'a>,
    stage: &'a mut Stage<'b>,
}

impl<const V: usize, const OFFSETS: bool> Meeting<'_, '_, V, OFFSETS> {
    /// The chains of R rows by T tokens. Returns T.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        row: usize,
        token: usize,
    ) -> usize {
        let (rounded, part, zero) = (self.job.x.rounded(4 * V), self.part, self.stage.zero);
        let four = (row - self.blocks.rows.start) / FOUR;
        let (w, r0) = (self.blocks.four(four), row % FOUR);
        let x: [&[[u8; 64]]; T] =
            array(|t| &rounded.row(token + t)[part.groups.start * Step::lines(V)..]);
        let mut sums = [[s.splat(0.0); T]; R];
        let groups = part.groups.len();
        for step in 0..groups {
            let (w, x): (_, [_; T]) =
                (FourRows::of(w, V, step), array(|t| Step::of(x[t], V, step)));
            let start: [_; T] = array(|t| s.times(x[t].ints, -zero));
            let mut ints: [[S::N; T]; R] = [start; R];
            for v in 0..V {
                multiply(s, &mut ints, &w.q[v], r0, array(|t| &x[t].q[v]));
            }
            for (r, (sums, ints)) in sums.iter_mut().zip(&ints).enumerate() {
                let scale = s.load_f32(&w.scale[r0 + r]);
                for t in 0..T {
                    let scale = s.mul(scale, s.load_f32(x[t].d));
                    sums[t] = s.fma(scale, s.float(ints[t]), sums[t]);
                }
            }
            if OFFSETS {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let offset = s.load_f32(&w.offset[r0 + r]);
                    for t in 0..T {
                        sums[t] = s.fma(offset, s.load_f32(x[t].sums), sums[t]);
                    }
                }
            }
        }
        let stage = &mut self.stage;
        for t in 0..T {
            let to = &mut stage.lines[(token + t) * stage.len + part.index];
            for (r, sums) in sums.iter().enumerate() {
                s.store_f32(sums[t], &mut to[row + r]);
            }
        }
        for pair in 0..part.pairs {
            let (w, x): (_, [_; T]) = (
                FourRows::of(w, V, groups + pair),
                array(|t| Step::of(x[t], V, groups + pair)),
            );
            let mut ints: [[S::N; T]; R] = [[s.splat_int(0); T]; R];
            multiply(s, &mut ints, &w.q[0], r0, array(|t| &x[t].q[0]));
            for t in 0..T {
                let to = &mut stage.lines[(token + t) * stage.len + stage.parts + pair];
                for (r, ints) in ints.iter().enumerate() {
                    s.store_ints(ints[t], &mut to[row + r]);
                }
            }
        }
        T
    }
}

/// Adds the products of R rows from `r0` on with T tokens.
#[inline(always)]
fn multiply<S: Simd, const R: usize, const T: usize>(
    s: S,
    sums: &mut [[S::N; T]; R],
    w: &[[u8; 64]; FOUR],
    r0: usize,
    x: [&[u8; 64]; T],
) {
    let x: [_; T] = array(|t| s.bytes(x[t]));
    for r in 0..R {
        let w = s.bytes(&w[r0 + r]);
        for t in 0..T {
            sums[r][t] = s.dot(sums[r][t], w, x[t]);
        }
    }
}
