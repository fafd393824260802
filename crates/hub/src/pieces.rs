//! One large file over several connections, in pieces.
//!
//! The part file has its whole length from the start; the side file says which pieces of it are
//! complete. A piece counts only after its bytes are on the disk, so whoever is killed goes on with
//! the pieces that are missing. Only files whose size and SHA-256 are promised are fetched in this
//! way: the hash of the whole decides whether pieces fitted together.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Method, header};
use serde::{Deserialize, Serialize};

use crate::download::content_range;
use crate::http::{Ask, Http, text};
use crate::patience::{Fault, patiently};
use crate::{Error, Progress, Settings};

/// The most pieces of a file; larger files have larger ones.
const PIECES_MAX: u64 = 4096;

/// Which pieces of a file are complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pieces {
    /// The size of each but the last.
    pub size: u64,
    /// The size of the file.
    pub total: u64,
    /// The numbers of those that are complete.
    pub done: Vec<u64>,
}

impl Pieces {
    /// The pieces of a file of which the first `have` bytes are here.
    pub(crate) fn new(size: u64, total: u64, have: u64) -> Pieces {
        let size = size.max(total.div_ceil(PIECES_MAX)).max(1);
        Pieces {
            size,
            total,
            done: (0..have / size).collect(),
        }
    }

    /// Whether this, which may be any text of the right form, can be gone on with.
    pub(crate) fn is_sound(&self, total: u64) -> bool {
        self.total == total
            && self.size > 0
            && total.div_ceil(self.size) <= PIECES_MAX
            && self
                .done
                .iter()
                .all(|&piece| piece < total.div_ceil(self.size))
    }

    /// The numbers of those that are missing.
    fn missing(&self) -> Vec<u64> {
        let count = self.total.div_ceil(self.size);
        (0..count)
            .filter(|piece| !self.done.contains(piece))
            .collect()
    }

    /// Where a piece begins, and where it ends.
    fn bounds(&self, piece: u64) -> (u64, u64) {
        let start = piece * self.size;
        (start, (start + self.size).min(self.total))
    }

    /// Bytes in complete pieces.
    fn bytes(&self) -> u64 {
        let length = |&piece: &u64| {
            let (start, end) = self.bounds(piece);
            end - start
        };
        self.done.iter().map(length).sum()
    }
}

/// What is fetched, and where it goes.
pub(crate) struct Job<'a> {
    pub settings: &'a Settings,
    pub url: &'a str,
    pub what: &'a str,
    pub part: &'a Path,
    pub side: &'a Path,
}

/// What the workers share.
struct Shared<'a> {
    job: &'a Job<'a>,
    pieces: Mutex<Pieces>,
    /// Numbers of pieces that nobody works on, the first one last.
    left: Mutex<Vec<u64>>,
    bytes: AtomicU64,
    stop: AtomicBool,
    no_ranges: AtomicBool,
    notes: Mutex<Vec<String>>,
    error: Mutex<Option<Error>>,
}

/// Fetches the pieces that are missing. `false`: the server gives no ranges, and nothing was done.
///
/// # Errors
/// The first worker's; what is complete is kept.
pub(crate) fn fetch(
    job: &Job<'_>,
    pieces: Pieces,
    progress: &mut dyn Progress,
) -> Result<bool, Error> {
    let file = File::options().write(true).open(job.part);
    let file = file.map_err(Error::io("open", job.part))?;
    file.set_len(pieces.total)
        .map_err(Error::io("write", job.part))?;
    remember(job.side, &pieces)?;
    let mut left = pieces.missing();
    left.reverse();
    progress.start(job.what, Some(pieces.total));
    let workers = job.settings.connections.clamp(1, 16).min(left.len());
    let shared = Shared {
        job,
        bytes: AtomicU64::new(pieces.bytes()),
        pieces: Mutex::new(pieces),
        left: Mutex::new(left),
        stop: AtomicBool::new(false),
        no_ranges: AtomicBool::new(false),
        notes: Mutex::new(Vec::new()),
        error: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| shared.work()))
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            progress.advance(shared.bytes.load(Ordering::Relaxed));
            locked(&shared.notes)
                .drain(..)
                .for_each(|note| progress.note(&note));
            if progress.cancelled() {
                shared.fail(Error::Cancelled);
            }
        }
    });
    if shared.no_ranges.load(Ordering::Relaxed) {
        return Ok(false);
    }
    match locked(&shared.error).take() {
        Some(error) => Err(error),
        None => Ok(true),
    }
}

/// A lock whose holder panicked is as good as any other: what it guards is plain data.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Writes the side file, whole or not at all.
fn remember(side: &Path, pieces: &Pieces) -> Result<(), Error> {
    let json = serde_json::json!({ "pieces": pieces }).to_string();
    let new = side.with_extension("json.new");
    fs::write(&new, json)
        .and_then(|()| fs::rename(&new, side))
        .map_err(Error::io("write", side))
}

