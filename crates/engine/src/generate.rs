//! From a prompt to an answer, token by token.
//!
//! [`Session::generate`] runs the loop: rows of logits from the session, and what becomes of them
//! in `answer`. Why it ended is always said; running out of context is never silent.
//!
//! A pass through the model gives the row after the newest token and the rows after tokens that
//! were guessed to follow it ([`crate::speculate`]). The loop takes one row after the other, as if
//! each had come from a pass of its own, until the sampler draws something else than was guessed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use text::Tokenizer;

use crate::answer::{Answer, End, Tools};
use crate::error::Error;
use crate::params::SamplerParams;
use crate::score::TokenLogprob;
use crate::session::{Draft, Flow, Progress, Session};
use crate::speculate::{Drafts, Guess, Speculation, Speculator};

/// What is asked of one answer.
#[derive(Clone, Debug, Default)]
pub struct GenerateParams {
    /// How tokens are chosen.
    pub sampler: SamplerParams,
    /// Which of several answers to one prompt this is: each draws its own random numbers.
    pub choice: u64,
    /// Most tokens to generate; `None`: until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer; none of them appears in its text.
    pub stop: Vec<String>,
    /// Report the log-probability of each token and of this many rivals.
    pub logprobs: Option<usize>,
    /// More tokens that end the answer, besides those of the tokenizer and of the model's
    /// configuration (see [`crate::eog_from_generation_config`]).
    pub eog: Vec<u32>,
    /// Never end by a token: those that would are banned from being chosen.
    pub ignore_eos: bool,
    /// When the context is full: keep this many tokens at the front and the newer half of the
    /// others, and go on. `None`: end with [`FinishReason::Length`].
    pub shift: Option<usize>,
    /// Guess tokens ahead, from the text so far or with the session's draft model
    /// ([`Session::set_draft`]). The answer is the same, only the time that it takes changes.
    pub speculate: Speculation,
    /// Another thread may set this to stop the answer before the next pass through the model.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// What happens while an answer is made. The texts of all events, joined, are the answer's text.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A part of the prompt is about to run.
    Prompt(Progress),
    /// A token was chosen.
    Token {
        /// The token.
        id: u32,
        /// The text that can be shown now. Empty while a character is incomplete or the text may
        /// be the beginning of a stop string, and for tokens that end the answer.
        text: &'a str,
        /// If asked for.
        logprob: Option<&'a TokenLogprob>,
    },
    /// Text that was held back, released at the end of the answer.
    Text(&'a str),
    /// The context was full: the model now sees `kept` of its `of` tokens.
    Shift {
        /// Tokens that stay.
        kept: usize,
        /// Tokens that there were.
        of: usize,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A token that ends the generation, or a stop string.
    Stop,
    /// As many tokens as were allowed, or as the context holds.
    Length,
    /// The caller stopped it.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// Tokens that an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: usize,
    /// Generated, with the token that ended the answer.
    pub completion_tokens: usize,
    /// Of the prompt, already in the cache.
    pub cached_tokens: usize,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Reading the prompt, in milliseconds.
    pub prompt_ms: f64,
    /// From the call to the first token, in milliseconds; 0 if there was none.
    pub first_token_ms: f64,
    /// From the first token to the end, in milliseconds.
    pub decode_ms: f64,
    /// Prompt tokens run (not those from the cache) per second.
    pub prompt_per_second: f64,
    /// Tokens after the first per second; 0 if there were none.
    pub decode_per_second: f64,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens, with the one that ended the answer.
    pub ids: Vec<u32>,
    /// Their text, without the stop string. When cancelled: what was emitted.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Whether it ended because the context was full.
    pub context_full: bool,
    /// Tokens that it took.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Tokens that were guessed ahead.
    pub drafts: Drafts,
    /// One per token, if asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

impl Session {
    /// Generates an answer to `prompt` (with BOS, if the model wants one).
    ///
    /// `on` sees every event and may stop the answer: before any pass through the model and after
    /// any token.
    ///
    /// Prompt and answer together never take more than the context. The sampler's position and
    /// its windows (penalties, DRY) go over all tokens, whatever a shift has dropped.
    ///
    /// # Errors
    /// [`Error::Parameter`] for parameters out of range; [`Error::EmptyPrompt`];
    /// [`Error::ContextFull`] if the prompt leaves no room for a token; the model's and the
    /// tokenizer's.
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        params: &GenerateParams,
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<Generation, Error> {
        let room = prompt.len().saturating_add(1);
        if room > self.context() {
            return Err(Error::ContextFull {
                needed: room,
                context: self.context(),
            });
        }
        let config = &self.weights().config;
        let tools = Tools::new(config, tokenizer, params.clone(), self.context())?;
        // Out of the session, so that both can be used at once.
        let mut draft = self.take_draft();
        if let Some(draft) = &mut draft {
            draft.shadow.restart();
        }
        let run = Run {
            answer: Answer::new(tokenizer, prompt, tools, Instant::now()),
            session: self,
            speculator: Speculator::new(params.speculate),
            draft: draft.as_deref_mut(),
        };
        let made = run.finish(on);
        self.put_draft(draft);
        made
    }
}

/// An answer and the session that computes its rows.
struct Run<'s> {
    answer: Answer<'s>,
    session: &'s mut Session,
    speculator: Speculator,
    draft: Option<&'s mut Draft>,
}

impl Run<'_> {
    fn finish(mut self, on: &mut dyn FnMut(Event) -> Flow) -> Result<Generation, Error> {
        match self.steps(on) {
            Ok(end) => Ok(self.answer.finish(end, on)),
            Err(Error::Cancelled) => Ok(self.answer.finish(End::Cancelled, on)),
            Err(error) => Err(error),
        }
    }

    /// The loop. Every way out says why.
    fn steps(&mut self, on: &mut dyn FnMut(Event) -> Flow) -> Result<End, Error> {
        let vocab = self.session.weights().config.vocab;
        loop {
            let guess = self.guess();
            let start = Instant::now();
            let rows = self.next_rows(guess.ids(), on)?;
            let time = start.elapsed();
            let answer = &mut self.answer;
            let (before, seen) = (answer.all().len(), answer.view().len());
            let first = answer.generated() == 0;
            let end = answer.walk(&rows, vocab, guess.ids(), on);
            // Rows behind a wrong guess, or behind the end, are forgotten.
            self.session.truncate(seen.max(answer.view().len() - 1));
            if !first {
                let drawn = &answer.all()[before..];
                self.speculator.learn(&guess, drawn, Some(time));
            }
            if let Some(end) = end? {
                return Ok(end);
            }
            if let Some(end) = answer.make_room(self.session.context(), on)? {
                return Ok(end);
            }
        }
    }

    /// Tokens that may follow.
    fn guess(&mut self) -> Guess {
        let (answer, speculator) = (&self.answer, &mut self.speculator);
        // The prompt is still to be read, or read anew after a shift.
        if answer.generated() == 0 || self.session.held().len() + 1 != answer.view().len() {
            return Guess::default();
        }
        let room = answer.room_to_guess(self.session.context());
        let draft = self.draft.as_deref_mut().filter(|d| d.shadow.is_well());
        let mut guess = speculator.guess(answer.all(), room, answer.eog(), draft.is_some());
        if let (Some(Draft { helper, shadow }), 1..) = (draft, guess.wanted()) {
            let start = Instant::now();
            // What it has not read yet is read once: no measure of what a guess costs.
            let in_step = shadow.len() + guess.wanted() >= answer.view().len();
            let wish = answer.wish(speculator, shadow, guess.wanted());
            let ids = helper.guess(&mut [wish], usize::MAX).pop();
            guess.put(ids.unwrap_or_default());
            if in_step {
                let pace = speculator.pace();
                pace.drafted(guess.ids().len(), start.elapsed());
            }
        }
        guess
    }

    /// The rows after the view and after each guessed token.
    fn next_rows(
        &mut self,
        guess: &[u32],
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<model::Logits, Error> {
        let reading_prompt = self.answer.generated() == 0;
        let cancel = self.answer.params().cancel.as_deref();
        let mut before_pass = |progress| {
            if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                Flow::Stop
            } else if reading_prompt {
                on(Event::Prompt(progress))
            } else {
                Flow::Continue
            }
        };
        let advance = self
            .session
            .advance_guessing(self.answer.view(), guess, &mut before_pass)?;
        self.answer.drafted(advance.rows - 1);
        self.answer.prompt_read(advance.cached);
        Ok(advance.logits)
    }
}
