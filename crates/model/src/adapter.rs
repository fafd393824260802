//! Low-rank adapters: an argument of the matrix product, not a part of the matrix.
//!
//! y += scale * B(A x) (LoRA, arXiv:2106.09685, section 4.1). Chosen per chunk of a batch, so that
//! sequences with different adapters share one pass. DoRA (arXiv:2402.09353) multiplies each output
//! besides, by magnitude / length of the row of W + scale * B A; of the lengths, what does not depend
//! on the scale is worked out once, when the adapter is made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use files::Blob;
use kernels::{Kernels, Matrix, Product, Type, dequantize};

use crate::error::{Error, Result};
use crate::lora::{Lora, Part};
use crate::merge::{low_rank_row, same_table};
use crate::weights::{Linear, Weights};

/// The projections of a layer that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention output projection.
    O,
    /// Gate projection of the MLP.
    Gate,
    /// Up projection of the MLP.
    Up,
    /// Down projection of the MLP.
    Down,
}

/// A matrix that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Layer(usize, Target),
    /// The embedding table, taken as a product: `[hidden, vocab]`.
    Embed,
    Head,
}

/// The low-rank matrices of one adapter at a scale. Rows of q and k are in the rotary layout of the
/// model that it is used with.
#[derive(Debug, Default, Clone)]
pub struct Adapter {
    places: HashMap<Place, Scaled>,
}

/// What stands beside one matrix `[out, in]`, whatever the scale.
#[derive(Debug)]
struct Pair {
    rank: usize,
    shape: (usize, usize),
    /// `[rank, in]`, f32; of the embedding table `[in, rank]`
    a: Blob,
    /// `[out, rank]`, f32
    b: Blob,
    /// The adapter's own scale.
    scale: f64,
    dora: Option<Dora>,
}

/// What DoRA knows of each of a matrix's rows.
#[derive(Debug)]
struct Dora {
    magnitude: Vec<f32>,      // (out)
    bias: Option<Arc<[f32]>>, // (out)
    /// |W|², W·BA and |BA|² of each row, so that |W + s BA|² is known for any s.
    sums: Vec<[f64; 3]>, // (out)
}

#[derive(Debug, Clone)]
struct Scaled {
    pair: Arc<Pair>,
    scale: f32,
    turn: Option<Arc<Turn>>,
}

/// What DoRA does to the outputs at a scale.
#[derive(Debug)]
struct Turn {
    /// What they are multiplied by.
    factors: Vec<f32>, // (out)
    /// What is added then, where there is a bias, which must stay as it is.
    shift: Option<Vec<f32>>, // (out)
}

/// What an adapter is, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The largest rank of its matrices.
    pub rank: usize,
    /// Memory that its numbers take, whatever the number of scales.
    pub bytes: u64,
    /// Whether it is DoRA.
    pub dora: bool,
}

impl Adapter {
    /// An adapter that changes nothing yet.
    pub fn new() -> Adapter {
        Adapter::default()
    }

    /// Opens the adapter of a model at `path` and makes it ready at a scale (1: as it was trained).
    ///
    /// # Errors
    /// It cannot be read, does not fit the model, or has something that is not computed.
    pub fn open(path: &Path, weights: &Weights, scale: f32) -> Result<Adapter> {
        Adapter::of(Lora::open(path, &weights.config)?, weights, scale)
    }

    /// The adapter of a file beside these weights.
    ///
    /// # Errors
    /// It does not fit the weights.
    pub fn of(mut lora: Lora, weights: &Weights, scale: f32) -> Result<Adapter> {
        let base = &weights.config;
        lora.lay(base.rope.layout, base)?;
        let linear = |place, name: &str| {
            weights.linear(place).ok_or_else(|| Error::Tensor {
                name: name.into(),
                what: "the model has no such matrix to adapt".into(),
            })
        };
        for (place, copy) in &lora.copies {
            let l = linear(*place, &copy.name)?;
            let matrix = l.matrix()?;
            let row = |row: usize, out: &mut [f32]| Ok(dequantize(l.ty, matrix.row(row), out)?);
            same_table(copy, (l.rows, l.cols), l.ty, &row)?;
        }
        let mut adapter = Adapter::new();
        for part in lora.parts {
            let (place, name) = (part.place, part.name.clone());
            let pair = Pair::new(part, linear(place, &name)?, base.shape_of(place), weights)?;
            let scaled =
                Scaled::new(Arc::new(pair), scale).map_err(|what| Error::Tensor { name, what })?;
            adapter.places.insert(place, scaled);
        }
        Ok(adapter)
    }

