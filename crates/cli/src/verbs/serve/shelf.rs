//! The models that `puna serve` has: those that are named, and with `--on-demand` all others of this
//! machine, which are loaded when a request asks for them. Memory is planned for all loaded ones
//! together.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use engine::{Beside, Drafter, KeptIn, Scheduler, SchedulerParams, Spill};
use hub::Resolved;
use kernels::KvType;
use model::{Cache, Config};
use server::{Clock, Loaded, Loader, Model, Offer};

use crate::args::{DraftArgs, LoadArgs, NetArgs, ServeArgs};
use crate::exit::{Code, classify, failure, usage};
use crate::load::{self, Placed};
use crate::machine::{available_memory, held, size};
use crate::memory::{self, Need, Promises};
use crate::verbs::sampling;
use crate::{config, identity, lend, out};

/// Tokens of context that a model should have, if it was made for so many, before it is loaded
/// beside others.
const USUAL: usize = 4096;

/// What a request asks for never comes over the network.
const LOCAL: NetArgs = NetArgs { offline: true };

pub struct Shelf {
    load: LoadArgs,
    parallel: usize,
    draft: DraftArgs,
    /// Adapters that requests to the first model may choose, as they were typed.
    adapters: Vec<String>,
    /// Where kept beginnings go when memory runs out.
    spill: Option<Arc<Spill>>,
    clock: Clock,
    /// (id, MODEL as it was typed)
    named: Vec<(String, String)>,
    /// What the process held before any model.
    base: u64,
    /// What models were made for, by their files: heads of files are read once.
    contexts: Mutex<HashMap<PathBuf, Option<usize>>>,
    /// What models that are loaded may still take.
    promises: Arc<Promises>,
}

/// Finds the models that are named, or the default one, and pulls what is not here.
pub fn named(args: &ServeArgs) -> Result<Vec<Placed>> {
    let typed: Vec<Option<&str>> = match &args.model[..] {
        [] => vec![None],
        some => some.iter().map(|m| Some(m.as_str())).collect(),
    };
    let mut all: Vec<Placed> = Vec::new();
    for typed in typed {
        let placed = load::place(typed, &args.load)?;
        if all
            .iter()
            .any(|other| other.found.name == placed.found.name)
        {
            return Err(usage(
                format!("two models are called {}", placed.found.name),
                "name each --model once",
            ));
        }
        all.push(placed);
    }
    Ok(all)
}

impl Shelf {
    pub fn new(
        args: &ServeArgs,
        spill: Option<Arc<Spill>>,
        clock: &Clock,
        named: &[Placed],
    ) -> Shelf {
        let names = named
            .iter()
            .map(|p| (p.found.name.clone(), p.typed.clone()));
        Shelf {
            load: args.load.clone(),
            parallel: args.parallel,
            draft: args.draft.clone(),
            adapters: args.named_adapter.clone(),
            promises: Arc::new(Promises::besides(queue(spill.as_ref()))),
            spill,
            clock: clock.clone(),
            named: names.collect(),
            base: held(),
            contexts: Mutex::default(),
        }
    }

    /// Loads the first of models that come and go: as one that is loaded later, it gets half of what
    /// it can do without.
    pub fn load_first(&self, placed: Placed) -> Result<Loaded> {
        let need = self.least(&placed, USUAL)?;
        let room = self.memory();
        let room = room.map(|free| free.min(need) + free.saturating_sub(need) / 2);
        self.open(placed, room)
    }

    /// Loads these: each gets what it needs at least, and an even share of what is left.
    pub fn load_all(&self, all: Vec<Placed>) -> Result<Vec<Loaded>> {
        let needs = match all.len() {
            // It may have everything.
            1 => vec![0],
            _ => all
                .iter()
                .map(|placed| self.least(placed, model::PAGE))
                .collect::<Result<_>>()?,
        };
        let mut left = self.memory();
        let due = needs.iter().sum::<u64>();
        if let Some(free) = left.filter(|free| due > *free) {
            let what = format!(
                "{} models need {} of memory together, and {} are free",
                all.len(),
                size(due),
                size(free)
            );
            let hint = "serve fewer models, or --on-demand: then idle ones give way";
            return Err(failure(Code::Memory, what, hint));
        }
        let mut loaded = Vec::new();
        for (i, placed) in all.into_iter().enumerate() {
            let due = needs[i..].iter().sum::<u64>();
            let parts = (needs.len() - i) as u64;
            let room = left.map(|left| needs[i] + left.saturating_sub(due) / parts);
            let next = self.open(placed, room)?;
            left = left.map(|left| left.saturating_sub(next.bytes));
            loaded.push(next);
        }
        Ok(loaded)
    }

