//! Reading one GGUF file: from bytes to checked metadata and tensors.
//!
//! The parser goes front to back once. It allocates for a count only after comparing it with the
//! bytes left, and refuses whatever a later reader could misunderstand: keys and names that come
//! twice, tensors that overlap, sizes that do not add up.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::{Array, Metadata, Strings, Value};
use super::{DEFAULT_ALIGNMENT, Gguf, MAGIC, MAX_DEPTH, MAX_DIMS, MAX_NAME, valid_alignment};
use crate::bytes::Cursor;
use crate::detect::looks_like;
use crate::{Blob, Dtype, Error, Tensor, Tensors};

/// The version of the block layouts that ggml has had since May 2023, before GGUF.
const QUANTIZATION_VERSION: u64 = 2;

/// The least that a key with its value takes: length, one byte, type, one byte.
const MIN_KEY_BYTES: usize = 8 + 1 + 4 + 1;

/// The least that a tensor's entry takes: length, one byte, n_dims, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 4 + 8;

/// Metadata and tensor list may take so many bytes. Ten times the largest known; what they become
/// in memory is a small multiple, whatever the size of the file.
const MAX_HEADER: usize = 256 << 20;

/// Places reserved at once for a promised number of things; more come as they are read.
const RESERVED: usize = 1 << 12;

pub(super) fn parse(file: Blob) -> Result<Gguf, Error> {
    let cursor = Cursor::new(&file, file.path());
    let mut cursor = cursor.limited(MAX_HEADER, "the largest header that is read, 256 MiB,");
    let version = version(&mut cursor)?;
    let n_tensors = cursor.count(MIN_TENSOR_BYTES, "tensors")?;
    let n_keys = cursor.count(MIN_KEY_BYTES, "metadata keys")?;
    let (metadata, alignment) = keys(&mut cursor, n_keys)?;
    let entries = entries(&mut cursor, n_tensors, alignment)?;
    let tensors = place(&cursor, &file, alignment, entries)?;
    check_quantization(&metadata, &tensors, file.path())?;
    Ok(Gguf {
        version,
        metadata,
        tensors,
        files: Vec::new(),
    })
}

/// Checks the magic and gives the version.
fn version(cursor: &mut Cursor) -> Result<u32, Error> {
    let magic: [u8; 4] = cursor.array("the magic \"GGUF\"")?;
    if magic != MAGIC {
        let what = format!(
            "not a GGUF file: it begins with {magic:02x?} and not with \"GGUF\"{}",
            looks_like(cursor.all())
        );
        return Err(cursor.wrong(0, what));
    }
    let at = cursor.at();
    match cursor.u32("the version")? {
        version @ 2..=3 => Ok(version),
        1 => Err(cursor.wrong(
            at,
            "GGUF version 1 (of August 2023) is not supported, only 2 and 3: convert the model again",
        )),
        other if (1..=3).contains(&other.swap_bytes()) => Err(cursor.wrong(
            at,
            "a big-endian GGUF file: only little-endian ones are supported, convert the model again",
        )),
        other => Err(cursor.wrong(at, format!("GGUF version {other}, only 2 and 3 are known"))),
    }
}

/// Reads `n` keys with their values, and finds the alignment among them.
fn keys(cursor: &mut Cursor, n: usize) -> Result<(Metadata, usize), Error> {
    let mut entries = Vec::with_capacity(n.min(RESERVED));
    let mut seen = HashSet::with_capacity(n.min(RESERVED));
    let mut alignment = DEFAULT_ALIGNMENT;
    for i in 0..n {
        let at = cursor.at();
        let key = name(cursor, format_args!("metadata key {i}"))?;
        if !seen.insert(key) {
            return Err(cursor.wrong(at, format!("metadata key `{key}` comes twice")));
        }
        let kind = cursor.u32(format_args!("the type of `{key}`"))?;
        let at = cursor.at();
        let value = value(cursor, kind, key)?;
        if key == "general.alignment" {
            alignment = valid_alignment(&value).map_err(|what| cursor.wrong(at, what))?;
        }
        entries.push((key.to_string(), value));
    }
    Ok((Metadata::from_distinct(entries), alignment))
}

/// A key or the name of a tensor: a string that is neither empty nor endless.
fn name<'a>(cursor: &mut Cursor<'a>, what: impl std::fmt::Display) -> Result<&'a str, Error> {
    let at = cursor.at();
    let name = cursor.string(&what)?;
    match name.len() {
        1..=MAX_NAME => Ok(name),
        0 => Err(cursor.wrong(at, format!("{what} is empty"))),
        n => Err(cursor.wrong(at, format!("{what} has {n} bytes, the limit is {MAX_NAME}"))),
    }
}

