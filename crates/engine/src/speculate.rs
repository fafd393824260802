//! Guessing tokens ahead of the model.
//!
//! The idea (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"):
//! a pass through the model reads all weights, whether it computes one row or five. So the next
//! tokens are guessed by something cheap, one pass computes the rows after each of them, and the
//! sampler walks down the rows. As long as it draws what was guessed, the next row is the right
//! one; at the first difference the other rows are thrown away.
//!
//! The sampler draws from the target's own logits with the random number of its position, and a
//! row's bits do not depend on the other rows. So a guess changes time, never text; there is no
//! rejection sampling and no second distribution.
//!
//! Two drafters: [`Lookup`] quotes the text so far, [`Helper`] is a smaller model. The smaller
//! model draws with the same sampler and the same random numbers: where the models agree on the
//! distribution they draw the same token, at any temperature.
//!
//! Whether guessing pays is measured while it runs ([`Pace`]).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use text::Tokenizer;

use crate::error::Error;
use crate::lookup::{self, LONGEST, Lookup, Match};
use crate::sampler::Sampler;
use crate::session::{Flow, Session};

/// Whether and how far to guess ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Most tokens to guess at a time; 0: none.
    pub most: usize,
    /// Guess as many whenever there is anything to guess, instead of only where it pays: for
    /// tests, which want the same guesses every time.
    pub always: bool,
}

/// Tokens that were guessed ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Run through the model as guesses.
    pub drafted: usize,
    /// Of these, the ones that the sampler drew.
    pub accepted: usize,
}

/// What comes next, perhaps.
#[derive(Debug, Default)]
pub(crate) struct Guess {
    /// Tokens in order. A prediction that is not to be run holds one, to learn from.
    ids: Vec<u32>,
    /// How many of them are worth running.
    run: usize,
    /// Index of its [`Track`].
    track: Option<usize>,
}

impl Guess {
    /// The tokens to run.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids[..self.run]
    }
}

/// Makes guesses for one answer and learns how good they are.
#[derive(Debug)]
pub(crate) struct Speculator<'s> {
    lookup: Lookup,
    helper: Option<Helper<'s>>,
    pace: Pace,
}

impl<'s> Speculator<'s> {
    /// `sampler` is the one that the answer will use.
    pub(crate) fn new(
        speculation: Speculation,
        helper: Option<&'s mut Session>,
        sampler: &Sampler,
    ) -> Self {
        Speculator {
            lookup: Lookup::default(),
            helper: helper.map(|session| Helper {
                session,
                sampler: sampler.clone(),
                prefix: Vec::new(),
                failed: false,
            }),
            pace: Pace::new(speculation),
        }
    }

    /// Guesses at most `room` tokens that follow `all`, of which the model sees `view`. Nothing
    /// follows a token of `ends`.
    pub(crate) fn guess(
        &mut self,
        all: &[u32],
        view: &[u32],
        sampler: &Sampler,
        room: usize,
        ends: &HashSet<u32>,
    ) -> Guess {
        let most = self.pace.speculation.most.min(room);
        if most == 0 {
            return Guess::default();
        }
        self.lookup.extend(all);
        let found = self.lookup.find(all).map(|m| (m, track(m)));
        let quote = found.map_or(Best::NONE, |(_, track)| self.pace.best(track, most));
        let usable = self.helper.as_mut().filter(|h| !h.failed);
        let helped = match usable {
            Some(_) => self.pace.best_or_probe(HELPER, most),
            None => Best::NONE,
        };
        let use_helper = helped.tokens > 0 && (quote.tokens == 0 || helped.gain > quote.gain);
        let (mut ids, run, track) = match (usable, found) {
            (Some(helper), _) if use_helper => {
                let start = Instant::now();
                // What it has not read yet is read once: no measure of what a guess costs.
                let in_step = helper.session.held().len() + most >= view.len();
                let ids = helper.guess(all, view, sampler, helped.tokens, ends);
                if in_step {
                    self.pace.drafted(ids.len(), start.elapsed());
                }
                (ids, helped.tokens, HELPER)
            }
            (_, Some((m, track))) => {
                // Without a run: one token, to see whether it would have been right.
                let ids = lookup::continuation(all, m, quote.tokens.max(1));
                (ids, quote.tokens, track)
            }
            _ => return Guess::default(),
        };
        if let Some(end) = ids.iter().position(|id| ends.contains(id)) {
            ids.truncate(end + 1);
        }
        Guess {
            run: run.min(ids.len()),
            ids,
            track: Some(track),
        }
    }

    /// Learns from a pass: which tokens were `drawn` from its rows, and how long it took.
    pub(crate) fn learn(&mut self, guess: &Guess, drawn: &[u32], time: Duration) {
        self.pace.passed(1 + guess.run, time);
        let Some(track) = guess.track else { return };
        for (guessed, drawn) in guess.ids.iter().zip(drawn) {
            self.pace.tried(track, guessed == drawn);
            if guessed != drawn {
                break;
            }
        }
    }
}

