//! Between GGUF and Hugging Face's layout: names, keys of the configuration, orders of rotary rows.
//!
//! An [`Input`] gives its model in the terms of either.

use std::path::Path;

use files::gguf::{Gguf, Metadata, Value};
use files::hf::HfDir;
use files::{Blob, Dtype, Kind, Tensor, Tensors, safetensors};
use kernels::{Activation, RopeLayout, Type};
use serde_json::{Value as Json, json};

use crate::arch::Arch;
use crate::config::{Config, RopeConfig, Scaling};
use crate::error::{Error, Result};
use crate::names::{GGUF, HF, Names};
use crate::quantize::{Step, store, stored};
use crate::rope::yarn_mscale;
use crate::source::{Order, Piece, Source};

impl Source {
    /// A Hugging Face directory as a GGUF of it would be, without its tokenizer's keys.
    ///
    /// # Errors
    /// Not a Llama model, or one with something that GGUF cannot say.
    pub fn from_hf(dir: &HfDir) -> Result<Source> {
        let config = Config::from_hf(&dir.config)?;
        let name = dir.path.file_name().map(|n| n.to_string_lossy());
        let mut metadata = metadata(&config)?;
        metadata.set(
            "general.name",
            Value::String(name.unwrap_or_default().into()),
        );
        let mut tensors = Vec::new();
        if let Some(divisors) = divisors(&config.rope) {
            let shape = vec![divisors.len()];
            let bytes = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
            let blob = Blob::from_vec(bytes);
            tensors.push(Piece::same(Tensor::new(
                "rope_freqs.weight",
                Dtype::F32,
                shape,
                blob,
            )?));
        }
        tensors.extend(pieces(&dir.tensors, &config, &HF, &GGUF)?);
        let size = |d: Dtype| -> u64 {
            let of = tensors.iter().filter(|p: &&Piece| p.dtype() == d);
            of.map(Piece::bytes_now).sum()
        };
        // What most values are: 0, 1 or 32.
        let kinds = [(Dtype::F32, 0), (Dtype::F16, 1), (Dtype::BF16, 32)];
        let kind = kinds.into_iter().max_by_key(|k| size(k.0));
        let kind = kind.map_or(0, |k| k.1);
        metadata.set("general.file_type", Value::U32(kind));
        metadata.set("general.quantization_version", Value::U32(2));
        Ok(Source { metadata, tensors })
    }
}

