//! Products of weights as floats: panels of f32, whatever the rows are stored as, and bfloat16 pairs.

use crate::Type;
use crate::activations::{Activations, HALVES_PART, vectors};
use crate::buffer::Buffer;
use crate::matmul::{Job, tokens_at_once};
use crate::simd::{LANES, Simd, array};
use crate::tiles::{self, ROWS, Tiles, Visits};
use std::ops::Range;

/// Rows of floats, filled up to a multiple of `ROWS` with anything: `[rows][vectors(cols)]`.
pub(crate) struct Floats<'a> {
    rows: Range<usize>,
    pub(crate) values: &'a mut [[f32; LANES]],
    /// Vectors per row.
    pub(crate) len: usize,
}

impl<'a> Floats<'a> {
    /// Room for some rows.
    pub(crate) fn new(rows: &Range<usize>, cols: usize, to: &'a mut Buffer<f32>) -> Floats<'a> {
        let (filled, cols) = (rows.len().next_multiple_of(ROWS), vectors(cols));
        Floats {
            rows: rows.clone(),
            values: to.ensure(filled * cols).as_chunks_mut().0,
            len: cols / LANES,
        }
    }
}

/// Widens rows of F32, F16 or BF16.
#[inline(always)]
pub(crate) fn fill<S: Simd>(s: S, job: &Job<'_>, rows: Range<usize>, panel: &mut Floats<'_>) {
    for (row, to) in rows.zip(panel.values.chunks_exact_mut(panel.len)) {
        let (data, to) = (job.w.row(row), to.as_flattened_mut());
        match job.w.ty() {
            Type::F32 => widen::<S, 4, 64>(data, to, |b| s.load_f32(b), s),
            Type::F16 => widen::<S, 2, 32>(data, to, |b| s.load_f16(b), s),
            Type::BF16 => widen::<S, 2, 32>(data, to, |b| s.load_bf16(b), s),
            _ => unreachable!("quantised rows are unpacked elsewhere"),
        }
    }
}

/// A row of floats of `BYTES` each, 16 (`ALL` bytes) at a time, padded with zeros.
#[inline(always)]
fn widen<S: Simd, const BYTES: usize, const ALL: usize>(
    data: &[u8],
    to: &mut [f32],
    load: impl Fn(&[u8; ALL]) -> S::F,
    s: S,
) {
    let (full, rest) = data.as_chunks::<ALL>();
    let (to, _) = to.as_chunks_mut::<LANES>();
    for (from, to) in full.iter().zip(to.iter_mut()) {
        s.store(load(from), to);
    }
    if !rest.is_empty() {
        let mut last = [0; ALL];
        last[..rest.len()].copy_from_slice(rest);
        s.store(load(&last), &mut to[full.len()]);
    }
}

/// All tokens over a panel.
#[inline(always)]
pub(crate) fn tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Floats<'_>, sums: &mut Buffer<f32>) {
    let visits = Visits {
        job,
        rows: panel.rows.clone(),
        columns: panel.len,
        near: (panel.len, tokens_at_once(4 * LANES * panel.len)),
    };
    visits.run(s, &MeetFloats(panel, job.x.floats()), visits.sums(sums));
}

/// A panel with the activations it meets.
struct MeetFloats<'a>(&'a Floats<'a>, &'a [[f32; LANES]]);

impl<S: Simd> Tiles<S> for MeetFloats<'_> {
    const TOKENS: usize = 4;

    #[inline(always)]
    fn tile<const R: usize, const T: usize>(
        &self,
        s: S,
        (row, token): (usize, usize),
        columns: Range<usize>,
        sums: &mut [[S::F; T]; R],
    ) {
        let len = self.0.len;
        let w: [_; R] = array(|r| &self.0.values[(row + r) * len..][..len][columns.clone()]);
        let x: [_; T] = array(|t| &self.1[(token + t) * len..][..len][columns.clone()]);
        for i in 0..columns.len() {
            let x: [_; T] = array(|t| s.load(&x[t][i]));
            for r in 0..R {
                let w = s.load(&w[r][i]);
                for t in 0..T {
                    sums[r][t] = s.fma(w, x[t], sums[r][t]);
                }
            }
        }
    }
}

