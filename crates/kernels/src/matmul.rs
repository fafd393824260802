//! Products of weight rows with activation rows: out[n, rows] = x[n, cols] · wᵀ + bias.
//!
//! Idea: a few weight rows are unpacked into a panel that stays in the nearest cache, and every
//! token of the call is run over it, in tiles of R rows by T tokens. One tile element is always
//! computed by the same operations in the same order, whatever the tile, the panel or the split
//! over threads, so its bits depend on its own row and token only.
//!
//! `fast` (quantised weights): per block of 32 the exact integer product of 16-bit weights and
//! 16-bit activations, times both scales, added up in f32 lanes; then the offsets of the types that
//! have them times the sums of the activations. `f32` and float weights: f32 lanes throughout.
//!
//! Why fast: a row is unpacked once per call; a block's product is one multiply-add instruction on
//! 512-bit registers; the scale products are formed 16 at a time; tiles share their loads.

use crate::buffer::{Buffer, Scratch, Shared};
use crate::ops::Rounded;
use crate::simd::{LANES, Simd, array};
use crate::unpack::{self, BLOCK, Offsets, Unpacked};
use crate::{Matrix, Type};
use std::ops::Range;

/// Panel size in bytes: a share of a core's second-level cache.
const PANEL_BYTES: usize = 64 << 10;
/// A share of a core's first-level cache for activations.
const NEAR_BYTES: usize = 24 << 10;
/// Rows of a panel are a multiple of every tile's rows.
const ROWS: usize = 4;

/// Rows of activations `[n, cols]`, prepared once for all products that use them.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(crate) n: usize,
    pub(crate) cols: usize,
    x: &'a [f32],
    /// `x` with rows padded to whole vectors on cache lines, where they are not.
    padded: Option<Buffer<f32>>,
    rounded: Option<RoundedRows>,
}

/// All rows in the form of [`Rounded`]; rows of `d` and sums are padded to whole vectors of zeros.
#[derive(Debug)]
struct RoundedRows {
    q: Buffer<i16>,
    d: Buffer<f32>,
    sum16: Buffer<f32>,
    sum32: Buffer<f32>,
}

/// `len` rounded up to whole vectors.
#[inline(always)]
fn vectors(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

impl<'a> Activations<'a> {
    /// Rows to multiply; the rounded form must be filled through `round_task` before use.
    pub(crate) fn new(x: &'a [f32], cols: usize, floats: bool, integers: bool) -> Activations<'a> {
        assert!(
            cols > 0 && x.len().is_multiple_of(cols),
            "{} activations in rows of {cols}",
            x.len()
        );
        let n = x.len() / cols;
        // Vectors that straddle cache lines cost double; many tokens are worth a copy.
        let aligned = x.as_ptr().align_offset(64) == 0 || n < 4;
        let padded = (floats && !(aligned && cols.is_multiple_of(LANES))).then(|| {
            let mut padded = Buffer::zeros(n * vectors(cols));
            for (to, from) in padded
                .as_mut()
                .chunks_exact_mut(vectors(cols))
                .zip(x.chunks_exact(cols))
            {
                to[..cols].copy_from_slice(from);
            }
            padded
        });
        let blocks = vectors(cols / BLOCK);
        let rounded = (integers && cols.is_multiple_of(BLOCK)).then(|| RoundedRows {
            q: Buffer::zeros(n * cols),
            d: Buffer::zeros(n * blocks),
            sum16: Buffer::zeros(n * vectors(cols / 16)),
            sum32: Buffer::zeros(n * blocks),
        });
        Activations {
            n,
            cols,
            x,
            padded,
            rounded,
        }
    }

    /// The rounded rows to fill, if there are any, token by token.
    pub(crate) fn round_task(&mut self) -> Option<RoundTask<'_>> {
        let rounded = self.rounded.as_mut()?;
        Some(RoundTask {
            x: self.x,
            cols: self.cols,
            q: Shared::new(rounded.q.as_mut()),
            d: Shared::new(rounded.d.as_mut()),
            sum16: Shared::new(rounded.sum16.as_mut()),
            sum32: Shared::new(rounded.sum32.as_mut()),
        })
    }

    /// Whether products with this type find their form of the activations.
    pub(crate) fn fits(&self, ty: Type, fast: bool) -> bool {
        if fast && !ty.is_float() {
            self.rounded.is_some()
        } else {
            self.cols.is_multiple_of(LANES) || self.padded.is_some()
        }
    }

    /// All rows as whole vectors.
    #[inline(always)]
    fn floats(&self) -> &[[f32; LANES]] {
        match &self.padded {
            Some(padded) => padded.as_ref().as_chunks().0,
            None => self.x.as_chunks().0,
        }
    }
}

/// The rounding of activations, token by token.
pub(crate) struct RoundTask<'a> {
    x: &'a [f32],
    cols: usize,
    q: Shared<'a, i16>,
    d: Shared<'a>,
    sum16: Shared<'a>,
    sum32: Shared<'a>,
}

