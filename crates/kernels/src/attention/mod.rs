//! Attention over paged keys and values.
//!
//! Idea: the keys of a sequence are cut into blocks of [`BLOCK`] at fixed places. From each block a
//! query has a *part*: its largest score there, the sum of exp(score - largest), and the sum of
//! values weighted so. A query's parts are folded in the order of the blocks, scaled to their common
//! maximum, and divided by the sum of weights at the end (online softmax: Milakov and Gimelshein
//! 2018; FlashAttention). A part depends on the query and on the keys that it sees in the block, and
//! on nothing else, so the work may be cut in any way without changing a bit.
//!
//! Why it is fast:
//! 1. The query heads that share a key-value head, of many rows, form a *strip* that goes through a
//!    block together. Tiles of up to six of its queries use each vector of keys or values that is
//!    loaded (`tile`).
//! 2. A strip of many queries widens a block to floats once, into panels that stay in the caches; a
//!    strip of few reads the pages themselves (`source`).
//! 3. Keys lie dimension by dimension in groups of 16 (see `kv`): no sum goes across lanes.
//! 4. A strip that is deep and has few neighbours is cut between blocks, for all threads to share.

mod plan;
mod source;
mod stages;
mod tile;

pub(crate) use plan::run;
pub(crate) use stages::{mix, pattern, scores};

use crate::buffer::{Scratch, Shared};
use crate::exp::exp;
use crate::kv::KvLayout;
use crate::simd::table::Table;
use crate::simd::{LANES, Simd};
use source::{Panels, Source, widen};
use std::ops::Range;

/// Keys in a block. Part of the definition of the result's bits.
const BLOCK: usize = 256;
/// Most queries in a strip.
const STRIP: usize = 192;
/// Strips of more queries than this widen blocks into panels.
const FEW: usize = 8;
/// Most queries in a tile.
const TILE: usize = 6;
/// Floats before the values of a part: largest score, sum of weights, 1 if it has any keys.
const HEAD: usize = LANES;

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

/// What all strips of one [`Attend`] share, lengths checked.
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

    /// Floats of a part.
    fn part(&self) -> usize {
        HEAD + self.layout.padded()
    }

    /// All strips.
    fn strips(&self) -> impl Iterator<Item = Strip> {
        let (queries, group) = (self.queries(), self.group());
        let cut = move |kv_head| {
            let queries = (0..queries)
                .step_by(STRIP)
                .map(move |q| q..queries.min(q + STRIP));
            queries.map(move |q| (kv_head, q))
        };
        (0..self.layout.kv_heads)
            .flat_map(cut)
            .map(move |(kv_head, queries)| {
                let rows = queries.start / group..queries.end.div_ceil(group);
                let spans = self.spans[rows].iter().filter(|s| !s.is_empty());
                let seen = spans
                    .cloned()
                    .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
                Strip {
                    kv_head,
                    queries,
                    seen: seen.unwrap_or(0..0),
                }
            })
    }

    fn query(&self, row: usize, head: usize) -> &'a [f32] {
        let dim = self.layout.head_dim;
        &self.q[(row * self.heads + head) * dim..][..dim]
    }
}

/// Up to [`STRIP`] queries of one key-value head: query i is row `i / group`, and of the query heads
/// that share the key-value head the one numbered `i % group`.
#[derive(Debug, Clone)]
pub(crate) struct Strip {
    kv_head: usize,
    queries: Range<usize>,
    /// All keys that some query sees, with gaps.
    seen: Range<usize>,
}

impl Strip {
    /// The blocks that hold keys of the strip.
    fn blocks(&self) -> Range<usize> {
        self.seen.start / BLOCK..self.seen.end.div_ceil(BLOCK)
    }

    /// Multiplications of the two products, about.
    fn work(&self, field: &Field<'_>) -> usize {
        2 * self.queries.len() * self.seen.len() * field.layout.head_dim
    }

    /// Floats of the parts of one block.
    fn floats(&self, field: &Field<'_>) -> usize {
        self.queries.len() * field.part()
    }
}

