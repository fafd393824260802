//! Products of quantised weights with rounded activations: exact integers within a block, f32 over
//! blocks. `rows` unpacks in registers for one token, `fill` and `tiles` into a panel for many; all
//! do the same operations on an element in the same order.

use crate::Type;
use crate::activations::{Rounded, Row};
use crate::buffer::Buffer;
use crate::floats::Floats;
use crate::layout::Layout;
use crate::matmul::{Job, ROWS, put_tile};
use crate::simd::{LANES, Simd, array};
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
        let mut sums = [[s.splat(0.0)]; ROWS];
        let rows = ROWS.min(job.rows.end - first);
        for (r, sum) in sums.iter_mut().enumerate().take(rows) {
            let mut dot = Dot::<S, F> {
                x,
                sum: sum[0],
                step: 0,
                line: 0,
                format: PhantomData,
            };
            unpack::row::<S, F>(s, layout, job.w.row(first + r), &mut dot);
            *sum = [dot.sum];
        }
        if rows == ROWS {
            put_tile(s, job, (first, 0), &sums);
        } else {
            for (r, sum) in sums.iter().enumerate().take(rows) {
                put_tile(s, job, (first + r, 0), &[*sum]);
            }
        }
    }
}

/// Multiplies a row with a token as it is unpacked.
struct Dot<'a, S: Simd, F> {
    x: Row<'a>,
    sum: S::F,
    step: usize,
    line: usize,
    format: PhantomData<F>,
}

impl<S: Simd, F: Format> Dot<'_, S, F> {
    /// Adds the products of the next vectors with their scales and offsets.
    #[inline(always)]
    fn add(&mut self, s: S, q: &[S::B], scale: S::F, offset: S::F) {
        let x = &self.x.q[self.line..][..q.len()];
        let mut ints = s.times(&self.x.ints[self.step], -F::ZERO);
        for (q, x) in q.iter().zip(x) {
            ints = s.dot(ints, *q, s.bytes(x));
        }
        let scale = s.mul(scale, s.load(&self.x.d[self.step]));
        self.sum = s.fma(scale, s.float(ints), self.sum);
        if F::OFFSET {
            self.sum = s.fma(offset, s.load(&self.x.sums[self.step]), self.sum);
        }
        self.line += q.len();
        self.step += 1;
    }
}

/// How far ahead of its use memory is asked for: what arrives in the time that it takes to arrive.
const AHEAD: usize = 4 << 10;

/// Asks for the bytes that lie `AHEAD` of `data`: the rows lie behind each other.
#[inline(always)]
fn ask_ahead<S: Simd>(s: S, data: &[u8]) {
    for at in (0..data.len()).step_by(64) {
        s.prefetch(data.as_ptr().wrapping_add(AHEAD + at));
    }
}

impl<S: Simd, F: Format> Take<S> for Dot<'_, S, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data);
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

/// Unpacked rows, filled up to a multiple of `ROWS` with anything. Four rows lie together:
/// `q [rows / 4][lines][4]`, `scale` and `offset` `[rows / 4][steps][4]`.
pub(crate) struct Panel<'a> {
    rows: Range<usize>,
    layout: Layout,
    /// What is subtracted from each byte.
    zero: i32,
    offsets: bool,
    q: &'a mut [[[u8; 64]; ROWS]],
    scale: &'a mut [[[f32; LANES]; ROWS]],
    offset: &'a mut [[[f32; LANES]; ROWS]],
}

