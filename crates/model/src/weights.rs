//! The weights of a model: views of the mapped file, checked against the configuration.

use std::path::Path;
use std::sync::Arc;

use files::gguf::Gguf;
use files::hf::HfDir;
use files::{Blob, Kind, Tensor, Tensors};
use kernels::{Kernels, Matrix, Rope, Type};

use crate::adapter::Target;
use crate::config::Config;
use crate::error::{Error, Result};

/// One weight matrix `[rows, cols]` with its bias: y = W x + b.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) ty: Type,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    data: Blob,
    pub(crate) bias: Option<Arc<[f32]>>,
}

impl Linear {
    pub(crate) fn new(ty: Type, rows: usize, cols: usize, data: Blob) -> Result<Linear> {
        Matrix::new(ty, rows, cols, &data)?;
        Ok(Linear {
            ty,
            rows,
            cols,
            data,
            bias: None,
        })
    }

    pub(crate) fn matrix(&self) -> Result<Matrix<'_>> {
        Ok(Matrix::new(self.ty, self.rows, self.cols, &self.data)?)
    }
}

/// One block.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Arc<[f32]>, // (hidden)
    pub(crate) q: Linear,             // (heads * head_dim, hidden)
    pub(crate) k: Linear,             // (kv_heads * head_dim, hidden)
    pub(crate) v: Linear,             // (kv_heads * head_dim, hidden)
    pub(crate) o: Linear,             // (hidden, heads * head_dim)
    pub(crate) mlp_norm: Arc<[f32]>,  // (hidden)
    pub(crate) gate: Linear,          // (ffn, hidden)
    pub(crate) up: Linear,            // (ffn, hidden)
    pub(crate) down: Linear,          // (hidden, ffn)
}

/// A model ready to run: configuration, weights, rotary table, and the kernels it runs on.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Its shape.
    pub config: Config,
    pub(crate) embed: Linear, // (vocab, hidden)
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Arc<[f32]>, // (hidden)
    pub(crate) head: Linear,     // (vocab, hidden); the table itself when tied
    pub(crate) rope: Rope,
    pub(crate) kernels: Arc<Kernels>,
}

/// How a format names the tensors of a model.
pub(crate) struct Names {
    pub(crate) embed: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    /// Before the layer number.
    pub(crate) block: &'static str,
    /// attn_norm, q, k, v, o, mlp_norm, gate, up, down
    pub(crate) parts: [&'static str; 9],
    /// Whole names that are read elsewhere or change nothing.
    pub(crate) extra: &'static [&'static str],
    /// Ends of names that change nothing.
    pub(crate) ignored: &'static [&'static str],
    /// Whether a biased block may leave out the bias of single projections.
    pub(crate) bias_optional: bool,
}

/// llama.cpp's `gguf-py` constants for the architecture `llama`.
pub(crate) const GGUF: Names = Names {
    embed: "token_embd",
    norm: "output_norm",
    head: "output",
    block: "blk.",
    parts: [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ],
    extra: &[
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
    ],
    ignored: &[".attn_rot_embd.weight"],
    bias_optional: true,
};

