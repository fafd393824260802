//! Models of known shape with random weights, for measuring without a file.

use std::str::FromStr;
use std::sync::Arc;

use files::Blob;
use kernels::{Activation, Kernels, RopeLayout, Type};

use crate::arch::Arch;
use crate::config::{Config, RopeConfig, Scaling};
use crate::error::{Error, Result};
use crate::weights::{Gated, Layer, Linear, Mlp, Norm, Weights};

/// The dimensions of a released model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What `bench --shape` calls it.
    pub name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    theta: f64,
    /// Factor of Llama 3.1's rope scaling; 0 for none.
    llama3_factor: f64,
    tied: bool,
}

const fn shape(
    name: &'static str,
    [hidden, layers, heads, kv_heads, ffn, vocab, context]: [usize; 7],
    theta: f64,
    llama3_factor: f64,
    tied: bool,
) -> Shape {
    Shape {
        name,
        hidden,
        layers,
        heads,
        kv_heads,
        ffn,
        vocab,
        context,
        theta,
        llama3_factor,
        tied,
    }
}

/// Dimensions from the releases' configurations.
const SHAPES: &[Shape] = &[
    //                       hidden layers heads kv  ffn    vocab   context
    shape(
        "smollm2-135m",
        [576, 30, 9, 3, 1536, 49152, 8192],
        1e5,
        0.0,
        true,
    ),
    shape(
        "smollm2-360m",
        [960, 32, 15, 5, 2560, 49152, 8192],
        1e5,
        0.0,
        true,
    ),
    shape(
        "smollm2-1.7b",
        [2048, 24, 32, 32, 8192, 49152, 8192],
        1.3e5,
        0.0,
        true,
    ),
    shape(
        "tinyllama-1.1b",
        [2048, 22, 32, 4, 5632, 32000, 2048],
        1e4,
        0.0,
        false,
    ),
    shape(
        "llama-3.2-1b",
        [2048, 16, 32, 8, 8192, 128_256, 131_072],
        5e5,
        32.0,
        true,
    ),
    shape(
        "llama-3.2-3b",
        [3072, 28, 24, 8, 8192, 128_256, 131_072],
        5e5,
        32.0,
        true,
    ),
    shape(
        "llama-3-8b",
        [4096, 32, 32, 8, 14336, 128_256, 8192],
        5e5,
        0.0,
        false,
    ),
    shape(
        "llama-3.1-8b",
        [4096, 32, 32, 8, 14336, 128_256, 131_072],
        5e5,
        8.0,
        false,
    ),
    shape(
        "llama-2-7b",
        [4096, 32, 32, 32, 11008, 32000, 4096],
        1e4,
        0.0,
        false,
    ),
    shape(
        "llama-2-13b",
        [5120, 40, 40, 40, 13824, 32000, 4096],
        1e4,
        0.0,
        false,
    ),
];

/// The shapes that can be synthesised.
pub fn shapes() -> &'static [Shape] {
    SHAPES
}

impl Shape {
    /// The configuration of a model of this shape.
    pub fn config(&self) -> Result<Config> {
        let scaling = match self.llama3_factor {
            0.0 => Scaling::None,
            factor => Scaling::Llama3 {
                factor,
                low: 1.0,
                high: 4.0,
                original: 8192.0,
            },
        };
        let head_dim = self.hidden / self.heads;
        Config {
            arch: Arch::Llama,
            vocab: self.vocab,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
            ffn: self.ffn,
            experts: None,
            context: self.context,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            rope: RopeConfig {
                theta: self.theta,
                dim: head_dim,
                layout: RopeLayout::Interleaved,
                scaling,
            },
            llama4: None,
            opt: None,
            attention_bias: false,
            mlp_bias: false,
            norm_affine: true,
            tied: self.tied,
            bos: None,
            eos: Vec::new(),
        }
        .checked()
    }
}

/// Which storage type each tensor of a quantised model gets, by the published rules of
/// llama-quantize (without an importance matrix).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// As llama-quantize writes it.
    pub name: &'static str,
    base: Type,
    head: Type,
    /// attn_v and ffn_down of the layers that `use_more` picks.
    more: Option<Type>,
}

