//! From a prompt to an answer, token by token.
//!
//! [`Session::generate`] runs the loop: logits, sampler, streaming decoder, stop strings, one
//! event per token. Why it ended is always said; running out of context is never silent.
//!
//! A pass through the model gives the row after the newest token and the rows after tokens that
//! were guessed to follow it ([`crate::speculate`]). The loop takes one row after the other, as if
//! each had come from a pass of its own, until the sampler draws something else than was guessed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use text::{Decoder, Special, Tokenizer};

use crate::dry::Breakers;
use crate::error::Error;
use crate::params::SamplerParams;
use crate::sampler::Sampler;
use crate::score::TokenLogprob;
use crate::session::{Flow, Progress, Session};
use crate::speculate::{Drafts, Guess, Speculation, Speculator};
use crate::stop::StopStrings;

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
        check_shift(params.shift, self.context())?;
        // Out of the session, so that both can be used at once.
        let mut draft = self.take_draft();
        let run = Run::new(self, tokenizer, prompt, params, draft.as_deref_mut());
        let made = run.and_then(|run| run.finish(on));
        self.put_draft(draft);
        made
    }
}

fn check_shift(shift: Option<usize>, context: usize) -> Result<(), Error> {
    // At least one of the newest tokens must stay besides, and one place must become free.
    match shift {
        Some(keep) if keep + 2 > context => Err(Error::Parameter {
            field: "shift",
            value: keep.to_string(),
            range: format!(
                "at most {}, 2 less than the context",
                context.saturating_sub(2)
            ),
        }),
        _ => Ok(()),
    }
}

/// The tokens that stay when a full context is shifted: the first `keep` and the newer half of
/// the others.
fn shifted(view: &[u32], keep: usize) -> Vec<u32> {
    let newest = (view.len() - keep) / 2;
    [&view[..keep], &view[view.len() - newest..]].concat()
}

/// One answer in the making.
struct Run<'s> {
    session: &'s mut Session,
    params: &'s GenerateParams,
    sampler: Sampler,
    speculator: Speculator<'s>,
    drafts: Drafts,
    decoder: Decoder<'s>,
    stops: StopStrings,
    eog: HashSet<u32>,
    /// Prompt and answer.
    all: Vec<u32>,
    /// What the model sees of them: the same until a shift.
    view: Vec<u32>,
    prompt_len: usize,
    text: String,
    logprobs: Option<Vec<TokenLogprob>>,
    cached: usize,
    clock: Clock,
}

/// When things happened.
struct Clock {
    start: Instant,
    prompt: Duration,
    first_token: Option<Duration>,
}

/// How the loop ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Token,
    StopString,
    MaxTokens,
    ContextFull,
    Cancelled,
}

impl End {
    fn reason(self) -> FinishReason {
        match self {
            End::Token | End::StopString => FinishReason::Stop,
            End::MaxTokens | End::ContextFull => FinishReason::Length,
            End::Cancelled => FinishReason::Cancelled,
        }
    }
}

