//! What the hub's tests share: a scripted HTTP server on a free port, a fake Hugging Face on top
//! of it, settings for a throw-away store, and a progress that remembers.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses a part of this"
)]

pub mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{Hub, Progress, Settings};
use serde_json::json;
use sha2::{Digest, Sha256};

pub use server::{Body, Reply, Request, Server};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Settings that fail fast and look at nothing of this machine.
pub fn settings(home: &Path, endpoint: &str) -> Settings {
    let mut settings = Settings::new(home);
    settings.hf_endpoint = endpoint.to_owned();
    settings.connect_timeout = Duration::from_secs(2);
    // Long enough for a busy machine, so that only a scripted stall is one.
    settings.read_timeout = Duration::from_millis(1000);
    settings.backoff = Duration::from_millis(5);
    settings.retry_after_max = Duration::from_millis(50);
    settings.tries = 4;
    settings.pip = Vec::new();
    settings
}

pub fn hub(home: &Path, server: &Server) -> Hub {
    Hub::new(settings(home, &server.url(""))).unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Bytes that look like nothing and are the same every time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2).wrapping_add(1);
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// Every file under a directory, relative, with `/`.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).unwrap();
                out.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

/// The part of [`tree`] that is the store proper: blobs, views and names.
pub fn kept(root: &Path) -> Vec<String> {
    let mut all = tree(root);
    all.retain(|name| !name.starts_with("tmp/") && !name.starts_with("locks/"));
    all
}

/// Remembers what it hears; cancels when it has heard of enough bytes.
#[derive(Default)]
pub struct Heard {
    pub notes: Vec<String>,
    pub starts: Vec<(String, Option<u64>)>,
    pub advances: Vec<u64>,
    pub finishes: usize,
    pub cancel_at: Option<u64>,
}

impl Progress for Heard {
    fn start(&mut self, label: &str, total: Option<u64>) {
        self.starts.push((label.to_owned(), total));
    }
    fn advance(&mut self, bytes_done: u64) {
        self.advances.push(bytes_done);
    }
    fn finish(&mut self) {
        self.finishes += 1;
    }
    fn note(&mut self, line: &str) {
        self.notes.push(line.to_owned());
    }
    fn cancelled(&self) -> bool {
        let heard = self.advances.last().copied().unwrap_or(0);
        self.cancel_at.is_some_and(|limit| heard >= limit)
    }
}

/// One repository, as Hugging Face serves it.
#[derive(Clone, Default)]
pub struct Repo {
    /// By path; the flag says whether the file is a large one (LFS).
    pub files: BTreeMap<String, (Vec<u8>, bool)>,
    /// Where large files are redirected to: another server's base URL.
    pub cdn: Option<String>,
    /// The token that is needed, if one is.
    pub token: Option<String>,
    pub licence: Option<String>,
    /// A listing without sizes, as some mirrors give.
    pub bare: bool,
}

impl Repo {
    pub fn with(mut self, path: &str, bytes: &[u8], large: bool) -> Repo {
        self.files.insert(path.to_owned(), (bytes.to_vec(), large));
        self
    }

    /// A one-model GGUF repository.
    pub fn gguf(bytes: &[u8]) -> Repo {
        Repo::default()
            .with("README.md", b"---\nlicense: mit\n---\n", false)
            .with("m-Q4_K_M.gguf", bytes, true)
    }

    pub fn answer(&self, repo: &str, request: &Request) -> Reply {
        if let Some(token) = &self.token
            && request.header("authorization") != Some(&format!("Bearer {token}"))
        {
            return Reply::status(401).header("X-Error-Code", "GatedRepo");
        }
        let path = request.path();
        if path.starts_with(&format!("/api/models/{repo}/revision/")) {
            return Reply::json(&self.info());
        }
        if path.starts_with(&format!("/api/models/{repo}/tree/")) {
            return Reply::json(&self.listing("path"));
        }
        let Some(file) = path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/")) else {
            return Reply::status(404).header("X-Error-Code", "RepoNotFound");
        };
        let Some((bytes, large)) = self.files.get(file) else {
            return Reply::status(404).header("X-Error-Code", "EntryNotFound");
        };
        match (&self.cdn, large) {
            (Some(cdn), true) => Reply::status(302)
                .header("Location", &format!("{cdn}/{file}?signature=secret"))
                .header("X-Linked-Etag", &format!("\"{}\"", sha256(bytes)))
                .header("X-Linked-Size", &bytes.len().to_string()),
            _ => Reply::file(request, bytes, "\"e1\""),
        }
    }

    fn info(&self) -> serde_json::Value {
        json!({
            "id": "x", "sha": COMMIT, "siblings": self.listing("rfilename"),
            "cardData": {"license": self.licence},
        })
    }

    fn listing(&self, name: &str) -> serde_json::Value {
        let bare = self.bare && name == "rfilename";
        self.files
            .iter()
            .map(|(path, (bytes, large))| {
                let mut entry = json!({name: path});
                if !bare {
                    entry["type"] = json!("file");
                    entry["size"] = json!(bytes.len());
                    if *large {
                        entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len()});
                    }
                }
                entry
            })
            .collect()
    }

    /// Serves this as `org/repo`.
    pub fn serve(self) -> Server {
        Server::start(move |request, _| self.answer("org/repo", request))
    }
}

/// A shell script in `dir` that plays pip.
#[cfg(unix)]
pub fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
