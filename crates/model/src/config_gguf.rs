//! Reading [`Config`] from the metadata and tensors of a GGUF of architecture `llama` or `llama4`.

use files::gguf::{Gguf, Metadata, Value};
use kernels::{Activation, Gate, RopeLayout};

use crate::arch::Arch;
use crate::config::{Config, Experts, Llama4, MAX_LAYERS, RopeConfig, Scaling, Temperature, Yarn};
use crate::error::{Error, Result};
use crate::rope::yarn_mscale;

/// Keys under the architecture's name that are read below.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
];

/// Further keys that are read of one architecture.
const READ_LLAMA4: &[&str] = &[
    "attention.sliding_window",
    "expert_feed_forward_length",
    "interleave_moe_layer_step",
];

/// Keys under the architecture's name that do not change the result.
const HARMLESS: &[&str] = &[
    "pooling_type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "rope.dimension_sections",
];

/// Keys under the architecture's name that change the result of other models, with the value that changes
/// nothing. Any other value, and any key not named here, is refused.
const NEUTRAL: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("attention.sliding_window", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("use_parallel_residual", 0.0),
];

/// The positions of Llama 4's chunks and of its attention temperature, which GGUF has no keys for:
/// llama.cpp takes these of every file.
const LLAMA4_CHUNK: usize = 8192;
const LLAMA4_TEMPERATURE: Temperature = Temperature {
    floor: 8192.0,
    scale: 0.1,
};
/// Every so many layers one is not rotated and sees all positions; likewise.
const LLAMA4_PERIOD: usize = 4;
/// The one number of experts whose model has no norm of queries and keys (Maverick); likewise.
const LLAMA4_EXPERTS_WITHOUT_QK_NORM: usize = 128;

impl Config {
    /// Reads the metadata of a GGUF; the tensors tell what the keys leave open (vocabulary, tied
    /// head, biases, frequency divisors).
    pub fn from_gguf(gguf: &Gguf) -> Result<Config> {
        let k = &Keys::of(&gguf.metadata)?;
        let layers = k.required("block_count")?;
        let heads = k.required("attention.head_count")?;
        let hidden = k.required("embedding_length")?;
        let head_dim = head_dim(k, heads, hidden)?;
        let context = k.required("context_length")?;
        let ffn = k.required("feed_forward_length")?;
        let vocab = vocabulary(gguf, k)?;
        let (experts, llama4) = special(&gguf.metadata)?;
        let bias = |names: &[&str]| {
            names
                .iter()
                .any(|n| gguf.tensors.get(&format!("blk.0.{n}.bias")).is_some())
        };
        let id = |key: &str| k.m.u64(key).and_then(|n| u32::try_from(n).ok());
        Config {
            arch: k.arch,
            vocab,
            hidden,
            layers,
            heads,
            kv_heads: k.count("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn,
            experts,
            context,
            norm_eps: k
                .number("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| k.lacks("attention.layer_norm_rms_epsilon"))?
                as f32,
            activation: Activation::Silu,
            rope: rope(gguf, k, head_dim, context)?,
            llama4,
            opt: None,
            attention_bias: bias(&["attn_q", "attn_k", "attn_v", "attn_output"]),
            mlp_bias: bias(&["ffn_gate", "ffn_up", "ffn_down"]),
            norm_affine: true,
            tied: gguf.tensors.get("output.weight").is_none(),
            bos: id("tokenizer.ggml.bos_token_id"),
            eos: id("tokenizer.ggml.eos_token_id").into_iter().collect(),
        }
        .checked()
    }
}

/// What the metadata of a GGUF says of experts and of Llama 4's attention.
pub(crate) fn special(m: &Metadata) -> Result<(Option<Experts>, Option<Llama4>)> {
    let k = &Keys::of(m)?;
    let layers = k.required("block_count")?;
    let experts = experts(k, layers, k.required("feed_forward_length")?)?;
    let count = experts.as_ref().map_or(0, |e| e.count);
    let llama4 = llama4(k, layers, count)?;
    Ok((experts, llama4))
}

/// The keys of one architecture.
struct Keys<'a> {
    m: &'a Metadata,
    arch: Arch,
}

impl Keys<'_> {
    fn of(m: &Metadata) -> Result<Keys<'_>> {
        let Some(name) = m.str("general.architecture") else {
            return Err(Error::Config(
                "the GGUF lacks `general.architecture`".into(),
            ));
        };
        let arch = Arch::of_gguf(name).ok_or_else(|| Error::Architecture(name.into()))?;
        if let Some(kind) = m.str("general.type").filter(|t| *t != "model") {
            return Err(Error::Config(format!(
                "the GGUF holds a `{kind}`, not a model"
            )));
        }
        let keys = Keys { m, arch };
        keys.refuse_unknown()?;
        Ok(keys)
    }

    fn refuse_unknown(&self) -> Result<()> {
        let own = match self.arch {
            Arch::Llama4 => READ_LLAMA4,
            Arch::Llama | Arch::Opt => &[],
        };
        for (whole, value) in self.m.iter() {
            let name = match whole.split_once('.') {
                Some((arch, name)) if arch == self.arch.name() => name,
                _ => continue,
            };
            if [READ, HARMLESS, own].iter().any(|l| l.contains(&name)) {
                continue;
            }
            let found = match value {
                Value::Bool(b) => Some(f64::from(u8::from(*b))),
                _ => self.number(name),
            };
            let neutral = NEUTRAL.iter().find(|(n, _)| *n == name).map(|(_, x)| *x);
            if neutral.is_none() || neutral != found {
                return Err(Error::NotImplemented(format!("metadata key `{whole}`")));
            }
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch.name())
    }

    fn lacks(&self, name: &str) -> Error {
        Error::Config(format!("the GGUF lacks `{}`", self.key(name)))
    }

    fn str(&self, name: &str) -> Option<&str> {
        self.m.str(&self.key(name))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.m.f64(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| self.lacks(name))
    }

    /// A count given once, or once per layer with the same value everywhere.
    fn count(&self, name: &str) -> Result<Option<usize>> {
        let k = self.key(name);
        if self.m.get(&k).is_none() {
            return Ok(None);
        }
        let not_a_count = || Error::Config(format!("`{k}` is not a count"));
        let n = match self.m.ints(&k) {
            Some(all) => match all.split_first() {
                Some((first, rest)) if rest.iter().all(|n| n == first) => {
                    u64::try_from(*first).map_err(|_| not_a_count())?
                }
                Some(_) => {
                    return Err(Error::NotImplemented(format!(
                        "`{k}` that differs from layer to layer"
                    )));
                }
                None => return Err(not_a_count()),
            },
            None => self.m.u64(&k).ok_or_else(not_a_count)?,
        };
        Ok(Some(usize::try_from(n).unwrap_or(usize::MAX)))
    }
}

