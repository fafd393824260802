//! The tokenizer in a GGUF file's metadata. Keys and defaults are those of llama.cpp.
//!
//! | key under `tokenizer.ggml.` | meaning |
//! |---|---|
//! | `model` | `llama`: SentencePiece BPE; `gpt2`: byte-level BPE |
//! | `pre` | which pattern cuts the text of a `gpt2` model |
//! | `tokens` | the pieces, by id |
//! | `scores` | `llama`: the merge order, highest first |
//! | `token_type` | 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte |
//! | `merges` | `gpt2`: "left right", first merged first |
//! | `bos_token_id`, `eos_token_id`, `eot_token_id`, `eom_token_id`, `unknown_token_id` | ids |
//! | `add_bos_token`, `add_space_prefix` | what is put before a text |
//!
//! Where a key is missing: a `llama` model has unknown 0, bos 1, eos 2 and adds bos and the space; a `gpt2`
//! model has no bos or eos and adds none, unless its `pre` says otherwise. (For the latter llama.cpp falls back on
//! id 11, which is right for one old model only.)

use files::gguf::{Metadata, Strings};

use crate::Error;
use crate::bpe::{Bpe, Merges, Order, is_text, pair};
use crate::byte_level::unspell;
use crate::pretokenize::Pattern;
use crate::spm::{Normalizer, Spm};
use crate::tokenizer::{Algorithm, Parts, Tokenizer};
use crate::vocab::{Kind, PieceTable, Vocab};

const FORMAT: &str = "GGUF vocabulary";

/// What a value of `tokenizer.ggml.pre` stands for.
struct Pre {
    names: &'static [&'static str],
    pattern: Pattern,
    /// A piece that is a token is that token, whatever the merges say.
    whole_pieces: bool,
    adds_bos: bool,
}

const PRES: &[Pre] = &[
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        pattern: Pattern::Llama3,
        whole_pieces: true,
        adds_bos: true,
    },
    Pre {
        names: &["dbrx", "smaug-bpe"],
        pattern: Pattern::Llama3,
        whole_pieces: false,
        adds_bos: false,
    },
    Pre {
        names: &["llama4", "gpt-4o"],
        pattern: Pattern::Llama4,
        whole_pieces: false,
        adds_bos: false,
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        pattern: Pattern::Smollm,
        whole_pieces: false,
        adds_bos: false,
    },
    Pre {
        names: &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "exaone4",
        ],
        pattern: Pattern::Gpt2,
        whole_pieces: false,
        adds_bos: false,
    },
    Pre {
        names: &["default", ""],
        pattern: Pattern::Default,
        whole_pieces: false,
        adds_bos: false,
    },
];

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn malformed(what: impl Into<String>) -> Error {
    Error::malformed(FORMAT, what)
}

impl Tokenizer {
    /// The tokenizer that a GGUF file carries.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, Error> {
        let model = metadata.str("tokenizer.ggml.model").ok_or_else(|| {
            malformed("tokenizer.ggml.model is missing: the file has no tokenizer")
        })?;
        let tokens = metadata
            .strings(&key("tokens"))
            .filter(|t| !t.is_empty())
            .ok_or_else(|| malformed("tokenizer.ggml.tokens is missing or empty"))?;
        let kinds = kinds(metadata, tokens.len())?;
        match model {
            "llama" => sentencepiece(metadata, tokens, &kinds),
            "gpt2" => byte_level(metadata, tokens, &kinds),
            _ => Err(Error::unsupported(
                FORMAT,
                format!("tokenizer.ggml.model {model:?}"),
            )),
        }
    }
}

fn kinds(metadata: &Metadata, count: usize) -> Result<Vec<Kind>, Error> {
    if metadata.get(&key("token_type")).is_none() {
        return Ok(vec![Kind::Normal; count]);
    }
    let types = metadata
        .ints(&key("token_type"))
        .ok_or_else(|| malformed("tokenizer.ggml.token_type is no array of integers"))?;
    if types.len() < count {
        return Err(malformed(format!(
            "tokenizer.ggml.token_type has {} entries for {count} tokens",
            types.len()
        )));
    }
    Ok(types
        .into_iter()
        .take(count)
        .map(Kind::from_number)
        .collect())
}

fn scores(metadata: &Metadata, count: usize) -> Result<Vec<f32>, Error> {
    let Some(array) = metadata.array(&key("scores")) else {
        return Ok(vec![0.0; count]);
    };
    let scores = match (metadata.f32s(&key("scores")), array.ints()) {
        (Some(floats), _) => floats.to_vec(),
        (None, Some(ints)) => ints.into_iter().map(|n| n as f32).collect(),
        (None, None) => return Err(malformed("tokenizer.ggml.scores is no array of numbers")),
    };
    if scores.len() < count {
        return Err(malformed(format!(
            "tokenizer.ggml.scores has {} entries for {count} tokens",
            scores.len()
        )));
    }
    Ok(scores)
}

/// An id under `name` that is in the vocabulary, or the default if that is. llama.cpp ignores others too.
fn id(metadata: &Metadata, name: &str, default: Option<u32>, count: usize) -> Option<u32> {
    let inside = |id: &u32| (*id as usize) < count;
    let given = metadata
        .u64(&key(name))
        .and_then(|id| u32::try_from(id).ok())
        .filter(inside);
    given.or(default.filter(inside))
}

