//! Reading SentencePiece's `tokenizer.model`, a Protocol Buffers message, with a reader of its own.
//!
//! Of the messages only what a BPE model needs (field number: meaning):
//!
//! | message | fields |
//! |---|---|
//! | ModelProto | 1: SentencePiece, repeated; 2: TrainerSpec; 3: NormalizerSpec |
//! | SentencePiece | 1: piece (UTF-8); 2: score (float); 3: type, as in [`Kind`], default 1 |
//! | TrainerSpec | 3: model type (1 unigram, the default; 2 BPE; 3 word; 4 character); 24: spaces behind words; 35: byte fallback; 40, 41, 42: unknown, bos, eos id (defaults 0, 1, 2) |
//! | NormalizerSpec | 1: name; 2: compiled character map; 3: dummy prefix; 4: remove extra spaces; 5: escape spaces (all default true) |
//!
//! A field is a varint `number << 3 | wire type`, then by wire type: 0 a varint, 1 eight bytes, 2 a varint length
//! and that many bytes, 5 four bytes. Unknown fields are skipped.

use crate::Error;
use crate::spm::{Normalizer, Spm};
use crate::tokenizer::{Algorithm, Parts, Tokenizer};
use crate::vocab::{Kind, Vocab};

const FORMAT: &str = "tokenizer.model (SentencePiece)";

/// A field's value as it lies in the file.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64,
}

/// The fields of one message, in order. Ends after the first error.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed64)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((tag >> 3, wire)).filter(|(number, _)| *number != 0)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field().ok_or(());
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// What the file says, before it is checked as a whole.
struct Model {
    pieces: Vocab,
    scores: Vec<f32>,
    trainer: Trainer,
    normalizer: Normalizer,
}

struct Trainer {
    model_type: u64,
    space_behind: bool,
    byte_fallback: bool,
    unknown: u64,
    bos: u64,
    eos: u64,
}

/// Whether these bytes look like the beginning of a SentencePiece model: a piece, with its text first.
pub(crate) fn looks_like_sentencepiece(bytes: &[u8]) -> bool {
    let mut fields = Fields { rest: bytes };
    match fields.field() {
        Some((1, Wire::Bytes(piece))) => {
            matches!(Fields { rest: piece }.field(), Some((1, Wire::Bytes(text))) if std::str::from_utf8(text).is_ok())
        }
        _ => false,
    }
}

/// Reads a `tokenizer.model` of SentencePiece.
pub(crate) fn parse(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let model = read_model(bytes)?;
    match model.trainer.model_type {
        2 => {}
        1 => {
            return Err(Error::unsupported(
                FORMAT,
                "a unigram model (Llama's are BPE)",
            ));
        }
        n => {
            return Err(Error::unsupported(
                FORMAT,
                format!("model type {n} (2 is BPE)"),
            ));
        }
    }
    if model.trainer.space_behind {
        return Err(Error::unsupported(FORMAT, "treat_whitespace_as_suffix"));
    }
    let Model {
        mut pieces,
        scores,
        trainer,
        normalizer,
    } = model;
    if !trainer.byte_fallback {
        // Then byte pieces are not used for encoding.
        let bytes: Vec<u32> = pieces
            .of_kind(|k| k == Kind::Byte)
            .map(|(id, _)| id)
            .collect();
        bytes
            .into_iter()
            .for_each(|id| pieces.set_kind(id, Kind::Unused));
    }
    let id = |id: u64| {
        u32::try_from(id)
            .ok()
            .filter(|&id| (id as usize) < pieces.len())
    };
    let marker = |wanted: u64, name: &str| {
        let by_name = pieces
            .of_kind(|k| k == Kind::Control)
            .find(|(_, p)| *p == name.as_bytes())
            .map(|(id, _)| id);
        id(wanted)
            .filter(|&id| pieces.kind(id) == Some(Kind::Control))
            .or(by_name)
    };
    let (bos, eos) = (marker(trainer.bos, "<s>"), marker(trainer.eos, "</s>"));
    let unknown = pieces
        .of_kind(|k| k == Kind::Unknown)
        .next()
        .map(|(id, _)| id)
        .or(id(trainer.unknown));
    let spm = Spm::new(&pieces, &scores, normalizer, unknown, true).map_err(|id| {
        Error::malformed(
            FORMAT,
            format!("piece {id} stands twice, or its score is no number"),
        )
    })?;
    Tokenizer::assemble(Parts {
        algorithm: Algorithm::Spm(spm),
        vocab: pieces,
        bos,
        eos,
        adds_bos: bos.is_some(),
        ends: Vec::new(),
        cut_user_defined: false,
        strips_space: normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces,
        from_json: false,
    })
}

/// The pieces of a file with their scores, and whether a space is put before a text.
pub(crate) fn pieces(bytes: &[u8]) -> Result<(Vocab, Vec<f32>, bool), Error> {
    let model = read_model(bytes)?;
    Ok((
        model.pieces,
        model.scores,
        model.normalizer.add_dummy_prefix,
    ))
}

