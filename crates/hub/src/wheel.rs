//! Taking one member out of a wheel (a zip file).
//!
//! The archive is hostile: nothing is ever written to a path it names, no more bytes are written
//! than it declared or than was promised, and what compresses too well is refused.

use std::io::{Read, Seek, Write};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::digest;
use crate::{Error, Progress};

/// No member is larger than this.
const MEMBER_MAX: u64 = 64 << 30;
/// From this size on, a member that is [`RATIO_MAX`] times larger than its packed form is taken
/// for a bomb. Weights hardly compress.
const RATIO_FROM: u64 = 16 << 20;
const RATIO_MAX: u64 = 50;
/// The most candidates that an error lists.
const CANDIDATES_MAX: usize = 50;

/// What was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive. For messages: it is not checked.
    pub name: String,
    /// Its SHA-256.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// Finds `member` in the archive (its full name, or its last component where only one fits;
/// without a name, the only `.gguf`) and writes it to `out`.
///
/// `promised` is its size in bytes where that is known: any other size is an error before a
/// byte is written.
///
/// # Errors
/// [`Error::Choose`] if no member or several fit; [`Error::Archive`] for a broken or hostile
/// archive; [`Error::Mismatch`] for another size than promised.
pub fn take_member(
    archive: impl Read + Seek,
    what: &str,
    member: Option<&str>,
    promised: Option<u64>,
    out: &mut dyn Write,
    progress: &mut dyn Progress,
) -> Result<Member, Error> {
    let broken = |why: String| Error::Archive {
        what: what.to_owned(),
        why,
    };
    let mut archive = ZipArchive::new(archive).map_err(|e| broken(e.to_string()))?;
    if archive.has_duplicate_names() {
        return Err(broken("two members have the same name".into()));
    }
    let index = choose(&archive, what, member)?;
    let mut entry = archive.by_index(index).map_err(|e| broken(e.to_string()))?;
    let name = entry
        .name()
        .map_err(|e| broken(e.to_string()))?
        .into_owned();
    let (declared, packed) = (entry.size(), entry.compressed_size());
    if !entry.is_file() {
        return Err(broken(format!("{name} is no plain file")));
    }
    if let Some(promised) = promised.filter(|promised| *promised != declared) {
        return Err(Error::Mismatch {
            what: format!("{what} {name}"),
            which: "size",
            expected: format!("{promised} bytes"),
            got: format!("{declared} bytes"),
        });
    }
    if declared > MEMBER_MAX {
        return Err(broken(format!(
            "{name} claims {declared} bytes, the limit is {MEMBER_MAX}"
        )));
    }
    if declared > RATIO_FROM && declared / RATIO_MAX > packed {
        return Err(broken(format!(
            "{name} unpacks {packed} bytes to {declared}: refused as a bomb"
        )));
    }
    let (sha256, bytes) = copy(&mut entry, &name, declared, out, progress)?;
    Ok(Member {
        name,
        sha256,
        bytes,
    })
}

/// Writes an entry to `out`, exactly the `declared` bytes of it. Gives its hash and length.
fn copy(
    entry: &mut dyn Read,
    name: &str,
    declared: u64,
    out: &mut dyn Write,
    progress: &mut dyn Progress,
) -> Result<(String, u64), Error> {
    let broken = |why: String| Error::Archive {
        what: name.to_owned(),
        why,
    };
    progress.start(&format!("unpacking {name}"), Some(declared));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut done = 0u64;
    loop {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let n = entry.read(&mut buffer).map_err(|e| broken(e.to_string()))?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > declared {
            return Err(broken(format!(
                "larger than the {declared} bytes it claims"
            )));
        }
        out.write_all(&buffer[..n])
            .map_err(Error::io("write", name))?;
        hasher.update(&buffer[..n]);
        progress.advance(done);
    }
    if done != declared {
        return Err(broken(format!("{done} bytes, it claims {declared}")));
    }
    progress.finish();
    Ok((digest::finish(hasher), done))
}

/// The index of the member that was asked for.
fn choose<R: Read + Seek>(
    archive: &ZipArchive<R>,
    what: &str,
    member: Option<&str>,
) -> Result<usize, Error> {
    let names: Vec<String> = archive
        .file_names()
        .flatten()
        .filter(|name| !name.ends_with('/'))
        .map(|name| name.into_owned())
        .collect();
    let index = |name: &str| archive.index_for_name(name);
    if let Some(found) = member.and_then(index) {
        return Ok(found);
    }
    let fits = |name: &&String| match member {
        Some(member) => name.rsplit('/').next() == Some(member),
        None => name.to_ascii_lowercase().ends_with(".gguf"),
    };
    let fitting: Vec<&String> = names.iter().filter(fits).collect();
    if let [name] = fitting.as_slice()
        && let Some(found) = index(name)
    {
        return Ok(found);
    }
    let models = |name: &&String| name.to_ascii_lowercase().ends_with(".gguf");
    let shown = if fitting.is_empty() {
        names.iter().filter(models).collect()
    } else {
        fitting.clone()
    };
    Err(Error::Choose {
        what: what.to_owned(),
        why: match (member, fitting.is_empty()) {
            (Some(member), true) => format!("it has no member {member}"),
            (None, true) => "it has no .gguf file".into(),
            _ => "several members fit".into(),
        },
        choices: shown.into_iter().take(CANDIDATES_MAX).cloned().collect(),
    })
}
