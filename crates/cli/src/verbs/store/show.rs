//! `puna show`: everything about a model that can be known without running it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use files::meta::MetaDir;
use files::{Dtype, Kind, Tensors, gguf::Gguf, hf::HfDir, llama2c};
use hub::{Recipe, Resolved};
use kernels::{Compute, Kernels, KvType, Level};
use model::{Cache, Config, PAGE, Scaling, Weights};
use serde::Serialize;
use text::{ChatTemplate, Tokenizer};

use crate::args::ShowArgs;
use crate::exit::classify;
use crate::machine::{available_memory, size};
use crate::memory::{Need, context};
use crate::{load, out};

/// Tensors that are tables for the rotary embedding, not weights.
const TABLES: [&str; 3] = ["rope_freqs.weight", "rotary_emb.inv_freq", "rope.freqs"];

/// Types of tensors that hold weights only together with others.
const PACKED: [Dtype; 5] = [
    Dtype::I8,
    Dtype::I32,
    Dtype::U8,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
];

#[derive(Serialize)]
struct Report {
    name: String,
    path: PathBuf,
    source: String,
    sha256: Option<String>,
    licence: Option<String>,
    /// What that licence asks for, if it is a known one.
    terms: Option<&'static hub::Terms>,
    bytes: u64,
    format: String,
    architecture: String,
    parameters: u64,
    tensors: usize,
    /// Storage types of the matrices, the one with most bytes first.
    types: Vec<Bytes>,
    context: usize,
    vocab: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    /// `None` if no layer has any.
    experts: Option<Experts>,
    tied: bool,
    rope: Rope,
    /// Tokens of the vocabulary; `None` if the model brings no tokenizer that Puna reads.
    tokenizer: Option<Vocabulary>,
    /// The chat template's text.
    template: Option<String>,
    memory: Plan,
    /// What a made model adds to its base.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<Recipe>,
}

/// The mixtures of experts.
#[derive(Serialize)]
struct Experts {
    count: usize,
    used: usize,
    ffn: usize,
    /// One more that is always used.
    shared: bool,
    layers: usize,
}

#[derive(Serialize)]
struct Bytes {
    #[serde(rename = "type")]
    ty: &'static str,
    bytes: u64,
}

#[derive(Serialize)]
struct Rope {
    theta: f64,
    scaling: &'static str,
}

#[derive(Serialize)]
struct Vocabulary {
    tokens: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    end_of_generation: Vec<u32>,
}

/// What running it takes, with a cache of the default type.
#[derive(Serialize)]
struct Plan {
    weights_bytes: u64,
    /// Of these, bytes that are put together in memory; the others are mapped.
    weights_copied_bytes: u64,
    cache_type: &'static str,
    cache_bytes_per_token: u64,
    cache_bytes_full_context: u64,
    /// Activations of a pass, logits, tables: an estimate.
    work_bytes: u64,
    available_bytes: Option<u64>,
    /// The largest context that fits now; `None` if not even the weights do.
    context_that_fits: Option<usize>,
    /// What a refusal says: what is needed, and the nearest that would fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
}

/// Why a model cannot be run now, in the words of `puna run`.
#[derive(Serialize)]
struct Refusal {
    what: String,
    hint: Option<String>,
}

pub fn show(args: &ShowArgs) -> Result<()> {
    let hub = load::hub(args.net)?;
    let found = load::resolve(&hub, &args.model)?;
    if args.modelfile {
        let plain = Recipe {
            from: found.name.clone(),
            ..Recipe::default()
        };
        let mut recipe = found.recipe.unwrap_or(plain);
        // What the base brings comes along with it.
        let base = hub.resolve(&recipe.from, &mut crate::progress::Shown::new());
        let brought = base.ok().and_then(|base| base.recipe);
        let brought = brought.map_or(0, |base| base.adapters.len());
        recipe.adapters.drain(..brought.min(recipe.adapters.len()));
        let text = hub::print_modelfile(&recipe);
        let answer = serde_json::json!({ "name": found.name, "modelfile": text });
        return out::print(args.format.format, &answer, || text.trim_end().to_owned());
    }
    load::room_to_open(&found.path)?;
    let report = look(found)?;
    out::print(args.format.format, &report, || describe(&report))
}

