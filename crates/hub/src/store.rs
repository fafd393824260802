//! The store: files by their hash, names that point at them.
//!
//! ```text
//! blobs/sha256-<hex>        one file, named by its content
//! views/<hex>/<file names>  hard links to blobs under the names a model's reader expects
//! names/<name>/<tag>.json   a manifest: which files a name means, and where they came from
//! tmp/                      what is not finished: downloads that can be resumed, unpacking
//! locks/                    empty files that processes lock; their content means nothing
//! ```
//!
//! The `/` of a two-part name is written `+` (a sign that names cannot have), so that a name's
//! folder and another name's tag never meet. All changes to blobs, views and names happen
//! under one lock ([`Store::commit_lock`]), held briefly; a name appears by a rename, last.
//! So whoever is killed leaves `tmp/` data behind and nothing else.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{is_sha256, sha256_hex};
use crate::recipe::Recipe;
use crate::spec::{parse_name, safe_relative};
use crate::{Error, Progress};

/// The largest manifest that is read.
const MANIFEST_MAX: u64 = 16 << 20;
/// The manifests' format; a higher number is refused.
pub(crate) const SCHEMA: u32 = 1;
/// The format of a made model's manifest: one that knows no recipes must not pass over it.
pub(crate) const SCHEMA_MADE: u32 = 2;

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name, with folders, as its readers expect it ([`safe_relative`]).
    pub path: String,
    /// Its content's SHA-256, 64 lower-case hex digits.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// What stands in `names/<name>/<tag>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// [`SCHEMA`] or [`SCHEMA_MADE`]
    pub schema: u32,
    /// [`crate::Spec::key`] of what was pulled: finds this manifest by its source.
    pub key: String,
    /// [`crate::Spec::display`] of what was pulled.
    pub source: String,
    /// The commit, for a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The licence, where a card, the catalogue or the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Seconds since 1970.
    pub pulled: u64,
    /// Whether the model is its one file, or the directory around its files.
    pub directory: bool,
    /// The files; the first is the model's where it is no directory. Empty only with `outside`.
    pub files: Vec<StoredFile>,
    /// What a made model adds to its base; its adapters are among the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// The base of a made model that is used where it lies, in another program's store: a MODEL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<String>,
}

