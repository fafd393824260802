//! Checkpoints as Meta publishes them: `params.json`, `consolidated.NN.pth`, `tokenizer.model`.
//!
//! A model was trained on several machines, each of which saved its part of every matrix. What
//! this module knows: which matrices were cut along their rows, which along their columns, and how
//! the parts make a whole. What it must not know: what the parameters mean.
//!
//! | tensor | cut |
//! |---|---|
//! | wq, wk, wv, w1, w3, output | rows |
//! | wo, w2 | columns |
//! | tok_embeddings | columns in Llama 1 and 2, rows from Llama 3 on: told by the width of the parts |
//! | norms, rope.freqs | not at all: each part has the whole |
//!
//! (The split is that of the model-parallel layers in meta-llama/llama and meta-llama/llama-models.)

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Blob, Error, Tensor, Tensors, json, torch};

/// Limit on `params.json` (300 bytes are usual) and `checklist.chk`.
const MAX_SIDE_FILE: u64 = 1 << 20;

/// The most parts: Meta's largest release has 16.
const MAX_PARTS: usize = 100;

/// A checkpoint directory. The JSON is parsed but not interpreted.
#[derive(Clone, Debug)]
pub struct MetaDir {
    /// The directory.
    pub path: PathBuf,
    /// `params.json`.
    pub params: Value,
    /// How many files the weights lie in.
    pub parts: usize,
    /// The weights, whole.
    pub tensors: Tensors,
    /// Bytes of tensors that are cut by columns: they are put together in memory when they are computed
    /// with. The others are views of the files, those that are cut by rows in parts ([`Blob::parts`]).
    pub copied: u64,
}

/// How a tensor is cut into parts.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Rows,
    Columns,
    /// Rows or columns, whichever axis is not the model's width.
    Table,
    Whole,
}

/// Ends of names, and how the tensor is cut.
const CUTS: &[(&str, Cut)] = &[
    ("tok_embeddings.weight", Cut::Table),
    ("attention.wq.weight", Cut::Rows),
    ("attention.wk.weight", Cut::Rows),
    ("attention.wv.weight", Cut::Rows),
    ("attention.wo.weight", Cut::Columns),
    ("feed_forward.w1.weight", Cut::Rows),
    ("feed_forward.w2.weight", Cut::Columns),
    ("feed_forward.w3.weight", Cut::Rows),
    ("norm.weight", Cut::Whole),
    ("output.weight", Cut::Rows),
    ("rope.freqs", Cut::Whole),
];

impl MetaDir {
    /// Reads `params.json`, maps the weights and joins their parts.
    ///
    /// # Errors
    /// A file is missing, not well-formed, or larger than an honest one; the parts do not fit each
    /// other.
    pub fn open(dir: impl AsRef<Path>) -> Result<MetaDir, Error> {
        let dir = dir.as_ref();
        let path = dir.join("params.json");
        let params: Value = match json::read(&path, MAX_SIDE_FILE)? {
            Some(params @ Value::Object(_)) => params,
            Some(_) => return Err(Error::invalid(&path, "not a JSON object")),
            None => {
                return Err(Error::invalid(
                    dir,
                    "no params.json: not a checkpoint of Meta's",
                ));
            }
        };
        let files = weights(dir)?;
        let parts: Vec<Tensors> = files.iter().map(torch::open).collect::<Result<_, _>>()?;
        let (tensors, copied) = join(dir, &files, &parts)?;
        Ok(MetaDir {
            path: dir.to_path_buf(),
            params,
            parts: files.len(),
            tensors,
            copied,
        })
    }
}

/// At most so many bytes are put together in memory when the model is opened: what is, or may
/// be, cut by columns into several parts.
///
/// # Errors
/// As for [`MetaDir::open`], as far as the parts do not have to fit each other.
pub fn joined_bytes(dir: impl AsRef<Path>) -> Result<u64, Error> {
    let files = weights(dir.as_ref())?;
    let mut bytes = 0;
    for file in files.iter().filter(|_| files.len() > 1) {
        let by_columns = |t: &&Tensor| matches!(cut_of(&t.name), Some(Cut::Columns | Cut::Table));
        let part = torch::open(file)?;
        let cut = part.iter().filter(by_columns);
        bytes += cut.map(|t| t.data.len() as u64).sum::<u64>();
    }
    Ok(bytes)
}

/// How a tensor of this name is cut.
fn cut_of(name: &str) -> Option<Cut> {
    let ends = |end: &str| match name.strip_suffix(end) {
        Some(before) => before.is_empty() || before.ends_with('.') || before.ends_with('_'),
        None => false,
    };
    CUTS.iter().find(|(end, _)| ends(end)).map(|(_, cut)| *cut)
}

