//! Hugging Face's own cache, used in place and never written.
//!
//! Its layout: `models--ORG--REPO/refs/<rev>` holds a commit, and
//! `models--ORG--REPO/snapshots/<commit>/` the files of that commit, some or all of them.

use std::path::{Path, PathBuf};

use crate::Settings;
use crate::choose::{Choice, RepoFile, choose};

/// A model in the cache.
#[derive(Debug)]
pub(crate) struct Found {
    /// The file or directory to open.
    pub path: PathBuf,
    /// The sum of its files.
    pub bytes: u64,
}

/// Looks for a model whose files are all in one cache. A snapshot can be partial: then this is
/// `None`, as it is when the choice is not clear from what is there.
pub(crate) fn find(
    settings: &Settings,
    repo: &str,
    rev: &str,
    wanted: Option<&str>,
) -> Option<Found> {
    let folder = format!("models--{}", repo.replace('/', "--"));
    settings.hf_cache.iter().find_map(|cache| {
        let snapshot = snapshot(&cache.join(&folder), rev)?;
        let mut listing = Vec::new();
        list(&snapshot, "", 0, &mut listing);
        let choice = choose(&listing, wanted).ok()?;
        if choice.directory && !complete(&snapshot, &choice) {
            return None;
        }
        let bytes = choice.files.iter().filter_map(|file| file.bytes).sum();
        let path = if choice.directory {
            snapshot
        } else {
            snapshot.join(&choice.files.first()?.path)
        };
        Some(Found { path, bytes })
    })
}

/// The snapshot folder of a revision (checked by [`crate::Spec::parse`]: it cannot leave the cache).
fn snapshot(repo: &Path, rev: &str) -> Option<PathBuf> {
    let commit = match std::fs::read_to_string(repo.join("refs").join(rev)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => rev.to_owned(),
    };
    let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    let dir = repo.join("snapshots").join(&commit);
    (is_commit && dir.is_dir()).then_some(dir)
}

/// The files directly inside `dir`.
pub(crate) fn list_flat(dir: &Path) -> Vec<RepoFile> {
    let mut out = Vec::new();
    list(dir, "", DEPTH_MAX, &mut out);
    out
}

/// How many folders deep a listing goes.
const DEPTH_MAX: usize = 4;

/// Lists the files under `dir` with their sizes; links count as what they lead to.
fn list(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<RepoFile>) {
    const FILES_MAX: usize = 10_000;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(leaf) = entry.file_name().into_string() else {
            continue;
        };
        let path = format!("{prefix}{leaf}");
        match std::fs::metadata(entry.path()) {
            Ok(meta) if meta.is_dir() && depth < DEPTH_MAX => {
                list(&entry.path(), &format!("{path}/"), depth + 1, out);
            }
            Ok(meta) if meta.is_file() && out.len() < FILES_MAX => out.push(RepoFile {
                path,
                bytes: Some(meta.len()),
                sha256: None,
            }),
            _ => {}
        }
    }
}

/// Whether a directory model has its configuration, a tokenizer, and all the weights that its
/// index names.
fn complete(snapshot: &Path, choice: &Choice) -> bool {
    const INDEX: &str = "model.safetensors.index.json";
    const INDEX_MAX: u64 = 64 << 20;
    let has = |name: &str| choice.files.iter().any(|file| file.path == name);
    if !has("config.json") || !(has("tokenizer.json") || has("tokenizer.model")) {
        return false;
    }
    if has("model.safetensors") || !has(INDEX) {
        // Shards without their index: the model is not all there.
        return !choice
            .files
            .iter()
            .any(|file| file.path.starts_with("model-00"));
    }
    let path = snapshot.join(INDEX);
    if std::fs::metadata(&path).map_or(true, |meta| meta.len() > INDEX_MAX) {
        return false;
    }
    let index: Option<serde_json::Value> = std::fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    index
        .as_ref()
        .and_then(|index| index.get("weight_map")?.as_object())
        .is_some_and(|map| map.values().all(|file| file.as_str().is_some_and(has)))
}
