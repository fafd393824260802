//! Quantised safetensors (GPTQ, AWQ, bitsandbytes, 8-bit floats) as models: no panic, and no number
//! that is none. The input: a config.json, a zero, and a safetensors file.
#![no_main]

use std::sync::{Arc, LazyLock};

use files::{Blob, hf::HfDir, safetensors};
use kernels::{Compute, Kernels, Level};
use model::Weights;

static KERNELS: LazyLock<Arc<Kernels>> = LazyLock::new(|| {
    Arc::new(Kernels::new(Level::best(), Compute::F32, 1).expect("the best level is here"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut halves = bytes.splitn(2, |&b| b == 0);
    let (Some(config), Some(weights)) = (halves.next(), halves.next()) else {
        return;
    };
    let Ok(config) = serde_json::from_slice(config) else {
        return;
    };
    let Ok(tensors) = safetensors::parse(Blob::from_vec(weights.to_vec())) else {
        return;
    };
    let dir = HfDir {
        path: "fuzz".into(),
        config,
        generation_config: None,
        tokenizer: None,
        tokenizer_config: None,
        special_tokens_map: None,
        chat_template: None,
        tensors,
    };
    let _ = Weights::from_hf(&dir, KERNELS.clone());
});
