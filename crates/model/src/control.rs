//! Control vectors: directions added to the residual stream behind some blocks (Turner et al. 2023,
//! arXiv:2308.10248).
//!
//! In GGUF as llama.cpp's `llama-cvector-generator` and repeng write them: `general.architecture` is
//! `controlvector`, and the tensor `direction.N` is added to what block N puts out. Blocks are counted
//! from 0, and the first has none.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use files::Kind;
use files::gguf::Gguf;
use kernels::Kernels;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::numbers;
use crate::tensors::storage;

/// Directions of some layers, as a file has them.
#[derive(Debug, Clone)]
pub struct Directions {
    layers: BTreeMap<usize, Vec<f32>>, // (hidden) each
}

/// What is added to the residual stream: the sum of some files' directions.
#[derive(Debug, Clone)]
pub struct ControlVector {
    layers: Vec<Option<Vec<f32>>>, // (layers) of (hidden)
    width: usize,
}

impl Directions {
    /// Opens a GGUF of directions for a model.
    ///
    /// # Errors
    /// It cannot be read, is something else, or was made for another model.
    pub fn open(path: &Path, base: &Config) -> Result<Directions> {
        match files::detect(path)? {
            Kind::Gguf => Directions::from_gguf(&Gguf::open(path)?, base),
            kind => Err(Error::Open {
                path: path.display().to_string(),
                what: format!("is {}; a control vector is a GGUF file", kind.describe()),
            }),
        }
    }

    /// The directions in a GGUF.
    ///
    /// # Errors
    /// It is something else, or was made for another model.
    pub fn from_gguf(gguf: &Gguf, base: &Config) -> Result<Directions> {
        match gguf.metadata.str("general.architecture") {
            Some("controlvector") => {}
            other => {
                return Err(Error::Config(format!(
                    "`general.architecture` is `{}`, not `controlvector`",
                    other.unwrap_or_default()
                )));
            }
        }
        let mut layers = BTreeMap::new();
        for t in &gguf.tensors {
            let number = t.name.strip_prefix("direction.");
            // A number has one form.
            let layer = number.and_then(|n| n.parse().ok().filter(|l: &usize| l.to_string() == n));
            let Some(layer) = layer else {
                let what = format!("tensor `{}` of a control vector", t.name);
                return Err(Error::NotImplemented(what));
            };
            let wrong = |what: String| Error::Tensor {
                name: t.name.clone(),
                what,
            };
            if layer == 0 || layer >= base.layers {
                return Err(wrong(format!(
                    "the model has directions for the layers 1 to {}",
                    base.layers - 1
                )));
            }
            if t.shape != [base.hidden] {
                return Err(wrong(format!(
                    "has shape {:?}; the model is {} wide",
                    t.shape, base.hidden
                )));
            }
            if !storage(t)?.is_float() {
                return Err(wrong(format!("is {}, not F32, F16 or BF16", t.dtype)));
            }
            layers.insert(layer, numbers(t)?);
        }
        match layers.is_empty() {
            false => Ok(Directions { layers }),
            true => Err(Error::Config("a control vector without directions".into())),
        }
    }
}

impl ControlVector {
    /// The sum of directions, each times its scale, in the layers of `range` (`None`: in all).
    ///
    /// # Errors
    /// The sum is not finite.
    pub fn sum(
        k: &Kernels,
        base: &Config,
        all: &[(Directions, f32)],
        range: Option<RangeInclusive<usize>>,
    ) -> Result<ControlVector> {
        let mut layers = vec![None; base.layers];
        for (directions, scale) in all {
            for (layer, direction) in &directions.layers {
                if range.as_ref().is_none_or(|r| r.contains(layer)) {
                    let sum = layers[*layer].get_or_insert_with(|| vec![0.0; base.hidden]);
                    k.add_scaled(sum, direction, *scale);
                }
            }
        }
        if layers.iter().flatten().flatten().any(|x| !x.is_finite()) {
            let what = "the control vectors times their scales are not finite";
            return Err(Error::Config(what.into()));
        }
        Ok(ControlVector {
            layers,
            width: base.hidden,
        })
    }

    /// The direction of a layer.
    pub(crate) fn of(&self, layer: usize) -> Option<&[f32]> {
        self.layers.get(layer)?.as_deref()
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }
}
