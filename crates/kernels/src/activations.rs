//! Rows of activations, prepared once for all products that use them.
//!
//! Quantised weights meet activations rounded to 8 bits, a block of 32 or 16 with one scale, with the
//! sums that weights with a zero point or an offset need: those of few tokens laid out like the weights'
//! unpacked form (see `unpack`), those of many word by word, as `integers` meets them. bfloat16 weights
//! meet activations rounded to bfloat16, where the processor multiplies such pairs; other weights meet
//! the floats themselves.

use crate::Type;
use crate::buffer::{Buffer, Shared};
use crate::layout::{Layout, turned};
use crate::matmul::FEW;
use crate::simd::{LANES, Simd, array, four, over_rows};
use crate::unpack;
use std::ops::Range;

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
    /// As bfloat16, rows padded with zeros to whole lines: `[lines / HALVES_PART][n][HALVES_PART]`, the
    /// last part as short as it is.
    halves: Option<Buffer<u8>>,
}

/// All rows rounded: up to `FEW` as `[n][steps]` of `Step`, more as `[n / TOKENS][blocks]` of `Words`.
#[derive(Debug)]
pub(crate) struct Rounded {
    pub(crate) block: usize,
    pub(crate) layout: Layout,
    lines: Buffer<u8>,
}

/// Tokens whose rounded blocks lie together.
pub(crate) const TOKENS: usize = 6;

/// One step of a rounded row, lane by lane as in `Layout`: `x ≈ d q`; `ints` the sums of `q` and
/// `sums` those of `d q`. A NaN or an infinity makes `d` NaN, and with it every product. A pair has
/// the first vector only.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) q: &'a [[u8; 64]],
    pub(crate) d: &'a [u8; 64],
    pub(crate) ints: &'a [u8; 64],
    pub(crate) sums: &'a [u8; 64],
}

impl<'a> Step<'a> {
    /// Lines of 64 bytes for so many vectors.
    #[inline(always)]
    pub(crate) const fn lines(vectors: usize) -> usize {
        vectors + 3
    }

    /// The step at `step` of what begins at `lines`.
    #[inline(always)]
    pub(crate) fn of(lines: &'a [[u8; 64]], vectors: usize, step: usize) -> Step<'a> {
        let lines = &lines[step * Step::lines(vectors)..][..Step::lines(vectors)];
        Step {
            q: &lines[..vectors],
            d: &lines[vectors],
            ints: &lines[vectors + 1],
            sums: &lines[vectors + 2],
        }
    }
}

/// What is subtracted from unpacked bytes of weights without offsets when they meet several tokens.
pub(crate) const ZERO: i32 = 128;

/// One block of some tokens' rounded rows, a token after the other: of each the words that a `Step` has
/// in one lane, but for `start`, what `ZERO` subtracts from the block's products.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    words: &'a [[u8; 4]],
    vectors: usize,
}

impl<'a> Words<'a> {
    /// The block at `block` of what begins at `words`, of so many words of bytes.
    #[inline(always)]
    pub(crate) fn of(words: &'a [[u8; 4]], vectors: usize, block: usize) -> Words<'a> {
        let len = Step::lines(vectors) * TOKENS;
        Words {
            words: &words[block * len..][..len],
            vectors,
        }
    }

    /// Word v of a token's bytes.
    #[inline(always)]
    pub(crate) fn q(self, token: usize, v: usize) -> &'a [u8; 4] {
        &self.words[token * Step::lines(self.vectors) + v]
    }

    /// A token's scale.
    #[inline(always)]
    pub(crate) fn d(self, token: usize) -> f32 {
        f32::from_le_bytes(*self.q(token, self.vectors))
    }

    /// What a token's products start from.
    #[inline(always)]
    pub(crate) fn start(self, token: usize) -> i32 {
        i32::from_le_bytes(*self.q(token, self.vectors + 1))
    }

