//! Any text through every kind of tokenizer: it comes back, no piece of it becomes a special token, and a stream
//! gives the same text as decoding at once.
#![no_main]

use std::sync::LazyLock;

use text::pretokenize::Pattern;
use text::{Decoder, Special, Tokenizer};

/// Tokenizers with a token for every byte.
static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    [
        "models/llama3/tokenizer.json",
        "models/llama2_gqa/tokenizer.model",
        "gguf/llama3.f32.gguf",
        "gguf/llama2_gqa.f32.gguf",
    ]
    .map(|name| {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/reference/");
        Tokenizer::open(format!("{root}{name}")).expect("a fixture")
    })
    .into()
});

const PATTERNS: [Pattern; 5] = [
    Pattern::Gpt2,
    Pattern::Smollm,
    Pattern::Llama3,
    Pattern::Llama4,
    Pattern::Default,
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for pattern in PATTERNS {
        assert_eq!(pattern.split(&text).collect::<String>(), text);
    }
    // SentencePiece writes a space as U+2581, so it cannot tell the two apart.
    let spaces = text.replace('\u{2581}', " ");
    for tokenizer in TOKENIZERS.iter() {
        let ids = tokenizer.encode(&text, Special::Text).expect("short texts");
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
        let decoded = tokenizer.decode(&ids, false);
        assert!(decoded == text.as_bytes() || decoded == spaces.as_bytes());
        let mut decoder = Decoder::new(tokenizer, false);
        let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
        streamed += &decoder.finish();
        assert_eq!(streamed.as_bytes(), decoded);
        let parsed = tokenizer.encode(&text, Special::Parse).expect("short texts");
        assert!(parsed.iter().all(|&id| (id as usize) < tokenizer.len()));
    }
});
