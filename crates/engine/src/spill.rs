//! Kept beginnings in files: what memory has no room for, and what is to outlive the process.
//!
//! A folder holds one file a block ([`crate::block_file`]) and the secret that keys their names and
//! seals. One thread reads and writes, for all models that share the folder: an engine hands blocks
//! over and goes on, and asks for blocks and goes on; it is answered between two passes. Whatever
//! goes wrong (a full disk, a damaged file) is a block that is not there.
//!
//! The files take no more bytes than they may: those that were not used for longest go first. What
//! is damaged or cut is deleted when it is read. Files of other names are left alone.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::block_file::{self, Name, Secret};
use crate::error::Error;
use crate::fetch::AT_ONCE;

/// Bytes that may wait to be written; what comes beyond them is not kept.
const WAITING: usize = 64 << 20;
/// The file with the folder's secret. Who has it open with its lock has the folder.
const KEY: &str = "puna-cache.key";

/// A folder of kept blocks.
#[derive(Debug)]
pub struct Spill {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Locked while this lives.
    _key: File,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    secret: Secret,
    index: Mutex<Index>,
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    /// Reads and writes that failed.
    errors: AtomicU64,
}

/// What files there are, by name and by use.
#[derive(Debug, Default)]
struct Index {
    files: HashMap<Name, Entry>,
    order: BTreeMap<u64, Name>,
    now: u64,
    bytes: u64,
    limit: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl Index {
    fn put(&mut self, name: Name, bytes: u64) {
        self.forget(&name);
        self.now += 1;
        let used = self.now;
        self.files.insert(name, Entry { bytes, used });
        self.order.insert(used, name);
        self.bytes += bytes;
    }

    fn forget(&mut self, name: &Name) {
        if let Some(gone) = self.files.remove(name) {
            self.order.remove(&gone.used);
            self.bytes -= gone.bytes;
        }
    }

    /// The file that was not used for longest, if there is no room for `more` bytes.
    fn too_many(&self, more: u64) -> Option<Name> {
        let over = self.bytes.saturating_add(more) > self.limit;
        let oldest = self.order.first_key_value().map(|(_, name)| *name);
        oldest.filter(|_| over)
    }
}

enum Job {
    Write {
        name: Name,
        tokens: Box<[u32]>,
        bytes: Vec<u8>,
    },
    Read {
        ask: Weak<()>,
        blocks: Vec<Wanted>,
        reply: Sender<Found>,
    },
}

/// A block that is wanted from the folder.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) tokens: Box<[u32]>,
    /// Bytes of its keys and values.
    pub(crate) bytes: usize,
}

/// What was found of the blocks asked for, from the first on.
#[derive(Debug)]
pub(crate) struct Found {
    /// Who asked.
    pub(crate) ask: Weak<()>,
    pub(crate) blocks: Vec<Vec<u8>>,
    /// Whether that is all of them.
    pub(crate) all: bool,
}

