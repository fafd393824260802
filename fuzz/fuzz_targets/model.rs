//! A GGUF as a model: whatever opens computes two tokens, in both modes, without a panic.
#![no_main]

use std::sync::{Arc, LazyLock};

use files::{Blob, gguf::Gguf};
use kernels::{Compute, Kernels, KvType, Level};
use model::{Batch, Cache, Chunk, Rows, Weights};

static KERNELS: LazyLock<[Arc<Kernels>; 2]> = LazyLock::new(|| {
    [Compute::Fast, Compute::F32].map(|compute| {
        Arc::new(Kernels::new(Level::best(), compute, 1).expect("the best level is here"))
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    for kernels in KERNELS.iter() {
        let Ok(weights) = Weights::from_gguf(&gguf, kernels.clone()) else {
            return;
        };
        let Ok(mut cache) = Cache::new(&weights.config, KvType::F16, 64) else {
            return;
        };
        let seq = cache.open();
        let chunks = vec![Chunk::tokens(seq, 0, &[0, 0], Rows::Last)];
        if let Ok(out) = model::forward(&weights, &Batch { chunks }, &mut cache, &mut ()) {
            assert_eq!(out.chunks[0].logits.len(), weights.config.vocab);
        }
    }
});
