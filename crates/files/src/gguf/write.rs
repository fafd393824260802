//! Writing GGUF version 3: the header at once, then the tensors one by one.
//!
//! A model is larger than memory more often than not, so the writer asks only for names, types
//! and shapes at the start, and takes the data as it comes.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{
    Array, DEFAULT_ALIGNMENT, MAGIC, MAX_DEPTH, MAX_DIMS, MAX_NAME, Metadata, Value,
    valid_alignment,
};
use crate::create::NewFile;
use crate::error::MEMORY;
use crate::{Error, Tensor, TensorInfo};

/// Writes a GGUF file to `out`.
///
/// [`Writer::new`] writes the header; [`Writer::tensor`] takes the data of each tensor, in the
/// order in which they were announced, or [`Writer::part`] takes it piece by piece;
/// [`Writer::finish`] sees that none is missing.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    path: PathBuf,
    tensors: Vec<TensorInfo>,
    next: usize,
    /// Bytes of the next tensor that were written already.
    written: usize,
    alignment: usize,
}

impl<W: Write> Writer<W> {
    /// Writes the header. `general.alignment` in `metadata` is respected.
    ///
    /// # Errors
    /// GGUF cannot hold what is asked for (the same limits as for reading), or `out` fails.
    pub fn new(out: W, metadata: &Metadata, tensors: Vec<TensorInfo>) -> Result<Writer<W>, Error> {
        Writer::over(out, Path::new(MEMORY), metadata, tensors)
    }

    fn over(
        mut out: W,
        path: &Path,
        metadata: &Metadata,
        tensors: Vec<TensorInfo>,
    ) -> Result<Writer<W>, Error> {
        let (header, alignment) =
            header(metadata, &tensors).map_err(|what| Error::invalid(path, what))?;
        out.write_all(&header).map_err(|e| Error::io(path, e))?;
        Ok(Writer {
            out,
            path: path.to_path_buf(),
            tensors,
            next: 0,
            written: 0,
            alignment,
        })
    }

    /// Writes the data of the next tensor, and zeros up to the next multiple of the alignment.
    ///
    /// # Errors
    /// `data` has not the length that was announced, there is no next tensor, or `out` fails.
    pub fn tensor(&mut self, data: &[u8]) -> Result<(), Error> {
        if let Some(info) = self.tensors.get(self.next) {
            info.check(self.written.saturating_add(data.len()))?;
        }
        self.part(data)
    }

    /// Writes bytes of the next tensor; with its last one, zeros up to the next multiple of the
    /// alignment.
    ///
    /// # Errors
    /// `data` is more than is left of the tensor, there is no next tensor, or `out` fails.
    pub fn part(&mut self, data: &[u8]) -> Result<(), Error> {
        let Some(info) = self.tensors.get(self.next) else {
            let what = format!("more than the {} tensors announced", self.tensors.len());
            return Err(Error::invalid(&self.path, what));
        };
        let written = self.written.saturating_add(data.len());
        let bytes = info.bytes().unwrap_or_default();
        if written > bytes {
            info.check(written)?;
        }
        let mut done = self.out.write_all(data);
        self.written = written;
        if written == bytes {
            (self.next, self.written) = (self.next + 1, 0);
            let padding = vec![0; bytes.next_multiple_of(self.alignment) - bytes];
            done = done.and_then(|()| self.out.write_all(&padding));
        }
        done.map_err(|e| Error::io(&self.path, e))
    }

    /// Ends the file and gives `out` back.
    ///
    /// # Errors
    /// A tensor that was announced has not been written, or `out` fails.
    pub fn finish(mut self) -> Result<W, Error> {
        if let Some(info) = self.tensors.get(self.next) {
            let what = format!("tensor `{}` was announced but not written", info.name);
            return Err(Error::invalid(&self.path, what));
        }
        self.out.flush().map_err(|e| Error::io(&self.path, e))?;
        Ok(self.out)
    }
}

/// Writes a whole file at once, through a temporary one that is renamed to `path` at the end: a
/// file that is being read, even one of `tensors`, can be replaced.
///
/// # Errors
/// As for [`Writer`]; nothing is left at `path` then.
pub fn write<'a>(
    path: impl AsRef<Path>,
    metadata: &Metadata,
    tensors: impl IntoIterator<Item = &'a Tensor, IntoIter: Clone>,
) -> Result<(), Error> {
    let path = path.as_ref();
    let tensors = tensors.into_iter();
    let infos = tensors.clone().map(Tensor::info).collect();
    let mut writer = FileWriter::create(path, metadata, infos)?;
    for tensor in tensors {
        writer.tensor(&tensor.data)?;
    }
    writer.finish()
}

