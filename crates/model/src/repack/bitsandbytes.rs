//! bitsandbytes: NF4 and FP4 (`load_in_4bit`), and LLM.int8() (`load_in_8bit`).
//!
//! Four bits: `X.weight` U8 holds two indices a byte, the high nibble first, of the matrix row by
//! row. `X.weight.quant_map` F32 [16] are the numbers that they stand for, `X.weight.absmax` has a
//! scale for each block of them. With double quantisation the scales are bytes themselves, indices
//! into `nested_quant_map` F32 [256] scaled by `nested_absmax` per block of blocks, plus an offset.
//! `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`) is a JSON text with shape and block sizes.
//!
//! Eight bits: `X.weight` I8 [out, in] and `X.SCB` F32 [out], the largest of each row:
//! w[o][i] = SCB[o] / 127 * q[o][i]

use files::{Dtype, Tensor, Tensors};
use serde_json::Value;

use super::{Integers, counted, floats, need, widened, wrong};
use crate::error::Result;

const STATES: [&str; 2] = [
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];

const SIDES: [&str; 6] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    STATES[0],
    STATES[1],
];

/// The largest `quant_state`: 300 bytes are usual.
const MAX_STATE: usize = 64 << 10;

/// What becomes of `t`: a matrix, nothing if it belongs to one, or itself.
pub(super) fn four_bit(tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    let absmax = |name: &str| tensors.get(&format!("{name}.absmax")).is_some();
    if absmax(&t.name) {
        return four_bit_matrix(tensors, t).map(Some);
    }
    let of = SIDES.iter().find_map(|side| t.name.strip_suffix(side));
    Ok((!of.is_some_and(absmax)).then(|| t.clone()))
}

/// Compares the parts of a matrix `[out, in]` of four bits with its shape; `false` if there is no
/// such matrix.
pub(super) fn check_four_bit(tensors: &Tensors, name: &str, shape: [usize; 2]) -> Result<bool> {
    let side = |end: &str| tensors.get(&format!("{name}{end}"));
    let (Some(t), Some(absmax)) = (tensors.get(name), side(".absmax")) else {
        return Ok(false);
    };
    let state = state(tensors, t)?;
    if state.shape != shape {
        let what = format!(
            "has shape {:?} by its quant_state; the configuration says {shape:?}",
            state.shape
        );
        return Err(wrong(name, what));
    }
    let count = shape[0].saturating_mul(shape[1]);
    let blocks = count.div_ceil(state.block);
    counted(t, count.div_ceil(2))?;
    counted(absmax, blocks)?;
    let nested = state.nested.map(|(block, _)| blocks.div_ceil(block));
    for (end, len) in [
        (".quant_map", Some(16)),
        (".nested_quant_map", nested.map(|_| 256)),
        (".nested_absmax", nested),
    ] {
        if let (Some(t), Some(len)) = (side(end), len) {
            counted(t, len)?;
        }
    }
    Ok(true)
}

/// What `quant_state` says.
struct State {
    shape: [usize; 2],
    block: usize,
    /// Block of the scales' own scales, and what is added to each.
    nested: Option<(usize, f32)>,
}

