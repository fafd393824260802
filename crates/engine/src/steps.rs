//! The engine's thread: one pass through the model after the other.
//!
//! A step:
//!
//! 1. what came in gets in line; what was read from the folder of kept beginnings is taken in; what
//!    was cancelled, or is too late, ends;
//! 2. whoever is first in line joins, while there are places and pages;
//! 3. a batch is put together: a row for every answer that goes on, and rows after tokens that it
//!    guesses to follow, then parts of prompts;
//! 4. pages are found for it: kept beginnings give way, then guesses, then the least urgent sequence;
//! 5. the pass; each row's updates are sent; what is complete leaves.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use model::{Batch, Cache, Chunk, ChunkOut, PAGE, Seq, Weights};
use text::Tokenizer;

use crate::answer::End;
use crate::entry::Entry;
use crate::error::Error;
use crate::fetch::{AT_ONCE, Fetch, Fetches};
use crate::helper::Helper;
use crate::line::{self, Turns};
use crate::prefix::{Folder, Prefixes, agreement};
use crate::scheduler::{Job, SchedulerParams, Shared, Stats};

/// How often to look whether somebody listens again, while nobody does.
const NAP: Duration = Duration::from_millis(2);

/// How long what is kept may take to be written at the end.
const SAVING: Duration = Duration::from_secs(10);

/// Most tokens that all answers of a pass guess together.
const GUESSED: usize = 64;

/// Everything that the engine's thread owns.
pub(crate) struct Engine<'t> {
    weights: &'t Weights,
    tokenizer: &'t Tokenizer,
    params: SchedulerParams,
    shared: &'t Shared,
    cache: Cache,
    prefixes: Prefixes,
    /// The draft model, if there is one.
    helper: Option<Helper>,
    /// What a token of it costs, in passes of one row.
    draft_cost: Option<f64>,
    fetches: Option<Fetches>,
    turns: Turns,
    waiting: Vec<Entry<'t>>,
    running: Vec<Entry<'t>>,
    /// Number of the next request.
    next: u64,
    stats: Stats,
}

/// A part of a pass: which of those that run, its sequence, how many tokens, and how many that are
/// guessed behind them.
#[derive(Clone, Copy)]
struct Part {
    entry: usize,
    seq: Seq,
    tokens: usize,
    guessed: usize,
}

impl Part {
    fn rows(&self) -> usize {
        self.tokens + self.guessed
    }
}

