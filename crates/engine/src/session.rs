//! One sequence of tokens in front of a model.
//!
//! The caller hands over the full prefix each time; the session finds out how much of it the
//! cache already holds, forgets the rest, and runs what is missing. Nobody has to say "this is a
//! continuation": a conversation that goes on, an edited prompt and a fresh one are the same call.
//!
//! Because a token's logits are the same bits whether its prefix came from the cache or not and
//! however the prompt was cut, reuse and chunking change time only.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kernels::KvType;
use model::{Adapter, Batch, Cache, Chunk, ControlVector, Logits, Probe, Rows, Seq, Weights};
use text::Tokenizer;

use crate::error::Error;
use crate::helper::{Helper, Shadow};
use crate::root::Root;

/// What a callback wants: go on, or stop at the next safe place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop.
    Stop,
}

/// How far the reading of a prompt has come, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// In the cache now.
    pub done: usize,
    /// In the prompt.
    pub total: usize,
}

/// What [`Session::advance`] found.
#[derive(Clone, Debug)]
pub struct Advance {
    /// `[vocab]`: logits that follow the prefix.
    pub logits: Logits,
    /// Tokens of the prefix that did not have to be run.
    pub cached: usize,
}

/// Tokens that run through the model in one pass while a prompt is read: enough to use each weight often,
/// few enough that their activations stay in the processor's caches.
const DEFAULT_CHUNK: usize = 256;

/// What changes a model beside its weights. Sequences of one model may each have their own. Two are the
/// same if they hold the same adapters (not copies of them) in the same order, and the same vectors.
#[derive(Clone, Debug, Default)]
pub struct Adaptation {
    /// Low-rank adapters, used one after the other.
    pub adapters: Vec<Arc<Adapter>>,
    /// Directions added to the residual stream.
    pub control: Option<Arc<ControlVector>>,
}

impl Adaptation {
    fn keys(
        &self,
    ) -> (
        impl Iterator<Item = *const Adapter>,
        Option<*const ControlVector>,
    ) {
        let adapters = self.adapters.iter().map(Arc::as_ptr);
        (adapters, self.control.as_ref().map(Arc::as_ptr))
    }
}

impl PartialEq for Adaptation {
    fn eq(&self, other: &Adaptation) -> bool {
        let (own, its) = (self.keys(), other.keys());
        own.0.eq(its.0) && own.1 == its.1
    }
}

impl Eq for Adaptation {}

impl Hash for Adaptation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (adapters, control) = self.keys();
        adapters.for_each(|key| key.hash(state));
        control.hash(state);
    }
}

/// A model with one sequence in a cache of its own.
#[derive(Debug)]
pub struct Session {
    weights: Arc<Weights>,
    cache: Cache,
    seq: Seq,
    /// The tokens whose keys and values the cache holds, from position 0 on.
    held: Vec<u32>,
    context: usize,
    chunk: usize,
    adaptation: Adaptation,
    /// A smaller model that guesses tokens ahead, and what it holds of this sequence.
    draft: Option<Box<Draft>>,
}

/// A smaller model beside a session.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) helper: Helper,
    pub(crate) shadow: Shadow,
}

/// What [`Session::advance_guessing`] found.
pub(crate) struct Guessed {
    /// `[rows, vocab]`: after the prefix, and after each guessed token.
    pub(crate) logits: Logits,
    /// 1, or with the guess 1 more for each of its tokens.
    pub(crate) rows: usize,
    /// Tokens of the prefix that did not have to be run.
    pub(crate) cached: usize,
}

impl Session {
    /// An empty session for at most `context` tokens. Memory for them is taken as they come.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `context` is 0, and the model's.
    pub fn new(weights: Arc<Weights>, kv: KvType, context: usize) -> Result<Session, Error> {
        if context == 0 {
            return Err(Error::Parameter {
                field: "context",
                value: "0".into(),
                range: "1 token or more".into(),
            });
        }
        let mut cache = Cache::new(&weights.config, kv, context)?;
        let seq = cache.open();
        Ok(Session {
            weights,
            cache,
            seq,
            held: Vec::new(),
            context,
            chunk: DEFAULT_CHUNK,
            adaptation: Adaptation::default(),
            draft: None,
        })
    }

    /// Lets a smaller model guess tokens for this one, where [`crate::GenerateParams`] ask for it.
    /// The tokenizers are those of this session's model and of the draft's.
    ///
    /// # Errors
    /// [`Error::DraftVocabulary`] if they are not the same tokens.
    pub fn set_draft(
        &mut self,
        draft: Session,
        tokenizer: &Tokenizer,
        draft_tokenizer: &Tokenizer,
    ) -> Result<(), Error> {
        let (own, its) = (self.weights.config.vocab, draft.weights.config.vocab);
        crate::helper::check_vocabulary(tokenizer, own, draft_tokenizer, its)?;
        let helper = Helper::new(
            draft.weights,
            draft.cache.kv(),
            draft.context,
            draft.context,
        )?;
        let mut helper = helper.adapted(draft.adaptation);
        let shadow = helper.open(&Root::default(), &[]);
        self.draft = Some(Box::new(Draft { helper, shadow }));
        Ok(())
    }