fn look(found: Resolved) -> Result<Report> {
    // Nothing is computed: one thread at any level will do.
    let kernels = Arc::new(Kernels::new(Level::Scalar, Compute::Fast, 1)?);
    let (format, weights, tensors) = open(&found.path, kernels)?;
    let (tokenizer, template) = words(&found)?;
    let licence = found
        .licence
        .clone()
        .or_else(|| hub::licence_of(&found.path));
    let c = &weights.config;
    Ok(Report {
        format,
        architecture: c.arch.name().into(),
        parameters: parameters(c, &tensors),
        tensors: tensors.len(),
        types: weights
            .types()
            .into_iter()
            .map(|(ty, bytes)| Bytes {
                ty: ty.name(),
                bytes,
            })
            .collect(),
        context: c.context,
        vocab: c.vocab,
        hidden: c.hidden,
        layers: c.layers,
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        ffn: c.ffn,
        experts: c.experts.as_ref().map(|e| Experts {
            count: e.count,
            used: e.used,
            ffn: e.ffn,
            shared: e.shared,
            layers: e.layers.iter().filter(|on| **on).count(),
        }),
        tied: c.tied,
        rope: Rope {
            theta: c.rope.theta,
            scaling: match c.rope.dim {
                0 => "none: positions are learned",
                _ => scaling(&c.rope.scaling),
            },
        },
        tokenizer: tokenizer.as_ref().map(Vocabulary::of),
        template: template.map(|t| t.source().to_owned()),
        memory: plan(&weights, &found)?,
        name: found.name,
        path: found.path,
        source: found.source,
        sha256: found.sha256,
        terms: licence.as_deref().and_then(hub::terms),
        licence,
        bytes: found.bytes,
        recipe: found.recipe,
    })
}

fn open(path: &Path, kernels: Arc<Kernels>) -> Result<(String, Weights, Tensors)> {
    Ok(match files::detect(path)? {
        Kind::Gguf => {
            let gguf = Gguf::open(path)?;
            let weights = Weights::from_gguf(&gguf, kernels)?;
            (
                format!("GGUF version {}", gguf.version),
                weights,
                gguf.tensors,
            )
        }
        Kind::HfDir => {
            let dir = HfDir::open(path)?;
            (
                "Hugging Face directory".into(),
                Weights::from_hf(&dir, kernels)?,
                dir.tensors,
            )
        }
        Kind::MetaDir => {
            let dir = MetaDir::open(path)?;
            (
                format!("Meta's checkpoint in {} parts", dir.parts),
                Weights::from_meta(&dir, kernels)?,
                dir.tensors,
            )
        }
        Kind::Llama2c => {
            let file = llama2c::open(path)?;
            (
                format!("llama2.c version {}", file.version),
                Weights::from_llama2c(&file, kernels)?,
                file.tensors,
            )
        }
        // Refused, in the words of the room that refuses it.
        kind => (
            format!("{kind:?}"),
            model::open(path, kernels)?,
            Tensors::default(),
        ),
    })
}

/// Of a file whose tensors are not numbers one by one, what its shape calls for.
fn parameters(config: &Config, tensors: &Tensors) -> u64 {
    if tensors.iter().any(|t| PACKED.contains(&t.dtype)) {
        return config.parameters();
    }
    let weights = tensors
        .iter()
        .filter(|t| !TABLES.iter().any(|table| t.name.ends_with(table)));
    weights
        .map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>())
        .sum()
}

fn scaling(scaling: &Scaling) -> &'static str {
    match scaling {
        Scaling::None => "none",
        Scaling::Linear { .. } => "linear",
        Scaling::Dynamic { .. } => "dynamic",
        Scaling::Llama3 { .. } => "llama3",
        Scaling::Yarn(_) => "yarn",
        Scaling::LongRope { .. } => "longrope",
        Scaling::Divisors(_) => "divisors in the file",
    }
}

/// The model's tokenizer and chat template, as far as they are there and can be read.
fn words(found: &Resolved) -> Result<(Option<Tokenizer>, Option<ChatTemplate>)> {
    let (path, asked) = (&found.path, load::lower(found)?.template);
    let tokenizer = load::tokenizer_of(path);
    let template = tokenizer
        .as_ref()
        .ok()
        .map(|tokenizer| load::template_of(path, tokenizer, asked.as_ref()));
    for error in [
        tokenizer.as_ref().err(),
        template.as_ref().and_then(|t| t.as_ref().err()),
    ] {
        error.inspect(|error| tracing::debug!("{error:#}"));
    }
    Ok((tokenizer.ok(), template.and_then(Result::ok)))
}

impl Vocabulary {
    fn of(tokenizer: &Tokenizer) -> Vocabulary {
        Vocabulary {
            tokens: tokenizer.len(),
            bos: tokenizer.bos(),
            eos: tokenizer.eos(),
            adds_bos: tokenizer.adds_bos(),
            end_of_generation: tokenizer.eog().to_vec(),
        }
    }
}