impl Spill {
    /// A folder that takes at most `limit` bytes. It is made if it is not there.
    ///
    /// # Errors
    /// [`Error::CacheDir`] for a folder that holds something else, or that another process has;
    /// [`Error::Io`].
    pub fn open(folder: &Path, limit: u64) -> Result<Spill, Error> {
        let io = |what: &str| {
            let what = format!("{}: {what}", folder.display());
            move |source| Error::Io { what, source }
        };
        make_folder(folder).map_err(io("making the folder"))?;
        let is_ours = folder.join(KEY).exists();
        let mut list = fs::read_dir(folder).map_err(io("reading the folder"))?;
        let refuse = |what: &str| Error::CacheDir {
            folder: folder.to_path_buf(),
            what: what.to_owned(),
        };
        if !is_ours && list.next().is_some() {
            return Err(refuse("is not empty, and no cache of Puna's"));
        }
        own(folder).map_err(io("closing it to others"))?;
        let mut key = private(OpenOptions::new().create(true).read(true).write(true))
            .open(folder.join(KEY))
            .map_err(io("opening the key"))?;
        match key.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(refuse("is used by another process")),
            Err(fs::TryLockError::Error(source)) => return Err(io("locking the key")(source)),
        }
        let secret = secret(&mut key).map_err(io("reading the key"))?;
        let index = list_files(folder, limit).map_err(io("reading the folder"))?;
        let shared = Arc::new(Shared {
            folder: folder.to_path_buf(),
            secret,
            index: Mutex::new(index),
            waiting: AtomicUsize::new(0),
            errors: AtomicU64::new(0),
        });
        let (jobs, inbox) = channel();
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("cache-dir".into());
        let thread = thread.spawn(move || own.run(&inbox));
        Ok(Spill {
            shared,
            jobs: Some(jobs),
            thread: Some(thread.map_err(io("starting its thread"))?),
            _key: key,
        })
    }

    /// What keys the names of blocks.
    pub(crate) fn secret(&self) -> &Secret {
        &self.shared.secret
    }

    /// Whether there is a file for a block.
    pub(crate) fn has(&self, name: &Name) -> bool {
        self.shared.index().files.contains_key(name)
    }

    /// Bytes of memory that may wait here to be written.
    pub const QUEUE: u64 = WAITING as u64;

    /// Bytes of memory that a scheduler may take for what it reads back: as much as each of
    /// `parallel` requests asks for at a time, of caches of so many bytes.
    pub fn read_back(parallel: usize, context: u64) -> u64 {
        (AT_ONCE as u64)
            .min(context)
            .saturating_mul(parallel as u64)
    }

    /// Bytes in files.
    pub fn bytes(&self) -> u64 {
        self.shared.index().bytes
    }

    /// Reads and writes that failed.
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// Keeps a block; false if there is a file for it, or too much waits to be written.
    pub(crate) fn write(&self, name: Name, tokens: Box<[u32]>, bytes: Vec<u8>) -> bool {
        if self.has(&name) {
            return false;
        }
        let size = bytes.len();
        let waiting = &self.shared.waiting;
        if waiting.fetch_add(size, Ordering::Relaxed) > WAITING {
            waiting.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        self.send(Job::Write {
            name,
            tokens,
            bytes,
        })
    }

    /// Waits until there is room to write, or until `end`.
    pub(crate) fn wait(&self, end: Instant) {
        while self.shared.waiting.load(Ordering::Relaxed) > WAITING / 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks for blocks, each behind the one before it. They are not read if `ask` is dropped before.
    pub(crate) fn read(&self, ask: Weak<()>, blocks: Vec<Wanted>, reply: Sender<Found>) -> bool {
        self.send(Job::Read { ask, blocks, reply })
    }

    fn send(&self, job: Job) -> bool {
        self.jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok())
    }
}

impl Drop for Spill {
    /// What was handed over is written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing panics while it holds the lock.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, inbox: &Receiver<Job>) {
        for job in inbox {
            match job {
                Job::Write {
                    name,
                    tokens,
                    bytes,
                } => {
                    if self.write(&name, &tokens, &bytes).is_err() {
                        self.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                }
                Job::Read { ask, .. } if ask.strong_count() == 0 => {}
                Job::Read { ask, blocks, reply } => {
                    let found = blocks.iter().map_while(|wanted| self.read(wanted));
                    let found: Vec<_> = found.collect();
                    self.touch(&blocks[..found.len()]);
                    // Without the one that is missing those behind it are of no use, and as likely
                    // as not damaged too.
                    let useless = &blocks[found.len()..];
                    useless.iter().for_each(|wanted| self.remove(&wanted.name));
                    // Nobody may wait any more.
                    let _ = reply.send(Found {
                        ask,
                        all: found.len() == blocks.len(),
                        blocks: found,
                    });
                }
            }
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.folder.join(file_name(name))
    }

    fn write(&self, name: &Name, tokens: &[u32], bytes: &[u8]) -> io::Result<()> {
        let file = block_file::write(&self.secret, name, tokens, bytes);
        let size = file.len() as u64;
        if size > self.index().limit {
            return Ok(());
        }
        loop {
            let oldest = self.index().too_many(size);
            match oldest {
                Some(oldest) => self.remove(&oldest),
                None => break,
            }
        }
        let part = self.path(name).with_extension("part");
        let written = private(OpenOptions::new().create(true).truncate(true).write(true))
            .open(&part)
            .and_then(|mut f| f.write_all(&file))
            .and_then(|()| fs::rename(&part, self.path(name)));
        if written.is_err() {
            // It may not be there.
            let _ = fs::remove_file(&part);
            return written;
        }
        self.index().put(*name, size);
        Ok(())
    }

    /// A block that is whole and what it is said to be; a file of another is deleted.
    fn read(&self, wanted: &Wanted) -> Option<Vec<u8>> {
        let path = self.path(&wanted.name);
        let due = block_file::size(wanted.tokens.len(), wanted.bytes);
        let bytes = match read_exactly(&path, due) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
                self.remove(&wanted.name);
                return None;
            }
        };
        let found = block_file::read(&self.secret, &bytes);
        let found = found.filter(|f| f.name == wanted.name && *f.tokens == *wanted.tokens);
        if found.is_none() {
            self.errors.fetch_add(1, Ordering::Relaxed);
            self.remove(&wanted.name);
        }
        found.map(|f| f.bytes.to_vec())
    }

    /// They were of use: the first ones, without which the others are none, most of all.
    fn touch(&self, blocks: &[Wanted]) {
        for wanted in blocks.iter().rev() {
            let size = block_file::size(wanted.tokens.len(), wanted.bytes);
            self.index().put(wanted.name, size as u64);
            // For the next process only.
            let file = File::options().write(true).open(self.path(&wanted.name));
            let _ = file.and_then(|f| f.set_modified(SystemTime::now()));
        }
    }

    fn remove(&self, name: &Name) {
        // It may be gone already.
        let _ = fs::remove_file(self.path(name));
        self.index().forget(name);
    }
}

