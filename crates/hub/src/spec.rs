//! What a MODEL word means, and which words are safe.
//!
//! Everything that later becomes a file name, a URL or a command-line argument passes one of
//! the checks in this file first. Pure: it looks at no file and no network.

use std::path::{Path, PathBuf};

use crate::digest::sha256_hex;
use crate::{Error, ollama};

/// A MODEL, parsed. See [`Spec::parse`] for the grammar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// `name[:tag]`, a name in the store or the catalogue. Lower case; the tag defaults to `latest`.
    Name {
        /// One or two parts `[a-z0-9][a-z0-9._-]*` with one `/` between them.
        name: String,
        /// `[a-z0-9][a-z0-9._-]*`
        tag: String,
    },
    /// A file or directory.
    Path(PathBuf),
    /// `hf:ORG/REPO[@REV][:FILE_OR_QUANT]`, a Hugging Face repository.
    Hf {
        /// `ORG/REPO`
        repo: String,
        /// Branch, tag or commit; `main` if none was given.
        rev: String,
        /// A file of the repository, or a quantisation such as `Q4_K_M`.
        file_or_quant: Option<String>,
    },
    /// `pip:NAME==VERSION[:MEMBER]`, a file inside a Python wheel.
    Pip {
        /// The distribution's name.
        name: String,
        /// Its exact version.
        version: String,
        /// The file inside the wheel; without it, the only `.gguf` there.
        member: Option<String>,
    },
    /// `ollama:NAME[:TAG]`, a model in ollama's own store.
    Ollama {
        /// `[[HOST/]NAMESPACE/]MODEL`
        name: String,
        /// The tag; `latest` if none was given.
        tag: String,
    },
    /// `https://...` (plain `http` is for loopback hosts and `HF_ENDPOINT` only).
    Url(String),
}

/// The longest word taken for a MODEL.
const WORD_MAX: usize = 4096;
/// The longest part of a name, file name or tag; with a suffix it stays under the 255 bytes that
/// file systems allow.
const PART_MAX: usize = 96;

/// File endings that make a word a path even when it would pass as a name.
const FILE_ENDINGS: [&str; 7] = [
    ".gguf",
    ".bin",
    ".safetensors",
    ".json",
    ".model",
    ".pth",
    ".pt",
];

impl Spec {
    /// Says what a word means, by its form alone:
    ///
    /// | form | meaning |
    /// |---|---|
    /// | `hf:`, `pip:`, `ollama:`, `https://`, `http://` first | that kind |
    /// | begins with `/`, `./`, `../`, `~`; ends like a model file; or no valid name | path |
    /// | `part[:tag]` or `part/part[:tag]` of letters, digits, `.`, `_`, `-` | name (lower-cased) |
    ///
    /// # Errors
    /// [`Error::Spec`] for an empty word, control characters, an unknown scheme, or a form that
    /// breaks the grammar of its scheme.
    pub fn parse(word: &str) -> Result<Spec, Error> {
        let bad = |why: &str| spec_error(word, why);
        if word.is_empty() {
            return Err(bad("it is empty"));
        }
        if word.len() > WORD_MAX {
            return Err(bad("it is too long"));
        }
        if word.chars().any(char::is_control) {
            return Err(bad("it has control characters"));
        }
        if let Some(rest) = word.strip_prefix("hf:") {
            return parse_hf(rest).map_err(|why| bad(&why));
        }
        if let Some(rest) = word.strip_prefix("pip:") {
            return parse_pip(rest).map_err(|why| bad(&why));
        }
        if let Some(rest) = word.strip_prefix("ollama:") {
            return ollama::parse(rest).map_err(|why| bad(&why));
        }
        if let Some((scheme, _)) = word.split_once("://") {
            return match scheme.to_ascii_lowercase().as_str() {
                "https" | "http" => parse_url(word).map_err(|why| bad(&why)),
                _ => Err(bad("this scheme is not known")),
            };
        }
        if looks_like_path(word) {
            return Ok(Spec::Path(PathBuf::from(word)));
        }
        Ok(match parse_name(word) {
            Some((name, tag)) => Spec::Name { name, tag },
            None => Spec::Path(PathBuf::from(word)),
        })
    }

