//! SentencePiece BPE: encoding one stretch of text with a vocabulary of scored pieces.
//!
//! Idea: spaces become U+2581, every character is a symbol, and the adjacent pair whose concatenation is the
//! piece with the highest score is joined, leftmost first, until no concatenation is a piece. What is left
//! and is no piece falls back to byte tokens. Only membership and score of the *concatenation* count:
//! there is no merge list, and it is not longest-match.
//!
//! Why it is fast: in every usual vocabulary a space stands only at the front of a piece, so no merge crosses
//! into a space and each word is merged alone, in a few cache lines. The tokens of words that were there before
//! are remembered (`words`), under the text's own bytes: such a word is not even written with U+2581. A word
//! that is a piece, and was seen to merge into just that piece before, is looked up and done. (Where a piece
//! does have a space inside, the whole text is one chain, which gives the same ids more slowly.)
//!
//! Why words may be merged apart: a symbol is a slice of the text. A merge across the front of a word's spaces
//! would make a slice with another character before a space, and no piece is such a slice. So the pairs of
//! different words never meet, and the order of their merges does not matter. Two things would bind words
//! together: pieces marked unused, which are taken apart as they were last joined anywhere in the text, and
//! pieces that are matched before all else. Where a vocabulary has these, the text stays whole.
//!
//! Knows pieces and scores; reads no files and finds no special tokens.

use std::collections::HashMap;

use crate::merge::{Ranks, Seen, Symbol, merge};
use crate::special::{Fragment, Matcher};
use crate::vocab::{Kind, NONE, PieceTable, Vocab};
use crate::words::{Scratch, Word};

/// The space that SentencePiece writes in its pieces.
pub(crate) const SPACE: &str = "\u{2581}";

/// How the text is changed before it is cut. SentencePiece's `NormalizerSpec`, as far as BPE files use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalizer {
    /// Put a space before the text.
    pub(crate) add_dummy_prefix: bool,
    /// Drop spaces at both ends and all but one of each run.
    pub(crate) remove_extra_whitespaces: bool,
    /// Write spaces as U+2581.
    pub(crate) escape_whitespaces: bool,
}

impl Normalizer {
    /// A space as pieces spell it.
    fn space(self) -> &'static str {
        if self.escape_whitespaces { SPACE } else { " " }
    }
}

/// The encoder.
#[derive(Debug)]
pub(crate) struct Spm {
    pub(crate) normalizer: Normalizer,
    /// Text pieces only: what a user types must never become a control token.
    table: PieceTable,
    /// `ranks[id]`: lower is joined first; the score's order turned round.
    ranks: Vec<u32>,
    /// The token of each byte, or `NONE`.
    bytes: [u32; 256],
    /// What stands for text without a token, or `NONE`: then it is dropped.
    unknown: u32,
    /// Pieces matched before anything else inside a stretch, as SentencePiece does.
    user_defined: Matcher,
    has_bytes: bool,
    has_unused: bool,
    /// Words merge alone.
    words_apart: bool,
    /// What merging a piece's own characters gives; see [`Seen`].
    seen: Seen,
}

impl Spm {
    /// `pieces` as the file spells them (U+2581 for a space). `scores[id]` must be a number.
    /// `Err(id)` names a piece that stands twice or has no usable score.
    pub(crate) fn new(
        pieces: &Vocab,
        scores: &[f32],
        normalizer: Normalizer,
        unknown: Option<u32>,
        match_user_defined: bool,
    ) -> Result<Spm, u32> {
        let table = PieceTable::build(pieces, |_, kind| is_text(kind))?;
        let mut ranks = Vec::with_capacity(pieces.len());
        for id in 0..pieces.len() {
            let score = scores
                .get(id)
                .copied()
                .filter(|s| !s.is_nan())
                .ok_or(id as u32)?;
            ranks.push(descending(score));
        }
        let mut bytes = [NONE; 256];
        for (id, piece) in pieces.of_kind(|k| k == Kind::Byte) {
            if let Some(byte) = byte_of(piece) {
                bytes[usize::from(byte)] = id;
            }
        }
        let wanted = |k| match_user_defined && k == Kind::UserDefined;
        let user_defined = Matcher::new(pieces.of_kind(wanted)).ok_or(NONE)?;
        let has_unused = pieces.of_kind(|k| k == Kind::Unused).next().is_some();
        let has_bytes = bytes.iter().any(|&id| id != NONE);
        Ok(Spm {
            normalizer,
            table,
            ranks,
            bytes,
            unknown: unknown.unwrap_or(NONE),
            user_defined,
            has_bytes,
            has_unused,
            words_apart: !has_unused && words_apart(pieces, normalizer.space()),
            seen: Seen::new(pieces.len()),
        })
    }

