//! Attention over paged keys and values, in three stages that also stand alone: scores, softmax,
//! mix. The fused form runs the same stages on a tile of queries, so all forms give the same bits.
//!
//! Scores: keys lie dimension by dimension in groups of 16 (see `kv`), so a vector holds one
//! dimension of 16 keys, a query's value is spread over all lanes, and no lane depends on another.
//! Mix: a vector holds 16 dimensions; the values are added in the order of the keys.
//! Both load (and widen) keys and values once for all queries of a tile: the heads that share a
//! key-value head, and neighbouring rows.

use crate::buffer::{Scratch, Shared};
use crate::exp::softmax_row;
use crate::kv::{GROUP, KvLayout, KvType, Q8_BLOCK};
use crate::simd::{LANES, Simd, array};
use std::ops::Range;

/// Attention of some query rows of one sequence over its cached keys and values.
#[derive(Debug)]
pub struct Attend<'a> {
    /// Shape of the pages.
    pub layout: KvLayout,
    /// Token `t` of the sequence lies in `pages[t / page]`, slot `t % page`.
    pub pages: &'a [&'a [u8]],
    /// Queries `[n, heads, head_dim]`.
    pub q: &'a [f32],
    /// Query heads; a multiple of `layout.kv_heads`.
    pub heads: usize,
    /// The keys that each of the `n` query rows sees. A row that sees none gets zeros.
    pub spans: &'a [Range<usize>],
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Result `[n, heads, head_dim]`, overwritten.
    pub out: &'a mut [f32],
}

/// Most queries in a tile.
pub(crate) const TILE: usize = 4;

/// What all tiles of one [`Attend`] share, lengths checked.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) layout: KvLayout,
    pub(crate) pages: &'a [&'a [u8]],
    pub(crate) q: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) spans: &'a [Range<usize>],
    pub(crate) scale: f32,
}

impl<'a> Field<'a> {
    /// Checks everything that the stages rely on. Panics on shapes that do not fit each other.
    pub(crate) fn new(a: &Attend<'a>) -> Field<'a> {
        let KvLayout {
            kv_heads,
            head_dim,
            page,
            ..
        } = a.layout;
        assert!(
            kv_heads > 0 && head_dim > 0 && page > 0,
            "empty layout {:?}",
            a.layout
        );
        assert!(
            a.heads.is_multiple_of(kv_heads),
            "{} heads over {kv_heads}",
            a.heads
        );
        let end = a
            .spans
            .iter()
            .filter(|s| !s.is_empty())
            .map(|s| s.end)
            .max()
            .unwrap_or(0);
        assert!(
            end.div_ceil(page) <= a.pages.len(),
            "{end} keys in {} pages",
            a.pages.len()
        );
        let bytes = a.layout.page_bytes();
        assert!(
            a.pages.iter().all(|p| p.len() == bytes),
            "pages are not of {bytes} bytes each"
        );
        Field {
            layout: a.layout,
            pages: a.pages,
            q: a.q,
            heads: a.heads,
            spans: a.spans,
            scale: a.scale,
        }
    }

    /// Query heads that share a key-value head.
    fn group(&self) -> usize {
        self.heads / self.layout.kv_heads
    }

    /// Queries that share a key-value head, over all rows.
    fn queries(&self) -> usize {
        self.spans.len() * self.group()
    }

    /// Tiles in all: each has up to `TILE` queries of one key-value head.
    pub(crate) fn tiles(&self) -> usize {
        self.layout.kv_heads * self.queries().div_ceil(TILE)
    }

    /// Key-value head and queries `(row, head)` of a tile.
    fn tile(&self, tile: usize) -> (usize, impl ExactSizeIterator<Item = (usize, usize)>) {
        let (queries, group) = (self.queries(), self.group());
        let per_head = queries.div_ceil(TILE);
        let (kv_head, first) = (tile / per_head, tile % per_head * TILE);
        let of = (first..queries.min(first + TILE))
            .map(move |i| (i / group, kv_head * group + i % group));
        (kv_head, of)
    }

    fn query(&self, row: usize, head: usize) -> &'a [f32] {
        let dim = self.layout.head_dim;
        &self.q[(row * self.heads + head) * dim..][..dim]
    }
}

