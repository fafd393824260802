//! One file over HTTP into `tmp/`, resumed where it was cut, hashed as it comes.
//!
//! Two files belong to a download: `<key>.part` with the bytes so far, and `<key>.json` with the
//! server's ETag for them. The key is a hash of the URL and the promised SHA-256, so that bytes
//! of different things never meet. A lock per key keeps two processes from writing at once. Large
//! files come in pieces (`pieces`).

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write as _};
use std::path::PathBuf;

use reqwest::header;
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::{self, sha256_hex};
use crate::http::{Answer, Ask, Http, text};
use crate::patience::{Fault, patiently};
use crate::pieces::{self, Pieces};
use crate::spec::without_query;
use crate::store::{Lock, Store};
use crate::{Error, Progress};

/// No single file is larger than this.
pub(crate) const FILE_MAX: u64 = 1 << 40;
/// A file whose size nobody promises is cut off here.
const UNPROMISED_MAX: u64 = 64 << 30;

/// What to download.
pub(crate) struct Want<'a> {
    /// From where.
    pub url: &'a str,
    /// Its name, for messages and progress.
    pub what: &'a str,
    /// Its size, where a listing or the catalogue promises it.
    pub bytes: Option<u64>,
    /// Its SHA-256, where a listing or the catalogue promises it.
    pub sha256: Option<&'a str>,
    /// Whether content that the store has already need not come again.
    pub reuse: bool,
}

/// A complete, verified file that is not yet in the store's names.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Its SHA-256.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// The temporary file; `None` if the store has this content already.
    pub tmp: Option<PathBuf>,
    /// Keeps other processes from the temporary file until it is taken in.
    pub _held: Option<Lock>,
}

/// The server's word about the bytes in the part file.
#[derive(Default, Serialize, Deserialize)]
struct Side {
    etag: Option<String>,
    total: Option<u64>,
    /// The part file is not a beginning but a file with gaps.
    #[serde(default)]
    pieces: Option<Pieces>,
}

/// Downloads a file.
///
/// # Errors
/// [`Error::Mismatch`] if size or hash differ from what was promised: then nothing is kept.
/// [`Error::Network`] after too many tries: then what has come is kept for the next time.
pub(crate) fn download(
    http: &Http,
    store: &Store,
    want: &Want<'_>,
    progress: &mut dyn Progress,
) -> Result<Staged, Error> {
    let key = sha256_hex(format!("{}\n{}", want.url, want.sha256.unwrap_or("")).as_bytes());
    let note = format!("waiting for another process that downloads {}", want.what);
    let lock = store.lock(&key, &note, progress)?;
    if let Some(sha256) = want.sha256.filter(|_| want.reuse)
        && let Ok(meta) = fs::metadata(store.blob_path(sha256))
        && want.bytes.is_none_or(|bytes| bytes == meta.len())
    {
        return Ok(Staged {
            sha256: sha256.to_owned(),
            bytes: meta.len(),
            tmp: None,
            _held: None,
        });
    }
    let mut transfer = Transfer::open(http, store, want, &key, progress)?;
    if let Some(pieces) = transfer.pieces.take() {
        transfer.in_pieces(pieces, progress)?;
    }
    let mut may_restart = true;
    loop {
        http.block_on(transfer.run(progress))?;
        let sha256 = digest::finish(transfer.hasher.clone());
        let expected = transfer.sha256.clone();
        if let Some(expected) = expected.filter(|expected| *expected != sha256) {
            let resumed = transfer.resumed;
            transfer.reset()?;
            // Bytes from an earlier run may have been lost to a crash: those are fetched anew, once.
            if resumed && std::mem::take(&mut may_restart) {
                progress.note(&format!(
                    "{}: wrong after resuming; starting anew",
                    want.what
                ));
                continue;
            }
            transfer.discard();
            return Err(Error::Mismatch {
                what: want.what.to_owned(),
                which: "SHA-256",
                expected,
                got: sha256,
            });
        }
        transfer
            .file
            .sync_all()
            .map_err(Error::io("write", &transfer.part))?;
        progress.finish();
        let _ = fs::remove_file(&transfer.side);
        return Ok(Staged {
            sha256,
            bytes: transfer.have,
            tmp: Some(transfer.part),
            _held: Some(lock),
        });
    }
}