    /// The same word in its one spelling: equal for words that mean the same thing.
    #[must_use]
    pub fn canonical(&self) -> String {
        match self {
            Spec::Name { name, tag } => format!("{name}:{tag}"),
            Spec::Path(path) => path.display().to_string(),
            Spec::Hf {
                repo,
                rev,
                file_or_quant,
            } => {
                let mut out = format!("hf:{repo}");
                if rev != "main" {
                    out.push('@');
                    out.push_str(rev);
                }
                push_after_colon(&mut out, file_or_quant.as_deref());
                out
            }
            Spec::Pip {
                name,
                version,
                member,
            } => {
                let mut out = format!("pip:{name}=={version}");
                push_after_colon(&mut out, member.as_deref());
                out
            }
            Spec::Ollama { name, tag } => format!("ollama:{name}:{tag}"),
            Spec::Url(url) => url.clone(),
        }
    }

    /// [`Spec::canonical`] without what may be secret (the query of a URL), for people to read.
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Spec::Url(url) => without_query(url).to_owned(),
            other => other.canonical(),
        }
    }

    /// Names under which the store may keep this, the nicest first. The second one carries a hash
    /// of the spec, for when the first is taken by something else. Empty for a path and for what lies in ollama's store.
    ///
    /// Every answer passes [`parse_name`]: nothing from outside reaches the store unchecked.
    #[must_use]
    pub fn store_names(&self) -> Vec<(String, String)> {
        let (name, tag) = match self {
            Spec::Path(_) | Spec::Ollama { .. } => return Vec::new(),
            Spec::Name { name, tag } => return vec![(name.clone(), tag.clone())],
            Spec::Hf {
                repo,
                rev,
                file_or_quant,
            } => {
                let (org, repo) = repo.split_once('/').unwrap_or(("hf", repo));
                let mut tag = file_or_quant.as_deref().map_or(String::new(), |f| {
                    let leaf = f.rsplit('/').next().unwrap_or(f);
                    tidy(leaf.strip_suffix(".gguf").unwrap_or(leaf))
                });
                if rev != "main" {
                    let rev = tidy(rev);
                    tag = if tag.is_empty() {
                        rev
                    } else {
                        format!("{tag}-{rev}")
                    };
                }
                (format!("{}/{}", tidy(org), tidy(repo)), tag)
            }
            Spec::Pip { name, version, .. } => (tidy_name(name), tidy(version)),
            Spec::Url(url) => {
                let path = without_query(url);
                let leaf = path.rsplit('/').next().unwrap_or_default();
                (
                    tidy_name(leaf.strip_suffix(".gguf").unwrap_or(leaf)),
                    String::new(),
                )
            }
        };
        let tag = if tag.is_empty() {
            "latest".to_owned()
        } else {
            cut(&tag, PART_MAX)
        };
        let hash = &self.key()[..12];
        let hashed = format!("{}-{hash}", cut(&tag, PART_MAX - 13));
        vec![(name.clone(), tag), (name, hashed)]
    }

    /// SHA-256 of [`Spec::canonical`], in hex: what makes two pulls "the same thing".
    #[must_use]
    pub fn key(&self) -> String {
        sha256_hex(self.canonical().as_bytes())
    }
}

fn spec_error(word: &str, why: &str) -> Error {
    Error::Spec {
        word: cut(word, 200),
        why: why.to_owned(),
    }
}

fn push_after_colon(out: &mut String, tail: Option<&str>) {
    if let Some(tail) = tail {
        out.push(':');
        out.push_str(tail);
    }
}

/// At most `max` bytes of `text`, cut between characters.
fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// A URL up to its query or fragment.
pub(crate) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// `text` as one part of a store name: lower case, every other character a `-`.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let c = c.to_ascii_lowercase();
        out.push(if is_part_char(c) { c } else { '-' });
    }
    let out = out.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if out.is_empty() {
        "model".to_owned()
    } else {
        cut(out, PART_MAX)
    }
}

fn is_part_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
}

fn is_part(part: &str) -> bool {
    part.len() <= PART_MAX
        && part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && part.chars().all(is_part_char)
}