/// The queries of one tile, gathered.
struct Tile<'a> {
    kv_head: usize,
    count: usize,
    /// (row, head) of each query.
    at: [(usize, usize); TILE],
    q: [&'a [f32]; TILE],
    spans: [Range<usize>; TILE],
    /// All keys that some query sees, with gaps.
    seen: Range<usize>,
    /// The keys that every query sees.
    common: Range<usize>,
}

impl<'a> Tile<'a> {
    fn new(field: &Field<'a>, index: usize) -> Tile<'a> {
        let (kv_head, queries) = field.tile(index);
        let mut tile = Tile {
            kv_head,
            count: queries.len(),
            at: [(0, 0); TILE],
            q: [&[]; TILE],
            spans: [0..0, 0..0, 0..0, 0..0],
            seen: 0..0,
            common: 0..usize::MAX,
        };
        for (i, (row, head)) in queries.enumerate() {
            let span = field.spans[row].clone();
            if tile.seen.is_empty() {
                tile.seen = span.clone();
            } else if !span.is_empty() {
                tile.seen = tile.seen.start.min(span.start)..tile.seen.end.max(span.end);
            }
            tile.common = tile.common.start.max(span.start)..tile.common.end.min(span.end);
            tile.at[i] = (row, head);
            tile.q[i] = field.query(row, head);
            tile.spans[i] = span;
        }
        if tile.seen.is_empty() {
            tile.seen = 0..0;
        }
        tile
    }

    /// The queries and keys of one step of adding values: each query's keys before the common ones,
    /// these for all queries, each query's keys after them.
    fn step(&self, step: usize) -> (Range<usize>, Range<usize>) {
        if step == TILE {
            return (0..self.count, self.common.clone());
        }
        let i = if step < TILE { step } else { step - TILE - 1 };
        let span = self.spans[i].clone();
        let keys = match (self.common.is_empty(), step < TILE) {
            (true, true) => span,
            (true, false) => 0..0,
            (false, true) => span.start..self.common.start,
            (false, false) => self.common.end..span.end,
        };
        (i..i + 1, if i < self.count { keys } else { 0..0 })
    }

    /// Where query `i`'s scores of the keys `keys` lie in `[count][seen]`.
    fn place(&self, i: usize, keys: &Range<usize>) -> Range<usize> {
        let start = i * self.seen.len() + (keys.start - self.seen.start);
        start..start + keys.len()
    }
}

/// The whole attention of one tile of queries, into its own parts of `out`.
#[inline(always)]
pub(crate) fn fused<S: Simd>(
    s: S,
    field: &Field<'_>,
    index: usize,
    out: Shared<'_>,
    scratch: &mut Scratch,
) {
    let tile = Tile::new(field, index);
    let scores = scratch.floats.ensure(tile.count * tile.seen.len());
    scores_of(s, field, &tile, scores);
    for (i, span) in tile.spans[..tile.count].iter().enumerate() {
        if !span.is_empty() {
            softmax_row(s, &mut scores[tile.place(i, span)]);
        }
    }
    let padded = field.layout.padded();
    let sums = scratch.scales.ensure(tile.count * padded);
    sums.fill(0.0);
    // Keys that every query sees are added for all at once; those before and after one by one.
    for step in 0..=2 * TILE {
        let (queries, keys) = tile.step(step);
        if keys.is_empty() {
            continue;
        }
        let weights: [&[f32]; TILE] = array(|i| {
            if i < queries.len() {
                &scores[tile.place(queries.start + i, &keys)]
            } else {
                &[]
            }
        });
        let sums = &mut sums[queries.start * padded..queries.end * padded];
        mix(
            s,
            field,
            tile.kv_head,
            keys,
            &weights[..queries.len()],
            sums,
        );
    }
    let dim = field.layout.head_dim;
    for (i, (row, head)) in tile.at[..tile.count].iter().enumerate() {
        // SAFETY: a query (row, head) belongs to one tile, and a tile to one task.
        let out = unsafe { out.part((row * field.heads + head) * dim, dim) };
        out.copy_from_slice(&sums[i * padded..][..dim]);
    }
}

/// First stage alone: the scores of one tile into its own rows of `out [n, heads, keys]`, -inf
/// outside the spans.
#[inline(always)]
pub(crate) fn scores<S: Simd>(
    s: S,
    field: &Field<'_>,
    index: usize,
    keys: usize,
    out: Shared<'_>,
    scratch: &mut Scratch,
) {
    let tile = Tile::new(field, index);
    let scores = scratch.floats.ensure(tile.count * tile.seen.len());
    scores_of(s, field, &tile, scores);
    for i in 0..tile.count {
        let (row, head) = tile.at[i];
        // SAFETY: a query (row, head) belongs to one tile, and a tile to one task.
        let out = unsafe { out.part((row * field.heads + head) * keys, keys) };
        out.fill(f32::NEG_INFINITY);
        let span = tile.spans[i].clone();
        if !span.is_empty() {
            out[span.clone()].copy_from_slice(&scores[tile.place(i, &span)]);
        }
    }
}

/// Second stage alone: softmax of one row of scores over its span, 0 outside.
#[inline(always)]
pub(crate) fn pattern<S: Simd>(s: S, span: &Range<usize>, scores: &mut [f32]) {
    if span.is_empty() {
        return scores.fill(0.0);
    }
    scores[..span.start].fill(0.0);
    scores[span.end..].fill(0.0);
    softmax_row(s, &mut scores[span.clone()]);
}

/// Third stage alone: one query's sum of values by its row of the pattern. Weights that are not zero
/// count outside the span as well.
#[inline(always)]
pub(crate) fn mix_query<S: Simd>(
    s: S,
    field: &Field<'_>,
    (row, head): (usize, usize),
    weights: &[f32],
    out: &mut [f32],
    scratch: &mut Scratch,
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
    let sums = scratch.scales.ensure(field.layout.padded());
    sums.fill(0.0);
    if !keys.is_empty() {
        mix(
            s,
            field,
            head / field.group(),
            keys.clone(),
            &[&weights[keys]],
            sums,
        );
    }
    out.copy_from_slice(&sums[..field.layout.head_dim]);
}

/// How one stored element becomes a float.
trait Element {
    /// Bytes of an element.
    const BYTES: usize;
    /// 16 elements from exactly that many bytes.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F;
}

macro_rules! element {
    ($name:ident, $bytes:literal, $load:ident) => {
        struct $name;
        impl Element for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
                match bytes.first_chunk() {
                    Some(bytes) => s.$load(bytes),
                    None => unreachable!("called with 16 elements"),
                }
            }
        }
    };
}
element!(F32, 4, load_f32);
element!(F16, 2, load_f16);
element!(Bf16, 2, load_bf16);
element!(I8, 1, load_i8);

