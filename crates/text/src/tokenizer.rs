//! The tokenizer: text to ids and back, whatever file it came from.
//!
//! Three algorithms stand behind one door: SentencePiece BPE, byte-level BPE, and whatever a `tokenizer.json`
//! describes. This module cuts special tokens out of the text and hands the rest to one of them.
//!
//! Knows ids, bytes and special tokens; knows nothing of chat formats or models.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::Error;
use crate::bpe::Bpe;
use crate::guard;
use crate::hf_json::Json;
use crate::pretokenize::Pattern;
use crate::special::{Fragment, Matcher};
use crate::spm::{SPACE, Spm, byte_of};
use crate::vocab::{Kind, MAX_TOKENS, Vocab};
use crate::words::{Pool, Scratch};

/// The longest text that is tokenized at once, in bytes.
pub const MAX_TEXT: usize = 1 << 30;

/// What to do with special-token strings such as `<|eot_id|>` in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They are text like any other. For everything that a user wrote.
    Text,
    /// They become their tokens. For text that a template wrote.
    Parse,
}

/// How text becomes ids.
#[derive(Debug)]
pub(crate) enum Algorithm {
    /// SentencePiece BPE.
    Spm(Spm),
    /// Byte-level BPE.
    Bpe(Bpe),
    /// `tokenizer.json`.
    Json(Box<Json>),
}

/// What a file says about a tokenizer; [`Tokenizer::assemble`] makes one of it.
pub(crate) struct Parts {
    pub(crate) algorithm: Algorithm,
    pub(crate) vocab: Vocab,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) adds_bos: bool,
    /// Further tokens that the file says end a generation.
    pub(crate) ends: Vec<u32>,
    /// User-defined pieces are cut out of the text like special tokens (llama.cpp, in both modes) and not by the algorithm.
    pub(crate) cut_user_defined: bool,
    /// Decoding takes one space off the start of a text.
    pub(crate) strips_space: bool,
    /// It is a `tokenizer.json`'s, which says all there is: side files add no tokens.
    pub(crate) from_json: bool,
}

/// A tokenizer. Built by one of its `from_` functions or [`Tokenizer::open`]; safe to share between threads.
#[derive(Debug)]
pub struct Tokenizer {
    algorithm: Algorithm,
    vocab: Vocab,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    ends: Vec<u32>,
    cut_user_defined: bool,
    strips_space: bool,
    from_json: bool,
    /// `ends`, `eos` and the tokens that are known by name, sorted.
    eog: Vec<u32>,
    /// Cuts out what is a token in either mode; and what is one with [`Special::Parse`].
    always: Matcher,
    parsed: Matcher,
    /// The special tokens whose names are text, and what finds them; asked for by templates only.
    specials: OnceLock<(Vec<u32>, Matcher)>,
    pool: Pool,
}

/// Special tokens that end a generation in one model or another, by name. After llama.cpp's list.
const END_NAMES: &[&str] = &[
    "</s>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "▁<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
    // Between files of a repository: what comes next is another document.
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<reponame>",
];

impl Tokenizer {
    pub(crate) fn assemble(parts: Parts) -> Result<Tokenizer, Error> {
        let Parts {
            algorithm,
            vocab,
            bos,
            eos,
            adds_bos,
            ends,
            cut_user_defined,
            strips_space,
            from_json,
        } = parts;
        let mut tokenizer = Tokenizer {
            algorithm,
            vocab,
            bos,
            eos,
            adds_bos,
            ends,
            cut_user_defined,
            strips_space,
            from_json,
            eog: Vec::new(),
            always: Matcher::default(),
            parsed: Matcher::default(),
            specials: OnceLock::new(),
            pool: Pool::default(),
        };
        tokenizer.refresh()?;
        Ok(tokenizer)
    }

    /// Works out what follows from the vocabulary's kinds.
    fn refresh(&mut self) -> Result<(), Error> {
        self.pool = Pool::default();
        self.specials = OnceLock::new();
        let mut eog: Vec<u32> = self
            .ends
            .iter()
            .copied()
            .chain(self.eos)
            .filter(|&id| (id as usize) < self.len())
            .collect();
        let marker = |k: Kind| matches!(k, Kind::Control | Kind::UserDefined);
        eog.extend(
            self.vocab
                .of_kind(marker)
                .filter(|(_, piece)| END_NAMES.iter().any(|n| n.as_bytes() == *piece))
                .map(|(id, _)| id),
        );
        eog.sort_unstable();
        eog.dedup();
        self.eog = eog;
        if matches!(self.algorithm, Algorithm::Json(_)) {
            return Ok(());
        }
        let too_many = || Error::malformed("vocabulary", "too many special tokens to search for");
        let cut = self.cut_user_defined;
        self.always = Matcher::new(self.vocab.of_kind(|k| cut && k == Kind::UserDefined))
            .ok_or_else(too_many)?;
        self.parsed = Matcher::new(
            self.vocab
                .of_kind(|k| k.is_special() || cut && k == Kind::UserDefined),
        )
        .ok_or_else(too_many)?;
        Ok(())
    }