fn head_dim(k: &Keys, heads: usize, hidden: usize) -> Result<usize> {
    match (
        k.count("attention.key_length")?,
        k.count("attention.value_length")?,
    ) {
        (Some(k), Some(v)) if k != v => Err(Error::NotImplemented(format!(
            "key length {k} beside value length {v}"
        ))),
        (Some(n), _) | (None, Some(n)) => Ok(n),
        (None, None) if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
        (None, None) => Err(Error::Config(format!(
            "embedding length {hidden} is not a multiple of {heads} heads"
        ))),
    }
}

/// The mixtures of experts. `llama`: in every layer, as wide as the feed-forward length says
/// (Mixtral). `llama4`: in the last of every few layers, with a width of their own.
fn experts(k: &Keys, layers: usize, ffn: usize) -> Result<Option<Experts>> {
    let count = k.count("expert_count")?.unwrap_or(0);
    if count == 0 {
        return match k.count("expert_used_count")?.unwrap_or(0) {
            0 => Ok(None),
            n => Err(Error::Config(format!("{n} of 0 experts are used"))),
        };
    }
    let llama4 = k.arch == Arch::Llama4;
    let (every, ffn) = match llama4 {
        true => (
            k.required("interleave_moe_layer_step")?,
            k.required("expert_feed_forward_length")?,
        ),
        false => (1, ffn),
    };
    let layers = 0..layers.min(MAX_LAYERS);
    Ok(Some(Experts {
        count,
        used: k.required("expert_used_count")?,
        ffn,
        shared: llama4,
        gate: if llama4 { Gate::Sigmoid } else { Gate::Softmax },
        layers: layers
            .map(|i| every > 0 && (i + 1).is_multiple_of(every))
            .collect(),
    }))
}

fn llama4(k: &Keys, layers: usize, experts: usize) -> Result<Option<Llama4>> {
    if k.arch != Arch::Llama4 {
        return Ok(None);
    }
    let local = match k.count("attention.sliding_window")? {
        None => true,
        Some(LLAMA4_CHUNK) => true,
        // So llama.cpp marks a model of plain layers.
        Some(0) => false,
        Some(n) => {
            return Err(Error::NotImplemented(format!(
                "`llama4.attention.sliding_window` = {n}"
            )));
        }
    };
    let inner: Vec<bool> = (0..layers.min(MAX_LAYERS))
        .map(|i| !(i + 1).is_multiple_of(LLAMA4_PERIOD))
        .collect();
    Ok(Some(Llama4 {
        rotates: inner.iter().map(|inner| *inner || !local).collect(),
        chunked: inner.iter().map(|inner| *inner && local).collect(),
        chunk: LLAMA4_CHUNK,
        qk_norm: experts != LLAMA4_EXPERTS_WITHOUT_QK_NORM,
        temperature: local.then_some(LLAMA4_TEMPERATURE),
    }))
}

