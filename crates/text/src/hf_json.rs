//! `tokenizer.json`, through the `tokenizers` crate, which gives exactly Hugging Face's ids.
//!
//! This module adds what the crate leaves out: the bytes of each token (for streaming), a choice per call whether
//! special tokens in text are parsed, and limits on what a hostile file may ask for.
//!
//! Most files of byte-level BPE do not need the crate: see `json_bpe`.
//!
//! Knows the crate; no other module does.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizer, Tokenizer as Inner,
};

use crate::Error;
use crate::byte_level::unspell;
use crate::json_bpe;
use crate::sequences;
use crate::spm::{SPACE, byte_of};
use crate::tokenizer::{Algorithm, Parts, Special, Tokenizer};
use crate::vocab::{Kind, MAX_TOKENS, Vocab};

const FORMAT: &str = "tokenizer.json";
/// The most that normalizers may multiply the length of a text.
const MAX_GROWTH: usize = 4096;

/// The encoder.
pub(crate) struct Json {
    inner: Inner,
    /// The added tokens once more, set to leave special ones in the text.
    plain: AddedVocabulary,
    /// Sequences are marked for the pre-tokenizer, as Galactica's is made for.
    marks_sequences: bool,
}

impl std::fmt::Debug for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Json")
            .field("tokens", &self.inner.get_vocab_size(true))
            .finish_non_exhaustive()
    }
}

/// How a token's spelling becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spelling {
    /// GPT-2's characters for bytes; otherwise UTF-8 with U+2581 for a space.
    byte_level: bool,
    /// `<0xXX>` is a byte.
    byte_fallback: bool,
    /// One space comes off the start of a text.
    strips_space: bool,
}

impl Json {
    /// Appends the ids of `text`, without what a post-processor would add.
    pub(crate) fn encode(
        &self,
        text: &str,
        special: Special,
        out: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let added = match special {
            Special::Parse => self.inner.get_added_vocabulary(),
            Special::Text => &self.plain,
        };
        let text = match self.marks_sequences {
            true => sequences::mark(text),
            false => Cow::Borrowed(text),
        };
        // The crate panics on some files that it loads; nothing of ours is half-changed when it does.
        let run = AssertUnwindSafe(|| -> tokenizers::Result<()> {
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), &text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
            out.extend(
                splits
                    .iter()
                    .filter_map(|(_, _, tokens)| tokens.as_ref())
                    .flatten()
                    .map(|t| t.id),
            );
            Ok(())
        });
        match catch_unwind(run) {
            Ok(result) => result.map_err(|e| Error::Encode(e.to_string())),
            Err(_) => Err(Error::Encode(
                "the tokenizer cannot encode this text".to_string(),
            )),
        }
    }

    /// The id of a token as the file spells it.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json`.
    ///
    /// Its begin-of-text token is the one that its post-processor puts before a text, if any; the end-of-text
    /// token stands in other files: see [`Tokenizer::set_from_hf`].
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, Error> {
        let outline: Outline =
            serde_json::from_slice(bytes).map_err(|e| Error::malformed(FORMAT, e.to_string()))?;
        check(&outline)?;
        let spelling = spelling(&outline.decoder)?;
        let byte_level = spelling.byte_level && !spelling.byte_fallback && !spelling.strips_space;
        if let Some(parts) = byte_level.then(|| json_bpe::read(bytes)).flatten() {
            return Tokenizer::assemble(parts);
        }
        let loaded = catch_unwind(AssertUnwindSafe(|| Inner::from_bytes(bytes)));
        let mut inner = match loaded {
            Ok(inner) => inner.map_err(|e| Error::malformed(FORMAT, e.to_string()))?,
            Err(_) => return Err(Error::malformed(FORMAT, "its parts do not fit together")),
        };
        // A text is encoded whole, and as it is.
        inner
            .with_truncation(None)
            .map_err(|e| Error::malformed(FORMAT, e.to_string()))?;
        inner.with_padding(None);
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let marks_sequences = sequences::are_marked(&outline.pre_tokenizer);
        let is_text = |tag: &str| marks_sequences && sequences::is_text(tag);
        let vocab = vocab(&inner, spelling, is_text)?;
        let json = Json {
            inner,
            plain,
            marks_sequences,
        };
        let bos = added_in_front(&json, &vocab);
        Tokenizer::assemble(Parts {
            algorithm: Algorithm::Json(Box::new(json)),
            vocab,
            bos,
            eos: None,
            adds_bos: bos.is_some(),
            ends: Vec::new(),
            cut_user_defined: false,
            strips_space: spelling.strips_space,
            from_json: true,
        })
    }
}

/// The parts of the file that this module looks at itself; the vocabulary is passed over.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Outline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: ModelOutline,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ModelOutline {
    dropout: Value,
}

/// What is refused although the crate would take it.
fn check(outline: &Outline) -> Result<(), Error> {
    let dropout = &outline.model.dropout;
    if !dropout.is_null() && dropout.as_f64() != Some(0.0) {
        return Err(Error::unsupported(
            FORMAT,
            "BPE dropout (it makes ids random)",
        ));
    }
    if growth(&outline.normalizer, 1) > MAX_GROWTH {
        return Err(Error::unsupported(
            FORMAT,
            format!("a normalizer that can make a text more than {MAX_GROWTH} times as long"),
        ));
    }
    Ok(())
}