/// Runs `$f::<S, E, N>($args)` for the element type of `$ty` and up to four queries.
macro_rules! by_type_and_count {
    ($ty:expr, $count:expr, $f:ident::<$s:ty>($($arg:expr),*)) => {
        match ($ty, $count) {
            (KvType::F32, 1) => $f::<$s, F32, 1>($($arg),*),
            (KvType::F32, 2) => $f::<$s, F32, 2>($($arg),*),
            (KvType::F32, 3) => $f::<$s, F32, 3>($($arg),*),
            (KvType::F32, _) => $f::<$s, F32, 4>($($arg),*),
            (KvType::F16, 1) => $f::<$s, F16, 1>($($arg),*),
            (KvType::F16, 2) => $f::<$s, F16, 2>($($arg),*),
            (KvType::F16, 3) => $f::<$s, F16, 3>($($arg),*),
            (KvType::F16, _) => $f::<$s, F16, 4>($($arg),*),
            (KvType::Bf16, 1) => $f::<$s, Bf16, 1>($($arg),*),
            (KvType::Bf16, 2) => $f::<$s, Bf16, 2>($($arg),*),
            (KvType::Bf16, 3) => $f::<$s, Bf16, 3>($($arg),*),
            (KvType::Bf16, _) => $f::<$s, Bf16, 4>($($arg),*),
            (KvType::Q8_0, 1) => $f::<$s, I8, 1>($($arg),*),
            (KvType::Q8_0, 2) => $f::<$s, I8, 2>($($arg),*),
            (KvType::Q8_0, 3) => $f::<$s, I8, 3>($($arg),*),
            (KvType::Q8_0, _) => $f::<$s, I8, 4>($($arg),*),
        }
    };
}