impl RoundTask<'_> {
    /// A token's activations and its place in the rounded form.
    ///
    /// # Safety
    /// No other access to this token's place while the result lives.
    pub(crate) unsafe fn token(&self, token: usize) -> (&[f32], Rounded<'_>) {
        let (cols, blocks, sums) = (
            self.cols,
            vectors(self.cols / BLOCK),
            vectors(self.cols / 16),
        );
        // SAFETY: each part belongs to this token only, to which the caller has sole access.
        let to = unsafe {
            Rounded {
                q: self.q.part(token * cols, cols),
                d: self.d.part(token * blocks, blocks),
                sum16: self.sum16.part(token * sums, sums),
                sum32: self.sum32.part(token * blocks, blocks),
            }
        };
        (&self.x[token * cols..(token + 1) * cols], to)
    }
}

/// Some rows of one product, the work of one task.
pub(crate) struct Job<'a> {
    pub(crate) w: Matrix<'a>,
    pub(crate) rows: Range<usize>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) x: &'a Activations<'a>,
    /// `[n, w.rows()]`; this task alone writes the columns `rows`.
    pub(crate) out: Shared<'a>,
    /// 16-bit activations for quantised weights.
    pub(crate) fast: bool,
}

/// Does the work of one task.
#[inline(always)]
pub(crate) fn task<S: Simd>(s: S, job: &Job<'_>, scratch: &mut Scratch) {
    let row_bytes = if job.fast { 2 } else { 4 } * job.w.cols();
    // One token meets each row once: its panel need not hold more than a tile.
    let fit = if job.x.n <= 2 {
        ROWS
    } else {
        PANEL_BYTES / row_bytes.max(1) / ROWS * ROWS
    };
    let mut rows = job.rows.clone();
    while !rows.is_empty() {
        let next = rows.end.min(rows.start + fit.max(ROWS));
        let panel = rows.start..next;
        if job.fast && !job.w.ty().is_float() {
            integer_panel(s, job, panel, scratch);
        } else {
            float_panel(s, job, panel, scratch);
        }
        rows.start = next;
    }
}

/// Calls `$tile::<S, R, T>($args, first row, first token)` for tiles that cover the panel: some
/// tokens that fit the nearest cache (`$fit`), over them all rows, over these the tokens in tiles.
macro_rules! tiles {
    ($s:ty, $rows:expr, $tokens:expr, $fit:expr, $tile:ident, $($arg:expr),*) => {{
        let (rows, tokens) = ($rows, $tokens);
        for first in (0..tokens).step_by($fit) {
            let end = tokens.min(first + $fit);
            for r in (0..rows).step_by(4) {
                let four = rows - r >= 4;
                let mut t = first;
                while t < end {
                    let take = match end - t {
                        1 => 1,
                        2 | 3 => 2,
                        _ if <$s>::WIDE => 4,
                        _ => 2,
                    };
                    match take {
                        4 if four => $tile::<$s, 4, 4>($($arg),*, r, t),
                        4 => {
                            for r in r..rows {
                                $tile::<$s, 1, 4>($($arg),*, r, t);
                            }
                        }
                        2 if four => {
                            $tile::<$s, 2, 2>($($arg),*, r, t);
                            $tile::<$s, 2, 2>($($arg),*, r + 2, t);
                        }
                        2 => {
                            for r in r..rows {
                                $tile::<$s, 1, 2>($($arg),*, r, t);
                            }
                        }
                        _ if four => $tile::<$s, 4, 1>($($arg),*, r, t),
                        _ => {
                            for r in r..rows {
                                $tile::<$s, 1, 1>($($arg),*, r, t);
                            }
                        }
                    }
                    t += take;
                }
            }
        }
    }};
}

/// Tokens of `bytes` each that fit the nearest cache beside a tile's rows, in whole tiles.
#[inline(always)]
fn tokens_at_once(bytes: usize) -> usize {
    (NEAR_BYTES / bytes.max(1) / 4 * 4).max(4)
}

