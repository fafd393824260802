//! The store's verbs that need no network: list, show, rm, cp, verify.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::digest;
use crate::hub::{Entry, Hub, Removed, Verified};
use crate::nearest::nearest;
use crate::store::{self, Manifest, StoredFile};
use crate::{Error, Progress, Spec, catalogue, ollama, parse_name};

/// A name in the store: (name, tag).
pub(crate) type Name = (String, String);

impl Hub {
    /// All models of the store, sorted by name, then those of ollama's. A damaged one is listed with its damage.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let all = self.store.all()?;
        let own = all.into_iter().map(|(name, manifest)| match manifest {
            Ok(manifest) => self.entry(&name, manifest),
            Err(e) => broken_entry(join(&name), &e),
        });
        let found = ollama::list(&self.settings.ollama);
        let others = found.iter().map(|listed| match self.in_ollama(listed) {
            Ok(found) => Entry {
                name: found.name,
                path: found.path,
                source: found.source,
                revision: None,
                licence: found.licence,
                sha256: found.sha256,
                bytes: found.bytes,
                files: Vec::new(),
                recipe: found.recipe,
                place: "ollama",
                pulled: 0,
                damage: None,
            },
            Err(e) => Entry {
                place: "ollama",
                source: listed.word(),
                ..broken_entry(listed.word(), &e)
            },
        });
        Ok(own.chain(others).collect())
    }

    /// One model of the store, by name or by the MODEL word it was pulled with.
    ///
    /// # Errors
    /// [`Error::NotPulled`] if it is only in the catalogue, [`Error::NotFound`] if it is nowhere.
    pub fn show(&self, word: &str) -> Result<Entry, Error> {
        let (name, manifest) = self.stored(word)?;
        Ok(self.entry(&name, manifest))
    }

    /// Removes a name, and the files that no other name uses.
    ///
    /// # Errors
    /// As [`Hub::show`], or [`Error::Io`].
    pub fn rm(&self, word: &str) -> Result<Removed, Error> {
        let name = match self.stored(word) {
            Ok((name, _)) => name,
            // What cannot be read can still be removed.
            Err(Error::Damaged { name, .. }) => parse_name(&name).ok_or(self.not_found(word))?,
            Err(e) => return Err(e),
        };
        let _lock = self.store.commit_lock(&mut ())?;
        let freed = self
            .store
            .remove(&name.0, &name.1)?
            .ok_or_else(|| self.not_found(word))?;
        Ok(Removed {
            name: join(&name),
            freed,
        })
    }

    /// Gives a model a second name. The files are shared.
    ///
    /// # Errors
    /// [`Error::Exists`] if `to` is taken by another model, [`Error::Spec`] if it is no name,
    /// else as [`Hub::show`].
    pub fn cp(&self, from: &str, to: &str) -> Result<Entry, Error> {
        let target = parse_name(to).ok_or_else(|| no_name(to))?;
        let _lock = self.store.commit_lock(&mut ())?;
        let (_, manifest) = self.stored(from)?;
        match self.store.read(&target.0, &target.1)? {
            Some(old)
                if old.view_id() != manifest.view_id()
                    || (&old.recipe, &old.outside) != (&manifest.recipe, &manifest.outside) =>
            {
                return Err(Error::Exists {
                    name: join(&target),
                });
            }
            _ => self.store.write(&target.0, &target.1, &manifest)?,
        }
        Ok(self.entry(&target, manifest))
    }

    /// Hashes the files of one model, or of all, and says what differs from its manifest.
    ///
    /// # Errors
    /// As [`Hub::show`], or [`Error::Cancelled`]. Damage is no error but an answer.
    pub fn verify(
        &self,
        word: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Verified>, Error> {
        let models = match word {
            Some(word) => {
                let (name, manifest) = self.stored(word)?;
                vec![(name, Ok(manifest))]
            }
            None => self.store.all()?,
        };
        // Names share files: each is read once.
        let mut known = HashMap::new();
        let mut out = Vec::with_capacity(models.len());
        for (name, manifest) in models {
            let mut verified = Verified {
                name: join(&name),
                bytes: 0,
                damage: Vec::new(),
            };
            match manifest {
                Err(e) => verified.damage.push(e.to_string()),
                Ok(manifest) => {
                    let base = manifest
                        .outside
                        .as_ref()
                        .map(|w| self.outside(&verified.name, w));
                    if let Some(Err(e)) = base {
                        verified.damage.push(e.to_string());
                    }
                    for file in &manifest.files {
                        let damage = match known.get(&file.sha256) {
                            Some(damage) => Option::clone(damage),
                            None => {
                                let damage = self.verify_file(&verified.name, file, progress)?;
                                verified.bytes += file.bytes;
                                known.insert(file.sha256.clone(), damage.clone());
                                damage
                            }
                        };
                        let named = |damage| format!("{}: {damage}", file.path);
                        verified.damage.extend(damage.map(named));
                    }
                }
            }
            out.push(verified);
        }
        Ok(out)
    }

    /// What is wrong with one blob.
    fn verify_file(
        &self,
        name: &str,
        file: &StoredFile,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>, Error> {
        let path = self.store.blob_path(&file.sha256);
        progress.start(&format!("{name} {}", file.path), Some(file.bytes));
        let mut hasher = Sha256::new();
        let bytes = match digest::feed_file(&mut hasher, &path, progress) {
            Ok(bytes) => bytes,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(e) => return Ok(Some(e.to_string())),
        };
        progress.finish();
        let sha256 = digest::finish(hasher);
        Ok(if bytes != file.bytes {
            Some(format!("{bytes} bytes, expected {}", file.bytes))
        } else if sha256 != file.sha256 {
            Some(format!("SHA-256 is {sha256}, expected {}", file.sha256))
        } else {
            None
        })
    }

    /// The name and manifest that a word means in the store.
    pub(crate) fn stored(&self, word: &str) -> Result<(Name, Manifest), Error> {
        let spec = Spec::parse(word)?;
        if let Some(found) = self.lookup(&spec)? {
            return Ok(found);
        }
        Err(match &spec {
            Spec::Name { name, tag } if catalogue::find(name, tag).is_some() => Error::NotPulled {
                name: format!("{name}:{tag}"),
            },
            _ => self.not_found(word),
        })
    }

    /// The manifest that a spec means in the store, if there is one.
    pub(crate) fn lookup(&self, spec: &Spec) -> Result<Option<(Name, Manifest)>, Error> {
        let key = spec.key();
        for (name, tag) in spec.store_names() {
            if let Some(manifest) = self.store.read(&name, &tag)?
                && (matches!(spec, Spec::Name { .. }) || manifest.key == key)
            {
                return Ok(Some(((name, tag), manifest)));
            }
        }
        Ok(None)
    }

    /// [`Error::NotFound`] with the nearest names of store and catalogue.
    pub(crate) fn not_found(&self, word: &str) -> Error {
        let stored: Vec<String> = self
            .store
            .all()
            .unwrap_or_default()
            .iter()
            .map(|(name, _)| join(name))
            .collect();
        let known = stored
            .iter()
            .map(String::as_str)
            .chain(catalogue::catalogue().iter().map(|entry| entry.name));
        Error::NotFound {
            name: word.to_owned(),
            nearest: nearest(word, known),
        }
    }

    /// A manifest as its users see it.
    pub(crate) fn entry(&self, name: &Name, manifest: Manifest) -> Entry {
        let found = match self.store.missing(&manifest) {
            Some(file) => Err(format!("{} is missing or has another size", file.path)),
            None => self
                .resolved(name, manifest.clone())
                .map_err(|e| e.to_string()),
        };
        let (path, bytes, sha256, damage) = match found {
            Ok(found) => (found.path, found.bytes, found.sha256, None),
            Err(why) => (
                Default::default(),
                manifest.bytes(),
                single_hash(&manifest),
                Some(why),
            ),
        };
        Entry {
            name: join(name),
            path,
            bytes,
            sha256,
            source: manifest.source,
            revision: manifest.revision,
            licence: manifest.licence,
            files: manifest.files,
            recipe: manifest.recipe,
            place: "puna",
            pulled: manifest.pulled,
            damage,
        }
    }
}

/// The hash of the model's file, if it is one file beside its adapters.
pub(crate) fn single_hash(manifest: &Manifest) -> Option<String> {
    let adapters = manifest.recipe.iter().flat_map(|r| &r.adapters);
    let beside = |file: &str| adapters.clone().any(|a| store::is_of(&a.path, file));
    match manifest.files.as_slice() {
        [file, rest @ ..] if !manifest.directory && rest.iter().all(|f| beside(&f.path)) => {
            Some(file.sha256.clone())
        }
        _ => None,
    }
}

/// `name:tag`
pub(crate) fn join(name: &Name) -> String {
    format!("{}:{}", name.0, name.1)
}

/// The error for a word that is no name.
pub(crate) fn no_name(word: &str) -> Error {
    Error::Spec {
        word: word.to_owned(),
        why: "a store name is name[:tag] of letters, digits, `.`, `_`, `-`, with at most one `/`"
            .into(),
    }
}

fn broken_entry(name: String, error: &Error) -> Entry {
    Entry {
        name,
        path: Default::default(),
        source: String::new(),
        revision: None,
        licence: None,
        sha256: None,
        bytes: 0,
        files: Vec::new(),
        recipe: None,
        place: "puna",
        pulled: 0,
        damage: Some(error.to_string()),
    }
}
