//! The forward pass: the one that serves prefill, decode, batching, scoring and inspection.
//!
//! What holds for a whole pass, and the blocks that architectures share (embedding, projections,
//! attention, gated MLP, head). The order of operations of a layer is in the architecture's own
//! file: `llama`, `llama4`, `opt`.
//!
//! Every row goes through the same operations in the same order whatever else is in the batch, so
//! that its bits depend on nothing but its own prefix. These files say what is computed; only
//! `kernels` touches single values.

use std::ops::Range;
use std::sync::Arc;

use kernels::{Attend, Kernels, KvLayout, Product, Type, Workspace};

use crate::adapter::{Place, Target};
use crate::arch::Arch;
use crate::batch::{Batch, Chunk, ChunkOut, Input, Logits, Outputs};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::probe::{At, Probe, Row, Site};
use crate::weights::{Gated, Layer, Linear, Norm, POSITION_OFFSET, Weights};
use crate::{llama, llama4, opt};

/// Computes the rows of a batch, extends the cache by them, and returns the rows it wants out.
///
/// # Errors
/// A batch that contradicts itself or the model, or that does not fit the cache. The cache is
/// unchanged then.
pub fn forward<P: Probe>(
    weights: &Weights,
    batch: &Batch,
    cache: &mut Cache,
    probe: &mut P,
) -> Result<Outputs> {
    batch.check(&weights.config, cache)?;
    let mut pass = Pass::new(weights, batch, cache, probe)?;
    let layer_of = match weights.config.arch {
        Arch::Llama => llama::layer::<P>,
        Arch::Llama4 => llama4::layer::<P>,
        Arch::Opt => opt::layer::<P>,
    };
    let mut x = pass.embed()?; // (n, hidden)
    let mut room = Room::new(&weights.config, x.len() / weights.config.hidden);
    for (i, layer) in weights.layers.iter().enumerate() {
        pass.see(Site::ResidPre, i, &[weights.config.hidden], &mut x);
        layer_of(&mut pass, i, layer, &mut x, &mut room)?;
        pass.steer(i, &mut x);
        pass.see(Site::ResidPost, i, &[weights.config.hidden], &mut x);
    }
    pass.head(&x)
}

/// Memory for what a layer computes, used by all layers in turn; rows of (n, ...).
pub(crate) struct Room {
    /// Hidden rows: into and out of a block.
    pub(crate) a: Workspace,
    pub(crate) q: Workspace,
    pub(crate) k: Workspace,
    v: Workspace,
    z: Workspace,
    pub(crate) gate: Workspace,
    pub(crate) up: Workspace,
}

impl Room {
    fn new(c: &Config, n: usize) -> Room {
        let rows = |cols: usize| Workspace::new(n * cols);
        // Where all layers have experts, no tensor has shown the width of an MLP to be sound.
        let dense = (0..c.layers).any(|i| c.experts_of(i).is_none());
        let f = if dense { c.ffn } else { 0 };
        Room {
            a: rows(c.hidden),
            q: rows(c.q_dim()),
            k: rows(c.kv_dim()),
            v: rows(c.kv_dim()),
            z: rows(c.q_dim()),
            gate: rows(f),
            up: rows(f),
        }
    }
}

/// Everything about a batch that holds for all layers.
pub(crate) struct Pass<'a, P> {
    pub(crate) w: &'a Weights,
    pub(crate) k: &'a Kernels,
    pub(crate) plan: Plan<'a>,
    cache: &'a mut Cache,
    pub(crate) probe: &'a mut P,
}

/// Which rows there are, and which keys they see.
pub(crate) struct Plan<'a> {
    chunks: &'a [Chunk],
    /// The rows of each chunk among all rows.
    ranges: Vec<Range<usize>>,
    /// Of each chunk: first row in its sequence, and first row of its segment there.
    starts: Vec<(usize, usize)>,
    /// The keys that each row sees, per chunk.
    spans: Vec<Vec<Range<usize>>>,
    /// The same in layers with chunked attention; empty if there are none.
    windows: Vec<Vec<Range<usize>>>,
    pub(crate) positions: Vec<u32>, // (n)
    /// (n), for the probe; empty without one.
    rows: Vec<Row>,
}

