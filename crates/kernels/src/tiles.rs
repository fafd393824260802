//! How tiles of rows by tokens cover a panel: some tokens, for them some columns, for these all rows, so
//! that what is met again soon stays in the nearest cache.

use crate::buffer::Buffer;
use crate::matmul::{FEW, Job};
use crate::simd::{LANES, Simd, four};
use std::ops::Range;

/// Rows of a panel are a multiple of every tile's rows.
pub(crate) const ROWS: usize = 4;

/// How far ahead of its use memory is asked for where rows meet one token: far more than what comes in
/// the time that it takes to come, since it comes in bursts.
pub(crate) const AHEAD: usize = 12 << 10;

/// Products of a panel with the activations.
pub(crate) trait Tiles<S: Simd> {
    /// Tokens of a tile of four rows: those whose sums find registers.
    const TOKENS: usize;

    /// Adds the products of R rows with T tokens from `at` on, over some columns.
    fn tile<const R: usize, const T: usize>(
        &self,
        s: S,
        at: (usize, usize),
        columns: Range<usize>,
        sums: &mut [[S::F; T]; R],
    );
}

/// The order of a product's tiles.
pub(crate) struct Visits<'a> {
    pub(crate) job: &'a Job<'a>,
    /// The panel's rows among the product's.
    pub(crate) rows: Range<usize>,
    /// Columns of a row, in units of the panel's own.
    pub(crate) columns: usize,
    /// Columns and tokens that stay in the nearest cache.
    pub(crate) near: (usize, usize),
}

impl Visits<'_> {
    /// Tokens that meet some columns of all rows before the next columns.
    fn together(&self) -> usize {
        let n = self.job.x.n;
        if n <= FEW { n } else { self.near.1 }
    }

    /// Room for the sums of `run`.
    pub(crate) fn sums<'b>(&self, to: &'b mut Buffer<f32>) -> &'b mut [[f32; LANES]] {
        let rows = self.rows.len().next_multiple_of(ROWS);
        to.ensure(rows * self.together() * LANES).as_chunks_mut().0
    }

    /// Does all products. Sums between visits lie as `[rows][tokens together]`.
    ///
    /// The bytes of the next panel are asked for meanwhile, some at each visit, so that memory and
    /// arithmetic are busy at the same time.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, s: S, panel: &impl Tiles<S>, sums: &mut [[f32; LANES]]) {
        let rows = self.rows.len().next_multiple_of(ROWS);
        let n = self.job.x.n;
        let mut ahead = Ahead::new(self);
        for first in (0..n).step_by(self.together()) {
            let all = first..n.min(first + self.together());
            for column in (0..self.columns).step_by(self.near.0) {
                let columns = column..self.columns.min(column + self.near.0);
                for token in all.clone().step_by(self.near.1) {
                    let tokens = token..all.end.min(token + self.near.1);
                    for row in (0..rows).step_by(if S::WIDE { 4 } else { 2 }) {
                        let visit = (tokens.clone(), columns.clone());
                        let sums = &mut sums[row * self.together()..];
                        if S::WIDE {
                            self.row::<S, _, 4>(
                                s,
                                panel,
                                row,
                                visit,
                                &mut sums[4 * (token - first)..],
                                &mut ahead,
                            );
                        } else {
                            self.row::<S, _, 2>(
                                s,
                                panel,
                                row,
                                visit,
                                &mut sums[2 * (token - first)..],
                                &mut ahead,
                            );
                        }
                    }
                }
            }
        }
    }

    /// R rows by the tokens of a visit.
    #[inline(always)]
    fn row<S: Simd, P: Tiles<S>, const R: usize>(
        &self,
        s: S,
        panel: &P,
        row: usize,
        (tokens, columns): (Range<usize>, Range<usize>),
        sums: &mut [[f32; LANES]],
        ahead: &mut Ahead,
    ) {
        let mut t = tokens.start;
        while t < tokens.end {
            let most = if R == 4 { P::TOKENS } else { 2 };
            let left = tokens.end - t;
            // Two tiles of two rather than one of three and one of one.
            let some = if most == 3 && left == 4 {
                2
            } else {
                left.min(most)
            };
            ahead.ask(s);
            let kept = &mut sums[R * (t - tokens.start)..];
            let (at, columns) = ((row, t), columns.clone());
            match some {
                4 if most == 4 => self.tile::<S, P, R, 4>(s, panel, at, columns, kept),
                3 if most >= 3 => self.tile::<S, P, R, 3>(s, panel, at, columns, kept),
                2 => self.tile::<S, P, R, 2>(s, panel, at, columns, kept),
                _ => self.tile::<S, P, R, 1>(s, panel, at, columns, kept),
            }
            t += some;
        }
    }

    /// One tile: goes on from the sums in `kept [T][R]` unless the columns are a row's first, and leaves
    /// its own there unless they are its last.
    #[inline(always)]
    fn tile<S: Simd, P: Tiles<S>, const R: usize, const T: usize>(
        &self,
        s: S,
        panel: &P,
        (row, token): (usize, usize),
        columns: Range<usize>,
        kept: &mut [[f32; LANES]],
    ) {
        let mut sums = [[s.splat(0.0); T]; R];
        if columns.len() == self.columns {
            panel.tile(s, (row, token), columns, &mut sums);
            self.put(s, (self.rows.start + row, token), &sums);
            return;
        }
        let kept = &mut kept[..R * T];
        if columns.start > 0 {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(&kept[t * R + r]);
                }
            }
        }
        let last = columns.end == self.columns;
        panel.tile(s, (row, token), columns, &mut sums);
        if last {
            self.put(s, (self.rows.start + row, token), &sums);
            return;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                s.store(*sum, &mut kept[t * R + r]);
            }
        }
    }

    /// Adds up the lanes of a tile's sums and writes them from (row, token) on.
    #[inline(always)]
    fn put<S: Simd, const R: usize, const T: usize>(
        &self,
        s: S,
        (row, token): (usize, usize),
        sums: &[[S::F; T]; R],
    ) {
        let of = |t: usize| four!(|r| sums[r % R][t]);
        for (t, token) in (token..token + T).enumerate() {
            put(s, self.job, (row, token), of(t), R);
        }
    }
}

