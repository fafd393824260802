//! The vocabulary: every token's bytes and kind by id, and ids by bytes.
//!
//! Knows ids, bytes and kinds; knows nothing of merging, files or special-token syntax.
//!
//! All pieces lie in one flat buffer, so a vocabulary of 200,000 tokens costs a handful of allocations
//! instead of 200,000, and a look-up touches one slot and one short slice.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The most tokens a vocabulary may have (Llama 4 has 202,048).
pub(crate) const MAX_TOKENS: usize = 1 << 22;
/// The most bytes that all pieces together may have.
pub(crate) const MAX_BYTES: usize = 1 << 28;
/// "No token": never a valid id, as `MAX_TOKENS` is smaller.
pub(crate) const NONE: u32 = u32::MAX;

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type` and of SentencePiece's `Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A piece of text.
    Normal = 1,
    /// Stands for text that no other piece covers.
    Unknown = 2,
    /// A marker such as the start of a turn; never part of text.
    Control = 3,
    /// Text that is always one token, whatever the merges say.
    UserDefined = 4,
    /// A place in the numbering that no text uses.
    Unused = 5,
    /// One raw byte, spelled `<0xXX>`.
    Byte = 6,
}

impl Kind {
    /// The kind of a number in a file; numbers outside the table are taken as plain pieces.
    pub(crate) fn from_number(n: i64) -> Kind {
        match n {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }

    /// Whether the token is a marker that plain decoding leaves out.
    pub(crate) fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// Every token's decoded bytes and kind, by id.
#[derive(Debug, Default, Clone)]
pub(crate) struct Vocab {
    bytes: Vec<u8>,
    /// `ends[id]` is where piece `id` stops in `bytes`; it starts where the one before stops.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Vocab {
    pub(crate) fn with_capacity(tokens: usize) -> Vocab {
        Vocab {
            bytes: Vec::with_capacity(tokens.saturating_mul(8)),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
        }
    }

    /// Adds the next id. `None` when the vocabulary would grow past its caps.
    pub(crate) fn push(&mut self, piece: &[u8], kind: Kind) -> Option<u32> {
        let id = self.ends.len();
        if id >= MAX_TOKENS || self.bytes.len() + piece.len() > MAX_BYTES {
            return None;
        }
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len() as u32);
        self.kinds.push(kind);
        Some(id as u32)
    }

    /// Gives `id` another piece and kind, filling ids before it with unused ones.
    /// Rewrites the whole buffer: for the few tokens that a configuration adds. `None` past the caps.
    pub(crate) fn set_all(
        &mut self,
        changes: &std::collections::BTreeMap<u32, (Vec<u8>, Kind)>,
    ) -> Option<()> {
        let last = changes.keys().next_back().map_or(0, |&id| id as usize + 1);
        let mut new = Vocab::with_capacity(self.len().max(last).min(MAX_TOKENS));
        for id in 0..self.len().max(last) as u32 {
            match (changes.get(&id), self.get(id)) {
                (Some((piece, kind)), _) => new.push(piece, *kind)?,
                (None, Some(piece)) => new.push(piece, self.kinds[id as usize])?,
                (None, None) => new.push(b"", Kind::Unused)?,
            };
        }
        *self = new;
        Some(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 {
            0
        } else {
            self.ends[id - 1] as usize
        };
        Some(&self.bytes[start..end])
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(k) = self.kinds.get_mut(id as usize) {
            *k = kind;
        }
    }

    /// Ids of one kind or several, in order.
    pub(crate) fn of_kind(
        &self,
        wanted: impl Fn(Kind) -> bool,
    ) -> impl Iterator<Item = (u32, &[u8])> {
        self.kinds
            .iter()
            .enumerate()
            .filter(move |(_, k)| wanted(**k))
            .filter_map(|(id, _)| Some((id as u32, self.get(id as u32)?)))
    }
}

/// Ids by their bytes: an open-addressed table beside a [`Vocab`] that holds the bytes.
///
/// The hash is seeded at random per process, so a file cannot be built to make every look-up collide.
#[derive(Debug, Clone)]
pub(crate) struct PieceTable {
    seed: u64,
    /// Power-of-two many slots: the hash's upper half above the id; `EMPTY` where there is none.
    slots: Vec<u64>,
    /// The longest piece in the table, in bytes: longer slices need no look-up.
    max_len: usize,
}

const EMPTY: u64 = u64::MAX;

impl PieceTable {
    /// A table of the ids for which `wanted` holds. `Err(id)` names the second of two equal pieces.
    pub(crate) fn build(
        vocab: &Vocab,
        wanted: impl Fn(u32, Kind) -> bool,
    ) -> Result<PieceTable, u32> {
        let size = (vocab.len() * 2).next_power_of_two().max(16);
        let mut table = PieceTable {
            seed: random_seed(),
            slots: vec![EMPTY; size],
            max_len: 0,
        };
        for id in 0..vocab.len() as u32 {
            let piece = vocab.get(id).unwrap_or_default();
            if piece.is_empty() || !wanted(id, vocab.kinds[id as usize]) {
                continue;
            }
            let hash = fold_hash(table.seed, piece);
            let Err(slot) = table.find(vocab, piece, hash) else {
                return Err(id);
            };
            table.slots[slot] = (hash & 0xffff_ffff_0000_0000) | u64::from(id);
            table.max_len = table.max_len.max(piece.len());
        }
        Ok(table)
    }

    /// The id of exactly these bytes.
    #[inline]
    pub(crate) fn get(&self, vocab: &Vocab, piece: &[u8]) -> Option<u32> {
        if piece.len() > self.max_len {
            return None;
        }
        self.find(vocab, piece, fold_hash(self.seed, piece)).ok()
    }

    /// The id, or the empty slot where it would go. At most half of the slots are full, so there is one.
    #[inline]
    fn find(&self, vocab: &Vocab, piece: &[u8], hash: u64) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return Err(at);
            }
            if (slot ^ hash) >> 32 == 0 && vocab.get(slot as u32) == Some(piece) {
                return Ok(slot as u32);
            }
            at = (at + 1) & mask;
        }
    }
}

