//! From any layout to GGUF and Hugging Face's: names, keys of the configuration, orders of rotary
//! rows.
//!
//! An [`Input`] gives its model in the terms of either.

mod experts;
mod input;

pub use input::{Input, write_safetensors};

use files::gguf::{Metadata, Value};
use files::{Dtype, Tensors};
use kernels::{Activation, Gate, RopeLayout};
use serde_json::{Value as Json, json};

use crate::arch::Arch;
use crate::config::{Config, Experts, Llama4, RopeConfig, Scaling};
use crate::config_gguf;
use crate::error::{Error, Result};
use crate::names::Names;
use crate::rope::yarn_mscale;
use crate::source::{Order, Piece};

/// The tensors of a model under the names and in the orders of another layout. What changes nothing
/// is left out.
fn pieces(tensors: &Tensors, config: &Config, from: &Names, to: &Names) -> Result<Vec<Piece>> {
    let prefix = from.prefix_in(tensors);
    let (mut found, stacked) = experts::stacks(tensors, prefix, config, from, to)?;
    for t in tensors {
        let bare = t.name.strip_prefix(prefix).unwrap_or(&t.name);
        let dropped = stacked.contains(&t.name)
            || from.ignored.iter().any(|end| t.name.ends_with(end))
            || from.extra.contains(&t.name.as_str())
            || !prefix.is_empty() && from.aside.iter().any(|p| t.name.starts_with(p))
            || config.tied && bare == format!("{}.weight", from.head);
        if dropped {
            continue;
        }
        let Some((name, part)) = renamed(bare, from, to) else {
            return Err(Error::NotImplemented(format!("tensor `{}`", t.name)));
        };
        let order = match (part, to.rotary) {
            // Query and key rows turn with their heads.
            (Some(1 | 2), layout) if layout != from.rotary => match layout {
                RopeLayout::Interleaved => Order::Pairs(config.head_dim),
                RopeLayout::HalfSplit => Order::Halves(config.head_dim),
            },
            _ => Order::Same,
        };
        let mut tensor = t.clone();
        tensor.name = name;
        found.push(Piece {
            order,
            ..Piece::same(tensor)
        });
    }
    Ok(found)
}

/// A tensor's name in another layout, and which part of a block it is.
fn renamed(name: &str, from: &Names, to: &Names) -> Option<(String, Option<usize>)> {
    let (stem, end) = name.rsplit_once('.')?;
    let whole = [
        (from.embed, to.embed),
        (from.norm, to.norm),
        (from.head, to.head),
    ];
    if let Some((_, to)) = whole.iter().find(|(from, _)| *from == stem) {
        return Some((format!("{to}.{end}"), None));
    }
    let (layer, part) = stem.strip_prefix(from.block)?.split_once('.')?;
    let at = from.parts.iter().position(|p| *p == part);
    let name = match (at, &from.experts, &to.experts) {
        (Some(at), ..) => to.parts[at],
        (None, Some(from), Some(to)) if part == from.router => to.router,
        (None, Some(from), Some(to)) if !part.is_empty() => {
            to.shared[from.shared.iter().position(|p| *p == part)?]
        }
        _ => return None,
    };
    Some((format!("{}{layer}.{name}.{end}", to.block), at))
}

/// The divisors of frequencies that a GGUF carries for the llama3 scaling.
fn divisors(rope: &RopeConfig) -> Option<Vec<f32>> {
    match &rope.scaling {
        Scaling::Divisors(d) => Some(d.clone()),
        Scaling::Llama3 { .. } => Some(rope.llama3_divisors()),
        _ => None,
    }
}

/// The keys of a GGUF that say what a configuration says.
fn metadata(c: &Config) -> Result<Metadata> {
    let arch = match c.arch {
        Arch::Opt => {
            return Err(Error::NotImplemented(format!(
                "converting the architecture {}",
                c.arch.name()
            )));
        }
        known => known.name(),
    };
    if c.activation != Activation::Silu {
        return Err(Error::NotImplemented(format!(
            "an activation other than silu in a GGUF of architecture {arch}"
        )));
    }
    let mut m = Metadata::new();
    m.set("general.architecture", Value::String(arch.into()));
    m.set("general.type", Value::String("model".into()));
    let counts = [
        ("vocab_size", c.vocab),
        ("block_count", c.layers),
        ("context_length", c.context),
        ("embedding_length", c.hidden),
        ("feed_forward_length", c.ffn),
        ("attention.head_count", c.heads),
        ("attention.head_count_kv", c.kv_heads),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.head_dim),
        ("rope.dimension_count", c.rope.dim),
    ];
    for (key, n) in counts {
        m.set(format!("{arch}.{key}"), count(n));
    }
    m.set(format!("{arch}.rope.freq_base"), float(c.rope.theta));
    m.set(
        format!("{arch}.attention.layer_norm_rms_epsilon"),
        Value::F32(c.norm_eps),
    );
    scaling_keys(c, arch, &mut m)?;
    expert_keys(c, arch, &mut m)?;
    Ok(m)
}

