//! From a word to a model on this machine.

use std::path::{Path, PathBuf};

use crate::create::in_folder;
use crate::hub::{Hub, PullOptions, Resolved};
use crate::keep::{Name, join, single_hash};
use crate::store::Manifest;
use crate::{Error, Progress, Spec, catalogue, hf_cache, ollama, parse_name};

impl Hub {
    /// Whether `run` takes its first word as MODEL: it exists as a file or directory, has a
    /// scheme, is a name in store or catalogue, or has the form `name:tag`.
    #[must_use]
    pub fn is_model_word(&self, word: &str) -> bool {
        if word.is_empty() || word.contains('\0') {
            return false;
        }
        if Path::new(word).exists() {
            return true;
        }
        if word.contains(char::is_whitespace) {
            return false;
        }
        let scheme = ["hf:", "pip:", "ollama:"]
            .iter()
            .any(|s| word.starts_with(s))
            || word.contains("://");
        scheme
            || parse_name(word)
                .is_some_and(|(name, tag)| word.contains(':') || self.knows(&name, &tag))
    }

    /// Finds a model, and pulls it first if it is not on this machine.
    ///
    /// # Errors
    /// [`Error::is_not_found`] ones if there is no such model, [`Error::Offline`] if it would
    /// have to be fetched and must not, and whatever can go wrong in [`Hub::pull`].
    pub fn resolve(&self, word: &str, progress: &mut dyn Progress) -> Result<Resolved, Error> {
        let spec = self.meaning(word)?;
        self.resolve_spec(word, &spec, progress)
    }

    /// [`Hub::resolve`] for a word whose meaning is known.
    pub(crate) fn resolve_spec(
        &self,
        word: &str,
        spec: &Spec,
        progress: &mut dyn Progress,
    ) -> Result<Resolved, Error> {
        if let Some(found) = self.at_hand(spec)? {
            return Ok(found);
        }
        self.pull_spec(word, spec, PullOptions::default(), progress)?;
        self.at_hand(spec)?.ok_or_else(|| Error::Damaged {
            name: word.to_owned(),
            why: "it was removed while it was being pulled".into(),
        })
    }

    /// What a word means here: a known name is that name, else an existing path is a path, else
    /// what [`Spec::parse`] says.
    pub(crate) fn meaning(&self, word: &str) -> Result<Spec, Error> {
        Ok(match Spec::parse(word)? {
            Spec::Name { name, tag } if !self.knows(&name, &tag) && Path::new(word).exists() => {
                Spec::Path(PathBuf::from(word))
            }
            spec => spec,
        })
    }

    /// Whether a name is in the store, the catalogue, or ollama's store.
    pub(crate) fn knows(&self, name: &str, tag: &str) -> bool {
        catalogue::find(name, tag).is_some()
            || !matches!(self.store.read(name, tag), Ok(None))
            || ollama::find(&self.settings.ollama, name, tag).is_some()
    }

    /// The model, if it is on this machine and whole: a path, the store, Hugging Face's cache,
    /// ollama's store.
    pub(crate) fn at_hand(&self, spec: &Spec) -> Result<Option<Resolved>, Error> {
        if let Spec::Path(path) = spec {
            return local(path);
        }
        let stored = self.lookup(spec)?;
        let is_stored = stored.is_some();
        if let Some((name, manifest)) = stored {
            match self.store.missing(&manifest) {
                None => return self.resolved(&name, manifest).map(Some),
                Some(file) if manifest.recipe.is_some() => {
                    return Err(Error::Damaged {
                        name: join(&name),
                        why: format!("{} is missing; `puna create` makes it anew", file.path),
                    });
                }
                Some(_) => {}
            }
        }
        let ollama = match spec {
            Spec::Ollama { name, tag } => Some((name, tag)),
            Spec::Name { name, tag } if !is_stored && catalogue::find(name, tag).is_none() => {
                Some((name, tag))
            }
            _ => None,
        };
        if let Some((name, tag)) = ollama
            && let Some(listed) = ollama::find(&self.settings.ollama, name, tag)
        {
            return self.in_ollama(&listed).map(Some);
        }
        if let Spec::Hf {
            repo,
            rev,
            file_or_quant,
        } = spec
        {
            let found = hf_cache::find(&self.settings, repo, rev, file_or_quant.as_deref());
            return Ok(found.map(|found| Resolved {
                name: spec.store_names().first().map(join).unwrap_or_default(),
                path: found.path,
                source: spec.display(),
                sha256: None,
                licence: None,
                bytes: found.bytes,
                recipe: None,
            }));
        }
        Ok(None)
    }

    /// A manifest whose files are all here, as a model to open.
    pub(crate) fn resolved(&self, name: &Name, manifest: Manifest) -> Result<Resolved, Error> {
        let name = join(name);
        let path = self.store.view(&manifest)?;
        let (bytes, sha256) = (manifest.bytes(), single_hash(&manifest));
        let folder = self.store.view_folder(&manifest);
        let own = manifest.recipe.map(|recipe| in_folder(recipe, &folder));
        let Some(word) = manifest.outside else {
            return Ok(Resolved {
                name,
                path,
                bytes,
                sha256,
                source: manifest.source,
                licence: manifest.licence,
                recipe: own,
            });
        };
        let mut base = self.outside(&name, &word)?;
        let mut recipe = own.unwrap_or_default();
        let adapters = base.recipe.map_or(Vec::new(), |recipe| recipe.adapters);
        recipe.adapters.splice(0..0, adapters);
        base.recipe = Some(recipe);
        base.licence = manifest.licence.or(base.licence);
        base.bytes = base.bytes.saturating_add(bytes);
        Ok(Resolved { name, ..base })
    }

    /// A model of ollama's store, as a model to open.
    pub(crate) fn in_ollama(&self, listed: &ollama::Listed) -> Result<Resolved, Error> {
        let found = listed.open()?;
        let word = listed.word();
        Ok(Resolved {
            name: word.clone(),
            source: word,
            licence: crate::licence::of_file(&found.path),
            path: found.path,
            sha256: Some(found.sha256),
            bytes: found.bytes,
            recipe: Some(found.recipe),
        })
    }
}

/// A file or directory that the user named; `None` if it does not exist.
fn local(path: &Path) -> Result<Option<Resolved>, Error> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let bytes = if meta.is_dir() {
        directory_bytes(path)?
    } else {
        meta.len()
    };
    // `.` and `..` have no name of their own until they are resolved.
    let named = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if meta.is_dir() {
        named.file_name()
    } else {
        path.file_stem()
    };
    Ok(Some(Resolved {
        name: name.map_or_else(
            || "model".into(),
            |name| name.to_string_lossy().into_owned(),
        ),
        path: path.to_owned(),
        source: path.display().to_string(),
        sha256: None,
        licence: None,
        bytes,
        recipe: None,
    }))
}

/// The sizes of the files directly inside a directory.
fn directory_bytes(dir: &Path) -> Result<u64, Error> {
    let mut sum = 0u64;
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        if let Ok(meta) = std::fs::metadata(entry.path())
            && meta.is_file()
        {
            sum = sum.saturating_add(meta.len());
        }
    }
    Ok(sum)
}
