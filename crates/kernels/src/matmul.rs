//! Products of weight rows with activation rows: out[n, rows] = x[n, cols] · wᵀ + bias.
//!
//! One element is always computed by the same operations in the same order, whatever the number of
//! tokens, the tile, the panel or the split over threads, so its bits depend on its own row and
//! token only. For quantised weights in `fast`: of each part of a row (2048 columns at most), 16 chains,
//! each of which adds up every sixteenth block, as `sum = fma(weight scale · activation scale, exact
//! integer product of the block, sum)`, then the block's offset times its sum of activations; the
//! chains one after the other, part by part, and the few blocks that fill no group last, one by one.
//! For floats: 16 lanes, each of which adds up every sixteenth value; at last the lanes, in halves.
//!
//! Idea: for one token a row's groups are unpacked in registers and multiplied at once, straight
//! from the file's bytes, a block to a lane. For some, a few rows are unpacked in the same form into a
//! panel in a core's own cache. For many they are turned there, a row to a lane, so that a tile ends
//! without sums over lanes, at any length of rows.
//!
//! Why fast: an integer product of 64 pairs is one instruction, and only the sum over blocks needs
//! an order, once every eight of them; a row is unpacked once per call; tiles share their loads.

use crate::Matrix;
use crate::activations::{Activations, Form};
use crate::buffer::{Buffer, Scratch, Shared};
use crate::floats::{Floats, Halves};
use crate::integers::Stage;
use crate::integers::few::Blocks;
use crate::integers::many::{self, Panel};
use crate::layout::{Layout, Part};
use crate::simd::LANES;
use crate::simd::table::Table;
use crate::tiles::ROWS;
use crate::unpack;
use std::ops::Range;

/// Panel size in bytes: a share of a core's second-level cache.
pub(crate) const PANEL_BYTES: usize = 256 << 10;
/// Rows of a panel, where it has to be twice as large for them.
const PANEL_ROWS: usize = 48;
/// A share of a core's first-level cache for activations.
const NEAR_BYTES: usize = 24 << 10;
/// Up to so many tokens count as few: they do not need a larger panel than one of few rows, and their
/// rounded activations lie as that panel does.
pub(crate) const FEW: usize = 24;
/// Of sixteen rows, those that few tokens meet at once: what is unpacked of them stays in the nearest
/// cache.
const FEW_ROWS: [Range<usize>; 2] = [0..8, 8..LANES];

/// Some rows of one product, the work of one task.
pub(crate) struct Job<'a> {
    pub(crate) w: Matrix<'a>,
    pub(crate) rows: Range<usize>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) x: &'a Activations<'a>,
    /// `[n, w.rows()]`; this task alone writes the columns `rows`.
    pub(crate) out: Shared<'a>,
    /// The form of the activations to use.
    pub(crate) form: Form,
}

/// Does the work of one task.
///
/// # Safety
/// The table's level is available on this machine.
pub(crate) unsafe fn task(table: &Table, job: &Job<'_>, scratch: &mut Scratch) {
    let (n, cols) = (job.x.n, job.w.cols());
    let Scratch {
        bytes,
        stage,
        turned,
        floats,
        sums,
    } = scratch;
    // SAFETY: passed on to the caller.
    unsafe {
        match job.form {
            Form::Rounded(block) => {
                let layout = Layout::new(block, cols);
                let mut stage = Stage::new(layout, n, stage);
                if n <= FEW {
                    few_tokens(table, job, layout, &mut stage, bytes);
                    return;
                }
                let mut all = many::panels(job, cols)
                    .flat_map(|rows| layout.parts().map(move |part| (rows.clone(), part)))
                    .peekable();
                while let Some(at) = all.next() {
                    let panel = Panel::new(table, job, at, &mut stage, (bytes, turned));
                    let next = all
                        .peek()
                        .map(|(rows, part)| Next::new(job, layout, rows, part));
                    (table.integer_tiles)(job, &panel, next);
                }
            }
            Form::Halves if n == 1 => (table.half_rows)(job),
            Form::Halves => {
                for rows in panels(job, 2 * cols) {
                    (table.half_tiles)(job, &Halves::new(job, rows, bytes), sums);
                }
            }
            Form::Floats => {
                for rows in panels(job, 4 * cols) {
                    let mut panel = Floats::new(&rows, cols, floats);
                    if job.w.ty().is_float() {
                        (table.float_panel)(job, rows, &mut panel);
                    } else {
                        let layout = Layout::new(unpack::block(job.w.ty()), cols);
                        let mut stage = Stage::new(layout, 0, stage);
                        for part in layout.parts() {
                            let at = (rows.clone(), part);
                            let integers = Panel::new(table, job, at, &mut stage, (bytes, turned));
                            (table.dequantize)(&integers, &mut panel);
                        }
                    }
                    (table.float_tiles)(job, &panel, sums);
                }
            }
        }
    }
}

