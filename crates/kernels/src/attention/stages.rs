//! The stages of attention that can be looked at: scores, their softmax, the sum of values. Plain
//! and one query at a time: they are for inspection. Their result equals that of the fused form but
//! for rounding.

use super::source::Source;
use super::{Field, by_type, tile};
use crate::exp::softmax_row;
use crate::simd::Simd;
use std::ops::Range;

/// Scores of one query over its span into its row of `out [keys]`, -inf outside.
#[inline(always)]
pub(crate) fn scores<S: Simd>(
    s: S,
    field: &Field<'_>,
    (row, head): (usize, usize),
    out: &mut [f32],
) {
    out.fill(f32::NEG_INFINITY);
    by_type!(
        field,
        head / field.group(),
        scores_from::<S>(s, field, (row, head), out)
    );
}

#[inline(always)]
fn scores_from<'a, S: Simd, K: Source<'a>>(
    source: K,
    s: S,
    field: &Field<'_>,
    (row, head): (usize, usize),
    out: &mut [f32],
) {
    let q = [field.query(row, head)];
    let span = field.spans[row].clone();
    tile::scores(s, source, (&q, field.scale), span, out, (0, 0));
}

/// Softmax of one row of scores over its span, 0 outside.
#[inline(always)]
pub(crate) fn pattern<S: Simd>(s: S, span: &Range<usize>, scores: &mut [f32]) {
    if span.is_empty() {
        return scores.fill(0.0);
    }
    scores[..span.start].fill(0.0);
    scores[span.end..].fill(0.0);
    softmax_row(s, &mut scores[span.clone()]);
}

/// One query's sum of values by its row of the pattern into `sums [padded]`. Weights that are not
/// zero count outside the span as well.
#[inline(always)]
pub(crate) fn mix<S: Simd>(
    s: S,
    field: &Field<'_>,
    (row, head): (usize, usize),
    weights: &[f32],
    sums: &mut [f32],
) {
    let span = &field.spans[row];
    let first = weights
        .iter()
        .position(|w| *w != 0.0)
        .unwrap_or(weights.len());
    let last = weights.iter().rposition(|w| *w != 0.0).map_or(0, |i| i + 1);
    let keys = if span.is_empty() {
        first..last
    } else {
        first.min(span.start)..last.max(span.end)
    };
    sums.fill(0.0);
    if !keys.is_empty() {
        by_type!(
            field,
            head / field.group(),
            mix_from::<S>(s, field, keys, weights, sums)
        );
    }
}

#[inline(always)]
fn mix_from<'a, S: Simd, K: Source<'a>>(
    source: K,
    s: S,
    field: &Field<'_>,
    keys: Range<usize>,
    weights: &[f32],
    sums: &mut [f32],
) {
    let padded = field.layout.padded();
    let from = (weights, 0, keys.start);
    tile::add_values(s, source, 1, keys, from, (sums, padded), padded);
}
