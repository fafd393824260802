//! Many tokens: rows are unpacked into a panel, a row to a lane, and met in tiles that end without sums
//! over lanes.

use super::few::{Blocks, FOUR, FourRows};
use super::{Ahead, Stage, get, put};
use crate::activations::{Rounded, TOKENS, Words, ZERO};
use crate::buffer::Buffer;
use crate::floats::Floats;
use crate::layout::{Layout, Part, turned};
use crate::matmul::{self, Job, Next, PANEL_BYTES};
use crate::simd::table::Table;
use crate::simd::{LANES, Simd, array, over_rows};
use crate::unpack;
use std::ops::Range;

/// Rows of a tile, and of a panel a multiple of them.
const fn tile_rows<S: Simd>() -> usize {
    if S::WIDE { 2 * LANES } else { LANES }
}

/// The task's rows in parts whose panels fit their cache.
pub(crate) fn panels(job: &Job<'_>, cols: usize) -> impl Iterator<Item = Range<usize>> {
    // Beside each block's bytes a scale and maybe an offset.
    let block = unpack::block(job.w.ty());
    let row = cols.min(2048) / block * (block + 8);
    let most = PANEL_BYTES / row / (2 * LANES) * 2 * LANES;
    matmul::even(job.rows.clone(), most, 2 * LANES)
}

/// A part of unpacked rows, a row to a lane, filled up to a multiple of 32 rows with anything:
/// `[rows / 16][blocks]` of `[vectors + 1 or 2][16]` words: bytes, scales, offsets. The blocks of the
/// groups come chain by chain (see `index_of`), those of the pairs behind them.
pub(crate) struct Panel<'a> {
    rows: Range<usize>,
    layout: Layout,
    part: Part,
    offsets: bool,
    lines: &'a mut [[u8; 64]],
}

/// What is subtracted from the bytes of every panel.
#[inline(always)]
const fn zero(offsets: bool) -> i32 {
    if offsets { 0 } else { ZERO }
}

/// Lines of 64 bytes of a block of sixteen rows.
#[inline(always)]
const fn lines(vectors: usize, offsets: bool) -> usize {
    vectors + 1 + offsets as usize
}

/// Where a block of a part is in a panel.
#[inline(always)]
fn index_of(part: &Part, block: usize) -> usize {
    let groups = part.groups.len();
    match block < groups * LANES {
        true => block % LANES * groups + block / LANES,
        false => block,
    }
}

impl<'a> Panel<'a> {
    /// Unpacks a part of some rows.
    ///
    /// # Safety
    /// The table's level is available on this machine.
    pub(crate) unsafe fn new(
        table: &Table,
        job: &Job<'_>,
        (rows, part): (Range<usize>, Part),
        stage: &mut Stage<'_>,
        (blocks, to): (&mut Buffer<u8>, &'a mut Buffer<u8>),
    ) -> Panel<'a> {
        let layout = Layout::new(unpack::block(job.w.ty()), job.w.cols());
        let places = part.groups.len() * LANES + part.beyond().len();
        let sixteens = rows.len().div_ceil(2 * LANES) * 2;
        let room = sixteens * places * lines(layout.vectors, true);
        let to: &mut [[u8; 64]] = to.ensure(room * 64).as_chunks_mut().0;
        let mut blocks = Blocks::new(layout, &part, 0..LANES, blocks);
        for (i, first) in rows.clone().step_by(LANES).enumerate() {
            let rows = first..rows.end.min(first + LANES);
            // SAFETY: passed on to the caller.
            unsafe { (table.integer_blocks)(job, rows, &part, &mut blocks, stage) };
            let sixteen = places * lines(layout.vectors, stage.offsets);
            let to = &mut to[i * sixteen..][..sixteen];
            // SAFETY: passed on to the caller.
            unsafe { (table.integer_turn)(&part, &blocks, stage, to) };
        }
        Panel {
            rows,
            layout,
            part,
            offsets: stage.offsets,
            lines: to,
        }
    }

    /// Sixteen rows.
    #[inline(always)]
    fn sixteen(&self, i: usize) -> &[[u8; 64]] {
        let places = self.part.groups.len() * LANES + self.part.beyond().len();
        let len = places * lines(self.layout.vectors, self.offsets);
        &self.lines[i * len..][..len]
    }
}