impl<'s> Run<'s> {
    fn new(
        session: &'s mut Session,
        tokenizer: &'s Tokenizer,
        prompt: &[u32],
        params: &'s GenerateParams,
        draft: Option<&'s mut Session>,
    ) -> Result<Run<'s>, Error> {
        let config = &session.weights().config;
        // Rows beyond the tokenizer's vocabulary are padding: no text stands behind them.
        let vocab = config.vocab.min(tokenizer.len());
        let known = tokenizer.eog().iter().chain(&config.eos).chain(&params.eog);
        let eog: HashSet<u32> = known.copied().filter(|id| (*id as usize) < vocab).collect();
        let mut sampler = params.sampler.clone();
        if params.ignore_eos {
            let ban = eog.iter().map(|id| (*id, f32::NEG_INFINITY));
            sampler.logit_bias.extend(ban);
        }
        let breakers = breakers(&sampler, vocab, tokenizer);
        let sampler = Sampler::new(sampler, vocab, params.choice, breakers)?;
        Ok(Run {
            speculator: Speculator::new(params.speculate, draft, &sampler),
            drafts: Drafts::default(),
            sampler,
            decoder: Decoder::after(tokenizer, prompt),
            stops: StopStrings::new(&params.stop)?,
            eog,
            all: prompt.to_vec(),
            view: prompt.to_vec(),
            prompt_len: prompt.len(),
            text: String::new(),
            logprobs: params.logprobs.map(|_| Vec::new()),
            cached: 0,
            clock: Clock {
                start: Instant::now(),
                prompt: Duration::ZERO,
                first_token: None,
            },
            session,
            params,
        })
    }

    fn finish(mut self, on: &mut dyn FnMut(Event) -> Flow) -> Result<Generation, Error> {
        let mut end = match self.steps(on) {
            Ok(end) => end,
            Err(Error::Cancelled) => End::Cancelled,
            Err(error) => return Err(error),
        };
        // Behind a stop string nothing counts any more, and who cancels wants no more events.
        if !matches!(end, End::StopString | End::Cancelled) && self.release_held_text(on) {
            end = End::StopString;
        }
        let ids = self.all.split_off(self.prompt_len);
        let usage = Usage {
            prompt_tokens: self.prompt_len,
            completion_tokens: ids.len(),
            cached_tokens: self.cached,
        };
        Ok(Generation {
            timings: self.clock.timings(&usage),
            ids,
            text: self.text,
            finish_reason: end.reason(),
            context_full: end == End::ContextFull,
            usage,
            drafts: self.drafts,
            logprobs: self.logprobs,
        })
    }

    /// The loop. Every way out says why.
    fn steps(&mut self, on: &mut dyn FnMut(Event) -> Flow) -> Result<End, Error> {
        loop {
            let guess = self.guess();
            let start = Instant::now();
            let rows = self.next_rows(guess.ids(), on)?;
            let time = start.elapsed();
            let (before, seen) = (self.all.len(), self.view.len());
            let end = self.walk(&rows, guess.ids(), on);
            // Rows behind a wrong guess, or behind the end, are forgotten.
            self.session.truncate(seen.max(self.view.len() - 1));
            if before > self.prompt_len {
                self.speculator.learn(&guess, &self.all[before..], time);
            }
            if let Some(end) = end? {
                return Ok(end);
            }
            if self.view.len() >= self.session.context() {
                let Some(keep) = self.params.shift else {
                    return Ok(End::ContextFull);
                };
                let of = self.view.len();
                self.view = shifted(&self.view, keep);
                let kept = self.view.len();
                stop_if(on(Event::Shift { kept, of }))?;
            }
        }
    }

    /// Draws from one row after the other while what was drawn is what was guessed.
    fn walk(
        &mut self,
        rows: &[f32],
        guess: &[u32],
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<Option<End>, Error> {
        let vocab = self.session.weights().config.vocab;
        // One row fewer is guessed than there are.
        let mut guess = guess.iter().take((rows.len() / vocab).saturating_sub(1));
        for logits in rows.chunks_exact(vocab) {
            if self.params.max_tokens == Some(self.generated()) {
                return Ok(Some(End::MaxTokens));
            }
            let id = self.sampler.sample(logits, &self.all)?;
            self.clock
                .first_token
                .get_or_insert_with(|| self.clock.start.elapsed());
            let guessed = guess.next();
            self.drafts.accepted += usize::from(guessed == Some(&id));
            if let Some(end) = self.accept(id, logits, on)? {
                return Ok(Some(end));
            }
            if self.params.max_tokens == Some(self.generated()) {
                return Ok(Some(End::MaxTokens));
            }
            if guessed != Some(&id) {
                break;
            }
        }
        Ok(None)
    }

    /// Tokens that may follow: as many as could be taken besides the one that is certain.
    fn guess(&mut self) -> Guess {
        // The prompt is still to be read, or read anew after a shift.
        if self.generated() == 0 || self.session.held().len() + 1 != self.view.len() {
            return Guess::default();
        }
        let left = self.params.max_tokens.unwrap_or(usize::MAX) - self.generated();
        let room = self.session.context() - self.view.len();
        let room = room.min(left).saturating_sub(1);
        self.speculator
            .guess(&self.all, &self.view, &self.sampler, room, &self.eog)
    }

    fn generated(&self) -> usize {
        self.all.len() - self.prompt_len
    }

    /// The rows after the view and after each guessed token.
    fn next_rows(
        &mut self,
        guess: &[u32],
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<model::Logits, Error> {
        let reading_prompt = self.generated() == 0;
        let cancel = self.params.cancel.as_deref();
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
            .advance_guessing(&self.view, guess, &mut before_pass)?;
        self.drafts.drafted += advance.rows - 1;
        if reading_prompt {
            self.cached = advance.cached;
            self.clock.prompt = self.clock.start.elapsed();
        }
        Ok(advance.logits)
    }

    /// Takes the chosen token into the answer; says whether it was the last one.
    fn accept(
        &mut self,
        id: u32,
        logits: &[f32],
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<Option<End>, Error> {
        self.all.push(id);
        self.view.push(id);
        let logprob = self
            .params
            .logprobs
            .map(|k| TokenLogprob::new(logits, id, k));
        let ends = self.eog.contains(&id);
        let (text, stopped) = if ends {
            (String::new(), false)
        } else {
            self.stops.push(&self.decoder.push(id))
        };
        self.text += &text;
        let flow = on(Event::Token {
            id,
            text: &text,
            logprob: logprob.as_ref(),
        });
        if let (Some(list), Some(logprob)) = (&mut self.logprobs, logprob) {
            list.push(logprob);
        }
        if ends {
            return Ok(Some(End::Token));
        }
        if stopped {
            return Ok(Some(End::StopString));
        }
        stop_if(flow)?;
        Ok(None)
    }

    /// Emits what the decoder and the stop strings held back. Says whether its last bytes
    /// completed a stop string.
    fn release_held_text(&mut self, on: &mut dyn FnMut(Event) -> Flow) -> bool {
        let (mut text, stopped) = self.stops.push(&self.decoder.clone().finish());
        if !stopped {
            text += &self.stops.finish();
        }
        if !text.is_empty() {
            self.text += &text;
            // Nothing comes after it: there is nothing to stop.
            let _ = on(Event::Text(&text));
        }
        stopped
    }
}

fn stop_if(flow: Flow) -> Result<(), Error> {
    match flow {
        Flow::Continue => Ok(()),
        Flow::Stop => Err(Error::Cancelled),
    }
}

fn breakers(params: &SamplerParams, vocab: usize, tokenizer: &Tokenizer) -> Breakers {
    if params.dry_multiplier == 0.0 {
        return Breakers::default();
    }
    Breakers::new(
        &params.dry_sequence_breakers,
        vocab,
        |id| tokenizer.piece(id),
        |tail| {
            // A tail that begins inside a character is no text: it becomes tokens that never
            // follow, and that split of the breaker goes unnoticed. The error of a text that is
            // too long cannot come: tails are short.
            let tail = String::from_utf8_lossy(tail);
            tokenizer.encode(&tail, Special::Text).unwrap_or_default()
        },
    )
}

impl Clock {
    fn timings(&self, usage: &Usage) -> Timings {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let per_second = |n: usize, ms: f64| if ms > 0.0 { n as f64 * 1e3 / ms } else { 0.0 };
        let prompt_ms = ms(self.prompt);
        let decode = self
            .first_token
            .map(|first| self.start.elapsed().saturating_sub(first));
        let decode_ms = decode.map_or(0.0, ms);
        Timings {
            prompt_ms,
            first_token_ms: self.first_token.map_or(0.0, ms),
            decode_ms,
            prompt_per_second: per_second(usage.prompt_tokens - usage.cached_tokens, prompt_ms),
            decode_per_second: per_second(usage.completion_tokens.saturating_sub(1), decode_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_keeps_the_front_and_the_newer_half() {
        assert_eq!(shifted(&[1, 2, 3, 4, 5, 6, 7], 1), [1, 5, 6, 7]);
        assert_eq!(shifted(&[1, 2, 3, 4], 0), [3, 4]);
        assert_eq!(shifted(&[1, 2, 3, 4], 2), [1, 2, 4]);
        assert!(check_shift(Some(2), 4).is_ok());
        assert!(check_shift(Some(3), 4).is_err());
        assert!(check_shift(Some(0), 1).is_err());
        assert!(check_shift(None, 1).is_ok());
    }

    #[test]
    fn rates_count_only_what_ran() {
        let clock = Clock {
            start: Instant::now(),
            prompt: Duration::from_millis(500),
            first_token: Some(Duration::from_millis(510)),
        };
        let usage = Usage {
            prompt_tokens: 15,
            completion_tokens: 1,
            cached_tokens: 5,
        };
        let timings = clock.timings(&usage);
        assert_eq!(timings.prompt_per_second, 20.0);
        assert_eq!(timings.first_token_ms, 510.0);
        assert_eq!(timings.decode_per_second, 0.0);
    }
}
