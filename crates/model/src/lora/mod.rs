//! Adapters as their files have them: which matrix, two factors of low rank, a scale.
//!
//! W' = W + s B A (LoRA, arXiv:2106.09685, section 4.1), s = alpha / rank or, of rsLoRA
//! (arXiv:2312.03732), alpha / sqrt(rank). DoRA (arXiv:2402.09353, section 4.1) then gives each row
//! of W' a length of its own.
//!
//! What it knows: how PEFT and llama.cpp lay adapters out. What it must not know: how they are used
//! ([`crate::Adapter`] beside the weights, `merge` in their place).

mod gguf;
mod peft;

use std::collections::BTreeMap;
use std::path::Path;

use files::gguf::Gguf;
use files::peft::PeftDir;
use files::{Kind, Tensor};
use kernels::RopeLayout;

use crate::adapter::{Place, Target};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::names::Names;
use crate::source::Order;
use crate::tensors::{storage, vector};

/// A low-rank adapter of one model, all numbers as f32.
#[derive(Debug, Clone)]
pub struct Lora {
    pub(crate) parts: Vec<Part>,
    /// Tables of the base that came with the adapter, under the name of their tensor: they must be
    /// what the base has.
    pub(crate) copies: Vec<(Place, Tensor)>,
    /// How the rows of queries and keys lie.
    layout: RopeLayout,
}

/// What an adapter adds to one matrix `[out, in]`: `scale * B A`.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Name of its first tensor, for messages.
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) rank: usize,
    pub(crate) a: Vec<f32>, // (rank, in); of the embedding table (in, rank), one row a token
    pub(crate) b: Vec<f32>, // (out, rank)
    /// alpha over the rank, or over its root.
    pub(crate) scale: f64,
    /// DoRA: the length of each row of the sum.
    pub(crate) magnitude: Option<Vec<f32>>, // (out)
}

/// What stands behind the name of a matrix.
#[derive(Clone, Copy, PartialEq)]
enum End {
    A,
    B,
    Magnitude,
}

/// The tensors of one matrix.
type Found<'t> = [Option<&'t Tensor>; 3];

impl Lora {
    /// Opens an adapter of a model: a GGUF, or a directory of PEFT's.
    ///
    /// # Errors
    /// It cannot be read, was made for another model, or has something that is not computed.
    pub fn open(path: &Path, base: &Config) -> Result<Lora> {
        match files::detect(path)? {
            Kind::Gguf => Lora::from_gguf(&Gguf::open(path)?, base),
            Kind::PeftDir => Lora::from_peft(&PeftDir::open(path)?, base),
            Kind::HfDir if files::peft::is_peft_dir(path) => {
                Lora::from_peft(&PeftDir::open(path)?, base)
            }
            kind => Err(Error::Open {
                path: path.display().to_string(),
                what: format!(
                    "is {}; an adapter is a GGUF file, or a directory with adapter_config.json and \
                     adapter_model.safetensors",
                    kind.describe()
                ),
            }),
        }
    }

    /// Brings the rows of queries and keys into a layout.
    pub(crate) fn lay(&mut self, layout: RopeLayout, base: &Config) -> Result<()> {
        let head = base.head_dim;
        let order = match (self.layout, layout) {
            (a, b) if a == b => return Ok(()),
            _ if base.rope.dim != head => {
                return Err(Error::NotImplemented(format!(
                    "an adapter in another row order for heads of {head} values of which {} turn",
                    base.rope.dim
                )));
            }
            (_, RopeLayout::Interleaved) => Order::Pairs(head),
            (_, RopeLayout::HalfSplit) => Order::Halves(head),
        };
        for part in &mut self.parts {
            if matches!(part.place, Place::Layer(_, Target::Q | Target::K)) {
                part.b = moved(&part.b, part.rank, order);
                part.magnitude = part.magnitude.as_ref().map(|m| moved(m, 1, order));
            }
        }
        self.layout = layout;
        Ok(())
    }
}

