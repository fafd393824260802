//! Tokenizers between Hugging Face's files and the keys of a GGUF.

use std::path::PathBuf;

use files::gguf::{Gguf, Metadata};
use files::hf::HfDir;
use text::{Special, Tokenizer, gguf_keys, hf_files};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    ))
    .join(name)
}

const MODELS: [&str; 9] = [
    "llama1",
    "llama2_gqa",
    "llama2_linear_rope",
    "llama3",
    "llama3_1",
    "llama3_2_tied",
    "llama_bf16_sharded",
    "llama_bias",
    "llama_head_dim",
];

fn converted(name: &str) -> Gguf {
    Gguf::open(fixture(&format!("gguf/{name}.f32.gguf"))).unwrap()
}

/// llama.cpp's converter wrote the same from the same directories.
#[test]
fn keys_are_those_of_the_reference_converter() {
    for name in MODELS {
        let dir = HfDir::open(fixture(&format!("models/{name}"))).unwrap();
        let theirs = converted(name).metadata;
        let rows = theirs.u64("llama.vocab_size").unwrap() as usize;
        let mut ours = Metadata::new();
        for (key, value) in gguf_keys(&dir, rows).unwrap() {
            ours.set(key, value);
        }
        for (key, value) in theirs.iter() {
            // These say what is so without them.
            let silent = ["add_sep_token", "add_eos_token"].map(|k| format!("tokenizer.ggml.{k}"));
            if key.starts_with("tokenizer.") && !silent.iter().any(|k| k == key) {
                assert_eq!(ours.get(key), Some(value), "{name} {key}");
            }
        }
        let read = Tokenizer::from_gguf(&ours).unwrap();
        assert_eq!(read.len(), rows, "{name}");
    }
}

#[test]
fn files_written_from_keys_give_the_same_ids() {
    for name in MODELS {
        let gguf = converted(name);
        let folder = tempfile::tempdir().unwrap();
        for (file, bytes) in hf_files(&gguf.metadata).unwrap() {
            std::fs::write(folder.path().join(file), bytes).unwrap();
        }
        let (a, b) = (
            Tokenizer::from_gguf(&gguf.metadata).unwrap(),
            Tokenizer::open(folder.path()).unwrap(),
        );
        assert_eq!(
            (a.bos(), a.eos(), a.adds_bos()),
            (b.bos(), b.eos(), b.adds_bos())
        );
        for text in ["The cat.", "  two\n\n12345 <|im_start|> naïve 🦙", ""] {
            for special in [Special::Text, Special::Parse] {
                let ids = a.encode_prompt(text, special).unwrap();
                assert_eq!(
                    ids,
                    b.encode_prompt(text, special).unwrap(),
                    "{name} {text:?}"
                );
                assert_eq!(a.decode(&ids, true), b.decode(&ids, true), "{name}");
            }
        }
        // And there again.
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let dir = HfDir::open_without_weights(folder.path()).unwrap();
        for (key, value) in gguf_keys(&dir, a.len()).unwrap() {
            let extra = key.ends_with("add_eos_token") || key.ends_with("add_space_prefix");
            if !extra {
                assert_eq!(gguf.metadata.get(&key), Some(&value), "{name} {key}");
            }
        }
    }
}

/// Special tokens at the start of the numbering, as SmolLM2 has them.
#[test]
fn special_tokens_keep_their_numbers() {
    use files::gguf::{Array, Value};
    let mut metadata = converted("llama3").metadata;
    let name = |key: &str| format!("tokenizer.ggml.{key}");
    let tokens: Vec<String> = metadata
        .strings(&name("tokens"))
        .unwrap()
        .iter()
        .map(str::to_owned)
        .collect();
    let kinds = metadata.ints(&name("token_type")).unwrap();
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|id| kinds[*id] == 1);
    let turned = order.iter().map(|id| &tokens[*id]).collect();
    let kinds = order.iter().map(|id| kinds[*id] as i32).collect();
    metadata.set(name("tokens"), Value::Array(Array::String(turned)));
    metadata.set(name("token_type"), Value::Array(Array::I32(kinds)));
    metadata.set(name("bos_token_id"), Value::U32(0));
    metadata.set(name("eos_token_id"), Value::U32(1));
    let files = hf_files(&metadata).unwrap();
    let json = files.iter().find(|f| f.0 == "tokenizer.json").unwrap();
    let read = Tokenizer::from_json(&json.1).unwrap();
    assert_eq!(read.id_of(&tokens[order[0]]), Some(0));
}

#[test]
fn what_cannot_be_said_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("config.json", "{}");
    let dir = || HfDir::open_without_weights(folder.path()).unwrap();
    assert!(gguf_keys(&dir(), 10).is_err(), "no tokenizer");
    let source = std::fs::read_to_string(fixture("models/llama3/tokenizer.json")).unwrap();
    // Another pattern: no GGUF name gives its ids.
    let mut json: serde_json::Value = serde_json::from_str(&source).unwrap();
    json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    write("tokenizer.json", &json.to_string());
    let error = gguf_keys(&dir(), 100_000).unwrap_err().to_string();
    assert!(error.contains("gives its ids"), "{error}");
    write("tokenizer.json", &source);
    let error = gguf_keys(&dir(), 3).unwrap_err().to_string();
    assert!(error.contains("fewer rows than tokens"), "{error}");
}
