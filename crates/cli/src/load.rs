//! From a MODEL as typed to something that answers: hub, kernels, weights, tokenizer, template, and
//! a context that fits in memory.
//!
//! Everything here fails before work starts, with the exit code of its kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use engine::{Adaptation, DraftModel, Session};
use files::Kind;
use files::gguf::Gguf;
use files::hf::HfDir;
use hub::{Hub, Resolved};
use kernels::{Kernels, KvType, Level};
use model::{Cache, Weights};
use serde_json::Value;
use text::{ChatTemplate, RenderOptions, Tokenizer};

use crate::adapt;
use crate::args::{CacheType, Compute, LoadArgs, MachineArgs, NetArgs, Simd};
use crate::config;
use crate::exit::{Code, failure, usage};
use crate::lower::{Lower, Template};
use crate::machine::{available_memory, size};
use crate::memory::{Need, context};
use crate::out;

/// The file in which a directory recommends settings.
pub const GENERATION: &str = "generation_config.json";

/// A model that is ready to run.
pub struct Loaded {
    /// Its store name, or the file's stem: what reports call it.
    pub name: String,
    /// The MODEL word that it was found by.
    pub typed: String,
    /// The file or directory.
    pub path: PathBuf,
    /// Its hash, where the hub knows it.
    pub sha256: Option<String>,
    pub weights: Arc<Weights>,
    /// What the options lay beside them.
    pub adaptation: Adaptation,
    /// Storage of keys and values that the options ask for.
    pub cache_type: KvType,
    /// The options, and what a made model says under them.
    pub load: LoadArgs,
    /// What else lies under the options.
    pub lower: Lower,
    /// When loading began.
    pub began: Instant,
}

impl Loaded {
    /// What it takes to run it in a context of so many tokens.
    pub fn need(&self, asked: Option<usize>) -> Need<'_> {
        Need {
            name: &self.typed,
            path: Some(&self.path),
            config: &self.weights.config,
            mapped: self.weights.bytes() - self.weights.bytes_held(),
            ty: self.cache_type,
            asked,
        }
    }
}

/// The hub that environment and `--offline` describe.
pub fn hub(net: NetArgs) -> Result<Hub> {
    let var = |name: &str| {
        let set = crate::env::os(name);
        set.or_else(|| match name {
            "PUNA_HOME" => config::get().general("home").map(Into::into),
            _ => None,
        })
    };
    Ok(Hub::new(hub::Settings::from_vars(&var, net.offline)?)?)
}

/// The MODEL where none is typed: `PUNA_MODEL`, else puna.toml's, else the catalogue's.
pub fn default_model(hub: &Hub) -> String {
    let set = crate::env::text("PUNA_MODEL");
    set.or_else(|| config::get().general("model").map(str::to_owned))
        .unwrap_or_else(|| hub.default_model().to_owned())
}

/// Finds MODEL on this machine, or fetches it with progress on stderr.
pub fn resolve(hub: &Hub, typed: &str) -> Result<Resolved> {
    let mut progress = crate::progress::Shown::new();
    let (found, _) = crate::interrupt::listen(|| hub.resolve(typed, &mut progress));
    Ok(found?)
}

/// Finds MODEL; a file or directory as typed needs no store, nor a home for one.
pub fn find_model(net: NetArgs, typed: &str) -> Result<Resolved> {
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
            recipe: None,
        }),
        hub => resolve(&hub?, typed),
    }
}

/// Whether an error says that there is no place for a store.
fn is_homeless(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(hub::Error::NoHome))
}

/// An error that names the file it is about.
pub fn named(path: &Path, error: impl Into<anyhow::Error>) -> anyhow::Error {
    let (error, path) = (error.into(), path.display().to_string());
    match format!("{error:#}").contains(&path) {
        true => error,
        false => error.context(path),
    }
}

/// The kernels that the options ask for.
pub fn kernels(args: &MachineArgs) -> Result<Arc<Kernels>> {
    let level = level(args)?;
    let compute = match args.compute {
        None | Some(Compute::Fast) => kernels::Compute::Fast,
        Some(Compute::F32) => kernels::Compute::F32,
    };
    Ok(Arc::new(Kernels::new(level, compute, threads(args))?))
}

