//! From f32 to every storage type.
//!
//! A block is quantised alone, so rows may be split over threads and the bytes are the same. What is
//! minimised is the sum of importance · (w - ŵ)². Without an importance the formats that have a
//! published rule of rounding (floats, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, the ternary ones, Q1_0,
//! Q2_0) keep it to the byte; everything else is searched for: scales on a grid of candidates, each
//! refined by least squares, then the scales' own integers, then the values again.
//!
//! Knows no model: which tensor gets which type is the business of its caller.

mod codebook;
mod kquants;
mod legacy;
mod search;
mod twolevel;

use crate::types::matrix_bytes;
use crate::{Error, Type, dequantize};
use half::{bf16, f16};

/// How far quantised values are from those given.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    /// Values counted.
    pub count: u64,
    /// Sum of (w - ŵ)².
    pub error: f64,
    /// Sum of w².
    pub size: f64,
    /// Largest |w - ŵ|.
    pub largest: f32,
}

impl Deviation {
    /// Root of the mean square error.
    pub fn rmse(&self) -> f64 {
        (self.error / self.count.max(1) as f64).sqrt()
    }

    /// The error relative to the values: the root of error / size; 0 for values of 0.
    pub fn relative(&self) -> f64 {
        if self.size > 0.0 {
            (self.error / self.size).sqrt()
        } else {
            0.0
        }
    }

    /// Adds what was found of other values.
    pub fn add(&mut self, other: &Deviation) {
        self.count += other.count;
        self.error += other.error;
        self.size += other.size;
        self.largest = self.largest.max(other.largest);
    }

    /// Compares values one by one. A value that is not finite, in either, makes the sums so too.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn of(given: &[f32], stored: &[f32]) -> Deviation {
        assert_eq!(given.len(), stored.len());
        let mut sum = Deviation {
            count: given.len() as u64,
            ..Deviation::default()
        };
        for (w, q) in given.iter().zip(stored) {
            let error = w - q;
            sum.error += f64::from(error) * f64::from(error);
            sum.size += f64::from(*w) * f64::from(*w);
            sum.largest = sum.largest.max(error.abs());
        }
        sum
    }
}

/// Quantises whole rows of `cols` values into `out`, and measures the result. `importance` has one
/// weight, not negative, a column.
///
/// # Errors
/// [`Error::Columns`] if a row is no whole number of blocks, [`Error::Bytes`] if `out` is not exactly
/// the bytes of the rows.
///
/// # Panics
/// If `x` is no whole number of rows, or `importance` has another length than a row.
pub fn quantize(
    ty: Type,
    cols: usize,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<Deviation, Error> {
    let rows = x.len() / cols.max(1);
    assert_eq!(x.len(), rows * cols, "whole rows");
    assert!(
        importance.is_none_or(|w| w.len() == cols),
        "a weight a column"
    );
    let (row_bytes, need) = matrix_bytes(ty, rows, cols)?;
    if out.len() != need {
        return Err(Error::Bytes {
            ty,
            rows,
            cols,
            need,
            have: out.len(),
        });
    }
    let mut sum = Deviation::default();
    if need == 0 {
        return Ok(sum);
    }
    // Columns that were never seen still count a little.
    let least = importance.map_or(0.0, |w| 1e-4 * w.iter().sum::<f32>() / cols as f32);
    let importance: Option<Vec<f32>> =
        importance.map(|w| w.iter().map(|w| w.max(least).max(1e-30)).collect());
    let mut stored = vec![0.0; cols];
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
        best_level(ty, x, importance.as_deref(), out);
        dequantize(ty, out, &mut stored)?;
        sum.add(&Deviation::of(x, &stored));
    }
    Ok(sum)
}

/// Adds the squares of rows of `sums.len()` values to the sums, column by column.
///
/// # Panics
/// If `rows` is no whole number of rows.
pub fn add_squares(rows: &[f32], sums: &mut [f64]) {
    assert!(rows.len().is_multiple_of(sums.len().max(1)), "whole rows");
    for row in rows.chunks_exact(sums.len().max(1)) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
}