/// `$f::<$s, ..>(pages, $args)` with pages of the element type of the cache.
macro_rules! by_type {
    ($field:expr, $kv_head:expr, $f:ident::<$s:ty>($($arg:expr),*)) => {{
        use crate::attention::source::{Bf16, F16, F32, Paged, Q8};
        let (field, kv_head) = ($field, $kv_head);
        match field.layout.ty {
            crate::KvType::F32 => $f::<$s, _>(Paged::<F32>::new(field, kv_head), $($arg),*),
            crate::KvType::F16 => $f::<$s, _>(Paged::<F16>::new(field, kv_head), $($arg),*),
            crate::KvType::Bf16 => $f::<$s, _>(Paged::<Bf16>::new(field, kv_head), $($arg),*),
            crate::KvType::Q8_0 => $f::<$s, _>(Paged::<Q8>::new(field, kv_head), $($arg),*),
        }
    }};
}
use by_type;

/// The whole attention of a strip, into its own queries of `out`.
fn whole(table: &Table, field: &Field<'_>, strip: &Strip, out: Shared<'_>, scratch: &mut Scratch) {
    let floats = strip.floats(field);
    let all = scratch
        .floats
        .ensure(2 * floats + work_floats(field, strip));
    let (sums, rest) = all.split_at_mut(floats);
    let (parts, work) = rest.split_at_mut(floats);
    clear(sums, field.part());
    for block in strip.blocks() {
        block_parts(table, field, strip, block, work, parts);
        // SAFETY: a table is handed out only where its level is available.
        unsafe { (table.fold)(sums, parts, field.part()) };
    }
    finish(field, strip, sums, out);
}

/// The parts of a strip from some of its blocks: `parts [blocks][queries][part]`.
fn parts(
    table: &Table,
    field: &Field<'_>,
    strip: &Strip,
    blocks: Range<usize>,
    parts: &mut [f32],
    scratch: &mut Scratch,
) {
    let work = scratch.floats.ensure(work_floats(field, strip));
    for (block, parts) in blocks.zip(parts.chunks_exact_mut(strip.floats(field))) {
        block_parts(table, field, strip, block, work, parts);
    }
}

/// Folds the parts of all blocks of a strip, as `parts` has made them.
fn join(
    table: &Table,
    field: &Field<'_>,
    strip: &Strip,
    parts: &[f32],
    out: Shared<'_>,
    scratch: &mut Scratch,
) {
    let sums = scratch.floats.ensure(strip.floats(field));
    clear(sums, field.part());
    for parts in parts.chunks_exact(strip.floats(field)) {
        // SAFETY: a table is handed out only where its level is available.
        unsafe { (table.fold)(sums, parts, field.part()) };
    }
    finish(field, strip, sums, out);
}

/// Floats that the work on a block needs: scores of a tile, and panels.
fn work_floats(field: &Field<'_>, strip: &Strip) -> usize {
    let panels = if strip.queries.len() > FEW {
        panel_floats(&field.layout)
    } else {
        0
    };
    TILE * BLOCK + panels
}

/// Floats of the panels of a block.
fn panel_floats(layout: &KvLayout) -> usize {
    BLOCK * (layout.head_dim + layout.padded())
}

/// The parts of all queries of a strip from one block.
fn block_parts(
    table: &Table,
    field: &Field<'_>,
    strip: &Strip,
    block: usize,
    work: &mut [f32],
    parts: &mut [f32],
) {
    let (scores, panels) = work.split_at_mut(TILE * BLOCK);
    // SAFETY: a table is handed out only where its level is available.
    unsafe {
        if strip.queries.len() > FEW {
            (table.pack)(field, strip, block, panels);
            (table.panel_parts)(field, strip, block, panels, scores, parts);
        } else {
            (table.page_parts)(field, strip, block, scores, parts);
        }
    }
}

