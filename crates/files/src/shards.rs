//! The weights of a model in a directory: one file, or the shards that an index lists.
//!
//! What it knows: the index, which formats share but for its name. What it must not know: how a
//! shard is read.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use crate::json::{self, Distinct};
use crate::{Error, Tensors};

/// 405B parameters in 191 shards take 0.1 MB.
const MAX_INDEX: u64 = 16 << 20;

/// What a format calls its files, and how one is opened.
pub(crate) struct Format {
    /// The one file of a model that is not sharded.
    pub(crate) single: &'static str,
    /// The index of a sharded model.
    pub(crate) index: &'static str,
    pub(crate) open: fn(&Path) -> Result<Tensors, Error>,
}

/// The tensors of the model in `dir`, in the first of `formats` that lies there.
///
/// # Errors
/// None does; a file is not well-formed; a shard is missing, or its tensors are not those that the
/// index says; the index names a file outside `dir`.
pub(crate) fn open_all(dir: &Path, formats: &[Format]) -> Result<Tensors, Error> {
    for format in formats {
        let single = dir.join(format.single);
        if single.exists() {
            return (format.open)(&single);
        }
        let path = dir.join(format.index);
        if let Some(index) = json::read_as::<Index>(&path, MAX_INDEX)? {
            return open_shards(dir, &path, index, format);
        }
    }
    let names: Vec<String> = formats
        .iter()
        .map(|f| format!("{} nor {}", f.single, f.index))
        .collect();
    let what = format!("neither {} lies in this directory", names.join(" nor "));
    Err(Error::invalid(dir, what))
}

#[derive(Deserialize)]
struct Index {
    /// Tensor to file.
    weight_map: Distinct<String>,
}

fn open_shards(
    dir: &Path,
    index_path: &Path,
    index: Index,
    format: &Format,
) -> Result<Tensors, Error> {
    let wrong = |what: String| Error::invalid(index_path, what);
    let wanted: HashMap<String, String> = index.weight_map.0.iter().cloned().collect();
    let mut seen = HashSet::new();
    let mut list = Vec::new();
    for (_, shard) in &index.weight_map.0 {
        if !seen.insert(shard) {
            continue;
        }
        if !is_plain_name(shard) {
            let what = format!("weight_map names {shard:?}, which is not the plain name of a file");
            return Err(wrong(what));
        }
        let file = dir.join(shard);
        if !file.exists() {
            let what = format!("the shard is missing (wanted by {})", index_path.display());
            return Err(Error::invalid(&file, what));
        }
        for tensor in (format.open)(&file)?.into_vec() {
            let name = &tensor.name;
            match wanted.get(name) {
                Some(at) if at == shard => list.push(tensor),
                Some(at) => {
                    let what = format!("tensor `{name}` lies here, but the index says in {at}");
                    return Err(Error::invalid(&file, what));
                }
                None => {
                    let what = format!("tensor `{name}` is not in the index");
                    return Err(Error::invalid(&file, what));
                }
            }
        }
    }
    let tensors = Tensors::build(list, index_path)?;
    let missing = index
        .weight_map
        .0
        .iter()
        .find(|(name, _)| tensors.get(name).is_none());
    if let Some((name, shard)) = missing {
        let what = format!("tensor `{name}` is not in {shard}, where weight_map says it is");
        return Err(wrong(what));
    }
    Ok(tensors)
}

/// Whether `name` is one component that stays inside the directory on every system.
fn is_plain_name(name: &str) -> bool {
    let hidden_or_up = name.starts_with('.');
    !name.is_empty() && !hidden_or_up && !name.contains(['/', '\\', ':', '\0'])
}
