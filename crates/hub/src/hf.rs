//! Hugging Face repositories: what is in one, and where its files are.
//!
//! Two calls of its API are used: `/api/models/{repo}/revision/{rev}?blobs=true` gives commit,
//! files, sizes, hashes and the card; `/api/models/{repo}/tree/{commit}?recursive=true` gives
//! sizes and hashes where the first one (of a mirror) does not. Files are then fetched at that
//! commit, so that they fit together even if the branch moves meanwhile.

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::choose::{Choice, Refusal, RepoFile, choose};
use crate::digest::is_sha256;
use crate::http::{Http, text};
use crate::spec::{is_revision, safe_relative};
use crate::{Error, Progress};

/// The most pages of a listing that are read.
const PAGES_MAX: usize = 50;

/// What to fetch from a repository.
#[derive(Debug)]
pub(crate) struct Repo {
    /// The commit behind the revision.
    pub commit: String,
    /// The card's licence.
    pub licence: Option<String>,
    /// The files.
    pub choice: Choice,
}

/// Asks what a repository holds, and chooses.
pub(crate) fn look(
    http: &Http,
    endpoint: &str,
    spec: (&str, &str, Option<&str>),
    progress: &mut dyn Progress,
) -> Result<Repo, Error> {
    let (repo, rev, wanted) = spec;
    let what = match rev {
        "main" => format!("hf:{repo}"),
        rev => format!("hf:{repo}@{rev}"),
    };
    let url = format!(
        "{endpoint}/api/models/{repo}/revision/{}?blobs=true",
        encode(rev, false)
    );
    let (info, _) = http.json(&url, &what, progress)?;
    let broken = |why: &str| Error::Remote {
        what: what.clone(),
        why: format!("its description {why}"),
    };
    let commit = info
        .get("sha")
        .and_then(Value::as_str)
        .filter(|sha| is_revision(sha))
        .ok_or_else(|| broken("has no commit"))?
        .to_owned();
    let siblings = info.get("siblings").and_then(Value::as_array);
    let siblings = siblings.ok_or_else(|| broken("has no files"))?;
    let mut listing: Vec<RepoFile> = siblings
        .iter()
        .filter_map(|file| listed(file, "rfilename"))
        .collect();
    let unsafe_names = listing
        .iter()
        .filter(|file| safe_relative(&file.path).is_err())
        .count();
    if unsafe_names > 0 {
        progress.note(&format!(
            "{what}: {unsafe_names} files with unsafe names are ignored"
        ));
    }
    let mut choice = pick(&listing, wanted, &what)?;
    if choice.files.iter().any(|file| file.bytes.is_none()) {
        listing = tree(http, endpoint, repo, &commit, &what, progress)?;
        choice = pick(&listing, wanted, &what)?;
    }
    Ok(Repo {
        licence: licence(&info),
        commit,
        choice,
    })
}

/// Where one file of a repository is.
pub(crate) fn file_url(endpoint: &str, repo: &str, commit: &str, path: &str) -> String {
    format!(
        "{endpoint}/{repo}/resolve/{}/{}",
        encode(commit, false),
        encode(path, true)
    )
}

fn pick(listing: &[RepoFile], wanted: Option<&str>, what: &str) -> Result<Choice, Error> {
    choose(listing, wanted).map_err(|Refusal { why, choices }| Error::Choose {
        what: what.to_owned(),
        why,
        choices,
    })
}