/// Widens what a strip sees of a block.
#[inline(always)]
pub(crate) fn pack<S: Simd>(
    s: S,
    field: &Field<'_>,
    strip: &Strip,
    block: usize,
    panels: &mut [f32],
) {
    let first = block * BLOCK;
    let seen = strip.seen.start.max(first)..strip.seen.end.min(first + BLOCK);
    by_type!(field, strip.kv_head, widen::<S>(s, first, seen, panels));
}

/// The parts of all queries of a strip from a block that was packed.
#[inline(always)]
pub(crate) fn panel_parts<S: Simd>(
    s: S,
    field: &Field<'_>,
    strip: &Strip,
    block: usize,
    panels: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let panels = Panels::new(&field.layout, block * BLOCK, BLOCK, panels);
    tiles::<S, _>(panels, s, field, strip, block, scores, parts);
}

/// The parts of all queries of a strip from the pages of a block.
#[inline(always)]
pub(crate) fn page_parts<S: Simd>(
    s: S,
    field: &Field<'_>,
    strip: &Strip,
    block: usize,
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let kv_head = strip.kv_head;
    by_type!(
        field,
        kv_head,
        tiles::<S>(s, field, strip, block, scores, parts)
    );
}

/// The parts of a strip from one block, tile by tile.
#[inline(always)]
fn tiles<'k, S: Simd, K: Source<'k>>(
    source: K,
    s: S,
    field: &Field<'_>,
    strip: &Strip,
    block: usize,
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let block = block * BLOCK..(block + 1) * BLOCK;
    let mut queries = strip.queries.clone();
    let mut rest = parts;
    while !queries.is_empty() {
        let n = tile::size::<S, K>(queries.len());
        let (parts, tail) = rest.split_at_mut(n * field.part());
        rest = tail;
        let of = queries.start..queries.start + n;
        queries.start += n;
        tile_parts(
            s,
            source,
            field,
            (strip.kv_head, of, block.clone()),
            scores,
            parts,
        );
    }
}

/// The parts of the queries of one tile.
#[inline(always)]
fn tile_parts<'k, S: Simd, K: Source<'k>>(
    s: S,
    source: K,
    field: &Field<'_>,
    (kv_head, queries, block): (usize, Range<usize>, Range<usize>),
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let (group, size, first) = (field.group(), field.part(), block.start);
    let n = queries.len();
    clear(parts, size);
    let mut q: [&[f32]; TILE] = [&[]; TILE];
    let mut spans = [(0, 0); TILE];
    // All keys that some query sees, and those that all see.
    let (mut seen, mut common) = (block.end..block.start, block.clone());
    for (i, query) in queries.enumerate() {
        q[i] = field.query(query / group, kv_head * group + query % group);
        let span = &field.spans[query / group];
        let (start, end) = (span.start.max(block.start), span.end.min(block.end));
        common = common.start.max(start)..common.end.min(end);
        if start < end {
            seen = seen.start.min(start)..seen.end.max(end);
            spans[i] = (start, end);
        }
    }
    if seen.is_empty() {
        return;
    }
    tile::scores(
        s,
        source,
        (&q[..n], field.scale),
        seen,
        scores,
        (BLOCK, first),
    );
    for (i, &(start, end)) in spans[..n].iter().enumerate() {
        if start < end {
            let scores = &mut scores[i * BLOCK..][..BLOCK];
            let (max, sum) = weigh(s, scores, start - first..end - first);
            parts[i * size..][..3].copy_from_slice(&[max, sum, 1.0]);
        }
    }
    // Each query's keys before those that all see, these for all at once, each query's after them.
    for step in 0..=2 * n {
        let (tile, keys) = match step {
            _ if step == n => (0..n, common.clone()),
            i if i < n && common.is_empty() => (i..i + 1, spans[i].0..spans[i].1),
            i if i < n => (i..i + 1, spans[i].0..common.start),
            _ if common.is_empty() => break,
            _ => (step - n - 1..step - n, common.end..spans[step - n - 1].1),
        };
        if !keys.is_empty() {
            let sums = &mut parts[tile.start * size..tile.end * size];
            let weights = &scores[tile.start * BLOCK..tile.end * BLOCK];
            let from = (weights, BLOCK, keys.start - first);
            tile::add_values(
                s,
                source,
                tile.len(),
                keys,
                from,
                (&mut sums[HEAD..], size),
                size - HEAD,
            );
        }
    }
}

