//! The tokenizer in a GGUF's keys as the files of a Hugging Face directory.

use files::gguf::Metadata;
use serde_json::{Map, Value as Json, json};

use super::same;
use crate::Error;
use crate::pretokenize::{LLAMA3, LLAMA4};
use crate::sentencepiece;
use crate::tokenizer::Tokenizer;
use crate::vocab::Kind;

const FORMAT: &str = "a tokenizer for Hugging Face";

/// How a text is cut, by `tokenizer.ggml.pre`: the pattern, and whether a piece that is a token is
/// taken whole. None: as GPT-2 does, with or without digits one by one.
enum Cut {
    Pattern(&'static str, bool),
    Gpt2 { digits_apart: bool },
}

fn cut(pre: &str) -> Option<Cut> {
    Some(match pre {
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" => {
            Cut::Pattern(LLAMA3, true)
        }
        "dbrx" | "smaug-bpe" => Cut::Pattern(LLAMA3, false),
        "llama4" | "gpt-4o" => Cut::Pattern(LLAMA4, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            Cut::Gpt2 { digits_apart: true }
        }
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "gigachat" => Cut::Gpt2 {
            digits_apart: false,
        },
        _ => return None,
    })
}

/// Name and bytes of the files that hold the tokenizer of a GGUF and its chat template.
///
/// # Errors
/// The keys cannot be read, or these files have no way to say what they say.
pub fn hf_files(metadata: &Metadata) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let tokenizer = Tokenizer::from_gguf(metadata)?;
    let tokens = metadata.strings("tokenizer.ggml.tokens");
    let tokens: Vec<&str> = tokens.map_or(Vec::new(), |t| t.iter().collect());
    let kinds = metadata
        .ints("tokenizer.ggml.token_type")
        .unwrap_or_default();
    let kinds: Vec<Kind> = (0..tokens.len())
        .map(|id| {
            kinds
                .get(id)
                .map_or(Kind::Normal, |k| Kind::from_number(*k))
        })
        .collect();
    let spm = metadata.str("tokenizer.ggml.model") == Some("llama");
    let config = config(metadata, &tokenizer, &tokens, &kinds, spm);
    let (name, bytes) = if spm {
        let scores = metadata.f32s("tokenizer.ggml.scores").unwrap_or_default();
        let space = metadata
            .bool("tokenizer.ggml.add_space_prefix")
            .unwrap_or(true);
        let pieces = tokens.iter().zip(&kinds).enumerate();
        let pieces = pieces.map(|(id, (t, k))| (*t, scores.get(id).copied().unwrap_or(0.0), *k));
        let ids = (tokenizer.bos(), tokenizer.eos());
        ("tokenizer.model", sentencepiece::bytes(pieces, ids, space))
    } else {
        let json = tokenizer_json(metadata, &tokenizer, &tokens, &kinds)?;
        ("tokenizer.json", json.to_string().into_bytes())
    };
    let mut read = match spm {
        true => Tokenizer::from_model(&bytes)?,
        false => Tokenizer::from_json(&bytes)?,
    };
    read.set_from_hf(&config, &Json::Null)?;
    if !same(&tokenizer, &read, "")? {
        return Err(Error::unsupported(
            FORMAT,
            "what this tokenizer does (the files would give other ids)",
        ));
    }
    Ok(vec![
        (name, bytes),
        ("tokenizer_config.json", pretty(&config)),
    ])
}

fn pretty(json: &Json) -> Vec<u8> {
    format!("{json:#}\n").into_bytes()
}

/// The tokens that are no text of the algorithm's.
fn added(kind: Kind) -> bool {
    matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined)
}

fn added_token(content: &str, kind: Kind) -> Map<String, Json> {
    let token = json!({
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": kind != Kind::UserDefined,
    });
    token.as_object().cloned().unwrap_or_default()
}

/// tokenizer_config.json.
fn config(m: &Metadata, t: &Tokenizer, tokens: &[&str], kinds: &[Kind], spm: bool) -> Json {
    let all = tokens.iter().zip(kinds).enumerate();
    let decoder: Map<String, Json> = all
        .filter(|(_, (_, kind))| added(**kind))
        .map(|(id, (token, kind))| (id.to_string(), added_token(token, *kind).into()))
        .collect();
    let name = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).copied();
    let id = |key: &str| {
        let id = m.u64(&format!("tokenizer.ggml.{key}_token_id"));
        name(id.and_then(|id| u32::try_from(id).ok()))
    };
    let class = match spm {
        true => "LlamaTokenizer",
        false => "PreTrainedTokenizerFast",
    };
    let mut config = json!({
        "tokenizer_class": class,
        "added_tokens_decoder": decoder,
        "add_bos_token": t.adds_bos(),
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": name(t.bos()),
        "eos_token": name(t.eos()),
        "unk_token": id("unknown"),
        "pad_token": id("padding"),
        "model_max_length": 1_000_000_000,
    });
    if let Ok(template) = crate::find_template(m, false) {
        config["chat_template"] = template.into();
    }
    if let Some(config) = config.as_object_mut() {
        config.retain(|_, value| !value.is_null());
    }
    config
}

/// A byte-level BPE model.
fn tokenizer_json(
    m: &Metadata,
    t: &Tokenizer,
    tokens: &[&str],
    kinds: &[Kind],
) -> Result<Json, Error> {
    let pre = m.str("tokenizer.ggml.pre").unwrap_or_default();
    let cut = cut(pre).ok_or_else(|| {
        Error::unsupported(
            FORMAT,
            format!("the pre-tokenizer {pre:?} (tokenizer.ggml.pre)"),
        )
    })?;
    let byte_level = |own: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": own});
    let (whole, steps) = match cut {
        Cut::Pattern(pattern, whole) => (
            whole,
            vec![
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
                byte_level(false),
            ],
        ),
        Cut::Gpt2 { digits_apart: true } => (
            false,
            vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ],
        ),
        Cut::Gpt2 { .. } => (false, vec![byte_level(true)]),
    };
    let all = || tokens.iter().zip(kinds).enumerate();
    let added_tokens: Vec<Json> = all()
        .filter(|(_, (_, kind))| added(**kind))
        .map(|(id, (token, kind))| {
            let mut token = added_token(token, *kind);
            token.insert("id".into(), id.into());
            token.into()
        })
        .collect();
    // Added tokens that are not in the vocabulary are numbered after it; those among its numbers
    // must be.
    let last = kinds.iter().rposition(|kind| !added(*kind)).unwrap_or(0);
    let vocab: Map<String, Json> = all()
        .filter(|(id, _)| *id <= last)
        .map(|(id, (token, _))| ((*token).to_owned(), id.into()))
        .collect();
    let merges: Vec<Json> = m
        .strings("tokenizer.ggml.merges")
        .into_iter()
        .flat_map(|merges| merges.iter().map(Json::from))
        .collect();
    let bos = t.bos().filter(|_| t.adds_bos());
    let processor = match bos.and_then(|id| Some((id, *tokens.get(id as usize)?))) {
        None => byte_level(true),
        Some((id, name)) => json!({
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": name, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": name, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": name, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
        }),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": processor,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": whole,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}
