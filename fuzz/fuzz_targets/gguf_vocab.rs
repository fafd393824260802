//! The vocabulary of a GGUF: whatever opens encodes and decodes without a panic.
#![no_main]

use files::{Blob, gguf::Gguf};
use text::{Special, Tokenizer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf.metadata) else {
        return;
    };
    for special in [Special::Text, Special::Parse] {
        if let Ok(ids) = tokenizer.encode("Ab <s> 12\u{1f999}\n", special) {
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.len()));
            let _ = tokenizer.decode(&ids, true);
        }
    }
});