impl<'a, P: Probe> Pass<'a, P> {
    fn new(
        w: &'a Weights,
        batch: &'a Batch,
        cache: &'a mut Cache,
        probe: &'a mut P,
    ) -> Result<Self> {
        let chunks = &batch.chunks[..];
        let mut ranges = Vec::with_capacity(chunks.len());
        let mut starts = Vec::with_capacity(chunks.len());
        let mut spans = Vec::with_capacity(chunks.len());
        let mut end = 0;
        for c in chunks {
            ranges.push(end..end + c.len());
            end += c.len();
            let (start, segment) = (cache.len(c.seq), cache.segment_start(c)?);
            starts.push((start, segment));
            spans.push((0..c.len()).map(|i| segment..start + i + 1).collect());
        }
        let windows = match &w.config.llama4 {
            Some(l) => llama4::windows(chunks, &spans, l.chunk),
            None => Vec::new(),
        };
        for (c, windows) in chunks.iter().zip(&windows) {
            let held = cache.first_held(c.seq);
            if windows.iter().any(|w| w.start < held) {
                return Err(Error::Batch(format!(
                    "chunked attention would look back beyond token {held} of a sequence, which is \
                     the first that it holds: positions must go on where they ended"
                )));
            }
        }
        cache.reserve(chunks)?;
        let rows = |c: &'a Chunk| {
            c.positions.iter().map(|&position| Row {
                seq: c.seq,
                position,
            })
        };
        let plan = Plan {
            chunks,
            ranges,
            starts,
            spans,
            windows,
            positions: chunks
                .iter()
                .flat_map(|c| c.positions.iter().copied())
                .collect(),
            rows: if P::ON {
                chunks.iter().flat_map(rows).collect()
            } else {
                Vec::new()
            },
        };
        Ok(Pass {
            w,
            k: w.kernels(),
            plan,
            cache,
            probe,
        })
    }

    pub(crate) fn n(&self) -> usize {
        self.plan.positions.len()
    }

    /// Shows all rows of a place to the probe.
    pub(crate) fn see(
        &mut self,
        site: Site,
        layer: usize,
        row_shape: &[usize],
        values: &mut [f32],
    ) {
        if P::ON && self.probe.wants(site, layer) {
            let shape = [&[self.plan.rows.len()], row_shape].concat();
            self.probe.see(
                At {
                    site,
                    layer,
                    shape: &shape,
                    rows: &self.plan.rows,
                },
                values,
            );
        }
    }

    fn embed(&mut self) -> Result<Workspace> {
        let d = self.w.config.hidden;
        let mut x = Workspace::new(self.n() * d);
        for (c, r) in self.plan.chunks.iter().zip(&self.plan.ranges) {
            let out = &mut x[r.start * d..r.end * d];
            match &c.input {
                Input::Tokens(ids) => {
                    let mut narrow = Workspace::new(self.narrow(ids.len()));
                    let project = self.w.project.as_ref();
                    let rows = match project {
                        Some(_) => &mut narrow[..],
                        None => &mut out[..],
                    };
                    self.k.embed(self.w.embed.matrix()?, ids, rows)?;
                    let mut adapters = c.adapters.iter();
                    adapters.try_for_each(|a| a.embed(self.k, ids, rows))?;
                    if let Some([inward, _]) = project {
                        multiply(self.k, &narrow, [(inward, out)])?;
                    }
                }
                Input::Embeddings(rows) => out.copy_from_slice(rows),
            }
        }
        if let Some(table) = &self.w.positions {
            let offset = POSITION_OFFSET as u32;
            let rows = self.plan.positions.iter();
            let rows: Vec<u32> = rows.map(|p| p.saturating_add(offset)).collect();
            let mut learned = Workspace::new(x.len());
            self.k.embed(table.matrix()?, &rows, &mut learned)?;
            self.k.add(&mut x, &learned);
        }
        self.see(Site::Embed, 0, &[d], &mut x);
        Ok(x)
    }

    /// out = norm(x)
    pub(crate) fn norm(&self, norm: &Norm, x: &[f32], out: &mut [f32]) {
        let eps = self.w.config.norm_eps;
        match norm {
            Norm::Rms(gain) => self.k.rms_norm(x, gain, eps, out),
            Norm::Layer { gain, bias } => self.k.layer_norm(x, gain, bias, eps, out),
        }
    }

    /// q, k, v = Wq norm(x), Wk norm(x), Wv norm(x)
    pub(crate) fn queries_keys_values(
        &mut self,
        i: usize,
        layer: &Layer,
        x: &[f32],
        room: &mut Room,
    ) -> Result<()> {
        let c = &self.w.config;
        let (d, hd) = (c.hidden, c.head_dim);
        let Room { a, q, k, v, .. } = room;
        self.norm_before(&layer.attn_norm, x, a);
        self.see(Site::AttnIn, i, &[d], a);
        self.project(
            i,
            a,
            &mut [
                (Target::Q, &layer.q, &mut *q),
                (Target::K, &layer.k, &mut *k),
                (Target::V, &layer.v, &mut *v),
            ],
        )?;
        self.see(Site::Q, i, &[c.heads, hd], q);
        self.see(Site::K, i, &[c.kv_heads, hd], k);
        self.see(Site::V, i, &[c.kv_heads, hd], v);
        Ok(())
    }

    /// Turns queries and keys by their positions.
    pub(crate) fn rotate(&self, room: &mut Room) {
        let (c, rope) = (&self.w.config, &self.w.rope);
        let positions = &self.plan.positions;
        let Room { q, k, .. } = room;
        self.k.rope(q, c.heads, c.head_dim, rope, positions);
        self.k.rope(k, c.kv_heads, c.head_dim, rope, positions);
    }

    /// x += Wo attention(q, k, v), each row over all keys before it or over those of its chunk of
    /// positions.
    pub(crate) fn attend(
        &mut self,
        i: usize,
        layer: &Layer,
        chunked: bool,
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let c = &self.w.config;
        let (d, hd) = (c.hidden, c.head_dim);
        let Room { a, q, k, v, z, .. } = room;
        self.see(Site::RotQ, i, &[c.heads, hd], q);
        self.see(Site::RotK, i, &[c.kv_heads, hd], k);
        self.store(i, k, v);
        if P::ON && (self.probe.wants(Site::Scores, i) || self.probe.wants(Site::Pattern, i)) {
            self.attention_in_stages(i, chunked, q, z);
        } else {
            self.attention(i, chunked, q, z);
        }
        self.see(Site::Z, i, &[c.heads, hd], z);
        self.project(i, z, &mut [(Target::O, &layer.o, &mut *a)])?;
        self.see(Site::AttnOut, i, &[d], a);
        add_to_residual(self.k, x, a);
        self.see(Site::ResidMid, i, &[d], x);
        Ok(())
    }

    /// a = norm(x), the input of the MLP
    pub(crate) fn mlp_in(&mut self, i: usize, layer: &Layer, x: &[f32], room: &mut Room) {
        self.norm_before(&layer.mlp_norm, x, &mut room.a);
        self.see(Site::MlpIn, i, &[self.w.config.hidden], &mut room.a);
    }

    /// x += Wdown(act(Wgate a) * Wup a)
    pub(crate) fn gated_mlp(
        &mut self,
        i: usize,
        mlp: &Gated,
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let c = &self.w.config;
        let f = c.ffn;
        let Room { a, gate, up, .. } = room;
        self.project(
            i,
            a,
            &mut [
                (Target::Gate, &mlp.gate, &mut *gate),
                (Target::Up, &mlp.up, &mut *up),
            ],
        )?;
        self.see(Site::MlpPre, i, &[f], gate);
        self.see(Site::MlpPreLinear, i, &[f], up);
        self.k.gated(c.activation, gate, up);
        self.see(Site::MlpPost, i, &[f], gate);
        self.project(i, gate, &mut [(Target::Down, &mlp.down, &mut *a)])?;
        self.mlp_out(i, x, a);
        Ok(())
    }

    /// x += a, the output of the MLP
    pub(crate) fn mlp_out(&mut self, i: usize, x: &mut [f32], a: &mut [f32]) {
        self.see(Site::MlpOut, i, &[self.w.config.hidden], a);
        add_to_residual(self.k, x, a);
    }

    /// out = W x + b for each target, in one parallel region; then each chunk's adapters.
    pub(crate) fn project(
        &self,
        i: usize,
        x: &[f32],
        outs: &mut [(Target, &Linear, &mut [f32])],
    ) -> Result<()> {
        let cols = outs[0].1.cols;
        let products = outs.iter_mut().map(|(_, l, out)| (*l, &mut out[..]));
        multiply(self.k, x, products)?;
        for (c, r) in self.plan.chunks.iter().zip(&self.plan.ranges) {
            for adapter in &c.adapters {
                for (target, l, out) in outs.iter_mut() {
                    let rows = &x[r.start * cols..r.end * cols];
                    let out = &mut out[r.start * l.rows..r.end * l.rows];
                    adapter.apply(self.k, Place::Layer(i, *target), rows, out)?;
                }
            }
        }
        Ok(())
    }

    /// x += the direction of this layer, for rows that have one
    fn steer(&self, i: usize, x: &mut [f32]) {
        let d = self.w.config.hidden;
        for (c, r) in self.plan.chunks.iter().zip(&self.plan.ranges) {
            if let Some(direction) = c.control.as_ref().and_then(|v| v.of(i)) {
                let rows = x[r.start * d..r.end * d].chunks_exact_mut(d);
                rows.for_each(|row| self.k.add(row, direction));
            }
        }
    }

    /// Writes the keys and values of all rows into the cache.
    fn store(&mut self, i: usize, k: &[f32], v: &[f32]) {
        let (layout, dim) = (self.cache.layout(), self.w.config.kv_dim());
        for ((c, r), (start, _)) in self
            .plan
            .chunks
            .iter()
            .zip(&self.plan.ranges)
            .zip(&self.plan.starts)
        {
            for (j, row) in r.clone().enumerate() {
                let (page, slot) = self.cache.slot_mut(c.seq, i, start + j);
                let at = row * dim..(row + 1) * dim;
                self.k.store(&layout, page, slot, &k[at.clone()], &v[at]);
            }
        }
    }

    /// z = softmax(q K^T / sqrt(head_dim)) V, each row over the keys of its span.
    fn attention(&self, i: usize, chunked: bool, q: &[f32], z: &mut [f32]) {
        let plan = &self.plan;
        let pages: Vec<_> = (0..plan.chunks.len())
            .map(|j| plan.pages(self.cache, i, j))
            .collect();
        let mut work = Vec::with_capacity(pages.len());
        let mut rest = z;
        for (j, pages) in pages.iter().enumerate() {
            let len = plan.ranges[j].len() * self.w.config.q_dim();
            let (out, tail) = rest.split_at_mut(len);
            rest = tail;
            work.push(plan.attend(
                &self.w.config,
                self.cache.layout(),
                (j, chunked),
                pages,
                q,
                out,
            ));
        }
        self.k.attention(&mut work);
    }

    /// The same, with scores and pattern, by the plain stages, laid open to the probe. What it
    /// changes there takes the place of the fused result, which otherwise stands to the bit.
    fn attention_in_stages(&mut self, i: usize, chunked: bool, q: &[f32], z: &mut [f32]) {
        self.attention(i, chunked, q, z);
        let (plan, c) = (&self.plan, &self.w.config);
        for (j, r) in plan.ranges.iter().enumerate() {
            let pages = plan.pages(self.cache, i, j);
            let a = plan.attend(c, self.cache.layout(), (j, chunked), &pages, q, &mut []);
            let keys = plan.starts[j].0 + r.len();
            let shape = [r.len(), c.heads, keys];
            let mut scores = vec![0.0; shape.iter().product()];
            let mut changed = false;
            let mut show = |site, scores: &mut [f32]| {
                if self.probe.wants(site, i) {
                    let before = scores.to_vec();
                    self.probe.see(
                        At {
                            site,
                            layer: i,
                            shape: &shape,
                            rows: &plan.rows[r.clone()],
                        },
                        scores,
                    );
                    changed |= !kernels::same_bits(&before, scores);
                }
            };
            self.k.attention_scores(&a, keys, &mut scores);
            show(Site::Scores, &mut scores);
            self.k
                .attention_pattern(r.len(), keys, a.spans, c.heads, &mut scores);
            show(Site::Pattern, &mut scores);
            if changed {
                let z = &mut z[r.start * c.q_dim()..r.end * c.q_dim()];
                self.k.attention_mix(&a, keys, &scores, z);
            }
        }
    }

    /// Final norm and head for the wanted rows; counts all rows as held by the cache.
    fn head(&mut self, x: &[f32]) -> Result<Outputs> {
        for (c, (_, segment)) in self.plan.chunks.iter().zip(&self.plan.starts) {
            self.cache.advance(c, *segment);
        }
        let (d, vocab) = (self.w.config.hidden, self.w.config.vocab);
        let mut wanted = Vec::new(); // (rows out, hidden)
        let mut rows = Vec::new();
        for (c, r) in self.plan.chunks.iter().zip(&self.plan.ranges) {
            let at = r.start + c.wanted().start..r.start + c.wanted().end;
            wanted.extend_from_slice(&x[at.start * d..at.end * d]);
            if P::ON {
                rows.extend_from_slice(&self.plan.rows[at]);
            }
        }
        self.plan.rows = rows;
        let mut h = wanted.clone();
        if let Some(norm) = &self.w.norm {
            self.norm(norm, &wanted, &mut h);
        }
        self.see(Site::FinalNorm, 0, &[d], &mut h);
        // Without a probe, rows whose logits nobody wants are left out of the product.
        let everything = P::ON && self.probe.wants(Site::Logits, 0);
        let mut outs = Vec::with_capacity(self.plan.chunks.len());
        let mut input = Vec::new();
        let mut at = 0;
        for c in self.plan.chunks {
            let rows = &h[at * d..(at + c.wanted().len()) * d];
            at += c.wanted().len();
            if c.logits || everything {
                input.extend_from_slice(rows);
            }
            let hidden = if c.hidden { rows.to_vec() } else { Vec::new() };
            outs.push(ChunkOut {
                logits: Logits::default(),
                hidden,
            });
        }
        let mut logits = Workspace::new(input.len() / d * vocab);
        self.outward(&mut input)?;
        let d = self.w.config.table();
        multiply(self.k, &input, [(&self.w.head, &mut logits[..])])?;
        let mut at = 0;
        for c in self.plan.chunks.iter().filter(|c| c.logits || everything) {
            let rows = at..at + c.wanted().len();
            let (x, out) = (
                &input[rows.start * d..rows.end * d],
                &mut logits[rows.start * vocab..rows.end * vocab],
            );
            let mut adapters = c.adapters.iter();
            adapters.try_for_each(|a| a.apply(self.k, Place::Head, x, out))?;
            at = rows.end;
        }
        if everything {
            self.see(Site::Logits, 0, &[vocab], &mut logits);
        }
        let logits = Arc::new(logits);
        let mut at = 0;
        for (c, out) in self.plan.chunks.iter().zip(&mut outs) {
            let rows = at..at + c.wanted().len() * vocab;
            if c.logits || everything {
                at = rows.end;
            }
            if c.logits {
                out.logits = Logits::new(&logits, rows);
            }
        }
        Ok(Outputs { chunks: outs })
    }
}