/// Scaled scores of all queries of a tile over the keys it sees: `out [count][seen]`.
#[inline(always)]
fn scores_of<S: Simd>(s: S, field: &Field<'_>, tile: &Tile<'_>, out: &mut [f32]) {
    if !tile.seen.is_empty() {
        by_type_and_count!(
            field.layout.ty,
            tile.count,
            scores_tile::<S>(s, field, tile, out)
        );
    }
}

/// As `scores_of`, for N queries.
#[inline(always)]
fn scores_tile<S: Simd, E: Element, const N: usize>(
    s: S,
    field: &Field<'_>,
    tile: &Tile<'_>,
    out: &mut [f32],
) {
    let layout = &field.layout;
    let q: [&[f32]; N] = array(|i| tile.q[i]);
    let mut rows = out.chunks_exact_mut(tile.seen.len());
    let mut rows: [&mut [f32]; N] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    let scale = s.splat(field.scale);
    let mut t = tile.seen.start;
    while t < tile.seen.end {
        let slot = t % layout.page;
        let lanes = slot % GROUP;
        let take = (GROUP - lanes)
            .min(layout.page - slot)
            .min(tile.seen.end - t);
        let head = &field.pages[t / layout.page][tile.kv_head * layout.key_head_bytes()..];
        let group = &head[slot / GROUP * layout.group_bytes()..][..layout.group_bytes()];
        let found = group_scores::<S, E, N>(s, layout, group, &q);
        let at = t - tile.seen.start;
        for (row, found) in rows.iter_mut().zip(found) {
            let mut all = [0.0; GROUP];
            s.store(s.mul(found, scale), &mut all);
            row[at..at + take].copy_from_slice(&all[lanes..lanes + take]);
        }
        t += take;
    }
}

/// Unscaled scores of N queries over one group of 16 keys.
#[inline(always)]
fn group_scores<S: Simd, E: Element, const N: usize>(
    s: S,
    layout: &KvLayout,
    group: &[u8],
    q: &[&[f32]; N],
) -> [S::F; N] {
    if layout.ty != KvType::Q8_0 {
        return dots::<S, E, N>(s, group, q);
    }
    let (scales, elements) = group.split_at(layout.group_scale_bytes());
    let blocks = scales
        .chunks_exact(2 * GROUP)
        .zip(elements.chunks(Q8_BLOCK * GROUP));
    let mut sums = [s.splat(0.0); N];
    for (b, (scale, elements)) in blocks.enumerate() {
        let scale = F16::load(s, scale);
        let q = array(|i| &q[i][b * Q8_BLOCK..]);
        let found = dots::<S, E, N>(s, elements, &q);
        for i in 0..N {
            sums[i] = s.fma(found[i], scale, sums[i]);
        }
    }
    sums
}

/// Dot products of N queries with 16 keys, dimension by dimension; even and odd dimensions are
/// added apart.
#[inline(always)]
fn dots<S: Simd, E: Element, const N: usize>(s: S, elements: &[u8], q: &[&[f32]; N]) -> [S::F; N] {
    let bytes = LANES * E::BYTES;
    let pairs = elements.chunks_exact(2 * bytes);
    let count = pairs.len();
    let last = pairs.remainder();
    let pairs_of_q: [&[[f32; 2]]; N] = array(|i| &q[i].as_chunks().0[..count]);
    let mut even = [s.splat(0.0); N];
    let mut odd = even;
    for (d, pair) in pairs.enumerate() {
        let (first, second) = (E::load(s, &pair[..bytes]), E::load(s, &pair[bytes..]));
        for i in 0..N {
            let [a, b] = pairs_of_q[i][d];
            even[i] = s.fma(s.splat(a), first, even[i]);
            odd[i] = s.fma(s.splat(b), second, odd[i]);
        }
    }
    if !last.is_empty() {
        let key = E::load(s, last);
        for i in 0..N {
            even[i] = s.fma(s.splat(q[i][2 * count]), key, even[i]);
        }
    }
    array(|i| s.add(even[i], odd[i]))
}

