//! One answer in the making: what happens to rows of logits, wherever they come from.
//!
//! Row by row: sampler, streaming decoder, stop strings, one event per token. Who computes the
//! rows, alone ([`crate::Session::generate`]) or among others ([`crate::Scheduler`]), does not
//! matter here, and so not to the text.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use model::Config;
use text::{Decoder, Special, Tokenizer};

use crate::dry::Breakers;
use crate::error::Error;
use crate::generate::{Event, FinishReason, GenerateParams, Generation, Timings, Usage};
use crate::helper::{Shadow, Wish};
use crate::params::SamplerParams;
use crate::sampler::Sampler;
use crate::score::TokenLogprob;
use crate::session::Flow;
use crate::speculate::{Drafts, Speculator};
use crate::stop::StopStrings;

/// What an answer works with. Making it checks all parameters, before anything runs.
#[derive(Debug)]
pub(crate) struct Tools {
    params: GenerateParams,
    sampler: Sampler,
    stops: StopStrings,
    eog: HashSet<u32>,
}

impl Tools {
    /// # Errors
    /// [`Error::Parameter`] and [`Error::UnknownToken`] for parameters that cannot be.
    pub(crate) fn new(
        config: &Config,
        tokenizer: &Tokenizer,
        params: GenerateParams,
        context: usize,
    ) -> Result<Tools, Error> {
        check_shift(params.shift, context)?;
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
        Ok(Tools {
            sampler: Sampler::new(sampler, vocab, params.choice, breakers)?,
            stops: StopStrings::new(&params.stop)?,
            eog,
            params,
        })
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
#[derive(Debug)]
pub(crate) struct Answer<'t> {
    params: GenerateParams,
    sampler: Sampler,
    decoder: Decoder<'t>,
    stops: StopStrings,
    eog: HashSet<u32>,
    drafts: Drafts,
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
#[derive(Debug)]
struct Clock {
    start: Instant,
    prompt: Option<Duration>,
    first_token: Option<Duration>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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

impl<'t> Answer<'t> {
    /// An answer to `prompt`, of which nothing is read yet. Its clock runs from `start` on.
    pub(crate) fn new(
        tokenizer: &'t Tokenizer,
        prompt: &[u32],
        tools: Tools,
        start: Instant,
    ) -> Answer<'t> {
        Answer {
            sampler: tools.sampler,
            decoder: Decoder::after(tokenizer, prompt),
            stops: tools.stops,
            eog: tools.eog,
            drafts: Drafts::default(),
            all: prompt.to_vec(),
            view: prompt.to_vec(),
            prompt_len: prompt.len(),
            text: String::new(),
            logprobs: tools.params.logprobs.map(|_| Vec::new()),
            cached: 0,
            clock: Clock {
                start,
                prompt: None,
                first_token: None,
            },
            params: tools.params,
        }
    }

    pub(crate) fn params(&self) -> &GenerateParams {
        &self.params
    }

    /// Tokens that end the answer.
    pub(crate) fn eog(&self) -> &HashSet<u32> {
        &self.eog
    }

    /// Prompt and answer.
    pub(crate) fn all(&self) -> &[u32] {
        &self.all
    }

    /// The tokens that the model is to see.
    pub(crate) fn view(&self) -> &[u32] {
        &self.view
    }

    /// Tokens of the answer.
    pub(crate) fn generated(&self) -> usize {
        self.all.len() - self.prompt_len
    }

    /// Tokens that may still come.
    pub(crate) fn left(&self) -> usize {
        self.params.max_tokens.unwrap_or(usize::MAX) - self.generated()
    }

    /// Tokens that may be guessed: as many as could be taken besides the one that is certain.
    pub(crate) fn room_to_guess(&self, context: usize) -> usize {
        let room = context.saturating_sub(self.view.len());
        room.min(self.left()).saturating_sub(1)
    }

    /// What the draft model is asked for.
    pub(crate) fn wish<'a>(
        &'a self,
        speculator: &'a mut Speculator,
        shadow: &'a mut Shadow,
        most: usize,
    ) -> Wish<'a> {
        Wish {
            shadow,
            sampler: speculator.sampler(&self.sampler),
            all: &self.all,
            view: &self.view,
            ends: &self.eog,
            most,
        }
    }

    /// The prompt is read, `cached` tokens of it were there before.
    pub(crate) fn prompt_read(&mut self, cached: usize) {
        if self.clock.prompt.is_none() {
            self.cached = cached;
            self.clock.prompt = Some(self.clock.start.elapsed());
        }
    }

    /// What it has guessed so far.
    pub(crate) fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// So many tokens were run as guesses.
    pub(crate) fn drafted(&mut self, tokens: usize) {
        self.drafts.drafted += tokens;
    }

    /// Draws from one row of `vocab` logits after the other while what was drawn is what was
    /// guessed. The first row is the one after the view.
    pub(crate) fn walk(
        &mut self,
        rows: &[f32],
        vocab: usize,
        guess: &[u32],
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<Option<End>, Error> {
        // One row fewer is guessed than there are.
        let mut guess = guess.iter().take((rows.len() / vocab).saturating_sub(1));
        for logits in rows.chunks_exact(vocab) {
            if self.left() == 0 {
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
            if self.left() == 0 {
                return Ok(Some(End::MaxTokens));
            }
            if guessed != Some(&id) {
                break;
            }
        }
        Ok(None)
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

    /// Before the next row: shifts a full context, or says that it is the end.
    pub(crate) fn make_room(
        &mut self,
        context: usize,
        on: &mut dyn FnMut(Event) -> Flow,
    ) -> Result<Option<End>, Error> {
        if self.view.len() < context {
            return Ok(None);
        }
        let Some(keep) = self.params.shift else {
            return Ok(Some(End::ContextFull));
        };
        let of = self.view.len();
        self.view = shifted(&self.view, keep);
        let kept = self.view.len();
        stop_if(on(Event::Shift { kept, of }))?;
        Ok(None)
    }

    /// Releases what was held back, and sums up.
    pub(crate) fn finish(mut self, mut end: End, on: &mut dyn FnMut(Event) -> Flow) -> Generation {
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
        Generation {
            timings: self.clock.timings(&usage),
            ids,
            text: self.text,
            finish_reason: end.reason(),
            context_full: end == End::ContextFull,
            usage,
            drafts: self.drafts,
            logprobs: self.logprobs,
        }
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
        let prompt_ms = self.prompt.map_or(0.0, ms);
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
            prompt: Some(Duration::from_millis(500)),
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
