//! Byte-level BPE: encoding text with a vocabulary of byte strings and ranks.
//!
//! The text is cut by a [`Pattern`]; inside each piece the bytes are symbols and the adjacent pair with the
//! lowest rank is joined, leftmost first, until no pair has one.
//!
//! Two sources of ranks: a list of merges "left right" (GGUF, GPT-2's merges.txt), or the ids themselves, where a
//! pair may be joined when its concatenation is a token (tiktoken).
//!
//! Why it is fast: most pieces of ordinary text were there before, and their tokens are remembered
//! (`words`). Of the others most are one token. With the whole-piece rule of tiktoken and Llama 3 that token
//! is the answer. Without the rule it is the answer exactly when merging the token's own bytes gives it back,
//! which is found out once per token and remembered too.
//!
//! Knows bytes and ranks; reads no files and finds no special tokens.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use crate::merge::{Ranks, Seen, Symbol, merge};
use crate::pretokenize::Pattern;
use crate::vocab::{Kind, NONE, PieceTable, Vocab, fold, random_seed};
use crate::words::{Scratch, Word};

/// Joined pairs: two token ids in one number -> (rank, token that they make).
pub(crate) type Merges = HashMap<u64, (u32, u32), Seeded>;

/// Where ranks come from.
#[derive(Debug)]
pub(crate) enum Order {
    /// A list of pairs, the first one first.
    Merges(Merges),
    /// Any pair whose concatenation is a token; the lowest id first.
    Ids,
}

/// The encoder.
#[derive(Debug)]
pub(crate) struct Bpe {
    pattern: Pattern,
    order: Order,
    /// Emit a piece that is a token as that token, whatever the merges say.
    whole_pieces: bool,
    table: PieceTable,
    /// The token of each byte, or `NONE`: such bytes are dropped.
    bytes: [u32; 256],
    seen: Seen,
    /// Ids from here on were added later and are never made by merging.
    known: u32,
}

impl Bpe {
    /// An encoder over the tokens in `table`.
    pub(crate) fn new(
        vocab: &Vocab,
        table: PieceTable,
        pattern: Pattern,
        order: Order,
        whole_pieces: bool,
    ) -> Bpe {
        let bytes = std::array::from_fn(|b| table.get(vocab, &[b as u8]).unwrap_or(NONE));
        Bpe {
            pattern,
            order,
            whole_pieces,
            table,
            bytes,
            seen: Seen::new(vocab.len()),
            known: vocab.len() as u32,
        }
    }

    /// Follows a change of the vocabulary's kinds, or tokens added behind it: these are never made by merging.
    pub(crate) fn refresh(&mut self, vocab: &Vocab) -> Result<(), u32> {
        let (old, known) = (&self.table, self.known);
        let text = |id: u32, kind| {
            id < known
                && is_text(kind)
                && vocab.get(id).and_then(|piece| old.get(vocab, piece)) == Some(id)
        };
        self.table = PieceTable::build(vocab, text)?;
        self.seen = Seen::new(self.known as usize);
        if let Order::Merges(merges) = &mut self.order {
            merges.retain(|_, (_, id)| vocab.kind(*id).is_some_and(is_text));
        }
        Ok(())
    }

    /// How text is cut before merging.
    pub(crate) fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The token of exactly these bytes.
    pub(crate) fn id_of(&self, vocab: &Vocab, piece: &[u8]) -> Option<u32> {
        self.table.get(vocab, piece)
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut start = 0;
        while start < text.len() {
            let end = self.pattern.next(text, start);
            let word = Word::new(text.as_bytes(), start, end);
            if !word.is_some_and(|word| scratch.words.append(word, out)) {
                let before = out.len();
                self.encode_piece(vocab, &text.as_bytes()[start..end], scratch, out);
                if let Some(word) = word {
                    scratch.words.keep(word, &out[before..]);
                }
            }
            start = end;
        }
    }

    fn encode_piece(&self, vocab: &Vocab, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let whole = self.table.get(vocab, piece);
        if let Some(id) = whole.filter(|&id| self.whole_pieces || self.seen.is_itself(id)) {
            out.push(id);
            return;
        }
        self.merge_piece(vocab, piece, scratch);
        let symbols = &scratch.symbols;
        if let Some(id) = whole {
            self.seen.note(id, symbols);
        }
        out.extend(symbols.iter().map(|s| s.id).filter(|&id| id != NONE));
    }

