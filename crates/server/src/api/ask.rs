//! Requests to the engine, and what they used.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine::{
    Drafts, FinishReason, GenerateParams, Generation, Miss, Replies, Request, Root, Start, Update,
    Want,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::adapters::Chosen;
use super::params::{Asked, priority};
use super::{Call, Model};
use crate::error::{ApiError, Kind};
use crate::metrics::Metric;
use crate::principal::Principal;
use crate::state::{Held, State};

/// Most choices of one request: prompts times answers.
const MOST_CHOICES: usize = 128;

/// Counts what a choice uses, also if its client walks away.
pub(crate) struct Tally {
    pub(crate) state: State,
    pub(crate) who: Principal,
    pub(crate) model: Arc<Model>,
    /// Names of the adapters that it chose; empty: none.
    pub(crate) adapter: String,
    /// Of a prompt, once; 0 for its further answers.
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
    /// Its text so far, if it is kept.
    pub(crate) said: Option<String>,
    /// What is held for it until it has ended.
    pub(crate) held: Option<Held>,
}

impl Drop for Tally {
    fn drop(&mut self) {
        let said = self.said.take().filter(|said| !said.is_empty());
        let said = said.map(|said| format!("\nassistant: {said}"));
        let (id, adapter) = (&self.model.id, &self.adapter);
        let (prompt, completion) = (self.prompt, self.completion);
        self.state
            .account(&self.who, id, adapter, prompt, completion, said);
    }
}

impl Tally {
    fn say(&mut self, text: &str) {
        if let Some(said) = &mut self.said {
            said.push_str(text);
        }
    }
}

/// One answer that is being made.
pub(crate) struct Choice {
    pub(crate) index: usize,
    pub(crate) replies: Replies,
    pub(crate) tally: Tally,
    /// The prompt's tokens, for one of its answers: what never ran costs nothing.
    bill: u64,
    pub(crate) prompt_tokens: usize,
}

impl Choice {
    /// The next update, counted.
    pub(crate) async fn next(&mut self) -> Result<Update, ApiError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`Choice::next`], for whoever is polled.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Update, ApiError>> {
        self.replies
            .poll_next(context)
            .map(|update| self.counted(update))
    }

    fn counted(&mut self, update: Option<Update>) -> Result<Update, ApiError> {
        if let Some(Update::Started(_)) = &update {
            self.tally.prompt = self.bill;
        }
        let id = &self.tally.model.id;
        let metrics = self.tally.state.metrics();
        match &update {
            None => {
                if !self.tally.model.scheduler.is_alive() {
                    self.tally.state.engine_stopped();
                }
                return Err(engine::Error::Stopped.into());
            }
            // An answer that was given up must not look like a whole one.
            Some(Update::Done(g)) if g.finish_reason == FinishReason::Cancelled => {
                return Err(ApiError::new(
                    Kind::Slow,
                    "the answer was given up: nobody took it",
                ));
            }
            Some(Update::Started(start)) => {
                metrics.observe(Metric::QueueTime, &[id], start.queued.as_secs_f64());
                let looked = self.prompt_tokens as u64;
                metrics.add(Metric::PrefixTokensLooked, &[id], looked);
                metrics.add(Metric::PrefixTokensHit, &[id], start.cached as u64);
            }
            Some(Update::Token { text, .. }) => {
                self.tally.completion += 1;
                self.tally.say(text);
            }
            Some(Update::Text(text)) => self.tally.say(text),
            Some(Update::Done(generation)) => observe(&self.tally, generation),
            Some(_) => {}
        }
        match update {
            Some(Update::Failed(error)) => Err(error.into()),
            Some(update) => Ok(update),
            None => Err(engine::Error::Stopped.into()),
        }
    }

    /// Waits for the whole answer.
    async fn whole(mut self) -> Result<(usize, Given), ApiError> {
        let mut start = None;
        loop {
            match self.next().await? {
                Update::Started(s) => start = Some(s),
                Update::Done(generation) => {
                    let given = Given {
                        generation: *generation,
                        start,
                        prompt_tokens: self.prompt_tokens,
                    };
                    return Ok((self.index, given));
                }
                _ => {}
            }
        }
    }
}

fn observe(tally: &Tally, generation: &Generation) {
    let (metrics, id) = (tally.state.metrics(), &tally.model.id);
    let t = &generation.timings;
    metrics.observe(Metric::TimeToFirstToken, &[id], t.first_token_ms / 1e3);
}

