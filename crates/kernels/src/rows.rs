//! Operations on rows that only some architectures need: LayerNorm, norms without a gain, factors
//! per row, and what a mixture of experts does with rows.
//!
//! Plain code without fused products, the same on every level; none of it is where the time goes.

use crate::Kernels;
use crate::buffer::Shared;
use crate::roof::whole_rows;

/// Partial sums of a row, so that the compiler can use vectors; in a fixed order.
const LANES: usize = 16;

/// How a router's logits become weights of the experts that it picks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Softmax over the picked experts; the weights scale what the experts put out.
    Softmax,
    /// The sigmoid of each logit; the weights scale what goes into the experts.
    Sigmoid,
}

/// The experts of each row, best first, with their weights: both `[rows, used]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    /// Experts, counted from 0.
    pub experts: Vec<usize>,
    /// Weight of each.
    pub weights: Vec<f32>,
}

impl Kernels {
    /// `out = gain · (x - mean(x)) / sqrt(var(x) + eps) + bias` for each row of `gain.len()` values
    /// (LayerNorm, arXiv:1607.06450). Panics if a length does not fit.
    pub fn layer_norm(&self, x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "values in and out of a norm");
        assert_eq!(gain.len(), bias.len(), "gain and bias of a norm");
        let cols = gain.len();
        let rows = whole_rows(x.len(), cols);
        let out = Shared::new(out);
        self.rows(rows, cols, &|row| {
            let x = &x[row * cols..(row + 1) * cols];
            let mean = sum(x, |v| v) / cols as f32;
            let variance = sum(x, |v| (v - mean) * (v - mean)) / cols as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            // SAFETY: each row is given to one task.
            let out = unsafe { out.part(row * cols, cols) };
            for (((out, x), gain), bias) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                *out = (x - mean) * scale * gain + bias;
            }
        });
    }

    /// `x = x / sqrt(mean(x²) + eps)` for each row of `cols` values: RMSNorm without a gain. Panics
    /// unless `x` is whole rows.
    pub fn unit_rms_norm(&self, x: &mut [f32], cols: usize, eps: f32) {
        let rows = whole_rows(x.len(), cols);
        let x = Shared::new(x);
        self.rows(rows, cols, &|row| {
            // SAFETY: each row is given to one task.
            let x = unsafe { x.part(row * cols, cols) };
            let scale = 1.0 / (sum(x, |v| v * v) / cols as f32 + eps).sqrt();
            x.iter_mut().for_each(|x| *x *= scale);
        });
    }

    /// Multiplies each row of `cols` values by its own factor. Panics if a length does not fit.
    pub fn scale_rows(&self, x: &mut [f32], cols: usize, factors: &[f32]) {
        let rows = whole_rows(x.len(), cols);
        assert_eq!(rows, factors.len(), "factors of {rows} rows");
        for (row, factor) in x.chunks_exact_mut(cols).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Multiplies each column of rows of `factors.len()` values by its own factor. Panics unless `x` is
    /// whole rows.
    pub fn scale_columns(&self, x: &mut [f32], factors: &[f32]) {
        whole_rows(x.len(), factors.len());
        for row in x.chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }

    /// `out[i] = x[rows[i]]`, rows of `cols` values. Panics if a length does not fit or a row is not
    /// there.
    pub fn gather_rows(&self, x: &[f32], cols: usize, rows: &[usize], out: &mut [f32]) {
        assert_eq!(whole_rows(out.len(), cols), rows.len(), "rows gathered");
        for (out, row) in out.chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        }
    }

    /// `out[rows[i]] = x[i]`: undoes [`Kernels::gather_rows`]. Panics as that does.
    pub fn scatter_rows(&self, x: &[f32], cols: usize, rows: &[usize], out: &mut [f32]) {
        assert_eq!(whole_rows(x.len(), cols), rows.len(), "rows scattered");
        for (x, row) in x.chunks_exact(cols).zip(rows) {
            out[row * cols..(row + 1) * cols].copy_from_slice(x);
        }
    }

    /// `out[rows[i]] += factors[i] · x[i]`, in the order of `i`, rows of `cols` values. Panics if a
    /// length does not fit or a row is not there.
    pub fn add_rows(
        &self,
        out: &mut [f32],
        cols: usize,
        rows: &[usize],
        factors: &[f32],
        x: &[f32],
    ) {
        let n = whole_rows(x.len(), cols);
        assert!(n == rows.len() && n == factors.len(), "{n} rows to add");
        for ((x, row), factor) in x.chunks_exact(cols).zip(rows).zip(factors) {
            let out = &mut out[row * cols..(row + 1) * cols];
            for (out, x) in out.iter_mut().zip(x) {
                *out += factor * x;
            }
        }
    }

    /// Picks the `used` largest of each row of `experts` logits, the first of equals first, and
    /// weighs them. Panics unless `logits` is whole rows and `used` is 1 to `experts`.
    pub fn route(&self, logits: &[f32], experts: usize, used: usize, gate: Gate) -> Routes {
        let rows = whole_rows(logits.len(), experts);
        assert!((1..=experts).contains(&used), "{used} of {experts} experts");
        let mut routes = Routes {
            experts: Vec::with_capacity(rows * used),
            weights: Vec::with_capacity(rows * used),
        };
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for row in logits.chunks_exact(experts) {
            order.clear();
            order.extend(0..experts);
            // A stable sort: equals stay in their order.
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            let picked = &order[..used];
            routes.experts.extend(picked);
            let value = |e: &usize| f64::from(row[*e]);
            match gate {
                Gate::Sigmoid => {
                    let sigmoid = |e| (1.0 / (1.0 + (-value(e)).exp())) as f32;
                    routes.weights.extend(picked.iter().map(sigmoid));
                }
                Gate::Softmax => {
                    let top = value(&picked[0]);
                    let all: f64 = picked.iter().map(|e| (value(e) - top).exp()).sum();
                    let weight = |e| ((value(e) - top).exp() / all) as f32;
                    routes.weights.extend(picked.iter().map(weight));
                }
            }
        }
        routes
    }
}

