//! Making an importance matrix: a probe that adds up the squares of what each weight matrix is
//! multiplied by, column by column.

use std::collections::BTreeMap;
use std::path::Path;

use files::gguf::{Array, Metadata, Value, write};
use files::{Blob, Dtype, Tensor, imatrix};

use crate::error::Result;
use crate::probe::{At, Probe, Site};

/// Sums over the tokens that a model has seen.
#[derive(Debug, Default)]
pub struct Collector {
    /// For each weight matrix the sums of squares, and of how many rows.
    sums: BTreeMap<String, (Vec<f64>, u64)>,
    /// Whether the head counts.
    head: bool,
    /// Chunks of text so far, and the tokens of one.
    pub chunks: (u32, u32),
}

/// The matrices that a place is the input of, as a GGUF names them.
fn read_by(site: Site) -> &'static [&'static str] {
    match site {
        Site::AttnIn => &["attn_q", "attn_k", "attn_v"],
        Site::Z => &["attn_output"],
        Site::MlpIn => &["ffn_gate", "ffn_up"],
        Site::MlpPost => &["ffn_down"],
        _ => &[],
    }
}

impl Collector {
    /// `head`: output.weight is to be in the matrix as well.
    pub fn new(head: bool) -> Collector {
        Collector {
            head,
            ..Collector::default()
        }
    }

    fn add(&mut self, name: String, cols: usize, values: &[f32]) {
        let (sums, rows) = self
            .sums
            .entry(name)
            .or_insert_with(|| (vec![0.0; cols], 0));
        kernels::add_squares(values, sums);
        *rows += (values.len() / cols) as u64;
    }

    /// Weight matrices seen so far.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Writes the matrix: in the old form if `old`, else as a GGUF. `dataset` names the text.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, dataset: &str, old: bool) -> Result<()> {
        if old {
            return Ok(imatrix::write(path, &self.old(dataset))?);
        }
        let mut m = Metadata::new();
        let datasets = Array::String([dataset].into_iter().collect());
        m.set("general.type", Value::String("imatrix".into()));
        m.set("imatrix.datasets", Value::Array(datasets));
        m.set("imatrix.chunk_count", Value::U32(self.chunks.0));
        m.set("imatrix.chunk_size", Value::U32(self.chunks.1));
        let mut tensors = Vec::new();
        for (name, (sums, rows)) in &self.sums {
            let sums: Vec<f32> = sums.iter().map(|x| *x as f32).collect();
            for (end, shape, values) in [
                ("in_sum2", vec![1, sums.len()], &sums[..]),
                ("counts", vec![1, 1], &[*rows as f32]),
            ] {
                let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                let blob = Blob::from_vec(bytes);
                tensors.push(Tensor::new(
                    format!("{name}.{end}"),
                    Dtype::F32,
                    shape,
                    blob,
                )?);
            }
        }
        Ok(write(path, &m, &tensors)?)
    }

    /// Means, times the chunks: what readers of the old form expect.
    fn old(&self, dataset: &str) -> imatrix::Imatrix {
        let calls = self.chunks.0.max(1);
        let entries = self.sums.iter().map(|(name, (sums, rows))| {
            let scale = f64::from(calls) / (*rows).max(1) as f64;
            imatrix::Entry {
                name: name.clone(),
                calls,
                values: sums.iter().map(|x| (x * scale) as f32).collect(),
            }
        });
        imatrix::Imatrix {
            entries: entries.collect(),
            chunks: self.chunks.0,
            dataset: dataset.to_owned(),
        }
    }
}

impl Probe for Collector {
    const ON: bool = true;

    fn wants(&self, site: Site, _: usize) -> bool {
        !read_by(site).is_empty() || self.head && site == Site::FinalNorm
    }

    fn see(&mut self, at: At<'_>, values: &mut [f32]) {
        let rows = at.shape.first().copied().unwrap_or_default();
        if rows == 0 {
            return;
        }
        let cols = values.len() / rows;
        if at.site == Site::FinalNorm && self.head {
            self.add("output.weight".into(), cols, values);
        }
        for part in read_by(at.site) {
            self.add(format!("blk.{}.{part}.weight", at.layer), cols, values);
        }
    }
}