/// An answer, and how it began.
pub(crate) struct Given {
    pub(crate) generation: Generation,
    pub(crate) start: Option<Start>,
    pub(crate) prompt_tokens: usize,
}

/// What a request used, over all its choices.
#[derive(Default)]
pub(crate) struct Used {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
    pub(crate) drafts: Drafts,
    pub(crate) miss: Option<Miss>,
}

impl Used {
    /// One more choice; the first of its prompt counts the prompt.
    pub(crate) fn add(
        &mut self,
        first: bool,
        prompt: usize,
        generation: &Generation,
        start: Option<Start>,
    ) {
        self.completion += generation.ids.len();
        self.drafts.drafted += generation.drafts.drafted;
        self.drafts.accepted += generation.drafts.accepted;
        if first {
            self.prompt += prompt;
            self.cached += start.map_or(0, |s| s.cached);
            self.miss = self.miss.or(start.and_then(|s| s.miss));
        }
    }

    pub(crate) fn json(&self) -> Value {
        let mut details = json!({ "cached_tokens": self.cached });
        if let Some(miss) = self.miss {
            details["cache_miss"] = json!({ "at": miss.at, "why": miss.why.name() });
        }
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": details,
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.drafts.accepted,
                "rejected_prediction_tokens": self.drafts.drafted - self.drafts.accepted,
            },
        })
    }
}

/// The tokens that a request may use, held: its prompts, and as many of its answers as it asks for,
/// or, where it does not say, as its key has left. Beside them the most tokens of each prompt's
/// answers.
fn hold(
    call: &Call,
    model: &Model,
    prompts: &[Vec<u32>],
    asked: &Asked,
) -> Result<(Held, Vec<usize>), ApiError> {
    let context = model.scheduler.params().context;
    if let Some(long) = prompts.iter().find(|prompt| prompt.len() >= context) {
        let needed = long.len() + 1;
        return Err(engine::Error::ContextFull { needed, context }.into());
    }
    let limits = prompts.iter().map(|prompt| {
        let room = context - prompt.len();
        asked.params.max_tokens.map_or(room, |most| most.min(room))
    });
    let mut limits: Vec<usize> = limits.collect();
    let read: usize = prompts.iter().map(Vec::len).sum();
    let all = |limits: &[usize]| (read + asked.n * limits.iter().sum::<usize>()) as u64;
    let most = all(&limits);
    let least = match asked.params.max_tokens {
        Some(_) => most,
        None => all(&vec![1; limits.len()]),
    };
    let held = call.state.hold(&call.who, least, most)?;
    if held.tokens() < most {
        let spare = usize::try_from(held.tokens())
            .unwrap_or(usize::MAX)
            .saturating_sub(read);
        let each = spare / (asked.n * prompts.len()).max(1);
        limits
            .iter_mut()
            .for_each(|limit| *limit = each.min(*limit));
    }
    Ok((held, limits))
}

/// Refuses too many choices.
pub(crate) fn few(prompts: usize, n: usize) -> Result<(), ApiError> {
    if prompts.saturating_mul(n) > MOST_CHOICES {
        let what = format!("prompts times n may be {MOST_CHOICES} at most");
        return Err(ApiError::new(Kind::Invalid, what).param("n"));
    }
    Ok(())
}

/// Puts all choices of a request in line.
pub(crate) fn submit(
    call: &Call,
    model: &Arc<Model>,
    prompts: &[Vec<u32>],
    asked: &Asked,
) -> Result<Vec<Choice>, ApiError> {
    few(prompts.len(), asked.n)?;
    let (mut held, limits) = hold(call, model, prompts, asked)?;
    let (priority, deadline) = (priority(call)?, call.deadline()?);
    let mut choices = Vec::new();
    for (prompt, limit) in prompts.iter().zip(limits) {
        for choice in 0..asked.n {
            let params = GenerateParams {
                choice: choice as u64,
                max_tokens: Some(limit),
                ..asked.params.clone()
            };
            let replies = model.scheduler.submit(Request {
                prompt: prompt.clone(),
                want: Want::Answer(Box::new(params)),
                root: Root {
                    common: asked.common,
                    ..root(call, &asked.chosen, &asked.salt)
                },
                priority,
                deadline,
            })?;
            let bill = if choice == 0 { prompt.len() as u64 } else { 0 };
            let mut tally = tally(call, model, &asked.chosen);
            tally.held = Some(held.part(bill + limit as u64));
            choices.push(Choice {
                index: choices.len(),
                replies,
                tally,
                bill,
                prompt_tokens: prompt.len(),
            });
        }
    }
    Ok(choices)
}

