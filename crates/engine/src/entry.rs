//! One request on the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model::{Chunk, ChunkOut, Rows, Seq};
use text::Tokenizer;

use crate::answer::{Answer, End};
use crate::channel::Sender;
use crate::error::Error;
use crate::fetch::Fetch;
use crate::generate::Event;
use crate::helper::{Helper, Shadow, Wish};
use crate::line::Place;
use crate::request::{Pooling, Start, Update, Want};
use crate::root::{Miss, Root};
use crate::scheduler::Job;
use crate::score::{TokenLogprob, check_finite, default_chunk, stage};
use crate::session::{Adaptation, Flow};
use crate::speculate::{Drafts, Guess, Speculation, Speculator};

/// Most updates that one row can make.
const ROOM: usize = 4;

/// A request, in line or running.
pub(crate) struct Entry<'t> {
    work: Work<'t>,
    pub(crate) root: Root,
    pub(crate) place: Place,
    deadline: Option<Instant>,
    cancel: Arc<AtomicBool>,
    updates: Sender<Update>,
    submitted: Instant,
    /// Its sequence, once it has begun; none again after it gave way to another.
    pub(crate) seq: Option<Seq>,
    /// Of its tokens, those that the sequence holds.
    pub(crate) held: usize,
    /// Tokens found in the cache when it first began.
    cached: Option<usize>,
    /// What the folder has of its beginning.
    pub(crate) fetch: Fetch,
    /// When it had its last token.
    last: Option<Instant>,
    /// Since when its receiver takes nothing.
    stalled: Option<Instant>,
    ahead: Box<Ahead>,
}

/// What an answer guesses of its own future.
struct Ahead {
    speculator: Speculator,
    /// For the next pass.
    guess: Guess,
    /// What the draft model holds of it.
    shadow: Option<Shadow>,
}

/// What came of a part of a pass.
#[derive(Default)]
pub(crate) struct Taken {
    /// How it ends, if it does.
    pub(crate) end: Option<End>,
    /// Tokens chosen.
    pub(crate) generated: usize,
    /// Tokens guessed.
    pub(crate) drafts: Drafts,
}

enum Work<'t> {
    Answer(Box<Answer<'t>>),
    Embedding {
        ids: Vec<u32>,
        pooling: Pooling,
        /// Of the rows so far.
        sum: Vec<f64>,
    },
    Score {
        ids: Vec<u32>,
        /// The first that is looked at.
        from: usize,
        top: usize,
        found: Vec<TokenLogprob>,
    },
}

