//! The shape of a model, whatever file it came from.

use kernels::{Activation, Gate, RopeLayout};

use crate::adapter::{Place, Target};
use crate::arch::Arch;
use crate::error::{Error, Result};

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which forward pass it has.
    pub arch: Arch,
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
    /// Width of the MLP, in layers without experts.
    pub ffn: usize,
    /// The mixtures of experts, if some layers have one in place of the MLP.
    pub experts: Option<Experts>,
    /// Largest number of positions that the file says the model was made for.
    pub context: usize,
    /// Added to the mean square (or variance) inside the root of norms.
    pub norm_eps: f32,
    /// Activation of the gate.
    pub activation: Activation,
    /// Rotary embedding; its `dim` is 0 where positions are learned instead.
    pub rope: RopeConfig,
    /// What Llama 4 does to queries, keys and what they see.
    pub llama4: Option<Llama4>,
    /// How an OPT differs from other OPTs.
    pub opt: Option<Opt>,
    /// Whether q, k, v and o carry a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down carry a bias.
    pub mlp_bias: bool,
    /// Whether LayerNorm has a gain and a bias.
    pub norm_affine: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-generation tokens that the file lists (one or several).
    pub eos: Vec<u32>,
}

/// Mixtures of experts. A router picks some of the experts for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are in a layer.
    pub count: usize,
    /// How many the router picks.
    pub used: usize,
    /// Width of one.
    pub ffn: usize,
    /// Whether one more of the same width is always used.
    pub shared: bool,
    /// How the router weighs them.
    pub gate: Gate,
    /// Which layers have them.
    pub layers: Vec<bool>,
}

/// Llama 4's attention. Layers are of two kinds, which alternate.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama4 {
    /// Layers that rotate queries and keys.
    pub rotates: Vec<bool>,
    /// Layers whose rows see only their own chunk of positions.
    pub chunked: Vec<bool>,
    /// Positions in a chunk.
    pub chunk: usize,
    /// Whether rotated queries and keys are brought to mean square 1.
    pub qk_norm: bool,
    /// How queries that are not rotated grow with their position.
    pub temperature: Option<Temperature>,
}

/// What OPT 350M does in another way than other OPTs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// Width of the embedding table; where it is not the hidden size, a matrix leads in and one out.
    pub table: usize,
    /// Whether norms stand behind attention and MLP instead of before them.
    pub norm_after: bool,
    /// Whether there is a norm at the end.
    pub final_norm: bool,
}

/// Factor on a query at `position`: `1 + scale * ln(floor((position + 1) / floor) + 1)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Positions between two steps.
    pub floor: f64,
    /// Height of the steps.
    pub scale: f64,
}

impl Temperature {
    /// The factor at a position.
    pub fn at(&self, position: u32) -> f32 {
        let steps = ((f64::from(position) + 1.0) / self.floor).floor();
        (1.0 + self.scale * (steps + 1.0).ln()) as f32
    }
}

/// Rotary position embedding: angle = position * inv_freq, on the first `dim` values of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated values per head; even, at most the head's width. 0: nothing is rotated.
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

/// What a number of layers may be at most.
pub(crate) const MAX_LAYERS: usize = 4096;

