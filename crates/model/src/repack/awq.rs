//! AWQ in its layout "gemm", as AutoAWQ writes it.
//!
//! `X.qweight` I32 [in, out / 8] and `X.qzeros` I32 [groups, out / 8] hold eight 4-bit integers a
//! word, of the columns 0, 2, 4, 6, 1, 3, 5, 7 of its eight, lowest bits first. `X.scales`
//! [groups, out]. w[o][i] = scales[g][o] * (q[i][o] - zero[g][o])

use files::{Tensor, Tensors};

use super::gptq::{is_empty_bias, is_side};
use super::method::Groups;
use super::{Integers, counted, floats, need, side, words, wrong};
use crate::error::Result;
use crate::expected::check_shape;

/// Where in a word the integer of each of its eight columns begins.
const SHIFTS: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

/// What becomes of `t`: a matrix, nothing if it belongs to one, or itself.
pub(super) fn tensor(how: &Groups, tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    if let Some(stem) = t.name.strip_suffix(".qweight") {
        return matrix(how, tensors, t, stem).map(Some);
    }
    let part = is_side(tensors, t, &[".qzeros", ".scales"]) || is_empty_bias(tensors, t);
    Ok((!part).then(|| t.clone()))
}

/// Compares the parts of a matrix `[out, in]` with its shape; `false` if there is no such matrix.
pub(super) fn check(
    how: &Groups,
    tensors: &Tensors,
    stem: &str,
    [out, inputs]: [usize; 2],
) -> Result<bool> {
    let Some(packed) = tensors.get(&format!("{stem}.qweight")) else {
        return Ok(false);
    };
    let (groups, words) = (how.groups(inputs), out.div_ceil(8));
    check_shape(packed, &[inputs, words])?;
    side(tensors, &format!("{stem}.qzeros"), &[groups, words])?;
    if let Some(scales) = tensors.get(&format!("{stem}.scales")) {
        counted(scales, groups.saturating_mul(out))?;
    }
    Ok(true)
}

fn matrix(how: &Groups, tensors: &Tensors, t: &Tensor, stem: &str) -> Result<Tensor> {
    let [inputs, across] = t.shape[..] else {
        return Err(wrong(
            &t.name,
            format!("has shape {:?}; two axes are needed", t.shape),
        ));
    };
    if t.data.is_empty() {
        return Err(wrong(&t.name, "is empty"));
    }
    let q = words(t, inputs, across)?;
    let out = across * 8;
    let size = how.size.unwrap_or(inputs).min(inputs.max(1));
    let groups = inputs.div_ceil(size);
    let zeros = words(need(tensors, &format!("{stem}.qzeros"))?, groups, across)?;
    let scales = floats(need(tensors, &format!("{stem}.scales"))?, groups * out)?;
    let nibble = |word: u32, column: usize| (word >> SHIFTS[column % 8] & 15) as i32;
    let zero: Vec<i32> = (0..groups * out)
        .map(|i| nibble(zeros(i / out, i % out / 8), i % out))
        .collect();
    let (least, most) = (zero.iter().min(), zero.iter().max());
    Integers {
        rows: out,
        cols: inputs,
        range: (-most.unwrap_or(&0), 15 - least.unwrap_or(&0)),
        blocks: size.is_multiple_of(kernels::repack::PACKED),
        integer: |o: usize, i: usize| nibble(q(i, o / 8), o) - zero[i / size * out + o],
        scale: |o: usize, i: usize| scales[i / size * out + o],
    }
    .tensor(&format!("{stem}.weight"))
}
