//! DRY: "don't repeat yourself".
//!
//! The idea: if the newest tokens already stood somewhere earlier, the token that followed them
//! there would make the repetition one longer. Such tokens are made less likely, exponentially in
//! the length of the repetition. A repetition may be cut short by sequence breakers (line breaks,
//! quotes, ...), so that the fixed parts of a format are not punished.
//!
//! With the newest tokens in reverse order, "how long is the repetition that token k ends" is the
//! Z-function of that string: linear in the length of the window.
//!
//! Knows pieces of tokens only through two closures; it must not know how a tokenizer works.

use std::borrow::Cow;
use std::collections::HashMap;

/// Longer breakers are cut to this many bytes, as in llama.cpp.
const MAX_BREAKER_BYTES: usize = 40;
/// Longer tails of breakers are cut to this many tokens, as in llama.cpp.
const MAX_TAIL: usize = 20;

/// Sequence breakers in terms of tokens: the token in which a breaker begins, and the tokens that
/// must follow to complete it (none if the token contains the whole breaker).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breakers {
    tails: HashMap<u32, Vec<Vec<u32>>>,
}

impl Breakers {
    /// Finds the tokens in which the breakers occur or begin.
    ///
    /// `piece` gives a token's bytes, `encode` the tokens of a text (no specials, no BOS). Costs a
    /// pass over the vocabulary.
    pub fn new<'p>(
        breakers: &[String],
        vocab: usize,
        piece: impl Fn(u32) -> Option<Cow<'p, [u8]>>,
        encode: impl Fn(&[u8]) -> Vec<u32>,
    ) -> Breakers {
        let mut tails: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for id in (0..vocab).map_while(|id| u32::try_from(id).ok()) {
            let Some(piece) = piece(id) else { continue };
            for breaker in breakers {
                let breaker = breaker.as_bytes();
                let breaker = &breaker[..breaker.len().min(MAX_BREAKER_BYTES)];
                if breaker.is_empty() {
                    continue;
                }
                for tail in tails_in(&piece, breaker, &encode) {
                    let known = tails.entry(id).or_default();
                    if !known.contains(&tail) {
                        known.push(tail);
                    }
                }
            }
        }
        Breakers { tails }
    }

    /// Breakers given as token sequences; empty ones are passed over.
    pub fn from_sequences(sequences: &[Vec<u32>]) -> Breakers {
        let mut tails: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for sequence in sequences {
            if let Some((&head, tail)) = sequence.split_first() {
                tails.entry(head).or_default().push(tail.to_vec());
            }
        }
        Breakers { tails }
    }

    /// Whether this token alone is a breaker.
    fn is_single(&self, id: u32) -> bool {
        let tails = self.tails.get(&id);
        tails.is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// How many of the newest tokens stand after the last breaker. `newest` is in reverse order.
    fn tokens_since(&self, newest: &[u32]) -> usize {
        for (age, head) in newest.iter().enumerate() {
            let Some(tails) = self.tails.get(head) else {
                continue;
            };
            let complete = |tail: &&Vec<u32>| {
                // The token after the head has age - 1, and so on towards the newest.
                tail.len() <= age && tail.iter().eq(newest[age - tail.len()..age].iter().rev())
            };
            if let Some(longest) = tails.iter().filter(complete).map(Vec::len).max() {
                return age - longest;
            }
        }
        newest.len()
    }
}

/// The tails that complete a breaker which begins in `piece`.
fn tails_in(piece: &[u8], breaker: &[u8], encode: &impl Fn(&[u8]) -> Vec<u32>) -> Vec<Vec<u32>> {
    if piece.windows(breaker.len()).any(|w| w == breaker) {
        return vec![Vec::new()];
    }
    // The breaker sticks out of the piece: the piece's end is the breaker's beginning.
    let longest = piece.len().min(breaker.len() - 1);
    (1..=longest)
        .filter(|&n| piece.ends_with(&breaker[..n]))
        .map(|n| {
            let mut tail = encode(&breaker[n..]);
            tail.truncate(MAX_TAIL);
            tail
        })
        .collect()
}

/// The penalty's three numbers. Meaning and limits are those of [`crate::SamplerParams`].
#[derive(Clone, Copy, Debug)]
pub struct Dry {
    /// Strength; 0 is off.
    pub multiplier: f32,
    /// Growth per token of length.
    pub base: f32,
    /// Shorter repetitions go unpunished.
    pub allowed_length: usize,
}

impl Dry {
    /// Lowers the logits of tokens that would continue a repetition in `window` (the newest
    /// tokens, oldest first).
    pub fn apply(&self, logits: &mut [f32], window: &[u32], breakers: &Breakers) {
        if self.multiplier == 0.0 || self.base < 1.0 || window.len() <= self.allowed_length {
            return;
        }
        let newest: Vec<u32> = window.iter().rev().copied().collect();
        let limit = breakers.tokens_since(&newest);
        if limit < self.allowed_length {
            return;
        }
        for (id, length) in longest_repetitions(&newest, limit) {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            if length >= self.allowed_length && !breakers.is_single(id) {
                *logit -= self.penalty(length);
            }
        }
    }

    /// `multiplier * base^(length - allowed_length)`, at most f32's largest number.
    fn penalty(&self, length: usize) -> f32 {
        let exponent = length.saturating_sub(self.allowed_length) as f64;
        let penalty = f64::from(self.multiplier) * f64::from(self.base).powf(exponent);
        penalty.min(f64::from(f32::MAX)) as f32
    }
}