    /// The same adapter at another scale. Copies no matrix.
    ///
    /// # Errors
    /// At this scale a row of DoRA has no direction.
    pub fn at(&self, scale: f32) -> Result<Adapter> {
        let one = |(place, s): (&Place, &Scaled)| {
            let scaled = Scaled::new(s.pair.clone(), scale).map_err(|what| Error::Tensor {
                name: format!("{place:?}"),
                what,
            })?;
            Ok((*place, scaled))
        };
        Ok(Adapter {
            places: self.places.iter().map(one).collect::<Result<_>>()?,
        })
    }

    /// Its size and kind.
    pub fn about(&self) -> AdapterInfo {
        let pairs = self.places.values().map(|s| &s.pair);
        AdapterInfo {
            rank: pairs.clone().map(|p| p.rank).max().unwrap_or(0),
            bytes: pairs.clone().map(|p| p.bytes()).sum(),
            dora: pairs.clone().any(|p| p.dora.is_some()),
        }
    }

    /// Whether adapters may be used one after the other: what DoRA does to a row depends on what was
    /// added to it before.
    ///
    /// # Errors
    /// A DoRA adapter comes after another one of the same matrix.
    pub fn check_order(adapters: &[Arc<Adapter>]) -> Result<()> {
        for (i, later) in adapters.iter().enumerate() {
            for (place, scaled) in &later.places {
                let mut before = adapters[..i].iter();
                if scaled.pair.dora.is_some() && before.any(|a| a.places.contains_key(place)) {
                    return Err(dora_comes_first());
                }
            }
        }
        Ok(())
    }

    /// Adds the matrices `a` `[rank, in]` and `b` `[out, rank]` for one projection of `weights`, at
    /// a scale.
    ///
    /// # Errors
    /// They do not fit the projection, or there is none.
    pub fn insert(
        &mut self,
        weights: &Weights,
        (layer, target): (usize, Target),
        rank: usize,
        (a, b): (&[f32], &[f32]),
        scale: f32,
    ) -> Result<()> {
        let (place, name) = (
            Place::Layer(layer, target),
            format!("{target:?} of layer {layer}"),
        );
        let wrong = |what: String| Error::Tensor {
            name: name.clone(),
            what,
        };
        let Some((out, inp)) = weights.config.shape_of(place) else {
            return Err(wrong("no such projection".into()));
        };
        let fits = |len: usize, side: usize| rank > 0 && rank.checked_mul(side) == Some(len);
        if !fits(a.len(), inp) || !fits(b.len(), out) {
            return Err(wrong(format!(
                "adapter matrices of {} and {} values do not fit [{rank}, {inp}] and [{out}, {rank}]",
                a.len(),
                b.len()
            )));
        }
        let pair = Pair {
            rank,
            shape: (out, inp),
            a: blob(a),
            b: blob(b),
            scale: 1.0,
            dora: None,
        };
        let scaled = Scaled::new(Arc::new(pair), scale).map_err(wrong)?;
        self.places.insert(place, scaled);
        Ok(())
    }

    /// Changes the rows `out` `[n, out]` of a matrix, which were computed from `x` `[n, in]`.
    pub(crate) fn apply(
        &self,
        k: &Kernels,
        place: Place,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let Some(scaled) = self.places.get(&place) else {
            return Ok(());
        };
        let (pair, n) = (&scaled.pair, out.len() / scaled.pair.shape.0);
        let (rows, cols) = pair.shape;
        if out.len() != n * rows || x.len() != n * cols {
            return Err(other_model(place));
        }
        let a = Matrix::new(Type::F32, pair.rank, cols, &pair.a)?;
        let mut low = vec![0.0; n * pair.rank];
        product(k, x, a, &mut low);
        scaled.raise(k, &low, out)
    }

    /// Changes the rows `out` `[n, hidden]` of the embedding table that are those of `ids`.
    pub(crate) fn embed(&self, k: &Kernels, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let Some(scaled) = self.places.get(&Place::Embed) else {
            return Ok(());
        };
        let (hidden, vocab) = scaled.pair.shape;
        if out.len() != ids.len() * hidden {
            return Err(other_model(Place::Embed));
        }
        let table = Matrix::new(Type::F32, vocab, scaled.pair.rank, &scaled.pair.a)?;
        let mut low = vec![0.0; ids.len() * scaled.pair.rank];
        k.embed(table, ids, &mut low)?;
        scaled.raise(k, &low, out)
    }
}

pub(crate) fn dora_comes_first() -> Error {
    Error::NotImplemented(
        "a DoRA adapter after another one of the same matrix; it must be the first of them".into(),
    )
}

fn other_model(place: Place) -> Error {
    Error::Batch(format!(
        "an adapter of {place:?} was made for another model"
    ))
}

