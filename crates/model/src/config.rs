//! The shape of a model, whatever file it came from.

use kernels::{Activation, RopeLayout};

use crate::error::{Error, Result};

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Architecture as the file names it (`llama`).
    pub arch: String,
    /// Rows of the embedding table and the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `j` reads kv head `j / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Largest number of positions that the file says the model was made for.
    pub context: usize,
    /// Added to the mean square inside the root of RMSNorm.
    pub norm_eps: f32,
    /// Activation of the gate.
    pub activation: Activation,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether q, k, v and o carry a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down carry a bias.
    pub mlp_bias: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-generation tokens that the file lists (one or several).
    pub eos: Vec<u32>,
}

/// Rotary position embedding: angle = position * inv_freq, on the first `dim` values of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated values per head; even, at most the head's width.
    pub dim: usize,
    /// Which values of a head make a pair.
    pub layout: RopeLayout,
    /// Change of the frequencies for longer contexts.
    pub scaling: Scaling,
}

/// Ways to stretch the rotary embedding over longer contexts. Names are those of transformers.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Dynamic NTK: plain frequencies up to the original context. Beyond it transformers changes
    /// the base with every length, so that cached keys disagree; refused there.
    Dynamic {
        /// Positions up to which frequencies are plain.
        original: usize,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, between them a blend.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Context the model was first trained for.
        original: f64,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn(Yarn),
    /// LongRoPE (arXiv:2402.13753): a divisor per frequency. The short set holds up to the
    /// original context; beyond it transformers swaps sets, so that cached keys disagree; refused
    /// there.
    LongRope {
        /// Divisors `[dim / 2]`.
        short: Vec<f64>,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Positions up to which the short set holds.
        original: usize,
    },
    /// Divisors `[dim / 2]` from the tensor `rope_freqs.weight` of a GGUF.
    Divisors(Vec<f32>),
}

/// Parameters of YaRN.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Stretch of the context.
    pub factor: f64,
    /// Context the model was first trained for.
    pub original: f64,
    /// Multiplies cos and sin.
    pub attention_factor: f64,
    /// Rotations above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded to whole dimensions.
    pub truncate: bool,
}

/// What a count in a configuration may be at most: far above any real model, small enough that
/// products of three fit 64 bits.
const MAX_COUNT: usize = 1 << 20;

impl Config {
    /// Checks that the numbers make a model. Every reader calls it last.
    pub(crate) fn checked(self) -> Result<Config> {
        let counts = [
            ("vocabulary size", self.vocab, MAX_COUNT * 16),
            ("hidden size", self.hidden, MAX_COUNT),
            ("layers", self.layers, 4096),
            ("heads", self.heads, 65536),
            ("kv heads", self.kv_heads, 65536),
            ("head dimension", self.head_dim, 65536),
            ("feed-forward size", self.ffn, MAX_COUNT * 4),
            ("context length", self.context, u32::MAX as usize),
        ];
        for (what, n, max) in counts {
            if n == 0 || n > max {
                return Err(Error::Config(format!(
                    "{what} is {n}; it must be 1 to {max}"
                )));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Config(format!(
                "{} heads cannot share {} kv heads evenly",
                self.heads, self.kv_heads
            )));
        }
        let dim = self.rope.dim;
        if dim == 0 || dim > self.head_dim || dim % 2 == 1 {
            return Err(Error::Config(format!(
                "rotary dimension is {dim}; it must be even and at most the head's {}",
                self.head_dim
            )));
        }
        let positive = [
            ("norm epsilon", f64::from(self.norm_eps)),
            ("rope theta", self.rope.theta),
        ];
        for (what, x) in positive {
            if !(x.is_finite() && x > 0.0) {
                return Err(Error::Config(format!("{what} is {x}; it must be above 0")));
            }
        }
        self.rope.check()?;
        Ok(self)
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Number of weights, biases not counted.
    pub fn parameters(&self) -> u64 {
        let (d, f) = (self.hidden as u128, self.ffn as u128);
        let (q, kv) = (self.q_dim() as u128, self.kv_dim() as u128);
        let block = 2 * d * q + 2 * d * kv + 3 * d * f + 2 * d;
        let table = self.vocab as u128 * d;
        let head = if self.tied { 0 } else { table };
        let all = block * self.layers as u128 + d + table + head;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}