/// The value of `key`, of value type `kind`.
fn value(cursor: &mut Cursor, kind: u32, key: &str) -> Result<Value, Error> {
    let what = format_args!("the value of `{key}`");
    Ok(match kind {
        0 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        7 => {
            let at = cursor.at();
            let [byte] = cursor.array(what)?;
            Value::Bool(truth(cursor, at, byte, key)?)
        }
        8 => Value::String(cursor.string(what)?.to_string()),
        9 => Value::Array(array(cursor, key, 1)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        _ => return Err(unknown_value_type(cursor, kind, key)),
    })
}

fn unknown_value_type(cursor: &Cursor, kind: u32, key: &str) -> Error {
    let what = format!("`{key}` has the unknown value type {kind} (0 to 12 are known)");
    cursor.wrong(cursor.at() - 4, what)
}

fn truth(cursor: &Cursor, at: usize, byte: u8, key: &str) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(cursor.wrong(at, format!("`{key}`: a bool must be 0 or 1, not {byte}"))),
    }
}

/// An array of `key`: element type, count, elements. The outermost has depth 1.
fn array(cursor: &mut Cursor, key: &str, depth: usize) -> Result<Array, Error> {
    if depth > MAX_DEPTH {
        let what = format!("`{key}`: arrays nested more than {MAX_DEPTH} deep");
        return Err(cursor.wrong(cursor.at(), what));
    }
    let kind = cursor.u32(format_args!("the element type of `{key}`"))?;
    Ok(match kind {
        0 => Array::U8(numbers(cursor, key, u8::from_le_bytes)?),
        1 => Array::I8(numbers(cursor, key, i8::from_le_bytes)?),
        2 => Array::U16(numbers(cursor, key, u16::from_le_bytes)?),
        3 => Array::I16(numbers(cursor, key, i16::from_le_bytes)?),
        4 => Array::U32(numbers(cursor, key, u32::from_le_bytes)?),
        5 => Array::I32(numbers(cursor, key, i32::from_le_bytes)?),
        6 => Array::F32(numbers(cursor, key, f32::from_le_bytes)?),
        7 => {
            let n = cursor.count(1, format_args!("elements of `{key}`"))?;
            let at = cursor.at();
            let bytes = cursor.take(n, format_args!("`{key}`"))?;
            let bools = bytes.iter().enumerate();
            let bools = bools.map(|(i, &byte)| truth(cursor, at + i, byte, key));
            Array::Bool(bools.collect::<Result<_, _>>()?)
        }
        8 => {
            let n = cursor.count(8, format_args!("elements of `{key}`"))?;
            let mut strings = Strings::with_capacity(n.min(RESERVED));
            for i in 0..n {
                strings.push(cursor.string(format_args!("`{key}`[{i}]"))?);
            }
            Array::String(strings)
        }
        9 => {
            // An array takes at least its element type and its count.
            let n = cursor.count(4 + 8, format_args!("elements of `{key}`"))?;
            let mut arrays = Vec::with_capacity(n.min(RESERVED));
            for _ in 0..n {
                arrays.push(array(cursor, key, depth + 1)?);
            }
            Array::Array(arrays)
        }
        10 => Array::U64(numbers(cursor, key, u64::from_le_bytes)?),
        11 => Array::I64(numbers(cursor, key, i64::from_le_bytes)?),
        12 => Array::F64(numbers(cursor, key, f64::from_le_bytes)?),
        _ => return Err(unknown_value_type(cursor, kind, key)),
    })
}

/// The count and the elements of an array of `N`-byte numbers.
fn numbers<T, const N: usize>(
    cursor: &mut Cursor,
    key: &str,
    read: fn([u8; N]) -> T,
) -> Result<Vec<T>, Error> {
    let n = cursor.count(N, format_args!("elements of `{key}`"))?;
    // `count` has seen that n * N bytes are left.
    let bytes = cursor.take(n * N, format_args!("`{key}`"))?;
    let (elements, _) = bytes.as_chunks::<N>();
    Ok(elements.iter().map(|&bytes| read(bytes)).collect())
}

/// One line of the tensor list, checked as far as it can be before the list has ended.
struct Entry<'a> {
    name: &'a str,
    dtype: Dtype,
    /// Slowest first.
    shape: Vec<usize>,
    bytes: usize,
    /// From the start of the data section.
    offset: u64,
    /// Where in the file `offset` is written: what errors about the placement point at.
    at: usize,
}