/// The bytes of the panel after one, to be asked for line by line.
struct Ahead {
    at: *const u8,
    lines: usize,
    /// Lines a visit.
    share: usize,
}

impl Ahead {
    fn new(visits: &Visits<'_>) -> Ahead {
        let (job, rows) = (visits.job, &visits.rows);
        let next = rows.end..job.rows.end.min(rows.end + rows.len());
        if next.is_empty() {
            return Ahead {
                at: std::ptr::null(),
                lines: 0,
                share: 0,
            };
        }
        let first = job.w.row(next.start);
        let lines = (next.len() * first.len()).div_ceil(64);
        let count = rows.len().div_ceil(ROWS)
            * visits.columns.div_ceil(visits.near.0)
            * job.x.n.div_ceil(3);
        Ahead {
            at: first.as_ptr(),
            lines,
            share: lines.div_ceil(count.max(1)),
        }
    }

    /// The next share.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S) {
        for _ in 0..self.share.min(self.lines) {
            s.prefetch(self.at);
            self.at = self.at.wrapping_add(64);
        }
        self.lines = self.lines.saturating_sub(self.share);
    }
}

/// Adds up the lanes of the sums of some rows, at most four, and writes them from (row, token) on, with
/// the bias; rows beyond the task's are left out.
#[inline(always)]
pub(crate) fn put<S: Simd>(
    s: S,
    job: &Job<'_>,
    (row, token): (usize, usize),
    sums: [S::F; ROWS],
    rows: usize,
) {
    let four = s.sum4(sums);
    let rows = rows.min(job.rows.end.saturating_sub(row));
    if rows == 0 {
        return;
    }
    // SAFETY: the region's tasks have disjoint row ranges, and these rows are in this task's.
    let to = unsafe { job.out.part(token * job.w.rows() + row, rows) };
    match to.first_chunk_mut::<ROWS>() {
        Some(to) => *to = four,
        None => to.copy_from_slice(&four[..rows]),
    }
    if let Some(bias) = job.bias {
        for (to, bias) in to.iter_mut().zip(&bias[row..]) {
            *to += bias;
        }
    }
}