/// Replaces the scores of a span by exp(score - largest); the largest, and the sum. Lanes are places
/// in the block. A NaN is passed over by the maximum and meets the sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &mut [f32], span: Range<usize>) -> (f32, f32) {
    let vectors = span.start / LANES..span.end.div_ceil(LANES);
    scores[vectors.start * LANES..span.start].fill(f32::NEG_INFINITY);
    scores[span.end..vectors.end * LANES].fill(f32::NEG_INFINITY);
    let scores = &mut scores.as_chunks_mut::<LANES>().0[vectors];
    let mut max = s.splat(f32::NEG_INFINITY);
    for v in &*scores {
        max = s.max(s.load(v), max);
    }
    let max = s.largest(max);
    let top = s.splat(finite(max));
    let mut sum = s.splat(0.0);
    for v in scores {
        let e = exp(s, s.sub(s.load(v), top));
        sum = s.add(sum, e);
        s.store(e, v);
    }
    (max, s.sum(sum))
}

/// What to subtract for a maximum: -inf would make scores of -inf NaN.
#[inline(always)]
fn finite(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// Makes all parts those of no keys.
#[inline(always)]
fn clear(parts: &mut [f32], size: usize) {
    for part in parts.chunks_exact_mut(size) {
        part.fill(0.0);
        part[0] = f32::NEG_INFINITY;
    }
}

/// Adds parts to the sums of the same queries, both scaled to their common maximum.
#[inline(always)]
pub(crate) fn fold<S: Simd>(s: S, sums: &mut [f32], parts: &[f32], size: usize) {
    for (sums, parts) in sums
        .chunks_mut(LANES * size)
        .zip(parts.chunks(LANES * size))
    {
        // The factors of 16 queries at a time.
        let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
        for (i, (sum, part)) in sums
            .chunks_exact_mut(size)
            .zip(parts.chunks_exact(size))
            .enumerate()
        {
            let max = if part[0] > sum[0] { part[0] } else { sum[0] };
            old[i] = sum[0] - finite(max);
            new[i] = part[0] - finite(max);
            sum[0] = max;
        }
        let (a, b) = (exp(s, s.load(&old)), exp(s, s.load(&new)));
        s.store(a, &mut old);
        s.store(b, &mut new);
        for (i, (sum, part)) in sums
            .chunks_exact_mut(size)
            .zip(parts.chunks_exact(size))
            .enumerate()
        {
            if part[2] == 0.0 {
                continue;
            }
            sum[1] = sum[1] * old[i] + part[1] * new[i];
            sum[2] = 1.0;
            let (a, b) = (s.splat(old[i]), s.splat(new[i]));
            let (sum, part) = (&mut sum[HEAD..], &part[HEAD..]);
            for (sum, part) in sum.as_chunks_mut().0.iter_mut().zip(part.as_chunks().0) {
                s.store(s.fma(s.load(sum), a, s.mul(s.load(part), b)), sum);
            }
        }
    }
}

/// Divides the sums by those of the weights, into the strip's queries of `out`; 0 without keys.
fn finish(field: &Field<'_>, strip: &Strip, sums: &[f32], out: Shared<'_>) {
    let (group, dim) = (field.group(), field.layout.head_dim);
    for (i, sum) in strip.queries.clone().zip(sums.chunks_exact(field.part())) {
        let query = i / group * field.heads + strip.kv_head * group + i % group;
        // SAFETY: a query belongs to one strip, and a strip to one task.
        let out = unsafe { out.part(query * dim, dim) };
        let factor = if sum[2] == 0.0 { 0.0 } else { 1.0 / sum[1] };
        for (out, sum) in out.iter_mut().zip(&sum[HEAD..]) {
            *out = sum * factor;
        }
    }
}
