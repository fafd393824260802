//! What the tokenizer tests share: the reference rows, and the vocabularies that not every machine has.

use std::path::{Path, PathBuf};

use serde_json::Value;
use text::{Decoder, Special, Tokenizer};

/// A file of the repository's fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

/// The rows of a JSON-lines file of the reference.
pub(crate) fn rows(name: &str) -> Vec<Value> {
    let path = fixture("reference/tokenizers").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The ids under `key`.
pub(crate) fn ids(row: &Value, key: &str) -> Vec<u32> {
    let ids = row[key].as_array().unwrap_or_else(|| panic!("no {key}"));
    ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A vocabulary under Meta's licence, from the directory that `PUNA_LLAMA_TOKENIZERS` names. Without the variable
/// the test is skipped, which under CI it may only be if `tests/allowed-skips.txt` lists it.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn licensed(test: &str, file: &str) -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("PUNA_LLAMA_TOKENIZERS") else {
        let list = std::fs::read_to_string(fixture("../allowed-skips.txt")).unwrap_or_default();
        let listed = list.lines().any(|l| l.starts_with(&format!("{test}: ")));
        assert!(
            listed || std::env::var_os("CI").is_none(),
            "{test}: PUNA_LLAMA_TOKENIZERS is not set, and tests/allowed-skips.txt does not list the test"
        );
        eprintln!("SKIPPED {test}: PUNA_LLAMA_TOKENIZERS is not set");
        return None;
    };
    let path = Path::new(&directory).join(file);
    assert!(
        path.is_file(),
        "{}: missing; see .ci/fetch-llama-tokenizers",
        path.display()
    );
    Some(path)
}

/// Holds a tokenizer to every row: ids in both modes, decoding at once and as a stream.
/// `parses`: where a row has no `ids_special`, parsing special tokens gives the same ids.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn holds_to(tokenizer: &Tokenizer, file: &str, parses: bool) {
    let rows = rows(file);
    assert_eq!(rows.len(), 477);
    for (row, number) in rows.iter().zip(1..) {
        let text = row["text"].as_str().unwrap();
        let plain = ids(row, "ids");
        let got = tokenizer.encode(text, Special::Text).unwrap();
        assert_eq!(got, plain, "{file}:{number}: {text:?}");
        let key = if row["ids_special"].is_array() {
            "ids_special"
        } else {
            "ids"
        };
        if parses {
            let got = tokenizer.encode(text, Special::Parse).unwrap();
            assert_eq!(got, ids(row, key), "{file}:{number}, parsed: {text:?}");
        }
        let decoded = row["decoded"].as_str().unwrap();
        let bytes = tokenizer.decode(&plain, false);
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            decoded,
            "{file}:{number}: decoded {text:?}"
        );
        assert_eq!(
            stream(tokenizer, &plain),
            decoded,
            "{file}:{number}: streamed {text:?}"
        );
    }
}

/// Appends a length-delimited field of a Protocol Buffers message.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn protobuf_field(number: u8, content: &[u8], message: &mut Vec<u8>) {
    message.push(number << 3 | 2);
    let mut n = content.len();
    while n >= 0x80 {
        message.push(n as u8 | 0x80);
        n >>= 7;
    }
    message.push(n as u8);
    message.extend_from_slice(content);
}

/// Appends a piece of a SentencePiece model.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn sentencepiece_piece(text: &[u8], score: f32, kind: u8, model: &mut Vec<u8>) {
    let mut piece = Vec::new();
    protobuf_field(1, text, &mut piece);
    piece.push(2 << 3 | 5);
    piece.extend_from_slice(&score.to_le_bytes());
    piece.extend([3 << 3, kind]);
    protobuf_field(1, &piece, model);
}

/// The text of a stream of tokens.
pub(crate) fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = Decoder::new(tokenizer, false);
    let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
    text.push_str(&decoder.finish());
    text
}