impl<'t> Engine<'t> {
    pub(crate) fn new(
        weights: &'t Weights,
        tokenizer: &'t Tokenizer,
        cache: Cache,
        helper: Option<Helper>,
        folder: Option<Folder>,
        params: SchedulerParams,
        shared: &'t Shared,
    ) -> Engine<'t> {
        Engine {
            weights,
            tokenizer,
            params,
            shared,
            cache,
            fetches: folder.as_ref().map(|f| Fetches::new(f.spill.clone())),
            prefixes: Prefixes::beside(folder),
            // A pass of few rows takes as long as the weights that it reads.
            draft_cost: helper
                .as_ref()
                .map(|helper| helper.bytes() as f64 / weights.bytes_per_token().max(1) as f64),
            helper,
            turns: Turns::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            next: 0,
            stats: Stats::default(),
        }
    }

    /// Until the other side is gone.
    pub(crate) fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            if self.waiting.is_empty() && self.running.is_empty() {
                self.publish();
                match inbox.recv() {
                    Ok(job) => self.enter(job),
                    Err(_) => return self.stop(),
                }
            }
            loop {
                match inbox.try_recv() {
                    Ok(job) => self.enter(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.stop(),
                }
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return self.stop();
            }
            self.fetched();
            self.sweep();
            self.admit();
            let went = self.step();
            self.publish();
            if !went && !self.running.is_empty() {
                match inbox.recv_timeout(NAP) {
                    Ok(job) => self.enter(job),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return self.stop(),
                }
            }
        }
    }

    fn enter(&mut self, job: Job) {
        self.prefixes.forget_unloaded(&mut self.cache);
        self.stats.prompt_tokens += job.request.prompt.len() as u64;
        let (root, priority) = (&job.request.root, job.request.priority);
        let turn = self.turns.take(&root.scope, priority);
        let entry = Entry::new(self.tokenizer, job, turn, self.next);
        self.waiting.push(entry);
        self.next += 1;
    }

    /// The last of it: nobody gets an answer any more, and what is kept goes to the folder.
    fn stop(mut self) {
        self.prefixes.save(&self.cache, Instant::now() + SAVING);
        for entry in self.waiting.into_iter().chain(self.running) {
            entry.finish(Err(Error::Stopped));
        }
    }

    fn publish(&mut self) {
        let total = self.cache.capacity() / PAGE;
        self.stats.running = self.running.len();
        self.stats.pages = (total - self.cache.free_pages(), total);
        self.stats.draft_pages = self.helper.as_ref().map_or((0, 0), Helper::pages);
        self.stats.kept = self.prefixes.len();
        self.stats.evictions = self.prefixes.evictions;
        self.stats.written = self.prefixes.written();
        self.stats.folder_errors = self.fetches.as_ref().map_or(0, Fetches::errors);
        let mut seen = self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *seen = self.stats;
    }

    /// Somebody is not in line any more.
    fn left_line(&self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends what was cancelled, or is too late.
    fn sweep(&mut self) {
        let now = Instant::now();
        for i in (0..self.waiting.len()).rev() {
            if let Some(why) = self.waiting[i].is_over(now) {
                self.left_line();
                let entry = self.waiting.remove(i);
                let scope = &entry.root.scope;
                if !self.waiting.iter().any(|e| e.root.scope == *scope) {
                    self.turns.forget(scope);
                }
                entry.finish(Err(why));
            }
        }
        for i in (0..self.running.len()).rev() {
            if let Some(why) = self.running[i].is_over(now) {
                self.end(i, Err(why));
            }
        }
    }

    /// Takes one that runs out, and says its last word.
    fn end(&mut self, i: usize, how: Result<End, Error>) {
        self.leave(i).finish(how);
    }

    /// Takes one that runs out, and what the caches hold for it.
    fn leave(&mut self, i: usize) -> Entry<'t> {
        let mut entry = self.running.remove(i);
        if let Some(seq) = entry.seq {
            self.cache.close(seq);
        }
        if let (Some(helper), Some(shadow)) = (&mut self.helper, entry.take_shadow()) {
            helper.close(shadow);
        }
        entry
    }

    /// Lets in who is first in line, while there are places and pages.
    fn admit(&mut self) {
        while self.running.len() < self.params.parallel {
            let Some(first) = line::first(&self.waiting, |e| &e.place) else {
                return;
            };
            if !self.running.is_empty() && !self.fits(&self.waiting[first]) {
                return;
            }
            let entry = self.waiting.remove(first);
            self.left_line();
            let waiting = self.waiting.iter_mut().map(|e| &mut e.place);
            line::pass(waiting, &entry.place);
            self.turns.went(&entry.place, &entry.root.scope);
            self.running.push(entry);
        }
    }

    /// Whether there are pages for all that an entry has to read, besides what those that run still
    /// have to read.
    fn fits(&self, entry: &Entry) -> bool {
        let whole = |e: &Entry| (e.tokens().len() + 1).div_ceil(PAGE);
        let due = self.running.iter().map(|e| match e.seq {
            Some(seq) => {
                let rest = (e.tokens().len() + 1).saturating_sub(e.held);
                self.cache.pages_for(seq, rest)
            }
            None => whole(e),
        });
        let there = match entry.shares() {
            true => self
                .prefixes
                .in_use(&self.cache, &entry.root, entry.tokens()),
            false => 0,
        };
        let needed = whole(entry).saturating_sub(there) + due.sum::<usize>();
        needed <= self.cache.free_pages() + self.prefixes.unused(&self.cache)
    }

    /// One pass. False if there was nothing to run.
    fn step(&mut self) -> bool {
        let mut parts = self.plan();
        self.find_pages(&mut parts);
        if parts.is_empty() {
            return false;
        }
        self.stats.steps += 1;
        self.stats.chunks += parts.len() as u64;
        let size = parts.len().next_power_of_two().trailing_zeros() as usize;
        self.stats.batches[size.min(9)] += 1;
        let outs = self.pass(&parts);
        let (mut over, now) = (Vec::new(), Instant::now());
        for (part, out) in parts.iter().zip(outs) {
            match out.and_then(|out| self.take(part, &out, now)) {
                Ok(None) => {}
                Ok(Some(end)) => over.push((part.entry, Ok(end))),
                Err(error) => over.push((part.entry, Err(error))),
            }
            self.running[part.entry].ring();
        }
        over.sort_by_key(|(entry, _)| *entry);
        for (entry, how) in over.into_iter().rev() {
            self.end(entry, how);
        }
        true
    }

    /// Who runs how many tokens in the next pass.
    fn plan(&mut self) -> Vec<Part> {
        let patience = self.params.patience;
        let mut parts = Vec::new();
        let mut reading = Vec::new();
        for (entry, e) in self.running.iter_mut().enumerate() {
            if !e.is_heard(patience) {
                continue;
            }
            match e.seq {
                Some(seq) if e.answers() => parts.push(Part {
                    entry,
                    seq,
                    tokens: 1,
                    guessed: 0,
                }),
                _ => reading.push(entry),
            }
        }
        self.guess(&mut parts);
        reading.sort_by_key(|i| self.running[*i].place.order());
        let rows: usize = parts.iter().map(Part::rows).sum();
        // However many answers there are, some of a prompt is read.
        let mut budget = self.params.budget.saturating_sub(rows).max(1);
        let mut planned = Vec::new();
        for entry in reading {
            if self.fetching(entry) {
                continue;
            }
            if budget == 0 || self.waits_for_another(entry, &planned) {
                let place = &mut self.running[entry].place;
                place.passed = place.passed.saturating_add(u32::from(budget == 0));
                continue;
            }
            let seq = self.open(entry);
            let e = &self.running[entry];
            let tokens = e.next(self.weights.config.vocab).min(budget);
            budget -= tokens;
            planned.push(entry);
            parts.push(Part {
                entry,
                seq,
                tokens,
                guessed: 0,
            });
        }
        parts
    }

    /// Whether a beginning of one that is about to read is on its way from the folder.
    fn fetching(&mut self, entry: usize) -> bool {
        let e = &self.running[entry];
        if e.seq.is_some() || !self.shares(e) {
            return false;
        }
        let Some(fetches) = &self.fetches else {
            return false;
        };
        let mut fetch = std::mem::take(&mut self.running[entry].fetch);
        let e = &self.running[entry];
        let waits = fetches.due(&mut fetch, || {
            let blocks = self
                .prefixes
                .in_folder(&self.cache, &e.root, e.tokens(), AT_ONCE);
            let at = self.prefixes.matched(&e.root, e.tokens());
            (at, blocks)
        });
        self.running[entry].fetch = fetch;
        waits
    }

    /// Takes in what was read from the folder.
    fn fetched(&mut self) {
        while let Some(found) = self.fetches.as_ref().and_then(Fetches::next) {
            let mut waiting = self.running.iter_mut().filter(|e| e.seq.is_none());
            let asked = waiting.find_map(|e| Some((e.fetch.place_of(&found.ask)?, e)));
            let Some((at, e)) = asked else {
                continue;
            };
            let mut all = found.all;
            for (i, bytes) in found.blocks.into_iter().enumerate() {
                let (root, tokens) = (&e.root, e.tokens());
                all &= self
                    .prefixes
                    .restore(&mut self.cache, root, tokens, at + i, bytes);
                self.stats.restored += u64::from(all);
            }
            e.fetch = if all { Fetch::Due } else { Fetch::Done };
        }
    }

    /// Lets the answers of a pass guess what follows.
    fn guess(&mut self, parts: &mut [Part]) {
        let (context, answers) = (self.params.context, parts.len());
        for part in parts.iter() {
            self.running[part.entry].guess(context, answers, self.draft_cost);
        }
        if let Some(helper) = &mut self.helper {
            let asked = self.running.iter_mut();
            let asked = asked.filter_map(|e| e.wish(helper));
            let (mut wishes, guesses): (Vec<_>, Vec<_>) = asked.unzip();
            let ids = helper.guess(&mut wishes, self.params.budget);
            for (guess, ids) in guesses.into_iter().zip(ids) {
                guess.put(ids);
            }
        }
        // Their logits take memory, and the others wait for them.
        let mut left = self.params.budget.saturating_sub(answers).min(GUESSED);
        for part in parts {
            let e = &mut self.running[part.entry];
            e.cut_guess(left);
            part.guessed = e.guessed();
            left -= part.guessed;
        }
    }

    /// Whether one of those that read in this pass reads what this one could then share.
    fn waits_for_another(&self, entry: usize, planned: &[usize]) -> bool {
        let e = &self.running[entry];
        if e.seq.is_some() || !self.shares(e) {
            return false;
        }
        let there = self.prefixes.matched(&e.root, e.tokens()) * PAGE;
        let most = e.tokens().len() - 1;
        planned.iter().map(|i| &self.running[*i]).any(|other| {
            let same = agreement(other.tokens(), e.tokens()).min(most);
            let same = same.min(e.root.with(&other.root));
            other.shares() && same / PAGE * PAGE > there
        })
    }

    fn shares(&self, e: &Entry) -> bool {
        self.params.share && self.cache.holds_blocks() && e.shares()
    }

    /// The sequence of one that runs; a new one if it has none.
    fn open(&mut self, entry: usize) -> Seq {
        let shares = self.params.share && self.running[entry].shares();
        let e = &mut self.running[entry];
        if let Some(seq) = e.seq {
            return seq;
        }
        let (seq, cached, miss) = match shares {
            true => self.prefixes.open(&mut self.cache, &e.root, e.tokens()),
            false => (self.cache.open(), 0, None),
        };
        if e.begin(seq, cached, miss) {
            self.stats.cached_tokens += cached as u64;
        }
        seq
    }

    /// Makes sure that there are pages for all parts, at the cost of kept beginnings, then of
    /// guesses, then of the least urgent that run.
    fn find_pages(&mut self, parts: &mut Vec<Part>) {
        loop {
            let needed = parts.iter().map(|p| self.cache.pages_for(p.seq, p.rows()));
            if needed.sum::<usize>() <= self.cache.free_pages() {
                return;
            }
            if self.prefixes.evict(&mut self.cache) {
                continue;
            }
            if self.skip_guesses(parts) {
                continue;
            }
            let with_pages = (0..self.running.len()).filter(|i| self.running[*i].seq.is_some());
            let least = with_pages
                .clone()
                .max_by_key(|i| self.running[*i].place.yields());
            match least {
                Some(i) if with_pages.count() > 1 => self.preempt(i, parts),
                // Alone: its pages suffice, but for blocks that it has twice.
                _ if self.prefixes.len() > 0 => self.prefixes.clear(&mut self.cache),
                _ => return,
            }
        }
    }

    /// Goes without guesses; false if there are none.
    fn skip_guesses(&mut self, parts: &mut [Part]) -> bool {
        let mut any = false;
        for part in parts.iter_mut().filter(|part| part.guessed > 0) {
            self.running[part.entry].skip_guess();
            part.guessed = 0;
            any = true;
        }
        any
    }

    /// Sends one that runs back into line; it reads anew what it has, when there is room again.
    fn preempt(&mut self, i: usize, parts: &mut Vec<Part>) {
        let mut entry = self.leave(i);
        entry.rewind();
        self.stats.preemptions += 1;
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting.push(entry);
        parts.retain(|part| part.entry != i);
        for part in parts.iter_mut().filter(|part| part.entry > i) {
            part.entry -= 1;
        }
    }

    /// Runs the parts in one pass; if it fails, each in a pass of its own, so that nobody fails for
    /// another.
    fn pass(&mut self, parts: &[Part]) -> VecDeque<Result<ChunkOut, Error>> {
        match self.forward(parts) {
            Ok(outs) => outs.into_iter().map(Ok).collect(),
            Err(error) if parts.len() == 1 => VecDeque::from([Err(error)]),
            Err(_) => {
                let alone = parts.iter().map(|part| {
                    let outs = self.forward(std::slice::from_ref(part))?;
                    Ok(outs.into_iter().next().unwrap_or_default())
                });
                alone.collect()
            }
        }
    }

    fn forward(&mut self, parts: &[Part]) -> Result<Vec<ChunkOut>, Error> {
        let chunk = |p: &Part| -> Chunk { self.running[p.entry].chunk(p.seq, p.tokens) };
        let batch = Batch {
            chunks: parts.iter().map(chunk).collect(),
        };
        match model::forward(self.weights, &batch, &mut self.cache, &mut ()) {
            Ok(outs) => Ok(outs.chunks),
            Err(error) => {
                // Whatever a failed pass left behind is not what they hold.
                for part in parts {
                    self.cache.truncate(part.seq, self.running[part.entry].held);
                }
                Err(error.into())
            }
        }
    }

    /// Takes a part's rows; says how it ends, if it does.
    fn take(&mut self, part: &Part, out: &ChunkOut, now: Instant) -> Result<Option<End>, Error> {
        let (vocab, context) = (self.weights.config.vocab, self.params.context);
        let e = &mut self.running[part.entry];
        let before = e.held;
        let taken = e.take(part.tokens, out, vocab, context)?;
        if taken.generated > 0 {
            self.stats.gaps.count(e.came(now), taken.generated);
        }
        self.stats.generated += taken.generated as u64;
        self.stats.drafted += taken.drafts.drafted as u64;
        self.stats.accepted += taken.drafts.accepted as u64;
        if part.guessed > 0 {
            // Rows behind a wrong guess are forgotten.
            e.held = self.cache.truncate(part.seq, e.held);
        }
        // A page more is full.
        if e.held / PAGE > before / PAGE && self.params.share && e.shares() {
            let held = &e.tokens()[..e.held.min(e.tokens().len())];
            let same = e.shifted().map_or(held.len(), |kept| kept.min(held.len()));
            self.prefixes
                .keep(&mut self.cache, &e.root, &held[..same], part.seq);
        }
        if let Some(kept) = e.shifted() {
            e.held = self.cache.truncate(part.seq, kept.min(e.held));
        }
        Ok(taken.end)
    }
}
