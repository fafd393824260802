//! Rows of activations, prepared once for all products that use them.
//!
//! Quantised weights meet activations rounded to 8 bits, a block of 32 or 16 with one scale, laid out
//! like the weights' unpacked form (see `unpack`), with the sums that weights with a zero point or
//! an offset need. bfloat16 weights meet activations rounded to bfloat16, where the processor
//! multiplies such pairs; other weights meet the floats themselves.

use crate::Type;
use crate::buffer::{Buffer, Shared};
use crate::layout::Layout;
use crate::simd::{LANES, Simd, array, four};
use crate::unpack;

/// Largest magnitude of a rounded activation.
const Q_MAX: f32 = 127.0;
/// Blocks whose largest magnitude is below count as zero: their scale could not be inverted.
const TINY: f32 = 1e-30;

/// Rows of activations `[n, cols]` in the forms that products need.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(crate) n: usize,
    pub(crate) cols: usize,
    x: &'a [f32],
    /// `x` with rows padded to whole vectors on cache lines, where they are not.
    padded: Option<Buffer<f32>>,
    /// Rounded in blocks of 32 and of 16.
    rounded: [Option<Rounded>; 2],
    /// As bfloat16, rows padded with zeros to whole vectors.
    halves: Option<Buffer<u8>>,
}

/// All rows rounded: `q [n][lines][64]` and `[n][steps][16]` of the rest.
#[derive(Debug)]
pub(crate) struct Rounded {
    pub(crate) block: usize,
    pub(crate) layout: Layout,
    q: Buffer<u8>,
    d: Buffer<f32>,
    ints: Buffer<i32>,
    sums: Buffer<f32>,
}

/// One rounded row, lane by lane as in `Layout`: `x ≈ d q`; `ints` the sums of `q`, `sums` those of
/// `d q`. A NaN or an infinity makes `d` NaN, and with it every product.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) q: &'a [[u8; 64]],
    pub(crate) d: &'a [[f32; LANES]],
    pub(crate) ints: &'a [[i32; LANES]],
    pub(crate) sums: &'a [[f32; LANES]],
}

/// `len` rounded up to whole vectors.
#[inline(always)]
pub(crate) fn vectors(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

/// What a product needs of its activations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Floats,
    Halves,
    /// Blocks of so many values.
    Rounded(usize),
}

impl Form {
    /// For weights of a type; `fast` allows rounding, `pairs` that to bfloat16.
    pub(crate) fn of(ty: Type, fast: bool, pairs: bool) -> Form {
        match ty {
            Type::BF16 if fast && pairs => Form::Halves,
            _ if fast && !ty.is_float() => Form::Rounded(unpack::block(ty)),
            _ => Form::Floats,
        }
    }
}

impl<'a> Activations<'a> {
    /// Rows to multiply; forms other than floats must be filled through `tasks` before use.
    pub(crate) fn new(x: &'a [f32], cols: usize, forms: &[Form]) -> Activations<'a> {
        assert!(
            cols > 0 && x.len().is_multiple_of(cols),
            "{} activations in rows of {cols}",
            x.len()
        );
        let n = x.len() / cols;
        // Vectors that straddle cache lines cost double; many tokens are worth a copy.
        let aligned = x.as_ptr().align_offset(64) == 0 || n < 4;
        let pad = forms.contains(&Form::Floats) && !(aligned && cols.is_multiple_of(LANES));
        let padded = pad.then(|| {
            let mut padded = Buffer::zeros(n * vectors(cols));
            let rows = padded.as_mut().chunks_exact_mut(vectors(cols));
            for (to, from) in rows.zip(x.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
            }
            padded
        });
        let rounded = [32, 16].map(|block| {
            let wanted = forms.contains(&Form::Rounded(block)) && cols.is_multiple_of(block);
            wanted.then(|| {
                let layout = Layout::new(block, cols);
                Rounded {
                    block,
                    layout,
                    q: Buffer::used(n * layout.lines() * 64),
                    d: Buffer::used(n * layout.steps() * LANES),
                    ints: Buffer::used(n * layout.steps() * LANES),
                    sums: Buffer::used(n * layout.steps() * LANES),
                }
            })
        });
        let halves = forms
            .contains(&Form::Halves)
            .then(|| Buffer::used(n * cols.div_ceil(2 * LANES) * 64));
        Activations {
            n,
            cols,
            x,
            padded,
            rounded,
            halves,
        }
    }

    /// The rows to fill in each form, token by token.
    pub(crate) fn tasks(&mut self) -> Tasks<'_> {
        Tasks {
            x: self.x,
            cols: self.cols,
            rounded: self.rounded.each_mut().map(|rounded| {
                rounded.as_mut().map(|r| Places {
                    block: r.block,
                    layout: r.layout,
                    q: Shared::new(r.q.as_mut()),
                    d: Shared::new(r.d.as_mut()),
                    ints: Shared::new(r.ints.as_mut()),
                    sums: Shared::new(r.sums.as_mut()),
                })
            }),
            halves: self.halves.as_mut().map(|h| Shared::new(h.as_mut())),
        }
    }