/// A download under way.
struct Transfer<'a> {
    http: &'a Http,
    want: &'a Want<'a>,
    part: PathBuf,
    side: PathBuf,
    file: File,
    /// Bytes in the part file, all of them in `hasher`.
    have: u64,
    hasher: Sha256,
    /// The promised hash: the caller's, else the endpoint's.
    sha256: Option<String>,
    /// The size: the caller's, else the server's.
    total: Option<u64>,
    /// The strong ETag of the bytes in the part file.
    etag: Option<String>,
    /// Whether bytes of more than one answer are in the part file.
    resumed: bool,
    /// How to fetch it in pieces, if it is worth that.
    pieces: Option<Pieces>,
}

impl<'a> Transfer<'a> {
    fn open(
        http: &'a Http,
        store: &Store,
        want: &'a Want<'a>,
        key: &str,
        progress: &mut dyn Progress,
    ) -> Result<Transfer<'a>, Error> {
        let part = store.tmp_path(&format!("{key}.part"))?;
        let side = store.tmp_path(&format!("{key}.json"))?;
        let old: Side = fs::read(&side)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .map_err(Error::io("open", &part))?;
        let mut transfer = Transfer {
            http,
            want,
            file,
            side,
            have: 0,
            hasher: Sha256::new(),
            sha256: want.sha256.map(str::to_owned),
            total: want.bytes.or(old.total),
            etag: old.etag,
            resumed: false,
            pieces: None,
            part,
        };
        let resumable = transfer.etag.is_some() || transfer.sha256.is_some();
        let length = transfer
            .file
            .metadata()
            .map_err(Error::io("read", &transfer.part))?
            .len();
        let size = http.settings().piece.max(1);
        let in_pieces = want.sha256.is_some() && http.settings().connections > 1;
        let whole = want.bytes.filter(|bytes| in_pieces && bytes / 2 >= size);
        if let Some(total) = whole.filter(|&total| length <= total) {
            let old = old
                .pieces
                .filter(|old| old.is_sound(total) && length == total);
            transfer.pieces = Some(old.unwrap_or_else(|| match length < total {
                true => Pieces::new(size, total, length),
                false => Pieces::new(size, total, 0),
            }));
        } else if old.pieces.is_some()
            || !resumable
            || transfer.total.is_some_and(|total| length > total)
        {
            transfer.reset()?;
        } else if length > 0 {
            progress.start(want.what, transfer.total);
            transfer.have = digest::feed_file(&mut transfer.hasher, &transfer.part, progress)?;
            transfer.resumed = true;
        }
        Ok(transfer)
    }

    /// Fetches the pieces that are missing, and hashes the whole. Nothing is here afterwards if
    /// the server gives no ranges.
    fn in_pieces(&mut self, pieces: Pieces, progress: &mut dyn Progress) -> Result<(), Error> {
        let job = pieces::Job {
            settings: self.http.settings(),
            url: self.want.url,
            what: self.want.what,
            part: &self.part,
            side: &self.side,
        };
        if !pieces::fetch(&job, pieces, progress)? {
            return self.reset();
        }
        progress.start(&format!("checking {}", self.want.what), self.total);
        self.have = digest::feed_file(&mut self.hasher, &self.part, progress)?;
        self.resumed = true;
        Ok(())
    }

    /// Forgets all bytes.
    fn reset(&mut self) -> Result<(), Error> {
        // What it says would be wrong from now on.
        let _ = fs::remove_file(&self.side);
        self.file
            .set_len(0)
            .map_err(Error::io("write", &self.part))?;
        self.have = 0;
        self.hasher = Sha256::new();
        self.etag = None;
        self.total = self.want.bytes;
        self.resumed = false;
        Ok(())
    }

    /// Removes what lies in `tmp/`.
    fn discard(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.side);
    }

    /// Tries until the file is complete.
    async fn run(&mut self, progress: &mut dyn Progress) -> Result<(), Error> {
        let mut patience = self.http.patience();
        loop {
            let before = self.have;
            let fault = match self.attempt(progress).await {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            let progressed = self.have > before;
            if matches!(fault, Fault::Final(Error::Mismatch { .. })) {
                self.discard();
            }
            patience
                .wait(fault, progressed, self.want.what, progress)
                .await?;
        }
    }

    /// One request, and its body into the part file.
    async fn attempt(&mut self, progress: &mut dyn Progress) -> Result<(), Fault> {
        // Complete already: whether it is right, the hash will say.
        if self.have > 0 && self.total == Some(self.have) && self.sha256.is_some() {
            return Ok(());
        }
        let mut headers = Vec::new();
        if self.have > 0 {
            match (&self.etag, &self.sha256) {
                (Some(etag), _) => {
                    headers.push((header::RANGE, format!("bytes={}-", self.have)));
                    headers.push((header::IF_RANGE, etag.clone()));
                }
                (None, Some(_)) => headers.push((header::RANGE, format!("bytes={}-", self.have))),
                // Nothing would tell whether the rest fits to what is here.
                (None, None) => self.reset()?,
            }
        }
        let ask = Ask {
            method: Method::GET,
            url: self.want.url,
            what: self.want.what,
            headers,
        };
        let answer = self.http.send(&ask, progress).await?;
        self.linked(&answer)?;
        if self.accept(&answer)? {
            return Ok(());
        }
        progress.start(self.want.what, self.total);
        progress.advance(self.have);
        self.body(answer, progress).await
    }

    /// Takes over what the endpoint says about a large file, unless the caller knew.
    fn linked(&mut self, answer: &Answer) -> Result<(), Fault> {
        if self.sha256.is_none() {
            self.sha256.clone_from(&answer.linked_sha256);
        }
        match (self.want.bytes, answer.linked_bytes) {
            (None, Some(bytes)) => self.check_total(bytes),
            _ => Ok(()),
        }
    }

    /// Reads status and headers. `true` means that the part file is complete as it is.
    fn accept(&mut self, answer: &Answer) -> Result<bool, Fault> {
        let headers = answer.response.headers();
        if let Some(encoding) = text(headers, "content-encoding").filter(|e| *e != "identity") {
            return Err(Fault::Final(Error::Remote {
                what: self.want.what.to_owned(),
                why: format!("the server sent it {encoding}-encoded, which was not asked for"),
            }));
        }
        let etag = text(headers, "etag")
            .filter(|e| e.starts_with('"'))
            .map(str::to_owned);
        match answer.response.status().as_u16() {
            200 => {
                if self.have > 0 {
                    self.reset()?;
                }
                if let Some(length) = answer.response.content_length() {
                    self.check_total(length)?;
                }
            }
            206 => {
                let range = text(headers, "content-range").and_then(content_range);
                let other = self.etag.is_some() && etag.is_some() && self.etag != etag;
                match range {
                    Some((Some(start), total)) if start == self.have && !other => {
                        if let Some(total) = total {
                            self.check_total(total)?;
                        }
                        self.resumed |= self.have > 0;
                    }
                    _ => {
                        self.reset()?;
                        return Err(Fault::again("the server sent another part than asked for"));
                    }
                }
            }
            416 => {
                let total = text(headers, "content-range").and_then(content_range);
                let whole = matches!(total, Some((None, Some(total))) if total == self.have);
                if whole && self.total.is_none_or(|total| total == self.have) {
                    return Ok(true);
                }
                self.reset()?;
                return Err(Fault::again("the file has changed on the server"));
            }
            _ => return Err(self.http.judge(self.want.what, answer)),
        }
        self.etag = etag.or_else(|| self.etag.take());
        self.remember();
        Ok(false)
    }

    /// The server says how large the whole file is.
    fn check_total(&mut self, total: u64) -> Result<(), Fault> {
        let expected = match self.total {
            Some(known) if known != total => known.to_string(),
            None if total > FILE_MAX => format!("at most {FILE_MAX}"),
            _ => {
                self.total = Some(total);
                return Ok(());
            }
        };
        if self.want.bytes.is_none() && self.have > 0 {
            self.reset()?;
            return Err(Fault::again("the file has changed on the server"));
        }
        Err(self.wrong_size(expected, total.to_string()))
    }

    fn wrong_size(&self, expected: String, got: String) -> Fault {
        Fault::Final(Error::Mismatch {
            what: self.want.what.to_owned(),
            which: "size",
            expected: format!("{expected} bytes"),
            got: format!("{got} bytes"),
        })
    }

    /// Writes the side file. Losing it only costs a restart, so failures do not matter.
    fn remember(&self) {
        let side = Side {
            etag: self.etag.clone(),
            total: self.total,
            pieces: None,
        };
        if let Ok(json) = serde_json::to_vec(&side) {
            let _ = fs::write(&self.side, json);
        }
    }

    /// Streams a body behind the bytes that are here, never beyond what was promised.
    async fn body(&mut self, answer: Answer, progress: &mut dyn Progress) -> Result<(), Fault> {
        let mut response = answer.response;
        let url = response.url().clone();
        let limit = self.total.unwrap_or(UNPROMISED_MAX);
        self.file
            .seek(SeekFrom::Start(self.have))
            .map_err(Error::io("write", &self.part))?;
        while let Some(chunk) = patiently(response.chunk(), progress)
            .await?
            .map_err(|e| self.http.fault(self.want.what, &url, &e))?
        {
            if progress.cancelled() {
                return Err(Fault::Final(Error::Cancelled));
            }
            let length = chunk.len() as u64;
            if self.have + length > limit {
                return Err(self.wrong_size(limit.to_string(), "more".into()));
            }
            self.file
                .write_all(&chunk)
                .map_err(Error::io("write", &self.part))?;
            self.hasher.update(&chunk);
            self.have += length;
            progress.advance(self.have);
        }
        match self.total {
            Some(total) if self.have < total => Err(Fault::again(format!(
                "the connection ended after {} of {total} bytes",
                self.have
            ))),
            _ => Ok(()),
        }
    }
}

