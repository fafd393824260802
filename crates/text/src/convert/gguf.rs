//! The tokenizer of a directory, or of a llama2.c checkpoint, as the keys of a GGUF; see `crate::gguf`
//! for these.

use std::collections::HashMap;

use files::gguf::{Array, Metadata, Strings, Value};
use files::hf::HfDir;
use serde_json::Value as Json;

use super::same;
use crate::byte_level::spell;
use crate::spm::SPACE;
use crate::tokenizer::Tokenizer;
use crate::vocab::{Kind, MAX_TOKENS};
use crate::{Error, llama2c, sentencepiece, tiktoken};

const FORMAT: &str = "a tokenizer for GGUF";

/// Splitting patterns as GGUF names them, those with more meaning first.
const PRES: [&str; 6] = [
    "llama-bpe",
    "smaug-bpe",
    "llama4",
    "smollm",
    "gpt-2",
    "default",
];

/// What a GGUF lists of a vocabulary.
#[derive(Default)]
struct Lists {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    scores: Option<Vec<f32>>,
    merges: Option<Strings>,
    /// Whether a space is put before a text.
    space: bool,
}

/// The keys under `tokenizer.` that a GGUF of this model carries; the vocabulary is filled up to
/// `rows` tokens, those of the embedding table.
///
/// A checkpoint of Meta's or of llama2.c is one without side files; its path may be a file.
///
/// # Errors
/// The tokenizer cannot be read, or GGUF has no way to say what it does.
pub fn gguf_keys(dir: &HfDir, rows: usize) -> Result<Vec<(String, Value)>, Error> {
    let tokenizer = Tokenizer::open(&dir.path)?;
    let mut lists = lists(dir, &tokenizer)?;
    let (had, none) = (
        lists.tokens.len(),
        "the embedding table has fewer rows than tokens",
    );
    if had > rows || rows > MAX_TOKENS {
        return Err(Error::unsupported(
            FORMAT,
            format!("{none} ({rows}, {had})"),
        ));
    }
    for id in had..rows {
        lists.tokens.push(format!("[PAD{id}]"));
        lists.kinds.push(Kind::Unused as i32);
        if let Some(scores) = &mut lists.scores {
            scores.push(-10_000.0);
        }
    }
    // Byte-level models differ in their patterns: the one that gives the same ids is the model's.
    let byte_level = lists.merges.is_some();
    let pres = if byte_level { &PRES[..] } else { &["default"] };
    let mut keys = keys(dir, &tokenizer, lists);
    // llama2.c wrote SentencePiece's sign for a space as a space, and so lost what it is in a text.
    let without = if dir.path.is_file() { SPACE } else { "" };
    for pre in pres {
        keys.set("tokenizer.ggml.pre", Value::String((*pre).into()));
        if let Ok(read) = Tokenizer::from_gguf(&keys)
            && same(&tokenizer, &read, without)?
        {
            return Ok(keys
                .iter()
                .map(|(k, v)| (k.to_owned(), v.clone()))
                .collect());
        }
    }
    Err(Error::unsupported(
        FORMAT,
        "what this tokenizer does (no pattern of GGUF gives its ids)",
    ))
}

