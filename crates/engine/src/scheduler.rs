//! Many requests in front of one model.
//!
//! The engine has a thread of its own. Each of its steps is one pass through the model, in which
//! every running answer gets its next token and whoever still reads a prompt gets a part of it: a
//! budget of tokens a pass keeps long prompts from holding up the others. Requests come and go
//! between any two steps. As a row's bits do not depend on the other rows, each answer is the one
//! that [`crate::Session::generate`] would give.
//!
//! Memory is bounded by the cache's pages. Beginnings that were read stay for later requests and
//! give way when pages run out; then the least urgent sequence gives way, and is read anew later.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernels::KvType;
use model::{Cache, PAGE, Weights, bytes_to_work};
use text::Tokenizer;

use crate::answer::Tools;
use crate::channel::{Sender, channel};
use crate::error::Error;
use crate::helper::{Helper, check_vocabulary};
use crate::prefix::Folder;
use crate::request::{Replies, Request, UPDATES, Update, Want};
use crate::session::Adaptation;
use crate::spill::Spill;
use crate::steps::Engine;

/// How a scheduler runs.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerParams {
    /// Storage of keys and values.
    pub kv: KvType,
    /// Most tokens of one sequence.
    pub context: usize,
    /// Most tokens of all sequences and kept beginnings together.
    pub cache: usize,
    /// Most sequences that run at once.
    pub parallel: usize,
    /// Most requests that wait.
    pub queue: usize,
    /// Tokens of one pass, beyond which no more of a prompt is read in it.
    pub budget: usize,
    /// Whether beginnings are shared.
    pub share: bool,
    /// How long a receiver may let its updates lie before its request is given up.
    pub patience: Duration,
}

impl SchedulerParams {
    /// Sequences of `context` tokens, `parallel` of them at once at full length.
    pub fn new(kv: KvType, context: usize, parallel: usize) -> SchedulerParams {
        SchedulerParams {
            kv,
            context,
            cache: context.saturating_mul(parallel),
            parallel,
            queue: 256,
            budget: 256,
            share: true,
            patience: Duration::from_secs(60),
        }
    }
}

/// A smaller model that guesses tokens for all answers that let it ([`crate::Speculation`]).
#[derive(Clone, Debug)]
pub struct DraftModel {
    /// The model.
    pub weights: Arc<Weights>,
    /// Its tokens, which must be those of the model that it helps.
    pub tokenizer: Arc<Tokenizer>,
    /// Storage of its keys and values.
    pub kv: KvType,
    /// Most tokens of one answer.
    pub context: usize,
    /// Most tokens of all answers and kept beginnings together.
    pub cache: usize,
}

impl DraftModel {
    fn helper(self, weights: &Weights, tokenizer: &Tokenizer) -> Result<Helper, Error> {
        let (own, its) = (weights.config.vocab, self.weights.config.vocab);
        check_vocabulary(tokenizer, own, &self.tokenizer, its)?;
        Helper::new(self.weights, self.kv, self.context, self.cache)
    }
}

/// What a scheduler may have beside its model.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Guesses tokens ahead.
    pub draft: Option<DraftModel>,
    /// Has kept beginnings that memory has no room for.
    pub folder: Option<KeptIn>,
}

/// A folder for kept beginnings, and what tells a model's own from others there.
#[derive(Clone, Debug)]
pub struct KeptIn {
    /// The folder, which several models may share.
    pub spill: Arc<Spill>,
    /// Another text for any other weights, adapters or directions.
    pub model: String,
    /// The adapters and directions that `model` speaks of; what ran with others stays in memory.
    pub adaptation: Adaptation,
}

impl KeptIn {
    fn folder(self, weights: &Weights, kv: KvType) -> Folder {
        let on = weights.kernels();
        // Keys and values have the same bits only where all of these are the same.
        let common = [
            env!("CARGO_PKG_VERSION"),
            kernels::ARITHMETIC,
            std::env::consts::ARCH,
            on.level().name(),
            on.compute().name(),
            kv.name(),
            &self.model,
        ];
        Folder {
            common: common.map(str::to_owned).into(),
            spill: self.spill,
            adaptation: self.adaptation,
            written: 0,
        }
    }
}