const MIXES: &[Mix] = &[
    Mix {
        name: "F32",
        base: Type::F32,
        head: Type::F32,
        more: None,
    },
    Mix {
        name: "F16",
        base: Type::F16,
        head: Type::F16,
        more: None,
    },
    Mix {
        name: "BF16",
        base: Type::BF16,
        head: Type::BF16,
        more: None,
    },
    Mix {
        name: "Q8_0",
        base: Type::Q8_0,
        head: Type::Q8_0,
        more: None,
    },
    Mix {
        name: "Q4_0",
        base: Type::Q4_0,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q4_1",
        base: Type::Q4_1,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q5_0",
        base: Type::Q5_0,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q5_1",
        base: Type::Q5_1,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q2_K",
        base: Type::Q2_K,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q3_K",
        base: Type::Q3_K,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q4_K",
        base: Type::Q4_K,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q4_K_M",
        base: Type::Q4_K,
        head: Type::Q6_K,
        more: Some(Type::Q6_K),
    },
    Mix {
        name: "Q5_K",
        base: Type::Q5_K,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "Q5_K_M",
        base: Type::Q5_K,
        head: Type::Q6_K,
        more: Some(Type::Q6_K),
    },
    Mix {
        name: "Q6_K",
        base: Type::Q6_K,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "IQ4_NL",
        base: Type::IQ4_NL,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "IQ4_XS",
        base: Type::IQ4_XS,
        head: Type::Q6_K,
        more: None,
    },
    Mix {
        name: "MXFP4",
        base: Type::MXFP4,
        head: Type::Q8_0,
        more: None,
    },
];

impl FromStr for Mix {
    type Err = Error;
    fn from_str(s: &str) -> Result<Mix> {
        let found = MIXES
            .iter()
            .find(|m| m.name.eq_ignore_ascii_case(s))
            .copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = MIXES.iter().map(|m| m.name).collect();
            Error::Config(format!("no type `{s}`; there are {}", names.join(", ")))
        })
    }
}

impl Mix {
    /// The type of a matrix with `cols` columns in layer `i` of `n`.
    fn of(&self, wide: bool, i: usize, n: usize, cols: usize) -> Type {
        let use_more = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        let ty = self.more.filter(|_| wide && use_more).unwrap_or(self.base);
        fallback(ty, cols)
    }
}

/// What llama-quantize takes where rows are no whole number of super-blocks.
fn fallback(ty: Type, cols: usize) -> Type {
    if cols.is_multiple_of(ty.block_len()) {
        return ty;
    }
    match ty {
        Type::Q2_K | Type::Q3_K | Type::IQ4_XS => Type::IQ4_NL,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        Type::Q6_K => Type::Q8_0,
        _ => Type::F16,
    }
}

/// A model of this shape with random weights, in memory.
pub fn synthesize(shape: &Shape, mix: Mix, kernels: Arc<Kernels>) -> Result<Weights> {
    let config = shape.config()?;
    let mut seed = 0;
    let mut random = |ty: Type, rows: usize, cols: usize| -> Result<Linear> {
        seed += 1;
        Linear::new(
            ty,
            rows,
            cols,
            Blob::from_vec(kernels::synthesize(ty, rows, cols, seed)?),
        )
    };
    let (d, f, q, kv, n) = (
        config.hidden,
        config.ffn,
        config.q_dim(),
        config.kv_dim(),
        config.layers,
    );
    let ones: Arc<[f32]> = vec![1.0; d].into();
    let mut layers = Vec::with_capacity(n);
    for i in 0..n {
        let plain = |cols| mix.of(false, i, n, cols);
        let wide = |cols| mix.of(true, i, n, cols);
        layers.push(Layer {
            attn_norm: Norm::Rms(ones.clone()),
            q: random(plain(d), q, d)?,
            k: random(plain(d), kv, d)?,
            v: random(wide(d), kv, d)?,
            o: random(plain(q), d, q)?,
            mlp_norm: Norm::Rms(ones.clone()),
            mlp: Mlp::Gated(Gated {
                gate: random(plain(d), f, d)?,
                up: random(plain(d), f, d)?,
                down: random(wide(f), d, f)?,
            }),
        });
    }
    let head = random(fallback(mix.head, d), config.vocab, d)?;
    let embed = match config.tied {
        true => head.clone(),
        false => random(fallback(mix.base, d), config.vocab, d)?,
    };
    Ok(Weights {
        embed,
        positions: None,
        project: None,
        layers,
        norm: Some(Norm::Rms(ones)),
        head,
        rope: config.rope.table(),
        kernels,
        config,
    })
}