    /// Loads a model in at most so many bytes.
    fn open(&self, placed: Placed, room: Option<u64>) -> Result<Loaded> {
        let (loaded, tokenizer) = load::opened(placed)?;
        let lower = &loaded.lower;
        let template = lower.template(None);
        let template = match load::template_of(&loaded.path, &tokenizer, template.as_ref()) {
            Ok(template) => Some(template),
            Err(error) if matches!(error.downcast_ref(), Some(text::Error::NoTemplate)) => None,
            Err(error) => return Err(error),
        };
        let generation = load::generation_config(&loaded, sampling::any_set(&lower.sampling))?;
        let eog = generation.as_ref().map(engine::eog_from_generation_config);
        let eog = eog.transpose()?.unwrap_or_default();
        let sampler = sampling::params(&lower.sampling, generation.as_ref())?;
        let guessing = self.guessing(&loaded);
        let speculation = guessing.speculation()?;
        let (beside, drafts) = self.beside(&loaded, &guessing)?;
        // The room is for all of it, also for what was put together in memory just now.
        let weights = loaded.weights.bytes().saturating_add(drafts);
        let (config, ctx) = (&loaded.weights.config, loaded.load.ctx);
        let weights = weights.saturating_add(self.read_back(config, loaded.cache_type, ctx)?);
        let need = Need {
            mapped: weights,
            ..loaded.need(loaded.load.ctx)
        };
        let (context, cache) = memory::shared_cache(&need, self.parallel, room)?;
        let bytes = memory::whole(need.config, weights, loaded.cache_type, cache)?;
        let params = SchedulerParams {
            cache,
            ..SchedulerParams::new(loaded.cache_type, context, self.parallel)
        };
        let (weights, tokenizer) = (loaded.weights.clone(), Arc::new(tokenizer));
        let scheduler = Scheduler::start_beside(weights, tokenizer, params, beside)?;
        self.promises.add(scheduler.promise());
        out::note(&format!("{}, context {context} tokens", loaded.name));
        let model = Model {
            id: loaded.name,
            created: self.clock.now() / 1000,
            scheduler,
            template,
            sampler,
            speculation,
            eog,
            stop: loaded.lower.stop,
            system: loaded.lower.system,
            turns: loaded.lower.turns,
            seed: loaded.lower.sampling.seed,
            max_tokens: loaded.lower.max_tokens,
            adaptation: loaded.adaptation,
            adapters: lend::choosable(self.promises.clone()),
        };
        if self.named.first().is_some_and(|(id, _)| *id == model.id) {
            lend::load(&model, &self.adapters)?;
        }
        Ok(Loaded { model, bytes })
    }

    /// Bytes that what comes back from the folder may take before it is in a model's cache.
    fn read_back(&self, config: &Config, ty: KvType, ctx: Option<usize>) -> Result<u64> {
        if self.spill.is_none() {
            return Ok(0);
        }
        let context = Cache::bytes_for(config, ty, ctx.unwrap_or(config.context))?;
        Ok(Spill::read_back(self.parallel, context))
    }

    /// Bytes that a model takes with a context of so many tokens: fewer if it was made for fewer, what
    /// was asked if something was.
    fn least(&self, placed: &Placed, usual: usize) -> Result<u64> {
        let path = &placed.found.path;
        let (config, weights) = model::head(path).map_err(|error| load::named(path, error))?;
        let (ctx, ty) = (placed.load.ctx, load::cache_type(&placed.load));
        let weights = weights.saturating_add(self.read_back(&config, ty, ctx)?);
        memory::whole(
            &config,
            weights,
            ty,
            ctx.unwrap_or(usual.min(config.context)),
        )
    }

