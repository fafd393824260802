//! A `tokenizer.json` of byte-level BPE, for the encoder of this room.
//!
//! The `tokenizers` crate reads every such file (`hf_json`), but it is slow. The files of Llama 3, SmolLM2, GPT-2
//! and their kin say nothing that [`crate::bpe`] does not do: a published splitting pattern, a list of merges, added
//! tokens that are cut out of the text. What is understood here is listed below, and it is a closed list: for a file
//! that says anything else the answer is `None`, and the crate reads it. So the ids are the crate's in both cases;
//! `tests/tokenizer_json.rs` compares them.
//!
//! | key | understood |
//! |---|---|
//! | `normalizer` | none |
//! | `pre_tokenizer` | `ByteLevel`, after `Digits` or after a `Split` by Llama 3's or 4's pattern, or alone |
//! | `model` | `BPE` without dropout, prefixes and suffixes; ids without gaps; no byte falls back or is unknown |
//! | `added_tokens` | as they stand: no stripping, no single words, all or none normalized; ids behind the vocabulary's |
//! | `post_processor` | one token before the text, or none |
//! | `decoder` | byte-level: the caller looks |

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::bpe::{Bpe, Merges, Order, pair};
use crate::byte_level::unspell;
use crate::pretokenize::{LLAMA3, LLAMA4, Pattern};
use crate::tokenizer::{Algorithm, Parts};
use crate::vocab::{Kind, MAX_TOKENS, PieceTable, Vocab};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version", default)]
    _version: IgnoredAny,
    // A text is encoded whole, and as it is.
    #[serde(rename = "truncation", default)]
    _truncation: IgnoredAny,
    #[serde(rename = "padding", default)]
    _padding: IgnoredAny,
    added_tokens: Vec<Added>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    #[serde(rename = "decoder")]
    _decoder: IgnoredAny,
    model: Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Added {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(rename = "fuse_unk", default)]
    _fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// `"left right"`, or `["left", "right"]`.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a pair of tokens")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') && left != "#version:" => {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::custom("no pair")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let mut next = || {
                    list.next_element()?
                        .ok_or_else(|| A::Error::custom("no pair"))
                };
                let merge = Merge(next()?, next()?);
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(merge),
                    Some(_) => Err(A::Error::custom("no pair")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The tokenizer in a file that says only what is understood here.
pub(crate) fn read(bytes: &[u8]) -> Option<Parts> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    let pattern = pattern(&file.pre_tokenizer)?;
    let in_front = in_front(&file.post_processor)?;
    let model = &file.model;
    let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    let plain = file.normalizer.is_null()
        && model.kind == "BPE"
        && model.dropout.is_none_or(|d| d == 0.0)
        && empty(&model.continuing_subword_prefix)
        && empty(&model.end_of_word_suffix);
    if !plain {
        return None;
    }
    let (vocab, spelled) = vocab(&file)?;
    let table = PieceTable::build(&vocab, |id, _| spelled[id as usize]).ok()?;
    let has_bytes = (0..=255).all(|b| table.get(&vocab, &[b]).is_some());
    if !has_bytes && (model.unk_token.is_some() || model.byte_fallback) {
        return None;
    }
    let merges = merges(&model.merges, &vocab, &table)?;
    let bos = in_front.filter(|&id| vocab.kind(id) == Some(Kind::Control));
    let order = Order::Merges(merges);
    Some(Parts {
        algorithm: Algorithm::Bpe(Bpe::new(&vocab, table, pattern, order, model.ignore_merges)),
        vocab,
        bos,
        eos: None,
        adds_bos: bos.is_some(),
        ends: Vec::new(),
        cut_user_defined: true,
        strips_space: false,
        from_json: true,
    })
}