fn vocabulary(gguf: &Gguf, k: &Keys) -> Result<usize> {
    let rows = match gguf
        .tensors
        .get("token_embd.weight")
        .map(|t| t.shape.as_slice())
    {
        Some([rows, _]) => *rows,
        _ => {
            return Err(Error::Tensor {
                name: "token_embd.weight".into(),
                what: "is missing or not a matrix".into(),
            });
        }
    };
    match k.count("vocab_size")? {
        Some(n) if n != rows => Err(Error::Config(format!(
            "`{}` is {n}, the embedding table has {rows} rows",
            k.key("vocab_size")
        ))),
        _ => Ok(rows),
    }
}

fn rope(gguf: &Gguf, k: &Keys, head_dim: usize, context: usize) -> Result<RopeConfig> {
    Ok(RopeConfig {
        theta: k.number("rope.freq_base").unwrap_or(10_000.0),
        dim: k.count("rope.dimension_count")?.unwrap_or(head_dim),
        layout: RopeLayout::Interleaved,
        scaling: scaling(gguf, k, context)?,
    })
}

fn scaling(gguf: &Gguf, k: &Keys, context: usize) -> Result<Scaling> {
    let kind = k.str("rope.scaling.type");
    let factor = k
        .number("rope.scaling.factor")
        .or(k.number("rope.scale_linear"))
        .filter(|f| *f != 0.0);
    let attn_factor = k.number("rope.scaling.attn_factor");
    let original = k
        .count("rope.scaling.original_context_length")?
        .unwrap_or(context);
    let divisors = |name: &str| -> Result<Option<Vec<f32>>> {
        gguf.tensors
            .get(name)
            .map(|t| crate::tensors::vector(t, None))
            .transpose()
    };
    let listed = divisors("rope_freqs.weight")?;
    if listed.is_some()
        && (!matches!(kind, None | Some("none")) || factor.is_some_and(|f| f != 1.0))
    {
        return Err(Error::NotImplemented(format!(
            "`rope_freqs.weight` beside rope scaling of type `{}`",
            kind.unwrap_or("linear")
        )));
    }
    let long = ["rope_factors_short.weight", "rope_factors_long.weight"];
    if kind != Some("longrope")
        && let Some(name) = long.iter().find(|n| gguf.tensors.get(n).is_some())
    {
        return Err(Error::NotImplemented(format!(
            "tensor `{name}` without rope scaling of type `longrope`"
        )));
    }
    if attn_factor.is_some_and(|a| a != 1.0) && !matches!(kind, Some("yarn" | "longrope")) {
        return Err(Error::NotImplemented(format!(
            "metadata key `{}` without yarn",
            k.key("rope.scaling.attn_factor")
        )));
    }
    match (kind, factor) {
        (None | Some("none"), _) if listed.is_some() => {
            Ok(Scaling::Divisors(listed.unwrap_or_default()))
        }
        // Early files carry only `rope.scale_linear`, or a factor without a type.
        (None | Some("linear"), Some(factor)) => Ok(Scaling::Linear { factor }),
        (None | Some("none" | "linear"), _) => Ok(Scaling::None),
        (Some("yarn"), factor) => {
            let factor = factor.ok_or_else(|| k.lacks("rope.scaling.factor"))?;
            Ok(Scaling::Yarn(Yarn {
                factor,
                original: original as f64,
                attention_factor: attn_factor.unwrap_or(1.0) * yarn_mscale(factor, 1.0),
                beta_fast: k.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: k.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                truncate: true,
            }))
        }
        (Some("longrope"), _) => {
            let short = divisors("rope_factors_short.weight")?.ok_or_else(|| Error::Tensor {
                name: "rope_factors_short.weight".into(),
                what: "is missing".into(),
            })?;
            Ok(Scaling::LongRope {
                short: short.into_iter().map(f64::from).collect(),
                attention_factor: attn_factor.unwrap_or(1.0),
                original,
            })
        }
        (Some(other), _) => Err(Error::NotImplemented(format!(
            "rope scaling of type `{other}`"
        ))),
    }
}