fn blob(x: &[f32]) -> Blob {
    Blob::from_vec(x.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// out = W x, all f32
fn product(k: &Kernels, x: &[f32], w: Matrix<'_>, out: &mut [f32]) {
    let x = k.activations(x, w.cols(), &[Type::F32]);
    k.matmul(&x, &mut [Product { w, bias: None, out }]);
}

impl Scaled {
    fn new(pair: Arc<Pair>, scale: f32) -> std::result::Result<Scaled, String> {
        let s = pair.scale * f64::from(scale);
        if !(s as f32).is_finite() {
            return Err(format!("the scale {s} is not finite"));
        }
        let turn = pair.dora.as_ref().map(|d| d.at(s)).transpose()?;
        Ok(Scaled {
            scale: s as f32,
            turn: turn.map(Arc::new),
            pair,
        })
    }

    /// out += scale * B low, and what DoRA does then
    fn raise(&self, k: &Kernels, low: &[f32], out: &mut [f32]) -> Result<()> {
        let rows = self.pair.shape.0;
        let b = Matrix::new(Type::F32, rows, self.pair.rank, &self.pair.b)?;
        let mut high = vec![0.0; out.len()];
        product(k, low, b, &mut high);
        k.add_scaled(out, &high, self.scale);
        if let Some(turn) = &self.turn {
            k.scale_columns(out, &turn.factors);
            if let Some(shift) = &turn.shift {
                out.chunks_exact_mut(rows).for_each(|row| k.add(row, shift));
            }
        }
        Ok(())
    }
}

impl Pair {
    fn bytes(&self) -> u64 {
        let dora = self.dora.as_ref();
        let rows = dora.map_or(0, |d| d.magnitude.len() * 4 + d.sums.len() * 24);
        (self.a.len() + self.b.len() + rows) as u64
    }

    fn new(
        part: Part,
        linear: &Linear,
        shape: Option<(usize, usize)>,
        weights: &Weights,
    ) -> Result<Pair> {
        let dora = match part.magnitude {
            None => None,
            Some(magnitude) => Some(Dora {
                sums: sums(
                    linear,
                    &part.a,
                    &part.b,
                    part.rank,
                    weights.kernels.threads(),
                )?,
                bias: linear.bias.clone(),
                magnitude,
            }),
        };
        Ok(Pair {
            rank: part.rank,
            shape: shape.unwrap_or((linear.rows, linear.cols)),
            a: blob(&part.a),
            b: blob(&part.b),
            scale: part.scale,
            dora,
        })
    }
}

impl Dora {
    /// (y - bias) * factor + bias, for outputs y
    fn at(&self, s: f64) -> std::result::Result<Turn, String> {
        let factor = |(m, [w, wd, d]): (&f32, &[f64; 3])| {
            let length = (w + 2.0 * s * wd + s * s * d).max(0.0).sqrt();
            (f64::from(*m) / length) as f32
        };
        let factors: Vec<f32> = self.magnitude.iter().zip(&self.sums).map(factor).collect();
        if let Some(row) = factors.iter().position(|f| !f.is_finite()) {
            return Err(format!("row {row} of the sum has no direction"));
        }
        let shift = |(b, f): (&f32, &f32)| b * (1.0 - f);
        let bias = self.bias.as_ref();
        Ok(Turn {
            shift: bias.map(|bias| bias.iter().zip(&factors).map(shift).collect()),
            factors,
        })
    }
}

/// |W|², W·BA and |BA|² of each row of a matrix.
fn sums(
    linear: &Linear,
    a: &[f32],
    b: &[f32],
    rank: usize,
    threads: usize,
) -> Result<Vec<[f64; 3]>> {
    let matrix = linear.matrix()?;
    let mut found = vec![[0.0; 3]; linear.rows];
    let each = linear.rows.div_ceil(threads.max(1)).max(1);
    let work = |first: usize, found: &mut [[f64; 3]]| -> Result<()> {
        let (mut w, mut d) = (vec![0.0; linear.cols], vec![0.0; linear.cols]);
        for (row, found) in (first..).zip(found) {
            dequantize(linear.ty, matrix.row(row), &mut w)?;
            low_rank_row(a, &b[row * rank..][..rank], &mut d);
            let dot = |x: &[f32], y: &[f32]| -> f64 {
                x.iter()
                    .zip(y)
                    .map(|(x, y)| f64::from(*x) * f64::from(*y))
                    .sum()
            };
            *found = [dot(&w, &w), dot(&w, &d), dot(&d, &d)];
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let parts = found.chunks_mut(each).enumerate();
        let running: Vec<_> = parts
            .map(|(i, part)| scope.spawn(move || work(i * each, part)))
            .collect();
        running.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(found)
}