/// The published pattern that the file's steps amount to.
fn pattern(pre_tokenizer: &Value) -> Option<Pattern> {
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?,
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let (last, before) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return None;
    }
    let splits = last["use_regex"].as_bool().unwrap_or(true);
    match before {
        [] if splits => Some(Pattern::Gpt2),
        [digits] if splits => (digits["type"] == "Digits" && digits["individual_digits"] == true)
            .then_some(Pattern::Smollm),
        [split] => {
            let isolates = split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] == false
                && !splits;
            let known = [(LLAMA3, Pattern::Llama3), (LLAMA4, Pattern::Llama4)];
            let found = known
                .into_iter()
                .find(|(r, _)| split["pattern"]["Regex"] == *r);
            found.filter(|_| isolates).map(|(_, pattern)| pattern)
        }
        _ => None,
    }
}

/// The token that is put before a text, if any; `None` for a processor that does more.
fn in_front(processor: &Value) -> Option<Option<u32>> {
    if processor.is_null() {
        return Some(None);
    }
    match processor["type"].as_str()? {
        "ByteLevel" => Some(None),
        "Sequence" => {
            let each = processor["processors"].as_array()?.iter().map(in_front);
            let tokens: Vec<u32> = each
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect();
            match tokens[..] {
                [] => Some(None),
                [one] => Some(Some(one)),
                _ => None,
            }
        }
        "TemplateProcessing" => match &processor["single"].as_array()?[..] {
            [text] if text["Sequence"]["id"] == "A" => Some(None),
            [token, text] if text["Sequence"]["id"] == "A" => {
                let name = token["SpecialToken"]["id"].as_str()?;
                match &processor["special_tokens"][name]["ids"].as_array()?[..] {
                    [id] => Some(Some(u32::try_from(id.as_u64()?).ok()?)),
                    _ => None,
                }
            }
            _ => None,
        },
        _ => None,
    }
}

/// Every token's bytes and kind, and which of them are spelled text that merging may make.
fn vocab(file: &File) -> Option<(Vocab, Vec<bool>)> {
    let names = &file.model.vocab;
    let mut tokens: Vec<(&str, Option<&Added>)> = vec![("", None); names.len()];
    let mut there = vec![false; names.len()];
    for (name, &id) in names {
        *there.get_mut(id as usize)? = true;
        tokens[id as usize].0 = name;
    }
    // As many names as numbers: none is missing if none stands twice.
    if !there.iter().all(|there| *there) || names.len() > MAX_TOKENS {
        return None;
    }
    let mut contents = HashSet::new();
    for added in &file.added_tokens {
        let plain = !(added.single_word || added.lstrip || added.rstrip)
            && added.normalized == file.added_tokens[0].normalized;
        if !plain || added.content.is_empty() || !contents.insert(&added.content) {
            return None;
        }
        match names.get(&added.content) {
            Some(&id) if id == added.id => tokens[id as usize].1 = Some(added),
            // New ones are numbered as they come.
            None if added.id as usize == tokens.len() => tokens.push((&added.content, Some(added))),
            _ => return None,
        }
    }
    if overlap(&file.added_tokens) {
        return None;
    }
    let mut vocab = Vocab::with_capacity(tokens.len());
    let mut spelled = Vec::with_capacity(tokens.len());
    let mut bytes = Vec::new();
    for (name, added) in tokens {
        bytes.clear();
        spelled.push(added.is_none() && unspell(name, &mut bytes));
        let kind = match added {
            None => Kind::Normal,
            Some(added) if added.special => Kind::Control,
            Some(_) => Kind::UserDefined,
        };
        let piece = if spelled.last() == Some(&true) {
            &bytes
        } else {
            name.as_bytes()
        };
        vocab.push(piece, kind)?;
    }
    Some((vocab, spelled))
}

/// Whether a special token and one that is cut out of any text may share characters of a text. The crate then lets
/// the special one hide the other even where special tokens are left in the text.
fn overlap(added: &[Added]) -> bool {
    // More or longer ones than any model has are not compared: that could take long.
    const MOST: usize = 1 << 16;
    const LONGEST: usize = 128;
    let (special, others): (Vec<&Added>, Vec<&Added>) = added.iter().partition(|a| a.special);
    let pairs = special.len().saturating_mul(others.len());
    if pairs > MOST || pairs > 0 && added.iter().any(|a| a.content.len() > LONGEST) {
        return true;
    }
    // One within the other, or the end of one as the beginning of the other.
    let meet = |a: &str, b: &str| {
        let ends =
            (1..a.len().min(b.len())).any(|n| a.as_bytes()[a.len() - n..] == b.as_bytes()[..n]);
        a.contains(b) || ends
    };
    special.iter().any(|s| {
        let meets = |o: &&Added| meet(&s.content, &o.content) || meet(&o.content, &s.content);
        others.iter().any(meets)
    })
}

