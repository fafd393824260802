//! Products of quantised weights with rounded activations: exact integers within a block, f32 over
//! blocks. `rows` unpacks in registers for one token, `fill` and `tiles` into a panel for many; all
//! do the same operations on an element in the same order.

use crate::Type;
use crate::activations::{Rounded, Step};
use crate::buffer::Buffer;
use crate::floats::Floats;
use crate::layout::Layout;
use crate::matmul::Job;
use crate::simd::{LANES, Simd, array};
use crate::tiles::{self, ROWS, Tiles, Visits};
use crate::unpack::{self, Format, Group, Pair, Take, with_format};
use std::marker::PhantomData;
use std::ops::Range;

/// Quantised rows for one token, straight from their bytes.
#[inline(always)]
pub(crate) fn rows<S: Simd>(s: S, job: &Job<'_>) {
    with_format!(job.w.ty(), rows_as::<S, _>(s, job));
}

/// As `rows`, of one format.
#[inline(always)]
fn rows_as<S: Simd, F: Format>(s: S, job: &Job<'_>) {
    let x = job.x.rounded(F::BLOCK);
    let (layout, x) = (x.layout, x.row(0));
    for first in job.rows.clone().step_by(ROWS) {
        let mut sums = [s.splat(0.0); ROWS];
        for (row, sum) in (first..job.rows.end).zip(&mut sums) {
            let mut dot = Dot::<S, F> {
                x,
                sum: s.splat(0.0),
                step: 0,
                format: PhantomData,
            };
            unpack::row::<S, F>(s, layout, job.w.row(row), &mut dot);
            *sum = dot.sum;
        }
        tiles::put(s, job, (first, 0), sums, ROWS);
    }
}

/// Multiplies a row with a token as it is unpacked.
struct Dot<'a, S: Simd, F> {
    x: &'a [[u8; 64]],
    sum: S::F,
    step: usize,
    format: PhantomData<F>,
}

impl<S: Simd, F: Format> Dot<'_, S, F> {
    /// Adds the products of the next vectors with their scales and offsets.
    #[inline(always)]
    fn add(&mut self, s: S, q: &[S::B], scale: S::F, offset: S::F) {
        let x = Step::of(self.x, F::BLOCK / 4, self.step);
        let mut ints = s.times(x.ints, -F::ZERO);
        for (q, x) in q.iter().zip(x.q) {
            ints = s.dot(ints, *q, s.bytes(x));
        }
        let scale = s.mul(scale, s.load_f32(x.d));
        self.sum = s.fma(scale, s.float(ints), self.sum);
        if F::OFFSET {
            self.sum = s.fma(offset, s.load_f32(x.sums), self.sum);
        }
        self.step += 1;
    }
}

/// How far ahead of its use memory is asked for by rows that are unpacked into a panel: the tiles before
/// have asked for most of it.
const AHEAD: usize = 4 << 10;

/// Asks for the bytes that lie `ahead` of `data`: the rows lie behind each other, and after the last of a
/// matrix mostly come those of the next.
#[inline(always)]
fn ask_ahead<S: Simd>(s: S, data: &[u8], ahead: usize) {
    for at in (0..data.len()).step_by(64) {
        s.prefetch(data.as_ptr().wrapping_add(ahead + at));
    }
}

impl<S: Simd, F: Format> Take<S> for Dot<'_, S, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data, tiles::AHEAD);
    }

    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        self.add(s, &group.q[..F::BLOCK / 4], group.scale, group.offset);
    }

    #[inline(always)]
    fn pair(&mut self, s: S, pair: Pair<S>) {
        self.add(s, &[pair.q], pair.scale, pair.offset);
    }
}

/// Unpacked rows, filled up to a multiple of `ROWS` with anything. Four rows lie together, step by
/// step: `[rows / 4][steps]` of `FourRows`.
pub(crate) struct Panel<'a> {
    rows: Range<usize>,
    layout: Layout,
    /// What is subtracted from each byte.
    zero: i32,
    offsets: bool,
    lines: &'a mut [[u8; 64]],
}