    /// Whether a product finds its form of the activations.
    pub(crate) fn has(&self, form: Form) -> bool {
        match form {
            Form::Floats => self.cols.is_multiple_of(LANES) || self.padded.is_some(),
            Form::Halves => self.halves.is_some(),
            Form::Rounded(block) => self.rounded[usize::from(block == 16)].is_some(),
        }
    }

    /// All rows as whole vectors.
    #[inline(always)]
    pub(crate) fn floats(&self) -> &[[f32; LANES]] {
        match &self.padded {
            Some(padded) => padded.as_ref().as_chunks().0,
            None => self.x.as_chunks().0,
        }
    }

    /// All rows as bfloat16, in whole vectors of 32.
    #[inline(always)]
    pub(crate) fn halves(&self) -> &[[u8; 64]] {
        self.halves
            .as_ref()
            .map_or(&[], |h| h.as_ref().as_chunks().0)
    }

    /// The rows rounded in blocks of `block`. Panics if they were not prepared.
    #[inline(always)]
    pub(crate) fn rounded(&self, block: usize) -> &Rounded {
        match &self.rounded[usize::from(block == 16)] {
            Some(rounded) => rounded,
            None => panic!("activations not prepared in blocks of {block}"),
        }
    }
}

impl Rounded {
    /// The row of a token.
    #[inline(always)]
    pub(crate) fn row(&self, token: usize) -> Row<'_> {
        let (lines, steps) = (self.layout.lines(), self.layout.steps());
        Row {
            q: &self.q.as_ref().as_chunks().0[token * lines..][..lines],
            d: &self.d.as_ref().as_chunks().0[token * steps..][..steps],
            ints: &self.ints.as_ref().as_chunks().0[token * steps..][..steps],
            sums: &self.sums.as_ref().as_chunks().0[token * steps..][..steps],
        }
    }
}

/// The preparation of activations, token by token.
pub(crate) struct Tasks<'a> {
    x: &'a [f32],
    cols: usize,
    rounded: [Option<Places<'a>>; 2],
    halves: Option<Shared<'a, u8>>,
}

/// Where one rounded form goes.
struct Places<'a> {
    block: usize,
    layout: Layout,
    q: Shared<'a, u8>,
    d: Shared<'a>,
    ints: Shared<'a, i32>,
    sums: Shared<'a>,
}

impl Tasks<'_> {
    /// Whether there is anything to do.
    pub(crate) fn any(&self) -> bool {
        self.rounded.iter().any(Option::is_some) || self.halves.is_some()
    }
}

/// Prepares one token's row in all forms.
///
/// # Safety
/// Nobody else accesses this token's rows during the call.
#[inline(always)]
pub(crate) unsafe fn prepare<S: Simd>(s: S, tasks: &Tasks<'_>, token: usize) {
    let x = &tasks.x[token * tasks.cols..(token + 1) * tasks.cols];
    for p in tasks.rounded.iter().flatten() {
        let (lines, steps) = (p.layout.lines() * 64, p.layout.steps() * LANES);
        // SAFETY: these parts belong to this token only, to which the caller has sole access.
        let to = unsafe {
            RowMut {
                q: p.q.part(token * lines, lines).as_chunks_mut().0,
                d: p.d.part(token * steps, steps).as_chunks_mut().0,
                ints: p.ints.part(token * steps, steps).as_chunks_mut().0,
                sums: p.sums.part(token * steps, steps).as_chunks_mut().0,
            }
        };
        if p.block == 32 {
            round::<S, 32>(s, x, p.layout, to);
        } else {
            round::<S, 16>(s, x, p.layout, to);
        }
    }
    if let Some(halves) = &tasks.halves {
        let len = tasks.cols.div_ceil(2 * LANES) * 64;
        // SAFETY: as above.
        let to = unsafe { halves.part(token * len, len) };
        to[2 * x.len()..].fill(0);
        for (to, x) in to.as_chunks_mut().0.iter_mut().zip(x) {
            *to = bfloat(*x).to_le_bytes();
        }
    }
}

/// To bfloat16, ties to even; a NaN stays one.
#[inline(always)]
fn bfloat(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() {
        (bits >> 16) as u16 | 0x40
    } else {
        rounded
    }
}

/// One row of a rounded form, to write.
struct RowMut<'a> {
    q: &'a mut [[u8; 64]],
    d: &'a mut [[f32; LANES]],
    ints: &'a mut [[i32; LANES]],
    sums: &'a mut [[f32; LANES]],
}

