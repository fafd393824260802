//! From a path to a tokenizer: what the file is, is told by its content and not by its name.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::{sentencepiece, tiktoken};

/// The largest tokenizer file that is read (Llama 4's tokenizer.json has 28 MB), in bytes.
const MAX_FILE: u64 = 1 << 28;
/// What every GGUF file begins with.
const GGUF: &[u8] = b"GGUF";

impl Tokenizer {
    /// The tokenizer of a `tokenizer.model`: SentencePiece's or tiktoken's, told apart by content.
    pub fn from_model(bytes: &[u8]) -> Result<Tokenizer, Error> {
        if tiktoken::looks_like_tiktoken(bytes) {
            return tiktoken::parse(bytes);
        }
        if sentencepiece::looks_like_sentencepiece(bytes) {
            return sentencepiece::parse(bytes);
        }
        Err(Error::malformed(
            "tokenizer.model",
            "neither a SentencePiece model nor a tiktoken rank file",
        ))
    }

    /// The tokenizer at `path`: a `tokenizer.json`, a `tokenizer.model` of either kind, a GGUF file with or without
    /// weights, or a Hugging Face directory with its side files.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer, Error> {
        let path = path.as_ref();
        if path.is_dir() {
            return open_directory(path);
        }
        if starts_with_gguf(path)? {
            return Tokenizer::from_gguf(&files::gguf::Gguf::open(path)?.metadata);
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
