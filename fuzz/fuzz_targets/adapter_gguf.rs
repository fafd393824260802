//! Adapters and control vectors in GGUF: no panic, and what opens computes.
#![no_main]

#[path = "../adapted.rs"]
mod adapted;

use files::{Blob, gguf::Gguf};
use model::{Directions, Lora};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    if let Ok(lora) = Lora::from_gguf(&gguf, adapted::config()) {
        adapted::runs(lora);
    }
    if let Ok(directions) = Directions::from_gguf(&gguf, adapted::config()) {
        adapted::steers(directions);
    }
});