/// All keys but the pattern's.
fn keys(dir: &HfDir, tokenizer: &Tokenizer, lists: Lists) -> Metadata {
    let mut m = Metadata::new();
    let mut set = |key: &str, value: Value| m.set(format!("tokenizer.{key}"), value);
    let model = if lists.merges.is_some() {
        "gpt2"
    } else {
        "llama"
    };
    set("ggml.model", Value::String(model.into()));
    set(
        "ggml.tokens",
        Value::Array(Array::String(lists.tokens.iter().collect())),
    );
    if let Some(scores) = lists.scores {
        set("ggml.scores", Value::Array(Array::F32(scores)));
    }
    set("ggml.token_type", Value::Array(Array::I32(lists.kinds)));
    if let Some(merges) = lists.merges {
        set("ggml.merges", Value::Array(Array::String(merges)));
    }
    let config = dir.tokenizer_config.as_ref();
    let named = |key: &str| {
        let maps = [config, dir.special_tokens_map.as_ref()];
        let token = maps.into_iter().flatten().find_map(|m| name(&m[key]));
        token.and_then(|t| tokenizer.id_of(t))
    };
    for (key, id) in [
        ("bos", tokenizer.bos()),
        ("eos", tokenizer.eos()),
        ("unknown", named("unk_token")),
        ("padding", named("pad_token")),
    ] {
        if let Some(id) = id {
            set(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    set("ggml.add_bos_token", Value::Bool(tokenizer.adds_bos()));
    set("ggml.add_eos_token", Value::Bool(false));
    if model == "llama" {
        set("ggml.add_space_prefix", Value::Bool(lists.space));
    }
    if let Ok(template) = crate::find_template(dir, false) {
        set("chat_template", Value::String(template.into()));
    }
    m
}

/// A token's name, given as text or as an object with its content.
fn name(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn lists(dir: &HfDir, tokenizer: &Tokenizer) -> Result<Lists, Error> {
    let model = match dir.path.is_file() {
        true => crate::open::beside_llama2c(&dir.path)?,
        false => dir.path.join("tokenizer.model"),
    };
    let json = crate::open::read_json(&dir.path.join("tokenizer.json"))?;
    if model.is_file() {
        let bytes = crate::open::read(&model)?;
        if sentencepiece::looks_like_sentencepiece(&bytes) {
            return from_pieces(&bytes, dir);
        }
        if json.is_null() && tiktoken::looks_like_tiktoken(&bytes) {
            return Ok(from_ranks(tokenizer));
        }
        if json.is_null() && llama2c::looks_like_llama2c(&bytes) {
            return from_tokens(&bytes);
        }
    }
    if json.is_null() {
        return Err(Error::unsupported(
            FORMAT,
            "a tokenizer that is neither tokenizer.json nor SentencePiece's tokenizer.model",
        ));
    }
    from_json(&json)
}

/// Tokens of bytes in the order of their ranks, and their merges: every way to cut a token in two that
/// are tokens, the one of lower ranks first.
fn from_ranks(tokenizer: &Tokenizer) -> Lists {
    let mut lists = Lists::default();
    let tokens: Vec<_> = (0..tokenizer.len() as u32)
        .map(|id| {
            (
                tokenizer.piece(id).unwrap_or_default(),
                tokenizer.is_special(id),
            )
        })
        .collect();
    let plain = tokens
        .iter()
        .zip(0u32..)
        .filter(|((_, special), _)| !special);
    let ranks: HashMap<&[u8], u32> = plain.map(|((bytes, _), id)| (&**bytes, id)).collect();
    let mut merges = Strings::default();
    for (bytes, special) in &tokens {
        if *special {
            lists
                .tokens
                .push(String::from_utf8_lossy(bytes).into_owned());
            lists.kinds.push(Kind::Control as i32);
            continue;
        }
        lists.tokens.push(spell(bytes));
        lists.kinds.push(Kind::Normal as i32);
        let cut = |at: usize| {
            let (a, b) = bytes.split_at(at);
            Some(((*ranks.get(a)?, *ranks.get(b)?), at))
        };
        let mut cuts: Vec<_> = (1..bytes.len()).filter_map(cut).collect();
        cuts.sort_unstable();
        for (_, at) in cuts {
            let (a, b) = bytes.split_at(at);
            merges.push(&format!("{} {}", spell(a), spell(b)));
        }
    }
    lists.merges = Some(merges);
    lists
}

/// llama2.c's tokens: SentencePiece's, with plain spaces.
fn from_tokens(bytes: &[u8]) -> Result<Lists, Error> {
    let (pieces, scores) = llama2c::pieces(bytes)?;
    let mut lists = Lists {
        scores: Some(scores),
        space: true,
        ..Lists::default()
    };
    for (id, piece) in pieces.of_kind(|_| true) {
        let piece = String::from_utf8_lossy(piece).replace(' ', SPACE);
        lists.tokens.push(piece);
        lists.kinds.push(pieces.kind(id).map_or(1, |k| k as i32));
    }
    Ok(lists)
}

/// SentencePiece's pieces, and the tokens that the configuration adds.
fn from_pieces(bytes: &[u8], dir: &HfDir) -> Result<Lists, Error> {
    let (pieces, scores, space) = sentencepiece::pieces(bytes)?;
    let mut lists = Lists {
        scores: Some(scores),
        space,
        ..Lists::default()
    };
    for (id, piece) in pieces.of_kind(|_| true) {
        lists
            .tokens
            .push(String::from_utf8_lossy(piece).into_owned());
        lists.kinds.push(pieces.kind(id).map_or(1, |k| k as i32));
    }
    let added = dir.tokenizer_config.as_ref();
    let added = added.and_then(|c| c["added_tokens_decoder"].as_object());
    for (id, token) in added.into_iter().flatten() {
        let id: Option<usize> = id.parse().ok();
        let (Some(id), Some(content)) = (id, token["content"].as_str()) else {
            continue;
        };
        let special = token["special"] == true;
        put(&mut lists, id, content, special)?;
    }
    Ok(lists)
}

/// An added token.
fn put(lists: &mut Lists, id: usize, content: &str, special: bool) -> Result<(), Error> {
    if id >= MAX_TOKENS || id > lists.tokens.len() + (1 << 16) {
        return Err(Error::malformed(FORMAT, format!("added token id {id}")));
    }
    while lists.tokens.len() <= id {
        lists.tokens.push(format!("[PAD{}]", lists.tokens.len()));
        lists.kinds.push(Kind::Unused as i32);
        if let Some(scores) = &mut lists.scores {
            scores.push(-1000.0);
        }
    }
    content.clone_into(&mut lists.tokens[id]);
    // What the vocabulary marks already stays marked in its way.
    if ![Kind::Unknown as i32, Kind::Control as i32].contains(&lists.kinds[id]) {
        lists.kinds[id] = if special {
            Kind::Control as i32
        } else {
            Kind::UserDefined as i32
        };
    }
    Ok(())
}

/// The BPE model of a tokenizer.json: byte-level, or SentencePiece's.
fn from_json(json: &Json) -> Result<Lists, Error> {
    let model = &json["model"];
    let vocab = model["vocab"].as_object();
    let (Some(vocab), Some(merges)) = (vocab, model["merges"].as_array()) else {
        return Err(Error::unsupported(
            FORMAT,
            "a tokenizer.json that is no BPE model",
        ));
    };
    let mut lists = Lists::default();
    for (token, id) in vocab {
        let id = id.as_u64().and_then(|n| usize::try_from(n).ok());
        let id = id.filter(|id| *id < 4 * vocab.len() + (1 << 16));
        let id = id.ok_or_else(|| Error::malformed(FORMAT, format!("the id of {token:?}")))?;
        if lists.tokens.len() <= id {
            lists.tokens.resize(id + 1, String::new());
            lists.kinds.resize(id + 1, Kind::Unused as i32);
        }
        lists.tokens[id].clone_from(token);
        lists.kinds[id] = Kind::Normal as i32;
    }
    for (id, token) in lists.tokens.iter_mut().enumerate() {
        if lists.kinds[id] == Kind::Unused as i32 {
            *token = format!("[PAD{id}]");
        }
    }
    let pairs: Option<Vec<(&str, &str)>> = merges.iter().map(merge).collect();
    let pairs = pairs.ok_or_else(|| Error::malformed(FORMAT, "a merge that is no pair"))?;
    if model["byte_fallback"] == true {
        sentencepiece_lists(&mut lists, &pairs, json);
    } else {
        lists.merges = Some(pairs.iter().map(|(a, b)| format!("{a} {b}")).collect());
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let id = token["id"].as_u64().and_then(|n| usize::try_from(n).ok());
        let (Some(id), Some(content)) = (id, token["content"].as_str()) else {
            return Err(Error::malformed(
                FORMAT,
                "an added token without id or content",
            ));
        };
        put(&mut lists, id, content, token["special"] == true)?;
    }
    Ok(lists)
}

/// `"a b"` or `["a", "b"]`.
fn merge(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(s) => s.split_once(' '),
        Json::Array(pair) => match &pair[..] {
            [a, b] => Some((a.as_str()?, b.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// Scores that merge in the order of a list of merges: what is made first scores highest.
fn sentencepiece_lists(lists: &mut Lists, merges: &[(&str, &str)], json: &Json) {
    let made = merges.iter().enumerate().rev();
    let ranks: std::collections::HashMap<String, usize> = made
        .map(|(rank, (a, b))| (format!("{a}{b}"), rank))
        .collect();
    let score = |token: &String| ranks.get(token).map_or(-1e6, |rank| -(*rank as f32));
    lists.scores = Some(lists.tokens.iter().map(score).collect());
    for (token, kind) in lists.tokens.iter().zip(&mut lists.kinds) {
        if crate::spm::byte_of(token.as_bytes()).is_some() {
            *kind = Kind::Byte as i32;
        }
    }
    let unknown = json["model"]["unk_token"].as_str();
    if let Some(id) = unknown.and_then(|u| lists.tokens.iter().position(|t| t == u)) {
        lists.kinds[id] = Kind::Unknown as i32;
    }
    // `Prepend`, or a Metaspace that is not told otherwise.
    let text = format!("{} {}", json["normalizer"], json["pre_tokenizer"]);
    lists.space = text.contains("\"Prepend\"")
        || text.contains("\"prepend_scheme\":\"first\"")
        || text.contains("\"prepend_scheme\":\"always\"");
}
