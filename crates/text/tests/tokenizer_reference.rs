//! Every row of the reference: ids of the official implementations on 477 texts, and what the ids decode to.

mod tokenizer_support;

use std::path::Path;

use files::gguf::{Array, Gguf, Metadata, Value};
use text::{Special, Tokenizer};
use tokenizer_support::*;

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn tiny_bpe_from_tokenizer_json() {
    let tokenizer = open("reference/models/llama3/tokenizer.json");
    holds_to(&tokenizer, "tiny_bpe.jsonl", true);
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.bos(), Some(504));
}

#[test]
fn tiny_bpe_from_a_directory() {
    let tokenizer = open("reference/models/llama3");
    holds_to(&tokenizer, "tiny_bpe.jsonl", true);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(504), Some(505)));
    assert!(tokenizer.eog().contains(&505) && tokenizer.eog().contains(&508));
}

#[test]
fn tiny_bpe_from_gguf() {
    let tokenizer = open("reference/gguf/llama3.f32.gguf");
    holds_to(&tokenizer, "tiny_bpe.jsonl", true);
    assert!(tokenizer.adds_bos());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(504), Some(505)));
}

#[test]
fn tiny_spm_from_tokenizer_model() {
    let tokenizer = open("reference/models/llama2_gqa/tokenizer.model");
    holds_to(&tokenizer, "tiny_spm.jsonl", false);
    assert!(tokenizer.adds_bos());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eog(), [2]);
}

#[test]
fn tiny_spm_from_a_directory() {
    let tokenizer = open("reference/models/llama2_gqa");
    holds_to(&tokenizer, "tiny_spm.jsonl", false);
    assert!(tokenizer.adds_bos());
}

#[test]
fn tiny_spm_from_gguf() {
    holds_to(
        &open("reference/gguf/llama2_gqa.f32.gguf"),
        "tiny_spm.jsonl",
        false,
    );
}

#[test]
fn smollm2_from_tokenizer_json() {
    let tokenizer = open("reference/smollm2/tokenizer.json");
    holds_to(&tokenizer, "smollm2.jsonl", true);
    decodes_smollm2(&tokenizer);
    assert!(!tokenizer.adds_bos());
}

#[test]
fn smollm2_from_gguf() {
    let tokenizer = open("tokenizers/smollm2-vocab.gguf");
    holds_to(&tokenizer, "smollm2.jsonl", true);
    decodes_smollm2(&tokenizer);
    assert!(!tokenizer.adds_bos());
    assert_eq!(
        tokenizer.encode_prompt("Hi", Special::Text).unwrap(),
        tokenizer.encode("Hi", Special::Text).unwrap()
    );
    assert!(tokenizer.eog().contains(&0) && tokenizer.eog().contains(&2));
}

fn decodes_smollm2(tokenizer: &Tokenizer) {
    for row in rows("smollm2_decode.jsonl") {
        let ids = ids(&row, "ids");
        let decode = |keep| String::from_utf8_lossy(&tokenizer.decode(&ids, keep)).into_owned();
        assert_eq!(decode(true), row["decoded"].as_str().unwrap(), "{ids:?}");
        let skipped = row["decoded_skip_special"].as_str().unwrap();
        assert_eq!(decode(false), skipped, "{ids:?}");
        assert_eq!(stream(tokenizer, &ids), skipped, "{ids:?}");
    }
}

#[test]
fn llama2_from_gguf() {
    let Some(path) = licensed("llama2_from_gguf", "llama-spm.gguf") else {
        return;
    };
    let tokenizer = Tokenizer::open(path).unwrap();
    holds_to(&tokenizer, "llama2.jsonl", false);
    decodes_llama2(&tokenizer);
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.len(), 32000);
}