impl Manifest {
    /// The view's folder name: a hash over all names and hashes, so equal models share a view.
    pub(crate) fn view_id(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            text.push_str(&file.sha256);
            text.push('/');
            text.push_str(&file.path);
            text.push('\n');
        }
        sha256_hex(text.as_bytes())
    }

    /// The sum of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// A manifest read from disk is input like any other: nothing in it may lead out of the store.
    fn check(&self) -> Result<(), String> {
        if self.schema > SCHEMA_MADE {
            return Err(format!(
                "its format {} is newer than this Puna",
                self.schema
            ));
        }
        if self.files.is_empty() && self.outside.is_none() {
            return Err("it lists no files".into());
        }
        if let Some(recipe) = &self.recipe {
            recipe.check()?;
            let own = |path: &String| self.files.iter().any(|file| is_of(path, &file.path));
            if let Some(adapter) = recipe.adapters.iter().find(|a| !own(&a.path)) {
                return Err(format!("it lacks the adapter {:?}", adapter.path));
            }
        }
        for file in &self.files {
            safe_relative(&file.path).map_err(|why| format!("file {:?}: {why}", file.path))?;
            if !is_sha256(&file.sha256) {
                return Err(format!("file {:?}: its hash is no SHA-256", file.path));
            }
        }
        Ok(())
    }
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// The folders under one root.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Store {
        Store { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob_path(&self, sha256: &str) -> PathBuf {
        debug_assert!(is_sha256(sha256));
        self.root.join("blobs").join(format!("sha256-{sha256}"))
    }

    /// `tmp/<leaf>`, with the folder made.
    pub(crate) fn tmp_path(&self, leaf: &str) -> Result<PathBuf, Error> {
        let dir = self.root.join("tmp");
        make_dir(&dir)?;
        Ok(dir.join(leaf))
    }

    fn manifest_path(&self, name: &str, tag: &str) -> PathBuf {
        self.root
            .join("names")
            .join(name.replace('/', "+"))
            .join(format!("{tag}.json"))
    }

    /// Waits for the lock called `key`; `wait_note` is said once if somebody else holds it.
    pub(crate) fn lock(
        &self,
        key: &str,
        wait_note: &str,
        progress: &mut dyn Progress,
    ) -> Result<Lock, Error> {
        let dir = self.root.join("locks");
        make_dir(&dir)?;
        let path = dir.join(format!("{}.lock", &sha256_hex(key.as_bytes())[..32]));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
            }
            if !said {
                said = true;
                progress.note(wait_note);
            }
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// The lock under which blobs, views and names change.
    pub(crate) fn commit_lock(&self, progress: &mut dyn Progress) -> Result<Lock, Error> {
        self.lock(
            "commit",
            "waiting for another process to finish with the store",
            progress,
        )
    }

    /// The manifest of a name; `None` if there is none.
    pub(crate) fn read(&self, name: &str, tag: &str) -> Result<Option<Manifest>, Error> {
        let path = self.manifest_path(name, tag);
        let damaged = |why: String| Error::Damaged {
            name: format!("{name}:{tag}"),
            why: format!("its manifest {}: {why}", path.display()),
        };
        match fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
            Ok(meta) if meta.len() > MANIFEST_MAX => return Err(damaged("too large".into())),
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(Some(manifest))
    }

    /// Writes a manifest: whole or not at all. Hold the commit lock.
    pub(crate) fn write(&self, name: &str, tag: &str, manifest: &Manifest) -> Result<(), Error> {
        let path = self.manifest_path(name, tag);
        let dir = path.parent().unwrap_or(&self.root);
        make_dir(dir)?;
        let mut json = serde_json::to_vec_pretty(manifest).map_err(|e| Error::Io {
            what: "write",
            path: path.clone(),
            source: e.into(),
        })?;
        json.push(b'\n');
        let tmp = self.tmp_path(&format!("{}.manifest", unique()))?;
        let written = (|| {
            let mut file = File::create(&tmp)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&tmp, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        written.map_err(Error::io("write", &path))?;
        sync_dir(dir);
        Ok(())
    }

    /// All names with their manifests, sorted; a damaged manifest is an `Err` in its place.
    #[expect(
        clippy::type_complexity,
        reason = "a list of named results, used twice"
    )]
    pub(crate) fn all(&self) -> Result<Vec<((String, String), Result<Manifest, Error>)>, Error> {
        let mut out = Vec::new();
        for name_dir in read_dir(&self.root.join("names"))? {
            let Some(name) = name_dir.file_name().into_string().ok() else {
                continue;
            };
            let name = name.replace('+', "/");
            for file in read_dir(&name_dir.path())? {
                let leaf = file.file_name();
                let Some(tag) = leaf.to_str().and_then(|leaf| leaf.strip_suffix(".json")) else {
                    continue;
                };
                // What this store would not have written is not its.
                if parse_name(&format!("{name}:{tag}")) != Some((name.clone(), tag.to_owned())) {
                    continue;
                }
                match self.read(&name, tag) {
                    Ok(Some(manifest)) => out.push(((name.clone(), tag.to_owned()), Ok(manifest))),
                    Ok(None) => {}
                    Err(e) => out.push(((name.clone(), tag.to_owned()), Err(e))),
                }
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    /// The first blob of `manifest` that is missing or has the wrong size.
    pub(crate) fn missing<'m>(&self, manifest: &'m Manifest) -> Option<&'m StoredFile> {
        manifest.files.iter().find(|file| {
            fs::metadata(self.blob_path(&file.sha256)).map_or(true, |meta| meta.len() != file.bytes)
        })
    }

    /// Takes a finished, verified temporary file in as a blob. Hold the commit lock.
    pub(crate) fn adopt(&self, tmp: &Path, sha256: &str) -> Result<(), Error> {
        let blob = self.blob_path(sha256);
        make_dir(&self.root.join("blobs"))?;
        fs::rename(tmp, &blob).map_err(Error::io("rename", tmp))?;
        sync_dir(&self.root.join("blobs"));
        Ok(())
    }

    /// The folder of a manifest's view.
    pub(crate) fn view_folder(&self, manifest: &Manifest) -> PathBuf {
        self.root.join("views").join(manifest.view_id())
    }

    /// The path a reader opens: the one file, or the directory of the view. Links that are
    /// missing are made again.
    pub(crate) fn view(&self, manifest: &Manifest) -> Result<PathBuf, Error> {
        let dir = self.view_folder(manifest);
        for file in &manifest.files {
            let link = dir.join(&file.path);
            let blob = self.blob_path(&file.sha256);
            if is_same_file(&link, &blob) {
                continue;
            }
            if let Some(parent) = link.parent() {
                make_dir(parent)?;
            }
            // Beside it and then over it: a reader sees the old file or the new one.
            let new = self.tmp_path(&format!("{}.link", unique()))?;
            link_file(&blob, &new).map_err(Error::io("link", &blob))?;
            fs::rename(&new, &link).map_err(Error::io("link", &link))?;
            // A rename onto a link of the same file does nothing and leaves both.
            let _ = fs::remove_file(&new);
        }
        Ok(match manifest.files.as_slice() {
            // The first shard of a split file stands for all of them.
            [first, ..] if !manifest.directory && manifest.outside.is_none() => {
                dir.join(&first.path)
            }
            _ => dir,
        })
    }

    /// Removes a name, and its blobs and view where no other name needs them. Returns the bytes
    /// freed, `None` if there is no such name. Hold the commit lock.
    pub(crate) fn remove(&self, name: &str, tag: &str) -> Result<Option<u64>, Error> {
        let path = self.manifest_path(name, tag);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("remove", &path)(e)),
            Ok(()) => {}
        }
        if let Some(dir) = path.parent() {
            // The name is gone for good before a file of it goes.
            sync_dir(dir);
            // Fails while other tags are there: that is meant.
            let _ = fs::remove_dir(dir);
        }
        self.collect().map(Some)
    }

    /// Removes every blob and view that no name needs, and returns the bytes freed. Hold the
    /// commit lock: under it nobody is between a blob and its name. A pull that meant to reuse
    /// one of these blobs finds it gone when it commits, and fetches it.
    pub(crate) fn collect(&self) -> Result<u64, Error> {
        let mut blobs = HashSet::new();
        let mut views = HashSet::new();
        for (_, manifest) in self.all()? {
            // What an unreadable manifest needs is not known: then nothing is removed.
            let Ok(manifest) = manifest else { return Ok(0) };
            views.insert(manifest.view_id());
            blobs.extend(manifest.files.into_iter().map(|file| file.sha256));
        }
        for entry in read_dir(&self.root.join("views"))? {
            if entry
                .file_name()
                .to_str()
                .is_none_or(|id| !views.contains(id))
            {
                let dir = entry.path();
                fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
            }
        }
        let mut freed = 0;
        for entry in read_dir(&self.root.join("blobs"))? {
            let leaf = entry.file_name();
            let sha256 = leaf.to_str().and_then(|leaf| leaf.strip_prefix("sha256-"));
            // Files that this store did not put here are not its to remove.
            if sha256.is_some_and(|sha256| is_sha256(sha256) && !blobs.contains(sha256)) {
                let bytes = entry.metadata().map_or(0, |meta| meta.len());
                let path = entry.path();
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                freed += bytes;
            }
        }
        Ok(freed)
    }

    /// Removes what lies in `tmp/` untouched for `age`: remains of killed processes.
    pub(crate) fn sweep(&self, age: std::time::Duration) {
        let Ok(entries) = read_dir(&self.root.join("tmp")) else {
            return;
        };
        for entry in entries {
            let old = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|passed| passed > age));
            if old {
                let path = entry.path();
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        }
    }
}

