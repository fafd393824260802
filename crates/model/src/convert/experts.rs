//! Experts of a Hugging Face directory as GGUF has them (one tensor `[experts, out, in]` for each of
//! gate, up and down), and those of a GGUF as the directories of Mixtral and Llama 4 have them.

use std::collections::HashSet;

use files::{Blob, Tensor, Tensors};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::names::{FUSED_EACH, FUSED_ENDS, GGUF, GGUF_EXPERTS, Names, Stack};
use crate::source::{Order, Piece};

/// The experts of all layers, and the names of the tensors that they are made of, which begin with
/// `prefix`.
///
/// # Errors
/// A tensor is missing, or has another shape or type than it should.
pub(super) fn stacks(
    tensors: &Tensors,
    prefix: &str,
    config: &Config,
    from: &Names,
    to: &Names,
) -> Result<(Vec<Piece>, HashSet<String>)> {
    let (mut found, mut read) = (Vec::new(), HashSet::new());
    let (Some(names), Some(e)) = (&from.experts, &config.experts) else {
        return Ok((found, read));
    };
    let wanted = to.experts.as_ref().map(|to| &to.stack);
    let (d, f) = (config.hidden, e.ffn);
    for layer in (0..config.layers).filter(|i| config.experts_of(*i).is_some()) {
        let inside = |part: &str| format!("{prefix}{}{layer}.{part}", from.block);
        let mut need = |name: String| {
            let t = tensors.get(&name).ok_or_else(|| wrong(&name, "is missing"));
            read.insert(name);
            t
        };
        let name = |part: usize| format!("{}{layer}.{}.weight", GGUF.block, GGUF_EXPERTS[part]);
        // A tensor for each in place of the two that Llama 4 has.
        let apart = inside(&format!("{FUSED_EACH}0.{}.weight", FUSED_ENDS[0]));
        let stack = match &names.stack {
            Stack::Fused(_) if tensors.get(&apart).is_some() => {
                &Stack::Each(FUSED_EACH, FUSED_ENDS)
            }
            stack => stack,
        };
        match stack {
            Stack::Each(before, ends) => {
                for (part, shape) in [[f, d], [f, d], [d, f]].into_iter().enumerate() {
                    let one = |n: usize| inside(&format!("{before}{n}.{}.weight", ends[part]));
                    let all: Result<Vec<&Tensor>> = (0..e.count).map(|n| need(one(n))).collect();
                    found.push(joined(name(part), &all?, shape)?);
                }
            }
            Stack::Fused([both, down]) => {
                let (both, down) = (need(inside(both))?, need(inside(down))?);
                let [count, wide] = [e.count, 2 * f];
                found.push(turned(name(0), both, [count, f, d], (0, wide))?);
                found.push(turned(name(1), both, [count, f, d], (f, wide))?);
                found.push(turned(name(2), down, [count, d, f], (0, d))?);
            }
            Stack::Apart(parts) => {
                let mut whole = |part: usize| need(inside(&format!("{}.weight", parts[part])));
                let all = [whole(0)?, whole(1)?, whole(2)?];
                let name = |part: &str| format!("{}{layer}.{part}", to.block);
                match wanted {
                    Some(Stack::Each(before, ends)) => {
                        for ((t, end), shape) in all.iter().zip(ends).zip([[f, d], [f, d], [d, f]])
                        {
                            let one = |n: usize| name(&format!("{before}{n}.{end}.weight"));
                            found.extend(cut(t, e.count, shape, one)?);
                        }
                    }
                    Some(Stack::Fused([both, down])) => {
                        found.push(fused(name(both), &all[..2], [e.count, f, d])?);
                        found.push(fused(name(down), &all[2..], [e.count, d, f])?);
                    }
                    _ => return Err(Error::NotImplemented("experts here".into())),
                }
            }
        }
    }
    Ok((found, read))
}

/// One tensor of a matrix for each expert.
fn joined(name: String, all: &[&Tensor], shape: [usize; 2]) -> Result<Piece> {
    let dtype = all.first().map(|t| t.dtype);
    let dtype = dtype.ok_or_else(|| wrong(&name, "has no experts"))?;
    if let Some(t) = all.iter().find(|t| t.shape != shape || t.dtype != dtype) {
        let what = format!("is {} {:?}, not {dtype} {shape:?}", t.dtype, t.shape);
        return Err(wrong(&t.name, what));
    }
    let data = Blob::join(all.iter().map(|t| t.data.clone()).collect());
    let shape = vec![all.len(), shape[0], shape[1]];
    Ok(Piece::same(Tensor::new(name, dtype, shape, data)?))
}

/// The matrices `[out, in]` of each expert, of one tensor or of several behind each other, as columns.
fn fused(name: String, parts: &[&Tensor], [count, out, width]: [usize; 3]) -> Result<Piece> {
    let mut matrices = Vec::new();
    for t in parts {
        let one = |n: usize| format!("{name} {n}");
        let all = cut(t, count, [out, width], one)?;
        matrices.push(all);
        if t.dtype != parts[0].dtype {
            let what = format!(
                "is {}, and {} is {}",
                t.dtype, parts[0].name, parts[0].dtype
            );
            return Err(wrong(&t.name, what + ", but one tensor is to hold both"));
        }
        if !width.is_multiple_of(t.dtype.block_len()) {
            return Err(wrong(&t.name, "has rows that are no whole blocks"));
        }
    }
    let blobs = (0..count).flat_map(|n| matrices.iter().map(move |m| m[n].tensor.data.clone()));
    let tensor = Tensor {
        name,
        dtype: parts[0].dtype,
        shape: vec![count, width, parts.len() * out],
        data: Blob::join(blobs.collect()),
    };
    Ok(Piece {
        order: Order::Turned { first: 0, width },
        ..Piece::same(tensor)
    })
}

/// A matrix for each expert of one tensor.
fn cut(
    t: &Tensor,
    count: usize,
    shape: [usize; 2],
    name: impl Fn(usize) -> String,
) -> Result<Vec<Piece>> {
    let lies = [count, shape[0], shape[1]];
    if count == 0 || t.shape != lies {
        let what = format!("is {} {:?}, not {lies:?}", t.dtype, t.shape);
        return Err(wrong(&t.name, what));
    }
    let bytes = t.data.len() / count;
    let one = |n: usize| {
        let data = t.data.slice(n * bytes..(n + 1) * bytes);
        let data = data.ok_or_else(|| wrong(&t.name, "is shorter than its experts"))?;
        Ok(Piece::same(Tensor::new(
            name(n),
            t.dtype,
            shape.to_vec(),
            data,
        )?))
    };
    (0..count).map(one).collect()
}

/// Columns of the matrices `[in, width]` of all experts as rows, from the column `first` on.
fn turned(
    name: String,
    t: &Tensor,
    shape: [usize; 3],
    (first, width): (usize, usize),
) -> Result<Piece> {
    let lies = [shape[0], shape[2], width];
    if t.shape != lies || t.dtype.block_len() != 1 {
        let what = format!("is {} {:?}, not plain numbers {lies:?}", t.dtype, t.shape);
        return Err(wrong(&t.name, what));
    }
    // The bytes stay those of all columns.
    let tensor = Tensor {
        name,
        shape: shape.to_vec(),
        ..t.clone()
    };
    Ok(Piece {
        order: Order::Turned { first, width },
        ..Piece::same(tensor)
    })
}

fn wrong(name: &str, what: impl Into<String>) -> Error {
    Error::Tensor {
        name: name.into(),
        what: what.into(),
    }
}
