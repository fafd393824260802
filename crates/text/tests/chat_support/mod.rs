//! What the tests of chat templates share.

use serde_json::Value;
use std::path::{Path, PathBuf};
use text::{ChatTemplate, RenderOptions};

/// A file of the repository's fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

pub(crate) fn read(name: &str) -> String {
    let path = fixture(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rows of a JSON-lines file.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn rows(name: &str) -> Vec<Value> {
    read(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Options with nothing set.
pub(crate) fn plain() -> RenderOptions {
    RenderOptions {
        add_generation_prompt: false,
        ..RenderOptions::default()
    }
}

/// Renders a template that needs no messages.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn rendered(source: &str) -> Result<String, text::Error> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(&[], &plain())
}

/// A directory that an environment variable names. Without it the test is skipped, which under CI it may only be if
/// `tests/allowed-skips.txt` lists it.
#[allow(dead_code, reason = "not every test file uses everything here")]
pub(crate) fn from_environment(test: &str, variable: &str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(variable).filter(|d| !d.is_empty()) {
        return Some(directory.into());
    }
    let list = read("../allowed-skips.txt");
    let listed = list.lines().any(|l| l.starts_with(&format!("{test}: ")));
    let ci = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
    assert!(
        listed || !ci,
        "{test}: {variable} is not set, and tests/allowed-skips.txt does not list the test"
    );
    eprintln!("SKIPPED {test}: {variable} is not set");
    None
}
