//! SentencePiece's tokenizer.model: no panic, and what is accepted encodes within its vocabulary.
#![no_main]

use text::{Special, Tokenizer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_model(bytes) else {
        return;
    };
    for special in [Special::Text, Special::Parse] {
        let ids = tokenizer
            .encode_prompt("  Hello, <s>wörld</s> aab\n12", special)
            .expect("short texts are taken");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
        tokenizer.decode(&ids, true);
    }
    let all: Vec<u32> = (0..tokenizer.len() as u32 + 1).collect();
    tokenizer.decode(&all, false);
});
