//! Ollama's local store, used in place and never written.
//!
//! ```text
//! manifests/<host>/<namespace>/<model>/<tag>   JSON: the layers of a model
//! blobs/sha256-<hex>                           a layer, named by its content
//! ```
//!
//! One layer is a GGUF file; small ones hold what a Modelfile says: template, system message,
//! parameters, turns, licences. All of it may have been written by anybody: names, digests and
//! sizes are checked, and no link is followed out of the folder of blobs.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::digest::{is_sha256, sha256_hex};
use crate::recipe::{Adapter, Message, Recipe, is_of_the_machine};
use crate::{Error, Spec};

/// The largest manifest, and the largest layer that is read as text.
const TEXT_MAX: u64 = 4 << 20;
/// The most layers of one model.
const LAYERS_MAX: usize = 64;
/// The most manifests that are looked at.
const MANIFESTS_MAX: usize = 10_000;
/// The longest part of a name.
const PART_MAX: usize = 128;
/// The namespace that ollama leaves out of a name.
const LIBRARY: &str = "library";
/// What the media types of layers begin with.
const IMAGE: &str = "application/vnd.ollama.image.";

/// A model of ollama's store, before its manifest is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    host: String,
    namespace: String,
    model: String,
    tag: String,
    root: PathBuf,
}

/// What a manifest says.
#[derive(Debug)]
pub(crate) struct Found {
    /// The GGUF file.
    pub path: PathBuf,
    /// Its hash, as the manifest says.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// What the small layers say; adapters are absolute paths.
    pub recipe: Recipe,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

/// `[[HOST/]NAMESPACE/]MODEL[:TAG]`, as it stands behind `ollama:`.
pub(crate) fn parse(rest: &str) -> Result<Spec, String> {
    let (name, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
    let parts = name.split('/').count();
    if parts > 3 || !name.split('/').all(is_part) || !is_part(tag) {
        return Err("a model of ollama's is written ollama:[[HOST/]NAMESPACE/]MODEL[:TAG]".into());
    }
    Ok(Spec::Ollama {
        name: name.to_owned(),
        tag: tag.to_owned(),
    })
}

fn is_part(part: &str) -> bool {
    part.len() <= PART_MAX
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

impl Listed {
    /// The MODEL word that means it: as short as ollama writes it.
    pub(crate) fn word(&self) -> String {
        let Listed {
            namespace,
            model,
            tag,
            ..
        } = self;
        match namespace.as_str() {
            LIBRARY => format!("ollama:{model}:{tag}"),
            _ => format!("ollama:{namespace}/{model}:{tag}"),
        }
    }

    /// Whether a name of one to three parts means it. Ollama's names know no case.
    fn is_called(&self, name: &str, tag: &str) -> bool {
        let mut wanted = name.rsplit('/');
        let model = wanted.next().unwrap_or_default();
        let namespace = wanted.next().unwrap_or(LIBRARY);
        let host = wanted.next();
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        same(&self.model, model)
            && same(&self.tag, tag)
            && same(&self.namespace, namespace)
            && host.is_none_or(|host| same(&self.host, host))
    }

    fn error(&self, why: impl Into<String>) -> Error {
        Error::Ollama {
            name: self.word(),
            why: why.into(),
        }
    }

    /// Reads the manifest and the small layers.
    ///
    /// # Errors
    /// [`Error::Ollama`] for whatever is missing, broken, out of place, or not to be obeyed.
    pub(crate) fn open(&self) -> Result<Found, Error> {
        let path = [&self.host, &self.namespace, &self.model, &self.tag]
            .iter()
            .fold(self.root.join("manifests"), |path, part| path.join(part));
        let text =
            read(&path, TEXT_MAX).map_err(|why| self.error(format!("its manifest: {why}")))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| self.error(format!("its manifest: {e}")))?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(self.error(format!("it has more than {LAYERS_MAX} layers")));
        }
        let mut recipe = Recipe {
            from: self.word(),
            ..Recipe::default()
        };
        let mut weights = None;
        for layer in &manifest.layers {
            let blob = blob(&self.root, layer).map_err(|why| self.error(why))?;
            match layer.media_type.strip_prefix(IMAGE) {
                Some("model") if weights.is_some() => {
                    return Err(self.error("it has several layers of weights"));
                }
                Some("model") => weights = Some((blob, layer)),
                // Text needs no eyes: pictures cannot be given to it.
                Some("projector") => {}
                Some("adapter") => recipe.adapters.push(Adapter {
                    path: blob.to_string_lossy().into_owned(),
                    scale: None,
                }),
                Some(kind @ ("template" | "system" | "params" | "license" | "messages")) => {
                    let text = small(&blob, layer).map_err(|why| self.error(why))?;
                    obey(&mut recipe, kind, text)
                        .map_err(|why| self.error(format!("its layer {kind}: {why}")))?;
                }
                _ => {
                    return Err(self.error(format!(
                        "a layer of unknown kind {:?}",
                        cut(&layer.media_type)
                    )));
                }
            }
        }
        let (path, layer) = weights.ok_or_else(|| self.error("it has no layer of weights"))?;
        Ok(Found {
            path,
            sha256: layer.digest["sha256:".len()..].to_owned(),
            bytes: layer.size,
            recipe,
        })
    }
}

/// All models of these stores, sorted by their words. The first of two with one word counts.
pub(crate) fn list(roots: &[PathBuf]) -> Vec<Listed> {
    let mut all = every(roots);
    all.dedup_by_key(|listed| listed.word());
    all
}

/// All models of these stores, also those of several hosts with one name.
fn every(roots: &[PathBuf]) -> Vec<Listed> {
    let mut all: Vec<Listed> = Vec::new();
    for root in roots {
        let mut found = Vec::new();
        walk(&root.join("manifests"), &mut Vec::new(), &mut found);
        for mut parts in found {
            let mut next = || parts.pop().unwrap_or_default();
            let (tag, model, namespace, host) = (next(), next(), next(), next());
            let root = root.clone();
            all.push(Listed {
                host,
                namespace,
                model,
                tag,
                root,
            });
        }
    }
    all.sort_by_key(Listed::word);
    all
}

/// The model of that name, if it is there.
pub(crate) fn find(roots: &[PathBuf], name: &str, tag: &str) -> Option<Listed> {
    let mut all = every(roots).into_iter();
    all.find(|listed| listed.is_called(name, tag))
}

/// Collects the four parts of each manifest's path. Links are passed over.
fn walk(dir: &Path, parts: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if found.len() >= MANIFESTS_MAX {
            return;
        }
        let Some(part) = entry
            .file_name()
            .into_string()
            .ok()
            .filter(|part| is_part(part))
        else {
            continue;
        };
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        parts.push(part);
        match parts.len() {
            4 if kind.is_file() => found.push(parts.clone()),
            1..=3 if kind.is_dir() => walk(&entry.path(), parts, found),
            _ => {}
        }
        parts.pop();
    }
}