/// Rows of bfloat16 with one token, straight from their bytes and in their order: one stream of
/// memory, which a single sum of a row's products keeps up with.
#[inline(always)]
pub(crate) fn half_rows<S: Simd>(s: S, job: &Job<'_>) {
    let x = job.x.all_halves();
    for first in job.rows.clone().step_by(ROWS) {
        let mut sums = [s.splat(0.0); ROWS];
        for (row, to) in (first..job.rows.end).zip(&mut sums) {
            let mut sum = s.splat(0.0);
            let (full, rest) = job.w.row(row).as_chunks::<64>();
            for (w, x) in full.iter().zip(x) {
                s.prefetch(w.as_ptr().wrapping_add(tiles::AHEAD));
                sum = s.dot_bf16(sum, s.bytes(w), s.bytes(x));
            }
            if let Some(x) = x.get(full.len()) {
                let mut last = [0; 64];
                last[..rest.len()].copy_from_slice(rest);
                sum = s.dot_bf16(sum, s.bytes(&last), s.bytes(x));
            }
            *to = sum;
        }
        tiles::put(s, job, (first, 0), sums, ROWS);
    }
}

/// Rows of bfloat16, padded with zeros to whole lines and filled up to a multiple of `ROWS`; four rows
/// lie together: `[rows / 4][lines][4]`.
pub(crate) struct Halves<'a> {
    rows: Range<usize>,
    lines: &'a mut [[[u8; 64]; ROWS]],
    /// Lines per row.
    len: usize,
}

impl<'a> Halves<'a> {
    /// Copies some rows.
    pub(crate) fn new(job: &Job<'_>, rows: Range<usize>, to: &'a mut Buffer<u8>) -> Halves<'a> {
        let len = job.w.cols().div_ceil(2 * LANES);
        let filled = rows.len().next_multiple_of(ROWS);
        let lines = to.ensure(filled * len * 64);
        let lines = lines.as_chunks_mut().0.as_chunks_mut().0;
        for (r, row) in rows.clone().enumerate() {
            let to = &mut lines[r / ROWS * len..][..len];
            let (full, rest) = job.w.row(row).as_chunks::<64>();
            for (from, to) in full.iter().zip(&mut *to) {
                to[r % ROWS] = *from;
            }
            if !rest.is_empty() {
                let last = &mut to[full.len()][r % ROWS];
                *last = [0; 64];
                last[..rest.len()].copy_from_slice(rest);
            }
        }
        Halves { rows, lines, len }
    }
}

/// Tokens that stay in the nearest cache beside the rows of a tile; a multiple of a tile's.
const NEAR_TOKENS: usize = 8;

/// All tokens over a panel of bfloat16.
#[inline(always)]
pub(crate) fn half_tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Halves<'_>, sums: &mut Buffer<f32>) {
    let visits = Visits {
        job,
        rows: panel.rows.clone(),
        columns: panel.len,
        near: (HALVES_PART, NEAR_TOKENS),
    };
    visits.run(s, &MeetHalves(panel, job.x), visits.sums(sums));
}

/// A panel with the activations it meets.
struct MeetHalves<'a>(&'a Halves<'a>, &'a Activations<'a>);

impl<S: Simd> Tiles<S> for MeetHalves<'_> {
    const TOKENS: usize = 4;

    #[inline(always)]
    fn tile<const R: usize, const T: usize>(
        &self,
        s: S,
        (row, token): (usize, usize),
        columns: Range<usize>,
        sums: &mut [[S::F; T]; R],
    ) {
        let MeetHalves(panel, x) = self;
        let w = &panel.lines[row / ROWS * panel.len..][..panel.len][columns.clone()];
        let x: [_; T] = array(|t| &x.halves(token + t, columns.start / HALVES_PART)[..w.len()]);
        for (i, w) in w.iter().enumerate() {
            let x: [_; T] = array(|t| s.bytes(&x[t][i]));
            for r in 0..R {
                let w = s.bytes(&w[row % ROWS + r]);
                for t in 0..T {
                    sums[r][t] = s.dot_bf16(sums[r][t], w, x[t]);
                }
            }
        }
    }
}
