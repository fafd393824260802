//! The small reference models and their expected outputs.

#![expect(
    dead_code,
    reason = "each test file uses a part of this, and each compiles it for itself"
)]

pub(crate) mod scheduling;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Session;
use kernels::{Compute, Kernels, KvType, Level};
use model::Weights;
use safetensors::SafeTensors;
use text::Tokenizer;

const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/reference"
);

pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(REFERENCE).join(relative)
}

/// A model file or folder in the reference mode.
pub(crate) fn weights(relative: &str) -> Arc<Weights> {
    let kernels = Kernels::new(Level::best(), Compute::F32, 2).unwrap();
    Arc::new(model::open(&path(relative), Arc::new(kernels)).unwrap())
}

pub(crate) fn tokenizer(relative: &str) -> Tokenizer {
    Tokenizer::open(path(relative)).unwrap()
}

pub(crate) fn session(weights: &Arc<Weights>, context: usize) -> Session {
    Session::new(weights.clone(), KvType::F32, context).unwrap()
}

/// A file of expected tensors.
pub(crate) struct Expected(Vec<u8>);

impl Expected {
    pub(crate) fn read(relative: &str) -> Expected {
        Expected(std::fs::read(path(relative)).unwrap())
    }

    fn data(&self, name: &str) -> Option<Vec<[u8; 4]>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).ok()?;
        let words = view.data().chunks_exact(4);
        Some(words.map(|b| b.try_into().unwrap()).collect())
    }

    /// `seqI.NAME` as token ids, if there is a sequence I.
    pub(crate) fn ids(&self, i: usize, name: &str) -> Option<Vec<u32>> {
        let words = self.data(&format!("seq{i}.{name}"))?;
        Some(words.into_iter().map(u32::from_le_bytes).collect())
    }

    pub(crate) fn floats(&self, i: usize, name: &str) -> Vec<f32> {
        let words = self.data(&format!("seq{i}.{name}")).unwrap();
        words.into_iter().map(f32::from_le_bytes).collect()
    }
}
