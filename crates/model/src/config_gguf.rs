//! Reading [`Config`] from the metadata and tensors of a GGUF of architecture `llama`.

use files::gguf::{Gguf, Metadata, Value};
use kernels::{Activation, RopeLayout};

use crate::config::{Config, RopeConfig, Scaling, Yarn};
use crate::error::{Error, Result};
use crate::rope::yarn_mscale;

/// The only architecture name that this reader knows.
const ARCH: &str = "llama";

/// Keys under `llama.` that are read below.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
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

/// Keys under `llama.` that do not change the result.
const HARMLESS: &[&str] = &[
    "pooling_type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "rope.dimension_sections",
];

/// Keys under `llama.` that change the result of other models, with the value that changes
/// nothing. Any other value, and any key not named here, is refused.
const NEUTRAL: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("attention.sliding_window", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("use_parallel_residual", 0.0),
];

impl Config {
    /// Reads the metadata of a GGUF; the tensors tell what the keys leave open (vocabulary, tied
    /// head, biases, frequency divisors).
    pub fn from_gguf(gguf: &Gguf) -> Result<Config> {
        let m = &gguf.metadata;
        match m.str("general.architecture") {
            Some(ARCH) => {}
            Some(other) => return Err(Error::Architecture(other.into())),
            None => {
                return Err(Error::Config(
                    "the GGUF lacks `general.architecture`".into(),
                ));
            }
        }
        if let Some(kind) = m.str("general.type").filter(|t| *t != "model") {
            return Err(Error::Config(format!(
                "the GGUF holds a `{kind}`, not a model"
            )));
        }
        check_keys(m)?;
        let layers = required(m, "block_count")?;
        let heads = required(m, "attention.head_count")?;
        let hidden = required(m, "embedding_length")?;
        let head_dim = match (
            count(m, "attention.key_length")?,
            count(m, "attention.value_length")?,
        ) {
            (Some(k), Some(v)) if k != v => {
                return Err(Error::NotImplemented(format!(
                    "key length {k} beside value length {v}"
                )));
            }
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            (None, None) => {
                return Err(Error::Config(format!(
                    "embedding length {hidden} is not a multiple of {heads} heads"
                )));
            }
        };
        let context = required(m, "context_length")?;
        let vocab = vocabulary(gguf, m)?;
        let bias = |names: &[&str]| {
            names
                .iter()
                .any(|n| gguf.tensors.get(&format!("blk.0.{n}.bias")).is_some())
        };
        let id = |key: &str| m.u64(key).and_then(|n| u32::try_from(n).ok());
        Config {
            arch: ARCH.into(),
            vocab,
            hidden,
            layers,
            heads,
            kv_heads: count(m, "attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn: required(m, "feed_forward_length")?,
            context,
            norm_eps: m
                .f64(&key("attention.layer_norm_rms_epsilon"))
                .ok_or_else(|| lacks("attention.layer_norm_rms_epsilon"))?
                as f32,
            activation: Activation::Silu,
            rope: rope(gguf, m, head_dim, context)?,
            attention_bias: bias(&["attn_q", "attn_k", "attn_v", "attn_output"]),
            mlp_bias: bias(&["ffn_gate", "ffn_up", "ffn_down"]),
            tied: gguf.tensors.get("output.weight").is_none(),
            bos: id("tokenizer.ggml.bos_token_id"),
            eos: id("tokenizer.ggml.eos_token_id").into_iter().collect(),
        }
        .checked()
    }
}

fn check_keys(m: &Metadata) -> Result<()> {
    for (name, value) in m.iter() {
        let Some(name) = name.strip_prefix("llama.") else {
            continue;
        };
        if READ.contains(&name) || HARMLESS.contains(&name) {
            continue;
        }
        let found = match value {
            Value::Bool(b) => Some(f64::from(u8::from(*b))),
            _ => m.f64(&key(name)),
        };
        let neutral = NEUTRAL.iter().find(|(n, _)| *n == name).map(|(_, x)| *x);
        if neutral.is_none() || neutral != found {
            return Err(Error::NotImplemented(format!(
                "metadata key `llama.{name}`"
            )));
        }
    }
    Ok(())
}

fn vocabulary(gguf: &Gguf, m: &Metadata) -> Result<usize> {
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
    match count(m, "vocab_size")? {
        Some(n) if n != rows => Err(Error::Config(format!(
            "`llama.vocab_size` is {n}, the embedding table has {rows} rows"
        ))),
        _ => Ok(rows),
    }
}

fn rope(gguf: &Gguf, m: &Metadata, head_dim: usize, context: usize) -> Result<RopeConfig> {
    Ok(RopeConfig {
        theta: m.f64(&key("rope.freq_base")).unwrap_or(10_000.0),
        dim: count(m, "rope.dimension_count")?.unwrap_or(head_dim),
        layout: RopeLayout::Interleaved,
        scaling: scaling(gguf, m, context)?,
    })
}

fn scaling(gguf: &Gguf, m: &Metadata, context: usize) -> Result<Scaling> {
    let kind = m.str(&key("rope.scaling.type"));
    let factor = m
        .f64(&key("rope.scaling.factor"))
        .or(m.f64(&key("rope.scale_linear")))
        .filter(|f| *f != 0.0);
    let attn_factor = m.f64(&key("rope.scaling.attn_factor"));
    let original = count(m, "rope.scaling.original_context_length")?.unwrap_or(context);
    let divisors = |name: &str| -> Result<Option<Vec<f32>>> {
        gguf.tensors
            .get(name)
            .map(|t| crate::weights::vector(t, None))
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
        return Err(Error::NotImplemented(
            "metadata key `llama.rope.scaling.attn_factor` without yarn".into(),
        ));
    }
    match (kind, factor) {
        (None | Some("none"), _) if listed.is_some() => {
            Ok(Scaling::Divisors(listed.unwrap_or_default()))
        }
        // Early files carry only `rope.scale_linear`, or a factor without a type.
        (None | Some("linear"), Some(factor)) => Ok(Scaling::Linear { factor }),
        (None | Some("none" | "linear"), _) => Ok(Scaling::None),
        (Some("yarn"), factor) => {
            let factor = factor.ok_or_else(|| lacks("rope.scaling.factor"))?;
            Ok(Scaling::Yarn(Yarn {
                factor,
                original: original as f64,
                attention_factor: attn_factor.unwrap_or(1.0) * yarn_mscale(factor, 1.0),
                beta_fast: m.f64(&key("rope.scaling.yarn_beta_fast")).unwrap_or(32.0),
                beta_slow: m.f64(&key("rope.scaling.yarn_beta_slow")).unwrap_or(1.0),
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

fn key(name: &str) -> String {
    format!("{ARCH}.{name}")
}

fn lacks(name: &str) -> Error {
    Error::Config(format!("the GGUF lacks `{}`", key(name)))
}

fn required(m: &Metadata, name: &str) -> Result<usize> {
    count(m, name)?.ok_or_else(|| lacks(name))
}

/// A count given once, or once per layer with the same value everywhere.
fn count(m: &Metadata, name: &str) -> Result<Option<usize>> {
    let k = key(name);
    if m.get(&k).is_none() {
        return Ok(None);
    }
    let not_a_count = || Error::Config(format!("`{k}` is not a count"));
    let n = match m.ints(&k) {
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
        None => m.u64(&k).ok_or_else(not_a_count)?,
    };
    Ok(Some(usize::try_from(n).unwrap_or(usize::MAX)))
}
