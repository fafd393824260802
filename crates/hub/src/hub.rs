//! The door: names in, verified paths out.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::catalogue;
use crate::store::{Store, StoredFile};
use crate::{CatalogueEntry, Error, Recipe, Settings, Terms};

/// A model that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// Its store name (`smollm2:135m`), or the file's or directory's stem.
    pub name: String,
    /// The file or directory to open.
    pub path: PathBuf,
    /// Where it came from: a MODEL word, or the path.
    pub source: String,
    /// The file's SHA-256 where the store knows it and the model is one file.
    pub sha256: Option<String>,
    /// The licence, where a card, the catalogue or the file says.
    pub licence: Option<String>,
    /// The size of all its files.
    pub bytes: u64,
    /// What a made model adds to its base; its adapters are whole paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

/// How to pull.
#[derive(Debug, Clone, Copy, Default)]
pub struct PullOptions {
    /// Say what would be fetched, fetch nothing.
    pub dry_run: bool,
    /// Fetch even what is already here.
    pub force: bool,
}

/// One file of a [`PullReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportFile {
    /// Its name in the model.
    pub path: String,
    /// Its size, where it is known before fetching.
    pub bytes: Option<u64>,
    /// Its SHA-256, where it is known before fetching.
    pub sha256: Option<String>,
}

/// What a pull did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PullReport {
    /// The store name.
    pub name: String,
    /// The file or directory to open; `None` in a dry run of something that is not here.
    pub path: Option<PathBuf>,
    /// Where it comes from.
    pub source: String,
    /// Its files.
    pub files: Vec<ReportFile>,
    /// The sum of the sizes, where all are known.
    pub bytes: Option<u64>,
    /// An estimate of the memory that its weights need when mapped: the same bytes.
    pub memory_bytes: Option<u64>,
    /// The licence, where it is known.
    pub licence: Option<String>,
    /// What that licence asks for, if it is a known one.
    pub terms: Option<&'static Terms>,
    /// Whether nothing was (or would be) fetched because it is here already.
    pub already: bool,
    /// Whether this only says what would be done.
    pub dry_run: bool,
}

/// One model of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// `name:tag`
    pub name: String,
    /// The file or directory to open.
    pub path: PathBuf,
    /// Where it came from: a MODEL word.
    pub source: String,
    /// The commit, for a repository.
    pub revision: Option<String>,
    /// The licence, where it is known.
    pub licence: Option<String>,
    /// The SHA-256, if the model is one file.
    pub sha256: Option<String>,
    /// The sum of its files.
    pub bytes: u64,
    /// Its files.
    pub files: Vec<StoredFile>,
    /// What a made model adds to its base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// Whose store it is in: "puna" or "ollama".
    pub place: &'static str,
    /// When it was pulled, in seconds since 1970.
    pub pulled: u64,
    /// What is wrong with it, if something is: a manifest that cannot be read, a blob that is
    /// missing. [`Hub::verify`] looks deeper.
    pub damage: Option<String>,
}

/// What [`Hub::verify`] found out about one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// `name:tag`
    pub name: String,
    /// Bytes that were read and hashed.
    pub bytes: u64,
    /// One line for each file that is missing or differs. Empty means that all is well.
    pub damage: Vec<String>,
}

/// What [`Hub::rm`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// `name:tag`
    pub name: String,
    /// Bytes of files that no other name uses and that are gone now.
    pub freed: u64,
}

/// Whether one source can be reached, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// What was asked: a host, or the command that runs pip.
    pub source: String,
    /// Whether it answered.
    pub ok: bool,
    /// What it answered, or why it did not.
    pub detail: String,
    /// How long that took.
    pub millis: u64,
}

/// Finds, fetches and keeps models. Every method blocks; none may be called inside an
/// asynchronous task.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
}

impl Hub {
    /// The hub that the environment describes.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_env(offline: bool) -> Result<Hub, Error> {
        Hub::new(Settings::from_env(offline)?)
    }

    /// A hub with these settings. Touches nothing yet.
    ///
    /// # Errors
    /// [`Error::Io`] if a relative store path cannot be made absolute.
    pub fn new(settings: Settings) -> Result<Hub, Error> {
        let home = std::path::absolute(&settings.home)
            .map_err(Error::io("make absolute", &settings.home))?;
        Ok(Hub {
            store: Store::new(home),
            settings,
        })
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The store's root.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.store.root()
    }

    /// The model that is used when none is named.
    #[must_use]
    pub fn default_model(&self) -> &'static str {
        catalogue::DEFAULT
    }

    /// All entries of the catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &'static [CatalogueEntry] {
        catalogue::catalogue()
    }
}