fn looks_like_path(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    word.starts_with(['/', '.', '~', '\\'])
        || FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// Words before a colon that are schemes, and so no names: `hf:x` could not be told from a name
/// `hf` with the tag `x`.
const SCHEMES: [&str; 3] = ["hf", "pip", "ollama"];

/// A tidied word as a name of one part: a scheme's word gets a suffix.
fn tidy_name(text: &str) -> String {
    let name = tidy(text);
    if SCHEMES.contains(&name.as_str()) {
        return format!("{name}-model");
    }
    name
}

/// `name[:tag]` -> (name, tag), lower-cased, or `None` if it breaks the grammar.
#[must_use]
pub fn parse_name(word: &str) -> Option<(String, String)> {
    let word = word.to_ascii_lowercase();
    let (name, tag) = word.split_once(':').unwrap_or((&word, "latest"));
    let mut parts = name.split('/');
    let first = parts.next()?;
    let second = parts.next();
    let good = is_part(first)
        && second.is_none_or(is_part)
        && !SCHEMES.contains(&name)
        && parts.next().is_none()
        && is_part(tag);
    good.then(|| (name.to_owned(), tag.to_owned()))
}

fn parse_hf(rest: &str) -> Result<Spec, String> {
    let (left, file) = match rest.split_once(':') {
        Some((left, file)) => (left, Some(file)),
        None => (rest, None),
    };
    let (repo, rev) = left.split_once('@').unwrap_or((left, "main"));
    let (org, name) = repo
        .split_once('/')
        .ok_or("a repository is written hf:ORG/REPO")?;
    if !is_repo_part(org) || !is_repo_part(name) {
        return Err("ORG and REPO are letters, digits, `.`, `_` and `-`".into());
    }
    if !is_revision(rev) {
        return Err("after `@` stands a branch, a tag or a commit".into());
    }
    if let Some(file) = file {
        safe_relative(file).map_err(|why| format!("its file name is not safe: {why}"))?;
    }
    Ok(Spec::Hf {
        repo: repo.to_owned(),
        rev: rev.to_owned(),
        file_or_quant: file.map(str::to_owned),
    })
}

/// The hub's own rule for the two halves of a repository's name. `--` is refused because its
/// cache folder joins the halves with it.
fn is_repo_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= PART_MAX
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !part.contains("--")
        && !part.contains("..")
}

/// A branch, tag or commit: a narrow subset of what git allows in a reference.
pub(crate) fn is_revision(rev: &str) -> bool {
    rev.len() <= 128
        && rev.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
                && !part.contains("..")
        })
}

fn parse_pip(rest: &str) -> Result<Spec, String> {
    let (requirement, member) = match rest.split_once(':') {
        Some((left, member)) => (left, Some(member)),
        None => (rest, None),
    };
    let (name, version) = requirement
        .split_once("==")
        .ok_or("a package is written pip:NAME==VERSION")?;
    if !is_pip_name(name) {
        return Err(
            "NAME is letters, digits, `.`, `_` and `-`, and begins with a letter or digit".into(),
        );
    }
    if !is_pip_version(version) {
        return Err("VERSION is one exact version such as 1.2.3".into());
    }
    if let Some(member) = member {
        safe_relative(member).map_err(|why| format!("its member name is not safe: {why}"))?;
    }
    Ok(Spec::Pip {
        name: name.to_owned(),
        version: version.to_owned(),
        member: member.map(str::to_owned),
    })
}

/// PEP 508's rule for a distribution name, without extras.
fn is_pip_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    name.len() <= PART_MAX
        && name.starts_with(edge)
        && name.ends_with(edge)
        && name
            .chars()
            .all(|c| edge(c) || matches!(c, '.' | '_' | '-'))
}

/// The part of PEP 440 that exact pins use: no wildcard, no direct reference, no local path.
fn is_pip_version(version: &str) -> bool {
    version.len() <= 64
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.ends_with(|c: char| c.is_ascii_alphanumeric())
        && version
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '!' | '_' | '-'))
}

fn parse_url(word: &str) -> Result<Spec, String> {
    let url = reqwest::Url::parse(word).map_err(|e| e.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not carry a user name or password".into());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL has no host".into());
    }
    let mut url = url;
    url.set_fragment(None);
    // Written out, escapes make it longer: what is kept must be a word that can be read again.
    if url.as_str().len() > WORD_MAX {
        return Err("it is too long".into());
    }
    Ok(Spec::Url(url.to_string()))
}

/// Checks a file name that came from outside (a repository's listing, an archive, a flag) and
/// may have folders in it: every component is a plain name, so that joined to a directory it
/// stays inside that directory on every system.
///
/// # Errors
/// What is wrong with it.
pub fn safe_relative(name: &str) -> Result<&Path, &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 1024 {
        return Err("it is too long");
    }
    let mut depth = 0usize;
    for part in name.split('/') {
        depth += 1;
        if part.is_empty() {
            return Err("it has an empty component");
        }
        if part == "." || part == ".." {
            return Err("it leaves its folder");
        }
        if part.len() > 240 {
            return Err("a component is too long");
        }
        if part
            .chars()
            .any(|c| c.is_control() || matches!(c, '\\' | ':'))
        {
            return Err("it has a backslash, a colon or a control character");
        }
    }
    if depth > 8 {
        return Err("it is nested too deeply");
    }
    Ok(Path::new(name))
}