fn count(n: usize) -> Value {
    Value::U32(u32::try_from(n).unwrap_or(u32::MAX))
}

fn float(x: f64) -> Value {
    Value::F32(x as f32)
}

fn scaling_keys(c: &Config, arch: &str, m: &mut Metadata) -> Result<()> {
    let mut set = |key: &str, value| m.set(format!("{arch}.rope.scaling.{key}"), value);
    let kind = match &c.rope.scaling {
        Scaling::None | Scaling::Llama3 { .. } | Scaling::Divisors(_) => return Ok(()),
        Scaling::Linear { factor } => {
            set("factor", float(*factor));
            "linear"
        }
        Scaling::Yarn(y) if y.truncate => {
            let own = yarn_mscale(y.factor, 1.0);
            set("factor", float(y.factor));
            set("original_context_length", count(y.original as usize));
            set("yarn_beta_fast", float(y.beta_fast));
            set("yarn_beta_slow", float(y.beta_slow));
            if y.attention_factor != own {
                set("attn_factor", float(y.attention_factor / own));
            }
            "yarn"
        }
        other => return Err(unsaid(other, "a GGUF")),
    };
    set("type", Value::String(kind.into()));
    Ok(())
}

/// What GGUF has keys for of experts and of Llama 4's attention; the rest must be what every reader
/// takes of itself.
fn expert_keys(c: &Config, arch: &str, m: &mut Metadata) -> Result<()> {
    let mut set = |key: &str, value| m.set(format!("{arch}.{key}"), value);
    if let Some(e) = &c.experts {
        set("expert_count", count(e.count));
        set("expert_used_count", count(e.used));
    }
    if let Some(l) = &c.llama4 {
        let first = |e: &Experts| e.layers.iter().position(|on| *on);
        let step = c.experts.as_ref().and_then(first).map_or(0, |i| i + 1);
        set("interleave_moe_layer_step", count(step));
        let ffn = c.experts.as_ref().map_or(c.ffn, |e| e.ffn);
        set("expert_feed_forward_length", count(ffn));
        if !l.chunked.contains(&true) {
            set("attention.sliding_window", count(0));
        }
    }
    let (experts, llama4) = config_gguf::special(m)?;
    if experts != c.experts {
        return Err(Error::NotImplemented(
            "these layers with experts, in a GGUF".into(),
        ));
    }
    if llama4 != c.llama4 {
        return Err(Error::NotImplemented(format!(
            "in a GGUF, an attention that is not the one of Llama 4's releases: {:?} is needed \
             in place of {:?}",
            llama4.map(|l| (l.chunk, l.temperature, l.qk_norm)),
            c.llama4
                .as_ref()
                .map(|l| (l.chunk, l.temperature, l.qk_norm)),
        )));
    }
    Ok(())
}

fn unsaid(scaling: &Scaling, file: &str) -> Error {
    let name = format!("{scaling:?}");
    let name = name.split([' ', '(']).next().unwrap_or_default();
    Error::NotImplemented(format!("rope scaling {name} in {file}"))
}

/// config.json is written for Llamas, with experts as Mixtral has them or without, and for Llama 4.
fn only_llama(c: &Config) -> Result<()> {
    let what = match (c.arch, &c.experts) {
        (Arch::Llama, None) | (Arch::Llama4, _) => return Ok(()),
        (Arch::Llama, Some(e)) if as_mixtral(c, e) => return Ok(()),
        (Arch::Llama, Some(_)) => "experts that are not Mixtral's".to_owned(),
        (other, _) => format!("the architecture {}", other.name()),
    };
    Err(Error::NotImplemented(format!(
        "converting {what} to a Hugging Face directory"
    )))
}

/// Whether a MixtralForCausalLM can be this: experts in every layer, and no biases.
fn as_mixtral(c: &Config, e: &Experts) -> bool {
    let biased = c.attention_bias || c.mlp_bias;
    e.gate == Gate::Softmax && !e.shared && !e.layers.contains(&false) && !biased
}

/// config.json of a model whose tensors have this type.
fn config_json(c: &Config, dtype: Dtype) -> Result<Json> {
    if c.rope.dim != c.head_dim {
        let what = format!(
            "rotation of {} of a head's {} values",
            c.rope.dim, c.head_dim
        );
        return Err(Error::NotImplemented(format!("{what}, in config.json")));
    }
    let eos = match &c.eos[..] {
        [] => Json::Null,
        [one] => json!(one),
        all => json!(all),
    };
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": c.attention_bias,
        "bos_token_id": c.bos,
        "eos_token_id": eos,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "max_position_embeddings": c.context,
        "mlp_bias": c.mlp_bias,
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "rms_norm_eps": shortest(f64::from(c.norm_eps)),
        "rope_scaling": rope_scaling(&c.rope)?,
        "rope_theta": shortest(c.rope.theta),
        "tie_word_embeddings": c.tied,
        "torch_dtype": config_dtype(dtype),
        "vocab_size": c.vocab,
    });
    if let Some(l) = &c.llama4 {
        llama4_json(&mut json, c, l);
    } else if let Some(e) = &c.experts {
        json["architectures"] = json!(["MixtralForCausalLM"]);
        json["model_type"] = "mixtral".into();
        json["intermediate_size"] = e.ffn.into();
        json["num_local_experts"] = e.count.into();
        json["num_experts_per_tok"] = e.used.into();
        json["sliding_window"] = Json::Null;
    }
    Ok(json)
}

