//! Hugging Face model directories: the tensors and the JSON files beside them.
//!
//! What it knows: which files such a directory has, and how large an honest one can be. What it
//! must not know: what a config means (`model` does), or how a tokenizer works (`text` does).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Tensors, json, safetensors, shards, torch};

/// Limit on `config.json`, `generation_config.json`, `special_tokens_map.json`: a few KB each.
const MAX_CONFIG: u64 = 1 << 20;

/// Limit on `tokenizer_config.json`, which may list every added token, and on chat templates.
const MAX_TOKENIZER_CONFIG: u64 = 16 << 20;

/// Limit on `tokenizer.json` and `tokenizer.model`: Llama 4's takes 27 MB.
const MAX_TOKENIZER: u64 = 64 << 20;

/// Where a chat template of its own file may lie, best first.
const TEMPLATES: [&str; 3] = [
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "chat_templates/default.jinja",
];

/// A model directory as Hugging Face lays it out. The JSON is parsed but not interpreted.
#[derive(Clone, Debug)]
pub struct HfDir {
    /// The directory.
    pub path: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// `generation_config.json`: end-of-generation tokens and sampling defaults.
    pub generation_config: Option<Value>,
    /// `tokenizer.json`, or else `tokenizer.model`.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Value>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<Value>,
    /// The chat template, if it has a file of its own (`chat_template.jinja`, the `default` of a
    /// directory of templates, or `chat_template.json`).
    pub chat_template: Option<String>,
    /// The weights: `model.safetensors` or else `pytorch_model.bin`, or the shards that the index of
    /// one lists.
    pub tensors: Tensors,
}

impl HfDir {
    /// Reads the JSON files and maps the weights.
    ///
    /// # Errors
    /// No `config.json`; a file that is not what it should be, or larger than an honest one; the
    /// weights as for [`safetensors::open_all`].
    pub fn open(dir: impl AsRef<Path>) -> Result<HfDir, Error> {
        let mut hf = HfDir::open_without_weights(dir)?;
        hf.tensors = shards::open_all(&hf.path, &[safetensors::FORMAT, torch::FORMAT])?;
        Ok(hf)
    }

    /// As [`HfDir::open`], but leaves `tensors` empty: for a directory that has only a tokenizer.
    ///
    /// # Errors
    /// As for [`HfDir::open`], but for the weights.
    pub fn open_without_weights(dir: impl AsRef<Path>) -> Result<HfDir, Error> {
        let dir = dir.as_ref();
        let read = |name: &str, limit| object(&dir.join(name), limit);
        let Some(config) = read("config.json", MAX_CONFIG)? else {
            return Err(Error::invalid(dir, no_config(dir)));
        };
        Ok(HfDir {
            config,
            generation_config: read("generation_config.json", MAX_CONFIG)?,
            tokenizer: tokenizer(dir)?,
            tokenizer_config: read("tokenizer_config.json", MAX_TOKENIZER_CONFIG)?,
            special_tokens_map: read("special_tokens_map.json", MAX_CONFIG)?,
            chat_template: chat_template(dir)?,
            tensors: Tensors::default(),
            path: dir.to_path_buf(),
        })
    }
}

/// The JSON object in the file at `path`; `None` if there is no such file.
fn object(path: &Path, limit: u64) -> Result<Option<Value>, Error> {
    match json::read(path, limit)? {
        Some(value) if !value.is_object() => Err(Error::invalid(path, "not a JSON object")),
        value => Ok(value),
    }
}

fn no_config(dir: &Path) -> &'static str {
    if !dir.is_dir() {
        "no such directory"
    } else if dir.join("params.json").is_file() {
        "no config.json: this is a checkpoint in Meta's own layout (params.json), not in Hugging Face's"
    } else {
        "no config.json: not a Hugging Face model directory"
    }
}

fn tokenizer(dir: &Path) -> Result<Option<PathBuf>, Error> {
    for name in ["tokenizer.json", "tokenizer.model"] {
        let path = dir.join(name);
        match std::fs::metadata(&path) {
            Ok(seen) if seen.len() > MAX_TOKENIZER => {
                let limit = MAX_TOKENIZER;
                return Err(Error::TooLarge { path, limit });
            }
            Ok(seen) if seen.is_file() => return Ok(Some(path)),
            _ => {}
        }
    }
    Ok(None)
}

fn chat_template(dir: &Path) -> Result<Option<String>, Error> {
    for name in TEMPLATES {
        let path = dir.join(name);
        if let Some(bytes) = json::read_capped(&path, MAX_TOKENIZER_CONFIG)? {
            let text = String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                Error::malformed(&path, at, "the template is not valid UTF-8")
            })?;
            return Ok(Some(text));
        }
    }
    // What processors of images wrote before the file above came up.
    let path = dir.join("chat_template.json");
    let Some(json) = object(&path, MAX_TOKENIZER_CONFIG)? else {
        return Ok(None);
    };
    match json.get("chat_template") {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        _ => Err(Error::invalid(
            &path,
            "no text under the key `chat_template`",
        )),
    }
}