/// Rounds one row in blocks of `BLOCK` values.
#[inline(always)]
fn round<S: Simd, const BLOCK: usize>(s: S, x: &[f32], layout: Layout, mut to: RowMut<'_>) {
    let mut scales = [0.0; LANES];
    // The values of a group as they stand.
    let mut bytes = [[0_u8; 64]; 8];
    let (groups, rest) = x.split_at(x.len().min(layout.groups * LANES * BLOCK));
    for (g, x) in groups.chunks(LANES * BLOCK).enumerate() {
        if x.len() < LANES * BLOCK {
            (bytes, scales) = ([[0; 64]; 8], [0.0; LANES]);
        }
        round_blocks::<S, BLOCK>(s, x, &mut bytes, &mut scales);
        let (quarters, _) = bytes.as_flattened().as_chunks::<16>();
        let mut q = [s.bits(0, 0); 8];
        for half in 0..BLOCK / 16 {
            let quarter = |i: usize| &quarters[i * (BLOCK / 16) + half];
            let columns = four!(|i| s.quarters(four!(|l| quarter(4 * i + l))));
            let columns = s.transpose(columns);
            q[4 * half..][..4].copy_from_slice(&columns);
        }
        let d = s.turn(s.load(&scales));
        to.put(s, (g, g * layout.vectors), &q[..layout.vectors], d);
    }
    for (p, x) in rest.chunks(2 * BLOCK).enumerate() {
        (bytes[0], scales) = ([0; 64], [0.0; LANES]);
        round_blocks::<S, BLOCK>(s, x, &mut bytes, &mut scales);
        let d = s.load(&array(|i| scales[i * 4 / BLOCK]));
        let line = layout.groups * layout.vectors + p;
        to.put(s, (layout.groups + p, line), &[s.bytes(&bytes[0])], d);
    }
}

impl RowMut<'_> {
    /// Stores the vectors of a group or a pair, with the sums of its lanes.
    #[inline(always)]
    fn put<S: Simd>(&mut self, s: S, (step, line): (usize, usize), q: &[S::B], d: S::F) {
        let mut sum = s.times(&[0; LANES], 0);
        let ones = s.bits(u64::MAX, 1);
        for (q, to) in q.iter().zip(&mut self.q[line..]) {
            s.store_bytes(*q, to);
            sum = s.dot(sum, ones, *q);
        }
        s.store(d, &mut self.d[step]);
        s.store_ints(sum, &mut self.ints[step]);
        s.store(s.mul(d, s.float(sum)), &mut self.sums[step]);
    }
}

/// Rounds whole blocks, as they stand, with a scale each.
#[inline(always)]
fn round_blocks<S: Simd, const BLOCK: usize>(
    s: S,
    x: &[f32],
    bytes: &mut [[u8; 64]; 8],
    scales: &mut [f32; LANES],
) {
    let zero = s.splat(0.0);
    let magnitude = |x| s.max(x, s.sub(zero, x));
    for ((x, bytes), scales) in x
        .chunks(64)
        .zip(bytes)
        .zip(scales.chunks_exact_mut(64 / BLOCK))
    {
        let (quarters, _) = x.as_chunks::<LANES>();
        let mut rounded = [zero; 4];
        let per = BLOCK / LANES;
        for (b, scale) in scales.iter_mut().enumerate().take(quarters.len() / per) {
            let values: [S::F; 2] = array(|i| s.load(&quarters[b * per + i % per]));
            let largest = s.largest(s.max(magnitude(values[0]), magnitude(values[1])));
            let steps = if largest < TINY {
                0.0
            } else {
                best_steps(s, &values[..per], largest)
            };
            // Only values that are all numbers have a best rounding, or are all tiny.
            let poison = if steps.is_nan() || largest.is_nan() {
                f32::NAN
            } else {
                0.0
            };
            *scale = if steps == 0.0 { 0.0 } else { largest / steps } + poison;
            let inverse = s.splat(if steps == 0.0 { 0.0 } else { steps / largest });
            for i in 0..per {
                rounded[b * per + i] = s.round(s.mul(values[i], inverse));
            }
        }
        s.store_bytes(s.to_bytes(rounded), bytes);
    }
}

/// Into how many steps the largest magnitude is best divided, 127 or up to seven less: the number
/// whose rounding of the block has the least square error, which on average is a sixth below that
/// of 127. NaN if a value is no number.
#[inline(always)]
fn best_steps<S: Simd>(s: S, values: &[S::F], largest: f32) -> f32 {
    let mut best = (f32::INFINITY, f32::NAN);
    let per_step = 1.0 / largest;
    for first in [0, 4] {
        let steps = four!(|i| Q_MAX - (first + i) as f32);
        let mut errors = [s.splat(0.0); 4];
        for (error, steps) in errors.iter_mut().zip(steps) {
            let inverse = s.splat(steps * per_step);
            for x in values {
                let x = s.mul(*x, inverse);
                let off = s.sub(x, s.round(x));
                *error = s.fma(off, off, *error);
            }
        }
        for (error, steps) in s.sum4(errors).into_iter().zip(steps) {
            let error = error * (1.0 / (steps * steps));
            if error < best.0 {
                best = (error, steps);
            }
        }
    }
    best.1
}
