//! Quantised weights of other formats, brought into storage types that Puna computes with.
//!
//! A checkpoint keeps a matrix as several tensors: packed integers, their scales, their zero
//! points. Here they become one tensor `X.weight` again, of a type that holds the same numbers:
//!
//! | checkpoint | becomes |
//! |---|---|
//! | GPTQ and AWQ, 2 to 8 bits, groups of a multiple of 32 inputs | Q4_0, Q5_0 or Q8_0, by the range of integer - zero point |
//! | the same with groups in no order (`desc_act`), int8 of bitsandbytes and llama2.c | the narrowest float type |
//! | 8-bit floats, NF4 and FP4 of bitsandbytes | the narrowest float type |
//!
//! "The narrowest float type" is BF16 or F16 where it holds every number of the matrix, else F32.
//! Nothing is quantised anew. A number is rounded only where number * scale does not fit an f32.
//!
//! What it knows: how these checkpoints pack and name their tensors. What it must not know: where
//! the files come from.

mod awq;
mod bitsandbytes;
mod fp8;
mod gptq;
mod int8;
mod method;

use std::sync::atomic::{AtomicUsize, Ordering};

use files::{Blob, Dtype, Tensor, Tensors};
use kernels::Type;
use kernels::repack::{PACKED, integer_type, narrow, pack};
use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::expected::{self, check_shape};
use crate::names::Names;
use method::Method;

/// The tensors of a Hugging Face checkpoint, those of its `quantization_config` repacked by so many
/// threads.
pub(crate) fn from_hf(config: &Value, tensors: &Tensors, threads: usize) -> Result<Tensors> {
    let method = Method::of(config)?;
    let small_floats = fp8::any(tensors);
    each(tensors, threads, |t| {
        if let Some(whole) = fp8::weight(&method, tensors, t)? {
            return Ok(Some(whole));
        }
        if small_floats && fp8::is_side(tensors, &t.name) {
            return Ok(None);
        }
        match &method {
            Method::Gptq(how) => gptq::tensor(how, tensors, t),
            Method::Awq(how) => awq::tensor(how, tensors, t),
            Method::FourBit => bitsandbytes::four_bit(tensors, t),
            Method::Int8 => bitsandbytes::int8(tensors, t),
            Method::None | Method::Fp8 { .. } => Ok(Some(t.clone())),
        }
    })
}

/// Compares the shapes of a Hugging Face checkpoint's tensors, those of packed matrices too, with
/// what its configuration calls for. No data is looked at but descriptions of a few bytes.
///
/// # Errors
/// The first tensor that has another shape, with both; a `quantization_config` that is not known.
pub(crate) fn check(json: &Value, config: &Config, names: &Names, tensors: &Tensors) -> Result<()> {
    let method = Method::of(json)?;
    expected::each(config, names, tensors, &mut |name, shape| {
        let packed = match (&method, name.strip_suffix(".weight"), shape) {
            (Method::Gptq(how), Some(stem), &[rows, cols]) => {
                gptq::check(how, tensors, stem, [rows, cols])?
            }
            (Method::Awq(how), Some(stem), &[rows, cols]) => {
                awq::check(how, tensors, stem, [rows, cols])?
            }
            (Method::FourBit, _, &[rows, cols]) => {
                bitsandbytes::check_four_bit(tensors, name, [rows, cols])?
            }
            _ => false,
        };
        let Some(t) = tensors.get(name).filter(|_| !packed) else {
            return Ok(packed);
        };
        check_shape(t, shape)?;
        match (&method, name.strip_suffix(".weight")) {
            (Method::Int8, Some(stem)) if t.dtype == Dtype::I8 => {
                let scales = tensors.get(&format!("{stem}.SCB"));
                scales.map_or(Ok(()), |s| counted(s, shape[0]))?;
            }
            _ => fp8::check(&method, tensors, t)?,
        }
        Ok(true)
    })
}

/// An error unless a tensor has so many values, however they lie.
fn counted(t: &Tensor, len: usize) -> Result<()> {
    match t.shape.iter().product::<usize>() == len {
        true => Ok(()),
        false => {
            let what = format!(
                "has shape {:?}; {len} numbers are needed by the configuration",
                t.shape
            );
            Err(wrong(&t.name, what))
        }
    }
}

/// The shape of a side tensor of a packed matrix, if it is there; what is missing is said later.
fn side(tensors: &Tensors, name: &str, shape: &[usize]) -> Result<()> {
    tensors.get(name).map_or(Ok(()), |t| check_shape(t, shape))
}

/// Whether a checkpoint has anything to repack: its configuration says so, or there are 8-bit floats.
pub(crate) fn is_packed(config: &Value, tensors: &Tensors) -> bool {
    config
        .get("quantization_config")
        .is_some_and(|q| !q.is_null())
        || fp8::any(tensors)
}

/// How many bits a number may take when a checkpoint's matrices are repacked; `None` if the
/// config.json names no quantisation.
pub(crate) fn may_widen(config: &Value) -> Result<Option<u32>> {
    Ok(match Method::of(config)? {
        Method::None => None,
        // Blocks of 8-bit integers with their scales, unless the scales do not fit.
        Method::Gptq(how) | Method::Awq(how) if how.in_blocks() => Some(9),
        _ => Some(32),
    })
}

/// The tensors of a llama2.c checkpoint, those of version 2 repacked by so many threads.
pub(crate) fn from_llama2c(
    group: Option<usize>,
    tensors: &Tensors,
    threads: usize,
) -> Result<Tensors> {
    match group {
        None => Ok(tensors.clone()),
        Some(group) => each(tensors, threads, |t| int8::llama2c(group, tensors, t)),
    }
}