fn plan(weights: &Weights, found: &Resolved) -> Result<Plan> {
    let (ty, config) = (KvType::default(), &weights.config);
    let (all, copied) = (weights.bytes(), weights.bytes_held());
    let need = Need {
        name: &found.name,
        path: Some(&found.path),
        config,
        mapped: all - copied,
        ty,
        asked: None,
    };
    let fits = context(&need);
    Ok(Plan {
        weights_bytes: all,
        weights_copied_bytes: copied,
        cache_type: ty.name(),
        cache_bytes_per_token: Cache::bytes_for(config, ty, PAGE)? / PAGE as u64,
        cache_bytes_full_context: Cache::bytes_for(config, ty, config.context)?,
        available_bytes: available_memory(),
        work_bytes: model::bytes_to_work(config),
        context_that_fits: fits.as_ref().ok().copied(),
        refusal: fits.err().map(|error| {
            let failure = classify(&error);
            Refusal {
                what: failure.what,
                hint: failure.hint,
            }
        }),
    })
}

/// What a made model adds, line by line.
fn told(recipe: &Recipe) -> Vec<String> {
    let mut lines = vec![format!("made from     {}", recipe.from)];
    for (name, value) in &recipe.parameters {
        lines.push(format!("parameter     {name} {value}"));
    }
    for adapter in &recipe.adapters {
        let scale = adapter.scale.as_deref().unwrap_or("1");
        lines.push(format!("adapter       {} at {scale}", adapter.path));
    }
    if let Some(system) = &recipe.system {
        lines.push(format!("system        {system:?}"));
    }
    if !recipe.messages.is_empty() {
        lines.push(format!(
            "messages      {} begin every conversation",
            recipe.messages.len()
        ));
    }
    lines
}

fn describe(r: &Report) -> String {
    let or = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.to_owned());
    let types: Vec<String> = r
        .types
        .iter()
        .map(|t| format!("{} {}", t.ty, size(t.bytes)))
        .collect();
    let m = &r.memory;
    let mut lines = vec![
        format!("name          {}", r.name),
        format!("path          {}", r.path.display()),
        format!("source        {}", r.source),
        format!(
            "sha256        {}",
            or(&r.sha256, "not known (not in the store, or several files)")
        ),
        format!("licence       {}", or(&r.licence, "unknown")),
    ];
    let terms = r.terms.iter().flat_map(|terms| terms.lines());
    lines.extend(terms.map(|line| format!("              {line}")));
    lines.extend([
        format!(
            "size          {} in {} tensors, {}",
            size(r.bytes),
            r.tensors,
            r.format
        ),
        format!(
            "architecture  {}, {:.1} M parameters",
            r.architecture,
            r.parameters as f64 / 1e6
        ),
        format!("types         {}", types.join(", ")),
        format!(
            "context       {} tokens; rope theta {}, scaling {}",
            r.context, r.rope.theta, r.rope.scaling
        ),
        format!(
            "shape         {} layers, hidden {}, {} heads of {} ({} for keys and values), ffn {}",
            r.layers, r.hidden, r.heads, r.head_dim, r.kv_heads, r.ffn
        ),
        format!(
            "vocabulary    {} tokens, {}",
            r.vocab,
            if r.tied {
                "head tied to it"
            } else {
                "a head of its own"
            }
        ),
    ]);
    if let Some(e) = &r.experts {
        lines.push(format!(
            "experts       {} of {}{} in {} layers, ffn {}",
            e.used,
            e.count,
            if e.shared {
                " and one that is always used"
            } else {
                ""
            },
            e.layers,
            e.ffn
        ));
    }
    lines.push(match &r.tokenizer {
        None => "tokenizer     none that Puna reads".into(),
        Some(t) => {
            let bos = if t.adds_bos {
                "puts one in front"
            } else {
                "puts none in front"
            };
            format!(
                "tokenizer     {} tokens; begin-of-text: {bos}; ends an answer: {:?}",
                t.tokens, t.end_of_generation
            )
        }
    });
    lines.push(match &r.template {
        None => "template      none (use --raw)".into(),
        Some(text) => format!(
            "template      {} characters; `puna template` renders it",
            text.chars().count()
        ),
    });
    lines.extend(r.recipe.iter().flat_map(told));
    let fits = m
        .context_that_fits
        .map_or("does not fit now".into(), |n| format!("{n} tokens fit now"));
    let mapped = match m.weights_copied_bytes {
        0 => "mapped".to_owned(),
        copied => format!("{} of it copied, the rest mapped", size(copied)),
    };
    lines.push(format!(
        "memory        weights {} ({mapped}), cache {} a token in {}, {} for the whole context, {} to work in; {fits}",
        size(m.weights_bytes),
        size(m.cache_bytes_per_token),
        m.cache_type,
        size(m.cache_bytes_full_context),
        size(m.work_bytes)
    ));
    if let Some(refusal) = &m.refusal {
        lines.push(format!("              {}", refusal.what));
        lines.extend(
            refusal
                .hint
                .iter()
                .map(|hint| format!("              {hint}")),
        );
    }
    lines.join("\n")
}