/// What a scheduler has done since it began, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests in line.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Pages of the cache in use, and how many there are.
    pub pages: (usize, usize),
    /// Those of the draft model.
    pub draft_pages: (usize, usize),
    /// Pages that hold beginnings for later requests (running ones may share them).
    pub kept: usize,
    /// Passes through the model.
    pub steps: u64,
    /// Chunks of all passes: `chunks / steps` is the mean size of a batch.
    pub chunks: u64,
    /// Passes by their chunks: 1, up to 2, up to 4 and so on up to 256, and more.
    pub batches: [u64; 10],
    /// Tokens of prompts, and how many of them were found in the cache.
    pub prompt_tokens: u64,
    /// See `prompt_tokens`.
    pub cached_tokens: u64,
    /// Tokens chosen.
    pub generated: u64,
    /// How long answers were between their tokens.
    pub gaps: Gaps,
    /// Tokens that were guessed ahead, and how many of them were right.
    pub drafted: u64,
    /// See `drafted`.
    pub accepted: u64,
    /// Kept pages that gave way.
    pub evictions: u64,
    /// Sequences that gave way.
    pub preemptions: u64,
    /// Kept pages that went to the folder, and those that were read back.
    pub written: u64,
    /// See `written`.
    pub restored: u64,
    /// Reads and writes of the folder that failed, of all models that share it.
    pub folder_errors: u64,
}

/// Bounds of [`Gaps`], in seconds.
pub const GAPS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0, 2.5,
];

/// The times between tokens that follow one another in an answer, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Those up to each of [`GAPS`] that are beyond the one before, and those beyond all.
    pub counts: [u64; GAPS.len() + 1],
    /// Of all.
    pub sum: Duration,
}

impl Gaps {
    /// `tokens` came `gap` after the one before; all but the first at once.
    pub(crate) fn count(&mut self, gap: Option<Duration>, tokens: usize) {
        // The first token of all has none before it.
        self.counts[0] += tokens.saturating_sub(1) as u64;
        if let Some(gap) = gap {
            let at = GAPS.partition_point(|bound| *bound < gap.as_secs_f64());
            self.counts[at] += 1;
            self.sum += gap;
        }
    }
}

/// What a scheduler may still take of memory, for whoever plans that. It keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Promise {
    shared: Weak<Shared>,
    model: Promised,
    draft: Option<Promised>,
}

/// A model of a scheduler, and its cache.
#[derive(Clone, Debug)]
struct Promised {
    weights: Weak<Weights>,
    kv: KvType,
    /// Tokens.
    cache: usize,
}

impl Promised {
    fn new(weights: &Arc<Weights>, kv: KvType, cache: usize) -> Promised {
        let weights = Arc::downgrade(weights);
        Promised { weights, kv, cache }
    }

    /// Weights that memory has yet to hold, pages that are not used, and room to work in.
    fn bytes(&self, used: usize) -> u64 {
        let Some(weights) = self.weights.upgrade() else {
            return 0;
        };
        let pages = (self.cache / PAGE).saturating_sub(used);
        // The cache is there: its size can be told.
        let cache = Cache::bytes_for(&weights.config, self.kv, pages * PAGE).unwrap_or(0);
        let mapped = weights.bytes().saturating_sub(weights.bytes_held());
        cache
            .saturating_add(mapped)
            .saturating_add(bytes_to_work(&weights.config))
    }
}

impl Promise {
    /// Bytes, at most; `None`: the scheduler is no more.
    pub fn bytes(&self) -> Option<u64> {
        let shared = self.shared.upgrade()?;
        let stats = *shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let draft = self.draft.as_ref();
        let draft = draft.map_or(0, |draft| draft.bytes(stats.draft_pages.0));
        Some(self.model.bytes(stats.pages.0).saturating_add(draft))
    }
}

/// A request as the engine's thread gets it.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Of an answer.
    pub(crate) tools: Option<Tools>,
    pub(crate) updates: Sender<Update>,
    pub(crate) cancel: Arc<AtomicBool>,
    pub(crate) submitted: Instant,
}

/// What both sides see.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) waiting: AtomicUsize,
    pub(crate) stop: AtomicBool,
    pub(crate) stats: Mutex<Stats>,
}

/// The engine's thread, and the door to it.
#[derive(Debug)]
pub struct Scheduler {
    jobs: Option<mpsc::Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    weights: Arc<Weights>,
    tokenizer: Arc<Tokenizer>,
    params: SchedulerParams,
    /// Of the draft model.
    draft: Option<Promised>,
}

impl Scheduler {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// [`Error::Parameter`] for sizes that cannot be, [`Error::Io`] if no thread starts, and the
    /// model's.
    pub fn start(
        weights: Arc<Weights>,
        tokenizer: Arc<Tokenizer>,
        params: SchedulerParams,
    ) -> Result<Scheduler, Error> {
        Scheduler::start_beside(weights, tokenizer, params, Beside::default())
    }