impl<'a> Panel<'a> {
    /// Room for some rows.
    pub(crate) fn new(
        rows: Range<usize>,
        layout: Layout,
        q: &'a mut Buffer<u8>,
        scales: &'a mut Buffer<f32>,
    ) -> Panel<'a> {
        let fours = rows.len().div_ceil(ROWS);
        let (lines, steps) = (fours * layout.lines(), fours * layout.steps());
        let scales = scales.ensure(2 * steps * ROWS * LANES);
        let scales = scales.as_chunks_mut().0.as_chunks_mut().0;
        let (scale, offset) = scales.split_at_mut(steps);
        let q = q.ensure(lines * ROWS * 64);
        Panel {
            rows,
            layout,
            zero: 0,
            offsets: false,
            q: q.as_chunks_mut().0.as_chunks_mut().0,
            scale,
            offset,
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
    let (lines, steps) = (panel.layout.lines(), panel.layout.steps());
    for (r, row) in panel.rows.clone().enumerate() {
        let mut to = Keep::<F> {
            q: &mut panel.q[r / ROWS * lines..][..lines],
            scale: &mut panel.scale[r / ROWS * steps..][..steps],
            offset: &mut panel.offset[r / ROWS * steps..][..steps],
            row: r % ROWS,
            line: 0,
            step: 0,
            format: PhantomData,
        };
        unpack::row::<S, F>(s, panel.layout, job.w.row(row), &mut to);
    }
}

/// Stores a row as it is unpacked, in its place among four.
struct Keep<'a, F> {
    q: &'a mut [[[u8; 64]; ROWS]],
    scale: &'a mut [[[f32; LANES]; ROWS]],
    offset: &'a mut [[[f32; LANES]; ROWS]],
    row: usize,
    line: usize,
    step: usize,
    format: PhantomData<F>,
}

impl<F: Format> Keep<'_, F> {
    #[inline(always)]
    fn put<S: Simd>(&mut self, s: S, q: &[S::B], scale: S::F, offset: S::F) {
        for (q, to) in q.iter().zip(&mut self.q[self.line..][..q.len()]) {
            s.store_bytes(*q, &mut to[self.row]);
        }
        s.store(scale, &mut self.scale[self.step][self.row]);
        s.store(offset, &mut self.offset[self.step][self.row]);
        self.line += q.len();
        self.step += 1;
    }
}

impl<S: Simd, F: Format> Take<S> for Keep<'_, F> {
    #[inline(always)]
    fn reading(&mut self, s: S, data: &[u8]) {
        ask_ahead(s, data);
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
    let (lines, steps) = (layout.lines(), layout.steps());
    let rows = to.rows.chunks_exact_mut(to.len);
    for (r, to) in rows.enumerate().take(panel.rows.len()) {
        let (four, r) = (r / ROWS, r % ROWS);
        let q = &panel.q[four * lines..][..lines];
        let scale = &panel.scale[four * steps..][..steps];
        let offset = &panel.offset[four * steps..][..steps];
        for (b, to) in to.as_flattened_mut().chunks_exact_mut(block).enumerate() {
            let (g, b) = (b / LANES, b % LANES);
            let pair = g == layout.groups;
            let step = if pair { g + b / 2 } else { g };
            for (i, four) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let (line, lane) = if pair {
                    (g * layout.vectors + b / 2, b % 2 * 8 + i)
                } else {
                    (g * layout.vectors + i, b % 4 * 4 + b / 4)
                };
                let word: [u8; 4] = q[line][r].as_chunks().0[lane];
                let (scale, offset) = (scale[step][r][lane], offset[step][r][lane]);
                for (to, byte) in four.iter_mut().zip(word) {
                    *to = (i32::from(byte) - panel.zero) as f32 * scale + offset;
                }
            }
        }
    }
}

/// Groups of vectors of a row that are multiplied before the next row's turn comes: of a few tokens
/// and four rows so much stays in the nearest cache.
const NEAR_LINES: usize = 32;
/// Tokens that share a visit of the nearest cache; a multiple of every tile's.
const NEAR_TOKENS: usize = 12;

/// All tokens over a panel: some tokens, for them some columns, for these all rows.
#[inline(always)]
pub(crate) fn tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Panel<'_>, sums: &mut [[f32; LANES]]) {
    let layout = panel.layout;
    let rows = panel.rows.len().next_multiple_of(ROWS);
    let groups = (NEAR_LINES / layout.vectors).min(layout.groups).max(1);
    let n = job.x.n;
    for first in (0..n).step_by(NEAR_TOKENS) {
        let end = n.min(first + NEAR_TOKENS);
        let mut step = 0;
        while step < layout.steps() {
            let next = step + groups;
            let next = if next >= layout.groups {
                layout.steps()
            } else {
                next
            };
            let part = Part {
                job,
                panel,
                rounded: job.x.rounded(4 * layout.vectors),
                steps: step..next,
                last: next == layout.steps(),
            };
            let mut place = 0;
            for row in (0..rows).step_by(if S::WIDE { 4 } else { 2 }) {
                let mut t = first;
                while t < end {
                    let to = &mut sums[place..];
                    t += match (S::WIDE, end - t) {
                        (true, 4) => part.tile::<S, 4, 4>(s, (row, t), to),
                        (true, 3..) => part.tile::<S, 4, 3>(s, (row, t), to),
                        (true, 2) => part.tile::<S, 4, 2>(s, (row, t), to),
                        (true, _) => part.tile::<S, 4, 1>(s, (row, t), to),
                        (false, 2..) => part.tile::<S, 2, 2>(s, (row, t), to),
                        (false, _) => part.tile::<S, 2, 1>(s, (row, t), to),
                    };
                    place += 16;
                }
            }
            step = next;
        }
    }
}

