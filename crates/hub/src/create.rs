//! Making a model out of another one: a record in the store that shares its base's files.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::choose::{Refusal, choose};
use crate::hub::{Entry, Hub};
use crate::pull::{TmpFile, safe_leaf};
use crate::recipe::{Adapter, Recipe};
use crate::store::{Manifest, SCHEMA_MADE, StoredFile, unique};
use crate::{Error, Progress, Spec, digest, hf_cache, keep, parse_name};

/// Files that a model of one file may have beside it.
const BESIDE: [&str; 3] = ["tokenizer.bin", "tokenizer.model", "tokenizer.json"];

/// A record to be, and what lies in `tmp/` for it.
struct Draft {
    manifest: Manifest,
    /// The base's adapters that lie among the record's files.
    adapters: Vec<Adapter>,
    /// Each with its hash.
    staged: Vec<(TmpFile, String)>,
}

impl Hub {
    /// Makes `name` from a recipe. Its base is found, or pulled; a file or directory is copied into
    /// the store, what lies in ollama's or Hugging Face's own store is used there. Relative paths
    /// are under `folder`. A model that was made earlier under this name is replaced.
    ///
    /// # Errors
    /// [`Error::Exists`] if the name is a pulled model's; [`Error::Spec`] if it is no name; as
    /// [`Hub::resolve`] for the base and [`Error::NoSuchPath`] for an adapter.
    pub fn create(
        &self,
        name: &str,
        recipe: Recipe,
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Entry, Error> {
        let target = parse_name(name).ok_or_else(|| keep::no_name(name))?;
        let may_replace = || match self.store.read(&target.0, &target.1)? {
            Some(old) if old.recipe.is_none() => Err(Error::Exists {
                name: keep::join(&target),
            }),
            _ => Ok(()),
        };
        // Said before anything is fetched, and again under the lock.
        may_replace()?;
        let mut draft = self.base(&recipe.from, folder, progress)?;
        self.fill(&mut draft, recipe, folder, progress)?;
        let (name, tag) = target.clone();
        draft.manifest.key = Spec::Name { name, tag }.key();
        let lock = self.store.commit_lock(progress)?;
        may_replace()?;
        for (tmp, sha256) in &draft.staged {
            self.store.adopt(&tmp.path, sha256)?;
        }
        if let Some(file) = self.store.missing(&draft.manifest) {
            return Err(Error::Damaged {
                name: draft.manifest.source.clone(),
                why: format!("{} went away meanwhile", file.path),
            });
        }
        self.store.view(&draft.manifest)?;
        self.store.write(&target.0, &target.1, &draft.manifest)?;
        // What the name needed before may not be needed any more.
        self.store.collect()?;
        drop(lock);
        Ok(self.entry(&target, draft.manifest))
    }

    /// Puts the recipe, over the base's own, and its adapters into the record.
    fn fill(
        &self,
        draft: &mut Draft,
        recipe: Recipe,
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let mut recipe = recipe.over(draft.manifest.recipe.as_ref());
        let before = draft.adapters.len();
        for (i, adapter) in recipe.adapters.iter_mut().enumerate() {
            let path = folder.join(&adapter.path);
            let place = format!("adapters/{}", before + i);
            if path.is_file() {
                let leaf = path.file_name().map(|leaf| leaf.to_string_lossy());
                let leaf = safe_leaf(leaf.as_deref().unwrap_or_default());
                adapter.path = format!("{place}/{leaf}");
                self.copy_in(draft, &path, adapter.path.clone(), progress)?;
                continue;
            }
            for leaf in peft_files(&path)? {
                self.copy_in(
                    draft,
                    &path.join(&leaf),
                    format!("{place}/{leaf}"),
                    progress,
                )?;
            }
            adapter.path = place;
        }
        // The base's adapters act first.
        recipe.adapters.splice(0..0, draft.adapters.drain(..));
        draft.manifest.schema = SCHEMA_MADE;
        draft.manifest.recipe = Some(recipe);
        Ok(())
    }

    /// The record's beginning: the base's files, where they are.
    fn base(&self, word: &str, folder: &Path, progress: &mut dyn Progress) -> Result<Draft, Error> {
        let spec = match self.meaning(word)? {
            Spec::Path(path) => return self.base_of_path(&folder.join(path), progress),
            Spec::Name { name, tag } if !self.knows(&name, &tag) && folder.join(word).exists() => {
                return self.base_of_path(&folder.join(word), progress);
            }
            spec => spec,
        };
        let found = self.resolve_spec(word, &spec, progress)?;
        let mut draft = Draft {
            manifest: Manifest {
                source: found.source.clone(),
                licence: found.licence,
                ..empty()
            },
            adapters: Vec::new(),
            staged: Vec::new(),
        };
        match self.lookup(&spec)? {
            Some((_, manifest)) => {
                let recipe = manifest.recipe.as_ref();
                draft.adapters = recipe.map_or(Vec::new(), |recipe| recipe.adapters.clone());
                draft.manifest = Manifest {
                    pulled: now(),
                    ..manifest
                };
            }
            None => {
                draft.manifest.outside = Some(found.source);
                draft.manifest.recipe = found.recipe;
            }
        }
        Ok(draft)
    }

    /// A file with its shards or its tokenizer, or a directory, copied into `tmp/`.
    fn base_of_path(&self, path: &Path, progress: &mut dyn Progress) -> Result<Draft, Error> {
        let path = path.canonicalize().map_err(|_| Error::NoSuchPath {
            path: path.to_owned(),
        })?;
        let directory = path.is_dir();
        let (folder, leaf) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(leaf)) if !directory => {
                (parent.to_owned(), leaf.to_str().map(str::to_owned))
            }
            _ => (path.clone(), None),
        };
        let listing = hf_cache::list_flat(&folder);
        let mut choice =
            choose(&listing, leaf.as_deref()).map_err(|Refusal { why, choices }| {
                let what = path.display().to_string();
                Error::Choose { what, why, choices }
            })?;
        let is_gguf = leaf
            .as_ref()
            .is_none_or(|leaf| leaf.to_ascii_lowercase().ends_with(".gguf"));
        if !directory && !is_gguf {
            let beside = listing.iter().filter(|f| BESIDE.contains(&f.path.as_str()));
            choice.files.extend(beside.cloned());
        }
        let mut draft = Draft {
            manifest: Manifest {
                source: path.display().to_string(),
                directory: choice.directory,
                ..empty()
            },
            adapters: Vec::new(),
            staged: Vec::new(),
        };
        for file in choice.files {
            self.copy_in(&mut draft, &folder.join(&file.path), file.path, progress)?;
        }
        let first = draft.manifest.files.first();
        let first = first.map(|file| folder.join(&file.path));
        draft.manifest.licence = match draft.manifest.directory {
            true => crate::licence_of(&folder),
            false => first.and_then(|first| crate::licence::of_file(&first)),
        };
        Ok(draft)
    }

    /// Copies one file into `tmp/`, hashed as it goes, and notes it in the record as `name`.
    fn copy_in(
        &self,
        draft: &mut Draft,
        path: &Path,
        name: String,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let mut from = File::open(path).map_err(Error::io("open", path))?;
        let size = from.metadata().map_err(Error::io("read", path))?.len();
        let mut tmp = TmpFile::create(self.store.tmp_path(&format!("{}.copy", unique()))?)?;
        let (mut hasher, mut bytes) = (Sha256::new(), 0u64);
        let mut buffer = vec![0u8; 1 << 20];
        progress.start(&format!("copying {name}"), Some(size));
        loop {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let n = from.read(&mut buffer).map_err(Error::io("read", path))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            let written = tmp.file.write_all(&buffer[..n]);
            written.map_err(Error::io("write", &tmp.path))?;
            bytes += n as u64;
            progress.advance(bytes);
        }
        tmp.file.sync_all().map_err(Error::io("write", &tmp.path))?;
        progress.finish();
        let sha256 = digest::finish(hasher);
        draft.manifest.files.push(StoredFile {
            path: name,
            sha256: sha256.clone(),
            bytes,
        });
        draft.staged.push((tmp, sha256));
        Ok(())
    }

    /// The base that a record uses where it lies: the file or directory to open, its size and its
    /// own recipe.
    pub(crate) fn outside(&self, name: &str, word: &str) -> Result<crate::Resolved, Error> {
        let gone = |why: String| Error::Damaged {
            name: name.to_owned(),
            why,
        };
        let spec = Spec::parse(word).map_err(|e| gone(format!("its base: {e}")))?;
        // A record never stands on a record: this ends.
        if !matches!(spec, Spec::Ollama { .. } | Spec::Hf { .. }) {
            return Err(gone(format!(
                "its base {word:?} is not one to be used in place"
            )));
        }
        self.at_hand(&spec)?
            .ok_or_else(|| gone(format!("its base {word} is not on this machine any more")))
    }
}

