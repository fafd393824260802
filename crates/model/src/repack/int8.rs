//! Signed bytes with f32 scales: llama2.c's version 2.

use files::{Dtype, Tensor, Tensors};

use super::{Integers, floats, need};
use crate::error::Result;

/// What becomes of `t`. `X.weight` I8 [out, in] and `X.scales` F32, one for every `group` elements,
/// counted through the whole matrix: w[e] = scales[e / group] * q[e]
pub(super) fn llama2c(group: usize, tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    if t.name.ends_with(".scales") {
        return Ok(None);
    }
    let (Dtype::I8, Some(stem), &[rows, cols]) =
        (t.dtype, t.name.strip_suffix(".weight"), &t.shape[..])
    else {
        return Ok(Some(t.clone()));
    };
    let scales = floats(
        need(tensors, &format!("{stem}.scales"))?,
        t.data.len() / group,
    )?;
    let matrix = Integers {
        rows,
        cols,
        range: (-128, 127),
        blocks: group.is_multiple_of(kernels::repack::PACKED)
            && cols.is_multiple_of(kernels::repack::PACKED),
        integer: |r: usize, c: usize| i32::from(t.data[r * cols + c].cast_signed()),
        scale: |r: usize, c: usize| scales[(r * cols + c) / group],
    };
    matrix.tensor(&t.name).map(Some)
}