    /// Follows a change of the vocabulary's kinds, or tokens added behind it: these are never made by merging.
    pub(crate) fn refresh(&mut self, pieces: &Vocab, match_user_defined: bool) -> Result<(), u32> {
        let known = self.ranks.len() as u32;
        self.table = PieceTable::build(pieces, |id, kind| id < known && is_text(kind))?;
        self.words_apart = !self.has_unused && words_apart(pieces, self.normalizer.space());
        self.seen = Seen::new(self.ranks.len());
        let wanted = |k| match_user_defined && k == Kind::UserDefined;
        self.user_defined = Matcher::new(pieces.of_kind(wanted)).ok_or(NONE)?;
        Ok(())
    }

    /// The token of a piece as the file spells it.
    pub(crate) fn id_of(&self, pieces: &Vocab, piece: &[u8]) -> Option<u32> {
        self.table.get(pieces, piece)
    }

    /// Appends the tokens of `text`. `prefix`: the text begins a stretch, so the dummy prefix belongs before it.
    pub(crate) fn encode(
        &self,
        pieces: &Vocab,
        text: &str,
        prefix: bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let plain = self.words_apart
            && self.user_defined.is_empty()
            && self.normalizer.escape_whitespaces
            && !self.normalizer.remove_extra_whitespaces;
        // In a text with U+2581 other characters than spaces are spaces.
        if plain && !text.contains(SPACE) {
            return self.encode_words(pieces, text, prefix, scratch, out);
        }
        let normal = self.normalize(text, prefix);
        self.user_defined.split(&normal, |fragment| match fragment {
            // A user-defined piece is never joined with its neighbours, so each stretch merges alone.
            Fragment::Text(mut rest) => {
                while !rest.is_empty() {
                    let word;
                    (word, rest) = rest.split_at(self.word_end(rest));
                    self.encode_word(pieces, word, scratch, out);
                }
            }
            Fragment::Token(id) => out.push(id),
        });
    }

    /// Word by word: each with the spaces before it.
    fn encode_words(
        &self,
        pieces: &Vocab,
        text: &str,
        mut prefix: bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        prefix &= self.normalizer.add_dummy_prefix;
        let bytes = text.as_bytes();
        let mut start = 0;
        while start < bytes.len() {
            let first = bytes[start..].iter().position(|&b| b != b' ');
            let spaces = first.unwrap_or(bytes.len() - start);
            let word = start + spaces;
            let end = bytes[word..].iter().position(|&b| b == b' ');
            let end = end.map_or(bytes.len(), |len| word + len);
            // The first word has a space more than the text shows. And without byte tokens a word's ids
            // depend on those before it.
            let known = Word::new(bytes, start, end).filter(|_| !prefix && self.has_bytes);
            if !known.is_some_and(|known| scratch.words.append(known, out)) {
                let before = out.len();
                let mut spelled = std::mem::take(&mut scratch.spelled);
                spelled.clear();
                spelled.extend(std::iter::repeat_n(SPACE, spaces + usize::from(prefix)));
                spelled.push_str(&text[word..end]);
                self.encode_word(pieces, &spelled, scratch, out);
                scratch.spelled = spelled;
                if let Some(known) = known {
                    scratch.words.keep(known, &out[before..]);
                }
            }
            prefix = false;
            start = end;
        }
    }

    /// Where the first stretch of `text` ends that merges alone: before the first space behind something else.
    fn word_end(&self, text: &str) -> usize {
        if !self.words_apart {
            return text.len();
        }
        let space = self.normalizer.space();
        let spaces = text.len() - text.trim_start_matches(space).len();
        text[spaces..]
            .find(space)
            .map_or(text.len(), |word| spaces + word)
    }

    fn encode_word(&self, pieces: &Vocab, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let text = word.as_bytes();
        let whole = self.table.get(pieces, text);
        if let Some(id) = whole.filter(|&id| self.seen.is_itself(id)) {
            out.push(id);
            return;
        }
        let Scratch {
            symbols, buffers, ..
        } = scratch;
        symbols.clear();
        symbols.extend(word.char_indices().map(|(start, c)| {
            let end = start + c.len_utf8();
            Symbol {
                start: start as u32,
                end: end as u32,
                id: self.table.get(pieces, &text[start..end]).unwrap_or(NONE),
            }
        }));
        let mut ranks = Concatenations {
            spm: self,
            pieces,
            text,
            unused: HashMap::new(),
        };
        merge(symbols, &mut ranks, buffers);
        let unused = ranks.unused;
        if let Some(id) = whole.filter(|_| unused.is_empty()) {
            self.seen.note(id, symbols);
        }
        for symbol in symbols.iter() {
            if symbol.id != NONE && unused.is_empty() {
                out.push(symbol.id);
            } else {
                let piece = &text[symbol.start as usize..symbol.end as usize];
                self.emit(pieces, piece, &unused, out);
            }
        }
    }

