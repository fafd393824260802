//! A small model, and two tokens through it with something beside its weights.
#![allow(dead_code)]

use std::sync::{Arc, LazyLock};

use kernels::{Compute, Kernels, KvType, Level};
use model::{Adapter, Batch, Cache, Chunk, Config, ControlVector, Directions, Lora, Rows, Weights};

static WEIGHTS: LazyLock<Weights> = LazyLock::new(|| {
    let kernels = Kernels::new(Level::best(), Compute::F32, 1).expect("the best level is here");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/reference/");
    let path = format!("{root}training/model");
    model::open(path.as_ref(), Arc::new(kernels)).expect("a fixture")
});

pub fn config() -> &'static Config {
    &WEIGHTS.config
}

fn run(change: impl FnOnce(&mut Chunk)) {
    let mut cache = Cache::new(config(), KvType::F16, 64).expect("a small cache");
    let mut chunk = Chunk::tokens(cache.open(), 0, &[5, 6], Rows::Last);
    change(&mut chunk);
    let batch = Batch {
        chunks: vec![chunk],
    };
    let out = model::forward(&WEIGHTS, &batch, &mut cache, &mut ()).expect("it fits the model");
    assert_eq!(out.chunks[0].logits.len(), config().vocab);
}

pub fn runs(lora: Lora) {
    if let Ok(adapter) = Adapter::of(lora, &WEIGHTS, 0.5) {
        run(|chunk| chunk.adapters.push(Arc::new(adapter)));
    }
}

pub fn steers(directions: Directions) {
    let sum = ControlVector::sum(WEIGHTS.kernels(), config(), &[(directions, 2.0)], None);
    if let Ok(control) = sum {
        run(|chunk| chunk.control = Some(Arc::new(control)));
    }
}