/// A file of these pieces (text, score, kind), with byte fallback if there are byte pieces.
pub(crate) fn bytes<'a>(
    pieces: impl Iterator<Item = (&'a str, f32, Kind)>,
    (bos, eos): (Option<u32>, Option<u32>),
    dummy_prefix: bool,
) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bytes, mut unknown) = (false, 0);
    for (id, (text, score, kind)) in pieces.enumerate() {
        let mut piece = Vec::new();
        put_bytes(&mut piece, 1, text.as_bytes());
        put_varint(&mut piece, 2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        if kind != Kind::Normal {
            put_number(&mut piece, 3, kind as i64);
        }
        put_bytes(&mut out, 1, &piece);
        bytes |= kind == Kind::Byte;
        if kind == Kind::Unknown {
            unknown = id as i64;
        }
    }
    let id = |id: Option<u32>| id.map_or(-1, i64::from);
    let mut trainer = Vec::new();
    put_number(&mut trainer, 3, 2);
    put_number(&mut trainer, 35, i64::from(bytes));
    put_number(&mut trainer, 40, unknown);
    put_number(&mut trainer, 41, id(bos));
    put_number(&mut trainer, 42, id(eos));
    put_bytes(&mut out, 2, &trainer);
    let mut normalizer = Vec::new();
    put_bytes(&mut normalizer, 1, b"identity");
    put_number(&mut normalizer, 3, i64::from(dummy_prefix));
    put_number(&mut normalizer, 4, 0);
    put_number(&mut normalizer, 5, 1);
    put_bytes(&mut out, 3, &normalizer);
    out
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, n: i64) {
    put_varint(out, field << 3);
    put_varint(out, n.cast_unsigned());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn damaged(message: &str) -> impl Fn(()) -> Error {
    let what = format!("a field of {message} runs past its end or has an unknown wire type");
    move |()| Error::malformed(FORMAT, what.clone())
}

fn read_model(bytes: &[u8]) -> Result<Model, Error> {
    let mut model = Model {
        pieces: Vocab::default(),
        scores: Vec::new(),
        trainer: Trainer {
            model_type: 1,
            space_behind: false,
            byte_fallback: false,
            unknown: 0,
            bos: 1,
            eos: 2,
        },
        normalizer: Normalizer {
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        },
    };
    for field in (Fields { rest: bytes }) {
        match field.map_err(damaged("the model"))? {
            (1, Wire::Bytes(piece)) => {
                let (text, score, kind) = read_piece(piece)?;
                model.pieces.push(text, kind).ok_or_else(|| {
                    Error::malformed(FORMAT, "more pieces than any vocabulary has")
                })?;
                model.scores.push(score);
            }
            (2, Wire::Bytes(spec)) => read_trainer(spec, &mut model.trainer)?,
            (3, Wire::Bytes(spec)) => read_normalizer(spec, &mut model.normalizer)?,
            _ => {}
        }
    }
    if model.pieces.len() == 0 {
        return Err(Error::malformed(FORMAT, "it has no pieces"));
    }
    Ok(model)
}

fn read_piece(bytes: &[u8]) -> Result<(&[u8], f32, Kind), Error> {
    let (mut text, mut score, mut kind) = (&b""[..], 0.0, Kind::Normal);
    for field in (Fields { rest: bytes }) {
        match field.map_err(damaged("a piece"))? {
            (1, Wire::Bytes(t)) => text = t,
            (2, Wire::Fixed32(s)) => score = f32::from_le_bytes(s),
            (3, Wire::Varint(n)) => kind = Kind::from_number(n.try_into().unwrap_or(1)),
            _ => {}
        }
    }
    if std::str::from_utf8(text).is_err() {
        return Err(Error::malformed(FORMAT, "a piece is not UTF-8"));
    }
    Ok((text, score, kind))
}

fn read_trainer(bytes: &[u8], trainer: &mut Trainer) -> Result<(), Error> {
    for field in (Fields { rest: bytes }) {
        match field.map_err(damaged("the trainer's settings"))? {
            (3, Wire::Varint(n)) => trainer.model_type = n,
            (24, Wire::Varint(n)) => trainer.space_behind = n != 0,
            (35, Wire::Varint(n)) => trainer.byte_fallback = n != 0,
            (40, Wire::Varint(n)) => trainer.unknown = n,
            (41, Wire::Varint(n)) => trainer.bos = n,
            (42, Wire::Varint(n)) => trainer.eos = n,
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(bytes: &[u8], normalizer: &mut Normalizer) -> Result<(), Error> {
    let (mut name, mut has_map) = (String::new(), false);
    for field in (Fields { rest: bytes }) {
        match field.map_err(damaged("the normalizer's settings"))? {
            (1, Wire::Bytes(n)) => name = String::from_utf8_lossy(n).into_owned(),
            (2, Wire::Bytes(map)) => has_map = !map.is_empty(),
            (3, Wire::Varint(n)) => normalizer.add_dummy_prefix = n != 0,
            (4, Wire::Varint(n)) => normalizer.remove_extra_whitespaces = n != 0,
            (5, Wire::Varint(n)) => normalizer.escape_whitespaces = n != 0,
            _ => {}
        }
    }
    if has_map {
        return Err(Error::unsupported(
            FORMAT,
            format!("the normalizer {name:?} (a character map)"),
        ));
    }
    Ok(())
}
