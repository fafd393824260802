//! Reading [`Config`] from the config.json of an OPT model. Defaults are those of transformers'
//! OPTConfig.

use kernels::{Activation, RopeLayout};
use serde_json::Value;

use crate::arch::Arch;
use crate::config::{Config, Opt, RopeConfig, Scaling};
use crate::config_hf::{activation, check_neutral, count, flag, ids, required};
use crate::error::{Error, Result};

/// Keys with the one value that is implemented.
const NEUTRAL: &[(&str, Option<f64>)] = &[
    ("learned_embeddings", Some(1.0)),
    ("quantization_config", None),
    ("scale_embeddings", Some(0.0)),
];

/// Added to the variance; the configuration has no key for it.
const NORM_EPS: f32 = 1e-5;

impl Config {
    pub(crate) fn from_opt(json: &Value) -> Result<Config> {
        check_neutral(json, NEUTRAL)?;
        let heads = required(json, "num_attention_heads")?;
        let hidden = required(json, "hidden_size")?;
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(Error::Config(format!(
                "hidden_size {hidden} is not a multiple of {heads} heads"
            )));
        }
        let before = flag(json, "do_layer_norm_before")?.unwrap_or(true);
        let removed = flag(json, "_remove_final_layer_norm")?.unwrap_or(false);
        let opt = Opt {
            table: count(json, "word_embed_proj_dim")?.unwrap_or(hidden),
            norm_after: !before,
            final_norm: before && !removed,
        };
        // Early files have the shorter name.
        let bias = flag(json, "enable_bias")?.or(flag(json, "bias")?);
        let bias = bias.unwrap_or(true);
        Config {
            arch: Arch::Opt,
            vocab: required(json, "vocab_size")?,
            hidden,
            layers: required(json, "num_hidden_layers")?,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            ffn: required(json, "ffn_dim")?,
            experts: None,
            context: count(json, "max_position_embeddings")?.unwrap_or(2048),
            norm_eps: NORM_EPS,
            activation: match json.get("activation_function") {
                None => Activation::Relu,
                Some(_) => activation(json, "activation_function")?,
            },
            rope: RopeConfig {
                theta: 10_000.0,
                dim: 0,
                layout: RopeLayout::HalfSplit,
                scaling: Scaling::None,
            },
            llama4: None,
            opt: Some(opt),
            attention_bias: bias,
            mlp_bias: bias,
            norm_affine: flag(json, "layer_norm_elementwise_affine")?.unwrap_or(true),
            tied: flag(json, "tie_word_embeddings")?.unwrap_or(true),
            bos: ids(json, "bos_token_id")?.first().copied(),
            eos: ids(json, "eos_token_id")?,
        }
        .checked()
    }
}
