//! Reading llama2.c's `tokenizer.bin`: SentencePiece's pieces and scores, and nothing else.
//!
//! ```text
//! i32 longest token | for each token: f32 score, i32 length, bytes
//! ```
//! Pieces have plain spaces, the markers 1 and 2 stand between line breaks (`"\n<s>\n"`), a byte is
//! spelled "<0x0A>". How many tokens there are is not written: they end with the file. (Layout and
//! meaning after `tokenizer.py` and `run.c` of karpathy/llama2.c.)

use crate::Error;
use crate::spm::{Normalizer, Spm};
use crate::tokenizer::{Algorithm, Parts, Tokenizer};
use crate::vocab::{Kind, Vocab};

const FORMAT: &str = "tokenizer.bin (llama2.c)";

/// The longest token, in bytes.
const MAX_TOKEN_LEN: usize = 1 << 16;

const BOS: u32 = 1;
const EOS: u32 = 2;

/// The tokens of a file, until its end or the first one that cannot be.
struct Entries<'a> {
    rest: &'a [u8],
    longest: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Option<(f32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_none() {
            self.rest = &[];
        }
        Some(entry)
    }
}

impl<'a> Entries<'a> {
    fn new(bytes: &'a [u8]) -> Option<Entries<'a>> {
        let (longest, rest) = bytes.split_first_chunk()?;
        let longest = usize::try_from(i32::from_le_bytes(*longest)).ok()?;
        (longest <= MAX_TOKEN_LEN).then_some(Entries { rest, longest })
    }

    fn entry(&mut self) -> Option<(f32, &'a [u8])> {
        let (score, rest) = self.rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::try_from(i32::from_le_bytes(*len)).ok();
        let len = len.filter(|len| *len <= self.longest)?;
        let (piece, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some((f32::from_le_bytes(*score), piece))
    }
}

/// Whether these bytes are tokens with their scores, from the first to the last, the longest of
/// which is as long as the file says.
pub(crate) fn looks_like_llama2c(bytes: &[u8]) -> bool {
    let Some(entries) = Entries::new(bytes) else {
        return false;
    };
    let longest = entries.longest;
    let mut seen = 0;
    for entry in entries {
        match entry {
            Some((_, piece)) => seen = seen.max(piece.len()),
            None => return false,
        }
    }
    seen == longest && seen > 0
}

/// The pieces of a file with their scores.
pub(crate) fn pieces(bytes: &[u8]) -> Result<(Vocab, Vec<f32>), Error> {
    let entries = Entries::new(bytes);
    let entries = entries
        .ok_or_else(|| Error::malformed(FORMAT, "it does not begin with the length of a token"))?;
    let (mut pieces, mut scores) = (Vocab::default(), Vec::new());
    for (entry, id) in entries.zip(0u32..) {
        let damaged = || {
            Error::malformed(
                FORMAT,
                format!("token {id} runs past the end, or is longer than the file says"),
            )
        };
        let (score, piece) = entry.ok_or_else(damaged)?;
        let (piece, kind) = match id {
            0 => (piece, Kind::Unknown),
            BOS | EOS => (piece.trim_ascii(), Kind::Control),
            _ if is_byte(piece) => (piece, Kind::Byte),
            _ => (piece, Kind::Normal),
        };
        let too_many = || Error::malformed(FORMAT, "more tokens than any vocabulary has");
        pieces.push(piece, kind).ok_or_else(too_many)?;
        scores.push(score);
    }
    if pieces.len() <= EOS as usize {
        return Err(Error::malformed(
            FORMAT,
            "it has no tokens beside its markers",
        ));
    }
    Ok((pieces, scores))
}

/// Reads a `tokenizer.bin`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let (pieces, scores) = pieces(bytes)?;
    let normalizer = Normalizer {
        add_dummy_prefix: true,
        remove_extra_whitespaces: false,
        escape_whitespaces: false,
    };
    let spm = Spm::new(&pieces, &scores, normalizer, Some(0), false);
    let spm = spm.map_err(|id| {
        let what = format!("token {id} stands twice, or its score is no number");
        Error::malformed(FORMAT, what)
    })?;
    Tokenizer::assemble(Parts {
        algorithm: Algorithm::Spm(spm),
        vocab: pieces,
        bos: Some(BOS),
        eos: Some(EOS),
        adds_bos: true,
        // A story ends where the next one begins: run.c stops at BOS.
        ends: vec![BOS],
        cut_user_defined: false,
        strips_space: true,
        from_json: false,
    })
}

/// Whether a piece stands for a byte: `<0x0A>`.
fn is_byte(piece: &[u8]) -> bool {
    let digits = piece
        .strip_prefix(b"<0x")
        .and_then(|rest| rest.strip_suffix(b">"));
    digits.is_some_and(|digits| digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit))
}