fn four_bit_matrix(tensors: &Tensors, t: &Tensor) -> Result<Tensor> {
    let side = |end: &str| need(tensors, &format!("{}{end}", t.name));
    let state = state(tensors, t)?;
    let [rows, cols] = state.shape;
    let count = rows
        .checked_mul(cols)
        .filter(|n| n.div_ceil(2) == t.data.len());
    let Some(count) = count.filter(|_| t.dtype == Dtype::U8) else {
        let what = format!(
            "is {} {:?}, but its quant_state says [{rows}, {cols}]",
            t.dtype, t.shape
        );
        return Err(wrong(&t.name, what));
    };
    let blocks = count.div_ceil(state.block);
    let map = floats(side(".quant_map")?, 16)?;
    let scales = match state.nested {
        None => floats(side(".absmax")?, blocks)?,
        Some((block, offset)) => {
            let bytes = side(".absmax")?;
            if bytes.dtype != Dtype::U8 || bytes.data.len() != blocks {
                let what = format!("is {} {:?}, not {blocks} bytes", bytes.dtype, bytes.shape);
                return Err(wrong(&bytes.name, what));
            }
            let map = floats(side(".nested_quant_map")?, 256)?;
            let outer = floats(side(".nested_absmax")?, blocks.div_ceil(block))?;
            let scale =
                |(i, byte): (usize, &u8)| map[usize::from(*byte)] * outer[i / block] + offset;
            bytes.data.iter().enumerate().map(scale).collect()
        }
    };
    widened(&t.name, rows, cols, |r, c| {
        let e = r * cols + c;
        let index = t.data[e / 2] >> (4 * (1 - e % 2)) & 15;
        map[usize::from(index)] * scales[e / state.block]
    })
}

fn state(tensors: &Tensors, t: &Tensor) -> Result<State> {
    let found = STATES
        .iter()
        .find_map(|end| tensors.get(&format!("{}{end}", t.name)));
    let s = found.ok_or_else(|| wrong(&format!("{}{}", t.name, STATES[0]), "is missing"))?;
    let small = s.data.len() <= MAX_STATE && s.dtype == Dtype::U8;
    let json: Value = small
        .then(|| serde_json::from_slice(&s.data).ok())
        .flatten()
        .ok_or_else(|| wrong(&s.name, "is no JSON"))?;
    let lacks = |key: &str| wrong(&s.name, format!("has no sound `{key}`"));
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let block = |key: &str| {
        size(&json[key])
            .filter(|n| *n > 0)
            .ok_or_else(|| lacks(key))
    };
    let shape: Option<Vec<usize>> = json["shape"]
        .as_array()
        .and_then(|list| list.iter().map(size).collect());
    let Some(&[rows, cols]) = shape.as_deref() else {
        return Err(lacks("shape"));
    };
    let nested = match json.get("nested_blocksize").filter(|v| !v.is_null()) {
        None => None,
        Some(_) => {
            let offset = json["nested_offset"]
                .as_f64()
                .ok_or_else(|| lacks("nested_offset"))?;
            Some((block("nested_blocksize")?, offset as f32))
        }
    };
    Ok(State {
        shape: [rows, cols],
        block: block("blocksize")?,
        nested,
    })
}

/// What becomes of `t`: a matrix, nothing if it belongs to one, or itself.
pub(super) fn int8(tensors: &Tensors, t: &Tensor) -> Result<Option<Tensor>> {
    let has = |name: String| tensors.get(&name).is_some();
    if let (Some(stem), Dtype::I8, &[rows, cols]) =
        (t.name.strip_suffix(".weight"), t.dtype, &t.shape[..])
    {
        let scb = floats(need(tensors, &format!("{stem}.SCB"))?, rows)?;
        let matrix = Integers {
            rows,
            cols,
            range: (-128, 127),
            blocks: true,
            integer: |r: usize, c: usize| i32::from(t.data[r * cols + c].cast_signed()),
            scale: |r: usize, _: usize| scb[r] / 127.0,
        };
        return matrix.tensor(&t.name).map(Some);
    }
    if let Some(stem) = t.name.strip_suffix(".weight_format")
        && has(format!("{stem}.SCB"))
    {
        // Other layouts than rows are those of single GPUs; 0 stands for rows.
        return match t.data.iter().all(|&b| b == 0) {
            true => Ok(None),
            false => Err(wrong(&t.name, "says that the matrix is not stored by rows")),
        };
    }
    let of = t.name.strip_suffix(".SCB");
    let part = of.is_some_and(|stem| has(format!("{stem}.weight")));
    Ok((!part).then(|| t.clone()))
}
