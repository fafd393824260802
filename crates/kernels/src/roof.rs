//! The roof: [`Kernels`] checks lengths, splits work over the pool and calls the level's table.

use crate::*;
use std::ops::Range;

/// A level, a compute mode and a pool of threads. Shared freely between threads.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    compute: Compute,
    threads: usize,
}

/// Rows of activations `[n, cols]` in the forms that the coming products need.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) cols: usize,
}

/// One matrix product of a call: `out[n, rows] = x[n, cols] · wᵀ + bias`.
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights `[rows, cols]`.
    pub w: Matrix<'a>,
    /// Added to each row of the output: `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[n, rows]`, overwritten.
    pub out: &'a mut [f32],
}

/// Non-linearities of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x), with the exact error function.
    Gelu,
    /// max(x, 0).
    Relu,
}

/// Rotary position embedding: which frequencies turn which pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair; the first `2 * inv_freq.len()` values of a head turn.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine (YaRN's attention factor; 1 elsewhere).
    pub mscale: f32,
    /// Which values form a pair.
    pub layout: RopeLayout,
}

/// Which values of a head form a rotated pair, of `rot` rotated values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// `(i, i + rot/2)`: Hugging Face.
    HalfSplit,
    /// `(2i, 2i + 1)`: Meta and GGUF.
    Interleaved,
}

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
    /// The keys that each of the `n` query rows sees.
    pub spans: &'a [Range<usize>],
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Result `[n, heads, head_dim]`, overwritten.
    pub out: &'a mut [f32],
}

#[allow(unused_variables, missing_docs, clippy::unimplemented, reason = "door")]
impl Kernels {
    pub fn new(level: Level, compute: Compute, threads: usize) -> Result<Kernels, Error> {
        Ok(Kernels {
            level,
            compute,
            threads,
        })
    }
    pub fn level(&self) -> Level {
        self.level
    }
    pub fn compute(&self) -> Compute {
        self.compute
    }
    pub fn threads(&self) -> usize {
        self.threads
    }
    pub fn activations<'a>(
        &self,
        x: &'a [f32],
        cols: usize,
        for_types: &[Type],
    ) -> Activations<'a> {
        Activations { x, cols }
    }
    pub fn matmul(&self, x: &Activations<'_>, products: &mut [Product<'_>]) {
        unimplemented!()
    }
    pub fn embed(&self, table: Matrix<'_>, ids: &[u32], out: &mut [f32]) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn rms_norm(&self, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        unimplemented!()
    }
    pub fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        rope: &Rope,
        positions: &[u32],
    ) {
        unimplemented!()
    }
    pub fn store(&self, layout: &KvLayout, page: &mut [u8], slot: usize, k: &[f32], v: &[f32]) {
        unimplemented!()
    }
    pub fn attention(&self, work: &mut [Attend<'_>]) {
        unimplemented!()
    }
    pub fn attention_scores(&self, a: &Attend<'_>, keys: usize, scores: &mut [f32]) {
        unimplemented!()
    }
    pub fn attention_pattern(
        &self,
        rows: usize,
        keys: usize,
        spans: &[Range<usize>],
        heads: usize,
        scores: &mut [f32],
    ) {
        unimplemented!()
    }
    pub fn attention_mix(&self, a: &Attend<'_>, keys: usize, pattern: &[f32], out: &mut [f32]) {
        unimplemented!()
    }
    pub fn gated(&self, act: Activation, gate: &mut [f32], up: &[f32]) {
        unimplemented!()
    }
    pub fn activate(&self, act: Activation, x: &mut [f32]) {
        unimplemented!()
    }
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        unimplemented!()
    }
    pub fn log_softmax(&self, x: &mut [f32], cols: usize) {
        unimplemented!()
    }
    pub fn softmax(&self, x: &mut [f32], cols: usize) {
        unimplemented!()
    }
}

#[allow(
    unused_variables,
    missing_docs,
    clippy::unimplemented,
    clippy::missing_errors_doc,
    reason = "door"
)]
pub fn dequantize(ty: Type, data: &[u8], out: &mut [f32]) -> Result<(), Error> {
    unimplemented!()
}
#[allow(
    unused_variables,
    missing_docs,
    clippy::unimplemented,
    clippy::missing_errors_doc,
    reason = "door"
)]
pub fn synthesize(ty: Type, rows: usize, cols: usize, seed: u64) -> Result<Vec<u8>, Error> {
    unimplemented!()
}
/// Peak probes.
#[allow(unused_variables, missing_docs, clippy::unimplemented, reason = "door")]
pub mod limits {
    use crate::Kernels;
    pub fn read_gbps(k: &Kernels, bytes: usize) -> f64 {
        unimplemented!()
    }
    pub fn f32_gflops(k: &Kernels) -> f64 {
        unimplemented!()
    }
    pub fn bf16_gflops(k: &Kernels) -> Option<f64> {
        unimplemented!()
    }
    pub fn int8_gops(k: &Kernels) -> Option<f64> {
        unimplemented!()
    }
}
