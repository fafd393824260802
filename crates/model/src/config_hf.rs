//! Reading [`Config`] from a Hugging Face config.json, in the form of transformers 4
//! (`rope_theta`, `rope_scaling`) and of transformers 5 (`rope_parameters`).

use kernels::{Activation, Gate, RopeLayout};
use serde_json::Value;

use crate::arch::Arch;
use crate::config::{Config, Experts, MAX_LAYERS, RopeConfig, Scaling, Yarn};
use crate::error::{Error, Result};
use crate::rope::yarn_mscale;

/// Keys that change the result of other models and stand in some config.json files with a value
/// that changes nothing. Any other value is refused. `None` allows only null or absence.
const NEUTRAL: &[(&str, Option<f64>)] = &[
    ("attention_multiplier", None),
    ("attn_logit_softcapping", None),
    ("clip_qkv", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("layer_types", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("no_rope_layers", None),
    ("num_experts", Some(0.0)),
    ("partial_rotary_factor", Some(1.0)),
    ("residual_multiplier", Some(1.0)),
    ("rope_interleaved", Some(0.0)),
    ("scale_emb", Some(1.0)),
    ("sliding_window", None),
    ("use_qk_norm", Some(0.0)),
];

/// The same, of a model that is no Mixtral.
const WITHOUT_EXPERTS: &[(&str, Option<f64>)] = &[("num_local_experts", Some(0.0))];

impl Config {
    /// Reads a parsed config.json. Head width, number of kv heads, rotary base and biases have
    /// transformers' defaults where the file leaves them out.
    pub fn from_hf(json: &Value) -> Result<Config> {
        match architecture(json)? {
            Arch::Llama => Config::from_llama(json),
            Arch::Llama4 => Config::from_llama4(json),
            Arch::Opt => Config::from_opt(json),
        }
    }

    fn from_llama(json: &Value) -> Result<Config> {
        check_neutral(json, NEUTRAL)?;
        let experts = is_mixtral(json);
        if !experts {
            check_neutral(json, WITHOUT_EXPERTS)?;
        }
        let heads = required(json, "num_attention_heads")?;
        let hidden = required(json, "hidden_size")?;
        let head_dim = head_dim(json, hidden, heads)?;
        let context = count(json, "max_position_embeddings")?.unwrap_or(2048);
        Config {
            arch: Arch::Llama,
            vocab: required(json, "vocab_size")?,
            hidden,
            layers: required(json, "num_hidden_layers")?,
            heads,
            kv_heads: count(json, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            ffn: required(json, "intermediate_size")?,
            experts: experts.then(|| mixtral_experts(json)).transpose()?,
            context,
            norm_eps: number(json, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
            activation: activation(json, "hidden_act")?,
            rope: rope(json, head_dim, context)?,
            llama4: None,
            opt: None,
            attention_bias: flag(json, "attention_bias")?.unwrap_or(false),
            mlp_bias: flag(json, "mlp_bias")?.unwrap_or(false),
            norm_affine: true,
            tied: flag(json, "tie_word_embeddings")?.unwrap_or(false),
            bos: ids(json, "bos_token_id")?.first().copied(),
            eos: ids(json, "eos_token_id")?,
        }
        .checked()
    }
}

/// Whether a model that [`Arch::Llama`] computes has experts; both keys say so where both are there.
fn is_mixtral(json: &Value) -> bool {
    let class = json["architectures"].get(0).and_then(Value::as_str);
    class == Some("MixtralForCausalLM") || json["model_type"] == "mixtral"
}

/// Keys that transformers gives Mixtral other defaults for than Llama: one of each list must be there.
const GIVEN: [&[&str]; 4] = [
    &["num_key_value_heads"],
    &["rms_norm_eps"],
    &["max_position_embeddings"],
    &["rope_theta", "rope_parameters"],
];

/// Every layer of a Mixtral has experts, as wide as its configuration says of the MLP.
fn mixtral_experts(json: &Value) -> Result<Experts> {
    let given = |key: &&str| json.get(*key).is_some_and(|v| !v.is_null());
    if let Some(keys) = GIVEN.iter().find(|keys| !keys.iter().any(given)) {
        return Err(Error::Config(format!("config.json lacks `{}`", keys[0])));
    }
    Ok(Experts {
        count: required(json, "num_local_experts")?,
        used: required(json, "num_experts_per_tok")?,
        ffn: required(json, "intermediate_size")?,
        shared: false,
        gate: Gate::Softmax,
        layers: vec![true; required(json, "num_hidden_layers")?.min(MAX_LAYERS)],
    })
}

fn architecture(json: &Value) -> Result<Arch> {
    let model_type = json.get("model_type").and_then(Value::as_str);
    let classes = json.get("architectures").and_then(Value::as_array);
    let class = classes.and_then(|a| a.first()).and_then(Value::as_str);
    let unknown = match (class, model_type) {
        (None, None) => {
            return Err(Error::Config(
                "config.json names neither `architectures` nor `model_type`".into(),
            ));
        }
        // A class that is known beside a type that it does not go with.
        (Some(class), Some(ty)) if Arch::of_hf(Some(class), None).is_some() => ty,
        (Some(name), _) | (None, Some(name)) => name,
    };
    Arch::of_hf(class, model_type).ok_or_else(|| Error::Architecture(unknown.into()))
}

/// The width of a head: as given, or an equal share of the hidden size.
pub(crate) fn head_dim(json: &Value, hidden: usize, heads: usize) -> Result<usize> {
    match count(json, "head_dim")? {
        Some(n) => Ok(n),
        None if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(Error::Config(format!(
            "hidden_size {hidden} is not a multiple of {heads} heads and head_dim is absent"
        ))),
    }
}

pub(crate) fn flag(json: &Value, key: &str) -> Result<Option<bool>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(Error::Config(format!(
            "`{key}` is {}, not true or false",
            short(other)
        ))),
    }
}

/// Refuses keys with a value that would change the result.
pub(crate) fn check_neutral(json: &Value, keys: &[(&str, Option<f64>)]) -> Result<()> {
    for (key, neutral) in keys {
        let value = match json.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(b)) => f64::from(u8::from(*b)),
            Some(v) => v.as_f64().unwrap_or(f64::NAN),
        };
        if *neutral != Some(value) {
            return Err(Error::NotImplemented(format!(
                "`{key}` = {} of config.json",
                short(&json[key])
            )));
        }
    }
    Ok(())
}

