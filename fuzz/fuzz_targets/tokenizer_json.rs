//! tokenizer.json: an error or a tokenizer that gives ids of its vocabulary. The crate that reads it panics on some
//! files; `text` turns that into errors, so here panics are silent unless they leave `text`.
#![no_main]

use std::sync::Once;

use text::{Special, Tokenizer};

static SILENT: Once = Once::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SILENT.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else {
        return;
    };
    for special in [Special::Text, Special::Parse] {
        if let Ok(ids) = tokenizer.encode_prompt("Hello, <s>wörld</s> ab\n12", special) {
            tokenizer.decode(&ids, true);
        }
    }
});
