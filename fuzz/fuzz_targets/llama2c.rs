//! llama2.c: no panic; what opens as a model computes two tokens.
#![no_main]

use std::sync::{Arc, LazyLock};

use files::{Blob, llama2c};
use kernels::{Compute, Kernels, KvType, Level};
use model::{Batch, Cache, Chunk, Rows, Weights};

static KERNELS: LazyLock<Arc<Kernels>> = LazyLock::new(|| {
    Arc::new(Kernels::new(Level::best(), Compute::F32, 1).expect("the best level is here"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = llama2c::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    let views: usize = file.tensors.iter().map(|tensor| tensor.data.len()).sum();
    assert!(views <= bytes.len());
    let Ok(weights) = Weights::from_llama2c(&file, KERNELS.clone()) else {
        return;
    };
    let Ok(mut cache) = Cache::new(&weights.config, KvType::F32, 64) else {
        return;
    };
    let seq = cache.open();
    let chunks = vec![Chunk::tokens(seq, 0, &[0, 0], Rows::Last)];
    if let Ok(out) = model::forward(&weights, &Batch { chunks }, &mut cache, &mut ()) {
        assert_eq!(out.chunks[0].logits.len(), weights.config.vocab);
    }
});