/// One row, with this processor's widest instructions: the same operations in the same order, and no
/// fused ones, so that the bytes are the same everywhere.
fn best_level(ty: Type, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(ty: Type, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
            row(ty, x, importance, out);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(ty: Type, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
            row(ty, x, importance, out);
        }
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if wide {
            // SAFETY: the features were just found.
            return unsafe { avx512(ty, x, importance, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return unsafe { avx2(ty, x, importance, out) };
        }
    }
    row(ty, x, importance, out);
}

/// One row of whole blocks.
#[inline(always)]
fn row(ty: Type, x: &[f32], w: Option<&[f32]>, out: &mut [u8]) {
    match ty {
        Type::F32 => floats(x, out, f32::to_le_bytes),
        Type::F16 => floats(x, out, |x| f16::from_f32(x).to_le_bytes()),
        Type::BF16 => floats(x, out, |x| bf16::from_f32(x).to_le_bytes()),
        Type::Q4_0 => each(x, w, out, legacy::q4_0),
        Type::Q4_1 => each(x, w, out, legacy::q4_1),
        Type::Q5_0 => each(x, w, out, legacy::q5_0),
        Type::Q5_1 => each(x, w, out, legacy::q5_1),
        Type::Q8_0 => each(x, w, out, legacy::q8_0),
        Type::MXFP4 => each(x, w, out, legacy::mxfp4),
        Type::TQ1_0 => each(x, w, out, legacy::tq1_0),
        Type::TQ2_0 => each(x, w, out, legacy::tq2_0),
        Type::Q1_0 => each(x, w, out, legacy::q1_0),
        Type::Q2_0 => each(x, w, out, legacy::q2_0),
        Type::Q2_K => each(x, w, out, kquants::q2_k),
        Type::Q4_K => each(x, w, out, kquants::q4_k),
        Type::Q5_K => each(x, w, out, kquants::q5_k),
        Type::Q3_K => each(x, w, out, twolevel::q3_k),
        Type::Q6_K => each(x, w, out, twolevel::q6_k),
        Type::IQ4_NL => each(x, w, out, twolevel::iq4_nl),
        Type::IQ4_XS => each(x, w, out, twolevel::iq4_xs),
        Type::NVFP4 => each(x, w, out, twolevel::nvfp4),
        Type::IQ2_XXS => each(x, w, out, codebook::iq2_xxs),
        Type::IQ2_XS => each(x, w, out, codebook::iq2_xs),
        Type::IQ2_S => each(x, w, out, codebook::iq2_s),
        Type::IQ3_XXS => each(x, w, out, codebook::iq3_xxs),
        Type::IQ3_S => each(x, w, out, codebook::iq3_s),
        Type::IQ1_S => each(x, w, out, codebook::iq1_s),
        Type::IQ1_M => each(x, w, out, codebook::iq1_m),
    }
}

/// Numbers one by one.
#[inline(always)]
fn floats<const N: usize>(x: &[f32], out: &mut [u8], to: impl Fn(f32) -> [u8; N]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
        *out = to(*x);
    }
}

/// Blocks of `LEN` values one by one.
#[inline(always)]
fn each<const LEN: usize, const BYTES: usize>(
    x: &[f32],
    w: Option<&[f32]>,
    out: &mut [u8],
    block: impl Fn(&[f32; LEN], Option<&[f32; LEN]>, &mut [u8; BYTES]),
) {
    let (blocks, _) = x.as_chunks::<LEN>();
    let weights = w.map(|w| w.as_chunks::<LEN>().0);
    for (i, (x, out)) in blocks.iter().zip(out.as_chunks_mut().0).enumerate() {
        block(x, weights.map(|w| &w[i]), out);
    }
}

/// A scale as an IEEE half, as near as a finite one can be.
#[inline(always)]
fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

/// Stores an IEEE half at byte `at`.
#[inline(always)]
fn put(out: &mut [u8], at: usize, x: f16) {
    out[at..at + 2].copy_from_slice(&x.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_depend_on_the_level() {
        let mut state = 1u32;
        let x: Vec<f32> = (0..1024)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        let w: Vec<f32> = x.iter().map(|x| x.abs() + 0.1).collect();
        for ty in Type::ALL {
            for w in [None, Some(&w[..])] {
                let mut a = vec![0; ty.row_bytes(1024).unwrap()];
                let mut b = a.clone();
                row(*ty, &x, w, &mut a);
                best_level(*ty, &x, w, &mut b);
                assert_eq!(a, b, "{ty}");
            }
        }
    }
}
