//! What lies at a path, told by its content: names and extensions are often wrong.
//!
//! What it knows: how each kind of file begins. It reads no more than the first 64 KiB. The kinds
//! that Puna cannot read are told apart as well, so that an error can say what the user has.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::peft::is_peft_dir;
use crate::{Error, llama2c};

/// Bytes of a file that are looked at.
const HEAD: usize = 64 << 10;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A GGUF file.
    Gguf,
    /// A safetensors file.
    Safetensors,
    /// A directory with `config.json`.
    HfDir,
    /// A directory with `params.json`: a checkpoint as Meta published it.
    MetaDir,
    /// A directory with `adapter_config.json`: a LoRA adapter as PEFT saves it.
    PeftDir,
    /// Any other directory.
    Directory,
    /// llama2.c's `.bin`, of any version.
    Llama2c,
    /// A ZIP file: what PyTorch saves (`.pth`, `.bin`, `.pt`).
    TorchZip,
    /// A pickle: what old versions of PyTorch saved.
    Pickle,
    /// The formats of ggml before GGUF.
    OldGgml,
    /// `tokenizer.json` of Hugging Face.
    TokenizerJson,
    /// Any other JSON object.
    Json,
    /// A SentencePiece model (`tokenizer.model` of Llama 1 and 2).
    SentencePiece,
    /// A tiktoken vocabulary (`tokenizer.model` of Llama 3): lines of base64 and a rank.
    Tiktoken,
    /// A pointer of Git LFS in place of the file.
    LfsPointer,
    /// A web page: an error page, saved under the name of a file.
    Html,
    /// A file of no bytes.
    Empty,
    /// None of these.
    Unknown,
}

impl Kind {
    /// What to call it in a message: "a GGUF file", ...
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Gguf => "a GGUF file",
            Kind::Safetensors => "a safetensors file",
            Kind::HfDir => "a Hugging Face model directory",
            Kind::MetaDir => "a checkpoint directory in Meta's own layout",
            Kind::PeftDir => "an adapter of PEFT's, not a model",
            Kind::Directory => "a directory without config.json or params.json",
            Kind::Llama2c => "a llama2.c checkpoint",
            Kind::TorchZip => "a ZIP file, probably a PyTorch checkpoint",
            Kind::Pickle => "a pickle, probably an old PyTorch checkpoint",
            Kind::OldGgml => "a ggml file from before GGUF",
            Kind::TokenizerJson => "a tokenizer.json",
            Kind::Json => "a JSON file",
            Kind::SentencePiece => "a SentencePiece tokenizer",
            Kind::Tiktoken => "a tiktoken vocabulary",
            Kind::LfsPointer => {
                "a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)"
            }
            Kind::Html => "a web page, not a model: the download went wrong",
            Kind::Empty => "an empty file",
            Kind::Unknown => "a file of an unknown kind",
        }
    }
}

/// Says what lies at `path`.
///
/// # Errors
/// There is nothing, it cannot be read, or it is neither a file nor a directory.
pub fn detect(path: impl AsRef<Path>) -> Result<Kind, Error> {
    let path = path.as_ref();
    let fail = |e| Error::io(path, e);
    let seen = std::fs::metadata(path).map_err(fail)?;
    if seen.is_dir() {
        return Ok(match () {
            () if path.join("config.json").is_file() => Kind::HfDir,
            () if path.join("params.json").is_file() => Kind::MetaDir,
            () if is_peft_dir(path) => Kind::PeftDir,
            () => Kind::Directory,
        });
    }
    if !seen.is_file() {
        return Err(Error::invalid(path, "neither a file nor a directory"));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(HEAD as u64)
        .read_to_end(&mut head)
        .map_err(fail)?;
    Ok(detect_bytes(&head, seen.len()))
}

/// Says what a file of `len` bytes is that begins with `head`.
pub fn detect_bytes(head: &[u8], len: u64) -> Kind {
    let tests: [(Kind, bool); 14] = [
        (Kind::Empty, head.is_empty()),
        (Kind::Gguf, head.starts_with(b"GGUF")),
        (Kind::OldGgml, is_old_ggml(head)),
        (Kind::Safetensors, is_safetensors(head, len)),
        (Kind::TorchZip, head.starts_with(b"PK\x03\x04")),
        (Kind::Llama2c, is_llama2c(head, len)),
        (
            Kind::LfsPointer,
            head.starts_with(b"version https://git-lfs.github.com/"),
        ),
        (Kind::Pickle, is_pickle(head)),
        (Kind::SentencePiece, is_sentencepiece(head)),
        (Kind::Tiktoken, is_tiktoken(head)),
        (Kind::TokenizerJson, is_tokenizer_json(head)),
        (Kind::Json, first_char(head) == Some(b'{')),
        (Kind::Html, is_html(head)),
        (Kind::Unknown, true),
    ];
    let found = tests.iter().find(|(_, is)| *is);
    found.map_or(Kind::Unknown, |(kind, _)| *kind)
}

/// " (it looks like a web page ...)" if `bytes` are of a kind that can be told for sure, for an
/// error that says that they are not of the kind that was wanted; else nothing.
pub(crate) fn looks_like(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(HEAD)];
    match detect_bytes(head, bytes.len() as u64) {
        Kind::Empty | Kind::Unknown => String::new(),
        kind => format!(" (it looks like {})", kind.describe()),
    }
}