/// Reads the list of `n` tensors.
fn entries<'a>(
    cursor: &mut Cursor<'a>,
    n: usize,
    alignment: usize,
) -> Result<Vec<Entry<'a>>, Error> {
    let mut entries = Vec::with_capacity(n.min(RESERVED));
    let mut seen = HashSet::with_capacity(n.min(RESERVED));
    for i in 0..n {
        let at = cursor.at();
        let entry = entry(cursor, i)?;
        let name = entry.name;
        if !seen.insert(name) {
            return Err(cursor.wrong(at, format!("tensor `{name}` comes twice")));
        }
        if !entry.offset.is_multiple_of(alignment as u64) {
            let offset = entry.offset;
            let what = format!("tensor `{name}`: offset {offset} is not a multiple of {alignment}");
            return Err(cursor.wrong(entry.at, what));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Reads one line of the tensor list: name, dims, type, offset.
fn entry<'a>(cursor: &mut Cursor<'a>, i: usize) -> Result<Entry<'a>, Error> {
    let name = name(cursor, format_args!("the name of tensor {i}"))?;
    let at = cursor.at();
    let n_dims = cursor.u32(format_args!("n_dims of tensor `{name}`"))? as usize;
    if n_dims > MAX_DIMS {
        let what = format!("tensor `{name}` has {n_dims} dims, the limit is {MAX_DIMS}");
        return Err(cursor.wrong(at, what));
    }
    let dims_at = cursor.at();
    let mut shape = Vec::with_capacity(n_dims);
    for axis in 0..n_dims {
        let at = cursor.at();
        let dim = cursor.u64(format_args!("dims of tensor `{name}`"))?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => {
                let what = format!("tensor `{name}`: dim {axis} is {dim}");
                return Err(cursor.wrong(at, what));
            }
        }
    }
    shape.reverse();
    let dtype = dtype(cursor, name)?;
    let Some(bytes) = dtype.bytes(&shape) else {
        let len = dtype.block_len();
        let what = format!(
            "tensor `{name}`: {dtype} {shape:?} has no size: its rows must be multiples of {len}, \
             and its bytes must fit into 64 bits"
        );
        return Err(cursor.wrong(dims_at, what));
    };
    let at = cursor.at();
    let offset = cursor.u64(format_args!("the offset of tensor `{name}`"))?;
    Ok(Entry {
        name,
        dtype,
        shape,
        bytes,
        offset,
        at,
    })
}

fn dtype(cursor: &mut Cursor, name: &str) -> Result<Dtype, Error> {
    let at = cursor.at();
    let id = cursor.u32(format_args!("the type of tensor `{name}`"))?;
    Dtype::from_ggml_id(id).ok_or_else(|| match Dtype::retired(id) {
        Some(old) => cursor.wrong(
            at,
            format!("tensor `{name}` has the type {old} (id {id}), which ggml has given up: convert the model again"),
        ),
        None => cursor.wrong(at, format!("tensor `{name}` has the unknown type id {id}")),
    })
}

/// Finds the bytes of each entry in the file, and sees to it that no two share any.
fn place(
    cursor: &Cursor,
    file: &Blob,
    alignment: usize,
    entries: Vec<Entry>,
) -> Result<Tensors, Error> {
    // The padding after the list may be missing if nothing follows it.
    let start = cursor.at().checked_next_multiple_of(alignment);
    let start = start.unwrap_or(file.len()).min(file.len());
    let room = file.len() - start;
    let mut by_offset: Vec<&Entry> = entries.iter().collect();
    by_offset.sort_unstable_by_key(|entry| entry.offset);
    let mut last: Option<&Entry> = None;
    let mut taken = 0;
    for entry in by_offset {
        let Entry { name, offset, .. } = entry;
        if let Some(last) = last.filter(|_| *offset < taken) {
            let what = format!(
                "tensor `{name}` at {offset} of the data overlaps `{}`, which ends at {taken}",
                last.name
            );
            return Err(cursor.wrong(entry.at.max(last.at), what));
        }
        taken = offset.saturating_add(entry.bytes as u64);
        last = Some(entry);
        if taken > room as u64 {
            let what = format!(
                "tensor `{name}` ({} bytes at {offset} of the data) ends beyond the file, which has {room} bytes of data",
                entry.bytes
            );
            return Err(cursor.wrong(entry.at, what));
        }
    }
    let tensors = entries.into_iter().map(|entry| {
        let offset = start + entry.offset as usize;
        let data = file.slice(offset..offset + entry.bytes);
        let data = data.ok_or_else(|| cursor.wrong(entry.at, "ends beyond the file"))?;
        Tensor::new(entry.name, entry.dtype, entry.shape, data)
    });
    Tensors::build(tensors.collect::<Result<_, _>>()?, file.path())
}

/// Refuses quantised tensors in block layouts from before version 2. A file that does not say is
/// taken to have version 2, which is older than GGUF itself.
pub(super) fn check_quantization(
    metadata: &Metadata,
    tensors: &Tensors,
    path: &Path,
) -> Result<(), Error> {
    let Some(value) = metadata.get("general.quantization_version") else {
        return Ok(());
    };
    let quantized = tensors.iter().find(|tensor| tensor.dtype.is_quantized());
    match quantized {
        Some(tensor) if value.u64() != Some(QUANTIZATION_VERSION) => {
            let what = format!(
                "general.quantization_version is {value:?}, only {QUANTIZATION_VERSION} is known, \
                 and tensor `{}` is {}",
                tensor.name, tensor.dtype
            );
            Err(Error::invalid(path, what))
        }
        _ => Ok(()),
    }
}