/// A worker's ear: notes go to the one who asked, and a stop comes from there.
struct Ear<'a>(&'a Shared<'a>);

impl Progress for Ear<'_> {
    fn note(&mut self, line: &str) {
        locked(&self.0.notes).push(line.to_owned());
    }

    fn cancelled(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed)
    }
}

impl Shared<'_> {
    /// Keeps the first error, and ends everybody's work.
    fn fail(&self, error: Error) {
        locked(&self.error).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fetches piece after piece.
    fn work(&self) {
        let done = (|| {
            let http = Http::new(self.job.settings)?;
            let mut file = File::options()
                .write(true)
                .open(self.job.part)
                .map_err(Error::io("open", self.job.part))?;
            while !self.stop.load(Ordering::Relaxed) {
                let Some(piece) = locked(&self.left).pop() else {
                    return Ok(());
                };
                http.block_on(self.piece(&http, &mut file, piece))?;
                if self.no_ranges.load(Ordering::Relaxed) {
                    return Ok(());
                }
                file.sync_data()
                    .map_err(Error::io("write", self.job.part))?;
                let mut pieces = locked(&self.pieces);
                pieces.done.push(piece);
                remember(self.job.side, &pieces)?;
            }
            Ok(())
        })();
        if let Err(error) = done {
            self.fail(error);
        }
    }

    /// Fetches one piece; what came of it is kept from try to try.
    async fn piece(&self, http: &Http, file: &mut File, piece: u64) -> Result<(), Error> {
        let (start, end) = locked(&self.pieces).bounds(piece);
        let mut at = start;
        let mut patience = http.patience();
        loop {
            let before = at;
            let Err(fault) = self.attempt(http, file, &mut at, end).await else {
                return Ok(());
            };
            patience
                .wait(fault, at > before, self.job.what, &mut Ear(self))
                .await?;
        }
    }

    /// One request for `at..end`, and its body into the file.
    async fn attempt(
        &self,
        http: &Http,
        file: &mut File,
        at: &mut u64,
        end: u64,
    ) -> Result<(), Fault> {
        let what = self.job.what;
        let ask = Ask {
            method: Method::GET,
            url: self.job.url,
            what,
            headers: vec![(header::RANGE, format!("bytes={at}-{}", end - 1))],
        };
        let mut ear = Ear(self);
        let answer = http.send(&ask, &mut ear).await?;
        match answer.response.status().as_u16() {
            206 => {}
            // One answer of something in between must not cost what is here.
            200 if !locked(&self.pieces).done.is_empty() => {
                return Err(Fault::again(
                    "the server gave the whole file for a part of it",
                ));
            }
            200 => {
                self.no_ranges.store(true, Ordering::Relaxed);
                self.stop.store(true, Ordering::Relaxed);
                return Ok(());
            }
            _ => return Err(http.judge(what, &answer)),
        }
        let range = text(answer.response.headers(), "content-range").and_then(content_range);
        let total = locked(&self.pieces).total;
        if range != Some((Some(*at), Some(total))) {
            return Err(Fault::again("the server sent another part than asked for"));
        }
        let mut response = answer.response;
        let url = response.url().clone();
        let wrote = |e| Fault::Final(Error::io("write", self.job.part)(e));
        file.seek(SeekFrom::Start(*at)).map_err(wrote)?;
        while let Some(chunk) = patiently(response.chunk(), &mut ear)
            .await?
            .map_err(|e| http.fault(what, &url, &e))?
        {
            let length = chunk.len() as u64;
            if length > end - *at {
                return Err(Fault::again("the server sent more than asked for"));
            }
            file.write_all(&chunk).map_err(wrote)?;
            *at += length;
            self.bytes.fetch_add(length, Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) {
                return Err(Fault::Final(Error::Cancelled));
            }
        }
        match *at == end {
            true => Ok(()),
            false => Err(Fault::again(format!(
                "the connection ended {} bytes early",
                end - *at
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_file() {
        for (size, total, have) in [
            (4, 10, 0),
            (4, 12, 9),
            (1, 1, 0),
            (7, 3, 3),
            (1, 1 << 40, 0),
        ] {
            let pieces = Pieces::new(size, total, have);
            assert!(pieces.is_sound(total) && !pieces.is_sound(total + 1));
            let mut end = pieces.bytes();
            assert!(end <= have);
            for piece in pieces.missing() {
                let (from, to) = pieces.bounds(piece);
                assert!(from == end && to > from);
                end = to;
            }
            assert_eq!(end, total);
        }
        let bad = |size, done: &[u64]| Pieces {
            size,
            total: 10,
            done: done.to_vec(),
        };
        assert!(!bad(0, &[]).is_sound(10));
        assert!(!bad(5, &[2]).is_sound(10));
        assert!(
            !Pieces {
                size: 1,
                total: 1 << 40,
                done: Vec::new()
            }
            .is_sound(1 << 40)
        );
    }
}
