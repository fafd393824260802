//! The memory plan: weights, cache and work space, before any of it is used; and what would fit
//! where that is too much.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use engine::Promise;
use kernels::KvType;
use model::{Cache, Config, PAGE, bytes_to_work};

use crate::exit::{Code, failure, usage};
use crate::machine::{available_memory, size};

/// Storage types to fall back to, and the bits of a weight in files of them, a little rounded up.
const SMALLER: [(&str, f64); 5] = [
    ("Q8_0", 8.6),
    ("Q6_K", 6.7),
    ("Q4_K_M", 5.1),
    ("Q3_K_M", 4.2),
    ("Q2_K", 3.4),
];

/// What is to be run, as far as memory goes.
pub struct Need<'a> {
    /// MODEL, as it was typed.
    pub name: &'a str,
    /// Where it lies; `None`: nowhere, it is made up.
    pub path: Option<&'a Path>,
    pub config: &'a Config,
    /// Bytes of weights that memory has yet to hold.
    pub mapped: u64,
    /// Storage of keys and values.
    pub ty: KvType,
    /// `--ctx`
    pub asked: Option<usize>,
}

/// The context in tokens: what was asked if it fits in memory, else the smaller of the model's and
/// what fits.
pub fn context(need: &Need<'_>) -> Result<usize> {
    context_in(need, available_memory())
}

/// The same, in so many bytes; `None`: in any number.
fn context_in(need: &Need<'_>, free: Option<u64>) -> Result<usize> {
    let config = need.config;
    if let (Some(asked), Some(limit)) = (need.asked, config.position_limit())
        && asked > config.context
    {
        return Err(usage(
            format!("--ctx {asked}: the model has no positions from {limit} on"),
            format!("--ctx {} is its own context", config.context),
        ));
    }
    match free {
        Some(free) => plan(need, free),
        None => Ok(need.asked.unwrap_or(config.context)),
    }
}

/// The context of one sequence, and the tokens of a cache that `parallel` of them share: all at full
/// length if that fits in `free` bytes, else what fits.
pub fn shared_cache(need: &Need<'_>, parallel: usize, free: Option<u64>) -> Result<(usize, usize)> {
    let context = context_in(need, free)?;
    let wanted = context.saturating_mul(parallel);
    let fits = match free {
        Some(free) => fitting(need, need.ty, free)?,
        None => wanted,
    };
    Ok((context, wanted.min(fits).max(context)))
}

/// Bytes that a model takes in all: weights, work space, and a cache of so many tokens.
pub fn whole(config: &Config, weights: u64, ty: KvType, tokens: usize) -> Result<u64> {
    let cache = Cache::bytes_for(config, ty, tokens)?;
    Ok(weights
        .saturating_add(bytes_to_work(config))
        .saturating_add(cache))
}

/// What the schedulers of this process may still take, and what else is to be kept free for them.
#[derive(Debug, Default)]
pub struct Promises {
    of: Mutex<Vec<Promise>>,
    /// Bytes.
    besides: u64,
}

impl Promises {
    /// None yet, but so many bytes for what they have in common.
    pub fn besides(bytes: u64) -> Promises {
        Promises {
            besides: bytes,
            ..Promises::default()
        }
    }

    /// One more scheduler.
    pub fn add(&self, promise: Promise) {
        self.list().push(promise);
    }

    /// What is still to come, of all that run.
    fn bytes(&self) -> u64 {
        let mut list = self.list();
        list.retain(|promise| promise.bytes().is_some());
        let due = list.iter().filter_map(Promise::bytes);
        due.fold(self.besides, u64::saturating_add)
    }

    fn list(&self) -> MutexGuard<'_, Vec<Promise>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses what running models have no room for beside them: what they still have to take comes
/// first.
pub fn room_beside(promises: &Promises, bytes: u64) -> Result<()> {
    match available_memory() {
        Some(free) => room_in(free, promises, bytes),
        None => Ok(()),
    }
}

fn room_in(free: u64, promises: &Promises, bytes: u64) -> Result<()> {
    match free.saturating_sub(promises.bytes()) {
        left if left >= bytes => Ok(()),
        left => {
            let what = format!(
                "it needs {}, and {} are left beside the models",
                size(bytes),
                size(left)
            );
            let hint = "serve with a smaller --ctx or --parallel";
            Err(failure(Code::Memory, what, hint))
        }
    }
}

fn plan(need: &Need<'_>, free: u64) -> Result<usize> {
    let config = need.config;
    let fits = fitting(need, need.ty, free)?;
    let wanted = need.asked.unwrap_or(config.context.min(fits));
    if wanted <= fits && wanted > 0 {
        if wanted > config.context {
            tracing::warn!(
                "--ctx {wanted}: the model was made for {} tokens; beyond them answers decay",
                config.context
            );
        }
        return Ok(wanted);
    }
    // Without any room, the smallest context that there is stands for the cache.
    let told = wanted.max(PAGE);
    let options = |tokens: usize| Some(format!("--ctx {tokens}"));
    let ask = Ask {
        what: "a context",
        tokens: told,
        least: need.asked,
        most: config.context,
        options: &options,
    };
    Err(refusal(need, &ask, free)?)
}

/// What a verb wants to hold in a cache, and how it says that it wants less.
pub struct Ask<'a> {
    /// What so many tokens are, in words: `a context`.
    pub what: &'a str,
    /// Tokens in all.
    pub tokens: usize,
    /// What must fit for a proposal to be as good as what was asked for; `None`: a page will do.
    pub least: Option<usize>,
    /// More tokens than these are never proposed.
    pub most: usize,
    /// The options that ask for at most so many tokens, if any do.
    pub options: &'a dyn Fn(usize) -> Option<String>,
}

