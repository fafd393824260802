//! Reading [`Config`] from the config.json of a Llama 4 model; of one with a vision part, what it
//! says of text. Defaults are those of transformers' Llama4TextConfig.

use kernels::{Gate, RopeLayout};
use serde_json::Value;

use crate::arch::Arch;
use crate::config::{Config, Experts, Llama4, MAX_LAYERS, Temperature};
use crate::config_hf::{
    activation, check_neutral, count, flag, head_dim, ids, number, required, rope, short,
};
use crate::error::{Error, Result};

/// As in the reader of Llama: keys of other models, with the value that changes nothing.
const NEUTRAL: &[(&str, Option<f64>)] = &[
    ("attn_logit_softcapping", None),
    ("final_logit_softcapping", None),
    ("logit_scale", Some(1.0)),
    ("mlp_bias", Some(0.0)),
    ("partial_rotary_factor", Some(1.0)),
    ("sliding_window", None),
];

/// What is said of a whole file only beside the text model's configuration.
const OUTSIDE: &[(&str, Option<f64>)] = &[("quantization_config", None)];

impl Config {
    pub(crate) fn from_llama4(json: &Value) -> Result<Config> {
        check_neutral(json, NEUTRAL)?;
        // A model that sees images has the text model's configuration inside.
        let text = json.get("text_config").unwrap_or(json);
        check_neutral(text, NEUTRAL)?;
        if json.get("text_config").is_some() {
            check_neutral(text, OUTSIDE)?;
        }
        let heads = required(text, "num_attention_heads")?;
        let hidden = required(text, "hidden_size")?;
        let layers = required(text, "num_hidden_layers")?;
        let head_dim = head_dim(text, hidden, heads)?;
        let context = count(text, "max_position_embeddings")?.unwrap_or(131_072);
        let mut rope = rope(text, head_dim, context)?;
        // Unlike Llama's, these checkpoints keep the order of Meta's own.
        rope.layout = RopeLayout::Interleaved;
        let outer = |key: &str| match ids(text, key)? {
            own if own.is_empty() => ids(json, key),
            own => Ok(own),
        };
        Config {
            arch: Arch::Llama4,
            vocab: required(text, "vocab_size")?,
            hidden,
            layers,
            heads,
            kv_heads: count(text, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            ffn: required(text, "intermediate_size_mlp")?,
            experts: experts(text, layers)?,
            context,
            norm_eps: number(text, "rms_norm_eps")?.unwrap_or(1e-5) as f32,
            activation: activation(text, "hidden_act")?,
            rope,
            llama4: Some(attention(text, layers)?),
            opt: None,
            attention_bias: flag(text, "attention_bias")?.unwrap_or(false),
            mlp_bias: false,
            norm_affine: true,
            tied: flag(text, "tie_word_embeddings")?.unwrap_or(false),
            bos: outer("bos_token_id")?.first().copied(),
            eos: outer("eos_token_id")?,
        }
        .checked()
    }
}

/// `moe_layers` lists the layers with experts; else they are the last of every
/// `interleave_moe_layer_step`.
fn experts(text: &Value, layers: usize) -> Result<Option<Experts>> {
    let layers = layers.min(MAX_LAYERS);
    let on = match text.get("moe_layers").filter(|v| !v.is_null()) {
        Some(list) => {
            let mut on = vec![false; layers];
            for i in numbers(list, "moe_layers")? {
                let place = usize::try_from(i).ok().and_then(|i| on.get_mut(i));
                *place.ok_or_else(|| {
                    Error::Config(format!("`moe_layers` has {i}, which is no layer"))
                })? = true;
            }
            on
        }
        None => {
            let step = count(text, "interleave_moe_layer_step")?.unwrap_or(1);
            (1..=layers)
                .map(|i| step > 0 && i.is_multiple_of(step))
                .collect()
        }
    };
    if !on.contains(&true) {
        return Ok(None);
    }
    Ok(Some(Experts {
        count: required(text, "num_local_experts")?,
        used: count(text, "num_experts_per_tok")?.unwrap_or(1),
        ffn: required(text, "intermediate_size")?,
        shared: true,
        gate: Gate::Sigmoid,
        layers: on,
    }))
}

fn attention(text: &Value, layers: usize) -> Result<Llama4> {
    let layers = layers.min(MAX_LAYERS);
    // An empty list stands for none in some files.
    let list = |key: &str| {
        let list = text.get(key).filter(|v| !v.is_null());
        list.filter(|v| v.as_array().is_none_or(|a| !a.is_empty()))
    };
    let rotates: Vec<bool> = match list("no_rope_layers") {
        Some(v) => {
            let rotates = numbers(v, "no_rope_layers")?.into_iter().map(|n| n != 0);
            rotates.collect()
        }
        None => {
            let every = count(text, "no_rope_layer_interval")?.unwrap_or(4);
            (1..=layers)
                .map(|i| every == 0 || !i.is_multiple_of(every))
                .collect()
        }
    };
    let chunked = match list("layer_types") {
        Some(v) => layer_types(v)?,
        None => rotates.clone(),
    };
    let chunk = match text.get("attention_chunk_size") {
        Some(Value::Null) if chunked.contains(&true) => {
            return Err(Error::Config(
                "`attention_chunk_size` is null although layers have chunked attention".into(),
            ));
        }
        _ => count(text, "attention_chunk_size")?.unwrap_or(8192),
    };
    // Some files say how many layers it is for in place of true.
    let tuned = match text.get("attn_temperature_tuning") {
        None | Some(Value::Null) => true,
        Some(Value::Number(n)) => n.as_f64() != Some(0.0),
        Some(_) => flag(text, "attn_temperature_tuning")?.unwrap_or(true),
    };
    let temperature = Temperature {
        floor: number(text, "floor_scale")?.unwrap_or(8192.0),
        scale: number(text, "attn_scale")?.unwrap_or(0.1),
    };
    Ok(Llama4 {
        rotates,
        chunked,
        chunk,
        qk_norm: flag(text, "use_qk_norm")?.unwrap_or(true),
        temperature: tuned.then_some(temperature),
    })
}

fn layer_types(list: &Value) -> Result<Vec<bool>> {
    let kind = |v: &Value| match v.as_str() {
        Some("chunked_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(Error::NotImplemented(format!(
            "{} among `layer_types` of config.json",
            short(v)
        ))),
    };
    let all = list.as_array().map(|a| a.iter().map(kind).collect());
    all.unwrap_or_else(|| Err(Error::Config("`layer_types` is no list".into())))
}

fn numbers(list: &Value, key: &str) -> Result<Vec<u64>> {
    let all: Option<Vec<u64>> = list
        .as_array()
        .and_then(|a| a.iter().map(Value::as_u64).collect());
    all.ok_or_else(|| Error::Config(format!("`{key}` is {}, not a list of counts", short(list))))
}