/// Cached beginnings are a tenant's own.
fn root(call: &Call, chosen: &Chosen, salt: &str) -> Root {
    Root {
        scope: call.who.key.to_string(),
        salt: salt.to_owned(),
        adaptation: chosen.adaptation.clone(),
        common: 0,
    }
}

fn tally(call: &Call, model: &Arc<Model>, chosen: &Chosen) -> Tally {
    Tally {
        state: call.state.clone(),
        who: call.who.clone(),
        model: model.clone(),
        adapter: chosen.name.clone(),
        prompt: 0,
        completion: 0,
        said: call.state.settings().audit_content.then(String::new),
        held: None,
    }
}

/// Most of a request's texts that stand in line or run at once.
const AT_ONCE: usize = 32;

/// Runs what is answered with one update, a few at a time, so that a request of many texts does not
/// fill the line. Returns the last update of each, in their order. `bill`: whether their tokens are
/// counted here.
pub(crate) async fn each(
    call: &Call,
    model: &Arc<Model>,
    chosen: &Chosen,
    jobs: Vec<(Vec<u32>, Want)>,
    bill: bool,
) -> Result<Vec<Update>, ApiError> {
    let context = model.scheduler.params().context;
    let longest = jobs.iter().map(|(prompt, _)| prompt.len()).max();
    if let Some(needed) = longest.filter(|n| *n > context) {
        // Before any of them runs.
        return Err(engine::Error::ContextFull { needed, context }.into());
    }
    let (priority, deadline) = (priority(call)?, call.deadline()?);
    let tokens: usize = jobs.iter().map(|(prompt, _)| prompt.len()).sum();
    let mut held = call.state.hold(&call.who, tokens as u64, tokens as u64)?;
    let (mut jobs, mut running, mut done) = (jobs.into_iter(), VecDeque::new(), Vec::new());
    loop {
        while running.len() < AT_ONCE
            && let Some((prompt, want)) = jobs.next()
        {
            let tokens = prompt.len() as u64;
            let replies = model.scheduler.submit(Request {
                prompt,
                want,
                root: root(call, chosen, ""),
                priority,
                deadline,
            })?;
            let mut tally = tally(call, model, chosen);
            tally.held = Some(held.part(tokens));
            running.push_back((replies, tally, tokens));
        }
        let Some((mut replies, mut tally, tokens)) = running.pop_front() else {
            return Ok(done);
        };
        done.push(loop {
            match replies.next().await {
                // What never ran costs nothing.
                Some(Update::Started(_)) => tally.prompt = if bill { tokens } else { 0 },
                Some(Update::Failed(error)) => return Err(error.into()),
                Some(update) => break update,
                None => return Err(engine::Error::Stopped.into()),
            }
        });
    }
}

/// Waits for all answers; they are cancelled if nobody waits any more, or one fails.
pub(crate) async fn whole(choices: Vec<Choice>) -> Result<Vec<Given>, ApiError> {
    let mut tasks = JoinSet::new();
    for choice in choices {
        tasks.spawn(choice.whole());
    }
    let mut given = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let bug = |_| ApiError::new(Kind::Internal, "the server met a bug; its log says more");
        given.push(joined.map_err(bug)??);
    }
    given.sort_by_key(|(index, _)| *index);
    Ok(given.into_iter().map(|(_, given)| given).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request's answer, of nobody in particular.
    pub(crate) fn choice(
        index: usize,
        replies: Replies,
        state: &State,
        model: &Arc<Model>,
    ) -> Choice {
        let tally = Tally {
            state: state.clone(),
            who: Principal {
                key: "local".into(),
                name: "local".into(),
                scopes: Vec::new(),
                quotas: crate::principal::Quotas::default(),
                request: Arc::new(crate::request::Tracked {
                    id: "req-1".into(),
                    at: 0,
                    route: "/v1/completions".into(),
                    notes: std::sync::Mutex::default(),
                }),
            },
            model: model.clone(),
            adapter: String::new(),
            prompt: 0,
            completion: 0,
            said: None,
            held: None,
        };
        Choice {
            index,
            replies,
            tally,
            bill: 0,
            prompt_tokens: 0,
        }
    }
}
