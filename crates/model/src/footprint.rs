//! What opening a model takes of memory, before it is opened.
//!
//! Weights are views of their files, but some must be put together in memory: parts of Meta's
//! checkpoints, and quantised matrices of other formats. Whoever knows how much memory is free can
//! refuse a model in time.

use std::path::Path;

use files::hf::HfDir;
use files::{Kind, llama2c};

use crate::config::Config;
use crate::error::Result;
use crate::repack;

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