/// Refuses what does not fit in the memory that is free, with what would.
pub fn room(need: &Need<'_>, ask: &Ask<'_>) -> Result<()> {
    match available_memory() {
        Some(free) if fitting(need, need.ty, free)? < ask.tokens => Err(refusal(need, ask, free)?),
        _ => Ok(()),
    }
}

/// What does not fit in `free` bytes, in numbers, with the nearest that does.
fn refusal(need: &Need<'_>, ask: &Ask<'_>, free: u64) -> Result<anyhow::Error> {
    let work = bytes_to_work(need.config);
    let cache = Cache::bytes_for(need.config, need.ty, ask.tokens)?;
    let all = need.mapped.saturating_add(work).saturating_add(cache);
    let what = format!(
        "{} of {} tokens needs {} ({} for the weights, {} for the cache, {} to work in) and {} are \
         free",
        ask.what,
        ask.tokens,
        size(all),
        size(need.mapped),
        size(cache),
        size(work),
        size(free)
    );
    let found = choices(need, ask, free)?;
    let hint = match found.is_empty() {
        true => "choose a smaller model or end other programs".into(),
        false => found.join("; "),
    };
    Ok(failure(Code::Memory, what, hint))
}

/// The largest context, in whole pages, that fits with a cache of this type.
fn fitting(need: &Need<'_>, ty: KvType, free: u64) -> Result<usize> {
    let fixed = need.mapped.saturating_add(bytes_to_work(need.config));
    match free.checked_sub(fixed) {
        Some(left) => tokens_that_fit(need.config, ty, left),
        None => Ok(0),
    }
}