    /// The tokens of `text`. Never adds a begin- or end-of-text token.
    ///
    /// Bytes that no token stands for are dropped. Errors: the text is longer than [`MAX_TEXT`], or a
    /// tokenizer.json refuses it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_onto(text, special, &mut ids)?;
        Ok(ids)
    }

    /// The tokens of a prompt: as [`Tokenizer::encode`], after one begin-of-text token if the model adds one
    /// and the text does not begin with it already.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        let bos = self.bos.filter(|_| self.adds_bos);
        ids.extend(bos);
        self.encode_onto(text, special, &mut ids)?;
        if bos.is_some() && ids.get(1).copied() == bos {
            ids.remove(0);
        }
        Ok(ids)
    }

    fn encode_onto(&self, text: &str, special: Special, ids: &mut Vec<u32>) -> Result<(), Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::TooLong {
                len: text.len(),
                max: MAX_TEXT,
            });
        }
        self.pool
            .lend(|scratch| self.encode_with(text, special, scratch, ids))
    }

    fn encode_with(
        &self,
        text: &str,
        special: Special,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let matcher = match special {
            Special::Parse => &self.parsed,
            Special::Text => &self.always,
        };
        match &self.algorithm {
            Algorithm::Json(json) => json.encode(text, special, ids)?,
            Algorithm::Spm(spm) => {
                // As in llama.cpp, the text after a special token is the beginning of a text again.
                let mut begins = true;
                matcher.split(text, |fragment| match fragment {
                    Fragment::Text(text) => {
                        spm.encode(&self.vocab, text, begins, scratch, ids);
                        begins = false;
                    }
                    Fragment::Token(id) => {
                        ids.push(id);
                        begins = true;
                    }
                });
            }
            Algorithm::Bpe(bpe) => {
                // Hugging Face's library has no such rails.
                let guarded =
                    !self.from_json && matches!(bpe.pattern(), Pattern::Llama3 | Pattern::Llama4);
                guard::slices(text, guarded, |slice| {
                    matcher.split(slice, |fragment| match fragment {
                        Fragment::Text(text) => bpe.encode(&self.vocab, text, scratch, ids),
                        Fragment::Token(id) => ids.push(id),
                    });
                });
            }
        }
        Ok(())
    }

    /// The begin-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model wants a begin-of-text token before a prompt.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos && self.bos.is_some()
    }

    /// Every token that ends a generation, as far as the tokenizer can tell; sorted.
    /// A model's generation configuration may name more.
    pub fn eog(&self) -> &[u32] {
        &self.eog
    }

    /// How many ids there are. A model may have more rows than that.
    pub fn len(&self) -> usize {
        self.vocab.len()
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that a token stands for (for a special token its name), often not whole characters.
    /// `None` for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let piece = self.vocab.get(id)?;
        if !matches!(self.algorithm, Algorithm::Spm(_)) {
            return Some(Cow::Borrowed(piece));
        }
        Some(match self.vocab.kind(id)? {
            Kind::Byte => byte_of(piece).map_or(Cow::Borrowed(piece), |b| Cow::Owned(vec![b])),
            Kind::Normal | Kind::UserDefined | Kind::Unused => unescape(piece),
            Kind::Control | Kind::Unknown => Cow::Borrowed(piece),
        })
    }

    /// The token with this name (`<|eot_id|>`), or of exactly this text; in a SentencePiece vocabulary as the
    /// file spells it, with U+2581 for a space.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let named = |k: Kind| k.is_special() || k == Kind::UserDefined;
        let marker = self
            .vocab
            .of_kind(named)
            .find(|(_, piece)| *piece == text.as_bytes())
            .map(|(id, _)| id);
        marker.or_else(|| match &self.algorithm {
            Algorithm::Spm(spm) => spm.id_of(&self.vocab, text.as_bytes()),
            Algorithm::Bpe(bpe) => bpe.id_of(&self.vocab, text.as_bytes()),
            Algorithm::Json(json) => json.id_of(text),
        })
    }

    /// Whether the token is a marker and not text. Decoding leaves these out unless told otherwise.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id).is_some_and(Kind::is_special)
    }

    /// The names of all special tokens: the strings that [`Special::Parse`] makes tokens of and
    /// [`Special::Text`] leaves alone.
    pub fn special_strings(&self) -> impl Iterator<Item = (&str, u32)> {
        let ids = self.specials().0.iter();
        ids.filter_map(|&id| Some((std::str::from_utf8(self.vocab.get(id)?).ok()?, id)))
    }

    /// What finds the names of special tokens; nothing if they are too many to search for.
    pub(crate) fn special_matcher(&self) -> &Matcher {
        &self.specials().1
    }

    fn specials(&self) -> &(Vec<u32>, Matcher) {
        self.specials.get_or_init(|| {
            let named = self.vocab.of_kind(Kind::is_special);
            let named: Vec<_> = named
                .filter(|(_, piece)| std::str::from_utf8(piece).is_ok())
                .collect();
            let ids = named.iter().map(|(id, _)| *id).collect();
            (ids, Matcher::new(named.into_iter()).unwrap_or_default())
        })
    }

    /// The bytes of a text of tokens, which need not be UTF-8. Ids outside the vocabulary are left out, and so are
    /// special tokens unless `keep_special`. SentencePiece's one space at the start of a text comes off.
    pub fn decode(&self, ids: &[u32], keep_special: bool) -> Vec<u8> {
        let (mut bytes, mut at_start) = (Vec::with_capacity(ids.len() * 4), true);
        for &id in ids {
            self.append_piece(id, keep_special, &mut at_start, &mut bytes);
        }
        bytes
    }

    /// Appends one token's bytes. `at_start`: nothing of the text came before.
    pub(crate) fn append_piece(
        &self,
        id: u32,
        keep_special: bool,
        at_start: &mut bool,
        bytes: &mut Vec<u8>,
    ) {
        let (Some(piece), Some(kind)) = (self.piece(id), self.vocab.kind(id)) else {
            return;
        };
        if kind.is_special() && !keep_special {
            return;
        }
        let strip = self.strips_space && *at_start && kind != Kind::Byte;
        *at_start = false;
        bytes.extend_from_slice(piece.strip_prefix(b" ").filter(|_| strip).unwrap_or(&piece));
    }

    /// Takes over what a Hugging Face directory says beside the vocabulary: `tokenizer_config.json` and
    /// `special_tokens_map.json` (either may be `Null`): added tokens, begin- and end-of-text token,
    /// and whether the former is added.
    pub fn set_from_hf(
        &mut self,
        tokenizer_config: &Value,
        special_tokens_map: &Value,
    ) -> Result<(), Error> {
        self.add_tokens(tokenizer_config)?;
        let name_of = |key: &str| {
            [tokenizer_config, special_tokens_map]
                .into_iter()
                .find_map(|v| token_name(&v[key]))
        };
        let find = |name: Option<&str>| name.and_then(|n| self.id_of(n));
        let (bos, eos) = (find(name_of("bos_token")), find(name_of("eos_token")));
        (self.bos, self.eos) = (bos.or(self.bos), eos.or(self.eos));
        // In transformers only the Llama classes look at add_bos_token; for others tokenizer.json's post-processor decides.
        let class = tokenizer_config["tokenizer_class"]
            .as_str()
            .unwrap_or_default();
        let decides = !self.from_json || class.contains("LlamaTokenizer");
        if let Some(add) = tokenizer_config["add_bos_token"]
            .as_bool()
            .filter(|_| decides)
        {
            self.adds_bos = add;
        }
        self.refresh()
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`: id -> content and whether it is special.
    fn add_tokens(&mut self, config: &Value) -> Result<(), Error> {
        const FORMAT: &str = "tokenizer_config.json";
        let Some(added) = config["added_tokens_decoder"]
            .as_object()
            .filter(|_| !self.from_json)
        else {
            return Ok(());
        };
        let mut changes = BTreeMap::new();
        for (key, token) in added {
            let id: u32 = key
                .parse()
                .ok()
                .filter(|&id| (id as usize) < MAX_TOKENS.min(self.len() + (1 << 16)))
                .ok_or_else(|| {
                    Error::malformed(
                        FORMAT,
                        format!(
                            "added token id {key:?} is outside the vocabulary of {} tokens",
                            self.len()
                        ),
                    )
                })?;
            let content = token["content"].as_str().ok_or_else(|| {
                Error::malformed(FORMAT, format!("added token {id} has no content"))
            })?;
            let special = token["special"].as_bool().unwrap_or(false);
            let (piece, kind) = (self.vocab.get(id), self.vocab.kind(id));
            let wanted = match kind {
                Some(kind) if kind.is_special() => kind,
                _ if special => Kind::Control,
                _ => Kind::UserDefined,
            };
            if piece != Some(content.as_bytes()) || kind != Some(wanted) {
                changes.insert(id, (content.as_bytes().to_vec(), wanted));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.vocab.set_all(&changes).ok_or_else(|| {
            Error::malformed(FORMAT, "the added tokens make the vocabulary too large")
        })?;
        let refreshed = match &mut self.algorithm {
            Algorithm::Spm(spm) => spm.refresh(&self.vocab, !self.cut_user_defined),
            Algorithm::Bpe(bpe) => bpe.refresh(&self.vocab),
            Algorithm::Json(_) => Ok(()),
        };
        refreshed.map_err(|id| {
            Error::malformed(
                FORMAT,
                format!("with the added tokens, token {id} stands twice"),
            )
        })
    }
}

/// A token in a Hugging Face configuration: its name, or an object with it as `content`.
fn token_name(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// U+2581 -> space.
fn unescape(piece: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(piece) {
        Ok(text) if text.contains(SPACE) => Cow::Owned(text.replace(SPACE, " ").into_bytes()),
        _ => Cow::Borrowed(piece),
    }
}