/// A smaller model with the same vocabulary, kept in step.
#[derive(Debug)]
struct Helper<'s> {
    session: &'s mut Session,
    /// The answer's sampler, but for mirostat's state, which follows.
    sampler: Sampler,
    prefix: Vec<u32>,
    /// It cannot go on (its context is full): the answer does without it.
    failed: bool,
}

impl Helper<'_> {
    fn guess(
        &mut self,
        all: &[u32],
        view: &[u32],
        sampler: &Sampler,
        n: usize,
        ends: &HashSet<u32>,
    ) -> Vec<u32> {
        self.sampler.follow(sampler);
        self.prefix.clear();
        self.prefix.extend_from_slice(view);
        let mut history = all.to_vec();
        for _ in 0..n {
            match self.next(&history) {
                Ok(id) => {
                    self.prefix.push(id);
                    history.push(id);
                    if ends.contains(&id) {
                        break;
                    }
                }
                Err(_) => {
                    // Whatever it is, the answer does not need it.
                    self.failed = true;
                    break;
                }
            }
        }
        self.prefix.split_off(view.len())
    }

    fn next(&mut self, history: &[u32]) -> Result<u32, Error> {
        let advance = self
            .session
            .advance(&self.prefix, &mut |_| Flow::Continue)?;
        self.sampler.sample(&advance.logits, history)
    }
}

/// Refuses a helper whose tokens are not those of the model that it is to help.
///
/// `vocab` and `helper_vocab`: rows of logits that the models give.
pub(crate) fn check_vocabulary(
    tokenizer: &Tokenizer,
    vocab: usize,
    helper: &Tokenizer,
    helper_vocab: usize,
) -> Result<(), Error> {
    let used = vocab.min(tokenizer.len());
    let differ = |what: String| Err(Error::DraftVocabulary { what });
    let there = helper_vocab.min(helper.len());
    if helper.len() != tokenizer.len() || there < used {
        return differ(format!(
            "it has {there} tokens, and the model {}",
            tokenizer.len()
        ));
    }
    let ids = (0..used).map_while(|id| u32::try_from(id).ok());
    for id in ids {
        let (own, its) = (tokenizer.piece(id), helper.piece(id));
        if own != its || tokenizer.is_special(id) != helper.is_special(id) {
            let show = |piece: Option<std::borrow::Cow<'_, [u8]>>| {
                String::from_utf8_lossy(&piece.unwrap_or_default()).into_owned()
            };
            return differ(format!(
                "its token {id} is {:?}, and the model's {:?}",
                show(its),
                show(own)
            ));
        }
    }
    Ok(())
}

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
const HELPER: usize = TRACKS - 1;

/// What is believed before anything is known. Only the first guesses of an answer follow from it.
const PRIOR: [f64; TRACKS] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.7];

fn track(found: Match) -> usize {
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
struct Best {
    tokens: usize,
    /// Tokens in the time of one without guesses.
    gain: f64,
}

impl Best {
    const NONE: Best = Best {
        tokens: 0,
        gain: 1.0,
    };
}

/// Whether guessing pays: how often guesses are right, against what further rows in a pass cost.
///
/// With the share `p` of right guesses, a pass with `k` of them yields `1 + p + .. + p^k` tokens
/// and takes as long as `1 + k * (row + draft)` passes with none. `k` is where the quotient is
/// greatest; 0 if no `k` beats one token a pass by [`MARGIN`].
#[derive(Debug)]
struct Pace {
    speculation: Speculation,
    tracks: [Track; TRACKS],
    /// Seconds of a pass with one row; 0: not known yet.
    single: f64,
    /// Cost of a further row, and of a token that the helper guesses, in passes with one row.
    row: f64,
    draft: f64,
}

/// Weight of the newest of many observations.
const RATE: f64 = 0.1;
/// What a further row is believed to cost at first.
const ROW: f64 = 0.25;
/// And a token of the helper.
const DRAFT: f64 = 0.2;
/// Expected gains below this are noise.
const MARGIN: f64 = 1.05;
/// After so many passes without it, the helper has another chance.
const PROBE: u32 = 64;

impl Pace {
    fn new(speculation: Speculation) -> Pace {
        Pace {
            speculation,
            tracks: PRIOR.map(|likely| Track { likely, skipped: 0 }),
            single: 0.0,
            row: ROW,
            draft: DRAFT,
        }
    }

    fn best(&self, track: usize, most: usize) -> Best {
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
    fn best_or_probe(&mut self, track: usize, most: usize) -> Best {
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

    fn tried(&mut self, track: usize, right: bool) {
        blend(&mut self.tracks[track].likely, f64::from(u8::from(right)));
    }

    fn passed(&mut self, rows: usize, time: Duration) {
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

    fn drafted(&mut self, tokens: usize, time: Duration) {
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
            always: false,
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