/// Adds up the lanes of a tile and writes it from (row, token) on, with the bias.
#[inline(always)]
fn put_tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    job: &Job<'_>,
    (row, token): (usize, usize),
    sums: &[[S::F; T]; R],
) {
    for t in 0..T {
        let sums: [f32; R] = if R == 4 {
            let four = s.sum4(array(|r| sums[r % R][t]));
            array(|r| four[r % 4])
        } else {
            array(|r| s.sum(sums[r][t]))
        };
        for (r, sum) in sums.into_iter().enumerate() {
            let sum = job.bias.map_or(sum, |bias| sum + bias[row + r]);
            // SAFETY: the region's tasks have disjoint row ranges, and this row is in this task's.
            unsafe { job.out.set((token + t) * job.w.rows() + row + r, sum) }
        }
    }
}

/// Rows of floats, `[rows][vectors(cols)]`.
struct Floats<'a> {
    job: &'a Job<'a>,
    first: usize,
    rows: &'a [[f32; LANES]],
    /// Vectors per row.
    len: usize,
}

/// A panel of weights widened or dequantised to f32.
#[inline(always)]
fn float_panel<S: Simd>(s: S, job: &Job<'_>, rows: Range<usize>, scratch: &mut Scratch) {
    let Scratch {
        ints,
        floats,
        scales,
    } = scratch;
    let cols = vectors(job.w.cols());
    let panel = floats.ensure(rows.len() * cols);
    for (row, to) in rows.clone().zip(panel.chunks_exact_mut(cols)) {
        let data = job.w.row(row);
        match job.w.ty() {
            Type::F32 => widen::<S, 4, 64>(data, to, |b| s.load_f32(b), s),
            Type::F16 => widen::<S, 2, 32>(data, to, |b| s.load_f16(b), s),
            Type::BF16 => widen::<S, 2, 32>(data, to, |b| s.load_bf16(b), s),
            ty => dequantize_row(s, ty, data, to, ints, scales),
        }
    }
    let (panel, _) = panel.as_chunks();
    let panel = Floats {
        job,
        first: rows.start,
        rows: panel,
        len: cols / LANES,
    };
    tiles!(
        S,
        rows.len(),
        job.x.n,
        tokens_at_once(4 * cols),
        float_tile,
        s,
        &panel
    );
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

/// One quantised row as f32: the values of `dequantize`.
#[inline(always)]
fn dequantize_row<S: Simd>(
    s: S,
    ty: Type,
    data: &[u8],
    to: &mut [f32],
    ints: &mut Buffer<i16>,
    scales: &mut Buffer<f32>,
) {
    let blocks = to.len() / BLOCK;
    let (scale, offset) = scales.ensure(3 * blocks).split_at_mut(blocks);
    let q = ints.ensure(to.len());
    unpack::row(s, ty, data, &mut Unpacked { q, scale, offset });
    let halves = q
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(to.as_chunks_mut::<LANES>().0);
    for (i, (q, to)) in halves.enumerate() {
        let w = s.mul(s.load_i16(q), s.splat(scale[i / 2]));
        let w = match unpack::offsets(ty) {
            Offsets::None => w,
            Offsets::Per32 => s.add(w, s.splat(offset[i / 2])),
            Offsets::Per16 => s.add(w, s.splat(offset[i])),
        };
        s.store(w, to);
    }
}

/// R rows by T tokens of f32 dot products.
#[inline(always)]
fn float_tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    panel: &Floats<'_>,
    row: usize,
    token: usize,
) {
    let len = panel.len;
    let w: [_; R] = take(panel.rows, row, len);
    let x: [_; T] = take(panel.job.x.floats(), token, len);
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
    put_tile(s, panel.job, (panel.first + row, token), &sums);
}

/// Unpacked rows: `q [rows][cols]`, `scale` and `offset` with rows padded to whole vectors of zeros.
struct Integers<'a> {
    job: &'a Job<'a>,
    first: usize,
    q: &'a [[i16; BLOCK]],
    scale: &'a [[f32; LANES]],
    offset: &'a [[f32; LANES]],
    offsets: Offsets,
    /// Activations, in the same forms.
    x: Integer<'a>,
    /// Blocks per row.
    blocks: usize,
}

/// The activations' side of [`Integers`].
struct Integer<'a> {
    q: &'a [[i16; BLOCK]],
    d: &'a [[f32; LANES]],
    /// Sums of the length that the weights' offsets have.
    sum: &'a [[f32; LANES]],
}

