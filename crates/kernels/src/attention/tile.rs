//! The two products of attention for a tile of queries, in registers: each vector of keys or values
//! is loaded (and widened) once for all of them.
//!
//! A score is one chain of multiply-adds over the dimensions, and a weighted value one chain over
//! the keys, in ascending order: the size of the tile changes nothing.

use super::source::{Element, Keys, Source, Values, prefetch};
use crate::kv::Q8_BLOCK;
use crate::simd::{LANES, Simd, array};
use std::ops::Range;

/// Queries of the next tile of a strip with `left` to go.
#[inline(always)]
pub(super) fn size<'a, S: Simd, K: Source<'a>>(left: usize) -> usize {
    match left {
        _ if S::SCALAR => 1,
        _ if left >= K::TILE => K::TILE,
        // Rare, so not worth the code of every number.
        _ if K::TILE == 6 && left >= 3 => 3,
        _ if K::TILE == 6 => 1,
        _ => left,
    }
}

/// `$f::<$s, $k, R>($args)` for R, the `$n` that `size` gives.
macro_rules! by_count {
    ($n:expr, $f:ident::<$s:ty, $k:ty>($($arg:expr),*)) => {
        match $n {
            6 if !S::SCALAR && K::TILE == 6 => $f::<$s, $k, 6>($($arg),*),
            4 if !S::SCALAR && K::TILE == 4 => $f::<$s, $k, 4>($($arg),*),
            3 if !S::SCALAR => $f::<$s, $k, 3>($($arg),*),
            2 if !S::SCALAR && K::TILE == 4 => $f::<$s, $k, 2>($($arg),*),
            _ => $f::<$s, $k, 1>($($arg),*),
        }
    };
}

/// Scaled scores of a tile of queries over `keys`: that of key `t` into `out[i * stride + t - first]`.
#[inline(always)]
pub(super) fn scores<'a, S: Simd, K: Source<'a>>(
    s: S,
    source: K,
    (q, scale): (&[&[f32]], f32),
    keys: Range<usize>,
    out: &mut [f32],
    place: (usize, usize),
) {
    by_count!(
        q.len(),
        scores_of::<S, K>(s, source, (q, scale), keys, out, place)
    );
}

/// As `scores`, for R queries.
#[inline(always)]
fn scores_of<'a, S: Simd, K: Source<'a>, const R: usize>(
    s: S,
    source: K,
    (q, scale): (&[&[f32]], f32),
    keys: Range<usize>,
    out: &mut [f32],
    place: (usize, usize),
) {
    let q: [&[f32]; R] = array(|i| q[i]);
    // Four groups by six queries fill 24 of 32 registers, one by six 12 of 16.
    if S::WIDE {
        scores_by::<S, K, R, 4>(s, source, (&q, scale), keys, out, place);
    } else {
        scores_by::<S, K, R, 1>(s, source, (&q, scale), keys, out, place);
    }
}

/// As `scores`, C groups of keys at a time; a last group may be repeated in vain.
#[inline(always)]
fn scores_by<'a, S: Simd, K: Source<'a>, const R: usize, const C: usize>(
    s: S,
    source: K,
    (q, scale): (&[&[f32]; R], f32),
    keys: Range<usize>,
    out: &mut [f32],
    place: (usize, usize),
) {
    let mut t = keys.start;
    while t < keys.end {
        let mut groups = [source.keys(t); C];
        let mut at = [t; C];
        t += groups[0].len;
        let mut n = 1;
        while n < C && t < keys.end {
            (groups[n], at[n]) = (source.keys(t), t);
            t += groups[n].len;
            n += 1;
        }
        let found = dots::<S, K::E, R, C>(s, q, &groups);
        for c in 0..C {
            if c < n {
                let found: [S::F; R] = array(|i| found[i][c]);
                write(s, found, scale, &groups[c], (at[c], keys.end), out, place);
            }
        }
    }
}

/// Writes the scores of the keys `t..end` of one group.
#[inline(always)]
fn write<S: Simd, E: Element, const R: usize>(
    s: S,
    found: [S::F; R],
    scale: f32,
    group: &Keys<'_, E>,
    (t, end): (usize, usize),
    out: &mut [f32],
    (stride, first): (usize, usize),
) {
    let scale = s.splat(scale);
    let take = group.len.min(end - t);
    for i in 0..R {
        let found = s.mul(found[i], scale);
        let to = &mut out[i * stride + t - first..][..take];
        if let Ok(to) = to.try_into() {
            s.store(found, to);
        } else {
            let mut all = [0.0; LANES];
            s.store(found, &mut all);
            to.copy_from_slice(&all[group.lane..][..take]);
        }
    }
}

