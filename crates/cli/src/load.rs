//! From a MODEL as typed to something that answers: hub, kernels, weights, tokenizer, template, and
//! a context that fits in memory.
//!
//! Everything here fails before work starts, with the exit code of its kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use engine::Session;
use files::Kind;
use files::gguf::Gguf;
use files::hf::HfDir;
use hub::{Hub, Resolved};
use kernels::{Kernels, KvType, Level};
use model::{Cache, Config, PAGE, Weights};
use serde_json::Value;
use text::{ChatTemplate, RenderOptions, Tokenizer};

use crate::args::{CacheType, Compute, LoadArgs, MachineArgs, NetArgs, Simd};
use crate::exit::{Code, failure, usage};
use crate::machine::{available_memory, size};

/// Activations, logits, tables of the tokenizer: what a process needs beside weights and cache.
const SCRATCH: u64 = 64 << 20;

/// A model that is ready to run.
pub struct Loaded {
    /// Its store name, or the file's stem: what reports call it.
    pub name: String,
    /// The file or directory.
    pub path: PathBuf,
    /// Its hash, where the hub knows it.
    pub sha256: Option<String>,
    pub weights: Arc<Weights>,
    /// Storage of keys and values that the options ask for.
    pub cache_type: KvType,
    /// When loading began.
    pub began: Instant,
}

/// The hub that environment and `--offline` describe.
pub fn hub(net: NetArgs) -> Result<Hub> {
    Ok(Hub::from_env(net.offline)?)
}

/// The MODEL where none is typed: `PUNA_MODEL`, else the catalogue's.
pub fn default_model(hub: &Hub) -> String {
    crate::env::text("PUNA_MODEL").unwrap_or_else(|| hub.default_model().to_owned())
}

/// Finds MODEL on this machine, or fetches it with progress on stderr.
pub fn resolve(hub: &Hub, typed: &str) -> Result<Resolved> {
    let mut progress = crate::progress::Shown::new();
    let (found, _) = crate::interrupt::listen(|| hub.resolve(typed, &mut progress));
    Ok(found?)
}

/// Finds MODEL; a file or directory as typed needs no store, nor a home for one.
fn find_model(net: NetArgs, typed: &str) -> Result<Resolved> {
    let path = Path::new(typed);
    match hub(net) {
        Err(error) if is_homeless(&error) && path.exists() => Ok(Resolved {
            name: path.file_stem().map_or_else(
                || typed.to_owned(),
                |stem| stem.to_string_lossy().into_owned(),
            ),
            path: path.to_path_buf(),
            source: typed.to_owned(),
            sha256: None,
            licence: None,
            bytes: 0,
        }),
        hub => resolve(&hub?, typed),
    }
}

/// Whether an error says that there is no place for a store.
fn is_homeless(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(hub::Error::NoHome))
}

/// An error that names the file it is about.
fn named(path: &Path, error: impl Into<anyhow::Error>) -> anyhow::Error {
    let (error, path) = (error.into(), path.display().to_string());
    match format!("{error:#}").contains(&path) {
        true => error,
        false => error.context(path),
    }
}

/// The kernels that the options ask for.
pub fn kernels(args: &MachineArgs) -> Result<Arc<Kernels>> {
    let level = match args.simd {
        None => Level::best(),
        Some(Simd::Scalar) => Level::Scalar,
        Some(Simd::Avx2) => Level::Avx2,
        Some(Simd::Avx2vnni) => Level::Avx2Vnni,
        Some(Simd::Avx512) => Level::Avx512,
        Some(Simd::Avx512vnni) => Level::Avx512Vnni,
        Some(Simd::Avx512bf16) => Level::Avx512Bf16,
    };
    if !level.is_available() {
        let here: Vec<&str> = Level::available().iter().map(|l| l.name()).collect();
        return Err(usage(
            format!("this machine lacks the SIMD level {}", level.name()),
            format!(
                "it has {}; leave --simd and PUNA_SIMD out for the best",
                here.join(", ")
            ),
        ));
    }
    let compute = match args.compute {
        None | Some(Compute::Fast) => kernels::Compute::Fast,
        Some(Compute::F32) => kernels::Compute::F32,
    };
    let threads = args.threads.unwrap_or_else(crate::machine::threads);
    Ok(Arc::new(Kernels::new(level, compute, threads)?))
}

/// Opens the weights of MODEL (`None`: the default one).
pub fn weights(typed: Option<&str>, args: &LoadArgs) -> Result<Loaded> {
    let (found, kernels) = place(typed, args)?;
    open(found, kernels, args)
}

