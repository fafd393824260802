//! Words that were seen before, and the tokens that they became.
//!
//! Idea: a text repeats its words. A piece that merges apart from its neighbours has the same tokens wherever it
//! stands, so the answer is kept: a table of fixed size, at each place the last word that fell there.
//!
//! Why it is fast:
//! 1. A word of up to 15 bytes is one number of 128 bits with its length on top: one comparison instead of a
//!    look-up that reads the table, the vocabulary's ends and its bytes.
//! 2. The whole table (256 KB) stays in the second-level cache, which a vocabulary of 200,000 tokens does not.
//! 3. A word of several tokens is merged once and not each time.
//!
//! The hash is seeded at random: a text cannot be built whose words push each other out, and if one could, they
//! would be merged as if there were no table.
//!
//! Knows bytes and ids; what a word is, and whether its tokens depend on nothing else, the caller knows.

use std::sync::{Mutex, PoisonError};

use crate::merge::{Buffers, Symbol};
use crate::vocab::{NONE, fold, random_seed};

/// The longest word that is kept, in bytes.
const MAX_LEN: usize = 15;
/// The most tokens of a word that is kept.
const MAX_IDS: usize = 4;
/// Places in the table, as a power of two.
const BITS: u32 = 13;

/// The bytes of a word and their number. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u128);

impl Word {
    /// The word `text[start..end]`; `None` if it is empty or too long to be kept.
    #[inline]
    pub(crate) fn new(text: &[u8], start: usize, end: usize) -> Option<Word> {
        let len = end.wrapping_sub(start);
        if len.wrapping_sub(1) >= MAX_LEN {
            return None;
        }
        // Near the end of the text there are no 16 bytes to read at once.
        let bytes = match text.get(start..start + 16).and_then(|b| b.try_into().ok()) {
            Some(bytes) => u128::from_le_bytes(bytes) & ((1 << (8 * len)) - 1),
            None => {
                let word = text.get(start..end)?;
                word.iter().rev().fold(0, |n, &b| n << 8 | u128::from(b))
            }
        };
        Some(Word(bytes | (len as u128) << 120))
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Words {
    seed: u64,
    /// Each word with its tokens, `NONE` behind the last. No word: 0. Empty until the first word is kept.
    slots: Vec<(u128, [u32; MAX_IDS])>,
}

impl Default for Words {
    fn default() -> Words {
        Words {
            seed: random_seed(),
            slots: Vec::new(),
        }
    }
}

impl Words {
    #[inline]
    fn place(&self, word: Word) -> usize {
        let hash = fold(
            word.0 as u64 ^ self.seed,
            (word.0 >> 64) as u64 ^ 0x9e37_79b9_7f4a_7c15,
        );
        (hash >> (64 - BITS)) as usize
    }

    /// Appends the word's tokens, if they are known.
    #[inline]
    pub(crate) fn append(&self, word: Word, out: &mut Vec<u32>) -> bool {
        let Some((_, ids)) = self.slots.get(self.place(word)).filter(|s| s.0 == word.0) else {
            return false;
        };
        for &id in ids {
            if id == NONE {
                break;
            }
            out.push(id);
        }
        true
    }

    /// Keeps the word's tokens, unless they are too many.
    pub(crate) fn keep(&mut self, word: Word, ids: &[u32]) {
        if ids.len() > MAX_IDS {
            return;
        }
        if self.slots.is_empty() {
            self.slots.resize(1 << BITS, (0, [NONE; MAX_IDS]));
        }
        let mut kept = [NONE; MAX_IDS];
        kept[..ids.len()].copy_from_slice(ids);
        let place = self.place(word);
        self.slots[place] = (word.0, kept);
    }
}

/// What encoding keeps from one text to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) words: Words,
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) buffers: Buffers,
    /// A word as the vocabulary spells it.
    pub(crate) spelled: String,
}

impl Scratch {
    /// Gives back the memory of one enormous word.
    fn forget_giants(&mut self) {
        const GIANT: usize = 1 << 16;
        if self.symbols.capacity() > GIANT || self.spelled.capacity() > GIANT {
            (self.symbols, self.buffers) = Default::default();
            self.spelled = String::new();
        }
    }
}

/// One [`Scratch`] for each thread that encodes at the same time, lent out and taken back.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Scratch>>);

impl Pool {
    /// Not more of them are kept.
    const MOST: usize = 64;

    /// Runs `encode` with one of them.
    pub(crate) fn lend<T>(&self, encode: impl FnOnce(&mut Scratch) -> T) -> T {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        let result = encode(&mut scratch);
        scratch.forget_giants();
        let mut pool = lock();
        if pool.len() < Pool::MOST {
            pool.push(scratch);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(words: &Words, word: &str) -> Option<Vec<u32>> {
        let mut out = Vec::new();
        words
            .append(Word::new(word.as_bytes(), 0, word.len())?, &mut out)
            .then_some(out)
    }

    #[test]
    fn keeps_words_and_their_tokens() {
        let mut words = Words::default();
        let kept: [(&str, &[u32]); 5] = [
            ("a", &[1]),
            ("a\0", &[2, 3]),
            ("fifteen bytes !", &[1, 2, 3, 4]),
            ("five", &[1, 2, 3, 4, 5]),
            ("nothing", &[]),
        ];
        for (word, ids) in kept {
            assert_eq!(known(&words, word), None);
            words.keep(Word::new(word.as_bytes(), 0, word.len()).unwrap(), ids);
            let want = (ids.len() <= MAX_IDS).then(|| ids.to_vec());
            assert_eq!(known(&words, word), want, "{word:?}");
        }
        assert_eq!(known(&words, "b"), None);
    }

    #[test]
    fn a_word_is_the_same_wherever_it_stands() {
        let text = "the cat and the dog and the end";
        let at = |start: usize| Word::new(text.as_bytes(), start, start + 3);
        assert_eq!(at(0), at(12));
        assert_eq!(at(8), at(20));
        // The last ones are too near to the end to be read at once.
        assert_eq!(at(0), at(24));
        assert_ne!(at(24), at(28));
        assert_ne!(at(0), Word::new(text.as_bytes(), 0, 4));
        assert_eq!(Word::new(text.as_bytes(), 3, 3), None);
        assert_eq!(Word::new(text.as_bytes(), 0, 16), None);
        assert!(Word::new(text.as_bytes(), 0, 15).is_some());
    }
}
