//! A chat template from anyone: compiled, rendered and encoded, it ends, and without a panic. Bytes before the first
//! 0xFF are the template, those behind it a message.
#![no_main]

use std::sync::LazyLock;
use text::chat::{assistant, user};
use text::{ChatTemplate, RenderOptions, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let json = include_bytes!("../../tests/fixtures/reference/models/llama3/tokenizer.json");
    Tokenizer::from_json(json).expect("a sound tokenizer")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut halves = bytes.splitn(2, |&b| b == 0xff);
    let source = String::from_utf8_lossy(halves.next().unwrap_or_default());
    let content = String::from_utf8_lossy(halves.next().unwrap_or_default());
    let Ok(template) = ChatTemplate::new(&source, "<|begin_of_text|>", "<|im_end|>") else {
        return;
    };
    let messages = [user(content), assistant("a <b> c"), user("d")];
    let tools = serde_json::json!([{"name": "f", "parameters": {"x": [1, 2.5, null]}}]);
    let options = RenderOptions {
        tools: Some(tools),
        date: "2024-07-26".parse().ok(),
        ..RenderOptions::default()
    };
    let _ = template.render(&messages, &options);
    if let Ok(ids) = template.encode(&TOKENIZER, &messages, &options) {
        assert!(ids.iter().all(|&id| (id as usize) < TOKENIZER.len()));
    }
});