impl Plan<'_> {
    /// The pages of one layer that chunk `j` attends to, its own rows included.
    fn pages<'c>(&self, cache: &'c Cache, layer: usize, j: usize) -> Vec<&'c [u8]> {
        cache.pages(
            self.chunks[j].seq,
            layer,
            self.starts[j].0 + self.ranges[j].len(),
        )
    }

    /// The attention of chunk `j`, given the queries of all chunks.
    fn attend<'b>(
        &'b self,
        c: &Config,
        layout: KvLayout,
        (j, chunked): (usize, bool),
        pages: &'b [&'b [u8]],
        q: &'b [f32],
        out: &'b mut [f32],
    ) -> Attend<'b> {
        let r = &self.ranges[j];
        let spans = if chunked { &self.windows } else { &self.spans };
        Attend {
            layout,
            pages,
            q: &q[r.start * c.q_dim()..r.end * c.q_dim()],
            heads: c.heads,
            spans: &spans[j],
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            out,
        }
    }
}

/// The two sums that tensor parallelism would reduce over machines: the outputs of attention and
/// of the MLP.
fn add_to_residual(k: &Kernels, x: &mut [f32], y: &[f32]) {
    k.add(x, y);
}

/// out = W x + b for some matrices of as many columns as rows of x have, in one parallel region.
pub(crate) fn multiply<'a>(
    k: &Kernels,
    x: &[f32],
    products: impl IntoIterator<Item = (&'a Linear, &'a mut [f32])>,
) -> Result<()> {
    let product = |(l, out): (&'a Linear, &'a mut [f32])| {
        Ok(Product {
            w: l.matrix()?,
            bias: l.bias.as_deref(),
            out,
        })
    };
    let mut products = products
        .into_iter()
        .map(product)
        .collect::<Result<Vec<_>>>()?;
    let Some(first) = products.first() else {
        return Ok(());
    };
    let (cols, types) = (first.w.cols(), products.iter().map(|p| p.w.ty()));
    let types: Vec<Type> = types.collect();
    k.matmul(&k.activations(x, cols, &types), &mut products);
    Ok(())
}