#[test]
fn llama2_from_tokenizer_json() {
    let Some(path) = licensed("llama2_from_tokenizer_json", "llama2.json") else {
        return;
    };
    let tokenizer = Tokenizer::open(path).unwrap();
    holds_to(&tokenizer, "llama2.jsonl", false);
    decodes_llama2(&tokenizer);
    assert!(tokenizer.adds_bos());
    assert_eq!((tokenizer.bos(), tokenizer.eog()), (Some(1), &[2][..]));
}

/// Llama 2's own `tokenizer.model` is in no package: the same pieces and settings are written as one here.
#[test]
fn llama2_from_tokenizer_model() {
    let Some(path) = licensed("llama2_from_tokenizer_model", "llama-spm.gguf") else {
        return;
    };
    let directory = path.parent().unwrap();
    let own = std::fs::read(directory.join("llama2.model")).ok();
    let bytes = own.unwrap_or_else(|| sentencepiece(&Gguf::open(&path).unwrap().metadata));
    let tokenizer = Tokenizer::from_model(&bytes).unwrap();
    holds_to(&tokenizer, "llama2.jsonl", false);
    decodes_llama2(&tokenizer);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

/// Writes a GGUF vocabulary as a SentencePiece model with Llama 2's settings.
fn sentencepiece(metadata: &Metadata) -> Vec<u8> {
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap();
    let scores = metadata.f32s("tokenizer.ggml.scores").unwrap();
    let Some(Value::Array(Array::I32(kinds))) = metadata.get("tokenizer.ggml.token_type") else {
        panic!("token types are i32");
    };
    let mut model = Vec::new();
    for ((token, score), kind) in tokens.iter().zip(scores).zip(kinds) {
        sentencepiece_piece(token.as_bytes(), *score, *kind as u8, &mut model);
    }
    // BPE (3: 2) with byte fallback (35: true).
    protobuf_field(2, &[3 << 3, 2, 0x98, 0x02, 1], &mut model);
    // Dummy prefix, no collapsing of spaces.
    let mut normalizer = Vec::new();
    protobuf_field(1, b"identity", &mut normalizer);
    normalizer.extend([3 << 3, 1, 4 << 3, 0]);
    protobuf_field(3, &normalizer, &mut model);
    model
}

/// Sentencepiece writes one U+FFFD for each byte that is part of no character, where Unicode's recommendation and
/// Rust write one for each beginning of a character.
fn decodes_llama2(tokenizer: &Tokenizer) {
    for row in rows("llama2_decode.jsonl") {
        let ids = ids(&row, "ids");
        let bytes = tokenizer.decode(&ids, false);
        let text: String = bytes
            .utf8_chunks()
            .map(|chunk| chunk.valid().to_string() + &"\u{fffd}".repeat(chunk.invalid().len()))
            .collect();
        assert_eq!(text, row["decoded"].as_str().unwrap(), "{ids:?}");
        assert_eq!(stream(tokenizer, &ids), String::from_utf8_lossy(&bytes));
    }
}

fn decodes_bytes(tokenizer: &Tokenizer, file: &str) {
    for row in rows(file) {
        let ids = ids(&row, "ids");
        let hex: String = tokenizer
            .decode(&ids, true)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hex, row["bytes_hex"].as_str().unwrap(), "{ids:?}");
        let text = String::from_utf8_lossy(&tokenizer.decode(&ids, true)).into_owned();
        assert_eq!(text, row["decoded"].as_str().unwrap(), "{ids:?}");
    }
}

fn has_the_listed_specials(tokenizer: &Tokenizer, family: &str) {
    let info = std::fs::read(fixture("reference/tokenizers/info.json")).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let info = &info["files"][family];
    assert_eq!(tokenizer.len() as u64, info["n_words"].as_u64().unwrap());
    for (name, id) in info["special_tokens"].as_object().unwrap() {
        assert_eq!(tokenizer.id_of(name).map(u64::from), id.as_u64(), "{name}");
    }
}