/// What becomes of each tensor, in their order. Threads take one tensor after the other.
fn each(
    tensors: &Tensors,
    threads: usize,
    become_of: impl Fn(&Tensor) -> Result<Option<Tensor>> + Sync,
) -> Result<Tensors> {
    let all: Vec<&Tensor> = tensors.iter().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(t) = all.get(at) else {
                return Ok(done);
            };
            done.push((at, become_of(t)?));
        }
    };
    let mut list = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own: Result<Vec<_>> = work();
        let mut list = own?;
        for other in others {
            let done = other.join();
            list.extend(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok::<_, Error>(list)
    })?;
    list.sort_unstable_by_key(|(at, _)| *at);
    Ok(Tensors::new(
        list.into_iter().filter_map(|(_, t)| t).collect(),
    )?)
}

/// An error about one tensor.
fn wrong(name: &str, what: impl Into<String>) -> Error {
    Error::Tensor {
        name: name.into(),
        what: what.into(),
    }
}

/// A tensor that a matrix cannot do without.
fn need<'t>(tensors: &'t Tensors, name: &str) -> Result<&'t Tensor> {
    tensors.get(name).ok_or_else(|| wrong(name, "is missing"))
}

/// A matrix's tensor of 32-bit words, as a function of (row, column).
fn words(t: &Tensor, rows: usize, cols: usize) -> Result<impl Fn(usize, usize) -> u32> {
    if t.dtype != Dtype::I32 || t.shape != [rows, cols] {
        let what = format!("is {} {:?}, not I32 [{rows}, {cols}]", t.dtype, t.shape);
        return Err(wrong(&t.name, what));
    }
    let (words, _) = t.data.as_chunks::<4>();
    Ok(move |r: usize, c: usize| u32::from_le_bytes(words[r * cols + c]))
}

/// A tensor of `len` floats of any kind as f32, each of them a finite number.
fn floats(t: &Tensor, len: usize) -> Result<Vec<f32>> {
    let ty = match t.dtype {
        Dtype::F32 => Type::F32,
        Dtype::F16 => Type::F16,
        Dtype::BF16 => Type::BF16,
        other => return Err(wrong(&t.name, format!("is {other}, not F32, F16 or BF16"))),
    };
    let product = t.shape.iter().product::<usize>();
    if product != len {
        let what = format!("has shape {:?}; {len} numbers are needed", t.shape);
        return Err(wrong(&t.name, what));
    }
    let mut out = vec![0.0; len];
    kernels::dequantize(ty, &t.data, &mut out)?;
    match out.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(wrong(&t.name, format!("has {} as its number {i}", out[i]))),
        None => Ok(out),
    }
}

/// A matrix of integers that share scales: y[r][c] = scale(r, c) * integer(r, c).
struct Integers<I, S> {
    rows: usize,
    cols: usize,
    /// Least and greatest integer that there can be.
    range: (i32, i32),
    /// Whether each aligned stretch of [`PACKED`] columns of a row has one scale.
    blocks: bool,
    integer: I,
    scale: S,
}

impl<I: Fn(usize, usize) -> i32, S: Fn(usize, usize) -> f32> Integers<I, S> {
    /// The matrix as a tensor, in blocks if a type holds them exactly, else as floats.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let ty = integer_type(self.range.0, self.range.1);
        if let Some(ty) = ty.filter(|_| self.blocks && self.cols.is_multiple_of(PACKED))
            && let Some(bytes) = self.packed(name, ty)?
        {
            return whole(name, ty, [self.rows, self.cols], bytes);
        }
        widened(name, self.rows, self.cols, |r, c| {
            (self.integer)(r, c) as f32 * (self.scale)(r, c)
        })
    }

    /// The blocks of the matrix; `None` if a scale is no half-precision number.
    fn packed(&self, name: &str, ty: Type) -> Result<Option<Vec<u8>>> {
        let size = ty
            .row_bytes(self.cols)
            .and_then(|n| n.checked_mul(self.rows));
        let mut bytes = reserved(name, size)?;
        for r in 0..self.rows {
            for c in (0..self.cols).step_by(PACKED) {
                let integers = std::array::from_fn(|e| (self.integer)(r, c + e));
                if !pack(ty, &integers, (self.scale)(r, c), &mut bytes) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(bytes))
    }
}

/// A matrix of numbers as a tensor of the narrowest float type. A number that is none is an error.
fn widened(
    name: &str,
    rows: usize,
    cols: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Result<Tensor> {
    let mut values = reserved(name, rows.checked_mul(cols))?;
    for r in 0..rows {
        values.extend((0..cols).map(|c| value(r, c)));
    }
    if let Some(i) = values.iter().position(|x: &f32| !x.is_finite()) {
        let what = format!("has {} in row {}, column {}", values[i], i / cols, i % cols);
        return Err(wrong(name, what));
    }
    let (ty, bytes) = narrow(&values);
    whole(name, ty, [rows, cols], bytes)
}

fn whole(name: &str, ty: Type, shape: [usize; 2], bytes: Vec<u8>) -> Result<Tensor> {
    let dtype = ty.name().parse::<Dtype>();
    let dtype = dtype.map_err(|what| wrong(name, what))?;
    Ok(Tensor::new(
        name,
        dtype,
        shape.to_vec(),
        Blob::from_vec(bytes),
    )?)
}

/// Room for `len` elements.
fn reserved<T>(name: &str, len: Option<usize>) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let fits = len.is_some_and(|len| room.try_reserve_exact(len).is_ok());
    match fits {
        true => Ok(room),
        false => Err(wrong(name, "does not fit in memory when it is repacked")),
    }
}