    /// A joined piece that is marked unused is taken apart again, the way it was put together.
    fn emit<'t>(
        &self,
        pieces: &Vocab,
        first: &'t [u8],
        unused: &HashMap<&'t [u8], usize>,
        out: &mut Vec<u32>,
    ) {
        let mut left = vec![first];
        while let Some(piece) = left.pop() {
            match (self.table.get(pieces, piece), unused.get(piece)) {
                (Some(_), Some(&middle)) => left.extend([&piece[middle..], &piece[..middle]]),
                (Some(id), None) => out.push(id),
                (None, _) => self.emit_bytes(piece, out),
            }
        }
    }

    fn emit_bytes(&self, piece: &[u8], out: &mut Vec<u32>) {
        if self.has_bytes {
            out.extend(
                piece
                    .iter()
                    .map(|&b| self.bytes[usize::from(b)])
                    .filter(|&id| id != NONE),
            );
        } else if self.unknown != NONE && out.last() != Some(&self.unknown) {
            // Without byte tokens a whole run of unknown characters is one unknown token.
            out.push(self.unknown);
        }
    }

    fn normalize(&self, text: &str, prefix: bool) -> String {
        let space = self.normalizer.space();
        let mut normal = String::with_capacity(text.len() + text.len() / 3 + 3);
        let text = if self.normalizer.remove_extra_whitespaces {
            text.trim_matches(' ')
        } else {
            text
        };
        if text.is_empty() {
            return normal;
        }
        if prefix && self.normalizer.add_dummy_prefix {
            normal.push_str(space);
        }
        let mut after_space = false;
        for (i, word) in text.split(' ').enumerate() {
            if i > 0 && !(self.normalizer.remove_extra_whitespaces && after_space) {
                normal.push_str(space);
            }
            after_space = word.is_empty();
            normal.push_str(word);
        }
        normal
    }
}

/// Whether merging may make pieces of this kind.
fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused)
}

/// Whether in every piece that merging may make, spaces stand only at the front.
fn words_apart(pieces: &Vocab, space: &str) -> bool {
    let inside = |piece: &[u8]| match std::str::from_utf8(piece) {
        Ok(text) => text.trim_start_matches(space).contains(space),
        Err(_) => true,
    };
    !pieces.of_kind(is_text).any(|(_, piece)| inside(piece))
}

/// Ranks a pair by the score of its concatenation, which is the slice of the text that spans both.
struct Concatenations<'s, 't> {
    spm: &'s Spm,
    pieces: &'s Vocab,
    text: &'t [u8],
    /// For pieces marked unused: where the pair that last made them was joined.
    unused: HashMap<&'t [u8], usize>,
}

impl Ranks for Concatenations<'_, '_> {
    #[inline]
    fn rank(&mut self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        let joined = &self.text[left.start as usize..right.end as usize];
        let id = self.spm.table.get(self.pieces, joined)?;
        if self.spm.has_unused && self.pieces.kind(id) == Some(Kind::Unused) {
            self.unused.insert(joined, (left.end - left.start) as usize);
        }
        Some((self.spm.ranks[id as usize], id))
    }
}

/// Turns a score into a number that sorts the other way round: the highest score first.
fn descending(score: f32) -> u32 {
    // -0 and 0 are equal scores.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    !ascending
}