/// Threads as asked for, but no more than there are processors for them.
fn threads(args: &MachineArgs) -> usize {
    let (asked, most) = (args.threads, crate::machine::processors());
    if let Some(asked) = asked.filter(|asked| *asked > most) {
        out::note(&format!(
            "{asked} threads asked for, {most} used: this process has so many processors"
        ));
    }
    asked.unwrap_or_else(crate::machine::threads).min(most)
}

fn level(args: &MachineArgs) -> Result<Level> {
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
    Ok(level)
}

/// Opens the weights of MODEL (`None`: the default one).
pub fn weights(typed: Option<&str>, args: &LoadArgs) -> Result<Loaded> {
    open(place(typed, args)?)
}

/// Opens MODEL's weights and its tokenizer at the same time: each takes as long as the other.
pub fn weights_and_tokenizer(typed: Option<&str>, args: &LoadArgs) -> Result<(Loaded, Tokenizer)> {
    opened(place(typed, args)?)
}

/// Opens the weights of a model that was found, and its tokenizer.
pub fn opened(placed: Placed) -> Result<(Loaded, Tokenizer)> {
    let path = placed.found.path.clone();
    let (loaded, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| tokenizer_of(&path));
        (open(placed), tokenizer.join())
    });
    // What is wrong with the weights is said first, as if they had been opened first.
    let loaded = loaded?;
    match tokenizer {
        Ok(tokenizer) => Ok((loaded, tokenizer?)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A model that was found, and the options that it will be opened with.
pub struct Placed {
    pub typed: String,
    pub found: Resolved,
    pub load: LoadArgs,
    pub lower: Lower,
}

/// Finds MODEL, or fetches it, and lays the options over what it says itself.
pub fn place(typed: Option<&str>, args: &LoadArgs) -> Result<Placed> {
    adapt::check(args)?;
    let typed = match typed {
        Some(typed) => typed.to_owned(),
        None => default_model(&hub(args.net)?),
    };
    // Before a download, not after it.
    level(&args.machine)?;
    let found = find_model(args.net, &typed)?;
    lay(typed, found, args)
}

/// Lays the options over what a model that was found says itself.
pub fn lay(typed: String, found: Resolved, args: &LoadArgs) -> Result<Placed> {
    let lower = lower(&found)?;
    let mut load = lower.under_load(args);
    load.adapter.splice(0..0, adapters(&found));
    Ok(Placed {
        typed,
        found,
        load,
        lower,
    })
}

/// What lies under the options for this model.
pub fn lower(found: &Resolved) -> Result<Lower> {
    config::get().lower(found)
}

/// The adapters that a made model brings, as `--adapter` takes them.
fn adapters(found: &Resolved) -> Vec<String> {
    let adapters = found.recipe.iter().flat_map(|recipe| &recipe.adapters);
    adapters
        .map(|adapter| match &adapter.scale {
            Some(scale) => format!("{}:{scale}", adapter.path),
            None => adapter.path.clone(),
        })
        .collect()
}

fn open(placed: Placed) -> Result<Loaded> {
    let Placed {
        typed,
        found,
        load,
        lower,
    } = placed;
    let kernels = kernels(&load.machine)?;
    let began = Instant::now();
    room_to_open(&found.path)?;
    let weights = model::open(&found.path, kernels).map_err(|e| named(&found.path, e))?;
    Ok(Loaded {
        name: found.name,
        typed,
        path: found.path,
        sha256: found.sha256,
        adaptation: adapt::beside(&load, &weights)?,
        weights: Arc::new(weights),
        cache_type: cache_type(&load),
        load,
        lower,
        began,
    })
}

/// Refuses a model that must be put together in memory, and does not fit there.
pub fn room_to_open(path: &Path) -> Result<()> {
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

/// A session for the loaded model, in a context that fits in memory.
pub fn session(loaded: &Loaded, ctx: Option<usize>) -> Result<Session> {
    let context = context(&loaded.need(ctx))?;
    let mut session = Session::new(loaded.weights.clone(), loaded.cache_type, context)?;
    session.adapt(loaded.adaptation.clone());
    Ok(session)
}

/// A session for the loaded model, with a draft model beside it if one is named. Memory is planned
/// for both.
pub fn session_with_draft(
    loaded: &Loaded,
    tokenizer: &Tokenizer,
    draft: Option<&str>,
) -> Result<Session> {
    let args = &loaded.load;
    let Some(typed) = draft else {
        return session(loaded, args.ctx);
    };
    let (its, its_tokenizer, its_context) = open_draft(loaded, typed)?;
    let mut need = loaded.need(args.ctx);
    need.mapped = need.mapped.saturating_add(draft_bytes(&its, its_context)?);
    let context = context(&need)?;
    let mut session = Session::new(loaded.weights.clone(), loaded.cache_type, context)?;
    session.adapt(loaded.adaptation.clone());
    let its_context = its_context.min(context);
    let its_session = Session::new(its.weights.clone(), its.cache_type, its_context)?;
    let set = session.set_draft(its_session, tokenizer, &its_tokenizer);
    set.map_err(|e| named(&its.path, e))?;
    Ok(session)
}

/// The draft model that is to stand beside another, and the context that it needs there.
fn open_draft(loaded: &Loaded, typed: &str) -> Result<(Loaded, Tokenizer, usize)> {
    // What changes the model was not made for the one that guesses.
    let bare = LoadArgs {
        adapter: Vec::new(),
        control_vector: Vec::new(),
        ..loaded.load.clone()
    };
    let (its, tokenizer) = weights_and_tokenizer(Some(typed), &bare)?;
    let asked = loaded.load.ctx.unwrap_or(loaded.weights.config.context);
    let context = asked.min(its.weights.config.context);
    Ok((its, tokenizer, context))
}

/// Memory that a draft model takes, with a cache of so many tokens.
fn draft_bytes(its: &Loaded, tokens: usize) -> Result<u64> {
    let cache = Cache::bytes_for(&its.weights.config, its.cache_type, tokens)?;
    Ok(cache.saturating_add(its.weights.bytes() - its.weights.bytes_held()))
}

/// Tokens that a draft model holds for all answers at once, beyond one at full length.
const DRAFTED: usize = 32768;

/// A draft model for `parallel` answers at once, and the memory that it takes.
pub fn draft_among(loaded: &Loaded, typed: &str, parallel: usize) -> Result<(DraftModel, u64)> {
    let (its, tokenizer, context) = open_draft(loaded, typed)?;
    let cache = context.saturating_mul(parallel).min(DRAFTED).max(context);
    let bytes = draft_bytes(&its, cache)?;
    let model = DraftModel {
        weights: its.weights,
        tokenizer: Arc::new(tokenizer),
        kv: its.cache_type,
        context,
        cache,
    };
    Ok((model, bytes))
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

/// What a file is made of.
pub struct Material {
    pub path: PathBuf,
    /// As far as the hub or the files know it.
    pub licence: Option<String>,
    /// Those of a made model, as `--adapter` takes them.
    pub adapters: Vec<String>,
}

/// Finds MODEL to make a file of it.
pub fn material(typed: &str, net: NetArgs) -> Result<Material> {
    let found = find_model(net, typed)?;
    let adapters = adapters(&found);
    let licence = found.licence.or_else(|| hub::licence_of(&found.path));
    Ok(Material {
        path: found.path,
        licence,
        adapters,
    })
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
    asked: Option<&Template>,
) -> Result<ChatTemplate> {
    let bos = token_text(tokenizer, tokenizer.bos());
    let eos = token_text(tokenizer, tokenizer.eos());
    let source = match asked {
        Some(template) => template.source(path)?,
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
    recommended(&loaded.path, loaded.sha256.as_deref(), samplers_set)
}

/// The same, of a model that was not opened.
pub fn recommended(path: &Path, sha256: Option<&str>, samplers_set: bool) -> Result<Option<Value>> {
    let file = path.join(GENERATION);
    if file.is_file() {
        return Ok(Some(crate::input::json(&file)?));
    }
    let recommended = sha256.and_then(hub::recommended_generation);
    match recommended.filter(|_| !samplers_set) {
        Some(json) => Ok(Some(serde_json::from_str(json)?)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