pub(crate) fn activation(json: &Value, key: &str) -> Result<Activation> {
    match json.get(key).map(|v| v.as_str().unwrap_or_default()) {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("relu") => Ok(Activation::Relu),
        Some(_) => Err(Error::NotImplemented(format!(
            "`{key}` = {} of config.json",
            short(&json[key])
        ))),
    }
}

pub(crate) fn rope(json: &Value, head_dim: usize, context: usize) -> Result<RopeConfig> {
    let none = Value::Null;
    let nested = json.get("rope_parameters").filter(|v| !v.is_null());
    let old = json.get("rope_scaling").filter(|v| !v.is_null());
    if nested.is_some() && old.is_some() && nested != old {
        return Err(Error::Config(
            "`rope_parameters` and `rope_scaling` of config.json say different things".into(),
        ));
    }
    let scaling = nested.or(old).unwrap_or(&none);
    if !scaling.is_null() && !scaling.is_object() {
        return Err(Error::Config(format!(
            "rope scaling is {}, not an object",
            short(scaling)
        )));
    }
    let nested_theta = number(scaling, "rope_theta")?;
    let theta = nested_theta
        .or(number(json, "rope_theta")?)
        .unwrap_or(10_000.0);
    if let Some(v) = scaling
        .get("partial_rotary_factor")
        .filter(|v| v.as_f64() != Some(1.0))
    {
        return Err(Error::NotImplemented(format!(
            "`partial_rotary_factor` = {v} of config.json"
        )));
    }
    let scaling = scaling_kind(json, scaling, head_dim, context)?;
    Ok(RopeConfig {
        theta,
        dim: head_dim,
        layout: RopeLayout::HalfSplit,
        scaling,
    })
}

