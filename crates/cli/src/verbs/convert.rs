//! `puna convert`: one layout of a model from another.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use files::Tensors;
use files::gguf::{self, Metadata};
use files::hf::HfDir;
use model::convert::{Input, write_safetensors};
use model::quantize::{Recipe, Step, Wanted, plan, write};
use model::{Lora, Source};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{ConvertArgs, Format};
use crate::exit::{Code, failure, usage};
use crate::load::Material;
use crate::{adapt, interrupt, load, machine, out};

/// What a directory carries beside its weights.
const BESIDE: [&str; 12] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "USE_POLICY.md",
    "NOTICE.txt",
    NOTICE,
];

/// What a copy must carry, and under which licence it is.
const NOTICE: &str = "NOTICE";

/// Types that `--type` may name.
const TYPES: [&str; 4] = ["F32", "F16", "BF16", "Q8_0"];

#[derive(Serialize)]
struct Report {
    out: String,
    tensors: usize,
    bytes_before: u64,
    bytes: u64,
    types: Vec<(&'static str, u64)>,
}

pub fn run(args: &ConvertArgs) -> Result<()> {
    let recipe = args.ty.as_deref().map(recipe).transpose()?;
    let gguf = args.out.extension().is_some_and(|e| e == "gguf");
    if !gguf && recipe.is_some_and(|r| !r.base.is_float()) {
        let what = "a Hugging Face directory holds f32, f16 or bf16";
        return Err(usage(what, "name a file OUT.gguf for q8_0"));
    }
    let Material {
        path,
        licence,
        adapters,
    } = load::material(&args.input, args.net)?;
    load::room_to_open(&path)?;
    let input = Input::open_on(&path, threads(args))?;
    let adapters = [adapters, args.adapter.clone()].concat();
    let adapters = adapt::merged(&adapters, &input)?;
    let steps = if gguf {
        to_gguf(args, &input, recipe, adapters, licence.as_deref())?
    } else {
        to_directory(args, &input, recipe, adapters, licence.as_deref())?
    };
    let steps = steps.ok_or_else(|| failure(Code::Interrupted, "interrupted", ""))?;
    let report = report(args, &steps);
    out::print(args.format.format, &report, || describe(&report))
}

fn recipe(given: &str) -> Result<Recipe> {
    match TYPES.iter().find(|t| t.eq_ignore_ascii_case(given)) {
        Some(name) => Ok(name.parse()?),
        None => Err(usage(
            format!("--type {given} is none of f32, f16, bf16, q8_0"),
            "`puna quantize` makes every other type",
        )),
    }
}

/// A model as a GGUF holds it, with its tokenizer, its licence, and adapters merged.
pub fn gguf_source(
    input: &Input,
    adapters: Vec<(Lora, f32)>,
    licence: Option<&str>,
) -> Result<Source> {
    let mut source = input.gguf(adapters)?;
    if let Some(licence) = licence.filter(|_| source.metadata.str("general.license").is_none()) {
        source.metadata.set(
            "general.license",
            files::gguf::Value::String(licence.to_owned()),
        );
    }
    let rows = vocabulary(&source.metadata);
    for (key, value) in tokenizer_keys(input, rows)? {
        source.metadata.set(key, value);
    }
    Ok(source)
}

/// Rows of the embedding table of a GGUF, by its metadata.
fn vocabulary(metadata: &Metadata) -> u64 {
    let arch = metadata.str("general.architecture").unwrap_or_default();
    let rows = metadata.u64(&format!("{arch}.vocab_size"));
    rows.unwrap_or_default()
}

/// The keys under which a GGUF of so many `rows` in its embedding table has the tokenizer of a model
/// that is none; nothing where there is no tokenizer.
fn tokenizer_keys(input: &Input, rows: u64) -> Result<Vec<(String, gguf::Value)>> {
    // A checkpoint without side files.
    let bare = |path: &Path| HfDir {
        path: path.to_owned(),
        config: Value::Null,
        generation_config: None,
        tokenizer: None,
        tokenizer_config: None,
        special_tokens_map: None,
        chat_template: None,
        tensors: Tensors::default(),
    };
    let dir = match input {
        Input::Gguf(_) => return Ok(Vec::new()),
        Input::Hf(dir) => dir,
        Input::Meta(dir) => &bare(&dir.path),
        Input::Llama2c(path, _) => &bare(path),
    };
    match text::gguf_keys(dir, rows as usize) {
        Err(text::Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let path = dir.path.display();
            out::note(&format!(
                "{path} has no tokenizer: the new model has none either"
            ));
            Ok(Vec::new())
        }
        keys => Ok(keys?),
    }
}

fn threads(args: &ConvertArgs) -> usize {
    args.threads.unwrap_or_else(machine::threads)
}

/// One line on stderr for each tensor, where stdout is not for a program.
fn progress(args: &ConvertArgs) -> impl FnMut(&Step) -> bool {
    let tell = args.format.format == Format::Text;
    move |step: &Step| {
        if tell {
            out::note(&format!(
                "{}: {} -> {}",
                step.info.name, step.from, step.info.dtype
            ));
        }
        !interrupt::asked()
    }
}

fn to_gguf(
    args: &ConvertArgs,
    input: &Input,
    recipe: Option<Recipe>,
    adapters: Vec<(Lora, f32)>,
    licence: Option<&str>,
) -> Result<Option<Vec<Step>>> {
    let source = gguf_source(input, adapters, licence)?;
    let wanted = Wanted {
        recipe,
        imatrix: None,
        special: &|_| None,
        pure: false,
        head: None,
        embedding: None,
        leave_head: false,
        requantize: true,
    };
    let plan = plan(&source, &wanted)?;
    let mut on_step = progress(args);
    let work = || {
        write(
            &source,
            &plan,
            &wanted,
            &args.out,
            threads(args),
            &mut on_step,
        )
    };
    Ok(interrupt::listen(work).0?.map(|plan| plan.steps))
}

/// A directory under way: it gets its name when it is whole.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the renaming there is nothing under this name, and before it nothing can be done.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn to_directory(
    args: &ConvertArgs,
    input: &Input,
    recipe: Option<Recipe>,
    adapters: Vec<(Lora, f32)>,
    licence: Option<&str>,
) -> Result<Option<Vec<Step>>> {
    if args.out.exists() {
        let what = format!("{} exists", args.out.display());
        return Err(failure(
            Code::Failed,
            what,
            "name a new directory, or NAME.gguf",
        ));
    }
    // Collected, a path has no slash at its end.
    let out: PathBuf = args.out.components().collect();
    let mut name = out.into_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = Part(PathBuf::from(name));
    std::fs::create_dir(&part.0).with_context(|| format!("cannot create {}", part.0.display()))?;
    let (mut config, source, steps) = input.hf(recipe.map(|r| r.base), adapters)?;
    match input {
        Input::Hf(dir) => beside(&dir.path, &part.0)?,
        Input::Gguf(gguf) => from_keys(&gguf.metadata, &mut config, &part.0)?,
        Input::Meta(_) | Input::Llama2c(..) => {
            let rows = config["vocab_size"].as_u64().unwrap_or_default();
            let mut keys = Metadata::new();
            for (key, value) in tokenizer_keys(input, rows)? {
                keys.set(key, value);
            }
            from_keys(&keys, &mut config, &part.0)?;
        }
    }
    put(&part.0, "config.json", format!("{config:#}\n").as_bytes())?;
    if let Some(licence) = licence.filter(|_| !part.0.join(NOTICE).exists()) {
        let line = hub::terms(licence).and_then(|terms| terms.notice);
        let line = line.map_or(String::new(), |line| format!("{line}\n"));
        let text = format!("{line}Licence of the model that this was made from: {licence}\n");
        put(&part.0, NOTICE, text.as_bytes())?;
    }
    let weights = part.0.join(files::safetensors::SINGLE);
    let mut on_step = progress(args);
    let work = || write_safetensors(&source, &steps, &weights, threads(args), &mut on_step);
    let done = interrupt::listen(work).0?;
    if done.is_some() {
        std::fs::rename(&part.0, &args.out)
            .with_context(|| format!("cannot create {}", args.out.display()))?;
    }
    Ok(done)
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn beside(from: &Path, to: &Path) -> Result<()> {
    for name in BESIDE {
        let path = from.join(name);
        if path.is_file() {
            std::fs::copy(&path, to.join(name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// The tokenizer in the keys of a GGUF as files, if there is one, and what they say of beginnings and
/// ends, which config.json may lack.
fn from_keys(keys: &Metadata, config: &mut Value, folder: &Path) -> Result<()> {
    if keys.get("tokenizer.ggml.model").is_some() {
        for (name, bytes) in text::hf_files(keys)? {
            put(folder, name, &bytes)?;
        }
    }
    for name in ["bos", "eos"] {
        let (key, id) = (
            format!("{name}_token_id"),
            keys.u64(&format!("tokenizer.ggml.{name}_token_id")),
        );
        if config[&key].is_null() {
            config[&key] = json!(id);
        }
    }
    let generation = json!({
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
    });
    put(
        folder,
        "generation_config.json",
        format!("{generation:#}\n").as_bytes(),
    )
}

fn report(args: &ConvertArgs, steps: &[Step]) -> Report {
    let mut types: Vec<(&'static str, u64)> = Vec::new();
    for step in steps {
        let name = step.info.dtype.name();
        match types.iter_mut().find(|t| t.0 == name) {
            Some(found) => found.1 += step.bytes.1,
            None => types.push((name, step.bytes.1)),
        }
    }
    types.sort_by_key(|t| std::cmp::Reverse(t.1));
    Report {
        out: args.out.display().to_string(),
        tensors: steps.len(),
        bytes_before: steps.iter().map(|s| s.bytes.0).sum(),
        bytes: types.iter().map(|t| t.1).sum(),
        types,
    }
}

fn describe(r: &Report) -> String {
    let types: Vec<&str> = r.types.iter().map(|t| t.0).collect();
    format!(
        "{}: {} tensors, {:.1} MiB ({})",
        r.out,
        r.tensors,
        r.bytes as f64 / f64::from(1 << 20),
        types.join(", ")
    )
}