/// Every key that names a token which ends a generation, beside eos.
fn ends(metadata: &Metadata, count: usize) -> Vec<u32> {
    let names = [
        "eot_token_id",
        "eom_token_id",
        "fim_pad_token_id",
        "fim_rep_token_id",
        "fim_sep_token_id",
    ];
    names
        .iter()
        .filter_map(|name| id(metadata, name, None, count))
        .collect()
}

fn too_large() -> Error {
    malformed("the vocabulary is larger than any that exists")
}

fn twice(tokens: &Strings, id: u32) -> Error {
    malformed(format!(
        "token {id} ({:?}) stands twice, or its score is no number",
        tokens.get(id as usize).unwrap_or_default()
    ))
}

fn sentencepiece(
    metadata: &Metadata,
    tokens: &Strings,
    kinds: &[Kind],
) -> Result<Tokenizer, Error> {
    let count = tokens.len();
    let mut vocab = Vocab::with_capacity(count);
    for (token, &kind) in tokens.iter().zip(kinds) {
        vocab.push(token.as_bytes(), kind).ok_or_else(too_large)?;
    }
    let add_dummy_prefix = metadata.bool(&key("add_space_prefix")).unwrap_or(true);
    // llama.cpp never collapses spaces for these models, whatever the file says.
    let normalizer = Normalizer {
        add_dummy_prefix,
        remove_extra_whitespaces: false,
        escape_whitespaces: true,
    };
    let unknown = id(metadata, "unknown_token_id", Some(0), count);
    let spm = Spm::new(
        &vocab,
        &scores(metadata, count)?,
        normalizer,
        unknown,
        false,
    )
    .map_err(|id| twice(tokens, id))?;
    Tokenizer::assemble(Parts {
        algorithm: Algorithm::Spm(spm),
        bos: id(metadata, "bos_token_id", Some(1), count),
        eos: id(metadata, "eos_token_id", Some(2), count),
        adds_bos: metadata.bool(&key("add_bos_token")).unwrap_or(true),
        ends: ends(metadata, count),
        cut_user_defined: true,
        strips_space: add_dummy_prefix,
        from_json: false,
        vocab,
    })
}

fn byte_level(metadata: &Metadata, tokens: &Strings, kinds: &[Kind]) -> Result<Tokenizer, Error> {
    let name = metadata.str(&key("pre")).unwrap_or_default();
    let pre = PRES
        .iter()
        .find(|p| p.names.contains(&name))
        .ok_or_else(|| {
            Error::unsupported(
                FORMAT,
                format!("the pre-tokenizer {name:?} (tokenizer.ggml.pre)"),
            )
        })?;
    let count = tokens.len();
    let mut vocab = Vocab::with_capacity(count);
    let mut spelled = vec![false; count];
    let mut bytes = Vec::new();
    for ((token, &kind), spelled) in tokens.iter().zip(kinds).zip(&mut spelled) {
        bytes.clear();
        *spelled = is_text(kind) && unspell(token, &mut bytes);
        let piece = if *spelled {
            bytes.as_slice()
        } else {
            token.as_bytes()
        };
        vocab.push(piece, kind).ok_or_else(too_large)?;
    }
    let table =
        PieceTable::build(&vocab, |id, _| spelled[id as usize]).map_err(|id| twice(tokens, id))?;
    let merges = merges(metadata, &vocab, &table)?;
    let bos = id(metadata, "bos_token_id", None, count);
    let eos = id(metadata, "eos_token_id", None, count);
    Tokenizer::assemble(Parts {
        algorithm: Algorithm::Bpe(Bpe::new(
            &vocab,
            table,
            pre.pattern,
            Order::Merges(merges),
            pre.whole_pieces,
        )),
        bos,
        eos,
        adds_bos: metadata.bool(&key("add_bos_token")).unwrap_or(pre.adds_bos),
        ends: ends(metadata, count),
        cut_user_defined: true,
        strips_space: false,
        from_json: false,
        vocab,
    })
}

/// "left right" -> the two ids, in order. A merge of or into something that is no token can never lead to a
/// token either, and is left out; of two equal ones the first counts.
fn merges(metadata: &Metadata, vocab: &Vocab, table: &PieceTable) -> Result<Merges, Error> {
    let list = metadata
        .strings(&key("merges"))
        .ok_or_else(|| malformed("tokenizer.ggml.merges is missing"))?;
    let mut merges = Merges::with_capacity_and_hasher(list.len(), Default::default());
    let mut joined = Vec::new();
    for (merge, rank) in list.iter().zip(0u32..) {
        joined.clear();
        // A space cannot be part of a spelled token, but a lone one at the front would be the left side.
        let middle = merge
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == ' ')
            .map(|(at, _)| at);
        let Some((left, right)) = middle.map(|at| (&merge[..at], &merge[at + 1..])) else {
            return Err(malformed(format!(
                "tokenizer.ggml.merges[{rank}] is no pair: {merge:?}"
            )));
        };
        if !unspell(left, &mut joined) {
            continue;
        }
        let split = joined.len();
        if !unspell(right, &mut joined) {
            continue;
        }
        let ids = (
            table.get(vocab, &joined[..split]),
            table.get(vocab, &joined[split..]),
            table.get(vocab, &joined),
        );
        if let (Some(left), Some(right), Some(id)) = ids {
            merges.entry(pair(left, right)).or_insert((rank, id));
        }
    }
    Ok(merges)
}
