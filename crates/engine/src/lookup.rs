//! Prompt look-up: what followed the last time that these words stood here.
//!
//! The idea (Saxena 2023, "Prompt lookup decoding"): answers quote. A name, a line of code, a
//! sentence that is to be corrected stands in the prompt already, so the newest tokens often occur
//! earlier, and what followed them there is likely to follow here.
//!
//! Every pair of adjacent tokens has a chain of the places where it stands, newest first. The
//! candidates for the newest tokens are the chain of the newest pair; the one whose past agrees
//! longest wins, among equals the newest. Both the candidates looked at and the agreement counted
//! are bounded, so a look-up takes microseconds whatever the text.
//!
//! Knows tokens only.

use std::collections::HashMap;

/// Places that one look-up compares at most.
const CANDIDATES: usize = 64;
/// Agreement beyond this many tokens is not counted.
pub(crate) const LONGEST: usize = 16;
/// No earlier place.
const NONE: u32 = u32::MAX;

/// The places of all pairs in a text that grows.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// A pair's newest place: where its second token stands.
    newest: HashMap<(u32, u32), u32>,
    /// Of each token: the place before it of the pair that it ends.
    earlier: Vec<u32>,
}

/// An earlier occurrence of the newest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// How many of the newest tokens agree, at least 2, at most [`LONGEST`].
    pub(crate) length: usize,
    /// Where the token that followed stands.
    pub(crate) next: usize,
}

impl Lookup {
    /// Takes in the tokens that came to `text` since the last call.
    pub(crate) fn extend(&mut self, text: &[u32]) {
        for i in self.earlier.len()..text.len() {
            // Beyond 2^32 tokens nothing is remembered.
            let (Some(pair), Ok(place)) = (pair(text, i), u32::try_from(i)) else {
                self.earlier.push(NONE);
                continue;
            };
            let before = self.newest.insert(pair, place);
            self.earlier.push(before.unwrap_or(NONE));
        }
    }

    /// The best earlier occurrence of the newest tokens of `text`, which [`Lookup::extend`] has
    /// taken in.
    pub(crate) fn find(&self, text: &[u32]) -> Option<Match> {
        let end = text.len().checked_sub(1)?;
        let mut best: Option<Match> = None;
        let mut place = *self.earlier.get(end)?;
        for _ in 0..CANDIDATES {
            if place == NONE {
                break;
            }
            let at = place as usize;
            let past = text[..=at].iter().rev().zip(text.iter().rev());
            let length = past.take(LONGEST).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|b| length > b.length) {
                best = Some(Match {
                    length,
                    next: at + 1,
                });
                if length == LONGEST {
                    break;
                }
            }
            place = self.earlier[at];
        }
        best
    }
}

/// The tokens that `found` predicts after `text`, `n` of them. An occurrence that runs up to the
/// end of the text predicts its own continuation: a text that repeats itself goes on doing so.
pub(crate) fn continuation(text: &[u32], found: Match, n: usize) -> Vec<u32> {
    let mut guess: Vec<u32> = Vec::with_capacity(n);
    for i in found.next..found.next + n {
        guess.push(match i.checked_sub(text.len()) {
            None => text[i],
            Some(own) => guess[own],
        });
    }
    guess
}

fn pair(text: &[u32], end: usize) -> Option<(u32, u32)> {
    Some((text[end.checked_sub(1)?], text[end]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(text: &[u32]) -> Option<Match> {
        let mut lookup = Lookup::default();
        lookup.extend(text);
        lookup.find(text)
    }

    #[test]
    fn the_longest_past_wins_and_then_the_newest() {
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[1]), None);
        assert_eq!(find(&[1, 2, 3]), None);
        let found = |length, next| Some(Match { length, next });
        assert_eq!(find(&[1, 2, 3, 1, 2]), found(2, 2));
        assert_eq!(find(&[9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2]), found(3, 3));
        assert_eq!(find(&[1, 2, 5, 1, 2, 6, 1, 2]), found(2, 5));
    }

    #[test]
    fn what_repeats_itself_goes_on() {
        let text = [7, 1, 2, 3, 1, 2, 3, 1, 2];
        let found = find(&text).unwrap();
        assert_eq!(continuation(&text, found, 7), [3, 1, 2, 3, 1, 2, 3]);
        let same = [4, 4, 4];
        let found = find(&same).unwrap();
        assert_eq!(continuation(&same, found, 3), [4, 4, 4]);
    }

    proptest! {
        #[test]
        fn equals_a_plain_search(text in prop::collection::vec(0u32..4, 0..60)) {
            let mut lookup = Lookup::default();
            for end in 0..text.len() {
                lookup.extend(&text[..=end]);
                let now = &text[..=end];
                let agreement = |at: usize| {
                    let past = now[..=at].iter().rev().zip(now.iter().rev());
                    past.take(LONGEST).take_while(|(a, b)| a == b).count()
                };
                let best = (0..end).rev().map(|at| (agreement(at), at)).filter(|m| m.0 >= 2);
                // Newest first; `max_by_key` would take the last of equals.
                let best = best.fold(None, |best: Option<(usize, usize)>, m| match best {
                    Some(b) if b.0 >= m.0 => Some(b),
                    _ => Some(m),
                });
                let due = best.map(|(length, at)| Match { length, next: at + 1 });
                prop_assert_eq!(lookup.find(now), due);
            }
        }
    }
}
