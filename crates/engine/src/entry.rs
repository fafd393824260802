//! One request on the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model::{Chunk, ChunkOut, Rows, Seq};
use text::Tokenizer;

use crate::answer::{Answer, End};
use crate::channel::Sender;
use crate::error::Error;
use crate::generate::Event;
use crate::line::Place;
use crate::prefix::{Miss, Root};
use crate::request::{Pooling, Start, Update, Want};
use crate::scheduler::Job;
use crate::score::{TokenLogprob, default_chunk, stage};
use crate::session::{Adaptation, Flow};

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
    /// Since when its receiver takes nothing.
    stalled: Option<Instant>,
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
    pub(crate) fn new(tokenizer: &'t Tokenizer, job: Job, number: u64) -> Entry<'t> {
        let request = job.request;
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
            stalled: None,
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

    /// The next `n` tokens as a chunk; the row after the last token is wanted out.
    pub(crate) fn chunk(&self, seq: Seq, n: usize) -> Chunk {
        let (tokens, end) = (self.tokens(), self.held + n);
        let last = end == tokens.len();
        // A position fits: contexts are far below it, and were checked.
        let start = u32::try_from(self.held).unwrap_or(u32::MAX);
        let rows = if last { Rows::Last } else { Rows::None };
        let mut chunk = Chunk::tokens(seq, start, &tokens[self.held..end], rows);
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

    /// Takes the rows of a chunk of `n` tokens that ran. Returns the last update if it is complete,
    /// and how many tokens were chosen.
    pub(crate) fn take(
        &mut self,
        n: usize,
        out: &ChunkOut,
        vocab: usize,
        context: usize,
    ) -> Result<(Option<End>, usize), Error> {
        self.held += n;
        let done = self.held == self.tokens().len();
        let cached = self.cached.unwrap_or(0);
        match &mut self.work {
            Work::Embedding { sum, pooling, .. } => {
                pool(sum, &out.hidden, *pooling, n);
                Ok((done.then_some(End::MaxTokens), 0))
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
                    let rows = out.logits.chunks_exact(vocab).zip(&ids[first..]);
                    found.extend(rows.map(|(row, id)| TokenLogprob::new(row, *id, *top)));
                }
                Ok((done.then_some(End::MaxTokens), 0))
            }
            Work::Answer(_) if !done => Ok((None, 0)),
            Work::Answer(answer) => {
                answer.prompt_read(cached);
                if out.logits.len() != vocab {
                    let (got, expected) = (out.logits.len(), vocab);
                    return Err(Error::LogitsShape { got, expected });
                }
                let before = answer.generated();
                let mut on = sender(&self.updates);
                let mut end = answer.walk(&out.logits, vocab, &[], &mut on)?;
                if end.is_none() {
                    end = answer.make_room(context, &mut on)?;
                }
                Ok((end, answer.generated() - before))
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

    fn send(&self, update: Update) {
        // Room was checked; if nobody listens any more, the next step ends it.
        self.updates.send(update);
    }

    /// Begins again from nothing when it runs next.
    pub(crate) fn rewind(&mut self) {
        self.seq = None;
        self.held = 0;
        match &mut self.work {
            Work::Answer(_) => {}
            Work::Embedding { sum, .. } => sum.clear(),
            Work::Score { found, .. } => found.clear(),
        }
    }
}

/// Turns an answer's events into updates.
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
        match updates.send(update) {
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