#[test]
fn llama3_from_tokenizer_model() {
    let Some(path) = licensed("llama3_from_tokenizer_model", "llama3.model") else {
        return;
    };
    let tokenizer = Tokenizer::open(path).unwrap();
    holds_to(&tokenizer, "llama3.jsonl", true);
    decodes_bytes(&tokenizer, "llama3_decode.jsonl");
    has_the_listed_specials(&tokenizer, "llama3");
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.eog(), [128_001, 128_008, 128_009]);
}

#[test]
fn llama4_from_tokenizer_model() {
    let Some(path) = licensed("llama4_from_tokenizer_model", "llama4.model") else {
        return;
    };
    let tokenizer = Tokenizer::open(path).unwrap();
    holds_to(&tokenizer, "llama4.jsonl", true);
    decodes_bytes(&tokenizer, "llama4_decode.jsonl");
    has_the_listed_specials(&tokenizer, "llama4");
    assert_eq!(tokenizer.eog(), [200_001, 200_007, 200_008]);
}

/// The plain ids are those of Meta's file; some special tokens have other names in this release.
#[test]
fn llama3_from_gguf() {
    let Some(path) = licensed("llama3_from_gguf", "llama-bpe.gguf") else {
        return;
    };
    let tokenizer = Tokenizer::open(path).unwrap();
    for row in rows("llama3.jsonl") {
        let text = row["text"].as_str().unwrap();
        let got = tokenizer.encode(text, Special::Text).unwrap();
        assert_eq!(got, ids(&row, "ids"), "{text:?}");
    }
    assert!(tokenizer.adds_bos());
}

/// 300 random texts of mixed scripts with the ids of the official implementation, by vocabulary
/// (`scripts/networked/check_parity.py`). Twice, so that the second time words are known.
fn holds_to_the_sample(path: &Path, vocabulary: &str) {
    let tokenizer = Tokenizer::open(path).unwrap();
    let sample = std::fs::read_to_string(fixture("tokenizers/parity.jsonl")).unwrap();
    assert_eq!(sample.lines().count(), 300);
    for line in sample.lines().chain(sample.lines()) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = row["text"].as_str().unwrap();
        let got = tokenizer.encode(text, Special::Text).unwrap();
        assert_eq!(got, ids(&row, vocabulary), "{}: {text:?}", path.display());
    }
}

#[test]
fn smollm2_sample() {
    for file in [
        "tokenizers/smollm2-vocab.gguf",
        "reference/smollm2/tokenizer.json",
    ] {
        holds_to_the_sample(&fixture(file), "smollm2");
    }
}

#[test]
fn llama_samples() {
    for (file, vocabulary) in [
        ("llama-spm.gguf", "llama2"),
        ("llama2.json", "llama2"),
        ("llama3.model", "llama3"),
        ("llama-bpe.gguf", "llama3"),
        ("llama4.model", "llama4"),
    ] {
        let Some(path) = licensed("llama_samples", file) else {
            return;
        };
        holds_to_the_sample(&path, vocabulary);
    }
}

/// llama.cpp's own vectors, beside its vocabularies.
#[test]
fn llama_cpp_vectors() {
    for (name, cases) in [("llama-spm", 47), ("llama-bpe", 47), ("gpt-2", 47)] {
        let Some(path) = licensed("llama_cpp_vectors", &format!("{name}.gguf")) else {
            return;
        };
        let tokenizer = Tokenizer::open(&path).unwrap();
        let read = |extension: &str| {
            std::fs::read_to_string(path.with_extension(format!("gguf.{extension}"))).unwrap()
        };
        let (inputs, outputs) = (read("inp"), read("out"));
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let mut checked = 0;
        for (input, output) in inputs.iter().zip(outputs.split('\n')) {
            let want: Vec<u32> = output
                .split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect();
            let got = tokenizer.encode(input, Special::Text).unwrap();
            assert_eq!(got, want, "{name}: {input:?}");
            checked += 1;
        }
        assert_eq!(checked, cases, "{name}");
    }
}