/// As `task`, for quantised rows and few tokens: sixteen rows after the other.
///
/// # Safety
/// As `task`.
unsafe fn few_tokens(
    table: &Table,
    job: &Job<'_>,
    layout: Layout,
    stage: &mut Stage<'_>,
    bytes: &mut Buffer<u8>,
) {
    let end = job.rows.end;
    let firsts = job.rows.clone().step_by(LANES);
    if job.x.n == 1 {
        for first in firsts {
            // SAFETY: passed on to the caller.
            unsafe {
                (table.integer_products)(job, first..end.min(first + LANES), stage);
                (table.integer_sums)(job, first, stage);
            }
        }
        return;
    }
    let mut all = firsts
        .flat_map(|first| layout.parts().map(move |part| (first, part)))
        .flat_map(|(first, part)| FEW_ROWS.map(|some| (first, part.clone(), some)))
        .map(|(first, part, some)| {
            let rows = first + some.start..end.min(first + some.end);
            (first, part, some, rows)
        })
        .filter(|(.., rows)| !rows.is_empty())
        .peekable();
    while let Some((first, part, some, rows)) = all.next() {
        let next = all.peek();
        let ahead = next.map(|(_, part, _, rows)| Next::new(job, layout, rows, part));
        let mut blocks = Blocks::new(layout, &part, some, bytes);
        // SAFETY: passed on to the caller.
        unsafe {
            (table.integer_blocks)(job, rows, &part, &mut blocks, stage);
            (table.integer_some)(job, &part, &blocks, stage, ahead);
            if next.is_none_or(|next| next.0 != first) {
                (table.integer_sums)(job, first, stage);
            }
        }
    }
}

/// Bytes of the panel after one, to be asked for while this one is met.
#[derive(Clone)]
pub(crate) struct Next {
    pub(crate) rows: Range<usize>,
    /// Of each row.
    pub(crate) bytes: Range<usize>,
}

impl Next {
    fn new(job: &Job<'_>, layout: Layout, rows: &Range<usize>, part: &Part) -> Next {
        let row = job.w.row(rows.start).len();
        let at = |block: usize| row * block / layout.blocks;
        Next {
            rows: rows.clone(),
            bytes: at(part.blocks.start)..at(part.blocks.end),
        }
    }
}

/// The task's rows in parts that fit a panel.
fn panels(job: &Job<'_>, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let fit = |bytes: usize| bytes / row_bytes.max(1);
    let most = if job.x.n <= FEW {
        // A few tokens meet each row a few times: their panel should stay close.
        match job.w.ty().is_float() {
            true => 2 * ROWS,
            // Sixteen rows are unpacked together.
            false => LANES,
        }
    } else {
        // Activations of long rows come from a far cache for each panel: it should have some rows.
        fit(PANEL_BYTES).max(PANEL_ROWS.min(fit(2 * PANEL_BYTES)))
    };
    even(job.rows.clone(), most, ROWS)
}

/// Rows in parts of about one size, since each panel passes over all activations: of `most` rows, as a
/// multiple of `unit`.
pub(crate) fn even(
    rows: Range<usize>,
    most: usize,
    unit: usize,
) -> impl Iterator<Item = Range<usize>> {
    let parts = rows.len().div_ceil(most.max(unit)).max(1);
    let step = rows.len().div_ceil(parts).next_multiple_of(unit).max(unit);
    let end = rows.end;
    rows.step_by(step).map(move |r| r..end.min(r + step))
}

/// Tokens of `bytes` each that fit the nearest cache beside a tile's rows, in whole tiles.
#[inline(always)]
pub(crate) fn tokens_at_once(bytes: usize) -> usize {
    (NEAR_BYTES / bytes.max(1) / 4 * 4).max(4)
}