fn file_name(name: &Name) -> String {
    let hex: String = name.iter().map(|b| format!("{b:02x}")).collect();
    hex + ".kv"
}

/// The name that a file has; `None`: it is none of ours.
fn name_of(file: &Path, extension: &str) -> Option<Name> {
    let stem = file.file_stem()?.to_str()?;
    let ours = file.extension()? == extension && stem.len() == 64 && stem.is_ascii();
    let mut name = Name::default();
    for (i, byte) in name.iter_mut().enumerate().filter(|_| ours) {
        *byte = u8::from_str_radix(&stem[2 * i..2 * i + 2], 16).ok()?;
    }
    ours.then_some(name)
}

/// The files that are there, oldest first; what is over the limit, or was left half-written, goes.
fn list_files(folder: &Path, limit: u64) -> io::Result<Index> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if name_of(&path, "part").is_some() {
            // The next start tries again.
            let _ = fs::remove_file(&path);
        }
        let (Some(name), Ok(about)) = (name_of(&path, "kv"), fs::symlink_metadata(&path)) else {
            continue;
        };
        if about.is_file() {
            found.push((about.modified()?, name, about.len()));
        }
    }
    found.sort_unstable();
    let mut index = Index {
        limit,
        ..Index::default()
    };
    for (_, name, bytes) in found {
        index.put(name, bytes);
    }
    while let Some(oldest) = index.too_many(0) {
        let _ = fs::remove_file(folder.join(file_name(&oldest)));
        index.forget(&oldest);
    }
    Ok(index)
}

/// A file of exactly so many bytes; nothing is read of another.
fn read_exactly(path: &Path, due: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != due as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; due];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The folder's secret; a new one if there is none, or a part of one.
fn secret(key: &mut File) -> io::Result<Secret> {
    let mut secret = Secret::default();
    if key.metadata()?.len() == secret.len() as u64 {
        key.read_exact(&mut secret)?;
        return Ok(secret);
    }
    if key.metadata()?.len() > secret.len() as u64 {
        return Err(io::Error::other("it is longer than a key of a cache"));
    }
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    key.set_len(0)?;
    key.write_all(&secret)?;
    key.sync_all()?;
    Ok(secret)
}

/// Open to its owner only.
#[cfg(unix)]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600)
}

#[cfg(unix)]
fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

#[cfg(unix)]
fn own(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match fs::metadata(folder)?.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(folder, fs::Permissions::from_mode(0o700)),
    }
}

#[cfg(not(unix))]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

#[cfg(not(unix))]
fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

#[cfg(not(unix))]
fn own(_: &Path) -> io::Result<()> {
    Ok(())
}