fn first_char(head: &[u8]) -> Option<u8> {
    head.iter().copied().find(|b| !b.is_ascii_whitespace())
}

fn contains(head: &[u8], word: &[u8]) -> bool {
    head.windows(word.len()).any(|window| window == word)
}

/// "ggml", "ggmf", "ggjt", "ggla" as little-endian numbers.
fn is_old_ggml(head: &[u8]) -> bool {
    [b"lmgg", b"fmgg", b"tjgg", b"algg"]
        .iter()
        .any(|magic| head.starts_with(*magic))
}

/// A length that fits into the file, then an object.
fn is_safetensors(head: &[u8], len: u64) -> bool {
    let Some((n, rest)) = head.split_first_chunk() else {
        return false;
    };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*n) <= len.saturating_sub(8)
}

/// Version 1 and up have a magic. Version 0 begins with its seven numbers, so a file is one if
/// they call for exactly its length.
fn is_llama2c(head: &[u8], len: u64) -> bool {
    if head.starts_with(&llama2c::MAGIC.to_le_bytes()) {
        return true;
    }
    let Some(config) = head.first_chunk::<28>() else {
        return false;
    };
    let (numbers, _) = config.as_chunks::<4>();
    let numbers: Vec<i64> = numbers
        .iter()
        .map(|&n| i32::from_le_bytes(n).into())
        .collect();
    let &[dim, hidden, layers, heads, kv_heads, vocab, seq] = &numbers[..] else {
        return false;
    };
    if [dim, hidden, layers, heads, kv_heads, seq]
        .iter()
        .any(|&n| n <= 0)
        || dim % heads != 0
    {
        return false;
    }
    llama2c_bytes([dim, hidden, layers, heads, kv_heads, vocab, seq]) == Some(i128::from(len))
}

/// Bytes of a llama2.c file of version 0: the header, and all its f32.
fn llama2c_bytes(config: [i64; 7]) -> Option<i128> {
    let [dim, hidden, layers, heads, kv_heads, vocab, seq] = config.map(i128::from);
    let head_dim = dim / heads;
    let kv = kv_heads.checked_mul(head_dim)?;
    let layer = 2 * dim + 2 * dim * dim + 2 * dim * kv + 3 * dim * hidden;
    let shared = vocab > 0;
    let tables = vocab.abs() * dim * if shared { 1 } else { 2 };
    let numbers = layer.checked_mul(layers)? + tables + dim + seq * head_dim;
    numbers.checked_mul(4)?.checked_add(28)
}

/// Protocol 2 to 5, then the opcodes that torch begins with.
fn is_pickle(head: &[u8]) -> bool {
    matches!(
        head,
        [0x80, 2..=5, 0x8a | b'}' | b'c' | b'(' | 0x95 | b']', ..]
    )
}

/// Protobuf: field 1 (a piece) of some length, in which field 1 (its text) comes first.
fn is_sentencepiece(head: &[u8]) -> bool {
    matches!(head, [0x0a, len, 0x0a, text, ..] if *len >= 2 && *text <= len - 2)
}

/// The first line is base64, a space and a number.
fn is_tiktoken(head: &[u8]) -> bool {
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii_end().split(|&b| b == b' ');
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    match (words.next(), words.next(), words.next()) {
        (Some(token), Some(rank), None) => {
            let token_fits = !token.is_empty() && token.len().is_multiple_of(4);
            let rank_fits = !rank.is_empty() && rank.iter().all(u8::is_ascii_digit);
            token_fits && token.iter().all(is_base64) && rank_fits
        }
        _ => false,
    }
}

fn is_tokenizer_json(head: &[u8]) -> bool {
    let marks: [&[u8]; 3] = [b"\"added_tokens\"", b"\"pre_tokenizer\"", b"\"normalizer\""];
    first_char(head) == Some(b'{')
        && marks.iter().any(|mark| contains(head, mark))
        && !contains(head, b"\"added_tokens_decoder\"")
}

fn is_html(head: &[u8]) -> bool {
    let start: Vec<u8> = head
        .trim_ascii_start()
        .iter()
        .take(14)
        .map(u8::to_ascii_lowercase)
        .collect();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}