    /// [`Scheduler::start`], with what helps it.
    ///
    /// # Errors
    /// Those of [`Scheduler::start`]; [`Error::DraftVocabulary`] for a draft model of other tokens.
    pub fn start_beside(
        weights: Arc<Weights>,
        tokenizer: Arc<Tokenizer>,
        mut params: SchedulerParams,
        beside: Beside,
    ) -> Result<Scheduler, Error> {
        let sizes = [
            ("context", params.context),
            ("cache", params.cache),
            ("parallel", params.parallel),
            ("budget", params.budget),
        ];
        if let Some((field, value)) = sizes.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::Parameter {
                field,
                value: value.to_string(),
                range: "1 or more".into(),
            });
        }
        // Whole pages only: one sequence alone must never run out of them.
        params.cache = params.cache.max(PAGE) / PAGE * PAGE;
        params.context = params.context.min(params.cache).min(u32::MAX as usize);
        let cache = Cache::new(&weights.config, params.kv, params.cache)?;
        let draft = beside.draft.as_ref();
        let draft = draft.map(|d| Promised::new(&d.weights, d.kv, d.cache));
        let helper = beside.draft.map(|draft| draft.helper(&weights, &tokenizer));
        let helper = helper.transpose()?;
        let folder = beside.folder.map(|kept| kept.folder(&weights, params.kv));
        let shared = Arc::new(Shared::default());
        let (jobs, inbox) = mpsc::channel();
        let (w, t, s) = (weights.clone(), tokenizer.clone(), shared.clone());
        let run = move || Engine::new(&w, &t, cache, helper, folder, params, &s).run(&inbox);
        let thread = std::thread::Builder::new().name("engine".into());
        let thread = thread.spawn(run).map_err(|source| Error::Io {
            what: "starting the engine's thread".into(),
            source,
        })?;
        Ok(Scheduler {
            jobs: Some(jobs),
            shared,
            thread: Some(thread),
            weights,
            tokenizer,
            params,
            draft,
        })
    }

    /// Puts a request in line.
    ///
    /// # Errors
    /// What is known before anything runs: [`Error::EmptyPrompt`], [`Error::ContextFull`],
    /// [`Error::UnknownToken`], [`Error::Parameter`]; [`Error::Busy`] if the line is full, and
    /// [`Error::Stopped`] if the engine is no more.
    pub fn submit(&self, request: Request) -> Result<Replies, Error> {
        let tools = self.check(&request)?;
        let jobs = self.jobs.as_ref().ok_or(Error::Stopped)?;
        let queue = self.params.queue;
        let one_more = |n| (n < queue).then_some(n + 1);
        let waiting = &self.shared.waiting;
        let order = Ordering::Relaxed;
        if waiting.fetch_update(order, order, one_more).is_err() {
            return Err(Error::Busy { waiting: queue });
        }
        let (updates, replies) = channel(UPDATES);
        let cancel = Arc::new(AtomicBool::new(false));
        let job = Job {
            request,
            tools,
            updates,
            cancel: cancel.clone(),
            submitted: Instant::now(),
        };
        if jobs.send(job).is_err() {
            waiting.fetch_sub(1, order);
            return Err(Error::Stopped);
        }
        Ok(Replies::new(replies, cancel))
    }

    /// Refuses what can never run; prepares an answer.
    fn check(&self, request: &Request) -> Result<Option<Tools>, Error> {
        let config = &self.weights.config;
        let (prompt, context) = (&request.prompt, self.params.context);
        let answers = matches!(request.want, Want::Answer(_));
        let needed = prompt.len().saturating_add(usize::from(answers));
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if needed > context {
            return Err(Error::ContextFull { needed, context });
        }
        let vocab = config.vocab;
        if let Some(&id) = prompt.iter().find(|id| **id as usize >= vocab) {
            let what = "the prompt";
            return Err(Error::UnknownToken { what, id, vocab });
        }
        match &request.want {
            Want::Answer(params) => {
                Tools::new(config, &self.tokenizer, (**params).clone(), context).map(Some)
            }
            Want::Embedding(_) => Ok(None),
            Want::Score { from, .. } if (1..prompt.len()).contains(from) => Ok(None),
            Want::Score { from, .. } => Err(Error::Parameter {
                field: "from",
                value: from.to_string(),
                range: format!("from 1 to {}, a token behind another", prompt.len() - 1),
            }),
        }
    }

    /// What it does and has done.
    pub fn stats(&self) -> Stats {
        let stats = self.shared.stats.lock();
        let stats = *stats.unwrap_or_else(PoisonError::into_inner);
        Stats {
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            ..stats
        }
    }

    /// How it runs: sizes as they are, in whole pages.
    pub fn params(&self) -> &SchedulerParams {
        &self.params
    }

    /// The model.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Whether it has a draft model.
    pub fn drafts(&self) -> bool {
        self.draft.is_some()
    }

    /// What it may still take of memory.
    pub fn promise(&self) -> Promise {
        Promise {
            shared: Arc::downgrade(&self.shared),
            model: Promised::new(&self.weights, self.params.kv, self.params.cache),
            draft: self.draft.clone(),
        }
    }

    /// Whether the engine's thread still runs.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was said already, and closed all replies.
            let _ = thread.join();
        }
    }
}