/// The tensors of a model under the names and in the orders of another layout. What changes nothing
/// is left out.
fn pieces(tensors: &Tensors, config: &Config, from: &Names, to: &Names) -> Result<Vec<Piece>> {
    let mut found = Vec::new();
    for t in tensors {
        let dropped = from.ignored.iter().any(|end| t.name.ends_with(end))
            || from.extra.contains(&t.name.as_str())
            || config.tied && t.name == format!("{}.weight", from.head);
        if dropped {
            continue;
        }
        let Some((name, part)) = renamed(&t.name, from, to) else {
            return Err(Error::NotImplemented(format!("tensor `{}`", t.name)));
        };
        let order = match part {
            // Query and key rows turn with their heads.
            Some(1 | 2) => match config.rope.layout {
                RopeLayout::HalfSplit => Order::Pairs(config.head_dim),
                RopeLayout::Interleaved => Order::Halves(config.head_dim),
            },
            _ => Order::Same,
        };
        let mut tensor = t.clone();
        tensor.name = name;
        found.push(Piece { tensor, order });
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
    let part = from.parts.iter().position(|p| *p == part)?;
    let name = format!("{}{layer}.{}.{end}", to.block, to.parts[part]);
    Some((name, Some(part)))
}

/// The divisors of frequencies that a GGUF carries for the llama3 scaling.
fn divisors(rope: &RopeConfig) -> Option<Vec<f32>> {
    match &rope.scaling {
        Scaling::Divisors(d) => Some(d.clone()),
        Scaling::Llama3 { .. } => Some(rope.llama3_divisors()),
        _ => None,
    }
}

/// Both layouts are written for one architecture only.
fn only_llama(c: &Config) -> Result<()> {
    match (c.arch, &c.experts) {
        (Arch::Llama, None) => Ok(()),
        (Arch::Llama, Some(_)) => Err(Error::NotImplemented("converting experts".into())),
        (other, _) => Err(Error::NotImplemented(format!(
            "converting the architecture {}",
            other.name()
        ))),
    }
}

/// The keys of a GGUF that say what a configuration says.
fn metadata(c: &Config) -> Result<Metadata> {
    only_llama(c)?;
    if c.activation != Activation::Silu {
        return Err(Error::NotImplemented(
            "an activation other than silu in a GGUF of architecture llama".into(),
        ));
    }
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut m = Metadata::new();
    m.set("general.architecture", Value::String("llama".into()));
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
        m.set(format!("llama.{key}"), count(n));
    }
    let float = |x: f64| Value::F32(x as f32);
    m.set("llama.rope.freq_base", float(c.rope.theta));
    m.set(
        "llama.attention.layer_norm_rms_epsilon",
        Value::F32(c.norm_eps),
    );
    let kind = match &c.rope.scaling {
        Scaling::None | Scaling::Llama3 { .. } | Scaling::Divisors(_) => return Ok(m),
        Scaling::Linear { factor } => {
            m.set("llama.rope.scaling.factor", float(*factor));
            "linear"
        }
        Scaling::Yarn(y) if y.truncate => {
            let own = yarn_mscale(y.factor, 1.0);
            m.set("llama.rope.scaling.factor", float(y.factor));
            m.set(
                "llama.rope.scaling.original_context_length",
                count(y.original as usize),
            );
            m.set("llama.rope.scaling.yarn_beta_fast", float(y.beta_fast));
            m.set("llama.rope.scaling.yarn_beta_slow", float(y.beta_slow));
            if y.attention_factor != own {
                m.set(
                    "llama.rope.scaling.attn_factor",
                    float(y.attention_factor / own),
                );
            }
            "yarn"
        }
        other => return Err(unsaid(other, "a GGUF")),
    };
    m.set("llama.rope.scaling.type", Value::String(kind.into()));
    Ok(m)
}

fn unsaid(scaling: &Scaling, file: &str) -> Error {
    let name = format!("{scaling:?}");
    let name = name.split([' ', '(']).next().unwrap_or_default();
    Error::NotImplemented(format!("rope scaling {name} in {file}"))
}

/// config.json of a model whose tensors have this type.
fn config_json(c: &Config, dtype: Dtype) -> Result<Json> {
    only_llama(c)?;
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
    Ok(json!({
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
    }))
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
        Scaling::Divisors(d) => llama3(rope, d)?,
        other => return Err(unsaid(other, "config.json")),
    })
}