fn scaling_kind(json: &Value, s: &Value, head_dim: usize, context: usize) -> Result<Scaling> {
    let name = s
        .get("rope_type")
        .or(s.get("type"))
        .map(|v| v.as_str().unwrap_or_default());
    let need = |key: &str| {
        number(s, key)?.ok_or_else(|| Error::Config(format!("rope scaling lacks `{key}`")))
    };
    let original = || -> Result<Option<f64>> {
        let key = "original_max_position_embeddings";
        Ok(number(s, key)?.or(number(json, key)?))
    };
    match name {
        None if s.get("factor").is_some() => Err(Error::Config(
            "rope scaling has a factor but no `rope_type`".into(),
        )),
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear {
            factor: need("factor")?,
        }),
        Some("dynamic") => Ok(Scaling::Dynamic { original: context }),
        Some("llama3") => Ok(Scaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original: original()?.ok_or_else(|| {
                Error::Config("rope scaling lacks `original_max_position_embeddings`".into())
            })?,
        }),
        Some("yarn") => yarn(s, need("factor")?, original()?.unwrap_or(context as f64)),
        Some("longrope") => longrope(s, head_dim, context, original()?),
        Some(other) => Err(Error::NotImplemented(format!(
            "rope scaling of type `{other}`"
        ))),
    }
}

/// Defaults as in transformers: factors of 0 or null count as absent.
fn yarn(s: &Value, factor: f64, original: f64) -> Result<Scaling> {
    let some = |key: &str| number(s, key).map(|n| n.filter(|n| *n != 0.0));
    let attention_factor = match (
        number(s, "attention_factor")?,
        some("mscale")?,
        some("mscale_all_dim")?,
    ) {
        (Some(a), _, _) => a,
        (None, Some(m), Some(all)) => yarn_mscale(factor, m) / yarn_mscale(factor, all),
        (None, _, _) => yarn_mscale(factor, 1.0),
    };
    Ok(Scaling::Yarn(Yarn {
        factor,
        original,
        attention_factor,
        beta_fast: some("beta_fast")?.unwrap_or(32.0),
        beta_slow: some("beta_slow")?.unwrap_or(1.0),
        truncate: s.get("truncate").and_then(Value::as_bool).unwrap_or(true),
    }))
}

fn longrope(s: &Value, head_dim: usize, context: usize, original: Option<f64>) -> Result<Scaling> {
    let factors = s.get("short_factor").and_then(Value::as_array);
    let short: Option<Vec<f64>> = factors
        .filter(|a| a.len() == head_dim / 2)
        .and_then(|a| a.iter().map(Value::as_f64).collect());
    let short = short.ok_or_else(|| {
        Error::Config(format!(
            "rope scaling needs `short_factor`, {} numbers",
            head_dim / 2
        ))
    })?;
    let (factor, original) = match original {
        Some(o) if o > 0.0 => (Some(context as f64 / o), o),
        _ => (number(s, "factor")?, context as f64),
    };
    let attention_factor = match (number(s, "attention_factor")?, factor) {
        (Some(a), _) => a,
        (None, Some(f)) if f > 1.0 => (1.0 + f.ln() / original.ln()).sqrt(),
        (None, Some(_)) => 1.0,
        (None, None) => return Err(Error::Config("rope scaling lacks `factor`".into())),
    };
    Ok(Scaling::LongRope {
        short,
        attention_factor,
        original: original as usize,
    })
}

pub(crate) fn required(json: &Value, key: &str) -> Result<usize> {
    count(json, key)?.ok_or_else(|| Error::Config(format!("config.json lacks `{key}`")))
}

pub(crate) fn count(json: &Value, key: &str) -> Result<Option<usize>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => v
            .as_u64()
            .map(|n| Some(usize::try_from(n).unwrap_or(usize::MAX)))
            .ok_or_else(|| {
                Error::Config(format!(
                    "`{key}` of config.json is {}, not a count",
                    short(v)
                ))
            }),
    }
}

pub(crate) fn number(json: &Value, key: &str) -> Result<Option<f64>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => v
            .as_f64()
            .map(Some)
            .ok_or_else(|| Error::Config(format!("`{key}` is {}, not a number", short(v)))),
    }
}

/// Token ids given as one number or a list of them.
pub(crate) fn ids(json: &Value, key: &str) -> Result<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let found = match json.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(a)) => a.iter().map(id).collect(),
        // -1 stands for "none" in early files.
        Some(v) if v.as_i64() == Some(-1) => Some(Vec::new()),
        Some(v) => id(v).map(|n| vec![n]),
    };
    found.ok_or_else(|| {
        Error::Config(format!(
            "`{key}` is {}, not a token id or a list of them",
            short(&json[key])
        ))
    })
}

/// A value as JSON, cut to a length fit for a message.
pub(crate) fn short(v: &Value) -> String {
    let mut s = v.to_string();
    if let Some((at, _)) = s.char_indices().nth(80) {
        s.truncate(at);
        s.push_str("...");
    }
    s
}