    /// How a model guesses ahead: a draft model that was typed is for models that were typed.
    fn guessing(&self, loaded: &load::Loaded) -> DraftArgs {
        let mut guessing = self.draft.clone();
        if !self.named.iter().any(|(id, _)| *id == loaded.name) {
            guessing.draft = None;
            guessing.speculate = guessing.speculate.filter(|s| s.by != Drafter::Model);
        }
        guessing.fill(&loaded.lower.draft);
        guessing
    }

    /// What stands beside a model's engine, and the bytes that a draft model takes.
    fn beside(&self, loaded: &load::Loaded, guessing: &DraftArgs) -> Result<(Beside, u64)> {
        let folder = self.spill.clone().map(|spill| KeptIn {
            spill,
            model: identity::of(loaded),
            adaptation: loaded.adaptation.clone(),
        });
        let draft = guessing.draft.as_deref();
        let draft = draft.map(|typed| load::draft_among(loaded, typed, self.parallel));
        let (draft, bytes) = draft.transpose()?.unzip();
        Ok((Beside { folder, draft }, bytes.unwrap_or(0)))
    }

    /// A model on this machine, with the options that it is loaded with. Adapters that were typed
    /// are for models that were typed.
    fn place(&self, id: &str) -> Result<Placed> {
        let typed = self.named.iter().find(|(name, _)| name == id);
        let mut args = self.load.clone();
        let word = match typed {
            Some((_, typed)) => typed.clone(),
            None => {
                args.adapter.clear();
                args.control_vector.clear();
                let mut presets = presets().into_iter();
                let preset = presets.find(|(_, found)| found.name == id);
                preset.map_or_else(|| id.to_owned(), |(word, _)| word)
            }
        };
        let found = find(&word)?;
        load::lay(word, found, &args)
    }

    /// What the model in a file was made for.
    fn context_of(&self, path: &Path) -> Option<usize> {
        let mut known = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = known.get(path) {
            return *context;
        }
        let context = model::head(path).ok().map(|(config, _)| config.context);
        known.insert(path.to_path_buf(), context);
        context
    }
}

impl Loader for Shelf {
    fn offers(&self) -> Vec<Offer> {
        let offer = |id: String, created: u64, bytes: u64, path: &Path| Offer {
            context: self.context_of(path),
            id,
            created,
            bytes,
        };
        let mut offers: Vec<Offer> = Vec::new();
        let named = self.named.iter().filter_map(|(_, typed)| find(typed).ok());
        for found in named.chain(presets().into_iter().map(|(_, found)| found)) {
            offers.push(offer(found.name, 0, found.bytes, &found.path));
        }
        let store = load::hub(LOCAL).and_then(|hub| Ok(hub.list()?));
        let store = store.inspect_err(|error| tracing::error!("the store: {error:#}"));
        for entry in store.unwrap_or_default() {
            if entry.damage.is_none() {
                offers.push(offer(entry.name, entry.pulled, entry.bytes, &entry.path));
            }
        }
        let mut seen = std::collections::HashSet::new();
        offers.retain(|offer| seen.insert(offer.id.clone()));
        offers
    }

    fn memory(&self) -> Option<u64> {
        let all = available_memory()?.saturating_add(held().saturating_sub(self.base));
        Some(all.saturating_sub(queue(self.spill.as_ref())))
    }

    fn need(&self, id: &str) -> Result<u64, String> {
        self.place(id)
            .and_then(|placed| self.least(&placed, USUAL))
            .map_err(|e| told(&e))
    }

    fn load(&self, id: &str, room: Option<u64>) -> Result<Loaded, String> {
        let loaded = self.place(id).and_then(|placed| self.open(placed, room));
        loaded.map_err(|error| told(&error))
    }
}

/// Bytes that may wait to be written to the folder of kept beginnings.
fn queue(spill: Option<&Arc<Spill>>) -> u64 {
    spill.map_or(0, |_| Spill::QUEUE)
}

/// A model of this machine.
fn find(word: &str) -> Result<Resolved> {
    Ok(load::hub(LOCAL)?.resolve(word, &mut ())?)
}

/// Models that puna.toml has a section for, by whatever name, as far as they are here.
fn presets() -> Vec<(String, Resolved)> {
    let words = config::get().models.keys();
    let found = words.filter_map(|word| Some((word.clone(), find(word).ok()?)));
    found.collect()
}

fn told(error: &anyhow::Error) -> String {
    classify(error).what
}