/// Adds the values of `keys`, times each query's weights, to that query's row of
/// `sums [weights.len()][padded]`, in the order of the keys.
#[inline(always)]
fn mix<S: Simd>(
    s: S,
    field: &Field<'_>,
    kv_head: usize,
    keys: Range<usize>,
    weights: &[&[f32]],
    sums: &mut [f32],
) {
    let to = (kv_head, keys);
    by_type_and_count!(
        field.layout.ty,
        weights.len(),
        mix_tile::<S>(s, field, to, weights, sums)
    );
}

/// As `mix`, for N queries: two or four vectors of dimensions at a time over all keys.
#[inline(always)]
fn mix_tile<S: Simd, E: Element, const N: usize>(
    s: S,
    field: &Field<'_>,
    (kv_head, keys): (usize, Range<usize>),
    weights: &[&[f32]],
    sums: &mut [f32],
) {
    let vectors = field.layout.padded() / LANES;
    let weights: [&[f32]; N] = array(|i| &weights[i][..keys.len()]);
    let mut v = 0;
    while v < vectors {
        let at = (kv_head, v);
        if S::WIDE && vectors - v >= 4 {
            mix_part::<S, E, N, 4>(s, field, at, keys.clone(), &weights, sums);
            v += 4;
        } else {
            mix_part::<S, E, N, 2>(s, field, at, keys.clone(), &weights, sums);
            v += 2;
        }
    }
}

/// V vectors of dimensions, from vector `first` on, for N queries.
#[inline(always)]
fn mix_part<S: Simd, E: Element, const N: usize, const V: usize>(
    s: S,
    field: &Field<'_>,
    (kv_head, first): (usize, usize),
    keys: Range<usize>,
    weights: &[&[f32]; N],
    sums: &mut [f32],
) {
    let layout = &field.layout;
    let (padded, page) = (layout.padded(), layout.page);
    let head = layout.kv_heads * layout.key_head_bytes() + kv_head * layout.value_head_bytes();
    let (rows, _) = sums.as_chunks_mut::<LANES>();
    let place = |i: usize, v: usize| i * padded / LANES + first + v;
    let mut acc: [[S::F; V]; N] = array(|i| array(|v| s.load(&rows[place(i, v)])));
    let mut t = keys.start;
    while t < keys.end {
        let slot = t % page;
        let take = (page - slot).min(keys.end - t);
        let bytes = &field.pages[t / page][head..][..layout.value_head_bytes()];
        let (scales, elements) = bytes.split_at(layout.value_scale_bytes());
        for j in 0..take {
            let row = &elements[(slot + j) * padded * E::BYTES..][..padded * E::BYTES];
            let row = &row[first * LANES * E::BYTES..][..V * LANES * E::BYTES];
            let w: [f32; N] = array(|i| weights[i][t - keys.start + j]);
            for v in 0..V {
                let value = E::load(s, &row[v * LANES * E::BYTES..][..LANES * E::BYTES]);
                // Two vectors make a block of 32 with one scale.
                let scale = if scales.is_empty() {
                    1.0
                } else {
                    let at = 2 * ((slot + j) * layout.blocks() + (first + v) / 2);
                    s.f16(u16::from_le_bytes([scales[at], scales[at + 1]]))
                };
                for i in 0..N {
                    acc[i][v] = s.fma(s.splat(w[i] * scale), value, acc[i][v]);
                }
            }
        }
        t += take;
    }
    for i in 0..N {
        for v in 0..V {
            s.store(acc[i][v], &mut rows[place(i, v)]);
        }
    }
}