    pub(crate) fn take_draft(&mut self) -> Option<Box<Draft>> {
        self.draft.take()
    }

    pub(crate) fn put_draft(&mut self, draft: Option<Box<Draft>>) {
        self.draft = draft;
    }

    /// Sets how many tokens run in one pass while a prompt is read (at least 1). More is faster
    /// up to a point and takes more memory; the results' bits are the same.
    pub fn set_chunk(&mut self, tokens: usize) {
        self.chunk = tokens.max(1);
    }

    /// Sets what changes the model from now on, in place of what did before. The base stays as it is;
    /// what the cache held was computed without this, so that it is forgotten.
    pub fn adapt(&mut self, adaptation: Adaptation) {
        self.truncate(0);
        self.adaptation = adaptation;
    }

    /// What changes the model.
    pub fn adaptation(&self) -> &Adaptation {
        &self.adaptation
    }

    /// The model.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Most tokens that the session holds.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The tokens that the cache holds now.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Bytes of keys and values allocated now.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Forgets all but the first `len` tokens; some more where the cache of a model with chunked
    /// attention cannot go on after them.
    pub fn truncate(&mut self, len: usize) {
        let left = self.cache.truncate(self.seq, len);
        self.held.truncate(left);
    }

    /// Brings the session to `prefix` and returns the logits that follow it. Runs only what the
    /// cache does not hold; if it holds everything, the last token runs again.
    ///
    /// `on` is called before each pass through the model; if it stops the run, what was run so
    /// far stays in the cache and is reused by the next call.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextFull`], [`Error::Cancelled`], and the model's.
    pub fn advance(
        &mut self,
        prefix: &[u32],
        on: &mut dyn FnMut(Progress) -> Flow,
    ) -> Result<Advance, Error> {
        let found = self.advance_guessing(prefix, &[], on)?;
        Ok(Advance {
            logits: found.logits,
            cached: found.cached,
        })
    }

    /// [`Session::advance`], and in the same pass the rows after tokens that may follow. They then
    /// count as held. The guess is left out where more than the prefix's last token has to run.
    pub(crate) fn advance_guessing(
        &mut self,
        prefix: &[u32],
        guess: &[u32],
        on: &mut dyn FnMut(Progress) -> Flow,
    ) -> Result<Guessed, Error> {
        self.check_fits(prefix)?;
        let same = self.held.iter().zip(prefix).take_while(|(a, b)| a == b);
        let same = same.count().min(prefix.len() - 1);
        self.truncate(same);
        let cached = self.held.len();
        let total = prefix.len();
        let mut done = cached;
        loop {
            if on(Progress { done, total }) == Flow::Stop {
                return Err(Error::Cancelled);
            }
            if done + 1 == total && !guess.is_empty() {
                let ids = [&prefix[done..], guess].concat();
                let logits = self.extend(&ids, Rows::All, &mut ())?;
                let rows = ids.len();
                return Ok(Guessed {
                    logits,
                    rows,
                    cached,
                });
            }
            let end = done.saturating_add(self.chunk).min(total);
            let last = end == total;
            let rows = if last { Rows::Last } else { Rows::None };
            let logits = self.extend(&prefix[done..end], rows, &mut ())?;
            if last {
                return Ok(Guessed {
                    logits,
                    rows: 1,
                    cached,
                });
            }
            done = end;
        }
    }

    /// Refuses tokens that can never run: none, too many, or unknown ones.
    pub(crate) fn check_fits(&self, ids: &[u32]) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let (needed, context) = (ids.len(), self.context);
        if needed > context {
            return Err(Error::ContextFull { needed, context });
        }
        let vocab = self.weights.config.vocab;
        match ids.iter().find(|id| **id as usize >= vocab) {
            None => Ok(()),
            Some(&id) => Err(Error::UnknownToken {
                what: "the prompt",
                id,
                vocab,
            }),
        }
    }

    /// Runs the tokens that follow those held; returns the logits of the wanted rows
    /// `[rows, vocab]`.
    pub(crate) fn extend<P: Probe>(
        &mut self,
        ids: &[u32],
        rows: Rows,
        probe: &mut P,
    ) -> Result<Logits, Error> {
        let start = self.held.len();
        let position = u32::try_from(start).map_err(|_| Error::ContextFull {
            needed: start,
            context: u32::MAX as usize,
        })?;
        let Adaptation { adapters, control } = self.adaptation.clone();
        let batch = Batch {
            chunks: vec![Chunk {
                adapters,
                control,
                ..Chunk::tokens(self.seq, position, ids, rows)
            }],
        };
        let outputs = model::forward(&self.weights, &batch, &mut self.cache, probe);
        let mut outputs = outputs.inspect_err(|_| {
            // Whatever a failed pass left behind is not what `held` says.
            let left = self.cache.truncate(self.seq, start);
            self.held.truncate(left);
        })?;
        self.held.extend_from_slice(ids);
        let logits = outputs.chunks.pop().map(|c| c.logits).unwrap_or_default();
        let wanted = match rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => ids.len(),
        };
        let (got, expected) = (logits.len(), wanted * self.weights.config.vocab);
        if got != expected {
            return Err(Error::LogitsShape { got, expected });
        }
        Ok(logits)
    }
}