/// A number that no file can know beforehand.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Multiplies two halves into 128 bits and folds them: every input bit reaches every output bit.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    wide as u64 ^ (wide >> 64) as u64
}

/// A fast hash of short slices. The length is mixed in, so that zero bytes at the end count.
#[inline]
fn fold_hash(seed: u64, bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let n = bytes.len();
    let word = |at: usize| {
        u64::from_le_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
            bytes[at + 4],
            bytes[at + 5],
            bytes[at + 6],
            bytes[at + 7],
        ])
    };
    let half = |at: usize| {
        u64::from(u32::from_le_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
        ]))
    };
    let mut h = seed ^ (n as u64).wrapping_mul(K);
    let (a, b) = match n {
        0 => (0, 0),
        1..=3 => (
            u64::from(bytes[0]) | u64::from(bytes[n / 2]) << 8 | u64::from(bytes[n - 1]) << 16,
            0,
        ),
        4..=7 => (half(0), half(n - 4)),
        8..=16 => (word(0), word(n - 8)),
        _ => {
            let mut at = 0;
            while at + 16 < n {
                h = fold(word(at) ^ h, word(at + 8) ^ K);
                at += 16;
            }
            (word(n - 16), word(n - 8))
        }
    };
    fold(a ^ h, b ^ K ^ seed.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_put_in_and_nothing_else() {
        let mut vocab = Vocab::default();
        let pieces: Vec<Vec<u8>> = (0..5000u32)
            .map(|i| {
                (0..i % 40)
                    .map(|j| (i * 7 + j) as u8)
                    .chain(i.to_le_bytes())
                    .collect()
            })
            .collect();
        for piece in &pieces {
            vocab.push(piece, Kind::Normal).unwrap();
        }
        let table = PieceTable::build(&vocab, |id, _| id % 2 == 0).unwrap();
        for (id, piece) in pieces.iter().enumerate() {
            assert_eq!(table.get(&vocab, piece), (id % 2 == 0).then_some(id as u32));
        }
        assert_eq!(table.get(&vocab, b""), None);
    }

    #[test]
    fn names_the_second_of_two_equal_pieces() {
        let mut vocab = Vocab::default();
        for piece in ["a", "b", "a"] {
            vocab.push(piece.as_bytes(), Kind::Normal);
        }
        assert_eq!(PieceTable::build(&vocab, |_, _| true).unwrap_err(), 2);
    }

    #[test]
    fn set_all_fills_the_gap() {
        let mut vocab = Vocab::default();
        vocab.push(b"a", Kind::Normal);
        vocab
            .set_all(&[(3, (b"<x>".to_vec(), Kind::Control))].into())
            .unwrap();
        assert_eq!(vocab.len(), 4);
        assert_eq!(
            (vocab.get(0), vocab.get(2), vocab.get(3)),
            (Some(&b"a"[..]), Some(&b""[..]), Some(&b"<x>"[..]))
        );
        assert_eq!(vocab.kind(3), Some(Kind::Control));
    }
}
