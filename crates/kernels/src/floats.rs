//! Products of weights as floats: panels of f32, whatever the rows are stored as, and bfloat16 pairs.

use crate::Type;
use crate::activations::vectors;
use crate::buffer::Buffer;
use crate::matmul::{Job, ROWS, put_tile, take, tiles, tokens_at_once};
use crate::simd::{LANES, Simd, array};
use std::ops::Range;

/// Rows of floats, filled up to a multiple of `ROWS` with anything: `[rows][vectors(cols)]`.
pub(crate) struct Floats<'a> {
    first: usize,
    pub(crate) rows: &'a mut [[f32; LANES]],
    /// Vectors per row.
    pub(crate) len: usize,
}

impl<'a> Floats<'a> {
    /// Room for some rows.
    pub(crate) fn new(rows: &Range<usize>, cols: usize, to: &'a mut Buffer<f32>) -> Floats<'a> {
        let (filled, cols) = (rows.len().next_multiple_of(ROWS), vectors(cols));
        Floats {
            first: rows.start,
            rows: to.ensure(filled * cols).as_chunks_mut().0,
            len: cols / LANES,
        }
    }
}

/// Widens rows of F32, F16 or BF16.
#[inline(always)]
pub(crate) fn fill<S: Simd>(s: S, job: &Job<'_>, rows: Range<usize>, panel: &mut Floats<'_>) {
    for (row, to) in rows.zip(panel.rows.chunks_exact_mut(panel.len)) {
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
pub(crate) fn tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Floats<'_>) {
    let rows = panel.rows.len() / panel.len;
    let fit = tokens_at_once(4 * LANES * panel.len);
    tiles!(S, rows, job.x.n, fit, tile, s, job, panel);
}

/// R rows by T tokens of f32 dot products.
#[inline(always)]
fn tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    job: &Job<'_>,
    panel: &Floats<'_>,
    row: usize,
    token: usize,
) {
    let len = panel.len;
    let w: [_; R] = take(panel.rows, row, len);
    let x: [_; T] = take(job.x.floats(), token, len);
    let mut sums = [[s.splat(0.0); T]; R];
    for i in 0..len {
        let loaded: [_; T] = array(|t| s.load(&x[t][i]));
        for r in 0..R {
            let w = s.load(&w[r][i]);
            for t in 0..T {
                sums[r][t] = s.fma(w, loaded[t], sums[r][t]);
            }
        }
    }
    put_tile(s, job, (panel.first + row, token), &sums);
}

/// How far ahead of its use memory is asked for.
const AHEAD: usize = 4 << 10;

/// Rows of bfloat16 with one token, straight from their bytes and in their order: one stream of
/// memory, which a single sum of a row's products keeps up with.
#[inline(always)]
pub(crate) fn half_rows<S: Simd>(s: S, job: &Job<'_>) {
    let x = job.x.halves();
    for first in job.rows.clone().step_by(ROWS) {
        let mut sums = [[s.splat(0.0)]; ROWS];
        for (row, sum) in (first..job.rows.end).zip(&mut sums) {
            let (full, rest) = job.w.row(row).as_chunks::<64>();
            for (w, x) in full.iter().zip(x) {
                s.prefetch(w.as_ptr().wrapping_add(AHEAD));
                sum[0] = s.dot_bf16(sum[0], s.bytes(w), s.bytes(x));
            }
            if let Some(x) = x.get(full.len()) {
                let mut last = [0; 64];
                last[..rest.len()].copy_from_slice(rest);
                sum[0] = s.dot_bf16(sum[0], s.bytes(&last), s.bytes(x));
            }
        }
        put_tile(s, job, (first, 0), &sums);
    }
}

/// Rows of bfloat16, padded with zeros to whole vectors and filled up to a multiple of `ROWS`.
pub(crate) struct Halves<'a> {
    first: usize,
    rows: &'a mut [[u8; 64]],
    /// Vectors per row.
    len: usize,
}

impl<'a> Halves<'a> {
    /// Copies some rows.
    pub(crate) fn new(job: &Job<'_>, rows: Range<usize>, to: &'a mut Buffer<u8>) -> Halves<'a> {
        let len = job.w.cols().div_ceil(2 * LANES);
        let filled = rows.len().next_multiple_of(ROWS);
        let to = to.ensure(filled * len * 64);
        for (row, to) in rows.clone().zip(to.chunks_exact_mut(len * 64)) {
            let from = job.w.row(row);
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0);
        }
        Halves {
            first: rows.start,
            rows: to.as_chunks_mut().0,
            len,
        }
    }
}

/// All tokens over a panel of bfloat16.
#[inline(always)]
pub(crate) fn half_tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Halves<'_>) {
    let rows = panel.rows.len() / panel.len;
    let fit = tokens_at_once(64 * panel.len);
    tiles!(S, rows, job.x.n, fit, half_tile, s, job, panel);
}

/// R rows by T tokens of dot products of bfloat16 pairs.
#[inline(always)]
fn half_tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    job: &Job<'_>,
    panel: &Halves<'_>,
    row: usize,
    token: usize,
) {
    let len = panel.len;
    let w: [_; R] = take(panel.rows, row, len);
    let x: [_; T] = take(job.x.halves(), token, len);
    let mut sums = [[s.splat(0.0); T]; R];
    for i in 0..len {
        let loaded: [_; T] = array(|t| s.bytes(&x[t][i]));
        for r in 0..R {
            let w = s.bytes(&w[r][i]);
            for t in 0..T {
                sums[r][t] = s.dot_bf16(sums[r][t], w, loaded[t]);
            }
        }
    }
    put_tile(s, job, (panel.first + row, token), &sums);
}