/// A [`Writer`] into a new file, which appears under its name when it is finished; dropped before
/// that, it leaves nothing behind.
#[derive(Debug)]
pub struct FileWriter(Writer<NewFile>);

impl FileWriter {
    /// Writes the header of the file that will be at `path`.
    ///
    /// # Errors
    /// As for [`Writer::new`].
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &Metadata,
        tensors: Vec<TensorInfo>,
    ) -> Result<FileWriter, Error> {
        let path = path.as_ref();
        let file = NewFile::create(path)?;
        Writer::over(file, path, metadata, tensors).map(FileWriter)
    }

    /// As [`Writer::tensor`].
    ///
    /// # Errors
    /// As for [`Writer::tensor`].
    pub fn tensor(&mut self, data: &[u8]) -> Result<(), Error> {
        self.0.tensor(data)
    }

    /// As [`Writer::part`].
    ///
    /// # Errors
    /// As for [`Writer::part`].
    pub fn part(&mut self, data: &[u8]) -> Result<(), Error> {
        self.0.part(data)
    }

    /// Ends the file and moves it into place.
    ///
    /// # Errors
    /// As for [`Writer::finish`].
    pub fn finish(self) -> Result<(), Error> {
        self.0.finish()?.commit()
    }
}

/// Everything before the tensor data, with the padding, and the alignment that it announces.
fn header(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<(Vec<u8>, usize), String> {
    let alignment = alignment(metadata)?;
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(3u32.to_le_bytes());
    put_len(&mut out, tensors.len());
    put_len(&mut out, metadata.len());
    for (key, value) in metadata.iter() {
        check_name(key)?;
        put_string(&mut out, key);
        if let Value::Array(array) = value
            && array.depth() > MAX_DEPTH
        {
            return Err(format!("`{key}`: arrays nested more than {MAX_DEPTH} deep"));
        }
        out.extend(value.kind().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut seen = HashSet::new();
    let mut offset = 0u64;
    for info in tensors {
        if !seen.insert(&info.name) {
            return Err(format!("two tensors named `{}`", info.name));
        }
        let bytes = put_tensor(&mut out, info, offset)?;
        let end = (bytes as u64).checked_next_multiple_of(alignment as u64);
        offset = end
            .and_then(|n| n.checked_add(offset))
            .ok_or("more than 2^64 bytes of tensors")?;
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    Ok((out, alignment))
}

/// The alignment that `metadata` asks for.
fn alignment(metadata: &Metadata) -> Result<usize, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => valid_alignment(value),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        n => Err(format!("a name of {n} bytes: 1 to {MAX_NAME} are possible")),
    }
}

/// Writes one line of the tensor list and gives the bytes that the tensor takes.
fn put_tensor(out: &mut Vec<u8>, info: &TensorInfo, offset: u64) -> Result<usize, String> {
    let TensorInfo { name, dtype, shape } = info;
    check_name(name)?;
    let id = dtype.ggml_id();
    let id = id.ok_or_else(|| format!("tensor `{name}`: GGUF has no number type {dtype}"))?;
    if shape.len() > MAX_DIMS || shape.contains(&0) {
        return Err(format!(
            "tensor `{name}`: GGUF holds at most {MAX_DIMS} dims, none of them 0, not {shape:?}"
        ));
    }
    let bytes = info.bytes();
    let bytes = bytes.ok_or_else(|| format!("tensor `{name}`: {dtype} {shape:?} has no size"))?;
    put_string(out, name);
    out.extend((shape.len() as u32).to_le_bytes());
    for &dim in shape.iter().rev() {
        put_len(out, dim);
    }
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(bytes)
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend((len as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    put_len(out, string.len());
    out.extend(string.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.extend(n.to_le_bytes()),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(s) => put_string(out, s),
        Value::Array(array) => put_array(out, array),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.kind().to_le_bytes());
    put_len(out, array.len());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::String(v) => v.iter().for_each(|s| put_string(out, s)),
        Array::Array(v) => v.iter().for_each(|a| put_array(out, a)),
        Array::U64(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}