/// Brings a part of sixteen rows into a panel, a row to a lane.
#[inline(always)]
pub(crate) fn turn<S: Simd>(
    s: S,
    part: &Part,
    from: &Blocks<'_>,
    stage: &Stage<'_>,
    to: &mut [[u8; 64]],
) {
    let (vectors, groups) = (from.vectors, part.groups.len());
    let len = lines(vectors, stage.offsets);
    let raise = (zero(stage.offsets) - stage.zero) as u8;
    for step in 0..groups {
        let fours: [_; FOUR] = array(|i| {
            let at = step * FourRows::lines(vectors);
            from.four(i)[at..][..FourRows::lines(vectors)]
                .as_chunks::<FOUR>()
                .0
        });
        #[expect(clippy::needless_range_loop, reason = "four arrays are read")]
        for v in 0..len {
            let lanes = over_rows(s, array(|r| &fours[r / FOUR][v][r % FOUR]));
            let raise = if v < vectors { raise } else { 0 };
            for block in 0..LANES {
                let at = (block * groups + step) * len + v;
                s.store_bytes(s.raise(lanes[turned(block)], raise), &mut to[at]);
            }
        }
    }
    for (b, block) in part.beyond().enumerate() {
        let (pair, half) = (b / 2, b % 2);
        let q: [_; FOUR] = array(|i| FourRows::of(from.four(i), vectors, groups + pair).q);
        let lanes = over_rows(s, array(|r| &q[r / FOUR][0][r % FOUR]));
        let to = &mut to[block * len..][..len];
        for v in 0..vectors {
            s.store_bytes(s.raise(lanes[8 * half + v], raise), &mut to[v]);
        }
        for (to, scale) in to[vectors..].iter_mut().zip(&stage.pairs[pair][half]) {
            s.store_f32(s.load(scale), to);
        }
    }
}

/// The panel's weights as floats, in their order: the values of `dequantize`.
#[inline(always)]
pub(crate) fn dequantize<S: Simd>(_: S, panel: &Panel<'_>, to: &mut Floats<'_>) {
    let vectors = panel.layout.vectors;
    let (len, blocks) = (lines(vectors, panel.offsets), &panel.part.blocks);
    let word = |line: &[u8; 64], lane: usize| -> [u8; 4] { line.as_chunks().0[lane] };
    let rows = to.values.chunks_exact_mut(to.len);
    for (r, to) in rows.enumerate().take(panel.rows.len()) {
        let lines = panel.sixteen(r / LANES);
        let to = &mut to.as_flattened_mut()[blocks.start * 4 * vectors..];
        let lane = r % LANES;
        for (block, to) in to
            .chunks_exact_mut(4 * vectors)
            .enumerate()
            .take(blocks.len())
        {
            let block = &lines[index_of(&panel.part, block) * len..][..len];
            let scale = f32::from_le_bytes(word(&block[vectors], lane));
            let offset = match panel.offsets {
                true => f32::from_le_bytes(word(&block[vectors + 1], lane)),
                false => 0.0,
            };
            for (line, to) in block.iter().zip(to.as_chunks_mut::<4>().0) {
                for (to, byte) in to.iter_mut().zip(word(line, lane)) {
                    *to = (i32::from(byte) - zero(panel.offsets)) as f32 * scale + offset;
                }
            }
        }
    }
}

/// All tokens over a panel. The bytes of the next are asked for meanwhile.
#[inline(always)]
pub(crate) fn tiles<S: Simd>(s: S, job: &Job<'_>, panel: &Panel<'_>, next: Option<Next>) {
    match (panel.layout.vectors, panel.offsets) {
        (8, false) => visits::<S, 8, false>(s, job, panel, next),
        (8, true) => visits::<S, 8, true>(s, job, panel, next),
        (_, false) => visits::<S, 4, false>(s, job, panel, next),
        (_, true) => visits::<S, 4, true>(s, job, panel, next),
    }
}

/// As `tiles`, for blocks of V words: some tokens after the other, for these all rows.
#[inline(always)]
fn visits<S: Simd, const V: usize, const OFFSETS: bool>(
    s: S,
    job: &Job<'_>,
    panel: &Panel<'_>,
    next: Option<Next>,
) {
    let n = job.x.n;
    let rows = (0..panel.rows.len()).step_by(tile_rows::<S>());
    let mut ahead = Ahead::new(job, next, n.div_ceil(TOKENS) * rows.len());
    let visit = Visit::<V, OFFSETS> {
        job,
        panel,
        rounded: job.x.rounded(4 * V),
    };
    for group in 0..n.div_ceil(TOKENS) {
        let tokens = TOKENS.min(n - group * TOKENS);
        for row in rows.clone() {
            ahead.ask(s);
            let mut at = 0;
            while at < tokens {
                let place = (row, group, at);
                at += match (S::WIDE, tokens - at) {
                    (true, 6) => visit.tile::<S, 2, 6>(s, place),
                    (true, 4 | 5) => visit.tile::<S, 2, 4>(s, place),
                    (true, 2 | 3) => visit.tile::<S, 2, 2>(s, place),
                    (true, _) => visit.tile::<S, 2, 1>(s, place),
                    (false, 2..) => visit.tile::<S, 1, 2>(s, place),
                    (false, _) => visit.tile::<S, 1, 1>(s, place),
                };
            }
        }
    }
}