impl<'a> Panel<'a> {
    /// Room for some rows.
    pub(crate) fn new(rows: Range<usize>, layout: Layout, to: &'a mut Buffer<u8>) -> Panel<'a> {
        let lines = rows.len().div_ceil(ROWS) * layout.steps() * FourRows::lines(layout.vectors);
        Panel {
            rows,
            layout,
            zero: 0,
            offsets: false,
            lines: to.ensure(lines * 64).as_chunks_mut().0,
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(layout: Layout) -> usize {
        layout.steps() * FourRows::lines(layout.vectors) / ROWS * 64
    }
}

/// One step of four rows of a panel: `q [vectors][4]`, `scale [4]`, `offset [4]`.
struct FourRows<'a> {
    q: &'a [[[u8; 64]; ROWS]],
    scale: &'a [[u8; 64]; ROWS],
    offset: &'a [[u8; 64]; ROWS],
}

impl<'a> FourRows<'a> {
    /// Lines of 64 bytes for so many vectors.
    #[inline(always)]
    const fn lines(vectors: usize) -> usize {
        (vectors + 2) * ROWS
    }

    /// The step at `step` of what begins at `lines`.
    #[inline(always)]
    fn of(lines: &'a [[u8; 64]], vectors: usize, step: usize) -> FourRows<'a> {
        let lines = &lines[step * FourRows::lines(vectors)..][..FourRows::lines(vectors)];
        let fours = lines.as_chunks::<ROWS>().0;
        FourRows {
            q: &fours[..vectors],
            scale: &fours[vectors],
            offset: &fours[vectors + 1],
        }
    }
}

/// Unpacks the rows of a panel.
#[inline(always)]
pub(crate) fn fill<S: Simd>(s: S, job: &Job<'_>, panel: &mut Panel<'_>) {
    with_format!(job.w.ty(), fill_as::<S, _>(s, job, panel));
}

/// As `fill`, of one format.
#[inline(always)]
fn fill_as<S: Simd, F: Format>(s: S, job: &Job<'_>, panel: &mut Panel<'_>) {
    panel.zero = F::ZERO;
    panel.offsets = F::OFFSET;
    let lines = panel.layout.steps() * FourRows::lines(F::BLOCK / 4);
    for (r, row) in panel.rows.clone().enumerate() {
        let mut to = Keep::<F> {
            lines: &mut panel.lines[r / ROWS * lines..][..lines],
            row: r % ROWS,
            step: 0,
            format: PhantomData,
        };
        unpack::row::<S, F>(s, panel.layout, job.w.row(row), &mut to);
    }
}

/// Stores a row as it is unpacked, in its place among four.
struct Keep<'a, F> {
    lines: &'a mut [[u8; 64]],
    row: usize,
    step: usize,
    format: PhantomData<F>,
}

impl<F: Format> Keep<'_, F> {
    #[inline(always)]
    fn put<S: Simd>(&mut self, s: S, q: &[S::B], scale: S::F, offset: S::F) {
        let vectors = F::BLOCK / 4;
        let lines = FourRows::lines(vectors);
        let to = &mut self.lines[self.step * lines..][..lines];
        let to = to.as_chunks_mut::<ROWS>().0;
        for (q, to) in q.iter().zip(to.iter_mut()) {
            s.store_bytes(*q, &mut to[self.row]);
        }
        s.store_f32(scale, &mut to[vectors][self.row]);
        s.store_f32(offset, &mut to[vectors + 1][self.row]);
        self.step += 1;
    }
}

impl<S: Simd, F: Format> Take<S> for Keep<'_, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data, AHEAD);
    }

    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        self.put(s, &group.q[..F::BLOCK / 4], group.scale, group.offset);
    }

    #[inline(always)]
    fn pair(&mut self, s: S, pair: Pair<S>) {
        self.put(s, &[pair.q], pair.scale, pair.offset);
    }
}

/// The panel's weights as floats, in their order: the values of `dequantize`.
#[inline(always)]
pub(crate) fn dequantize<S: Simd>(_: S, panel: &Panel<'_>, to: &mut Floats<'_>) {
    let (layout, block) = (panel.layout, 4 * panel.layout.vectors);
    let lines = layout.steps() * FourRows::lines(layout.vectors);
    let float = |line: &[u8; 64], lane: usize| f32::from_le_bytes(line.as_chunks().0[lane]);
    let rows = to.values.chunks_exact_mut(to.len);
    for (r, to) in rows.enumerate().take(panel.rows.len()) {
        let (four, r) = (r / ROWS, r % ROWS);
        let lines = &panel.lines[four * lines..][..lines];
        for (b, to) in to.as_flattened_mut().chunks_exact_mut(block).enumerate() {
            let (g, b) = (b / LANES, b % LANES);
            let pair = g == layout.groups;
            let step = FourRows::of(lines, layout.vectors, if pair { g + b / 2 } else { g });
            for (i, four) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let (vector, lane) = if pair {
                    (0, b % 2 * 8 + i)
                } else {
                    (i, b % 4 * 4 + b / 4)
                };
                let word: [u8; 4] = step.q[vector][r].as_chunks().0[lane];
                let (scale, offset) = (float(&step.scale[r], lane), float(&step.offset[r], lane));
                for (to, byte) in four.iter_mut().zip(word) {
                    *to = (i32::from(byte) - panel.zero) as f32 * scale + offset;
                }
            }
        }
    }
}

