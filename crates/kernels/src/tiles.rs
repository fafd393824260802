//! How tiles of rows by tokens cover a panel: some tokens, for them some columns, for these all rows, so
//! that what is met again soon stays in the nearest cache.

use crate::buffer::Buffer;
use crate::matmul::Job;
use crate::simd::{LANES, Simd, four};
use std::ops::Range;

/// Rows of a panel are a multiple of every tile's rows.
pub(crate) const ROWS: usize = 4;

/// Products of a panel with the activations.
pub(crate) trait Tiles<S: Simd> {
    /// Tokens of a tile of four rows: those whose sums find registers.
    const TOKENS: usize;

    /// R rows by T tokens from `at` on, over some columns; goes on from the sums in `kept [T][R]` unless
    /// the columns are a row's first, and leaves its own there.
    fn tile<const R: usize, const T: usize>(
        &self,
        s: S,
        at: (usize, usize),
        columns: Range<usize>,
        kept: &mut [[f32; LANES]],
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
    /// Room for the sums of `run`.
    pub(crate) fn sums<'b>(&self, to: &'b mut Buffer<f32>) -> &'b mut [[f32; LANES]] {
        let rows = self.rows.len().next_multiple_of(ROWS);
        to.ensure(rows * self.near.1 * LANES).as_chunks_mut().0
    }

    /// Does all products. Sums between visits lie as `[rows][tokens at a time]`.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, s: S, panel: &impl Tiles<S>, sums: &mut [[f32; LANES]]) {
        let rows = self.rows.len().next_multiple_of(ROWS);
        let n = self.job.x.n;
        for first in (0..n).step_by(self.near.1) {
            let tokens = first..n.min(first + self.near.1);
            for column in (0..self.columns).step_by(self.near.0) {
                let columns = column..self.columns.min(column + self.near.0);
                for row in (0..rows).step_by(if S::WIDE { 4 } else { 2 }) {
                    let visit = (tokens.clone(), columns.clone());
                    if S::WIDE {
                        self.row::<S, 4>(s, panel, row, visit, sums);
                    } else {
                        self.row::<S, 2>(s, panel, row, visit, sums);
                    }
                }
            }
        }
    }

    /// R rows by the tokens of a visit; the last columns write their results.
    #[inline(always)]
    fn row<S: Simd, const R: usize>(
        &self,
        s: S,
        panel: &impl Tiles<S>,
        row: usize,
        (tokens, columns): (Range<usize>, Range<usize>),
        sums: &mut [[f32; LANES]],
    ) {
        // Sums that no other visit goes on with need one place.
        let whole = columns.len() == self.columns;
        let place = if whole { 0 } else { row * self.near.1 };
        let sums = &mut sums[place..][..R * tokens.len()];
        let mut t = tokens.start;
        while t < tokens.end {
            let (at, columns) = ((row, t), columns.clone());
            let sums = &mut sums[R * (t - tokens.start)..];
            t += tile::<S, _, R>(s, panel, at, columns, sums, tokens.end - t);
        }
        if columns.end == self.columns {
            put::<S, R>(s, self.job, (self.rows.start + row, tokens.start), sums);
        }
    }
}

/// One tile of at most `left` tokens; returns how many.
#[inline(always)]
fn tile<S: Simd, P: Tiles<S>, const R: usize>(
    s: S,
    panel: &P,
    at: (usize, usize),
    columns: Range<usize>,
    sums: &mut [[f32; LANES]],
    left: usize,
) -> usize {
    let most = if R == 4 { P::TOKENS } else { 2 };
    // Two tiles of two rather than one of three and one of one.
    let tokens = if most == 3 && left == 4 {
        2
    } else {
        left.min(most)
    };
    match tokens {
        4 if most == 4 => panel.tile::<R, 4>(s, at, columns, &mut sums[..4 * R]),
        3 if most >= 3 => panel.tile::<R, 3>(s, at, columns, &mut sums[..3 * R]),
        2 => panel.tile::<R, 2>(s, at, columns, &mut sums[..2 * R]),
        _ => panel.tile::<R, 1>(s, at, columns, &mut sums[..R]),
    }
    tokens
}

/// The sums that a tile begins with.
#[inline(always)]
pub(crate) fn begin<S: Simd, const R: usize, const T: usize>(
    s: S,
    columns: &Range<usize>,
    kept: &[[f32; LANES]],
) -> [[S::F; T]; R] {
    let from = if columns.start == 0 {
        &[[0.0; LANES]; ROWS * 4][..R * T]
    } else {
        &kept[..R * T]
    };
    let mut sums = [[s.splat(0.0); T]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = s.load(&from[t * R + r]);
        }
    }
    sums
}

/// Keeps the sums that a tile ends with.
#[inline(always)]
pub(crate) fn keep<S: Simd, const R: usize, const T: usize>(
    s: S,
    sums: &[[S::F; T]; R],
    kept: &mut [[f32; LANES]],
) {
    let kept = &mut kept[..R * T];
    for (r, sums) in sums.iter().enumerate() {
        for (t, sum) in sums.iter().enumerate() {
            s.store(*sum, &mut kept[t * R + r]);
        }
    }
}

/// Adds up the lanes of sums `[tokens][R]` and writes them from (row, token) on, with the bias; rows
/// beyond the task's are left out.
#[inline(always)]
pub(crate) fn put<S: Simd, const R: usize>(
    s: S,
    job: &Job<'_>,
    (row, token): (usize, usize),
    sums: &[[f32; LANES]],
) {
    let rows = R.min(job.rows.end.saturating_sub(row));
    if rows == 0 {
        return;
    }
    for (t, sums) in sums.as_chunks::<R>().0.iter().enumerate() {
        let four = s.sum4(four!(|r| s.load(&sums[r % R])));
        // SAFETY: the region's tasks have disjoint row ranges, and these rows are in this task's.
        let to = unsafe { job.out.part((token + t) * job.w.rows() + row, rows) };
        match (to.first_chunk_mut::<R>(), four.first_chunk()) {
            (Some(to), Some(all)) => *to = *all,
            _ => to.copy_from_slice(&four[..rows]),
        }
        if let Some(bias) = job.bias {
            for (to, bias) in to.iter_mut().zip(&bias[row..]) {
                *to += bias;
            }
        }
    }
}