    fn merge_piece(&self, vocab: &Vocab, piece: &[u8], scratch: &mut Scratch) {
        let Scratch {
            symbols, buffers, ..
        } = scratch;
        symbols.clear();
        symbols.extend(piece.iter().zip(0u32..).map(|(&b, i)| Symbol {
            start: i,
            end: i + 1,
            id: self.bytes[usize::from(b)],
        }));
        match &self.order {
            Order::Merges(merges) => merge(symbols, &mut Listed(merges), buffers),
            Order::Ids => merge(
                symbols,
                &mut Concatenations {
                    bpe: self,
                    vocab,
                    piece,
                },
                buffers,
            ),
        }
    }
}

/// Whether text may become tokens of this kind by merging. What a user types never becomes a control token.
pub(crate) fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Normal | Kind::Unused | Kind::Byte)
}

/// The key of a pair of tokens in [`Merges`].
#[inline]
pub(crate) fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

struct Listed<'a>(&'a Merges);

impl Ranks for Listed<'_> {
    #[inline]
    fn rank(&mut self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        self.0.get(&pair(left.id, right.id)).copied()
    }
}

struct Concatenations<'a> {
    bpe: &'a Bpe,
    vocab: &'a Vocab,
    piece: &'a [u8],
}

impl Ranks for Concatenations<'_> {
    #[inline]
    fn rank(&mut self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        let id = self.bpe.table.get(
            self.vocab,
            &self.piece[left.start as usize..right.end as usize],
        )?;
        Some((id, id))
    }
}

/// Hashes a pair's key with one multiplication, seeded at random against built collisions.
#[derive(Clone, Debug)]
pub(crate) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Seeded {
        Seeded(random_seed())
    }
}

impl BuildHasher for Seeded {
    type Hasher = PairHasher;

    #[inline]
    fn build_hasher(&self) -> PairHasher {
        PairHasher(self.0)
    }
}

/// See [`Seeded`].
pub(crate) struct PairHasher(u64);

impl Hasher for PairHasher {
    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.0 = fold(self.0 ^ n, 0x9e37_79b9_7f4a_7c15 ^ self.0.rotate_left(32));
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe(tokens: &[&str], merges: &[(u32, u32, u32)], whole: bool) -> (Vocab, Bpe) {
        let mut vocab = Vocab::default();
        for token in tokens {
            vocab.push(token.as_bytes(), Kind::Normal);
        }
        let table = PieceTable::build(&vocab, |_, _| true).unwrap();
        let order = if merges.is_empty() {
            Order::Ids
        } else {
            Order::Merges(
                merges
                    .iter()
                    .zip(0..)
                    .map(|(&(l, r, id), rank)| (pair(l, r), (rank, id)))
                    .collect(),
            )
        };
        let bpe = Bpe::new(&vocab, table, Pattern::Llama3, order, whole);
        (vocab, bpe)
    }

    fn encode((vocab, bpe): &(Vocab, Bpe), text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        bpe.encode(vocab, text, &mut Scratch::default(), &mut out);
        out
    }

    #[test]
    fn lowest_rank_first() {
        let tokens = ["a", "b", "c", "bc", "ab", "abc"];
        assert_eq!(encode(&bpe(&tokens, &[], false), "abcab"), [5, 4]);
        let (ab, bc, abc) = ((0, 1, 4), (1, 2, 3), (4, 2, 5));
        assert_eq!(
            encode(&bpe(&tokens, &[ab, bc, abc], false), "abcab"),
            [5, 4]
        );
        assert_eq!(
            encode(&bpe(&tokens, &[bc, ab, abc], false), "abcab"),
            [0, 3, 4]
        );
    }

    #[test]
    fn a_token_that_merging_cannot_make_needs_the_whole_piece_rule() {
        let tokens = ["a", "b", "c", "bc", "abc"];
        let without = bpe(&tokens, &[(1, 2, 3)], false);
        // Twice: the second time the answer is remembered.
        assert_eq!(encode(&without, "abc"), [0, 3]);
        assert_eq!(encode(&without, "abc"), [0, 3]);
        assert_eq!(encode(&without, "bc bc"), [3, 3]);
        assert_eq!(encode(&bpe(&tokens, &[(1, 2, 3)], true), "abc"), [4]);
    }

    #[test]
    fn bytes_without_a_token_are_dropped() {
        assert_eq!(encode(&bpe(&["a", "b", "ab"], &[], false), "axab"), [0, 2]);
    }
}
