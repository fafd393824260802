//! Low-rank adapters: an argument of the matrix product, not a part of the matrix.
//!
//! y += scale * B(A x) (LoRA, arXiv:2106.09685, section 4.1). Chosen per chunk of a batch, so
//! that sequences with different adapters share one pass.

use std::collections::HashMap;

use files::Blob;
use kernels::{Kernels, Matrix, Product, Type};

use crate::error::{Error, Result};
use crate::weights::Weights;

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

#[derive(Debug)]
struct Pair {
    rank: usize,
    /// `[rank, in]`, f32
    a: Blob,
    /// `[out, rank]`, f32
    b: Blob,
}

/// The low-rank matrices of one adapter. Rows of q and k are in the rotary layout of the model
/// that it is used with.
#[derive(Debug, Default)]
pub struct Adapter {
    pairs: HashMap<(usize, Target), Pair>,
}

impl Adapter {
    /// An adapter that changes nothing yet.
    pub fn new() -> Adapter {
        Adapter::default()
    }

    /// Adds the matrices `a` `[rank, in]` and `b` `[out, rank]` for one projection of `weights`.
    pub fn insert(
        &mut self,
        weights: &Weights,
        layer: usize,
        target: Target,
        rank: usize,
        a: &[f32],
        b: &[f32],
    ) -> Result<()> {
        let name = format!("{target:?} of layer {layer}");
        let Some((out, inp)) = weights.shape_of(layer, target) else {
            return Err(Error::Tensor {
                name,
                what: "no such projection".into(),
            });
        };
        if rank == 0
            || Some(a.len()) != rank.checked_mul(inp)
            || Some(b.len()) != rank.checked_mul(out)
        {
            let what = format!(
                "adapter matrices of {} and {} values do not fit [{rank}, {inp}] and [{out}, {rank}]",
                a.len(),
                b.len()
            );
            return Err(Error::Tensor { name, what });
        }
        let blob = |x: &[f32]| Blob::from_vec(x.iter().flat_map(|v| v.to_le_bytes()).collect());
        self.pairs.insert(
            (layer, target),
            Pair {
                rank,
                a: blob(a),
                b: blob(b),
            },
        );
        Ok(())
    }

    /// Adds `scale * B(A x)` for the rows `x` `[n, in]` to `out` `[n, out]`.
    pub(crate) fn apply(
        &self,
        k: &Kernels,
        at: (usize, Target),
        scale: f32,
        x: &[f32],
        out: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let Some(pair) = self.pairs.get(&at) else {
            return Ok(());
        };
        let (inp, cols) = (x.len() / n, out.len() / n);
        let a = Matrix::new(Type::F32, pair.rank, inp, &pair.a)?;
        let b = Matrix::new(Type::F32, cols, pair.rank, &pair.b)?;
        let mut low = vec![0.0; n * pair.rank];
        let mut high = vec![0.0; out.len()];
        k.matmul(
            &k.activations(x, inp, &[Type::F32]),
            &mut [Product {
                w: a,
                bias: None,
                out: &mut low,
            }],
        );
        k.matmul(
            &k.activations(&low, pair.rank, &[Type::F32]),
            &mut [Product {
                w: b,
                bias: None,
                out: &mut high,
            }],
        );
        k.add_scaled(out, &high, scale);
        Ok(())
    }
}