/// The list of merges as pairs of ids. `None` if one is no pair of tokens that make a token, or stands twice.
fn merges(list: &[Merge], vocab: &Vocab, table: &PieceTable) -> Option<Merges> {
    let mut merges = Merges::with_capacity_and_hasher(list.len(), Default::default());
    let mut joined = Vec::new();
    for (Merge(left, right), rank) in list.iter().zip(0u32..) {
        joined.clear();
        let spelled = unspell(left, &mut joined);
        let split = joined.len();
        if !spelled || !unspell(right, &mut joined) {
            return None;
        }
        let left = table.get(vocab, &joined[..split])?;
        let right = table.get(vocab, &joined[split..])?;
        let made = table.get(vocab, &joined)?;
        if merges.insert(pair(left, right), (rank, made)).is_some() {
            return None;
        }
    }
    Some(merges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fixture(name: &str) -> Value {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/reference/models"
        );
        let bytes = std::fs::read(format!("{folder}/{name}/tokenizer.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn is_read(file: &Value) -> bool {
        read(file.to_string().as_bytes()).is_some()
    }

    #[test]
    fn reads_what_it_understands() {
        for name in ["llama3", "llama4_text", "galactica"] {
            assert!(is_read(&fixture(name)), "{name}");
        }
    }

    #[test]
    fn leaves_everything_else_to_the_crate() {
        let one = || json!({"id": 512, "content": "zq qz", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false});
        let with = |pointer: &str, value: Value| {
            let mut file = fixture("llama3");
            match file.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => {
                    let (parent, key) = pointer.rsplit_once('/').unwrap();
                    file.pointer_mut(parent).unwrap()[key] = value;
                }
            }
            file
        };
        let mut added = fixture("llama3")["added_tokens"].clone();
        let list = added.as_array_mut().unwrap();
        let base = list[0]["id"].as_u64().unwrap();
        let id = base + list.len() as u64;
        list.push(one());
        list[id as usize - base as usize]["id"] = id.into();
        assert!(is_read(&with("/added_tokens", added.clone())));
        for (key, value) in [
            ("lstrip", json!(true)),
            ("single_word", json!(true)),
            ("normalized", json!(true)),
            ("id", json!(id + 1)),
            ("content", json!("")),
            ("content", json!("_of_text|>x")),
            ("content", json!("x".repeat(1000))),
            ("unheard", json!(1)),
        ] {
            let mut added = added.clone();
            added.as_array_mut().unwrap().last_mut().unwrap()[key] = value;
            assert!(!is_read(&with("/added_tokens", added)), "{key}");
        }
        for (pointer, value) in [
            ("/normalizer", json!({"type": "NFC"})),
            ("/model/type", json!("Unigram")),
            ("/model/dropout", json!(0.1)),
            ("/model/end_of_word_suffix", json!("</w>")),
            ("/model/unheard", json!(1)),
            ("/model/vocab/a", json!(5000)),
            ("/model/merges/0", json!(["a", "\u{1f999}"])),
            ("/model/merges/0", json!(["t", "h"])),
            ("/model/merges/0", json!("t h e")),
            ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed")),
            (
                "/pre_tokenizer/pretokenizers/0/pattern",
                json!({"Regex": "a"}),
            ),
            (
                "/pre_tokenizer/pretokenizers/1/add_prefix_space",
                json!(true),
            ),
            ("/pre_tokenizer/pretokenizers/1/use_regex", json!(true)),
            (
                "/post_processor/single/1",
                json!({"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}),
            ),
            ("/unheard", json!(1)),
        ] {
            assert!(!is_read(&with(pointer, value)), "{pointer}");
        }
    }
}