/// The whole listing, page by page.
fn tree(
    http: &Http,
    endpoint: &str,
    repo: &str,
    commit: &str,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<Vec<RepoFile>, Error> {
    let mut url = format!(
        "{endpoint}/api/models/{repo}/tree/{}?recursive=true",
        encode(commit, false)
    );
    let mut listing = Vec::new();
    for _ in 0..PAGES_MAX {
        let (page, headers) = http.json(&url, what, progress)?;
        let entries = page.as_array().into_iter().flatten();
        listing.extend(
            entries
                .filter(|entry| entry.get("type").and_then(Value::as_str) == Some("file"))
                .filter_map(|entry| listed(entry, "path")),
        );
        match next_page(&headers, endpoint) {
            Some(next) => url = next,
            None => return Ok(listing),
        }
    }
    Err(Error::Remote {
        what: what.to_owned(),
        why: format!("its listing has more than {PAGES_MAX} pages"),
    })
}

/// `Link: <https://...>; rel="next"`, if it stays at the endpoint.
fn next_page(headers: &HeaderMap, endpoint: &str) -> Option<String> {
    let link = text(headers, "link")?;
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    let inside = url
        .strip_prefix(endpoint)
        .is_some_and(|rest| rest.starts_with('/'));
    inside.then(|| url.to_owned())
}

/// One entry of a listing; `name` is the field that holds its name.
fn listed(entry: &Value, name: &str) -> Option<RepoFile> {
    let lfs = entry.get("lfs").filter(|lfs| lfs.is_object());
    let lfs_hash = lfs.and_then(|lfs| lfs.get("sha256").or_else(|| lfs.get("oid"))?.as_str());
    let lfs_size = lfs.and_then(|lfs| lfs.get("size")?.as_u64());
    Some(RepoFile {
        path: entry.get(name)?.as_str()?.to_owned(),
        bytes: lfs_size.or_else(|| entry.get("size")?.as_u64()),
        sha256: lfs_hash
            .map(|hash| hash.trim_start_matches("sha256:").to_ascii_lowercase())
            .filter(|hash| is_sha256(hash)),
    })
}

/// The card's licence: its SPDX-like name, or the custom name behind "other".
fn licence(info: &Value) -> Option<String> {
    let card = info.get("cardData")?;
    let name = |field: &str| match card.get(field)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => items.first()?.as_str().map(str::to_owned),
        _ => None,
    };
    let licence = match name("license")? {
        other if other == "other" => name("license_name").unwrap_or(other),
        known => known,
    };
    crate::licence::tidy(&licence)
}

/// Percent-encodes a path component, or with `slashes` a whole path.
fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn urls_are_encoded() {
        assert_eq!(
            file_url("http://h", "o/r", "abc", "a b/ü#?%.gguf"),
            "http://h/o/r/resolve/abc/a%20b/%C3%BC%23%3F%25.gguf"
        );
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
    }

    #[test]
    fn listings_and_licences() {
        let hash = "b".repeat(64);
        let entry = json!({"rfilename": "x", "size": 3, "lfs": {"oid": format!("sha256:{hash}"), "size": 9}});
        assert_eq!(
            listed(&entry, "rfilename"),
            Some(RepoFile {
                path: "x".into(),
                bytes: Some(9),
                sha256: Some(hash)
            })
        );
        assert_eq!(listed(&json!({"rfilename": 7}), "rfilename"), None);
        let card = |card: Value| licence(&json!({ "cardData": card }));
        assert_eq!(card(json!({"license": "mit"})).as_deref(), Some("mit"));
        assert_eq!(
            card(json!({"license": ["apache-2.0", "mit"]})).as_deref(),
            Some("apache-2.0")
        );
        assert_eq!(
            card(json!({"license": "other", "license_name": "llama3.2"})).as_deref(),
            Some("llama3.2")
        );
        assert_eq!(card(json!({"license": 4})), None);
        assert_eq!(card(json!(null)), None);
    }

    #[test]
    fn the_next_page_stays_at_the_endpoint() {
        let next = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("link", link.parse().unwrap());
            next_page(&headers, "https://h")
        };
        assert_eq!(
            next("<https://h/api?cursor=2>; rel=\"next\"").as_deref(),
            Some("https://h/api?cursor=2")
        );
        assert_eq!(next("<https://h.evil/api>; rel=\"next\""), None);
        assert_eq!(next("<https://h/api>; rel=\"prev\""), None);
    }
}