/// transformers' LlamaForCausalLM.
pub(crate) const HF: Names = Names {
    embed: "model.embed_tokens",
    norm: "model.norm",
    head: "lm_head",
    block: "model.layers.",
    parts: [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    extra: &[],
    ignored: &[".self_attn.rotary_emb.inv_freq"],
    bias_optional: false,
};

/// Opens a model file or directory, told apart by content.
pub fn open(path: &Path, kernels: Arc<Kernels>) -> Result<Weights> {
    let other = |what: &str| Error::Open {
        path: path.display().to_string(),
        what: what.into(),
    };
    match files::detect(path)? {
        Kind::Gguf => Weights::from_gguf(&Gguf::open(path)?, kernels),
        Kind::HfDir => Weights::from_hf(&HfDir::open(path)?, kernels),
        kind => Err(other(&format!(
            "is {}; this version opens GGUF files and Hugging Face directories",
            kind.describe()
        ))),
    }
}

impl Weights {
    /// The model in a GGUF. Nothing is copied but norms and biases.
    pub fn from_gguf(gguf: &Gguf, kernels: Arc<Kernels>) -> Result<Weights> {
        Weights::load(Config::from_gguf(gguf)?, &gguf.tensors, &GGUF, kernels)
    }

    /// The model in a Hugging Face directory. Nothing is copied but norms and biases.
    pub fn from_hf(dir: &HfDir, kernels: Arc<Kernels>) -> Result<Weights> {
        Weights::load(Config::from_hf(&dir.config)?, &dir.tensors, &HF, kernels)
    }

    fn load(
        config: Config,
        tensors: &Tensors,
        names: &Names,
        kernels: Arc<Kernels>,
    ) -> Result<Weights> {
        refuse_unknown(&config, tensors, names)?;
        let c = &config;
        let (d, f, q, kv) = (c.hidden, c.ffn, c.q_dim(), c.kv_dim());
        let bias = |on: bool| match (on, names.bias_optional) {
            (false, _) => Bias::None,
            (true, false) => Bias::Needed,
            (true, true) => Bias::Optional,
        };
        let (ab, mb) = (bias(c.attention_bias), bias(c.mlp_bias));
        let linear = |stem: &str, rows, cols, bias| linear(tensors, stem, rows, cols, bias);
        let embed = linear(names.embed, c.vocab, d, Bias::None)?;
        let layer = |i: usize| -> Result<Layer> {
            let name = |part: usize| format!("{}{i}.{}", names.block, names.parts[part]);
            Ok(Layer {
                attn_norm: norm(tensors, &name(0), d)?,
                q: linear(&name(1), q, d, ab)?,
                k: linear(&name(2), kv, d, ab)?,
                v: linear(&name(3), kv, d, ab)?,
                o: linear(&name(4), d, q, ab)?,
                mlp_norm: norm(tensors, &name(5), d)?,
                gate: linear(&name(6), f, d, mb)?,
                up: linear(&name(7), f, d, mb)?,
                down: linear(&name(8), d, f, mb)?,
            })
        };
        let head = match c.tied {
            true => embed.clone(),
            false => linear(names.head, c.vocab, d, Bias::None)?,
        };
        Ok(Weights {
            embed,
            layers: (0..c.layers).map(layer).collect::<Result<_>>()?,
            norm: norm(tensors, names.norm, d)?,
            head,
            rope: config.rope.table(),
            kernels,
            config,
        })
    }

    /// The kernels that this model runs on.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The same weights on other kernels (level, compute mode, threads). Copies nothing.
    pub fn with_kernels(&self, kernels: Arc<Kernels>) -> Weights {
        Weights {
            kernels,
            ..self.clone()
        }
    }

    /// Bytes of all weight matrices, the embedding table counted once.
    pub fn bytes(&self) -> u64 {
        let blocks = self.layers.iter().flat_map(Layer::matrices);
        let head = (!self.config.tied).then_some(&self.head);
        blocks
            .chain([&self.embed])
            .chain(head)
            .map(|l| l.data.len() as u64)
            .sum()
    }

    /// Bytes of weights that decoding one token reads: everything but the embedding table, which
    /// counts only where it is the head too.
    pub fn bytes_per_token(&self) -> u64 {
        let blocks = self.layers.iter().flat_map(Layer::matrices);
        blocks
            .chain([&self.head])
            .map(|l| l.data.len() as u64)
            .sum()
    }

    /// The storage types of the matrices, with the bytes in each, largest first.
    pub fn types(&self) -> Vec<(Type, u64)> {
        let mut sums: Vec<(Type, u64)> = Vec::new();
        let all = self
            .layers
            .iter()
            .flat_map(Layer::matrices)
            .chain([&self.embed]);
        for l in all.chain((!self.config.tied).then_some(&self.head)) {
            match sums.iter_mut().find(|(t, _)| *t == l.ty) {
                Some((_, n)) => *n += l.data.len() as u64,
                None => sums.push((l.ty, l.data.len() as u64)),
            }
        }
        sums.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        sums
    }

    /// `[out, in]` of one projection; `None` if there is no such layer.
    pub fn shape_of(&self, layer: usize, target: Target) -> Option<(usize, usize)> {
        let l = self.layers.get(layer)?.target(target);
        Some((l.rows, l.cols))
    }
}

impl Layer {
    fn matrices(&self) -> [&Linear; 7] {
        [
            &self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down,
        ]
    }

    pub(crate) fn target(&self, target: Target) -> &Linear {
        match target {
            Target::Q => &self.q,
            Target::K => &self.k,
            Target::V => &self.v,
            Target::O => &self.o,
            Target::Gate => &self.gate,
            Target::Up => &self.up,
            Target::Down => &self.down,
        }
    }
}

/// A tensor that nothing reads might change the result: an error that names it.
fn refuse_unknown(c: &Config, tensors: &Tensors, names: &Names) -> Result<()> {
    let known = |name: &str| {
        if names.extra.contains(&name) || names.ignored.iter().any(|end| name.ends_with(end)) {
            return true;
        }
        let (stem, bias) = match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
            (Some(stem), _) => (stem, false),
            (_, Some(stem)) => (stem, true),
            _ => return false,
        };
        if [names.embed, names.norm, names.head].contains(&stem) {
            return !bias;
        }
        let Some((number, part)) = stem
            .strip_prefix(names.block)
            .and_then(|s| s.split_once('.'))
        else {
            return false;
        };
        let inside = number.parse::<usize>().is_ok_and(|i| i < c.layers);
        inside
            && match names.parts.iter().position(|p| *p == part) {
                Some(1..=4) => !bias || c.attention_bias,
                Some(6..=8) => !bias || c.mlp_bias,
                Some(_) => !bias,
                None => false,
            }
    };
    match tensors.iter().find(|t| !known(&t.name)) {
        Some(t) => Err(Error::NotImplemented(format!("tensor `{}`", t.name))),
        None => Ok(()),
    }
}

