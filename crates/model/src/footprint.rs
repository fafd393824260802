//! What a model takes of memory beside its weights and its cache, before it does.
//!
//! Weights are views of their files, but some must be put together in memory: parts of Meta's
//! checkpoints, and quantised matrices of other formats. Whoever knows how much memory is free can
//! refuse a model in time.

use std::path::Path;

use files::gguf::Gguf;
use files::hf::HfDir;
use files::meta::MetaDir;
use files::{Kind, Tensors, llama2c};

use crate::config::Config;
use crate::error::Result;
use crate::repack;
use crate::weights::cannot_open;

/// At most so many bytes are put together in memory when the model at `path` is opened.
///
/// # Errors
/// The files that say so cannot be read.
pub fn bytes_to_open(path: &Path) -> Result<u64> {
    let wide = size_of::<f32>() as u64;
    Ok(match files::detect(path)? {
        Kind::HfDir => {
            let config = HfDir::open_without_weights(path)?.config;
            match repack::may_widen(&config)? {
                Some(bits) => {
                    Config::from_hf(&config)?
                        .parameters()
                        .saturating_mul(bits.into())
                        / 8
                }
                None => 0,
            }
        }
        Kind::MetaDir => files::meta::joined_bytes(path)?,
        Kind::Llama2c => {
            let file = llama2c::open(path)?;
            let matrices = file.tensors.iter().filter(|_| file.config.group.is_some());
            matrices
                .map(|t| (t.data.len() as u64).saturating_mul(wide))
                .sum()
        }
        _ => 0,
    })
}

/// A model's configuration, and about how many bytes its weights take when it is open: what the heads
/// of its files say.
///
/// # Errors
/// As [`crate::open`] has them, as far as heads say so.
pub fn head(path: &Path) -> Result<(Config, u64)> {
    let bytes = |tensors: &Tensors| tensors.iter().map(|t| t.data.len() as u64).sum::<u64>();
    let (config, there) = match files::detect(path)? {
        Kind::Gguf => {
            let gguf = Gguf::open(path)?;
            (Config::from_gguf(&gguf)?, bytes(&gguf.tensors))
        }
        Kind::HfDir => {
            let dir = HfDir::open(path)?;
            (Config::from_hf(&dir.config)?, bytes(&dir.tensors))
        }
        Kind::MetaDir => {
            let dir = MetaDir::open(path)?;
            let config = Config::from_meta(&dir.params, &dir.tensors)?;
            (config, bytes(&dir.tensors))
        }
        Kind::Llama2c => {
            let file = llama2c::open(path)?;
            (Config::from_llama2c(&file.config)?, bytes(&file.tensors))
        }
        kind => return Err(cannot_open(path, kind)),
    };
    Ok((config, there.max(bytes_to_open(path)?)))
}

/// Rows of a pass over a prompt.
const ROWS: u64 = 512;
/// Tables of the tokenizer, stacks of threads, the program itself.
const BASE: u64 = 32 << 20;

/// About how many bytes a pass needs to work in: the activations of a prompt's pass, and the logits of
/// the rows that are asked for. An estimate, on the large side.
#[must_use]
pub fn bytes_to_work(config: &Config) -> u64 {
    let experts = config.experts.as_ref();
    let expert = experts.map_or(0, |e| {
        (e.used + usize::from(e.shared)).saturating_mul(e.ffn)
    });
    // What a row has at once: the residual, its norm and two sums; queries and what attention gives;
    // keys and values; gate, up and their product.
    let row = [
        config.hidden.saturating_mul(4),
        config
            .heads
            .saturating_mul(config.head_dim)
            .saturating_mul(2),
        config
            .kv_heads
            .saturating_mul(config.head_dim)
            .saturating_mul(2),
        config.ffn.max(expert).saturating_mul(3),
    ];
    let row = row
        .iter()
        .fold(0u64, |sum, &n| sum.saturating_add(n as u64));
    // The last row's logits, their copy for the sampler, and its candidates.
    let logits = (config.vocab as u64).saturating_mul(4);
    let floats = row.saturating_mul(ROWS).saturating_add(logits);
    BASE.saturating_add(floats.saturating_mul(size_of::<f32>() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_grows_with_the_model() {
        let of = |name: &str| {
            let shape = crate::shapes().iter().find(|s| s.name == name);
            bytes_to_work(
                &shape
                    .expect("a shape of that name")
                    .config()
                    .expect("sound"),
            )
        };
        let (small, large) = (of("smollm2-135m"), of("llama-3-8b"));
        assert!(small > BASE && small < 80 << 20, "{small}");
        assert!(large > 100 << 20 && large < 400 << 20, "{large}");
    }
}