/// The byte of a piece spelled `<0xXX>`.
pub(crate) fn byte_of(piece: &[u8]) -> Option<u8> {
    let hex = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let hex = std::str::from_utf8(hex)
        .ok()
        .filter(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(pieces: &[(&str, f32, Kind)], normalizer: Normalizer) -> (Vocab, Spm) {
        let mut vocab = Vocab::default();
        for (piece, _, kind) in pieces {
            vocab.push(piece.as_bytes(), *kind);
        }
        let scores: Vec<f32> = pieces.iter().map(|p| p.1).collect();
        let spm = Spm::new(&vocab, &scores, normalizer, Some(0), true).unwrap();
        (vocab, spm)
    }

    fn encode((vocab, spm): &(Vocab, Spm), text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        spm.encode(vocab, text, true, &mut Scratch::default(), &mut out);
        out
    }

    const PLAIN: Normalizer = Normalizer {
        add_dummy_prefix: false,
        remove_extra_whitespaces: false,
        escape_whitespaces: true,
    };
    use Kind::{Normal, Unknown, Unused, UserDefined};

    #[test]
    fn highest_score_first_leftmost_among_equals() {
        let v = spm(
            &[
                ("<unk>", 0., Unknown),
                ("a", 0., Normal),
                ("b", 0., Normal),
                ("ab", -2., Normal),
                ("ba", -1., Normal),
                ("aa", -3., Normal),
            ],
            PLAIN,
        );
        assert_eq!(encode(&v, "aba"), [1, 4]);
        assert_eq!(encode(&v, "aaa"), [5, 1]);
        assert_eq!(encode(&v, "xxaxx"), [0, 1, 0]);
    }

    #[test]
    fn scores_keep_their_order() {
        let scores = [
            f32::INFINITY,
            1.0,
            1e-40,
            0.0,
            -1e-40,
            -1.0,
            f32::NEG_INFINITY,
        ];
        assert!(
            scores
                .windows(2)
                .all(|w| descending(w[0]) < descending(w[1]))
        );
        assert_eq!(descending(0.0), descending(-0.0));
        assert_ne!(descending(f32::NEG_INFINITY), u32::MAX);
    }

    #[test]
    fn user_defined_pieces_stand_alone_and_unused_ones_are_taken_apart() {
        let v = spm(
            &[
                ("<unk>", 0., Unknown),
                ("a", 0., Normal),
                ("b", 0., Normal),
                ("ab", -1., Unused),
                ("[x]", 0., UserDefined),
                ("aba", -2., Normal),
            ],
            PLAIN,
        );
        assert_eq!(encode(&v, "ab"), [1, 2]);
        assert_eq!(encode(&v, "aba"), [5]);
        assert_eq!(encode(&v, "a[x]b"), [1, 4, 2]);
    }

    #[test]
    fn a_piece_with_a_space_inside_is_found_across_words() {
        let apart = [
            ("<unk>", 0., Unknown),
            ("▁", -5., Normal),
            ("a", -6., Normal),
            ("▁a", -3., Normal),
        ];
        let mut across = apart.to_vec();
        across.push(("▁a▁a", -4., Normal));
        let (apart, across) = (spm(&apart, PLAIN), spm(&across, PLAIN));
        assert!(apart.1.words_apart && !across.1.words_apart);
        for _ in 0..2 {
            assert_eq!(encode(&apart, " a a  a"), [3, 3, 1, 3]);
            assert_eq!(encode(&across, " a a  a"), [4, 1, 3]);
        }
    }

    proptest::proptest! {
        /// Word by word, with known words, as the whole text in one chain.
        #[test]
        fn words_apart_equal_the_whole_text(
            pieces in proptest::collection::btree_set("▁{0,2}[abc]{0,3}", 0..40),
            bytes in proptest::bool::ANY,
            texts in proptest::collection::vec("[abcé ▁]{0,24}", 1..6),
        ) {
            let mut list: Vec<(&str, f32, Kind)> = vec![("<unk>", 0., Unknown)];
            let singles = ["a", "b", "▁"];
            list.extend(singles.iter().map(|s| (*s, -99., Normal)));
            let others = pieces.iter().filter(|p| !p.is_empty() && !singles.contains(&p.as_str()));
            list.extend(others.zip(0u8..).map(|(p, n)| (p.as_str(), -f32::from(n % 7), Normal)));
            if bytes {
                list.extend([("<0x63>", 0., Kind::Byte), ("<0xC3>", 0., Kind::Byte)]);
            }
            for add_dummy_prefix in [false, true] {
                let apart = spm(&list, Normalizer { add_dummy_prefix, ..PLAIN });
                let mut whole = spm(&list, Normalizer { add_dummy_prefix, ..PLAIN });
                assert!(apart.1.words_apart);
                whole.1.words_apart = false;
                // One scratch for all texts, so that words are known again.
                let mut scratch = Scratch::default();
                for text in texts.iter().chain(&texts) {
                    let mut got = Vec::new();
                    apart.1.encode(&apart.0, text, true, &mut scratch, &mut got);
                    proptest::prop_assert_eq!(got, encode(&whole, text), "{:?}", text);
                }
            }
        }
    }

    #[test]
    fn extra_spaces_go_when_asked() {
        let strip = Normalizer {
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        let v = spm(
            &[("<unk>", 0., Unknown), ("a", 0., Normal), ("▁", 0., Normal)],
            strip,
        );
        assert_eq!(encode(&v, "  a   a "), [2, 1, 2, 1]);
        assert_eq!(encode(&v, "   "), [0u32; 0]);
        assert_eq!(encode(&v, ""), [0u32; 0]);
    }

    #[test]
    fn byte_spelling() {
        assert_eq!(byte_of(b"<0x0A>"), Some(10));
        assert_eq!(byte_of(b"<0x+A>"), None);
        assert_eq!(byte_of(b"<0xA>"), None);
    }
}
