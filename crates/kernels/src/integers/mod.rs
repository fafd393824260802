//! Products of quantised weights with rounded activations: exact integers within a block, f32 over
//! blocks. `one` unpacks in registers for one token, `few` into a small panel, and what they multiply is
//! added up here; `many` turns what `few` unpacks into a larger panel. All do the same operations on an
//! element in the same order (see `matmul`).

use crate::activations::Step;
use crate::buffer::Buffer;
use crate::layout::{Layout, turned};
use crate::matmul::{FEW, Job, Next};
use crate::simd::{LANES, Simd, array, over_rows};
use crate::unpack::{self, Pair};

pub(crate) mod few;
pub(crate) mod many;
pub(crate) mod one;

/// Products of sixteen rows with few tokens: what differs by format is done once they are here.
pub(crate) struct Stage<'a> {
    /// `[n][parts + pairs]`: the chains of a part or the integers of a pair, row by row.
    lines: &'a mut [[[u8; 64]; LANES]],
    /// Of a row.
    parts: usize,
    len: usize,
    /// Of pairs, by pair and block of it: scales and offsets, by row.
    pairs: [[[[f32; LANES]; 2]; 2]; PAIRS],
    /// What is subtracted from each byte.
    zero: i32,
    offsets: bool,
}

/// Most pairs that a row leaves.
const PAIRS: usize = 2;

impl<'a> Stage<'a> {
    /// Room for the rows of a layout with few tokens; with none if there are many.
    pub(crate) fn new(layout: Layout, n: usize, to: &'a mut Buffer<u8>) -> Stage<'a> {
        let len = layout.count() + layout.pairs;
        let n = if n <= FEW { n } else { 0 };
        Stage {
            lines: to
                .ensure(n * len * LANES * 64)
                .as_chunks_mut()
                .0
                .as_chunks_mut()
                .0,
            parts: layout.count(),
            len,
            pairs: [[[[0.0; LANES]; 2]; 2]; PAIRS],
            zero: 0,
            offsets: false,
        }
    }

    /// The scales and offsets of a row's pair.
    #[inline(always)]
    fn keep_scales<S: Simd>(&mut self, pair: usize, row: usize, from: &Pair<S>) {
        for (half, to) in self.pairs[pair].iter_mut().enumerate() {
            to[0][row] = from.scale[half];
            to[1][row] = from.offset[half];
        }
    }
}

/// The sums of these products for sixteen rows from `row` on with all tokens, a row to a lane.
#[inline(always)]
pub(crate) fn sums<S: Simd>(s: S, job: &Job<'_>, row: usize, stage: &Stage<'_>) {
    let rounded = job.x.rounded(unpack::block(job.w.ty()));
    let layout = rounded.layout;
    for (token, lines) in stage.lines.chunks_exact(stage.len).enumerate() {
        let (parts, pairs) = lines.split_at(stage.parts);
        let mut sum = s.splat(0.0);
        for lines in parts {
            // Chains without a block are zero.
            let lanes = over_rows(s, array(|r| &lines[r]));
            for block in 0..LANES {
                sum = s.add(sum, s.as_floats(lanes[turned(block)]));
            }
        }
        for (p, lines) in pairs.iter().enumerate() {
            let x = Step::of(rounded.row(token), layout.vectors, layout.groups + p);
            let blocks = (layout.blocks - layout.groups * LANES - 2 * p).min(2);
            let lanes = over_rows(s, array(|r| &lines[r]));
            for (half, [scale, offset]) in stage.pairs[p].iter().enumerate().take(blocks) {
                // The words of a pair's block are in eight lanes.
                let mut ints = s.as_ints(lanes[8 * half]);
                for lane in 1..8 {
                    ints = s.add_ints(ints, s.as_ints(lanes[8 * half + lane]));
                }
                let words = x.ints.as_chunks::<4>().0;
                let count: i32 = (0..8)
                    .map(|i| i32::from_le_bytes(words[8 * half + i]))
                    .sum();
                let ints = s.add_ints(ints, s.splat_int(-stage.zero * count));
                let d = f32::from_le_bytes(x.d.as_chunks::<4>().0[8 * half]);
                let mut product = s.mul(s.mul(s.load(scale), s.splat(d)), s.float(ints));
                if stage.offsets {
                    product = s.fma(s.load(offset), s.splat(d * count as f32), product);
                }
                sum = s.add(sum, product);
            }
        }
        put(s, job, (row, token), sum, true);
    }
}

/// Asks for the bytes that lie `ahead` of `data`: the rows lie behind each other, and after the last of a
/// matrix mostly come those of the next.
#[inline(always)]
fn ask_ahead<S: Simd>(s: S, data: &[u8], ahead: usize) {
    for at in (0..data.len()).step_by(64) {
        s.prefetch(data.as_ptr().wrapping_add(ahead + at));
    }
}

/// Writes sums of sixteen rows of a token from (row, token) on, where they are the task's, at last with
/// the bias.
#[inline(always)]
fn put<S: Simd>(s: S, job: &Job<'_>, (row, token): (usize, usize), sum: S::F, last: bool) {
    // SAFETY: in use here only.
    let Some(to) = (unsafe { outputs(job, (row, token)) }) else {
        return;
    };
    let bias = job.bias.filter(|_| last).map(|bias| &bias[row..]);
    match to.first_chunk_mut::<LANES>() {
        Some(to) => {
            let sum = match bias.and_then(|b| b.first_chunk()) {
                Some(bias) => s.add(sum, s.load(bias)),
                None => sum,
            };
            s.store(sum, to);
        }
        None => {
            let mut all = [0.0; LANES];
            s.store(sum, &mut all);
            for (i, to) in to.iter_mut().enumerate() {
                *to = all[i] + bias.map_or(0.0, |b| b[i]);
            }
        }
    }
}

/// What `put` has written.
#[inline(always)]
fn get<S: Simd>(s: S, job: &Job<'_>, at: (usize, usize)) -> S::F {
    let mut all = [0.0; LANES];
    // SAFETY: in use here only.
    if let Some(from) = unsafe { outputs(job, at) } {
        if let Some(from) = from.first_chunk() {
            return s.load(from);
        }
        all[..from.len()].copy_from_slice(from);
    }
    s.load(&all)
}

/// The outputs of at most sixteen rows of a token from (row, token) on that are the task's.
///
/// # Safety
/// No other outputs of the task are in use while these are.
#[inline(always)]
unsafe fn outputs<'a>(job: &Job<'a>, (row, token): (usize, usize)) -> Option<&'a mut [f32]> {
    let rows = LANES.min(job.rows.end.checked_sub(row.max(job.rows.start))?);
    // SAFETY: the region's tasks have disjoint row ranges, and these rows are in this task's; what this
    // returns lives shorter than the call that asked for it.
    Some(unsafe { job.out.part(token * job.w.rows() + row, rows) })
}