/// Sum of `f` over a row, lane by lane and then over the lanes.
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for part in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compute, Level};

    fn kernels(threads: usize) -> Kernels {
        Kernels::new(Level::Scalar, Compute::F32, threads).expect("the plain level is everywhere")
    }

    /// Some values around `shift`, as long as is asked.
    fn wave(n: usize, shift: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() + shift).collect()
    }

    #[test]
    fn norms_follow_their_formulas() {
        for cols in [1, 7, 16, 100] {
            let (x, eps) = (wave(3 * cols, 0.5), 1e-5);
            let (gain, bias) = (wave(cols, 1.0), wave(cols, -0.2));
            let mut out = vec![0.0; x.len()];
            kernels(2).layer_norm(&x, &gain, &bias, eps, &mut out);
            let mut unit = x.clone();
            kernels(1).unit_rms_norm(&mut unit, cols, eps);
            for (i, x) in x.chunks(cols).enumerate() {
                let mean = |f: &dyn Fn(f64) -> f64| {
                    x.iter().map(|v| f(f64::from(*v))).sum::<f64>() / cols as f64
                };
                let middle = mean(&|v| v);
                let variance = mean(&|v| (v - middle).powi(2));
                let square = mean(&|v| v * v);
                for (j, v) in x.iter().enumerate() {
                    let at = i * cols + j;
                    let scaled = (f64::from(*v) - middle) / (variance + f64::from(eps)).sqrt();
                    let want = scaled * f64::from(gain[j]) + f64::from(bias[j]);
                    assert!((f64::from(out[at]) - want).abs() < 1e-5, "{cols}: {at}");
                    let want = f64::from(*v) / (square + f64::from(eps)).sqrt();
                    assert!((f64::from(unit[at]) - want).abs() < 1e-5, "{cols}: {at}");
                }
            }
        }
    }

    #[test]
    fn routes_are_the_largest_first_with_their_weights() {
        let logits = [0.5, 2.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0];
        let k = kernels(1);
        let one = k.route(&logits, 4, 1, Gate::Sigmoid);
        assert_eq!(one.experts, [1, 0], "the first of equals");
        assert!((one.weights[0] - 0.880_797).abs() < 1e-6 && one.weights[1] == 0.5);
        let two = k.route(&logits, 4, 3, Gate::Softmax);
        assert_eq!(two.experts, [1, 3, 0, 0, 1, 2]);
        let e = (-1.5f32).exp();
        let want = [1.0 / (2.0 + e), 1.0 / (2.0 + e), e / (2.0 + e)];
        for (got, want) in two.weights.iter().zip(want) {
            assert!((got - want).abs() < 1e-6);
        }
        let odd = k.route(&[f32::NAN, 1.0], 2, 2, Gate::Softmax);
        assert_eq!(odd.experts, [0, 1], "no panic on what is no number");
    }

    #[test]
    fn rows_are_gathered_scattered_and_added() {
        let k = kernels(1);
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut some = [0.0; 6];
        k.gather_rows(&x, 2, &[2, 0, 1], &mut some);
        assert_eq!(some, [5.0, 6.0, 1.0, 2.0, 3.0, 4.0]);
        let mut back = [0.0; 6];
        k.scatter_rows(&some, 2, &[2, 0, 1], &mut back);
        assert_eq!(back, x);
        k.scale_rows(&mut back, 2, &[1.0, 0.5, 2.0]);
        assert_eq!(back, [1.0, 2.0, 1.5, 2.0, 10.0, 12.0]);
        let mut out = [1.0; 4];
        k.add_rows(&mut out, 2, &[1, 1, 0], &[1.0, 2.0, 3.0], &x);
        assert_eq!(out, [16.0, 19.0, 8.0, 11.0]);
    }
}
