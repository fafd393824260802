//! Adapters merged into the weights of a file that is being written: W' = W + s B A, row by row, each
//! row then at the length that DoRA gives it.

use std::ops::Range;

use files::Tensor;
use kernels::{Type, dequantize};

use crate::adapter::{Place, dora_comes_first};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::{Lora, place_of, transposed};
use crate::names::Names;
use crate::source::{Piece, Source};
use crate::tensors::storage;

/// What is added to a tensor; its rows lie as they will in the new file.
#[derive(Debug, Clone)]
pub(crate) struct Merge {
    rank: usize,
    a: Vec<f32>, // (rank, cols)
    b: Vec<f32>, // (rows, rank)
    scale: f32,
    magnitude: Option<Vec<f32>>, // (rows)
}

/// d = b A, for one row `b` of as many values as `a` has rows of `d`'s width.
pub(crate) fn low_rank_row(a: &[f32], b: &[f32], d: &mut [f32]) {
    d.fill(0.0);
    for (a, b) in a.chunks_exact(d.len()).zip(b) {
        d.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
    }
}

/// How far a copy of a table may be from the base's, as a share of its root mean square: the rounding
/// of a float, or of a quantised type.
const ROUNDED: f64 = 0.01;
const QUANTIZED: f64 = 0.2;

/// Checks that a table that came with an adapter is the base's, whose rows `row` gives.
pub(crate) fn same_table(
    copy: &Tensor,
    (rows, cols): (usize, usize),
    ty: Type,
    row: &dyn Fn(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let wrong = |what: String| Error::Tensor {
        name: copy.name.clone(),
        what,
    };
    if copy.shape != [rows, cols] {
        return Err(wrong(format!(
            "has shape {:?}, and the base's table [{rows}, {cols}]: it was made for another \
             vocabulary",
            copy.shape
        )));
    }
    let (copied, each) = (storage(copy)?, copy.data.len() / rows.max(1));
    let (mut own, mut its) = (vec![0.0; cols], vec![0.0; cols]);
    let (mut off, mut all) = (0.0, 0.0);
    for (r, bytes) in copy.data.chunks_exact(each.max(1)).enumerate() {
        row(r, &mut own)?;
        dequantize(copied, bytes, &mut its)?;
        for (a, b) in own.iter().zip(&its) {
            off += f64::from(a - b).powi(2);
            all += f64::from(*a).powi(2);
        }
    }
    let limit = if ty.is_float() { ROUNDED } else { QUANTIZED };
    match off.sqrt() <= limit * all.sqrt() {
        true => Ok(()),
        false => Err(Error::NotImplemented(format!(
            "the trained table `{}` of an adapter",
            copy.name
        ))),
    }
}

impl Source {
    /// Merges adapters into the tensors, one after the other, each at its scale. `names` are those of
    /// the new file.
    ///
    /// # Errors
    /// An adapter has a matrix for which there is no tensor, or that stands for two.
    pub(crate) fn merge(
        &mut self,
        adapters: Vec<(Lora, f32)>,
        base: &Config,
        names: &Names,
    ) -> Result<()> {
        let place = |p: &Piece| place_of(p.tensor.name.strip_suffix(".weight")?, names);
        let places: Vec<Option<Place>> = self.tensors.iter().map(place).collect();
        let at = |place: Place, name: &str| {
            let found = places.iter().position(|p| *p == Some(place));
            found.ok_or_else(|| Error::Tensor {
                name: name.into(),
                what: "the model has no tensor that it could be merged into".into(),
            })
        };
        for (mut adapter, scale) in adapters {
            adapter.lay(names.rotary, base)?;
            for (place, copy) in &adapter.copies {
                let place = if base.tied { Place::Embed } else { *place };
                self.tensors[at(place, &copy.name)?].compare(copy)?;
            }
            for part in adapter.parts {
                let ends = matches!(part.place, Place::Embed | Place::Head);
                if ends && base.tied {
                    return Err(Error::NotImplemented(format!(
                        "merging `{}`, for embedding table and head are one tensor",
                        part.name
                    )));
                }
                let piece = &mut self.tensors[at(part.place, &part.name)?];
                if part.magnitude.is_some() && !piece.merges.is_empty() {
                    return Err(dora_comes_first());
                }
                let (a, b) = match part.place {
                    // Its rows are the tokens.
                    Place::Embed => (transposed(&part.b, part.rank), part.a),
                    _ => (part.a, part.b),
                };
                piece.merges.push(Merge {
                    rank: part.rank,
                    a,
                    b,
                    scale: (part.scale * f64::from(scale)) as f32,
                    magnitude: part.magnitude,
                });
            }
        }
        Ok(())
    }
}

impl Piece {
    /// Brings the values of some rows, as the old file has them, to what they are with all adapters.
    pub(crate) fn merge(&self, rows: Range<usize>, values: &mut [f32]) {
        let cols = self.cols();
        let mut d = vec![0.0; cols];
        for m in &self.merges {
            for (row, values) in rows.clone().zip(values.chunks_exact_mut(cols)) {
                low_rank_row(&m.a, &m.b[row * m.rank..][..m.rank], &mut d);
                values
                    .iter_mut()
                    .zip(&d)
                    .for_each(|(v, d)| *v += m.scale * d);
                if let Some(magnitude) = &m.magnitude {
                    let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
                    let factor = (f64::from(magnitude[row]) / square.sqrt()) as f32;
                    values.iter_mut().for_each(|v| *v *= factor);
                }
            }
        }
    }

    /// Checks that a table is this one.
    fn compare(&self, copy: &Tensor) -> Result<()> {
        let ty = storage(&self.tensor)?;
        let row = |row: usize, out: &mut [f32]| Ok(dequantize(ty, &self.bytes(row..row + 1), out)?);
        same_table(copy, (self.rows(), self.cols()), ty, &row)
    }
}