/// A panel of quantised weights unpacked to 16-bit integers.
#[inline(always)]
fn integer_panel<S: Simd>(s: S, job: &Job<'_>, rows: Range<usize>, scratch: &mut Scratch) {
    let Some(x) = &job.x.rounded else {
        unreachable!("asserted at the door by `fits`")
    };
    let (cols, offsets) = (job.w.cols(), unpack::offsets(job.w.ty()));
    let scale_len = vectors(cols / BLOCK);
    let (offset_len, sum) = match offsets {
        Offsets::None => (0, &x.sum32.as_ref()[..0]),
        Offsets::Per32 => (scale_len, x.sum32.as_ref()),
        Offsets::Per16 => (vectors(cols / 16), x.sum16.as_ref()),
    };
    let q = scratch.ints.ensure(rows.len() * cols);
    let scales = scratch.scales.ensure(rows.len() * (scale_len + offset_len));
    let (scale, offset) = scales.split_at_mut(rows.len() * scale_len);
    for (i, row) in rows.clone().enumerate() {
        let scale = &mut scale[i * scale_len..][..scale_len];
        let offset = &mut offset[i * offset_len..][..offset_len];
        // What lies beyond the row meets zeros of the activations, and must be finite.
        scale[cols / BLOCK..].fill(0.0);
        offset[(cols / BLOCK).min(offset_len)..].fill(0.0);
        let q = &mut q[i * cols..][..cols];
        unpack::row(
            s,
            job.w.ty(),
            job.w.row(row),
            &mut Unpacked { q, scale, offset },
        );
    }
    let panel = Integers {
        job,
        first: rows.start,
        q: q.as_chunks().0,
        scale: scale.as_chunks().0,
        offset: offset.as_chunks().0,
        offsets,
        x: Integer {
            q: x.q.as_ref().as_chunks().0,
            d: x.d.as_ref().as_chunks().0,
            sum: sum.as_chunks().0,
        },
        blocks: cols / BLOCK,
    };
    tiles!(
        S,
        rows.len(),
        job.x.n,
        tokens_at_once(2 * cols),
        integer_tile,
        s,
        &panel
    );
}

/// `count` rows of `len` elements each, from row `first` on.
#[inline(always)]
fn take<E, const N: usize>(all: &[E], first: usize, len: usize) -> [&[E]; N] {
    array(|i| &all[(first + i) * len..][..len])
}

/// R rows by T tokens of integer dot products with scales and offsets.
#[inline(always)]
fn integer_tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    panel: &Integers<'_>,
    row: usize,
    token: usize,
) {
    let (blocks, groups) = (panel.blocks, panel.blocks.div_ceil(LANES));
    let w: [_; R] = take(panel.q, row, blocks);
    let ws: [_; R] = take(panel.scale, row, groups);
    let x: [_; T] = take(panel.x.q, token, blocks);
    let xs: [_; T] = take(panel.x.d, token, groups);
    let mut sums = [[s.splat(0.0); T]; R];
    let mut scales = [[[0.0; LANES]; T]; R];
    let full = blocks / LANES;
    for g in 0..full {
        // Products of scales, 16 blocks at a time.
        for r in 0..R {
            for t in 0..T {
                s.store(
                    s.mul(s.load(&ws[r][g]), s.load(&xs[t][g])),
                    &mut scales[r][t],
                );
            }
        }
        let w: [_; R] = array(|r| &w[r].as_chunks::<LANES>().0[g]);
        let x: [_; T] = array(|t| &x[t].as_chunks::<LANES>().0[g]);
        for b in 0..LANES {
            for r in 0..R {
                for t in 0..T {
                    let dot = s.dot32(&w[r][b], &x[t][b]);
                    sums[r][t] = s.fma(dot, s.splat(scales[r][t][b]), sums[r][t]);
                }
            }
        }
    }
    // The last few one by one: the same products of the same scales.
    for b in full * LANES..blocks {
        let lane = b % LANES;
        let xs: [_; T] = array(|t| s.splat(xs[t][full][lane]));
        for r in 0..R {
            let ws = s.splat(ws[r][full][lane]);
            for t in 0..T {
                sums[r][t] = s.fma(s.dot32(&w[r][b], &x[t][b]), s.mul(ws, xs[t]), sums[r][t]);
            }
        }
    }
    if panel.offsets != Offsets::None {
        let len = if panel.offsets == Offsets::Per32 {
            groups
        } else {
            (2 * blocks).div_ceil(LANES)
        };
        let wo: [_; R] = take(panel.offset, row, len);
        let xo: [_; T] = take(panel.x.sum, token, len);
        for g in 0..len {
            for r in 0..R {
                let wo = s.load(&wo[r][g]);
                for t in 0..T {
                    sums[r][t] = s.fma(wo, s.load(&xo[t][g]), sums[r][t]);
                }
            }
        }
    }
    put_tile(s, panel.job, (panel.first + row, token), &sums);
}
