//! What lies at a path is told by its content.

use std::fs;
use std::path::PathBuf;

use files::{Kind, detect, detect_bytes};

fn reference(name: &str) -> PathBuf {
    let root = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    );
    PathBuf::from(root).join(name)
}

#[test]
fn reference_files_are_told_apart() {
    for (name, kind) in [
        ("gguf/llama1.f32.gguf", Kind::Gguf),
        ("models/llama1", Kind::HfDir),
        ("models", Kind::Directory),
        ("models/llama1/model.safetensors", Kind::Safetensors),
        ("models/llama1/tokenizer.model", Kind::SentencePiece),
        ("models/llama3/tokenizer.json", Kind::TokenizerJson),
        ("smollm2/tokenizer.json", Kind::TokenizerJson),
        ("models/llama1/config.json", Kind::Json),
        ("models/llama3/tokenizer_config.json", Kind::Json),
        ("models/llama3/generation_config.json", Kind::Json),
        ("README.md", Kind::Unknown),
    ] {
        assert_eq!(detect(reference(name)).expect(name), kind, "{name}");
    }
    assert!(detect(reference("no such file")).is_err());
}

#[test]
fn names_do_not_matter() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("model.gguf");
    fs::copy(reference("models/llama1/model.safetensors"), &path).expect("copy");
    assert_eq!(detect(&path).expect("detect"), Kind::Safetensors);
    fs::write(dir.path().join("adapter_config.json"), "{}").expect("write");
    assert_eq!(detect(dir.path()).expect("detect"), Kind::PeftDir);
    fs::write(dir.path().join("params.json"), "{}").expect("write");
    assert_eq!(detect(dir.path()).expect("detect"), Kind::MetaDir);
}

#[test]
fn other_kinds() {
    let tiktoken: &[u8] = b"IQ== 0\nIg== 1\nIw== 2\n";
    let lfs: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (head, kind) in [
        (&b""[..], Kind::Empty),
        (b"G", Kind::Unknown),
        (b"tjgg\x01\0\0\0", Kind::OldGgml),
        (b"PK\x03\x04rest", Kind::TorchZip),
        (b"\x80\x02\x8a\x0al\xfc\x9c", Kind::Pickle),
        (b"24ka\x01\0\0\0", Kind::Llama2c),
        (tiktoken, Kind::Tiktoken),
        (b"IQ== 0 1\n", Kind::Unknown),
        (lfs, Kind::LfsPointer),
        (b"\n<!DOCTYPE HTML><html>", Kind::Html),
        (b" {\"a\": 1}", Kind::Json),
        (
            b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02",
            Kind::SentencePiece,
        ),
        (b"\x02\0\0\0\0\0\0\0{}", Kind::Safetensors),
        (b"\x03\0\0\0\0\0\0\0{}", Kind::Unknown),
    ] {
        assert_eq!(detect_bytes(head, head.len() as u64), kind, "{head:?}");
    }
}

#[test]
fn a_llama2c_file_of_version_0_is_known_by_its_length() {
    // stories260K: dim 64, hidden 172, 5 layers, 8 heads, 4 kv heads, 512 tokens, 512 positions.
    let config = |vocab: i32| {
        [64, 172, 5, 8, 4, vocab, 512]
            .map(i32::to_le_bytes)
            .concat()
    };
    let layer = 64 + 64 * 64 * 2 + 64 * 32 * 2 + 64 + 3 * 64 * 172;
    let shared = 28 + 4 * (512 * 64 + 5 * layer + 64 + 512 * 8);
    assert_eq!(detect_bytes(&config(512), shared), Kind::Llama2c);
    assert_eq!(detect_bytes(&config(512), shared + 1), Kind::Unknown);
    let separate = shared + 4 * 512 * 64;
    assert_eq!(detect_bytes(&config(-512), separate), Kind::Llama2c);
    let hostile = [i32::MAX; 7].map(i32::to_le_bytes).concat();
    assert_eq!(detect_bytes(&hostile, u64::MAX), Kind::Unknown);
    let hostile = [i32::MIN; 7].map(i32::to_le_bytes).concat();
    assert_eq!(detect_bytes(&hostile, 0), Kind::Unknown);
}
