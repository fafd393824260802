//! Whether guessing pays: how often guesses are right, against what further rows in a pass cost.
//!
//! With the share `p` of right guesses, a pass with `k` of them yields `1 + p + .. + p^k` tokens
//! and takes as long as `1 + k * (row + draft)` passes with none. `k` is where the quotient is
//! greatest; 0 if no `k` beats one token a pass by [`MARGIN`].
//!
//! Alone, what a row costs is measured. Among others it follows from how many there are
//! ([`row_among`]): what pays for few does not pay for many.

use std::time::Duration;

use crate::lookup::{LONGEST, Match};
use crate::speculate::Speculation;

/// How often a kind of guess was right.
#[derive(Clone, Debug)]
struct Track {
    /// Share of right ones among the newest.
    likely: f64,
    /// Passes since its last guess.
    skipped: u32,
}

/// Look-ups by length of agreement, then the helper.
const TRACKS: usize = 7;
pub(crate) const HELPER: usize = TRACKS - 1;

/// What is believed before anything is known. Only the first guesses of an answer follow from it.
const PRIOR: [f64; TRACKS] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.7];

/// The track of a look-up.
pub(crate) fn track(found: Match) -> usize {
    match found.length {
        ..=2 => 0,
        3 => 1,
        4 => 2,
        5..8 => 3,
        8..LONGEST => 4,
        _ => 5,
    }
}

/// How many tokens to guess, and what that would gain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) tokens: usize,
    /// Tokens in the time of one without guesses.
    pub(crate) gain: f64,
}

impl Best {
    pub(crate) const NONE: Best = Best {
        tokens: 0,
        gain: 1.0,
    };
}

/// What one answer has learned about its guesses.
#[derive(Debug)]
pub(crate) struct Pace {
    pub(crate) speculation: Speculation,
    tracks: [Track; TRACKS],
    /// Seconds of a pass with one row; 0: not known yet.
    single: f64,
    /// Cost of a further row, and of a token that the helper guesses, in passes with one row.
    row: f64,
    draft: f64,
}

/// Weight of the newest of many observations.
const RATE: f64 = 0.1;
/// What a further row is believed to cost: at first where it is measured, always among others.
const ROW: f64 = 0.25;
/// And a token of the helper, at first.
const DRAFT: f64 = 0.2;
/// Expected gains below this are noise.
const MARGIN: f64 = 1.05;
/// After so many passes without it, the helper has another chance.
const PROBE: u32 = 64;

/// What a further row costs in a pass that gives a token to each of `answers`, in tokens that come
/// in that time.
///
/// A pass reads the weights once, and each row besides the first adds [`ROW`] of that time: `b`
/// rows take `1 + (b - 1) * ROW` and give `b` tokens. So a further row takes the time of
/// `b * ROW / (1 + (b - 1) * ROW)` tokens: 0.25 for one answer, 0.57 for 4, 0.84 for 16, and on to
/// 1, where only a certain guess would pay, and none gains [`MARGIN`] any more.
fn row_among(answers: usize) -> f64 {
    let b = answers.max(1) as f64;
    b * ROW / (1.0 + (b - 1.0) * ROW)
}

impl Pace {
    pub(crate) fn new(speculation: Speculation) -> Pace {
        Pace {
            speculation,
            tracks: PRIOR.map(|likely| Track { likely, skipped: 0 }),
            single: 0.0,
            row: ROW,
            draft: DRAFT,
        }
    }

    /// The next pass has a row for each of `answers`. `draft`: what a token of the helper costs, in
    /// passes; all who ask it share its passes, as they share the model's.
    pub(crate) fn among(&mut self, answers: usize, draft: f64) {
        (self.row, self.draft) = (row_among(answers), draft);
    }

    pub(crate) fn best(&self, track: usize, most: usize) -> Best {
        if self.speculation.always {
            let gain = 1.0 + self.tracks[track].likely;
            return Best { tokens: most, gain };
        }
        let p = self.tracks[track].likely;
        let cost = self.row + if track == HELPER { self.draft } else { 0.0 };
        let mut best = Best::NONE;
        let (mut tokens, mut power) = (1.0, 1.0);
        for k in 1..=most {
            power *= p;
            tokens += power;
            let gain = tokens / (1.0 + k as f64 * cost);
            if gain > best.gain.max(MARGIN) {
                best = Best { tokens: k, gain };
            }
        }
        best
    }

    /// [`Pace::best`], and now and then one token from a track that does not pay: only by
    /// guessing is it seen when it does again.
    pub(crate) fn best_or_probe(&mut self, track: usize, most: usize) -> Best {
        let mut best = self.best(track, most);
        let skipped = &mut self.tracks[track].skipped;
        if best.tokens == 0 {
            *skipped += 1;
            if *skipped >= PROBE {
                best.tokens = 1;
            }
        }
        if best.tokens > 0 {
            *skipped = 0;
        }
        best
    }