    /// The sum of a token's values.
    #[inline(always)]
    pub(crate) fn sum(self, token: usize) -> f32 {
        f32::from_le_bytes(*self.q(token, self.vectors + 2))
    }
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
                    lines: Buffer::used(rounded_bytes(layout, n)),
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
            n: self.n,
            cols: self.cols,
            rounded: self.rounded.each_mut().map(|rounded| {
                rounded.as_mut().map(|r| Places {
                    block: r.block,
                    layout: r.layout,
                    lines: Shared::new(r.lines.as_mut()),
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

    /// All rows as bfloat16, part by part.
    #[inline(always)]
    pub(crate) fn all_halves(&self) -> &[[u8; 64]] {
        self.halves
            .as_ref()
            .map_or(&[], |h| h.as_ref().as_chunks().0)
    }

    /// A part of a token's row as bfloat16.
    #[inline(always)]
    pub(crate) fn halves(&self, token: usize, part: usize) -> &[[u8; 64]] {
        let (at, len) = halves_place(self.n, self.cols, token, part);
        &self.all_halves()[at..][..len]
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

/// Bytes of some tokens' rounded rows.
fn rounded_bytes(layout: Layout, n: usize) -> usize {
    let step = Step::lines(layout.vectors);
    match n {
        ..=FEW => n * layout.steps() * step * 64,
        _ => n.div_ceil(TOKENS) * layout.blocks * step * TOKENS * 4,
    }
}

impl Rounded {
    /// The row of one of few tokens, as `Step`s.
    #[inline(always)]
    pub(crate) fn row(&self, token: usize) -> &[[u8; 64]] {
        let lines = self.layout.steps() * Step::lines(self.layout.vectors);
        &self.lines.as_ref().as_chunks().0[token * lines..][..lines]
    }

    /// Some blocks of the tokens `group * TOKENS..`, as `Words`.
    #[inline(always)]
    pub(crate) fn words(&self, group: usize, blocks: &Range<usize>) -> &[[u8; 4]] {
        let step = Step::lines(self.layout.vectors) * TOKENS;
        let words = self.lines.as_ref().as_chunks().0;
        &words[(group * self.layout.blocks + blocks.start) * step..][..blocks.len() * step]
    }
}

/// Lines of a row of bfloat16 that lie together: of a few tokens these stay in the nearest cache, where
/// whole rows behind each other would meet in the same places.
pub(crate) const HALVES_PART: usize = 32;

/// Where a part of a token's row of bfloat16 lies, in lines, and how many.
#[inline(always)]
fn halves_place(n: usize, cols: usize, token: usize, part: usize) -> (usize, usize) {
    let before = part * HALVES_PART;
    let len = (cols.div_ceil(2 * LANES) - before).min(HALVES_PART);
    (before * n + token * len, len)
}

/// The preparation of activations, token by token.
pub(crate) struct Tasks<'a> {
    x: &'a [f32],
    n: usize,
    cols: usize,
    rounded: [Option<Places<'a>>; 2],
    halves: Option<Shared<'a, u8>>,
}

/// Where one rounded form goes.
struct Places<'a> {
    block: usize,
    layout: Layout,
    lines: Shared<'a, u8>,
}

impl Tasks<'_> {
    /// Whether there is anything to do.
    pub(crate) fn any(&self) -> bool {
        self.rounded.iter().any(Option::is_some) || self.halves.is_some()
    }
}

/// Prepares the rows of some tokens in all forms.
///
/// # Safety
/// Nobody else accesses these tokens' rows during the call, and where there are more than `FEW` tokens,
/// nor those of the other tokens of the same `TOKENS`.
#[inline(always)]
pub(crate) unsafe fn prepare<S: Simd>(s: S, tasks: &Tasks<'_>, tokens: Range<usize>) {
    let cols = tasks.cols;
    let x = &tasks.x[tokens.start * cols..tokens.end * cols];
    for p in tasks.rounded.iter().flatten() {
        let few = tasks.n <= FEW;
        assert!(few || tokens.start.is_multiple_of(TOKENS), "whole groups");
        let step = Step::lines(p.layout.vectors);
        let (at, len) = if few {
            let row = p.layout.steps() * step * 64;
            (tokens.start * row, tokens.len() * row)
        } else {
            let group = p.layout.blocks * step * TOKENS * 4;
            let count = tokens.len().div_ceil(TOKENS);
            (tokens.start / TOKENS * group, count * group)
        };
        // SAFETY: these parts belong to these tokens only, to which the caller has sole access.
        let to = unsafe { p.lines.part(at, len) };
        match (few, p.block) {
            (true, 32) => round_steps::<S, 32>(s, x, cols, p.layout, to.as_chunks_mut().0),
            (true, _) => round_steps::<S, 16>(s, x, cols, p.layout, to.as_chunks_mut().0),
            (false, 32) => round_words::<S, 32>(s, x, p.layout, to.as_chunks_mut().0),
            (false, _) => round_words::<S, 16>(s, x, p.layout, to.as_chunks_mut().0),
        }
    }
    if let Some(halves) = &tasks.halves {
        for (token, x) in tokens.zip(x.chunks_exact(cols)) {
            for (part, x) in x.chunks(HALVES_PART * 2 * LANES).enumerate() {
                let (at, len) = halves_place(tasks.n, cols, token, part);
                // SAFETY: as above.
                let to = unsafe { halves.part(at * 64, len * 64) };
                to[2 * x.len()..].fill(0);
                for (to, x) in to.as_chunks_mut().0.iter_mut().zip(x) {
                    *to = bfloat(*x).to_le_bytes();
                }
            }
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

/// Rounds rows of `cols` values in blocks of `BLOCK`, to `Step`s.
#[inline(always)]
fn round_steps<S: Simd, const BLOCK: usize>(
    s: S,
    x: &[f32],
    cols: usize,
    layout: Layout,
    to: &mut [[u8; 64]],
) {
    let step = Step::lines(layout.vectors);
    let rows = to.chunks_exact_mut(layout.steps() * step);
    for (x, to) in x.chunks_exact(cols).zip(rows) {
        let (groups, pairs) = to.split_at_mut(layout.groups * step);
        for (x, to) in x.chunks(LANES * BLOCK).zip(groups.chunks_exact_mut(step)) {
            Rows::of::<S, BLOCK>(s, x).put(to);
        }
        // The blocks beyond, each word a lane.
        let rest = &x[cols.min(layout.groups * LANES * BLOCK)..];
        if rest.is_empty() {
            continue;
        }
        let all = Rows::of::<S, BLOCK>(s, rest);
        let (blocks, per) = (rest.len() / BLOCK, BLOCK / 4);
        for (p, to) in pairs.chunks_exact_mut(step).enumerate() {
            let lane = |i: usize| turned(2 * p + i / per);
            let there = |i: usize| 2 * p + i / per < blocks;
            let mut q = [0; 64];
            for (i, word) in q.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                if there(i) {
                    *word = all.lines[i % per].as_chunks().0[lane(i)];
                }
            }
            let d = |i: usize| f32::from_le_bytes(all.lines[8].as_chunks().0[lane(i)]);
            let d = array(|i| if there(i) { d(i) } else { 0.0 });
            Rows::new(s, &[s.bytes(&q)], s.load(&d)).put(to);
        }
    }
}

/// Rounds rows in blocks of `BLOCK`, to `Words`.
#[inline(always)]
fn round_words<S: Simd, const BLOCK: usize>(s: S, x: &[f32], layout: Layout, to: &mut [[u8; 4]]) {
    let len = Step::lines(BLOCK / 4);
    let (mut token, mut block) = (0, 0);
    for x in x.chunks(LANES * BLOCK) {
        let mut all = Rows::of::<S, BLOCK>(s, x).lines;
        let vectors = BLOCK / 4;
        for start in all[9].as_chunks_mut::<4>().0 {
            *start = (-ZERO * i32::from_le_bytes(*start)).to_le_bytes();
        }
        all.copy_within(8..11, vectors);
        // Words beside each other, block by block.
        let lanes = over_rows(s, array(|r| &all[r]));
        for i in 0..x.len() / BLOCK {
            let at = ((token / TOKENS * layout.blocks + block) * TOKENS + token % TOKENS) * len;
            let mut words = [0; 64];
            s.store_bytes(lanes[turned(i)], &mut words);
            to[at..][..len].copy_from_slice(&words.as_chunks().0[..len]);
            block += 1;
            if block == layout.blocks {
                (token, block) = (token + 1, 0);
            }
        }
    }
}

/// Sixteen rounded blocks in lanes: eight vectors of bytes, then what a `Step` has behind them, then
/// nothing.
struct Rows {
    lines: [[u8; 64]; LANES],
}

impl Rows {
    /// Up to sixteen blocks, filled up with zeros.
    #[inline(always)]
    fn of<S: Simd, const BLOCK: usize>(s: S, x: &[f32]) -> Rows {
        let (q, d) = if x.len() == LANES * BLOCK {
            round_lanes::<S, BLOCK>(s, x)
        } else {
            let mut all = [0.0; LANES * 32];
            all[..x.len()].copy_from_slice(x);
            round_lanes::<S, BLOCK>(s, &all)
        };
        Rows::new(s, &q[..BLOCK / 4], d)
    }

    /// Bytes and their scales, with the sums of each lane.
    #[inline(always)]
    fn new<S: Simd>(s: S, q: &[S::B], d: S::F) -> Rows {
        let mut lines = [[0; 64]; LANES];
        let mut sum = s.times(&[0; 64], 0);
        let ones = s.bits(u64::MAX, 1);
        for (q, to) in q.iter().zip(&mut lines) {
            s.store_bytes(*q, to);
            sum = s.dot(sum, ones, *q);
        }
        s.store_f32(d, &mut lines[8]);
        s.store_ints(sum, &mut lines[9]);
        s.store_f32(s.mul(d, s.float(sum)), &mut lines[10]);
        Rows { lines }
    }

    /// As a step.
    #[inline(always)]
    fn put(&self, to: &mut [[u8; 64]]) {
        let vectors = to.len() - 3;
        to[..vectors].copy_from_slice(&self.lines[..vectors]);
        to[vectors..].copy_from_slice(&self.lines[8..11]);
    }
}

/// Rounds 16 blocks, a block a lane as in `Layout`: the vectors of a group, and their scales.
///
/// The largest magnitude is divided into 127 steps or up to seven less: the number whose rounding of
/// the block has the least square error, which on average is a sixth below that of 127.
#[inline(always)]
fn round_lanes<S: Simd, const BLOCK: usize>(s: S, x: &[f32]) -> ([S::B; 8], S::F) {
    let x = in_lanes::<S, BLOCK>(s, x);
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let mut largest = zero;
    for x in &x {
        largest = s.max(largest, s.max(*x, s.sub(zero, *x)));
    }
    // Blocks that count as zero are rounded as if they were larger.
    let some = s.max(largest, s.splat(TINY));
    let per_step = s.div(one, some);
    // A NaN or an infinity among the values makes every error NaN, and no number of steps the best.
    let (mut least, mut best) = (s.splat(f32::INFINITY), s.splat(f32::NAN));
    for first in [0, 4] {
        let steps = four!(|i| s.splat(Q_MAX - (first + i) as f32));
        let inverse = four!(|i| s.mul(steps[i], per_step));
        let mut errors = [zero; 4];
        for x in &x {
            for i in 0..4 {
                let x = s.mul(*x, inverse[i]);
                let off = s.off(x);
                errors[i] = s.fma(off, off, errors[i]);
            }
        }
        for i in 0..4 {
            let error = s.div(errors[i], s.mul(steps[i], steps[i]));
            best = s.pick(error, least, steps[i], best);
            least = s.pick(error, least, error, least);
        }
    }
    let inverse = s.mul(best, per_step);
    let d = s.pick(
        largest,
        s.splat(TINY),
        s.mul(zero, best),
        s.div(largest, best),
    );
    let mut q = [s.bits(0, 0); 8];
    for (q, x) in q.iter_mut().zip(x.as_chunks::<4>().0) {
        *q = s.to_words(four!(|i| s.round(s.mul(x[i], inverse))));
    }
    (q, d)
}

/// The values of 16 blocks, each block in its lane; vector v holds the values v.
#[inline(always)]
fn in_lanes<S: Simd, const BLOCK: usize>(s: S, x: &[f32]) -> [S::F; BLOCK] {
    let x = &x[..LANES * BLOCK].as_chunks::<4>().0;
    let mut all = [s.splat(0.0); BLOCK];
    for (v, to) in all.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let quarter = |i: usize, l: usize| &x[(4 * i + l) * (BLOCK / 4) + v];
        let columns = four!(|i| s.float_quarters(four!(|l| quarter(i, l))));
        let columns = s.transpose(columns);
        *to = four!(|k| s.as_floats(columns[k]));
    }
    all
}