/// Whether a projection has a bias.
#[derive(Clone, Copy, PartialEq)]
enum Bias {
    None,
    Optional,
    Needed,
}

fn linear(tensors: &Tensors, stem: &str, rows: usize, cols: usize, bias: Bias) -> Result<Linear> {
    let t = get(tensors, &format!("{stem}.weight"), &[rows, cols])?;
    let mut l = Linear::new(storage(t)?, rows, cols, t.data.clone())?;
    let name = format!("{stem}.bias");
    if bias == Bias::Needed || bias == Bias::Optional && tensors.get(&name).is_some() {
        l.bias = Some(vector(get(tensors, &name, &[rows])?, Some(rows))?.into());
    }
    Ok(l)
}

fn norm(tensors: &Tensors, stem: &str, len: usize) -> Result<Arc<[f32]>> {
    let t = get(tensors, &format!("{stem}.weight"), &[len])?;
    Ok(vector(t, Some(len))?.into())
}

fn get<'t>(tensors: &'t Tensors, name: &str, shape: &[usize]) -> Result<&'t Tensor> {
    let wrong = |what: String| Error::Tensor {
        name: name.into(),
        what,
    };
    let t = tensors
        .get(name)
        .ok_or_else(|| wrong("is missing".into()))?;
    match t.shape == shape {
        true => Ok(t),
        false => Err(wrong(format!(
            "has shape {:?}; the configuration says {shape:?}",
            t.shape
        ))),
    }
}

/// A small tensor as f32: norm gains, biases, frequency divisors.
pub(crate) fn vector(t: &Tensor, len: Option<usize>) -> Result<Vec<f32>> {
    let wrong = |what: String| Error::Tensor {
        name: t.name.clone(),
        what,
    };
    let [n] = t.shape[..] else {
        return Err(wrong(format!(
            "has shape {:?}; one axis is needed",
            t.shape
        )));
    };
    if len.is_some_and(|len| len != n) {
        return Err(wrong(format!(
            "has {n} values; {} are needed",
            len.unwrap_or_default()
        )));
    }
    let mut out = vec![0.0; n];
    kernels::dequantize(storage(t)?, &t.data, &mut out)?;
    Ok(out)
}

/// The kernels' storage type of a file's tensor.
pub(crate) fn storage(t: &Tensor) -> Result<Type> {
    let name = t.dtype.name();
    let found = Type::ALL.iter().copied().find(|ty| ty.name() == name);
    found.ok_or_else(|| Error::Tensor {
        name: t.name.clone(),
        what: format!("has storage type {name}, which this version cannot compute with"),
    })
}