/// A panel of blocks of V words with the activations it meets.
struct Visit<'a, const V: usize, const OFFSETS: bool> {
    job: &'a Job<'a>,
    panel: &'a Panel<'a>,
    rounded: &'a Rounded,
}

impl<const V: usize, const OFFSETS: bool> Visit<'_, V, OFFSETS> {
    /// The products of A times sixteen rows of the panel with T of the tokens of a group from `at` on,
    /// added to what was put for the columns before. Returns T.
    #[inline(always)]
    fn tile<S: Simd, const A: usize, const T: usize>(
        &self,
        s: S,
        (row, group, at): (usize, usize, usize),
    ) -> usize {
        let Visit {
            job,
            panel,
            rounded,
        } = self;
        assert!(at + T <= TOKENS, "tokens of one group");
        let part = &panel.part;
        let w: [&[[u8; 64]]; A] = array(|a| panel.sixteen(row / LANES + a));
        let x = rounded.words(group, &part.blocks);
        let place =
            |a: usize, t: usize| (panel.rows.start + row + a * LANES, group * TOKENS + at + t);
        let mut sums = [[s.splat(0.0); T]; A];
        if part.index > 0 {
            for (a, sums) in sums.iter_mut().enumerate() {
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = get(s, job, place(a, t));
                }
            }
        }
        let groups = part.groups.len();
        let all = groups * LANES;
        let after = if groups == 1 {
            0
        } else {
            all.min(part.blocks.len())
        };
        for chain in 0..LANES.min(after) {
            let mut parts = [[s.splat(0.0); T]; A];
            for i in 0..part.chain(chain) {
                let at_w = (chain * groups + i) * lines(V, OFFSETS);
                let w = array(|a| &w[a][at_w..]);
                self.block(s, w, x, (i * LANES + chain, at), &mut parts);
            }
            add(s, &mut sums, &parts);
        }
        for block in after..part.blocks.len() {
            let mut one = [[s.splat(0.0); T]; A];
            let w = array(|a| &w[a][block * lines(V, OFFSETS)..]);
            self.block(s, w, x, (block, at), &mut one);
            add(s, &mut sums, &one);
        }
        for (a, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                put(s, job, place(a, t), *sum, panel.part.last);
            }
        }
        T
    }

    /// Adds the products of one block to a chain.
    #[inline(always)]
    fn block<S: Simd, const A: usize, const T: usize>(
        &self,
        s: S,
        w: [&[[u8; 64]]; A],
        x: &[[u8; 4]],
        (block, at): (usize, usize),
        sums: &mut [[S::F; T]; A],
    ) {
        let x = Words::of(x, V, block);
        let w: [&[[u8; 64]]; A] = array(|a| &w[a][..lines(V, OFFSETS)]);
        // Weights with offsets are counted from 0.
        let start: [_; T] = array(|t| s.splat_int(if OFFSETS { 0 } else { x.start(at + t) }));
        let mut ints: [[S::N; T]; A] = [start; A];
        for v in 0..V {
            let w: [_; A] = array(|a| s.bytes(&w[a][v]));
            #[expect(
                clippy::needless_range_loop,
                reason = "the inner loop walks the other index"
            )]
            for t in 0..T {
                let x = s.word(x.q(at + t, v));
                for a in 0..A {
                    ints[a][t] = s.dot(ints[a][t], w[a], x);
                }
            }
        }
        for a in 0..A {
            let scale = s.load_f32(&w[a][V]);
            for t in 0..T {
                let scale = s.mul(scale, s.splat(x.d(at + t)));
                sums[a][t] = s.fma(scale, s.float(ints[a][t]), sums[a][t]);
                if OFFSETS {
                    let offset = s.load_f32(&w[a][V + 1]);
                    sums[a][t] = s.fma(offset, s.splat(x.sum(at + t)), sums[a][t]);
                }
            }
        }
    }
}

/// Adds sums to others.
#[inline(always)]
fn add<S: Simd, const A: usize, const T: usize>(
    s: S,
    sums: &mut [[S::F; T]; A],
    more: &[[S::F; T]; A],
) {
    for a in 0..A {
        for t in 0..T {
            sums[a][t] = s.add(sums[a][t], more[a][t]);
        }
    }
}