/// How many times longer a normalizer can make a text, roughly and from above; `so_far` is what those before it do.
fn growth(normalizer: &Value, so_far: usize) -> usize {
    let own = match normalizer["type"].as_str() {
        Some("Sequence") => {
            let each = normalizer["normalizers"].as_array().into_iter().flatten();
            return each.fold(so_far, |so_far, n| growth(n, so_far));
        }
        // A pattern that matches nothing at all puts its content between all bytes.
        Some("Replace") => 1 + normalizer["content"].as_str().map_or(0, str::len),
        // A prefix is added once for each stretch of text, at worst to one byte.
        Some("Prepend") => 1 + normalizer["prepend"].as_str().map_or(0, str::len),
        // The longest compatibility decomposition turns 3 bytes (U+FDFA) into 33.
        Some("NFD" | "NFKD" | "NFKC" | "NFC" | "Precompiled" | "Nmt" | "BertNormalizer") => 11,
        Some("ByteLevel") => 2,
        _ => 1,
    };
    so_far.saturating_mul(own.max(1))
}

/// Reads the decoder. Only the two families that Llama models use are known.
fn spelling(decoder: &Value) -> Result<Spelling, Error> {
    let mut spelling = Spelling {
        byte_level: false,
        byte_fallback: false,
        strips_space: false,
    };
    let mut known = false;
    let parts = match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"]
            .as_array()
            .map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(decoder),
    };
    for part in parts {
        match part["type"].as_str() {
            Some("ByteLevel") => (spelling.byte_level, known) = (true, true),
            Some("ByteFallback") => spelling.byte_fallback = true,
            Some("Fuse") => {}
            Some("Replace") if part["pattern"]["String"] == SPACE && part["content"] == " " => {
                known = true
            }
            Some("Strip") if part["content"] == " " && part["stop"] == 0 => {
                spelling.strips_space = part["start"] != 0
            }
            Some("Metaspace") if part["replacement"] == SPACE => {
                known = true;
                let scheme = part["prepend_scheme"].as_str().unwrap_or("always");
                spelling.strips_space = scheme != "never" && part["add_prefix_space"] != false;
            }
            Some(other) => {
                return Err(Error::unsupported(
                    FORMAT,
                    format!("the decoder {other:?} as it is set up"),
                ));
            }
            None => {}
        }
    }
    if !known {
        return Err(Error::unsupported(
            FORMAT,
            "a file without a byte-level or SentencePiece decoder",
        ));
    }
    Ok(spelling)
}

/// Every token's bytes and kind. `is_text`: which special tokens are part of the text that a model writes.
fn vocab(
    inner: &Inner,
    spelling: Spelling,
    is_text: impl Fn(&str) -> bool,
) -> Result<Vocab, Error> {
    let ids = inner.get_vocab(true);
    let count = ids.values().max().map_or(0, |&id| id as usize + 1);
    // Ids may have gaps, but not so that a small file asks for a large table.
    if count > MAX_TOKENS || count > 4 * ids.len() + (1 << 16) {
        return Err(Error::malformed(
            FORMAT,
            format!("token ids go up to {count} for {} tokens", ids.len()),
        ));
    }
    let added = inner.get_added_tokens_decoder();
    let mut spelled: Vec<Option<String>> = vec![None; count];
    for (token, id) in ids {
        spelled[id as usize] = Some(token);
    }
    for (&id, token) in &added {
        if let Some(slot) = spelled.get_mut(id as usize) {
            *slot = Some(token.content.clone());
        }
    }
    let mut vocab = Vocab::with_capacity(count);
    let mut bytes = Vec::new();
    for (token, id) in spelled.iter().zip(0u32..) {
        bytes.clear();
        let kind = match (token, added.get(&id)) {
            (None, _) => Kind::Unused,
            (Some(token), Some(added)) => {
                bytes.extend_from_slice(token.as_bytes());
                if added.special && !is_text(token) {
                    Kind::Control
                } else {
                    Kind::UserDefined
                }
            }
            (Some(token), None) => {
                spell_out(token, spelling, &mut bytes);
                Kind::Normal
            }
        };
        vocab
            .push(&bytes, kind)
            .ok_or_else(|| Error::malformed(FORMAT, "the tokens are larger than any vocabulary"))?;
    }
    Ok(vocab)
}

fn spell_out(token: &str, spelling: Spelling, bytes: &mut Vec<u8>) {
    if spelling.byte_level {
        if !unspell(token, bytes) {
            bytes.extend_from_slice(token.as_bytes());
        }
        return;
    }
    match byte_of(token.as_bytes()).filter(|_| spelling.byte_fallback) {
        Some(b) => bytes.push(b),
        None => bytes.extend_from_slice(token.replace(SPACE, " ").as_bytes()),
    }
}

/// The special token that the post-processor puts before a text.
fn added_in_front(json: &Json, vocab: &Vocab) -> Option<u32> {
    let encoded = catch_unwind(AssertUnwindSafe(|| json.inner.encode_fast("", true)))
        .ok()?
        .ok()?;
    encoded
        .get_ids()
        .first()
        .copied()
        .filter(|&id| vocab.kind(id) == Some(Kind::Control))
}
