//! From a path to a tokenizer: what the file is, is told by its content and not by its name.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::{llama2c, sentencepiece, tiktoken};

/// The largest tokenizer file that is read (Llama 4's tokenizer.json has 28 MB), in bytes.
const MAX_FILE: u64 = 1 << 28;
/// What every GGUF file begins with.
const GGUF: &[u8] = b"GGUF";

impl Tokenizer {
    /// The tokenizer of a `tokenizer.model`, SentencePiece's or tiktoken's, or of llama2.c's
    /// `tokenizer.bin`, told apart by content.
    pub fn from_model(bytes: &[u8]) -> Result<Tokenizer, Error> {
        if tiktoken::looks_like_tiktoken(bytes) {
            return tiktoken::parse(bytes);
        }
        if sentencepiece::looks_like_sentencepiece(bytes) {
            return sentencepiece::parse(bytes);
        }
        if llama2c::looks_like_llama2c(bytes) {
            return llama2c::parse(bytes);
        }
        Err(Error::malformed(
            "tokenizer.model",
            "neither a SentencePiece model, a tiktoken rank file nor llama2.c's tokens",
        ))
    }

    /// The tokenizer at `path`: a `tokenizer.json`, a `tokenizer.model` of either kind, a GGUF file with or without
    /// weights, a directory of Hugging Face's or Meta's with its side files, or a llama2.c checkpoint with its
    /// tokenizer beside it.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer, Error> {
        let path = path.as_ref();
        if path.is_dir() {
            return open_directory(path);
        }
        if starts_with_gguf(path)? {
            return Tokenizer::from_gguf(&files::gguf::Gguf::open(path)?.metadata);
        }
        if files::detect(path)? == files::Kind::Llama2c {
            return Tokenizer::from_model(&read(&beside_llama2c(path)?)?);
        }
        let bytes = read(path)?;
        match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'{') => Tokenizer::from_json(&bytes),
            _ => Tokenizer::from_model(&bytes),
        }
    }
}

fn open_directory(path: &Path) -> Result<Tokenizer, Error> {
    let names = [
        "tokenizer.json",
        "tokenizer.model",
        "original/tokenizer.model",
    ];
    let Some(file) = names.iter().map(|n| path.join(n)).find(|p| p.is_file()) else {
        let source = std::io::Error::new(
            ErrorKind::NotFound,
            format!("the directory has none of {}", names.join(", ")),
        );
        return Err(Error::Read {
            path: path.to_path_buf(),
            source,
        });
    };
    let mut tokenizer = Tokenizer::open(file)?;
    let config = read_json(&path.join("tokenizer_config.json"))?;
    let specials = read_json(&path.join("special_tokens_map.json"))?;
    tokenizer.set_from_hf(&config, &specials)?;
    Ok(tokenizer)
}

/// The tokenizer of a llama2.c checkpoint lies in a file of its own: `tok512.bin` for 512 tokens, else
/// `tokenizer.bin`, or the model that these were made from.
pub(crate) fn beside_llama2c(path: &Path) -> Result<PathBuf, Error> {
    let tokens = files::llama2c::open(path)?.config.vocab_size;
    let names = [
        format!("tok{tokens}.bin"),
        format!("tok{tokens}.model"),
        "tokenizer.bin".into(),
        "tokenizer.model".into(),
    ];
    let mut files = names.iter().map(|n| path.with_file_name(n));
    files.find(|p| p.is_file()).ok_or_else(|| {
        let source = std::io::Error::new(
            ErrorKind::NotFound,
            format!("none of {} lies beside the checkpoint", names.join(", ")),
        );
        Error::Read {
            path: path.to_path_buf(),
            source,
        }
    })
}

fn starts_with_gguf(path: &Path) -> Result<bool, Error> {
    let mut start = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(GGUF.len() as u64).read_to_end(&mut start));
    read.map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(start == GGUF)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(std::io::Error::new(
            ErrorKind::FileTooLarge,
            format!("more than {MAX_FILE} bytes are no tokenizer"),
        )));
    }
    Ok(bytes)
}

/// A side file, or `Null` where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&read(path)?).map_err(|e| {
        Error::malformed(
            "tokenizer configuration",
            format!("{}: {e}", path.display()),
        )
    })
}