/// `bytes 5-9/10` -> (Some(5), Some(10)); `bytes */10` -> (None, Some(10)).
pub(crate) fn content_range(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let start = match range {
        "*" => None,
        range => Some(range.split_once('-')?.0.parse().ok()?),
    };
    Some((start, total))
}

/// The size a server gives for a URL, without fetching it.
pub(crate) fn remote_size(
    http: &Http,
    url: &str,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<Option<u64>, Error> {
    let ask = Ask {
        method: Method::HEAD,
        url,
        what,
        headers: Vec::new(),
    };
    let mut patience = http.patience();
    http.block_on(async {
        loop {
            let fault = match http.send(&ask, progress).await {
                Ok(answer) if answer.response.status().is_success() => {
                    let headers = answer.response.headers();
                    return Ok(crate::http::number(headers, "content-length"));
                }
                Ok(answer) => http.judge(what, &answer),
                Err(fault) => fault,
            };
            patience.wait(fault, false, what, progress).await?;
        }
    })
}

/// The last component of a URL's path, as a name for people.
pub(crate) fn url_leaf(url: &str) -> String {
    let leaf = Url::parse(url)
        .ok()
        .and_then(|url| Some(url.path_segments()?.next_back()?.to_owned()))
        .filter(|leaf| !leaf.is_empty());
    leaf.unwrap_or_else(|| without_query(url).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(content_range("bytes */10"), Some((None, Some(10))));
        for bad in [
            "",
            "bytes",
            "bytes 5/10",
            "items 5-9/10",
            "bytes -5-9/10",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_disk_is_named() {
        // The system's own full disk.
        let full = PathBuf::from("/dev/full");
        let Ok(mut file) = File::options().write(true).open(&full) else {
            return;
        };
        let error = file
            .write_all(b"x")
            .map_err(Error::io("write", &full))
            .unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    }
}