/// Room for the sums of `tiles` between their visits, for a panel of `rows` rows.
pub(crate) fn sums(rows: usize, to: &mut Buffer<f32>) -> &mut [[f32; LANES]] {
    // At most one tile of 16 sums for two rows and one token each.
    let tiles = rows.div_ceil(2) * NEAR_TOKENS;
    to.ensure(tiles * 16 * LANES).as_chunks_mut().0
}

/// Some steps of all rows of a panel.
struct Part<'a> {
    job: &'a Job<'a>,
    panel: &'a Panel<'a>,
    rounded: &'a Rounded,
    steps: Range<usize>,
    /// Whether these are the last steps.
    last: bool,
}

impl Part<'_> {
    /// R rows by T tokens of integer products with scales and offsets; goes on from `kept` unless it
    /// begins, and leaves its sums there unless it ends. Returns T.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(
        &self,
        s: S,
        (row, token): (usize, usize),
        kept: &mut [[f32; LANES]],
    ) -> usize {
        let (panel, layout, r0) = (self.panel, self.panel.layout, row % ROWS);
        let (lines, steps) = (layout.lines(), layout.steps());
        let x: [Row<'_>; T] = array(|t| self.rounded.row(token + t));
        let q = &panel.q[row / ROWS * lines..][..lines];
        let scale = &panel.scale[row / ROWS * steps..][..steps];
        let offset = &panel.offset[row / ROWS * steps..][..steps];
        let kept = &mut kept[..R * T];
        let mut sums = [[s.splat(0.0); T]; R];
        if self.steps.start > 0 {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = s.load(&kept[r * T + t]);
                }
            }
        }
        let mut line = self.steps.start * layout.vectors;
        for step in self.steps.clone() {
            let vectors = if step < layout.groups {
                layout.vectors
            } else {
                1
            };
            let q = &q[line..][..vectors];
            let xq: [&[_]; T] = array(|t| &x[t].q[line..][..vectors]);
            line += vectors;
            let start: [_; T] = array(|t| s.times(&x[t].ints[step], -panel.zero));
            let mut ints = [start; R];
            // A loop of few instructions, whose sums stay in registers.
            for v in 0..vectors {
                let x: [_; T] = array(|t| s.bytes(&xq[t][v]));
                for r in 0..R {
                    let q = s.bytes(&q[v][r0 + r]);
                    for t in 0..T {
                        ints[r][t] = s.dot(ints[r][t], q, x[t]);
                    }
                }
            }
            let d: [_; T] = array(|t| s.load(&x[t].d[step]));
            for r in 0..R {
                let scale = s.load(&scale[step][r0 + r]);
                for t in 0..T {
                    sums[r][t] = s.fma(s.mul(scale, d[t]), s.float(ints[r][t]), sums[r][t]);
                }
            }
            if panel.offsets {
                let xs: [_; T] = array(|t| s.load(&x[t].sums[step]));
                for r in 0..R {
                    let offset = s.load(&offset[step][r0 + r]);
                    for t in 0..T {
                        sums[r][t] = s.fma(offset, xs[t], sums[r][t]);
                    }
                }
            }
        }
        if self.last {
            put_tile(s, self.job, (panel.rows.start + row, token), &sums);
        } else {
            for r in 0..R {
                for t in 0..T {
                    s.store(sums[r][t], &mut kept[r * T + t]);
                }
            }
        }
        T
    }
}
