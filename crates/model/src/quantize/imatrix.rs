//! Importance matrices: how much each column of a weight matrix matters, as the mean square of what
//! it is multiplied by.

use std::collections::BTreeMap;
use std::path::Path;

use files::gguf::{Gguf, Value};
use files::{Kind, Tensor};

use crate::error::{Error, Result};

/// An importance matrix, whichever form of file it came from.
#[derive(Debug, Clone, Default)]
pub struct Imatrix {
    /// For each weight matrix one number a column, expert after expert.
    columns: BTreeMap<String, Vec<f32>>,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u64,
}

impl Imatrix {
    /// Reads a file of either form.
    ///
    /// # Errors
    /// It is neither, or holds numbers that are not finite or below 0.
    pub fn open(path: &Path) -> Result<Imatrix> {
        let found = match files::detect(path)? {
            Kind::Gguf => Imatrix::from_gguf(&Gguf::open(path)?)?,
            _ => Imatrix::from_old(files::imatrix::read(path)?),
        };
        for (name, values) in &found.columns {
            if let Some(bad) = values.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
                return Err(wrong(
                    name,
                    format!("importance {bad}; it must be 0 or more"),
                ));
            }
        }
        Ok(found)
    }

    fn from_old(file: files::imatrix::Imatrix) -> Imatrix {
        let columns = file.entries.into_iter().map(|e| {
            let calls = e.calls.max(1) as f32;
            (e.name, e.values.iter().map(|x| x / calls).collect())
        });
        Imatrix {
            columns: columns.collect(),
            datasets: Some(file.dataset)
                .filter(|d| !d.is_empty())
                .into_iter()
                .collect(),
            chunks: u64::from(file.chunks),
        }
    }

    fn from_gguf(gguf: &Gguf) -> Result<Imatrix> {
        if gguf.metadata.str("general.type") != Some("imatrix") {
            return Err(Error::Config(
                "the GGUF is no importance matrix (`general.type` says so)".into(),
            ));
        }
        let mut columns = BTreeMap::new();
        for t in &gguf.tensors {
            let Some(name) = t.name.strip_suffix(".in_sum2") else {
                continue;
            };
            let counts = gguf.tensors.get(&format!("{name}.counts"));
            let counts = counts.ok_or_else(|| wrong(name, "has no `.counts`".into()))?;
            let (mut sums, counts) = (flat(t)?, flat(counts)?);
            let width = sums.len() / counts.len().max(1);
            if width * counts.len() != sums.len() || width == 0 {
                return Err(wrong(
                    name,
                    format!("{} sums and {} counts", sums.len(), counts.len()),
                ));
            }
            for (sums, count) in sums.chunks_exact_mut(width).zip(&counts) {
                match *count > 0.0 {
                    true => sums.iter_mut().for_each(|x| *x /= count),
                    // An expert that was never asked.
                    false => sums.fill(1.0),
                }
            }
            columns.insert(name.to_owned(), sums);
        }
        let datasets = gguf.metadata.strings("imatrix.datasets");
        Ok(Imatrix {
            columns,
            datasets: datasets.map_or(Vec::new(), |d| d.iter().map(str::to_owned).collect()),
            chunks: gguf.metadata.u64("imatrix.chunk_count").unwrap_or(0),
        })
    }

    /// Weight matrices that it speaks of.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether it speaks of none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// The importance of the columns of a tensor `[.., rows, cols]`, expert after expert.
    pub(crate) fn of(&self, name: &str, cols: usize, experts: usize) -> Result<Option<&[f32]>> {
        let Some(found) = self.columns.get(name) else {
            return Ok(None);
        };
        if found.len() != cols * experts {
            return Err(wrong(
                name,
                format!(
                    "{} importances; the tensor has {cols} columns and {experts} matrices",
                    found.len()
                ),
            ));
        }
        Ok(Some(found))
    }

    /// Metadata that says what a file was quantised with.
    pub(crate) fn notes(&self, file: &str) -> Vec<(&'static str, Value)> {
        let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
        let mut notes = vec![
            ("quantize.imatrix.file", Value::String(file.to_owned())),
            ("quantize.imatrix.entries_count", count(self.len())),
        ];
        if let Some(dataset) = self.datasets.first() {
            notes.push(("quantize.imatrix.dataset", Value::String(dataset.clone())));
        }
        if self.chunks > 0 {
            notes.push(("quantize.imatrix.chunks_count", count(self.chunks as usize)));
        }
        notes
    }
}

fn wrong(name: &str, what: String) -> Error {
    Error::Tensor {
        name: name.to_owned(),
        what: format!("in the importance matrix: {what}"),
    }
}

/// A small tensor of any shape as f32.
fn flat(t: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; t.shape.iter().product()];
    kernels::dequantize(crate::tensors::storage(t)?, &t.data, &mut out)?;
    Ok(out)
}
