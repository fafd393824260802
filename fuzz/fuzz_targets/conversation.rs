//! A conversation from anyone: whatever its messages hold, the special tokens are the template's own, and the ids
//! stand for the rendering. The first byte picks the template, 0xFF divides the messages.
#![no_main]

use std::sync::LazyLock;
use text::chat::user;
use text::{ChatTemplate, RenderOptions, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let json = include_bytes!("../../tests/fixtures/reference/models/llama3/tokenizer.json");
    Tokenizer::from_json(json).expect("a sound tokenizer")
});

static TEMPLATES: LazyLock<Vec<ChatTemplate>> = LazyLock::new(|| {
    [
        "<|begin_of_text|>{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.content | trim + '<|im_end|>' }}{% endfor %}",
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ m.content | trim }}{% endfor %}",
        "{{ bos_token }}{{ messages | tojson }}{{ messages | tojson(ensure_ascii=true, indent=1) }}{{ messages }}",
        "{{ bos_token }}{% for m in messages %}{{ m.content.split('</think>')[-1] }}{{ m.content[1:-1] | upper }}{% endfor %}",
    ]
    .map(|source| ChatTemplate::new(source, "<|begin_of_text|>", "<|im_end|>").expect("a sound template"))
    .into()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else {
        return;
    };
    let template = &TEMPLATES[which as usize % TEMPLATES.len()];
    let contents = bytes.split(|&b| b == 0xff).map(String::from_utf8_lossy);
    let messages: Vec<_> = contents.map(user).collect();
    let harmless = vec![user("x"); messages.len()];
    let options = RenderOptions::default();
    let ids = template
        .encode(&TOKENIZER, &messages, &options)
        .expect("ids");
    let expected = template
        .encode(&TOKENIZER, &harmless, &options)
        .expect("ids");
    let special = |ids: &[u32]| -> Vec<u32> {
        ids.iter()
            .copied()
            .filter(|&id| TOKENIZER.is_special(id))
            .collect()
    };
    assert_eq!(special(&ids), special(&expected));
    let rendered = template.render(&messages, &options).expect("a rendering");
    assert_eq!(
        String::from_utf8_lossy(&TOKENIZER.decode(&ids, true)),
        rendered
    );
});
