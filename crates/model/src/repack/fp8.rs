//! 8-bit floats (E4M3, E5M2) with scales, as fbgemm, compressed-tensors, AutoFP8 and DeepSeek's
//! scripts write them.
//!
//! `X.weight` F8_E4M3 or F8_E5M2 [out, in], and `X.weight_scale` or `X.weight_scale_inv`: one
//! number, one for each row, or one for each block of rows and columns. Both names are multiplied:
//! w[o][i] = scale * x[o][i]. A matrix without scales is just small floats. The experts of Llama 4 lie
//! as `X` [experts, in, out] with `X_scale` [experts, 1, out], as transformers' fbgemm integration has
//! them.
//!
//! Scales of activations and of the cache are for programs that round those to 8 bits as well;
//! here they are not rounded, so the scales are not used.

use files::{Dtype, Tensor, Tensors};
use kernels::repack::{e4m3, e5m2};

use super::method::Method;
use super::{floats, widened, wrong};
use crate::error::Result;

const SCALES: [&str; 2] = ["_scale", "_scale_inv"];

/// Scales of what is not rounded here.
const UNUSED: [&str; 3] = [".input_scale", ".k_scale", ".v_scale"];

/// The side of a block where the file does not say and the shapes leave it open.
const USUAL_BLOCK: usize = 128;

fn scale_of<'t>(tensors: &'t Tensors, name: &str) -> Option<&'t Tensor> {
    SCALES
        .iter()
        .find_map(|end| tensors.get(&format!("{name}{end}")))
}

fn table(dtype: Dtype) -> Option<[f32; 256]> {
    match dtype {
        Dtype::F8_E4M3 => Some(e4m3()),
        Dtype::F8_E5M2 => Some(e5m2()),
        _ => None,
    }
}

/// Whether there are 8-bit floats among the tensors.
pub(super) fn any(tensors: &Tensors) -> bool {
    tensors.iter().any(|t| table(t.dtype).is_some())
}

/// Whether a tensor of a model that has 8-bit floats is a scale of theirs, or one that is not used.
pub(super) fn is_side(tensors: &Tensors, name: &str) -> bool {
    let weight = SCALES.iter().find_map(|end| name.strip_suffix(end));
    let of = weight.and_then(|weight| tensors.get(weight));
    of.is_some_and(|t| table(t.dtype).is_some()) || UNUSED.iter().any(|end| name.ends_with(end))
}

/// Whether the scales beside a matrix of 8-bit floats fit it; other tensors have none.
pub(super) fn check(method: &Method, tensors: &Tensors, t: &Tensor) -> Result<()> {
    match (table(t.dtype), scale_of(tensors, &t.name), &t.shape[..]) {
        (Some(_), Some(scale), &[rows, cols]) => steps(method, scale, [rows, cols]).map(|_| ()),
        (Some(_), Some(scale), &[count, rows, cols]) => {
            of_experts(scale, [count, rows, cols]).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// The matrix of 8-bit floats `t`, widened; `None` if it is something else.
pub(super) fn weight(method: &Method, tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    let Some(table) = table(t.dtype) else {
        return Ok(None);
    };
    if let &[count, inputs, outputs] = &t.shape[..] {
        let shape = [count, inputs, outputs];
        return experts(method, tensors, t, &table, shape).map(Some);
    }
    let [rows, cols] = t.shape[..] else {
        let what = format!("is {} {:?}; two or three axes are needed", t.dtype, t.shape);
        return Err(wrong(&t.name, what));
    };
    let value = |r: usize, c: usize| table[usize::from(t.data[r * cols + c])];
    let Some(scale) = scale_of(tensors, &t.name) else {
        if matches!(method, Method::Fp8 { .. }) {
            return Err(wrong(&t.name, "has no scale beside it"));
        }
        return widened(&t.name, rows, cols, value).map(Some);
    };
    let [down, across] = steps(method, scale, [rows, cols])?;
    let per_row = cols.div_ceil(across.max(1));
    let scales = floats(scale, rows.div_ceil(down.max(1)) * per_row)?;
    let scaled = |r: usize, c: usize| value(r, c) * scales[r / down * per_row + c / across];
    widened(&t.name, rows, cols, scaled).map(Some)
}

/// The matrices `[in, out]` of some experts, widened as one tensor; they have a scale for each
/// output (fbgemm's layout of Llama 4), for each matrix, or for all.
fn experts(
    method: &Method,
    tensors: &Tensors,
    t: &Tensor,
    table: &[f32; 256],
    shape: [usize; 3],
) -> Result<Tensor> {
    let [count, inputs, outputs] = shape;
    let rows = count.checked_mul(inputs);
    let rows = rows.ok_or_else(|| wrong(&t.name, "is too large"))?;
    let value = |r: usize, c: usize| table[usize::from(t.data[r * outputs + c])];
    let mut whole = match scale_of(tensors, &t.name) {
        None if matches!(method, Method::Fp8 { .. }) => {
            return Err(wrong(&t.name, "has no scale beside it"));
        }
        None => widened(&t.name, rows, outputs, value)?,
        Some(scale) => {
            let [each, across] = of_experts(scale, shape)?;
            let scales = floats(scale, scale.shape.iter().product())?;
            let at = |r: usize, c: usize| r / inputs.max(1) * each + c * across;
            widened(&t.name, rows, outputs, |r, c| {
                value(r, c) * scales[at(r, c)]
            })?
        }
    };
    whole.shape = shape.to_vec();
    Ok(whole)
}

/// How far apart the scales of two experts and those of two outputs of one lie.
fn of_experts(scale: &Tensor, [count, inputs, outputs]: [usize; 3]) -> Result<[usize; 2]> {
    match scale.shape[..] {
        [] | [1] | [1, 1] | [1, 1, 1] => Ok([0, 0]),
        [n] | [n, 1] | [n, 1, 1] if n == count => Ok([1, 0]),
        [n, 1, out] | [n, out, 1] | [n, out] if n == count && out == outputs => Ok([outputs, 1]),
        _ => {
            let what = format!(
                "has shape {:?}, which fits no experts or outputs of [{count}, {inputs}, {outputs}]",
                scale.shape
            );
            Err(wrong(&scale.name, what))
        }
    }
}

/// How many rows and columns share a scale.
fn steps(method: &Method, scale: &Tensor, [rows, cols]: [usize; 2]) -> Result<[usize; 2]> {
    let block = match method {
        Method::Fp8 { block } => *block,
        _ => None,
    };
    let all = [rows.max(1), cols.max(1)];
    let found = match (&scale.shape[..], block) {
        ([] | [1] | [1, 1], _) => Some(all),
        (&[n] | &[n, 1], _) if n == rows => Some([1, all[1]]),
        (&[a, b], Some([down, across])) => {
            ([a, b] == [rows.div_ceil(down), cols.div_ceil(across)]).then_some([down, across])
        }
        (&[a, b], None) if a > 0 && b > 0 => {
            let even = rows.is_multiple_of(a) && cols.is_multiple_of(b);
            let usual = [a, b] == [rows, cols].map(|n| n.div_ceil(USUAL_BLOCK));
            match (even, usual) {
                (true, _) => Some([rows / a, cols / b]),
                (false, true) => Some([USUAL_BLOCK; 2]),
                _ => None,
            }
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let what = format!(
            "has shape {:?}, which fits no rows or blocks of [{rows}, {cols}]",
            scale.shape
        );
        wrong(&scale.name, what)
    })
}
