//! The one error of this room: which file, which byte, what is wrong.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// The name that errors give to bytes that came from no file.
pub(crate) const MEMORY: &str = "<memory>";

/// Why a model file could not be read or written.
///
/// Each message names the file; [`Error::Malformed`] names the byte as well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: the file is missing, unreadable, full disk, ...
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The bytes break the format at a known place.
    #[error("{}: byte {offset}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Offset from the start of the file of the field that is wrong.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file, or a set of files that belong together, is wrong as a whole: a missing part, a
    /// tensor in two shards, a directory without `config.json`.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A side file is not JSON. The message of `source` has the line and the column.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A side file is larger than any honest file of its kind.
    #[error("{}: larger than the limit of {limit} bytes for this kind of file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A tensor's data does not have the length that its type and shape call for.
    #[error("tensor `{name}` ({dtype} {shape:?}) {}, not {found}", needs(*expected))]
    Size {
        /// The tensor.
        name: String,
        /// Its number type.
        dtype: crate::Dtype,
        /// Its shape, slowest axis first.
        shape: Vec<usize>,
        /// Bytes that type and shape call for; `None` where there is no such number (the product
        /// overflows, or a row is not a whole number of blocks).
        expected: Option<usize>,
        /// Bytes that were given.
        found: usize,
    },
}

fn needs(expected: Option<usize>) -> String {
    match expected {
        Some(bytes) => format!("needs {bytes} bytes"),
        None => "needs an impossible number of bytes".to_string(),
    }
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Error {
        Error::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn malformed(path: &Path, offset: usize, what: impl Display) -> Error {
        Error::Malformed {
            path: path.to_path_buf(),
            offset: offset as u64,
            what: what.to_string(),
        }
    }

    pub(crate) fn invalid(path: &Path, what: impl Display) -> Error {
        Error::Invalid {
            path: path.to_path_buf(),
            what: what.to_string(),
        }
    }
}