impl<'t> Entry<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, job: Job, turn: u64, number: u64) -> Entry<'t> {
        let request = job.request;
        let speculation = match &request.want {
            Want::Answer(params) => params.speculate,
            Want::Embedding(_) | Want::Score { .. } => Speculation::default(),
        };
        let work = match (job.tools, request.want) {
            (Some(tools), _) => {
                let answer = Answer::new(tokenizer, &request.prompt, tools, job.submitted);
                Work::Answer(Box::new(answer))
            }
            (None, Want::Score { from, top }) => Work::Score {
                ids: request.prompt,
                from,
                top,
                found: Vec::new(),
            },
            (None, want) => Work::Embedding {
                ids: request.prompt,
                pooling: match want {
                    Want::Embedding(pooling) => pooling,
                    _ => Pooling::Last,
                },
                sum: Vec::new(),
            },
        };
        Entry {
            work,
            root: request.root,
            place: Place {
                priority: request.priority,
                turn,
                number,
                passed: 0,
            },
            deadline: request.deadline,
            cancel: job.cancel,
            updates: job.updates,
            submitted: job.submitted,
            seq: None,
            held: 0,
            cached: None,
            fetch: Fetch::default(),
            last: None,
            stalled: None,
            ahead: Box::new(Ahead {
                speculator: Speculator::new(speculation),
                guess: Guess::default(),
                shadow: None,
            }),
        }
    }

    /// The tokens that the model is to see.
    pub(crate) fn tokens(&self) -> &[u32] {
        match &self.work {
            Work::Answer(answer) => answer.view(),
            Work::Embedding { ids, .. } => ids,
            // What follows the last one is not asked for.
            Work::Score { ids, .. } => &ids[..ids.len() - 1],
        }
    }

    /// How many tokens the next chunk may have.
    pub(crate) fn next(&self, vocab: usize) -> usize {
        let len = self.tokens().len();
        let end = match &self.work {
            Work::Score { from, .. } => stage(self.held, len, from - 1, default_chunk(vocab)).0,
            _ => len,
        };
        end - self.held
    }

    /// Whether it may begin with what others left: not where all rows are wanted.
    pub(crate) fn shares(&self) -> bool {
        matches!(self.work, Work::Answer(_))
    }

    /// Whether it is past its prompt: then one row is due in each pass.
    pub(crate) fn answers(&self) -> bool {
        self.seq.is_some() && self.held + 1 == self.tokens().len()
    }

    /// Whether the receiver has taken enough for another row's updates.
    pub(crate) fn is_heard(&mut self, patience: Duration) -> bool {
        if self.updates.room() >= ROOM {
            self.stalled = None;
            return true;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if since.elapsed() > patience {
            self.cancel.store(true, Ordering::Relaxed);
        }
        false
    }

    /// Whether it is to end now, and why.
    pub(crate) fn is_over(&self, now: Instant) -> Option<Error> {
        if self.cancel.load(Ordering::Relaxed) || self.updates.is_closed() {
            return Some(Error::Cancelled);
        }
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        late.then_some(Error::Deadline)
    }

    /// It runs, in a sequence that holds `cached` tokens. True the first time.
    pub(crate) fn begin(&mut self, seq: Seq, cached: usize, miss: Option<Miss>) -> bool {
        self.seq = Some(seq);
        self.held = cached;
        let first = self.cached.is_none();
        if first {
            self.cached = Some(cached);
            self.send(Update::Started(Start {
                cached,
                miss,
                queued: self.submitted.elapsed(),
            }));
        }
        first
    }

    /// Guesses what follows, in a pass with `answers` of them: as much as could be taken, heard,
    /// and is expected to pay. `draft`: what a token of the draft model costs, if there is one. Its
    /// tokens are yet to come ([`Entry::wish`]).
    pub(crate) fn guess(&mut self, context: usize, answers: usize, draft: Option<f64>) {
        let heard = self.updates.room().saturating_sub(ROOM);
        let Work::Answer(answer) = &self.work else {
            return;
        };
        let Ahead {
            speculator,
            guess,
            shadow,
        } = &mut *self.ahead;
        // The first row comes with the prompt.
        if answer.generated() == 0 {
            return;
        }
        let helper = draft.is_some() && shadow.as_ref().is_none_or(Shadow::is_well);
        speculator.pace().among(answers, draft.unwrap_or(0.0));
        let room = answer.room_to_guess(context).min(heard);
        *guess = speculator.guess(answer.all(), room, answer.eog(), helper);
    }

    /// What it asks the draft model for, and where that goes.
    pub(crate) fn wish(&mut self, helper: &mut Helper) -> Option<(Wish<'_>, &mut Guess)> {
        let Ahead {
            speculator,
            guess,
            shadow,
        } = &mut *self.ahead;
        let Work::Answer(answer) = &self.work else {
            return None;
        };
        if guess.wanted() == 0 {
            return None;
        }
        let shadow = shadow.get_or_insert_with(|| helper.open(&self.root, answer.view()));
        Some((answer.wish(speculator, shadow, guess.wanted()), guess))
    }

    /// Tokens guessed for the next pass.
    pub(crate) fn guessed(&self) -> usize {
        self.ahead.guess.ids().len()
    }

    /// Guesses no more tokens than these.
    pub(crate) fn cut_guess(&mut self, most: usize) {
        self.ahead.guess.cut(most);
    }

    /// Goes without the guess.
    pub(crate) fn skip_guess(&mut self) {
        self.ahead.guess.skip();
    }

    /// What the draft model holds of it, to be closed there.
    pub(crate) fn take_shadow(&mut self) -> Option<Shadow> {
        self.ahead.shadow.take()
    }

    /// The next `n` tokens as a chunk, and behind the last one those that were guessed; the rows
    /// after the last token and after the guesses are wanted out.
    pub(crate) fn chunk(&self, seq: Seq, n: usize) -> Chunk {
        let (tokens, end) = (self.tokens(), self.held + n);
        let last = end == tokens.len();
        let guess = match last {
            true => self.ahead.guess.ids(),
            false => &[],
        };
        // A position fits: contexts are far below it, and were checked.
        let start = u32::try_from(self.held).unwrap_or(u32::MAX);
        let rows = match (last, guess) {
            (false, _) => Rows::None,
            (true, []) => Rows::Last,
            (true, _) => Rows::All,
        };
        let ids = [&tokens[self.held..end], guess].concat();
        let mut chunk = Chunk::tokens(seq, start, &ids, rows);
        let Adaptation { adapters, control } = self.root.adaptation.clone();
        (chunk.adapters, chunk.control) = (adapters, control);
        if let Work::Embedding { pooling, .. } = &self.work {
            chunk.logits = false;
            chunk.hidden = true;
            if *pooling != Pooling::Last {
                chunk.rows = Rows::All;
            }
        }
        if let Work::Score { from, .. } = &self.work {
            chunk.rows = stage(self.held, tokens.len(), from - 1, n).1;
        }
        chunk
    }

    /// It has a token more, now. Returns how long after the one before.
    pub(crate) fn came(&mut self, now: Instant) -> Option<Duration> {
        let last = self.last.replace(now);
        last.map(|last| now.saturating_duration_since(last))
    }

    /// Takes the rows of a chunk of `n` tokens that ran, and of the tokens guessed behind them.
    /// `held` is then what is right of what ran.
    pub(crate) fn take(
        &mut self,
        n: usize,
        out: &ChunkOut,
        vocab: usize,
        context: usize,
    ) -> Result<Taken, Error> {
        self.held += n;
        let done = self.held == self.tokens().len();
        let cached = self.cached.unwrap_or(0);
        match &mut self.work {
            Work::Embedding { sum, pooling, .. } => {
                pool(sum, &out.hidden, *pooling, n);
                Ok(Taken {
                    end: done.then_some(End::MaxTokens),
                    ..Taken::default()
                })
            }
            Work::Score {
                ids,
                from,
                top,
                found,
            } => {
                let first = self.held - n + 1;
                if first >= *from {
                    let (got, expected) = (out.logits.len(), n * vocab);
                    if got != expected {
                        return Err(Error::LogitsShape { got, expected });
                    }
                    for (i, row) in out.logits.chunks_exact(vocab).enumerate() {
                        check_finite(first - 1 + i, row)?;
                    }
                    let rows = out.logits.chunks_exact(vocab).zip(&ids[first..]);
                    found.extend(rows.map(|(row, id)| TokenLogprob::new(row, *id, *top)));
                }
                Ok(Taken {
                    end: done.then_some(End::MaxTokens),
                    ..Taken::default()
                })
            }
            Work::Answer(_) if !done => Ok(Taken::default()),
            Work::Answer(answer) => {
                answer.prompt_read(cached);
                let guess = std::mem::take(&mut self.ahead.guess);
                let rows = 1 + guess.ids().len();
                if out.logits.len() != rows * vocab {
                    let (got, expected) = (out.logits.len(), rows * vocab);
                    return Err(Error::LogitsShape { got, expected });
                }
                let (before, seen) = (answer.all().len(), answer.view().len());
                let first = answer.generated() == 0;
                let drafts = answer.drafts();
                answer.drafted(guess.ids().len());
                let mut on = sender(&self.updates);
                let mut end = answer.walk(&out.logits, vocab, guess.ids(), &mut on)?;
                self.held = seen.max(answer.view().len() - 1);
                if !first {
                    let drawn = &answer.all()[before..];
                    self.ahead.speculator.learn(&guess, drawn, None);
                }
                if end.is_none() {
                    end = answer.make_room(context, &mut on)?;
                }
                Ok(Taken {
                    end,
                    generated: answer.all().len() - before,
                    drafts: answer.drafts().since(drafts),
                })
            }
        }
    }

    /// After a shift the model sees other tokens: so many of those held are still right.
    pub(crate) fn shifted(&self) -> Option<usize> {
        match &self.work {
            Work::Answer(answer) if answer.view().len() <= self.held => answer.params().shift,
            _ => None,
        }
    }

    /// Says the last word.
    pub(crate) fn finish(self, end: Result<End, Error>) {
        let end = match end {
            Ok(end) => end,
            Err(Error::Cancelled) => End::Cancelled,
            Err(error) => {
                // Nobody may listen any more.
                self.updates.send(Update::Failed(error));
                return;
            }
        };
        let last = match (self.work, end) {
            (Work::Answer(answer), end) => {
                let generation = answer.finish(end, &mut sender(&self.updates));
                Update::Done(Box::new(generation))
            }
            (_, End::Cancelled) => Update::Failed(Error::Cancelled),
            (Work::Score { found, .. }, _) => Update::Scores(found),
            (Work::Embedding { ids, pooling, sum }, _) => {
                let n = match pooling {
                    Pooling::Mean => ids.len() as f64,
                    Pooling::Last | Pooling::Cls => 1.0,
                };
                Update::Embedding(sum.iter().map(|x| (x / n) as f32).collect())
            }
        };
        self.updates.send(last);
    }

    /// Wakes whoever waits for what the last pass has made.
    pub(crate) fn ring(&self) {
        self.updates.ring();
    }

    fn send(&self, update: Update) {
        // Room was checked; if nobody listens any more, the next step ends it.
        self.updates.send(update);
    }

    /// Begins again from nothing when it runs next.
    pub(crate) fn rewind(&mut self) {
        self.seq = None;
        self.held = 0;
        self.ahead.guess = Guess::default();
        self.fetch = Fetch::default();
        match &mut self.work {
            Work::Answer(_) => {}
            Work::Embedding { sum, .. } => sum.clear(),
            Work::Score { found, .. } => found.clear(),
        }
    }
}

/// Turns an answer's events into updates, which are heard at the next ring.
fn sender(updates: &Sender<Update>) -> impl FnMut(Event) -> Flow {
    |event| {
        let update = match event {
            Event::Token { id, text, logprob } => Update::Token {
                id,
                text: text.to_owned(),
                logprob: logprob.cloned(),
            },
            Event::Text(text) => Update::Text(text.to_owned()),
            Event::Prompt(_) | Event::Shift { .. } => return Flow::Continue,
        };
        match updates.put(update) {
            true => Flow::Continue,
            false => Flow::Stop,
        }
    }
}

/// Adds the rows `[n, hidden]` of a chunk (or its last one) to what stands for the text.
fn pool(sum: &mut Vec<f64>, rows: &[f32], pooling: Pooling, n: usize) {
    let hidden = match pooling {
        Pooling::Last => rows.len(),
        Pooling::Mean | Pooling::Cls => rows.len() / n.max(1),
    };
    for row in rows.chunks_exact(hidden.max(1)) {
        if sum.is_empty() {
            sum.extend(row.iter().map(|x| f64::from(*x)));
        } else if pooling == Pooling::Mean {
            let both = sum.iter_mut().zip(row);
            both.for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
}