/// For each token that followed an earlier occurrence of the newest tokens: how many of the
/// newest tokens (at most `limit`) stood before it. `newest` is in reverse order.
fn longest_repetitions(newest: &[u32], limit: usize) -> HashMap<u32, usize> {
    let mut longest: HashMap<u32, usize> = HashMap::new();
    // Token `age` ends the earlier occurrence; the one newer than it followed.
    for (age, length) in z_function(newest).into_iter().enumerate().skip(1) {
        let known = longest.entry(newest[age - 1]).or_default();
        *known = (*known).max(length.min(limit));
    }
    longest
}

/// `z[k]`: length of the longest common prefix of `s` and `s[k..]`; `z[0]` is 0.
///
/// `left..right` is the match that reaches furthest so far: inside it, the answer for `k` is
/// known from `k - left` unless it runs up to the border.
fn z_function(s: &[u32]) -> Vec<usize> {
    let mut z = vec![0; s.len()];
    let (mut left, mut right) = (0, 0);
    for k in 1..s.len() {
        let mut n = if k < right {
            z[k - left].min(right - k)
        } else {
            0
        };
        while k + n < s.len() && s[n] == s[k + n] {
            n += 1;
        }
        z[k] = n;
        if k + n > right {
            (left, right) = (k, k + n);
        }
    }
    z
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRY: Dry = Dry {
        multiplier: 1.0,
        base: 2.0,
        allowed_length: 2,
    };

    /// The definition, as slowly as it reads: for every token and every length, does the window
    /// end in a sequence that also stands earlier, followed by that token?
    fn brute_force(dry: &Dry, vocab: u32, window: &[u32], breakers: &[Vec<u32>]) -> Vec<f32> {
        // A repetition may not reach back into the breaker that ended last. Of breakers whose
        // heads are at one place, the longest counts; the newest head wins.
        let mut limit = window.len();
        'heads: for head in (0..window.len()).rev() {
            let ends = breakers.iter().filter(|b| window[head..].starts_with(b));
            if let Some(longest) = ends.map(Vec::len).max() {
                limit = window.len() - (head + longest);
                break 'heads;
            }
        }
        let mut penalties = vec![0.0; vocab as usize];
        if window.len() <= dry.allowed_length || limit < dry.allowed_length {
            return penalties;
        }
        for id in 0..vocab {
            if breakers.iter().any(|b| b == &[id]) {
                continue;
            }
            let mut longest = None;
            for length in 0..=limit.min(window.len()) {
                let suffix = &window[window.len() - length..];
                let mut continued = suffix.to_vec();
                continued.push(id);
                // Nothing is known to stand before the oldest token, not even nothing at all.
                let known = &window[usize::from(length == 0)..];
                if known.windows(length + 1).any(|w| w == continued) {
                    longest = Some(length);
                }
            }
            if let Some(length) = longest.filter(|l| *l >= dry.allowed_length) {
                let exponent = (length - dry.allowed_length) as i32;
                penalties[id as usize] = dry.multiplier * dry.base.powi(exponent);
            }
        }
        penalties
    }

    proptest! {
        #[test]
        fn equals_brute_force(
            window in prop::collection::vec(0u32..4, 0..40),
            breakers in prop::collection::vec(prop::collection::vec(0u32..5, 1..4), 0..3),
            allowed_length in 0usize..5,
        ) {
            let dry = Dry { allowed_length, ..DRY };
            let mut logits = vec![0.0; 6];
            dry.apply(&mut logits, &window, &Breakers::from_sequences(&breakers));
            let expected = brute_force(&dry, 6, &window, &breakers);
            let got: Vec<f32> = logits.iter().map(|l| -l).collect();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn z_function_is_the_longest_common_prefix(s in prop::collection::vec(0u32..3, 0..60)) {
            for (k, n) in z_function(&s).into_iter().enumerate().skip(1) {
                let naive = s.iter().zip(&s[k..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(n, naive);
            }
        }
    }

    #[test]
    fn punishes_the_token_that_continues_a_repetition() {
        let mut logits = vec![0.0; 8];
        // ... 1 2 3 4 ... 1 2 3: the 4 would make it four.
        DRY.apply(&mut logits, &[1, 2, 3, 4, 5, 1, 2, 3], &Breakers::default());
        assert_eq!(logits, [0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn long_repetitions_do_not_overflow() {
        let mut logits = vec![0.0; 2];
        let base = Dry {
            base: 1000.0,
            multiplier: 1000.0,
            allowed_length: 1,
        };
        base.apply(&mut logits, &[1; 5000], &Breakers::default());
        assert!(logits[1] < -1e38 && logits[1].is_finite());
    }

    #[test]
    fn breakers_are_found_in_pieces() {
        let pieces: [&[u8]; 7] = [b"a", b"\n", b"x:\n", b"ab", b"b", b"bc", b"c\xff"];
        let encode = |text: &[u8]| text.iter().map(|b| 100 + u32::from(*b)).collect();
        let breakers = ["\n", "abc"].map(String::from);
        let found = Breakers::new(
            &breakers,
            8,
            |id| pieces.get(id as usize).map(|p| Cow::Borrowed(*p)),
            encode,
        );
        let tail = |text: &str| text.bytes().map(|b| 100 + u32::from(b)).collect::<Vec<_>>();
        let expected = [
            (0, vec![tail("bc")]),
            (1, vec![vec![]]),
            (2, vec![vec![]]),
            (3, vec![tail("c")]),
        ];
        assert_eq!(found.tails, expected.into());
    }
}