/// The file of a layer: in the folder of blobs, and of the size that is promised.
fn blob(root: &Path, layer: &Layer) -> Result<PathBuf, String> {
    let digest = layer.digest.as_str();
    let hash = digest
        .strip_prefix("sha256:")
        .filter(|hash| is_sha256(hash));
    let hash = hash.ok_or_else(|| format!("{:?} is no SHA-256", cut(digest)))?;
    let blobs = root
        .join("blobs")
        .canonicalize()
        .map_err(|e| format!("its blobs: {e}"))?;
    let path = blobs.join(format!("sha256-{hash}"));
    let real = path
        .canonicalize()
        .map_err(|e| format!("the layer {digest}: {e}"))?;
    if real.parent() != Some(&blobs) {
        return Err(format!(
            "the layer {digest} lies outside of the folder of blobs"
        ));
    }
    let meta = fs::metadata(&real).map_err(|e| format!("the layer {digest}: {e}"))?;
    if !meta.is_file() || meta.len() != layer.size {
        let (there, size) = (meta.len(), layer.size);
        return Err(format!(
            "the layer {digest} has {there} bytes, its manifest says {size}"
        ));
    }
    Ok(real)
}

/// A small layer's text, which must be what its digest says.
fn small(path: &Path, layer: &Layer) -> Result<String, String> {
    let bytes = read(path, TEXT_MAX).map_err(|why| format!("the layer {}: {why}", layer.digest))?;
    if layer.digest != format!("sha256:{}", sha256_hex(&bytes)) {
        return Err(format!("the layer {} has another content", layer.digest));
    }
    String::from_utf8(bytes).map_err(|_| format!("the layer {} is no text", layer.digest))
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| e.to_string())?;
    if bytes.len() as u64 > most {
        return Err(format!("it is larger than {most} bytes"));
    }
    Ok(bytes)
}

/// Puts what a small layer says into the recipe.
fn obey(recipe: &mut Recipe, kind: &str, text: String) -> Result<(), String> {
    match kind {
        "template" => recipe.template = Some(text),
        "system" => recipe.system = Some(text),
        "license" => recipe.licences.push(text),
        "params" => params(recipe, &text)?,
        _ => {
            let messages: Vec<Message> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            recipe.messages.extend(messages);
            recipe.check()?;
        }
    }
    Ok(())
}

/// `{"stop": ["a", "b"], "temperature": 0.5}`. Settings of the machine are passed over.
fn params(recipe: &mut Recipe, text: &str) -> Result<(), String> {
    // By name, so that equal layers make equal recipes.
    let params: std::collections::BTreeMap<String, Value> =
        serde_json::from_str(text).map_err(|e| e.to_string())?;
    for (name, value) in &params {
        if is_of_the_machine(name) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => {
                    return Err(format!(
                        "{:?} has a value of no kind that it takes",
                        cut(name)
                    ));
                }
            };
            recipe.set(name, &text)?;
        }
    }
    Ok(())
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(80)]
}

/// Reads the text of a `params` layer and of a `messages` layer, for the fuzz target.
#[doc(hidden)]
pub fn read_layers(params_text: &str, messages: &str) -> Option<Recipe> {
    let mut recipe = Recipe::default();
    params(&mut recipe, params_text).ok()?;
    obey(&mut recipe, "messages", messages.to_owned()).ok()?;
    Some(recipe)
}
