//! Adapters as PEFT lays them out: `adapter_config.json` and the tensors beside it.
//!
//! What it knows: which files such a directory has. What it must not know: what the settings mean,
//! or which tensor belongs to which matrix (`model` does).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::shards::{self, Format};
use crate::{Error, Tensors, json, safetensors, torch};

/// The settings of an adapter.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// Limit on the settings: 1 KB is usual, a rank of its own for every matrix takes some more.
const MAX_CONFIG: u64 = 1 << 20;

/// The names of the tensors' file, best first.
const FORMATS: [Format; 2] = [
    Format {
        single: "adapter_model.safetensors",
        index: "adapter_model.safetensors.index.json",
        open: safetensors::FORMAT.open,
    },
    Format {
        single: "adapter_model.bin",
        index: "adapter_model.bin.index.json",
        open: torch::FORMAT.open,
    },
];

/// The directory of an adapter. The JSON is parsed but not interpreted.
#[derive(Clone, Debug)]
pub struct PeftDir {
    /// The directory.
    pub path: PathBuf,
    /// `adapter_config.json`.
    pub config: Value,
    /// `adapter_model.safetensors`, or else `adapter_model.bin`.
    pub tensors: Tensors,
}

/// Whether `path` is a directory with an `adapter_config.json`.
pub fn is_peft_dir(path: impl AsRef<Path>) -> bool {
    path.as_ref().join(CONFIG).is_file()
}

impl PeftDir {
    /// Reads the settings and maps the tensors.
    ///
    /// # Errors
    /// No `adapter_config.json`, or one that is no JSON object or larger than an honest one; the
    /// tensors as for [`safetensors::open_all`].
    pub fn open(dir: impl AsRef<Path>) -> Result<PeftDir, Error> {
        let dir = dir.as_ref();
        let path = dir.join(CONFIG);
        let config = match json::read(&path, MAX_CONFIG)? {
            Some(config @ Value::Object(_)) => config,
            Some(_) => return Err(Error::invalid(&path, "not a JSON object")),
            None => {
                let what = "no adapter_config.json: not an adapter of PEFT's";
                return Err(Error::invalid(dir, what));
            }
        };
        Ok(PeftDir {
            path: dir.to_path_buf(),
            config,
            tensors: shards::open_all(dir, &FORMATS)?,
        })
    }
}