/// Makes a directory and its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::io("create the directory", dir))
}

/// A file name that no other process or thread uses.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    format!(
        "{}-{nanos}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The entries of a directory; none if it is absent.
/// Whether a file is the adapter at `adapter`, or lies in it.
pub(crate) fn is_of(adapter: &str, file: &str) -> bool {
    let rest = file.strip_prefix(adapter);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    match fs::read_dir(dir) {
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        other => other
            .and_then(Iterator::collect)
            .map_err(Error::io("read", dir)),
    }
}

/// Makes a rename durable. Not every file system can; the data itself is synced before.
fn sync_dir(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

/// A hard link, so that a reader that resolves links still finds the name it expects and its
/// neighbours; where the file system has none, a symbolic link.
fn link_file(blob: &Path, link: &Path) -> std::io::Result<()> {
    match fs::hard_link(blob, link) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(e),
        #[cfg(unix)]
        Err(_) => std::os::unix::fs::symlink(blob, link),
        #[cfg(not(unix))]
        Err(_) => fs::copy(blob, link).map(|_| ()),
    }
}

/// Whether two paths lead to one file. (A blob that was fetched anew is another file than the
/// damaged one that a view still links to.)
#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// Where files have no numbers, the length has to do.
#[cfg(not(unix))]
fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.len() == b.len())
}