/// What transformers' Llama4ForCausalLM has beside, and in place of, the keys of a Llama.
fn llama4_json(json: &mut Json, c: &Config, l: &Llama4) {
    let kind = |chunked: &bool| match chunked {
        true => "chunked_attention",
        false => "full_attention",
    };
    let on = |e: &Experts| -> Vec<usize> { (0..c.layers).filter(|i| e.layers[*i]).collect() };
    let experts = c.experts.as_ref();
    let more = json!({
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "attention_chunk_size": l.chunk,
        "attn_temperature_tuning": l.temperature.is_some(),
        "attn_scale": l.temperature.map_or(0.1, |t| t.scale),
        "floor_scale": whole(l.temperature.map_or(8192.0, |t| t.floor)),
        "intermediate_size": experts.map_or(c.ffn, |e| e.ffn),
        "intermediate_size_mlp": c.ffn,
        "layer_types": l.chunked.iter().map(kind).collect::<Vec<_>>(),
        "moe_layers": experts.map_or_else(Vec::new, on),
        "no_rope_layers": l.rotates.iter().map(|on| usize::from(*on)).collect::<Vec<_>>(),
        "num_experts_per_tok": experts.map_or(1, |e| e.used),
        "num_local_experts": experts.map_or(1, |e| e.count),
        "use_qk_norm": l.qk_norm,
    });
    if let (Some(json), Json::Object(more)) = (json.as_object_mut(), more) {
        json.extend(more);
        json.remove("mlp_bias");
    }
}

/// A number that transformers wants as a whole one, if it is.
fn whole(x: f64) -> Json {
    match x as i64 {
        n if n as f64 == x => json!(n),
        _ => json!(x),
    }
}

/// A number that was an f32, in the fewest digits that give it back.
fn shortest(x: f64) -> f64 {
    let short = (x as f32).to_string().parse().unwrap_or(x);
    if short as f32 == x as f32 { short } else { x }
}

fn rope_scaling(rope: &RopeConfig) -> Result<Json> {
    Ok(match &rope.scaling {
        Scaling::None => Json::Null,
        Scaling::Linear { factor } => {
            json!({"rope_type": "linear", "factor": shortest(*factor)})
        }
        Scaling::Yarn(y) => json!({
            "rope_type": "yarn",
            "factor": shortest(y.factor),
            "original_max_position_embeddings": y.original as u64,
            "attention_factor": y.attention_factor,
            "beta_fast": shortest(y.beta_fast),
            "beta_slow": shortest(y.beta_slow),
        }),
        Scaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => json!({
            "rope_type": "llama3",
            "factor": shortest(*factor),
            "low_freq_factor": shortest(*low),
            "high_freq_factor": shortest(*high),
            "original_max_position_embeddings": *original as u64,
        }),
        Scaling::Divisors(d) => llama3(rope, d)?,
        other => return Err(unsaid(other, "config.json")),
    })
}

/// The llama3 scaling that has these divisors. Its published models differ in the factor, the
/// original context, and in Llama 4 the higher of the two frequencies.
fn llama3(rope: &RopeConfig, divisors: &[f32]) -> Result<Json> {
    let factor = divisors.iter().fold(1.0f32, |a, d| a.max(*d));
    let same = |(high, original): (f64, f64)| {
        let scaling = Scaling::Llama3 {
            factor: f64::from(factor),
            low: 1.0,
            high,
            original,
        };
        let tried = RopeConfig {
            scaling,
            ..rope.clone()
        };
        let pairs = tried.llama3_divisors().into_iter().zip(divisors);
        pairs.fold(0.0f32, |off, (a, b)| off.max((a / b - 1.0).abs())) < 1e-4
    };
    let originals = || (4..=24).map(|k| f64::from(1u32 << k));
    let mut all = { [4.0, 1.0].into_iter() }.flat_map(|high| originals().map(move |o| (high, o)));
    let (high, original) = all.find(|tried| same(*tried)).ok_or_else(|| {
        Error::NotImplemented(
            "`rope_freqs.weight` that is no llama3 scaling, in config.json".into(),
        )
    })?;
    Ok(json!({
        "rope_type": "llama3",
        "factor": shortest(f64::from(factor)),
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}

/// PyTorch's name.
fn config_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}
