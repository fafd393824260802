//! tiktoken's rank files: no panic, and where every byte has a token, a text comes back as it was.
#![no_main]

use text::{Special, Tokenizer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_model(bytes) else {
        return;
    };
    let text = "aab abba, 12\n  ba";
    let ids = tokenizer
        .encode(text, Special::Text)
        .expect("short texts are taken");
    let decoded = tokenizer.decode(&ids, true);
    let covered = text
        .chars()
        .all(|c| tokenizer.id_of(c.encode_utf8(&mut [0; 4])).is_some());
    let spm = bytes.first() == Some(&b'\n');
    assert!(!covered || spm || decoded == text.as_bytes());
});
