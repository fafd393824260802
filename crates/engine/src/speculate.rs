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
//! Two drafters: [`Lookup`] quotes the text so far, [`crate::helper`] is a smaller model. The
//! smaller model draws with the same sampler and the same random numbers: where the models agree
//! on the distribution they draw the same token, at any temperature.
//!
//! Whether guessing pays is learned while it runs ([`Pace`]).

use std::collections::HashSet;
use std::time::Duration;

use crate::lookup::{self, Lookup};
use crate::pace::{Best, HELPER, Pace, track};
use crate::sampler::Sampler;

/// Whether and how far to guess ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Most tokens to guess at a time; 0: none.
    pub most: usize,
    /// Who guesses.
    pub by: Drafter,
    /// Guess as many whenever there is anything to guess, instead of only where it pays: for
    /// tests, which want the same guesses every time.
    pub always: bool,
}

/// Who guesses tokens ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafter {
    /// Whoever is expected to gain more.
    #[default]
    Any,
    /// The text so far.
    Text,
    /// The draft model.
    Model,
}

impl Speculation {
    /// How many to guess at a time where nobody says.
    pub const MOST: usize = 8;

    /// The names that [`Speculation::named`] knows.
    pub const NAMES: [&str; 4] = ["auto", "off", "ngram", "draft"];

    /// What a name asks for, with as many tokens at a time as here; `None` for an unknown one.
    pub fn named(self, name: &str) -> Option<Speculation> {
        let by = |by| Speculation { by, ..self };
        match name {
            "auto" => Some(by(Drafter::Any)),
            "ngram" => Some(by(Drafter::Text)),
            "draft" => Some(by(Drafter::Model)),
            "off" => Some(Speculation { most: 0, ..self }),
            _ => None,
        }
    }
}

/// Tokens that were guessed ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Run through the model as guesses.
    pub drafted: usize,
    /// Of these, the ones that the sampler drew.
    pub accepted: usize,
}

impl Drafts {
    /// What came since then.
    pub(crate) fn since(self, then: Drafts) -> Drafts {
        Drafts {
            drafted: self.drafted - then.drafted,
            accepted: self.accepted - then.accepted,
        }
    }
}

/// What comes next, perhaps.
#[derive(Debug, Default)]
pub(crate) struct Guess {
    /// Tokens in order. A prediction that is not to be run holds one, to learn from.
    ids: Vec<u32>,
    /// How many of them are worth running.
    run: usize,
    /// So many are to come from the draft model.
    wanted: usize,
    /// Index of what is learned from it.
    track: Option<usize>,
}

impl Guess {
    /// The tokens to run.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids[..self.run]
    }

    /// Tokens that the draft model is to guess.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The draft model has guessed these.
    pub(crate) fn put(&mut self, ids: Vec<u32>) {
        self.run = ids.len();
        (self.ids, self.wanted) = (ids, 0);
    }

    /// At most so many of them are run.
    pub(crate) fn cut(&mut self, most: usize) {
        if self.run > most {
            match most {
                0 => self.skip(),
                _ => {
                    self.ids.truncate(most);
                    self.run = most;
                }
            }
        }
    }

    /// None of it is run after all.
    pub(crate) fn skip(&mut self) {
        self.ids.truncate(1);
        self.run = 0;
    }
}

/// Makes guesses for one answer and learns how good they are.
#[derive(Debug)]
pub(crate) struct Speculator {
    lookup: Lookup,
    pace: Pace,
    /// The answer's sampler, but for mirostat's state, which follows: for the draft model.
    sampler: Option<Sampler>,
}

impl Speculator {
    pub(crate) fn new(speculation: Speculation) -> Speculator {
        Speculator {
            lookup: Lookup::default(),
            pace: Pace::new(speculation),
            sampler: None,
        }
    }

    /// What learns whether it pays.
    pub(crate) fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// The sampler that the draft model draws with: the answer's own, in its present state.
    pub(crate) fn sampler(&mut self, own: &Sampler) -> &mut Sampler {
        let sampler = self.sampler.get_or_insert_with(|| own.clone());
        sampler.follow(own);
        sampler
    }

    /// Guesses at most `room` tokens that follow `all`, or how many the draft model is to guess if
    /// there is one that can. Nothing follows a token of `ends`.
    pub(crate) fn guess(
        &mut self,
        all: &[u32],
        room: usize,
        ends: &HashSet<u32>,
        helper: bool,
    ) -> Guess {
        let Speculation { most, by, .. } = self.pace.speculation;
        let most = most.min(room);
        if most == 0 {
            return Guess::default();
        }
        let mut found = None;
        if by != Drafter::Model {
            self.lookup.extend(all);
            found = self.lookup.find(all).map(|m| (m, track(m)));
        }
        let quote = found.map_or(Best::NONE, |(_, track)| self.pace.best(track, most));
        let helped = match helper && by != Drafter::Text {
            true => self.pace.best_or_probe(HELPER, most),
            false => Best::NONE,
        };
        if helped.tokens > 0 && (quote.tokens == 0 || helped.gain > quote.gain) {
            return Guess {
                wanted: helped.tokens,
                track: Some(HELPER),
                ..Guess::default()
            };
        }
        let Some((found, track)) = found else {
            return Guess::default();
        };
        // Without a run: one token, to see whether it would have been right.
        let mut ids = lookup::continuation(all, found, quote.tokens.max(1));
        if let Some(end) = ids.iter().position(|id| ends.contains(id)) {
            ids.truncate(end + 1);
        }
        Guess {
            run: quote.tokens.min(ids.len()),
            wanted: 0,
            ids,
            track: Some(track),
        }
    }

    /// Learns from a pass: which tokens were `drawn` from its rows, and how long it took, if it
    /// was of this answer alone.
    pub(crate) fn learn(&mut self, guess: &Guess, drawn: &[u32], time: Option<Duration>) {
        if let Some(time) = time {
            self.pace.passed(1 + guess.run, time);
        }
        let Some(track) = guess.track else { return };
        for (guessed, drawn) in guess.ids.iter().zip(drawn) {
            self.pace.tried(track, guessed == drawn);
            if guessed != drawn {
                break;
            }
        }
    }
}