impl Config {
    /// Checks that the numbers make a model. Every reader calls it last.
    pub(crate) fn checked(self) -> Result<Config> {
        let counts = [
            ("vocabulary size", self.vocab, MAX_COUNT * 16),
            ("hidden size", self.hidden, MAX_COUNT),
            ("layers", self.layers, MAX_LAYERS),
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
        let rotary = self.arch != Arch::Opt;
        if (dim == 0) == rotary || dim > self.head_dim || dim % 2 == 1 {
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
        if let Some(e) = &self.experts {
            e.check(self.layers)?;
        }
        if let Some(l) = &self.llama4 {
            l.check(self.layers)?;
        }
        if self.table() == 0 || self.table() > MAX_COUNT {
            let n = self.table();
            return Err(Error::Config(format!(
                "the embedding table is {n} wide; it must be 1 to {MAX_COUNT}"
            )));
        }
        Ok(self)
    }

    /// Positions from this one on cannot be computed, or not as the model's authors do.
    pub fn position_limit(&self) -> Option<usize> {
        match self.arch {
            Arch::Opt => Some(self.context),
            Arch::Llama | Arch::Llama4 => self.rope.position_limit(),
        }
    }

    /// Width of the embedding table's rows.
    pub fn table(&self) -> usize {
        self.opt.map_or(self.hidden, |opt| opt.table)
    }

    /// Whether norms stand behind attention and MLP.
    pub(crate) fn norm_after(&self) -> bool {
        self.opt.is_some_and(|opt| opt.norm_after)
    }

    /// Whether there is a norm at the end.
    pub(crate) fn final_norm(&self) -> bool {
        self.opt.is_none_or(|opt| opt.final_norm)
    }

    /// The experts of a layer, if it has any.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        let e = self.experts.as_ref()?;
        e.layers.get(layer).is_some_and(|on| *on).then_some(e)
    }

    /// Whether rows of a layer see only their own chunk of positions.
    pub fn is_chunked(&self, layer: usize) -> bool {
        let chunked = self.llama4.as_ref().and_then(|l| l.chunked.get(layer));
        chunked.is_some_and(|on| *on)
    }

    /// `[out, in]` of a matrix that an adapter may change; `None` if there is no such layer, or the
    /// layer has none: experts cannot be adapted, and OPT has no gate.
    pub(crate) fn shape_of(&self, place: Place) -> Option<(usize, usize)> {
        let (d, f) = (self.hidden, self.ffn);
        match place {
            Place::Embed => Some((self.table(), self.vocab)),
            Place::Head => Some((self.vocab, self.table())),
            Place::Layer(layer, _) if layer >= self.layers => None,
            Place::Layer(_, Target::Q) => Some((self.q_dim(), d)),
            Place::Layer(_, Target::K | Target::V) => Some((self.kv_dim(), d)),
            Place::Layer(_, Target::O) => Some((d, self.q_dim())),
            Place::Layer(layer, _) if self.experts_of(layer).is_some() => None,
            Place::Layer(_, Target::Gate) if self.arch == Arch::Opt => None,
            Place::Layer(_, Target::Gate | Target::Up) => Some((f, d)),
            Place::Layer(_, Target::Down) => Some((d, f)),
        }
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
        self.weights(|e| e.count)
    }

    /// Number of weights that a token goes through: of the experts only those used.
    pub fn parameters_used(&self) -> u64 {
        self.weights(|e| e.used)
    }

    fn weights(&self, experts: impl Fn(&Experts) -> usize) -> u64 {
        let d = self.hidden as u128;
        let (q, kv) = (self.q_dim() as u128, self.kv_dim() as u128);
        let learned = self.arch == Arch::Opt;
        let matrices = if learned { 2 } else { 3 };
        let mlp = |layer: usize| match self.experts_of(layer) {
            None => matrices * d * self.ffn as u128,
            Some(e) => {
                let all = (experts(e) + usize::from(e.shared)) as u128;
                d * e.count as u128 + all * 3 * d * e.ffn as u128
            }
        };
        let blocks: u128 = (0..self.layers)
            .map(|i| 2 * d * q + 2 * d * kv + mlp(i) + 2 * d)
            .sum();
        let width = self.table() as u128;
        let table = self.vocab as u128 * width;
        let projections = if width == d { 0 } else { 2 * width * d };
        let head = if self.tied { 0 } else { table };
        let positions = if learned { self.context as u128 * d } else { 0 };
        let norm = if self.final_norm() { d } else { 0 };
        let all = blocks + norm + table + head + positions + projections;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

impl Experts {
    fn check(&self, layers: usize) -> Result<()> {
        let counts = [
            ("number of experts", self.count, 65536),
            ("experts used for a token", self.used, self.count),
            ("feed-forward size of an expert", self.ffn, MAX_COUNT * 4),
        ];
        for (what, n, max) in counts {
            if n == 0 || n > max {
                return Err(Error::Config(format!(
                    "{what} is {n}; it must be 1 to {max}"
                )));
            }
        }
        of_all_layers("layers with experts", self.layers.len(), layers)
    }
}

impl Llama4 {
    fn check(&self, layers: usize) -> Result<()> {
        of_all_layers("rotated layers", self.rotates.len(), layers)?;
        of_all_layers("chunked layers", self.chunked.len(), layers)?;
        if self.chunk == 0 {
            return Err(Error::Config("the attention chunk is 0 positions".into()));
        }
        match self.temperature {
            Some(t) if !(t.floor.is_finite() && t.floor > 0.0 && t.scale.is_finite()) => {
                let (floor, scale) = (t.floor, t.scale);
                Err(Error::Config(format!(
                    "attention temperature has steps of {floor} positions and height {scale}"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn of_all_layers(what: &str, n: usize, layers: usize) -> Result<()> {
    match n == layers {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "the list of {what} has {n} entries for {layers} layers"
        ))),
    }
}