    /// A guess of this track was right, or wrong.
    pub(crate) fn tried(&mut self, track: usize, right: bool) {
        blend(&mut self.tracks[track].likely, f64::from(u8::from(right)));
    }

    /// A pass of its own had so many rows, and took so long.
    pub(crate) fn passed(&mut self, rows: usize, time: Duration) {
        let time = time.as_secs_f64();
        if rows == 1 {
            match self.single {
                0.0 => self.single = time,
                // Another process may have taken the processor: such a pass says little.
                single => blend(&mut self.single, time.min(2.0 * single)),
            }
            // What was once measured as too dear is tried again in the end.
            self.row += (ROW - self.row) * RATE * RATE;
        } else if self.single > 0.0 {
            let row = (time / self.single - 1.0) / (rows - 1) as f64;
            blend(&mut self.row, row.clamp(0.0, 1.0));
        }
    }

    /// The helper took so long for so many tokens.
    pub(crate) fn drafted(&mut self, tokens: usize, time: Duration) {
        if tokens > 0 && self.single > 0.0 {
            let draft = time.as_secs_f64() / self.single / tokens as f64;
            blend(&mut self.draft, draft.min(2.0));
        }
    }
}

fn blend(old: &mut f64, new: f64) {
    *old += (new - *old) * RATE;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(most: usize) -> Pace {
        Pace::new(Speculation {
            most,
            ..Speculation::default()
        })
    }

    #[test]
    fn more_is_guessed_the_surer_and_the_cheaper_it_is() {
        let mut guessing = pace(8);
        let tokens = |guessing: &mut Pace, likely, row| {
            guessing.row = row;
            guessing.tracks[0].likely = likely;
            guessing.best(0, 8).tokens
        };
        assert_eq!(tokens(&mut guessing, 0.0, 0.25), 0);
        assert_eq!(tokens(&mut guessing, 0.2, 0.25), 0);
        assert_eq!(tokens(&mut guessing, 0.5, 0.25), 1);
        assert_eq!(tokens(&mut guessing, 1.0, 0.25), 8);
        assert!(tokens(&mut guessing, 0.7, 0.05) > tokens(&mut guessing, 0.7, 0.25));
        assert_eq!(tokens(&mut guessing, 1.0, 1.0), 0);
        assert_eq!(guessing.best(0, 0).tokens, 0);
    }

    #[test]
    fn less_is_guessed_the_more_there_are() {
        assert_eq!(row_among(0), ROW);
        assert_eq!(row_among(1), ROW);
        let mut guessing = pace(8);
        guessing.tracks[5].likely = 0.9;
        let tokens = [1, 2, 4, 8, 16, 32, 64].map(|answers| {
            guessing.among(answers, DRAFT);
            guessing.best(5, 8).tokens
        });
        assert!(tokens.is_sorted_by(|a, b| a >= b), "{tokens:?}");
        assert!(tokens[2] > 1, "for few it pays: {tokens:?}");
        assert_eq!(tokens[5..], [0, 0], "for many it does not");
        guessing.tracks[5].likely = 1.0;
        guessing.among(64, DRAFT);
        assert_eq!(guessing.best(5, 8).tokens, 0, "not even if it is certain");
    }

    #[test]
    fn what_does_not_pay_ends() {
        let mut guessing = pace(8);
        let before = guessing.best(3, 8).tokens;
        assert!(before > 0);
        for _ in 0..20 {
            guessing.tried(3, false);
        }
        assert_eq!(guessing.best(3, 8).tokens, 0);
        assert!(guessing.best(4, 8).tokens > 0, "the others have not failed");
        for _ in 0..40 {
            guessing.tried(3, true);
        }
        assert!(guessing.best(3, 8).tokens >= before);

        let mut dear = pace(8);
        dear.passed(1, MS);
        for _ in 0..60 {
            dear.passed(3, 3 * MS);
        }
        assert_eq!(dear.best(5, 8).tokens, 0, "rows at full price");
        for _ in 0..2000 {
            dear.passed(1, MS);
        }
        assert!(dear.best(5, 8).tokens > 0, "another chance");
    }

    #[test]
    fn a_helper_gets_another_chance() {
        let mut guessing = pace(4);
        for _ in 0..60 {
            guessing.tried(HELPER, false);
        }
        let tried = (0..2 * PROBE).filter(|_| guessing.best_or_probe(HELPER, 4).tokens > 0);
        assert_eq!(tried.count(), 2);
    }

    #[test]
    fn no_time_is_no_trouble() {
        let mut guessing = pace(4);
        for rows in [2, 1, 3, 1] {
            guessing.passed(rows, Duration::ZERO);
            guessing.drafted(rows, Duration::ZERO);
            assert!(guessing.row.is_finite() && guessing.draft.is_finite());
        }
    }
}