/// The llama3 scaling that has these divisors. Its published models differ in the factor and the
/// original context only.
fn llama3(rope: &RopeConfig, divisors: &[f32]) -> Result<Json> {
    let factor = divisors.iter().fold(1.0f32, |a, d| a.max(*d));
    let same = |original: f64| {
        let scaling = Scaling::Llama3 {
            factor: f64::from(factor),
            low: 1.0,
            high: 4.0,
            original,
        };
        let tried = RopeConfig {
            scaling,
            ..rope.clone()
        };
        let pairs = tried.llama3_divisors().into_iter().zip(divisors);
        pairs.fold(0.0f32, |off, (a, b)| off.max((a / b - 1.0).abs())) < 1e-4
    };
    let original = (4..=24).map(|k| f64::from(1u32 << k)).find(|o| same(*o));
    let original = original.ok_or_else(|| {
        Error::NotImplemented(
            "`rope_freqs.weight` that is no llama3 scaling, in config.json".into(),
        )
    })?;
    Ok(json!({
        "rope_type": "llama3",
        "factor": shortest(f64::from(factor)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original as u64,
    }))
}

/// A model in its own layout.
#[derive(Debug)]
pub enum Input {
    /// A GGUF.
    Gguf(Box<Gguf>),
    /// A Hugging Face directory.
    Hf(Box<HfDir>),
}

impl Input {
    /// Opens a file or directory, told apart by content.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Input> {
        match files::detect(path)? {
            Kind::Gguf => Ok(Input::Gguf(Box::new(Gguf::open(path)?))),
            Kind::HfDir => Ok(Input::Hf(Box::new(HfDir::open(path)?))),
            kind => Err(Error::Open {
                path: path.display().to_string(),
                what: format!(
                    "is {}; GGUF files and Hugging Face directories are converted",
                    kind.describe()
                ),
            }),
        }
    }

    /// The model as a GGUF holds it. A Hugging Face model's comes without its tokenizer's keys.
    ///
    /// # Errors
    /// As for [`Source::from_hf`].
    pub fn gguf(&self) -> Result<Source> {
        match self {
            Input::Gguf(gguf) => Ok(Source::from_gguf(gguf)),
            Input::Hf(dir) => Source::from_hf(dir),
        }
    }

    /// The model as a Hugging Face directory holds it: config.json, and the tensors, all as `ty` or
    /// else as they are, quantised ones as f16.
    ///
    /// # Errors
    /// Not a Llama model, or one with something that config.json cannot say.
    pub fn hf(&self, ty: Option<Type>) -> Result<(Json, Source, Vec<Step>)> {
        let (mut config, tensors) = match self {
            Input::Gguf(gguf) => {
                let config = Config::from_gguf(gguf)?;
                let tensors = pieces(&gguf.tensors, &config, &GGUF, &HF)?;
                (config_json(&config, Dtype::F32)?, tensors)
            }
            Input::Hf(dir) => {
                let tensors = dir.tensors.iter().cloned().map(Piece::same).collect();
                (dir.config.clone(), tensors)
            }
        };
        let source = Source {
            metadata: Metadata::new(),
            tensors,
        };
        let plain = |d: Dtype| matches!(d, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let to = |d: Dtype| match ty {
            Some(ty) if plain(d) || d.is_quantized() => stored(ty),
            None if d.is_quantized() => Dtype::F16,
            _ => d,
        };
        let steps: Vec<Step> = source
            .tensors
            .iter()
            .map(|p| moved(p, to(p.dtype())))
            .collect();
        // What most values are.
        let size = |d: Dtype| -> u64 {
            steps
                .iter()
                .filter(|s| s.info.dtype == d)
                .map(|s| s.bytes.1)
                .sum()
        };
        let main = [Dtype::F32, Dtype::F16, Dtype::BF16]
            .into_iter()
            .max_by_key(|d| size(*d));
        let torch = config_dtype(main.unwrap_or(Dtype::F32));
        for key in ["torch_dtype", "dtype"] {
            if config.get(key).is_some() {
                config[key] = torch.into();
            }
        }
        Ok((config, source, steps))
    }
}

/// PyTorch's name.
fn config_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// One tensor in another type.
fn moved(piece: &Piece, to: Dtype) -> Step {
    let mut info = piece.info();
    info.dtype = to;
    Step {
        from: piece.dtype(),
        bytes: (piece.bytes_now(), info.bytes().unwrap_or_default() as u64),
        weighted: false,
        instead_of: None,
        deviation: None,
        info,
    }
}

/// Writes the tensors of a Hugging Face directory to `out`; see `quantize::write`.
///
/// # Errors
/// A file cannot be read or written, or a tensor holds values that the new type cannot.
pub fn write_safetensors(
    source: &Source,
    steps: &[Step],
    out: &Path,
    threads: usize,
    on_step: &mut dyn FnMut(&Step) -> bool,
) -> Result<Option<Vec<Step>>> {
    let infos = steps.iter().map(|s| s.info.clone()).collect();
    let mut writer = safetensors::FileWriter::create(out, infos)?;
    let mut done = steps.to_vec();
    while let Some(info) = writer.coming() {
        let at = steps.iter().position(|s| s.info.name == info.name);
        let Some(at) = at else { break };
        let mut to = |bytes: &[u8]| Ok(writer.part(bytes)?);
        store(&source.tensors[at], &mut done[at], None, threads, &mut to)?;
        if !on_step(&done[at]) {
            return Ok(None);
        }
    }
    writer.finish()?;
    Ok(Some(done))
}