/// Rows of `cols` values in another order.
fn moved(x: &[f32], cols: usize, order: Order) -> Vec<f32> {
    let rows = 0..x.len() / cols;
    let row = |r: usize| &x[order.from(r) * cols..][..cols];
    rows.flat_map(row).copied().collect()
}

/// The matrix that `names` call so, without `.weight`.
pub(crate) fn place_of(stem: &str, names: &Names) -> Option<Place> {
    let bare = stem.strip_prefix(names.prefix).unwrap_or(stem);
    if bare == names.embed {
        return Some(Place::Embed);
    }
    if [stem, bare].contains(&names.head) {
        return Some(Place::Head);
    }
    let (layer, part) = bare.strip_prefix(names.block)?.split_once('.')?;
    let (_, target) = TARGETS
        .iter()
        .find(|(at, _)| !names.parts[*at].is_empty() && names.parts[*at] == part)?;
    // A number has one form.
    let number: usize = layer.parse().ok()?;
    (number.to_string() == layer).then_some(Place::Layer(number, *target))
}

/// Where a block's projections stand in [`Names::parts`].
const TARGETS: [(usize, Target); 7] = [
    (1, Target::Q),
    (2, Target::K),
    (3, Target::V),
    (4, Target::O),
    (6, Target::Gate),
    (7, Target::Up),
    (8, Target::Down),
];

/// The parts of an adapter out of its tensors. `scale` is asked with a place and its rank.
fn parts(
    found: BTreeMap<Place, Found<'_>>,
    base: &Config,
    scale: &dyn Fn(Place, usize) -> Result<f64>,
) -> Result<Vec<Part>> {
    let part = |(place, [a, b, magnitude]): (Place, Found<'_>)| {
        let any = a.or(b).or(magnitude).map(|t| t.name.clone());
        let name = any.unwrap_or_default();
        let wrong = |what: String| Error::Tensor {
            name: name.clone(),
            what,
        };
        let Some((out, inp)) = base.shape_of(place) else {
            return Err(wrong("the model has no such matrix to adapt".into()));
        };
        let (Some(a), Some(b)) = (a, b) else {
            let missing = if a.is_none() { "A" } else { "B" };
            return Err(wrong(format!("its counterpart {missing} is missing")));
        };
        // The embedding's A may lie either way.
        let rank = match (&b.shape[..], &a.shape[..]) {
            (&[o, r], &[ar, i]) if (o, ar, i) == (out, r, inp) && r > 0 => r,
            (&[o, r], &[i, ar]) if place == Place::Embed && (o, ar, i) == (out, r, inp) => r,
            _ => {
                return Err(wrong(format!(
                    "A {:?} and B {:?} are not [rank, {inp}] and [{out}, rank]",
                    a.shape, b.shape
                )));
            }
        };
        let lengths = |m: &Tensor| match m.shape.iter().product::<usize>() == out {
            true => numbers(m),
            false => Err(wrong(format!("{:?} lengths of {out} rows", m.shape))),
        };
        let turned = place == Place::Embed && a.shape != [inp, rank];
        let magnitude = magnitude.map(lengths).transpose()?;
        if place == Place::Embed && magnitude.is_some() {
            return Err(Error::NotImplemented("DoRA of the embedding table".into()));
        }
        let values = numbers(a)?;
        Ok(Part {
            place,
            rank,
            a: if turned {
                transposed(&values, inp)
            } else {
                values
            },
            b: numbers(b)?,
            scale: scale(place, rank)?,
            magnitude,
            name,
        })
    };
    found.into_iter().map(part).collect()
}

/// Rows of `cols` values as columns.
pub(crate) fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
    let rows = x.len() / cols.max(1);
    (0..x.len())
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

/// A tensor's values as f32, each of them a finite number.
pub(crate) fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    let len = t.shape.iter().product();
    let flat = Tensor {
        shape: vec![len],
        ..t.clone()
    };
    // Blocks are whole in each row, so they are in all rows together.
    let values = vector(&flat, Some(len))?;
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::Tensor {
            name: t.name.clone(),
            what: format!(
                "has {} as its number {at} ({})",
                values[at],
                storage(t)?.name()
            ),
        }),
    }
}
