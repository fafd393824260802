//! GPTQ, as AutoGPTQ and GPTQModel write it.
//!
//! `X.qweight` I32 [in * bits / 32, out]: down each column a stream of integers, lowest bits first.
//! `X.qzeros` I32 [groups, out * bits / 32]: the same along each row, the zero points less one
//! (format 1) or as they are (format 2). `X.scales` [groups, out]. `X.g_idx` I32 [in]: the group of
//! each input, in order unless `desc_act`. w[o][i] = scales[g][o] * (q[i][o] - zero[g][o])

use files::{Dtype, Tensor, Tensors};

use super::method::Groups;
use super::{Integers, counted, floats, need, side, words, wrong};
use crate::error::Result;
use crate::expected::check_shape;

const SIDES: [&str; 3] = [".qzeros", ".scales", ".g_idx"];

/// What becomes of `t`: a matrix, nothing if it belongs to one, or itself.
pub(super) fn tensor(how: &Groups, tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    if let Some(stem) = t.name.strip_suffix(".qweight") {
        return matrix(how, tensors, t, stem).map(Some);
    }
    let part = is_side(tensors, t, &SIDES) || is_empty_bias(tensors, t);
    Ok((!part).then(|| t.clone()))
}

/// Whether `t` belongs to a matrix of packed integers.
pub(super) fn is_side(tensors: &Tensors, t: &Tensor, sides: &[&str]) -> bool {
    let stem = sides.iter().find_map(|side| t.name.strip_suffix(side));
    stem.is_some_and(|stem| tensors.get(&format!("{stem}.qweight")).is_some())
}

/// AutoGPTQ gave every matrix a bias, of zeros where the model has none.
pub(super) fn is_empty_bias(tensors: &Tensors, t: &Tensor) -> bool {
    let stem = t.name.strip_suffix(".bias");
    let packed = stem.is_some_and(|stem| tensors.get(&format!("{stem}.qweight")).is_some());
    packed
        && matches!(t.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32)
        && t.data.iter().all(|&b| b == 0)
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
    let words = |integers: usize| integers.saturating_mul(how.bits).div_ceil(32);
    let groups = how.groups(inputs);
    check_shape(packed, &[words(inputs), out])?;
    side(tensors, &format!("{stem}.qzeros"), &[groups, words(out)])?;
    if let Some(scales) = tensors.get(&format!("{stem}.scales")) {
        counted(scales, groups.saturating_mul(out))?;
    }
    side(tensors, &format!("{stem}.g_idx"), &[inputs])?;
    Ok(true)
}

fn matrix(how: &Groups, tensors: &Tensors, t: &Tensor, stem: &str) -> Result<Tensor> {
    let bits = how.bits;
    let [rows, out] = t.shape[..] else {
        return Err(wrong(
            &t.name,
            format!("has shape {:?}; two axes are needed", t.shape),
        ));
    };
    let inputs = rows
        .checked_mul(32)
        .filter(|n| n.is_multiple_of(bits))
        .map(|n| n / bits);
    let inputs = inputs.ok_or_else(|| {
        wrong(
            &t.name,
            format!("has {rows} rows, which hold no whole number of {bits}-bit integers"),
        )
    })?;
    let size = how.size.unwrap_or(inputs).min(inputs.max(1));
    let groups = inputs.div_ceil(size);
    if t.data.is_empty() {
        return Err(wrong(&t.name, "is empty"));
    }
    if !(out * bits).is_multiple_of(32) {
        return Err(wrong(
            &t.name,
            format!("has {out} columns, whose zero points fill no whole words"),
        ));
    }
    let q = words(t, rows, out)?;
    let zeros = need(tensors, &format!("{stem}.qzeros"))?;
    let z = words(zeros, groups, out * bits / 32)?;
    let scales = floats(need(tensors, &format!("{stem}.scales"))?, groups * out)?;
    let order = order(how, tensors, stem, inputs, groups)?;
    let in_order = |&(i, g): &(usize, &usize)| i / size == *g;
    let blocks = size.is_multiple_of(kernels::repack::PACKED)
        && order.iter().enumerate().all(|pair| in_order(&pair));

    let mut zero = vec![0; groups * out];
    let (mut least, mut most) = (i32::MAX, i32::MIN);
    for (i, zero) in zero.iter_mut().enumerate() {
        let (g, o) = (i / out, i % out);
        *zero = integer(|at| z(g, at), o, bits) + how.zero_offset;
        (least, most) = (least.min(*zero), most.max(*zero));
    }
    Integers {
        rows: out,
        cols: inputs,
        range: (-most, (1 << bits) - 1 - least),
        blocks,
        integer: |o: usize, i: usize| integer(|at| q(at, o), i, bits) - zero[order[i] * out + o],
        scale: |o: usize, i: usize| scales[order[i] * out + o],
    }
    .tensor(&format!("{stem}.weight"))
}

/// Integer `i` of a stream of words.
fn integer(word: impl Fn(usize) -> u32, i: usize, bits: usize) -> i32 {
    let (at, shift) = (i * bits / 32, i * bits % 32);
    let next = if shift + bits > 32 { word(at + 1) } else { 0 };
    let both = u64::from(word(at)) | u64::from(next) << 32;
    (both >> shift) as i32 & ((1 << bits) - 1)
}

/// The group of each input.
fn order(
    how: &Groups,
    tensors: &Tensors,
    stem: &str,
    inputs: usize,
    groups: usize,
) -> Result<Vec<usize>> {
    let name = format!("{stem}.g_idx");
    let Some(t) = tensors.get(&name) else {
        let size = how.size.unwrap_or(inputs.max(1));
        return match how.unordered {
            false => Ok((0..inputs).map(|i| i / size).collect()),
            true => Err(wrong(
                &name,
                "is missing, and desc_act says that the groups are in no order",
            )),
        };
    };
    if t.dtype != Dtype::I32 || t.shape != [inputs] {
        let what = format!("is {} {:?}, not I32 [{inputs}]", t.dtype, t.shape);
        return Err(wrong(&name, what));
    }
    let (numbers, _) = t.data.as_chunks::<4>();
    let group = |n: &[u8; 4]| {
        let n = i32::from_le_bytes(*n);
        let group = usize::try_from(n).ok().filter(|g| *g < groups);
        group.ok_or_else(|| wrong(&name, format!("names group {n} of {groups}")))
    };
    numbers.iter().map(group).collect()
}
