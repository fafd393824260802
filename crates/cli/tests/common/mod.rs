//! Runs the real binary in an empty home, with nothing of the caller's environment but the PATH.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes this module and uses its own part"
)]

pub mod server;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a run left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("stdout is UTF-8")
    }

    /// stdout as one JSON value.
    pub fn json(&self) -> Value {
        self.succeeded();
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON value ({e}): {self:?}"))
    }

    pub fn succeeded(&self) -> &Ran {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Failed with this code, `error: ...` with `what` in it, then `hint: ...`: no more.
    pub fn failed(&self, code: i32, what: &str) -> &Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let error = lines.iter().position(|l| l.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("no error line: {self:?}"));
        assert!(lines[error].contains(what), "no {what:?} in {self:?}");
        match &lines[error + 1..] {
            [hint] => assert!(hint.starts_with("hint: "), "{self:?}"),
            _ => panic!("not an error and a hint: {self:?}"),
        }
        self
    }
}

/// A place to run in: an empty HOME.
pub struct Home {
    pub dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Home {
    pub fn new() -> Home {
        Home {
            dir: tempfile::tempdir().expect("a temporary directory"),
            env: Vec::new(),
        }
    }

    pub fn env(mut self, name: &str, value: &str) -> Home {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_puna"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PUNA_OFFLINE", "1")
            .env("OLLAMA_MODELS", self.dir.path().join(".ollama/models"))
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.dir.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, b"")
    }

    /// With these bytes on stdin.
    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        let bytes = stdin.to_vec();
        // The child may end without reading.
        let writer = std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        let output = child.wait_with_output().expect("the binary ends");
        writer.join().expect("the writer ends");
        Ran {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// In an empty home.
pub fn puna(args: &[&str]) -> Ran {
    Home::new().run(args)
}

/// A file of the reference fixtures.
pub fn fixture(path: &str) -> String {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    ))
    .join(path);
    assert!(path.exists(), "{} is missing", path.display());
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// The real default model, which `PUNA_TEST_MODEL` names; without it the test is skipped, which
/// under CI only those may be that tests/allowed-skips.txt lists.
pub fn real_model() -> Option<PathBuf> {
    let named = std::env::var_os("PUNA_TEST_MODEL").filter(|p| !p.is_empty());
    if named.is_none() {
        skip("PUNA_TEST_MODEL is not set");
    }
    named.map(PathBuf::from)
}

/// Says that the test that calls it is skipped, and why; fails under CI unless tests/allowed-skips.txt lists it.
pub fn skip(why: &str) {
    // The test runner names a test's thread after it.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/allowed-skips.txt");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    let listed = list
        .lines()
        .any(|line| line.starts_with(&format!("{test}: ")));
    let ci = std::env::var_os("CI").is_some();
    assert!(listed || !ci, "{test}: {why}");
    eprintln!("SKIPPED {test}: {why}");
}

/// All verbs of this release.
pub const VERBS: [&str; 23] = [
    "run",
    "tokenize",
    "detokenize",
    "template",
    "logits",
    "perplexity",
    "bench",
    "convert",
    "quantize",
    "imatrix",
    "serve",
    "key",
    "doctor",
    "pull",
    "list",
    "show",
    "rm",
    "cp",
    "create",
    "verify",
    "config",
    "completions",
    "man",
];
