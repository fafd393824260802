//! Adapters that the requests of `serve` choose: found in the store or at a path, opened beside a
//! model that runs already.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use engine::Scheduler;
use model::Adapter;
use server::{Adapters, ApiError, Kind, Model};

use crate::adapt::scaled;
use crate::args::NetArgs;
use crate::exit::{Code, classify, failure, usage};
use crate::load;
use crate::memory::{self, Promises};

/// Room for adapters that requests choose, beside what was promised to models. Nothing is fetched
/// for them.
pub fn choosable(promises: Arc<Promises>) -> Adapters {
    Adapters::new(Arc::new(move |scheduler: &Scheduler, word: &str| {
        open(scheduler, &promises, word).map_err(|error| {
            let failure = classify(&error);
            let kind = match failure.code {
                Code::NotFound => Kind::Adapter,
                _ => Kind::Invalid,
            };
            let hint = failure
                .hint
                .map_or(String::new(), |hint| format!(" ({hint})"));
            ApiError::new(kind, format!("{}{hint}", failure.what)).param("adapter")
        })
    }))
}

/// Loads those of `--named-adapter NAME=ADAPTER[:SCALE]`.
pub fn load(model: &Model, typed: &[String]) -> Result<()> {
    for typed in typed {
        let Some((name, rest)) = typed.split_once('=') else {
            return Err(usage(
                format!("--named-adapter {typed}: there is no name"),
                "NAME=ADAPTER, for example poet=./poet-lora",
            ));
        };
        let (word, scale) = scaled(rest)?;
        let word = word.to_string_lossy();
        // A scale that was not typed is the adapter's own.
        let scale = (word != rest).then_some(scale);
        let loaded = model
            .adapters
            .load(&model.scheduler, name, &word, scale, model.created);
        loaded.map_err(|error| {
            let code = match error.kind {
                Kind::Adapter => Code::NotFound,
                _ if error.param.as_deref() == Some("name") => Code::Usage,
                _ => Code::Invalid,
            };
            let what = format!("--named-adapter {typed}: {}", error.message);
            failure(code, what, "docs/adapters.md says what is read")
        })?;
    }
    Ok(())
}

fn open(scheduler: &Scheduler, promises: &Promises, word: &str) -> Result<(Adapter, f32)> {
    let (path, scale) = find(word)?;
    // Half-precision numbers become f32.
    memory::room_beside(promises, bytes_at(&path).saturating_mul(2))?;
    let adapter = Adapter::open(&path, scheduler.weights(), scale);
    Ok((adapter.map_err(|e| load::named(&path, e))?, scale))
}

/// Where an adapter lies, and at which scale it is used. Of a made model it is the one that the
/// model has.
fn find(word: &str) -> Result<(PathBuf, f32)> {
    let found = load::find_model(NetArgs { offline: true }, word)?;
    match found.recipe.map(|recipe| recipe.adapters).as_deref() {
        None | Some([]) => Ok((found.path, 1.0)),
        Some([one]) => {
            let scale = one.scale.as_deref().map_or(Ok(1.0), str::parse);
            Ok((PathBuf::from(&one.path), scale?))
        }
        Some(several) => Err(failure(
            Code::Failed,
            format!("{word} has {} adapters", several.len()),
            "make a model with each of them",
        )),
    }
}

/// The size of a file, or of the files in a directory.
fn bytes_at(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| size(&e.path())).sum(),
        Err(_) => size(path),
    }
}