/// Dot products of R queries with C groups of 16 keys.
#[inline(always)]
fn dots<S: Simd, E: Element, const R: usize, const C: usize>(
    s: S,
    q: &[&[f32]; R],
    groups: &[Keys<'_, E>; C],
) -> [[S::F; C]; R] {
    let dim = q[0].len();
    let mut sums = [[s.splat(0.0); C]; R];
    let mut first = 0;
    while first < dim {
        let n = (dim - first).min(Q8_BLOCK);
        let scales: [S::F; C] = array(|c| E::key_scales(s, groups[c].scales, first / Q8_BLOCK));
        let keys: [&[E::Lanes]; C] = array(|c| &groups[c].elements[first..first + n]);
        let q: [&[f32]; R] = array(|i| &q[i][first..first + n]);
        let ahead: [*const E::Lanes; C] = array(|c| groups[c].ahead.wrapping_add(first));
        for d in 0..n {
            if E::FAR {
                (0..C).for_each(|c| prefetch(ahead[c].wrapping_add(d)));
            }
            let key: [S::F; C] = array(|c| E::load(s, &keys[c][d], scales[c]));
            for i in 0..R {
                let x = s.splat(q[i][d]);
                for c in 0..C {
                    sums[i][c] = s.fma(x, key[c], sums[i][c]);
                }
            }
        }
        first += n;
    }
    sums
}

/// Adds the values of `keys` to `n` rows of sums, `out[i * stride..][..padded]`, times the weights
/// `from.0[i * from.1 + from.2..]`.
#[inline(always)]
pub(super) fn add_values<'a, S: Simd, K: Source<'a>>(
    s: S,
    source: K,
    n: usize,
    keys: Range<usize>,
    from: (&[f32], usize, usize),
    to: (&mut [f32], usize),
    padded: usize,
) {
    by_count!(n, add_of::<S, K>(s, source, keys, from, to, padded));
}

/// As `add_values`, for R queries.
#[inline(always)]
fn add_of<'a, S: Simd, K: Source<'a>, const R: usize>(
    s: S,
    source: K,
    keys: Range<usize>,
    (weights, apart, first): (&[f32], usize, usize),
    (out, stride): (&mut [f32], usize),
    padded: usize,
) {
    let vectors = padded / LANES;
    let weights: [&[f32]; R] = array(|i| &weights[i * apart + first..][..keys.len()]);
    let mut v = 0;
    while v < vectors {
        let at = (v, vectors, stride);
        if S::WIDE && vectors - v >= 4 {
            add_part::<S, K, R, 4>(s, source, keys.clone(), &weights, out, at);
            v += 4;
        } else if S::WIDE || (R <= 3 && !S::SCALAR) {
            add_part::<S, K, R, 2>(s, source, keys.clone(), &weights, out, at);
            v += 2;
        } else {
            add_part::<S, K, R, 1>(s, source, keys.clone(), &weights, out, at);
            v += 1;
        }
    }
}

/// As `add_values`, for V vectors of dimensions from vector `v` on.
#[inline(always)]
fn add_part<'a, S: Simd, K: Source<'a>, const R: usize, const V: usize>(
    s: S,
    source: K,
    keys: Range<usize>,
    weights: &[&[f32]; R],
    out: &mut [f32],
    (first, vectors, stride): (usize, usize, usize),
) {
    let (rows, _) = out.as_chunks_mut::<LANES>();
    let place = |i: usize, v: usize| i * stride / LANES + first + v;
    let mut sums: [[S::F; V]; R] = array(|i| array(|v| s.load(&rows[place(i, v)])));
    let mut t = keys.start;
    while t < keys.end {
        let Values {
            scales,
            elements,
            len,
            ahead,
        } = source.values(t);
        let ahead = ahead.wrapping_add(first);
        let take = len.min(keys.end - t);
        let elements = &elements[..take * vectors];
        let w: [&[f32]; R] = array(|i| &weights[i][t - keys.start..][..take]);
        for j in 0..take {
            let row = &elements[j * vectors + first..][..V];
            for v in 0..V {
                if K::E::FAR && v * size_of::<<K::E as Element>::Lanes>() % 64 == 0 {
                    prefetch(ahead.wrapping_add(j * vectors + v));
                }
            }
            let value: [S::F; V] = array(|v| {
                // Two vectors make a block of 32.
                let scale = K::E::value_scale(s, scales, (j * vectors + first + v) / 2);
                K::E::load(s, &row[v], scale)
            });
            for i in 0..R {
                let w = s.splat(w[i][j]);
                for v in 0..V {
                    sums[i][v] = s.fma(w, value[v], sums[i][v]);
                }
            }
        }
        t += take;
    }
    for i in 0..R {
        for v in 0..V {
            s.store(sums[i][v], &mut rows[place(i, v)]);
        }
    }
}
