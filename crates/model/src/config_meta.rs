//! Reading [`Config`] from what is not Hugging Face's: Meta's params.json, llama2.c's header.
//!
//! Both are put into the words of a config.json, so that one reader checks everything.

use files::Tensors;
use files::llama2c::Header;
use kernels::RopeLayout;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{Error, Result};

/// Keys of params.json that are read below, or follow from the shapes of the tensors.
const KNOWN: &[&str] = &[
    "dim",
    "ffn_dim_multiplier",
    "head_dim",
    "max_batch_size",
    "max_seq_len",
    "model_parallel_size",
    "multiple_of",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "norm_eps",
    "rope_high_freq_factor",
    "rope_scaling_factor",
    "rope_theta",
    "use_scaled_rope",
    "vocab_size",
];

/// The context that the scaling of Llama 3.1 was made for; Meta's code has it as a constant, as it
/// has the factors of wavelengths.
const SCALED_FROM: u32 = 8192;

/// Llama 3.2 has the same flag as 3.1 in params.json but another factor, which only its published
/// configurations say: (dim, n_layers, factor).
const SCALED_BY: &[(u64, u64, f64)] = &[(2048, 16, 32.0), (3072, 28, 32.0)];

/// The factor of Llama 3.1 and 3.3.
const SCALED: f64 = 8.0;

/// The contexts of the releases: (rope theta, scaled, at most this norm epsilon) -> tokens.
/// params.json does not say. The first that fits holds.
const CONTEXTS: &[(f64, bool, f64, u32)] = &[
    (500_000.0, true, 1.0, 131_072), // 3.1 to 3.3
    (500_000.0, false, 1.0, 8192),   // 3
    (1e6, false, 1.0, 16_384),       // Code Llama
    (1e4, false, 2e-6, 2048),        // 1
    (1e4, false, 1.0, 4096),         // 2
];

/// For rope theta that no release has.
const SMALLEST_CONTEXT: u32 = 2048;

impl Config {
    /// Reads a parsed params.json; the tensors tell what it leaves open (vocabulary, width of the
    /// MLP, whether there is a head).
    ///
    /// # Errors
    /// A key that would change the result and is not known, or numbers that make no model.
    pub fn from_meta(params: &Value, tensors: &Tensors) -> Result<Config> {
        let nested = params.get("model").filter(|m| m.is_object());
        let params = nested.unwrap_or(params);
        let empty = Map::new();
        let all = params.as_object().unwrap_or(&empty);
        let neutral = |v: &Value| v.is_null() || *v == json!(false);
        if let Some((key, value)) = all
            .iter()
            .find(|(k, v)| !KNOWN.contains(&k.as_str()) && !neutral(v))
        {
            let value: String = value.to_string().chars().take(80).collect();
            return Err(Error::NotImplemented(format!(
                "`{key}` = {value} of params.json"
            )));
        }
        for key in ["dim", "n_layers", "n_heads"] {
            if params[key].as_u64().is_none_or(|n| n == 0) {
                let what = format!("`{key}` of params.json is {}, not a count", params[key]);
                return Err(Error::Config(what));
            }
        }
        let rows = |name: &str| match tensors.get(name).map(|t| &t.shape[..]) {
            Some(&[rows, _]) => Ok(rows),
            Some(shape) => Err(tensor(
                name,
                format!("has shape {shape:?}; two axes are needed"),
            )),
            None => Err(tensor(name, "is missing".into())),
        };
        let vocab = rows("tok_embeddings.weight")?;
        // -1 stands for "as the tokenizer says".
        if let Some(said) = params["vocab_size"].as_i64().filter(|n| *n != -1)
            && usize::try_from(said) != Ok(vocab)
        {
            let what = format!("has {vocab} rows; `vocab_size` of params.json is {said}");
            return Err(tensor("tok_embeddings.weight", what));
        }
        let number = |key: &str| match params.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| {
                Error::Config(format!("`{key}` of params.json is {v}, not a number"))
            }),
        };
        let theta = number("rope_theta")?.unwrap_or(10_000.0);
        let eps = number("norm_eps")?
            .ok_or_else(|| Error::Config("params.json lacks `norm_eps`".into()))?;
        let scaled = params["use_scaled_rope"] == json!(true);
        let context = CONTEXTS
            .iter()
            .find(|row| (row.0, row.1) == (theta, scaled) && eps <= row.2);
        let mut hf = json!({
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": params["dim"],
            "num_hidden_layers": params["n_layers"],
            "num_attention_heads": params["n_heads"],
            "num_key_value_heads": params["n_kv_heads"],
            "head_dim": params["head_dim"],
            "intermediate_size": rows("layers.0.feed_forward.w1.weight")?,
            "max_position_embeddings": context.map_or(SMALLEST_CONTEXT, |row| row.3),
            "rms_norm_eps": eps,
            "rope_theta": theta,
            "tie_word_embeddings": tensors.get("output.weight").is_none(),
        });
        if scaled {
            let size = (params["dim"].as_u64(), params["n_layers"].as_u64());
            let by_size = SCALED_BY
                .iter()
                .find(|row| (Some(row.0), Some(row.1)) == size);
            hf["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": number("rope_scaling_factor")?.unwrap_or(by_size.map_or(SCALED, |row| row.2)),
                "low_freq_factor": 1.0,
                "high_freq_factor": number("rope_high_freq_factor")?.unwrap_or(4.0),
                "original_max_position_embeddings": SCALED_FROM,
            });
        }
        interleaved(&hf)
    }

    /// Reads the header of a llama2.c checkpoint. What it does not say is the same in all of them:
    /// `run.c` has epsilon and theta as constants.
    ///
    /// # Errors
    /// Numbers that make no model.
    pub fn from_llama2c(header: &Header) -> Result<Config> {
        interleaved(&json!({
            "model_type": "llama",
            "vocab_size": header.vocab_size,
            "hidden_size": header.dim,
            "num_hidden_layers": header.n_layers,
            "num_attention_heads": header.n_heads,
            "num_key_value_heads": header.n_kv_heads,
            "intermediate_size": header.hidden_dim,
            "max_position_embeddings": header.seq_len,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "tie_word_embeddings": header.shared,
        }))
    }
}

fn tensor(name: &str, what: String) -> Error {
    let name = name.into();
    Error::Tensor { name, what }
}

/// Both formats keep the pairs of the rotary embedding side by side.
fn interleaved(hf: &Value) -> Result<Config> {
    let mut config = Config::from_hf(hf)?;
    config.rope.layout = RopeLayout::Interleaved;
    Ok(config)
}