/// Bytes of a token's row that stay in the nearest cache, of so many tokens.
const NEAR_BYTES: usize = 2816;
/// See `NEAR_BYTES`; a multiple of a tile's.
const NEAR_TOKENS: usize = 6;

/// All tokens over a panel.
#[inline(always)]
pub(crate) fn tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Panel<'_>, sums: &mut Buffer<f32>) {
    match (panel.layout.vectors, panel.offsets) {
        (8, false) => visits::<S, 8, false>(s, job, panel, sums),
        (8, true) => visits::<S, 8, true>(s, job, panel, sums),
        (_, false) => visits::<S, 4, false>(s, job, panel, sums),
        (_, true) => visits::<S, 4, true>(s, job, panel, sums),
    }
}

/// As `tiles`, for groups of V vectors.
#[inline(always)]
fn visits<S: Simd, const V: usize, const OFFSETS: bool>(
    s: S,
    job: &Job<'_>,
    panel: &Panel<'_>,
    sums: &mut Buffer<f32>,
) {
    let visits = Visits {
        job,
        rows: panel.rows.clone(),
        columns: panel.layout.steps(),
        near: (NEAR_BYTES / 64 / Step::lines(V), NEAR_TOKENS),
    };
    let integers = Integers::<V, OFFSETS> {
        rounded: job.x.rounded(4 * V),
        panel,
    };
    visits.run(s, &integers, visits.sums(sums));
}

/// A panel of groups of V vectors with the activations it meets.
struct Integers<'a, const V: usize, const OFFSETS: bool> {
    rounded: &'a Rounded,
    panel: &'a Panel<'a>,
}

impl<S: Simd, const V: usize, const OFFSETS: bool> Tiles<S> for Integers<'_, V, OFFSETS> {
    // Beside twelve sums there are as many integers.
    const TOKENS: usize = 3;

    #[inline(always)]
    fn tile<const R: usize, const T: usize>(
        &self,
        s: S,
        (row, token): (usize, usize),
        steps: Range<usize>,
        sums: &mut [[S::F; T]; R],
    ) {
        let (panel, layout, r0) = (self.panel, self.panel.layout, row % ROWS);
        let lines = layout.steps() * FourRows::lines(V);
        let w = &panel.lines[row / ROWS * lines..][..lines];
        let x: [&[[u8; 64]]; T] = array(|t| self.rounded.row(token + t));
        for step in steps.start..steps.end.min(layout.groups) {
            let (w, x) = (FourRows::of(w, V, step), array(|t| Step::of(x[t], V, step)));
            let mut ints = start(s, &x, panel.zero);
            for v in 0..V {
                multiply(s, &mut ints, &w.q[v], r0, array(|t| &x[t].q[v]));
            }
            scale::<S, OFFSETS, R, T>(s, sums, &ints, &w, r0, &x);
        }
        for step in steps.start.max(layout.groups)..steps.end {
            let (w, x) = (FourRows::of(w, V, step), array(|t| Step::of(x[t], V, step)));
            let mut ints = start(s, &x, panel.zero);
            multiply(s, &mut ints, &w.q[0], r0, array(|t| &x[t].q[0]));
            scale::<S, OFFSETS, R, T>(s, sums, &ints, &w, r0, &x);
        }
    }
}

/// What the bytes' zero subtracts from the products of a step.
#[inline(always)]
fn start<S: Simd, const R: usize, const T: usize>(
    s: S,
    x: &[Step<'_>; T],
    zero: i32,
) -> [[S::N; T]; R] {
    [array(|t| s.times(x[t].ints, -zero)); R]
}

/// Adds the integers of R rows by T tokens to the sums, with their scales and offsets.
#[inline(always)]
fn scale<S: Simd, const OFFSETS: bool, const R: usize, const T: usize>(
    s: S,
    sums: &mut [[S::F; T]; R],
    ints: &[[S::N; T]; R],
    w: &FourRows<'_>,
    r0: usize,
    x: &[Step<'_>; T],
) {
    for (r, (sums, ints)) in sums.iter_mut().zip(ints).enumerate() {
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

/// Adds the products of R rows from `r0` on with T tokens.
#[inline(always)]
fn multiply<S: Simd, const R: usize, const T: usize>(
    s: S,
    sums: &mut [[S::N; T]; R],
    w: &[[u8; 64]; ROWS],
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