/// Opens MODEL's weights and its tokenizer at the same time: each takes as long as the other.
pub fn weights_and_tokenizer(typed: Option<&str>, args: &LoadArgs) -> Result<(Loaded, Tokenizer)> {
    let (found, kernels) = place(typed, args)?;
    let path = found.path.clone();
    let (loaded, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| tokenizer_of(&path));
        (open(found, kernels, args), tokenizer.join())
    });
    // What is wrong with the weights is said first, as if they had been opened first.
    let loaded = loaded?;
    match tokenizer {
        Ok(tokenizer) => Ok((loaded, tokenizer?)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Finds MODEL, or fetches it, and readies what will compute with it.
fn place(typed: Option<&str>, args: &LoadArgs) -> Result<(Resolved, Arc<Kernels>)> {
    refuse_unready(args)?;
    let typed = match typed {
        Some(typed) => typed.to_owned(),
        None => default_model(&hub(args.net)?),
    };
    // Before a download, not after it.
    let kernels = kernels(&args.machine)?;
    Ok((find_model(args.net, &typed)?, kernels))
}

fn open(found: Resolved, kernels: Arc<Kernels>, args: &LoadArgs) -> Result<Loaded> {
    let began = Instant::now();
    room_to_open(&found.path)?;
    let weights = model::open(&found.path, kernels).map_err(|e| named(&found.path, e))?;
    Ok(Loaded {
        name: found.name,
        path: found.path,
        sha256: found.sha256,
        weights: Arc::new(weights),
        cache_type: cache_type(args),
        began,
    })
}

/// Refuses a model that must be put together in memory, and does not fit there.
fn room_to_open(path: &Path) -> Result<()> {
    let need = model::bytes_to_open(path).map_err(|e| named(path, e))?;
    match available_memory() {
        Some(free) if need > free => {
            let what = format!(
                "{} must be put together in memory: up to {} are needed and {} are free",
                path.display(),
                size(need),
                size(free)
            );
            let hint = "weights in GGUF, or in one file of safetensors, are used where they lie";
            Err(failure(Code::Memory, what, hint))
        }
        _ => Ok(()),
    }
}

/// Options of the contract that this release cannot do are refused, not passed over.
pub fn refuse_unready(args: &LoadArgs) -> Result<()> {
    for (given, name) in [
        (!args.adapter.is_empty(), "--adapter"),
        (!args.control_vector.is_empty(), "--control-vector"),
    ] {
        if given {
            return Err(usage(
                format!("{name} is not in this release"),
                format!("leave {name} out: the answer would be that of the bare model"),
            ));
        }
    }
    Ok(())
}

/// `--cache-type`; the reference mode keeps keys and values in f32 too.
pub fn cache_type(args: &LoadArgs) -> KvType {
    match (args.cache_type, args.machine.compute) {
        (Some(CacheType::F16), _) => KvType::F16,
        (Some(CacheType::Bf16), _) => KvType::Bf16,
        (Some(CacheType::F32), _) => KvType::F32,
        (Some(CacheType::Q8_0), _) => KvType::Q8_0,
        (None, Some(Compute::F32)) => KvType::F32,
        (None, _) => KvType::F16,
    }
}

/// The context in tokens: what was asked if it fits in memory, else the smaller of the model's and
/// what fits. `mapped` is the size of weights that memory has yet to hold.
pub fn context(config: &Config, mapped: u64, ty: KvType, asked: Option<usize>) -> Result<usize> {
    if let (Some(asked), Some(limit)) = (asked, config.position_limit())
        && asked > config.context
    {
        return Err(usage(
            format!("--ctx {asked}: the model has no positions from {limit} on"),
            format!("--ctx {} is its own context", config.context),
        ));
    }
    let Some(free) = available_memory() else {
        return Ok(asked.unwrap_or(config.context));
    };
    plan(config, mapped, ty, asked, free)
}

fn plan(
    config: &Config,
    mapped: u64,
    ty: KvType,
    asked: Option<usize>,
    free: u64,
) -> Result<usize> {
    let fixed = mapped.saturating_add(SCRATCH);
    let fits = tokens_that_fit(config, ty, free.saturating_sub(fixed))?;
    let wanted = asked.unwrap_or(config.context.min(fits));
    let short = wanted > fits || wanted == 0;
    if !short {
        if wanted > config.context {
            tracing::warn!(
                "--ctx {wanted}: the model was made for {} tokens; beyond them answers decay",
                config.context
            );
        }
        return Ok(wanted);
    }
    let free = size(free);
    if fits == 0 {
        let what = format!(
            "the model needs {} of memory and {free} are free",
            size(fixed)
        );
        return Err(failure(
            Code::Memory,
            what,
            "choose a smaller model or end other programs",
        ));
    }
    let cache = Cache::bytes_for(config, ty, wanted)?;
    Err(failure(
        Code::Memory,
        format!(
            "a context of {wanted} tokens needs {} ({} for the model, {} for the cache) and {free} \
             are free",
            size(fixed.saturating_add(cache)),
            size(fixed),
            size(cache)
        ),
        format!(
            "--ctx {} fits; --cache-type q8_0 needs about half of f16",
            fits.min(config.context)
        ),
    ))
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

/// A session for the loaded model, in a context that fits in memory.
pub fn session(loaded: &Loaded, ctx: Option<usize>) -> Result<Session> {
    let weights = &loaded.weights;
    let mapped = weights.bytes() - weights.bytes_held();
    let context = context(&weights.config, mapped, loaded.cache_type, ctx)?;
    Ok(Session::new(weights.clone(), loaded.cache_type, context)?)
}

/// The context of one sequence, and the tokens of a cache that `parallel` of them share: all at full
/// length if that fits in memory, else what fits.
pub fn shared_cache(
    loaded: &Loaded,
    ctx: Option<usize>,
    parallel: usize,
) -> Result<(usize, usize)> {
    let (weights, ty) = (&loaded.weights, loaded.cache_type);
    let mapped = weights.bytes() - weights.bytes_held();
    let context = context(&weights.config, mapped, ty, ctx)?;
    let wanted = context.saturating_mul(parallel);
    let Some(free) = available_memory() else {
        return Ok((context, wanted));
    };
    let rest = free.saturating_sub(mapped.saturating_add(SCRATCH));
    let fits = tokens_that_fit(&weights.config, ty, rest)?;
    Ok((context, wanted.min(fits).max(context)))
}

/// A session for the loaded model, with a draft model beside it if one is named. Memory is planned
/// for both.
pub fn session_with_draft(
    loaded: &Loaded,
    tokenizer: &Tokenizer,
    draft: Option<&str>,
    args: &LoadArgs,
) -> Result<Session> {
    let Some(typed) = draft else {
        return session(loaded, args.ctx);
    };
    let (its, its_tokenizer) = weights_and_tokenizer(Some(typed), args)?;
    let (own_weights, its_weights) = (&loaded.weights, &its.weights);
    let asked = args.ctx.unwrap_or(own_weights.config.context);
    let its_context = asked.min(its_weights.config.context);
    let its_bytes = Cache::bytes_for(&its_weights.config, its.cache_type, its_context)?
        .saturating_add(its_weights.bytes() - its_weights.bytes_held());
    let own_mapped = own_weights.bytes() - own_weights.bytes_held();
    let mapped = own_mapped.saturating_add(its_bytes);
    let context = context(&own_weights.config, mapped, loaded.cache_type, args.ctx)?;
    let mut session = Session::new(own_weights.clone(), loaded.cache_type, context)?;
    let its_context = its_context.min(context);
    let its_session = Session::new(its_weights.clone(), its.cache_type, its_context)?;
    let set = session.set_draft(its_session, tokenizer, &its_tokenizer);
    set.map_err(|e| named(&its.path, e))?;
    Ok(session)
}

/// Where MODEL lies: a file or directory as typed, else what the hub knows or fetches. Bare
/// tokenizer files are found in this way too.
pub fn find(typed: &str, net: NetArgs) -> Result<PathBuf> {
    let path = Path::new(typed);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    Ok(resolve(&hub(net)?, typed)?.path)
}

/// The tokenizer of MODEL, or a bare tokenizer file.
pub fn tokenizer(typed: &str, net: NetArgs) -> Result<Tokenizer> {
    tokenizer_of(&find(typed, net)?)
}

/// The tokenizer of a model's file or directory.
pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
    match Tokenizer::open(path) {
        Ok(tokenizer) => Ok(tokenizer),
        // The model is there; its tokenizer is not.
        Err(text::Error::Read { source, .. })
            if path.exists() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            Err(failure(
                Code::Invalid,
                format!("{} has no tokenizer", path.display()),
                "put tokenizer.json or tokenizer.model (tokenizer.bin for llama2.c) beside the weights",
            ))
        }
        Err(error) => Err(named(path, error)),
    }
}

/// The text of a special token; empty if there is none.
pub fn token_text(tokenizer: &Tokenizer, id: Option<u32>) -> String {
    let bytes = id.and_then(|id| tokenizer.piece(id)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The source of a model's chat template; `tools`: the one for conversations with tools, if it has
/// several.
pub fn template_source(path: &Path, tools: bool) -> Result<String> {
    let found = match files::detect(path)? {
        Kind::HfDir => {
            let dir = HfDir::open_without_weights(path)?;
            text::find_template(&dir, tools).map(str::to_owned)
        }
        Kind::Gguf => {
            let gguf = Gguf::open(path)?;
            text::find_template(&gguf.metadata, tools).map(str::to_owned)
        }
        _ => Err(text::Error::NoTemplate),
    };
    Ok(found?)
}

/// The source that `--template` names: a file, or a format that Puna has.
pub fn template_named(typed: &Path) -> Result<String> {
    match typed.to_str().and_then(text::format) {
        Some(source) if !typed.exists() => Ok(source.to_owned()),
        _ => crate::input::text(typed),
    }
}

/// The chat template of a model's file or directory, for conversations without tools, or the one
/// that is `asked` for.
pub fn template_of(
    path: &Path,
    tokenizer: &Tokenizer,
    asked: Option<&Path>,
) -> Result<ChatTemplate> {
    let bos = token_text(tokenizer, tokenizer.bos());
    let eos = token_text(tokenizer, tokenizer.eos());
    let source = match asked {
        Some(typed) => template_named(typed)?,
        None => template_source(path, false)?,
    };
    Ok(ChatTemplate::new(&source, &bos, &eos)?)
}

/// How conversations are rendered: no tools, the assistant's turn opened, today's date.
pub fn render_options() -> RenderOptions {
    RenderOptions::default()
}

/// A Hugging Face directory's generation_config.json. For a file that carries none, what the
/// catalogue recommends, but only as a whole: whoever sets one sampler sets them all.
pub fn generation_config(loaded: &Loaded, samplers_set: bool) -> Result<Option<Value>> {
    let file = loaded.path.join("generation_config.json");
    if file.is_file() {
        return Ok(Some(crate::input::json(&file)?));
    }
    let recommended = loaded
        .sha256
        .as_deref()
        .and_then(hub::recommended_generation);
    match recommended.filter(|_| !samplers_set) {
        Some(json) => Ok(Some(serde_json::from_str(json)?)),
        None => Ok(None),
    }
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

    #[test]
    fn the_plan_takes_the_models_context_if_it_fits() {
        let config = config();
        let all = plan(&config, 1 << 30, KvType::F16, None, 1 << 40);
        assert_eq!(all.unwrap(), config.context);
        let page = Cache::bytes_for(&config, KvType::F16, PAGE).unwrap();
        let tight = (1 << 30) + SCRATCH + page * 10;
        assert_eq!(
            plan(&config, 1 << 30, KvType::F16, None, tight).unwrap(),
            10 * PAGE
        );
        assert_eq!(
            plan(&config, 1 << 30, KvType::F16, Some(300), tight).unwrap(),
            300
        );
        let refused = plan(&config, 1 << 30, KvType::F16, Some(321), tight).unwrap_err();
        let refused = crate::exit::classify(&refused);
        assert_eq!(refused.code, Code::Memory);
        assert!(refused.what.contains("321"), "{refused:?}");
        assert!(refused.hint.unwrap().contains("--ctx 320 fits"));
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused() {
        let refused = plan(&config(), 1 << 30, KvType::F16, None, 1 << 29).unwrap_err();
        assert_eq!(crate::exit::classify(&refused).code, Code::Memory);
        let absurd = plan(&config(), 1, KvType::F32, Some(usize::MAX), 1 << 40).unwrap_err();
        assert_eq!(crate::exit::classify(&absurd).code, Code::Memory);
    }

    #[test]
    fn the_reference_mode_caches_in_f32() {
        let mut args = LoadArgs::default();
        assert_eq!(cache_type(&args), KvType::F16);
        args.machine.compute = Some(Compute::F32);
        assert_eq!(cache_type(&args), KvType::F32);
        args.cache_type = Some(CacheType::Q8_0);
        assert_eq!(cache_type(&args), KvType::Q8_0);
    }
}
