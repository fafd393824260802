//! SHA-256 in hex, of bytes and of files.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Progress};

/// The hash of `bytes`, as 64 lower-case hex digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    finish(Sha256::new_with_prefix(bytes))
}

/// The hash so far, as 64 lower-case hex digits.
pub(crate) fn finish(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .fold(String::with_capacity(64), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// Whether `text` is 64 lower-case hex digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Feeds a whole file to `hasher`; `advance` hears how many bytes of it are done. Returns its
/// length.
pub(crate) fn feed_file(
    hasher: &mut Sha256,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<u64, Error> {
    let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0u64;
    loop {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok(done);
        }
        hasher.update(&buffer[..n]);
        done += n as u64;
        progress.advance(done);
    }
}
