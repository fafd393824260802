//! Products of weight rows with activation rows: out[n, rows] = x[n, cols] · wᵀ + bias.
//!
//! One element is always computed by the same operations in the same order, whatever the number of
//! tokens, the tile, the panel or the split over threads, so its bits depend on its own row and
//! token only. For quantised weights in `fast`: 16 lanes, each of which adds up every sixteenth
//! block, as `sum = fma(weight scale · activation scale, exact integer product of the block, sum)`,
//! then the block's offset times its sum of activations; at last the lanes, in halves. For floats:
//! 16 lanes, each of which adds up every sixteenth value.
//!
//! Idea: for one token a row's groups are unpacked in registers and multiplied at once, straight
//! from the file's bytes. For many, some rows are unpacked into a panel in a core's own cache, and
//! all tokens are run over it in tiles of R rows by T tokens.
//!
//! Why fast: an integer product of 64 pairs is one instruction, and only the sum over blocks needs
//! an order, once every eight of them; a row is unpacked once per call; tiles share their loads.

use crate::Matrix;
use crate::activations::{Activations, Form};
use crate::buffer::{Scratch, Shared};
use crate::floats::{Floats, Halves};
use crate::integers::Panel;
use crate::layout::Layout;
use crate::simd::table::Table;
use crate::tiles::ROWS;
use crate::unpack;
use std::ops::Range;

/// Panel size in bytes: a share of a core's second-level cache.
const PANEL_BYTES: usize = 256 << 10;
/// Rows of a panel, where it has to be twice as large for them.
const PANEL_ROWS: usize = 48;
/// A share of a core's first-level cache for activations.
const NEAR_BYTES: usize = 24 << 10;
/// Tokens that do not need a larger panel than one of few rows.
pub(crate) const FEW: usize = 24;

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
        floats,
        sums,
    } = scratch;
    // SAFETY: passed on to the caller.
    unsafe {
        match job.form {
            Form::Rounded(_) if n == 1 => (table.integer_rows)(job),
            Form::Rounded(block) => {
                let layout = Layout::new(block, cols);
                for rows in panels(job, Panel::row_bytes(layout)) {
                    let mut panel = Panel::new(rows, layout, bytes);
                    (table.integer_panel)(job, &mut panel);
                    (table.integer_tiles)(job, &panel, sums);
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
                        let mut integers = Panel::new(rows, layout, bytes);
                        (table.integer_panel)(job, &mut integers);
                        (table.dequantize)(&integers, &mut panel);
                    }
                    (table.float_tiles)(job, &panel, sums);
                }
            }
        }
    }
}

/// The task's rows in parts that fit a panel.
fn panels(job: &Job<'_>, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let fit = |bytes: usize| bytes / row_bytes.max(1);
    let most = if job.x.n <= FEW {
        // A few tokens meet each row a few times: their panel should stay close.
        2 * ROWS
    } else {
        // Activations of long rows come from a far cache for each panel: it should have some rows.
        fit(PANEL_BYTES).max(PANEL_ROWS.min(fit(2 * PANEL_BYTES)))
    };
    let most = most.max(ROWS);
    // Of one size, since each panel passes over all activations.
    let parts = job.rows.len().div_ceil(most).max(1);
    let step = job.rows.len().div_ceil(parts).next_multiple_of(ROWS);
    let end = job.rows.end;
    job.rows
        .clone()
        .step_by(step.max(ROWS))
        .map(move |r| r..end.min(r + step))
}

/// Tokens of `bytes` each that fit the nearest cache beside a tile's rows, in whole tiles.
#[inline(always)]
pub(crate) fn tokens_at_once(bytes: usize) -> usize {
    (NEAR_BYTES / bytes.max(1) / 4 * 4).max(4)
}