/// A record of nothing.
fn empty() -> Manifest {
    Manifest {
        schema: SCHEMA_MADE,
        key: String::new(),
        source: String::new(),
        revision: None,
        licence: None,
        pulled: now(),
        directory: false,
        files: Vec::new(),
        recipe: None,
        outside: None,
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// The settings of an adapter that is a directory, as PEFT writes it, and how the names of its other
/// files begin and end: one with all tensors, or shards and their index.
const SETTINGS: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model";
const ENDINGS: [&str; 3] = [".safetensors", ".bin", ".index.json"];

/// The files of such a directory.
fn peft_files(path: &Path) -> Result<Vec<String>, Error> {
    if !path.is_dir() {
        return Err(Error::NoSuchPath {
            path: path.to_owned(),
        });
    }
    let is_part = |leaf: &str| {
        let rest = leaf.strip_prefix(TENSORS);
        rest.is_some_and(|rest| {
            rest.starts_with(['.', '-']) && ENDINGS.iter().any(|e| rest.ends_with(e))
        })
    };
    let listing = hf_cache::list_flat(path).into_iter().map(|file| file.path);
    let mut files: Vec<String> = listing
        .filter(|leaf| leaf == SETTINGS || is_part(leaf))
        .collect();
    files.sort();
    let missing = match (files.first().map(String::as_str), files.len()) {
        (Some(SETTINGS), 2..) => return Ok(files),
        (Some(SETTINGS), _) => "adapter_model.safetensors",
        _ => SETTINGS,
    };
    Err(Error::Choose {
        what: path.display().to_string(),
        why: format!("it is no adapter of PEFT's: it has no {missing}"),
        choices: Vec::new(),
    })
}

/// A recipe whose adapters are named by whole paths.
pub(crate) fn in_folder(mut recipe: Recipe, folder: &Path) -> Recipe {
    for adapter in &mut recipe.adapters {
        let path: PathBuf = folder.join(&adapter.path);
        adapter.path = path.to_string_lossy().into_owned();
    }
    recipe
}