/// What would fit, the nearest first: fewer tokens, a smaller cache, smaller weights.
fn choices(need: &Need<'_>, ask: &Ask<'_>, free: u64) -> Result<Vec<String>> {
    let name = match need.path {
        Some(_) => quoted(need.name),
        None => need.name.to_owned(),
    };
    let command = |options: &str| match crate::env::verb().as_deref() {
        Some(verb @ ("run" | "bench")) => format!("`puna {verb} {name} {options}` fits"),
        Some("show") => format!("`puna run {name} {options}` fits"),
        _ => format!("`{options}` fits"),
    };
    let mut found = Vec::new();
    let fits = with_margin(fitting(need, need.ty, free)?).min(ask.most);
    if let Some(options) = (ask.options)(fits).filter(|_| fits > 0) {
        found.push(command(&options));
    }
    if need.ty != KvType::Q8_0 {
        let small = with_margin(fitting(need, KvType::Q8_0, free)?);
        let tokens = match ask.least.filter(|least| *least <= small) {
            Some(least) => least,
            None => small.min(ask.most),
        };
        if let Some(options) = (ask.options)(tokens).filter(|_| tokens > fits) {
            found.push(command(&format!("--cache-type q8_0 {options}")));
        }
    }
    found.extend(smaller(need, ask, free)?);
    Ok(found)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "._-/:@+=~".contains(c);
    match word.chars().all(plain) && !word.is_empty() {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Free memory goes up and down: what is proposed leaves an eighth of it.
fn with_margin(fits: usize) -> usize {
    match fits {
        0..=PAGE => fits,
        more => (more - more / 8) / PAGE * PAGE,
    }
}

/// The largest smaller type in which the model and what was asked fit, as the command that makes it.
fn smaller(need: &Need<'_>, ask: &Ask<'_>, free: u64) -> Result<Option<String>> {
    // Those that `puna quantize` reads; what is made up is made up anew.
    let is_file = |path| files::detect(path).is_ok_and(|kind| kind == files::Kind::Gguf);
    let is_plain = need.config.arch == model::Arch::Llama && need.config.experts.is_none();
    if !(need.path.is_none_or(is_file) || is_plain) {
        return Ok(None);
    }
    let parameters = need.config.parameters();
    for (ty, bits) in SMALLER {
        let mapped = (parameters as f64 * bits / 8.0) as u64;
        let less = Need { mapped, ..*need };
        let fits = fitting(&less, need.ty, free)?;
        if mapped < need.mapped && fits >= ask.least.unwrap_or(PAGE).max(PAGE) {
            if need.path.is_none() {
                return Ok(Some(format!("`--type {ty}` fits")));
            }
            let name = &quoted(need.name);
            let stem = Path::new(need.name).file_stem().unwrap_or_default();
            let stem = stem.to_string_lossy().replace([':', ' ', '\''], "-");
            return Ok(Some(format!(
                "`puna quantize {name} {stem}-{ty}.gguf {ty} --allow-requantize` makes one that fits"
            )));
        }
    }
    Ok(None)
}

/// The largest number of tokens, in whole pages, whose cache takes at most so many bytes.
fn tokens_that_fit(config: &Config, ty: KvType, bytes: u64) -> Result<usize> {
    let (mut fit, mut too_many) = (0, usize::MAX / PAGE);
    while too_many - fit > 1 {
        let pages = fit + (too_many - fit) / 2;
        match Cache::bytes_for(config, ty, pages * PAGE)? <= bytes {
            true => fit = pages,
            false => too_many = pages,
        }
    }
    Ok(fit * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let shape = model::shapes().iter().find(|s| s.name == "llama-3.2-1b");
        shape
            .expect("a shape of that name")
            .config()
            .expect("a sound configuration")
    }

    fn need(config: &Config, asked: Option<usize>) -> Need<'_> {
        Need {
            name: "m:latest",
            path: Some(Path::new("none")),
            config,
            mapped: 5 << 29,
            ty: KvType::F16,
            asked,
        }
    }

    fn refused(need: &Need<'_>, free: u64) -> crate::exit::Failure {
        let failure = crate::exit::classify(&plan(need, free).unwrap_err());
        assert_eq!(failure.code, Code::Memory);
        failure
    }

    #[test]
    fn the_plan_takes_the_models_context_if_it_fits() {
        let config = config();
        assert_eq!(plan(&need(&config, None), 1 << 40).unwrap(), config.context);
        let page = Cache::bytes_for(&config, KvType::F16, PAGE).unwrap();
        let tight = (5 << 29) + bytes_to_work(&config) + page * 10;
        assert_eq!(plan(&need(&config, None), tight).unwrap(), 10 * PAGE);
        assert_eq!(plan(&need(&config, Some(300)), tight).unwrap(), 300);
        let failure = refused(&need(&config, Some(321)), tight);
        assert!(failure.what.contains("321"), "{failure:?}");
        let hint = failure.hint.unwrap();
        // In this order: a smaller context, a smaller cache, smaller weights.
        let at = |part: &str| {
            hint.find(part)
                .unwrap_or_else(|| panic!("no {part} in {hint}"))
        };
        assert!(at("`--ctx 256` fits") < at("`--cache-type q8_0 --ctx 321` fits"));
        assert!(at("q8_0 --ctx") < at("puna quantize m:latest m-latest-Q8_0.gguf Q8_0"));
        // Each of them does fit.
        assert!(plan(&need(&config, Some(256)), tight).is_ok());
        let small = Need {
            ty: KvType::Q8_0,
            ..need(&config, Some(321))
        };
        assert!(plan(&small, tight).is_ok());
    }

    #[test]
    fn what_was_promised_comes_first() {
        let promises = Promises::besides(64 << 20);
        assert!(room_in(100 << 20, &promises, 36 << 20).is_ok());
        let refused = room_in(100 << 20, &promises, 37 << 20).unwrap_err();
        let failure = crate::exit::classify(&refused);
        assert_eq!(failure.code, Code::Memory);
        let kernels = kernels::Kernels::new(kernels::Level::Scalar, kernels::Compute::F32, 1);
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fixtures/reference/models/llama3");
        let weights = model::open(&path, kernels.unwrap().into()).unwrap();
        let tokenizer = text::Tokenizer::open(&path).unwrap();
        let (weights, tokenizer) = (std::sync::Arc::new(weights), std::sync::Arc::new(tokenizer));
        let params = engine::SchedulerParams::new(KvType::F32, 1 << 16, 2);
        let start = || {
            let (weights, tokenizer) = (weights.clone(), tokenizer.clone());
            let scheduler = engine::Scheduler::start(weights, tokenizer, params).unwrap();
            promises.add(scheduler.promise());
            scheduler
        };
        let cache = Cache::bytes_for(&weights.config, KvType::F32, 1 << 17).unwrap();
        let (one, two) = (start(), start());
        let due = promises.bytes() - (64 << 20);
        assert!(due >= 2 * cache, "{due} for two caches of {cache}");
        assert!(room_in(due + (65 << 20), &promises, 1 << 20).is_ok());
        assert!(room_in(due + (65 << 20), &promises, (1 << 20) + 1).is_err());
        drop(one);
        assert_eq!(promises.bytes() - (64 << 20), due / 2);
        drop(two);
        assert_eq!(promises.bytes(), 64 << 20);
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused() {
        let config = config();
        let hint = refused(&need(&config, None), 1 << 30).hint.unwrap();
        assert!(hint.starts_with("`puna quantize"), "{hint}");
        let hint = refused(&need(&config, None), 1 << 27).hint.unwrap();
        assert!(hint.contains("smaller model"), "{hint}");
        let absurd = need(&config, Some(usize::MAX));
        refused(&absurd, 1 << 40);
        refused(
            &Need {
                ty: KvType::F32,
                mapped: u64::MAX,
                ..absurd
            },
            1 << 40,
        );
    }
}
