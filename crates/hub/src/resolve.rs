//! From a word to a model on this machine.

use std::path::{Path, PathBuf};

use crate::hub::{Hub, PullOptions, Resolved};
use crate::keep::{Name, join, single_hash};
use crate::store::Manifest;
use crate::{Error, Progress, Spec, catalogue, hf_cache, parse_name};

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
        let scheme = word.starts_with("hf:") || word.starts_with("pip:") || word.contains("://");
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
        if let Some(found) = self.at_hand(&spec)? {
            return Ok(found);
        }
        if let Spec::Path(path) = spec {
            return Err(Error::NoSuchPath { path });
        }
        self.pull_spec(word, &spec, PullOptions::default(), progress)?;
        self.at_hand(&spec)?.ok_or_else(|| Error::Damaged {
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

    /// Whether a name is in the store or the catalogue.
    fn knows(&self, name: &str, tag: &str) -> bool {
        catalogue::find(name, tag).is_some() || !matches!(self.store.read(name, tag), Ok(None))
    }

    /// The model, if it is on this machine and whole: a path, the store, Hugging Face's cache.
    pub(crate) fn at_hand(&self, spec: &Spec) -> Result<Option<Resolved>, Error> {
        if let Spec::Path(path) = spec {
            return local(path);
        }
        if let Some((name, manifest)) = self.lookup(spec)?
            && self.store.missing(&manifest).is_none()
        {
            return self.resolved(&name, manifest).map(Some);
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
            }));
        }
        Ok(None)
    }

    /// A manifest whose files are all here, as a model to open.
    pub(crate) fn resolved(&self, name: &Name, manifest: Manifest) -> Result<Resolved, Error> {
        Ok(Resolved {
            name: join(name),
            path: self.store.view(&manifest)?,
            bytes: manifest.bytes(),
            sha256: single_hash(&manifest),
            source: manifest.source,
            licence: manifest.licence,
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