/// The bytes of the next panel, to be asked for line by line, some at each visit, so that memory and
/// arithmetic are busy at the same time.
struct Ahead<'a> {
    job: &'a Job<'a>,
    next: Next,
    /// Of the first row of `next`: what comes next, and how many lines.
    at: *const u8,
    left: usize,
    /// Lines of a row, and a visit.
    lines: usize,
    share: usize,
}

impl<'a> Ahead<'a> {
    /// Over so many visits.
    #[inline(always)]
    fn new(job: &'a Job<'a>, next: Option<Next>, visits: usize) -> Ahead<'a> {
        let next = next.unwrap_or(Next {
            rows: 0..0,
            bytes: 0..0,
        });
        // One more, for rows begin anywhere in a line.
        let lines = next.bytes.len().div_ceil(64) + 1;
        let mut ahead = Ahead {
            job,
            at: std::ptr::null(),
            left: 0,
            lines,
            share: (next.rows.len() * lines).div_ceil(visits.max(1)),
            next,
        };
        ahead.begin();
        ahead
    }

    /// The first row of what is left.
    #[inline(always)]
    fn begin(&mut self) {
        if !self.next.rows.is_empty() {
            let row = self.job.w.row(self.next.rows.start).as_ptr();
            self.at = row.wrapping_add(self.next.bytes.start);
            self.left = self.lines;
        }
    }

    /// The next share.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S) {
        let mut share = self.share;
        while share > 0 && self.left > 0 {
            let some = share.min(self.left);
            for _ in 0..some {
                s.prefetch(self.at);
                self.at = self.at.wrapping_add(64);
            }
            (share, self.left) = (share - some, self.left - some);
            if self.left == 0 {
                self.next.rows.start += 1;
                self.begin();
            }
        }
    }
}
