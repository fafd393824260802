//! Adapters of PEFT: no panic, and what opens computes. The input: an adapter_config.json, a zero, and a
//! safetensors file.
#![no_main]

#[path = "../adapted.rs"]
mod adapted;

use files::{Blob, peft::PeftDir, safetensors};
use model::Lora;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut halves = bytes.splitn(2, |&b| b == 0);
    let (Some(config), Some(tensors)) = (halves.next(), halves.next()) else {
        return;
    };
    let Ok(config) = serde_json::from_slice(config) else {
        return;
    };
    let Ok(tensors) = safetensors::parse(Blob::from_vec(tensors.to_vec())) else {
        return;
    };
    let path = "fuzz".into();
    let dir = PeftDir {
        path,
        config,
        tensors,
    };
    if let Ok(lora) = Lora::from_peft(&dir, adapted::config()) {
        adapted::runs(lora);
    }
});