/// The files of the weights, in the order of their parts.
fn weights(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let part = |n: usize| dir.join(format!("consolidated.{n:02}.pth"));
    let single = dir.join("consolidated.pth");
    let last = (0..MAX_PARTS).rev().find(|&n| part(n).exists());
    let files = match last {
        Some(last) => (0..=last).map(part).collect(),
        None if single.exists() => vec![single],
        None => {
            return Err(Error::invalid(
                dir,
                "no consolidated.00.pth lies in this directory",
            ));
        }
    };
    let listed = checklist(dir)?;
    let wanted = listed.iter().map(|name| dir.join(name));
    match files
        .iter()
        .cloned()
        .chain(wanted)
        .find(|path| !path.exists())
    {
        Some(path) => Err(Error::invalid(&path, "a part of the weights is missing")),
        None => Ok(files),
    }
}

/// The files of weights that `checklist.chk` names: lines of a hash and a name.
fn checklist(dir: &Path) -> Result<Vec<String>, Error> {
    let bytes = json::read_capped(&dir.join("checklist.chk"), MAX_SIDE_FILE)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let is_part = |name: &str| {
        let digits = name
            .strip_prefix("consolidated.")
            .and_then(|n| n.strip_suffix(".pth"));
        digits.is_some_and(|n| n.len() == 2 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(names
        .filter(|name| is_part(name))
        .map(str::to_string)
        .collect())
}

/// One model out of the parts, and the bytes of it that are cut by columns.
fn join(dir: &Path, files: &[PathBuf], parts: &[Tensors]) -> Result<(Tensors, u64), Error> {
    let [first, rest @ ..] = parts else {
        return Err(Error::invalid(dir, "no weights"));
    };
    if rest.is_empty() {
        return Ok((first.clone(), 0));
    }
    for (part, file) in rest.iter().zip(&files[1..]) {
        let odd = [(first, part), (part, first)]
            .into_iter()
            .find_map(|(a, b)| a.names().find(|n| b.get(n).is_none()));
        if let Some(name) = odd {
            let what = format!("tensor `{name}` is not in both this part and the first");
            return Err(Error::invalid(file, what));
        }
    }
    // Every part has the whole norm, which is as wide as the model.
    let width = first.get("norm.weight").map(|norm| norm.shape.clone());
    let mut copied = 0;
    let mut list = Vec::with_capacity(first.len());
    for tensor in first {
        let pieces: Vec<&Tensor> = parts
            .iter()
            .filter_map(|part| part.get(&tensor.name))
            .collect();
        let whole = join_one(&pieces, width.as_deref());
        let (whole, bytes) = whole
            .map_err(|what| Error::invalid(dir, format!("tensor `{}`: {what}", tensor.name)))?;
        copied += bytes;
        list.push(whole);
    }
    Ok((Tensors::build(list, dir)?, copied))
}

/// A tensor out of its pieces, and its bytes if these are cut by columns.
fn join_one(pieces: &[&Tensor], width: Option<&[usize]>) -> Result<(Tensor, u64), String> {
    let first = pieces[0];
    let Some(cut) = cut_of(&first.name) else {
        return Err("how its parts make a whole is not known".into());
    };
    if let Some(other) = pieces
        .iter()
        .find(|p| (p.dtype, &p.shape) != (first.dtype, &first.shape))
    {
        return Err(format!(
            "is {} {:?} in the first part and {} {:?} in another",
            first.dtype, first.shape, other.dtype, other.shape
        ));
    }
    if cut == Cut::Whole {
        return Ok((first.clone(), 0));
    }
    let [rows, cols] = first.shape[..] else {
        return Err(format!("has shape {:?}; two axes are needed", first.shape));
    };
    let columns = match cut {
        Cut::Table => width != Some(&[cols]),
        cut => cut == Cut::Columns,
    };
    let n = pieces.len();
    let times = |size: usize| size.checked_mul(n).ok_or("is too large");
    let tensor = |shape: [usize; 2], data: Blob| {
        let whole = Tensor::new(first.name.clone(), first.dtype, shape.to_vec(), data);
        whole.map_err(|e| e.to_string())
    };
    if !columns {
        let parts = pieces.iter().map(|piece| piece.data.clone());
        let whole = tensor([times(rows)?, cols], Blob::join(parts.collect()))?;
        return Ok((whole, 0));
    }
    // A row of each piece in turn.
    let parts = pieces.iter().map(|piece| piece.data.clone()).collect();
    let data = Blob::weave(parts, first.data.len() / rows.max(1));
    let whole = tensor(
        [rows, times(cols)?],
        data.unwrap_or_else(|| Blob::from_vec(Vec::new())),
    )?;
    let bytes = whole.data.len() as u64;
    Ok((whole, bytes))
}
