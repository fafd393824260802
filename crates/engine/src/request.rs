//! What can be asked of a [`crate::Scheduler`], and what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::channel::Receiver;
use crate::error::Error;
use crate::generate::{GenerateParams, Generation};
use crate::root::{Miss, Root};
use crate::score::TokenLogprob;

/// One sequence to run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Its tokens (with BOS, if the model wants one).
    pub prompt: Vec<u32>,
    /// What is to be made of them.
    pub want: Want,
    /// With whom it shares its beginning, and the adapters that it runs with.
    pub root: Root,
    /// Higher goes first; whoever waits rises with time.
    pub priority: i8,
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
}

/// What is to be made of a prompt.
#[derive(Clone, Debug)]
pub enum Want {
    /// Tokens that follow. `cancel` is not looked at: see [`Replies::cancel`].
    Answer(Box<GenerateParams>),
    /// One row of the final hidden states, after the final norm.
    Embedding(Pooling),
    /// How likely the prompt's own tokens are.
    Score {
        /// The first token that is looked at, 1 or more: nothing foretells the first of all.
        from: usize,
        /// How many rivals of each are named.
        top: usize,
    },
}

impl Default for Want {
    fn default() -> Want {
        Want::Answer(Box::default())
    }
}

/// Which row stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all rows.
    Mean,
    /// The last row.
    Last,
    /// The first row.
    Cls,
}

/// What comes back. The texts of one request, joined, are the answer's text.
#[derive(Debug)]
pub enum Update {
    /// The prompt is about to be read.
    Started(Start),
    /// A token was chosen; see [`crate::Event::Token`].
    Token {
        /// The token.
        id: u32,
        /// The text that can be shown now, perhaps empty.
        text: String,
        /// If asked for.
        logprob: Option<TokenLogprob>,
    },
    /// Text that was held back, released at the end of the answer.
    Text(String),
    /// The answer is complete. The last update.
    Done(Box<Generation>),
    /// An embedding. The last update.
    Embedding(Vec<f32>),
    /// The tokens that were scored, in their order. The last update.
    Scores(Vec<TokenLogprob>),
    /// It failed, and only it. The last update.
    Failed(Error),
}

/// How a request began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Tokens of the prompt that need not be read.
    pub cached: usize,
    /// Why there are not more of them; `None`: all whole blocks were there.
    pub miss: Option<Miss>,
    /// Time spent in line.
    pub queued: Duration,
}

/// Updates that may wait for their receiver. One that lets them lie is left out of the passes
/// until it takes them.
pub(crate) const UPDATES: usize = 64;

/// The receiving end of a request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Replies {
    updates: Receiver<Update>,
    cancel: Arc<AtomicBool>,
}

/// Ends a request from elsewhere.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the request before the next pass: its last update says so.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Replies {
    pub(crate) fn new(updates: Receiver<Update>, cancel: Arc<AtomicBool>) -> Replies {
        Replies { updates, cancel }
    }

    /// The next update; `None` after the last one, or if the scheduler ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.next().await
    }

    /// [`Replies::next`], for whoever is polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.poll(context)
    }

    /// The next update, for threads that may wait.
    pub fn next_blocking(&mut self) -> Option<Update> {
        self.updates.next_blocking()
    }

    /// A handle to end the request.
    pub fn cancel(&self) -> Cancel {
        Cancel(self.cancel.clone())
    }
}
