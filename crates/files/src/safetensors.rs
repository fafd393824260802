//! safetensors: a JSON header and one buffer; alone, or as the shards of a model.
//!
//! ```text
//! u64 N | N bytes of JSON, padded with spaces | buffer
//! header: { name: { dtype, shape, data_offsets: [begin, end) in the buffer }, "__metadata__"?: { text: text } }
//! ```
//! Row-major, little-endian; the tensors cover the whole buffer, without holes or overlaps. A
//! sharded model has `model.safetensors.index.json`, which says which tensor lies in which file.
//!
//! What it knows: these two layouts. The header's arithmetic is checked by the format's own
//! crate; what that lets pass (names that come twice, endless shapes) is checked here first. What
//! it must not know: what a tensor is for.

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use ::safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::bytes::Cursor;
use crate::create::NewFile;
use crate::detect::looks_like;
use crate::json::Distinct;
use crate::shards::{self, Format};
use crate::{Blob, Dtype, Error, Tensor, TensorInfo, Tensors};

/// The name of the one file of a model that is not sharded.
pub const SINGLE: &str = "model.safetensors";

/// The weights of a Hugging Face directory.
pub(crate) const FORMAT: Format = Format {
    single: SINGLE,
    index: "model.safetensors.index.json",
    open: |path| open(path),
};

/// The one key of a header that is not a tensor: notes, text to text.
const NOTES: &str = "__metadata__";

/// The format's own limit on the header.
const MAX_HEADER: usize = 100_000_000;

/// More axes than any tensor has. It keeps a hostile header from growing in memory.
const MAX_DIMS: usize = 16;

/// Maps the safetensors file at `path`; its tensors come in the order of their data.
///
/// # Errors
/// The file cannot be mapped or is not well-formed.
pub fn open(path: impl AsRef<Path>) -> Result<Tensors, Error> {
    parse(Blob::map(path)?)
}

/// The tensors of a safetensors file from its bytes, in the order of their data.
///
/// # Errors
/// The bytes are not well-formed safetensors.
pub fn parse(file: Blob) -> Result<Tensors, Error> {
    let (start, mut entries) = header(&file)?;
    let wrong = |at: usize, what: String| Error::malformed(file.path(), at, what);
    // Sees to it that the tensors follow each other from the first byte of the buffer to its last.
    SafeTensors::read_metadata(&file).map_err(|error| match error {
        SafeTensorError::InvalidOffset(name) => {
            let entry = entries.iter().find(|(key, _)| *key == name);
            let begin = entry.map_or(0, |(_, entry)| entry.data_offsets.0);
            let what = format!(
                "tensor `{name}` does not begin where the one before it ends: a hole or an overlap"
            );
            wrong(start.saturating_add(begin), what)
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            let what = "the tensors do not end where the file ends: it is cut short, or holds more";
            wrong(file.len(), what.to_string())
        }
        other => wrong(LEN, format!("the header is wrong: {other}")),
    })?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let tensors = entries.into_iter().map(|(name, entry)| {
        let (begin, end) = entry.data_offsets;
        let data = file.slice(start + begin..start + end).ok_or_else(|| {
            let what = format!("tensor `{name}` ends beyond the file");
            wrong(start + begin, what)
        })?;
        Tensor::new(name, entry.dtype, entry.shape.0, data)
    });
    Tensors::build(tensors.collect::<Result<_, _>>()?, file.path())
}

/// Bytes of the header's length.
const LEN: usize = 8;

/// Reads the header: where the buffer begins, and the entries in the order of the file, each with
/// offsets that fit its type and shape.
fn header(file: &Blob) -> Result<(usize, Vec<(String, Entry)>), Error> {
    let mut cursor = Cursor::new(file, file.path());
    let n = cursor.u64("the length of the header")?;
    let (left, most) = (cursor.left(), MAX_HEADER.min(cursor.left()));
    let n = match usize::try_from(n) {
        Ok(n) if n <= most => n,
        _ => {
            let what = format!(
                "a header of {n} bytes promised, {left} bytes are left and the limit is {MAX_HEADER}{}",
                looks_like(file)
            );
            return Err(cursor.wrong(0, what));
        }
    };
    let json = cursor.take(n, "the header")?;
    let header: Header = serde_json::from_slice(json).map_err(|e| {
        let what = format!("the header is wrong: {e}");
        cursor.wrong(LEN + place(json, &e), what)
    })?;
    let start = cursor.at();
    for (name, entry) in &header.0 {
        let (begin, end) = entry.data_offsets;
        let (dtype, shape) = (entry.dtype, &entry.shape.0);
        let expected = dtype.bytes(shape);
        if expected.is_none() || end.checked_sub(begin) != expected {
            let needed = expected.map_or("more than 2^64".to_string(), |n| n.to_string());
            let what = format!(
                "tensor `{name}`: {dtype} {shape:?} takes {needed} bytes, but its offsets are {begin} to {end}"
            );
            return Err(cursor.wrong(start.saturating_add(begin), what));
        }
    }
    Ok((start, header.0))
}

/// Where in `json` the parser stopped.
fn place(json: &[u8], error: &serde_json::Error) -> usize {
    let lines = json.split_inclusive(|&byte| byte == b'\n');
    let before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + error.column().saturating_sub(1)).min(json.len())
}

/// The header: its tensors, in the order of the file, each name once.
struct Header(Vec<(String, Entry)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// A shape of no more than [`MAX_DIMS`] axes, so that "[1,1,1,..." does not grow in memory.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Header, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = HashSet::new();
                let mut list = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("`{name}` comes twice")));
                    }
                    if name == NOTES {
                        map.next_value::<Distinct<String>>()?;
                    } else {
                        list.push((name, map.next_value()?));
                    }
                }
                Ok(Header(list))
            }
        }

        input.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Shape, D::Error> {
        struct Dims;

        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a shape of at most {MAX_DIMS} dims")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }

        input.deserialize_seq(Dims)
    }
}

fn dtype<'de, D: Deserializer<'de>>(input: D) -> Result<Dtype, D::Error> {
    let name = String::deserialize(input)?;
    let known = Dtype::all().find(|dtype| dtype.in_safetensors() && dtype.name() == name);
    known.ok_or_else(|| D::Error::custom(format_args!("the number type `{name}` is not supported")))
}

/// The tensors of a model in the directory `dir`: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` lists, in the order of the index.
///
/// # Errors
/// There is neither; a file is not well-formed; a shard is missing, or its tensors are not those
/// that the index says; the index names a file outside `dir`.
pub fn open_all(dir: impl AsRef<Path>) -> Result<Tensors, Error> {
    shards::open_all(dir.as_ref(), &[FORMAT])
}

/// Writes a safetensors file of `(name, type, shape, bytes)`, through a temporary file that is
/// renamed to `path` at the end. Wide number types come first in the buffer, so that every tensor
/// is aligned to its type; otherwise the order is kept.
///
/// # Errors
/// As for [`FileWriter`]; nothing is left at `path` then.
pub fn write(
    path: impl AsRef<Path>,
    tensors: &[(&str, Dtype, &[usize], &[u8])],
) -> Result<(), Error> {
    let info = |&(name, dtype, shape, bytes): &(&str, Dtype, &[usize], &[u8])| {
        let info = TensorInfo {
            name: name.to_string(),
            dtype,
            shape: shape.to_vec(),
        };
        info.check(bytes.len()).map(|()| info)
    };
    let infos: Result<Vec<_>, Error> = tensors.iter().map(info).collect();
    let mut writer = FileWriter::create(path, infos?)?;
    while let Some(next) = writer.coming() {
        let bytes = tensors.iter().find(|t| t.0 == next.name).map(|t| t.3);
        writer.part(bytes.unwrap_or_default())?;
    }
    writer.finish()
}

/// A new file whose tensors are written piece by piece; it appears under its name when it is
/// finished, and dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct FileWriter {
    out: NewFile,
    path: PathBuf,
    infos: Vec<TensorInfo>,
    next: usize,
    /// Bytes of the next tensor that were written already.
    written: usize,
}

impl FileWriter {
    /// Writes the header of the file that will be at `path`. Wide number types will come first, so
    /// that every tensor is aligned to its type; [`FileWriter::coming`] tells the order.
    ///
    /// # Errors
    /// A type that safetensors does not have, a shape without a size, a name that comes twice or is
    /// taken by the format, or the file cannot be written.
    pub fn create(path: impl AsRef<Path>, infos: Vec<TensorInfo>) -> Result<FileWriter, Error> {
        let (path, mut infos) = (path.as_ref(), infos);
        infos.sort_by_key(|info| std::cmp::Reverse(info.dtype.block_bytes()));
        let header = write_header(&infos, path)?;
        let mut writer = FileWriter {
            out: NewFile::create(path)?,
            path: path.to_path_buf(),
            infos,
            next: 0,
            written: 0,
        };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(header.as_bytes())?;
        Ok(writer)
    }

    /// The tensor whose bytes come next; `None` at the end.
    pub fn coming(&mut self) -> Option<&TensorInfo> {
        // Those without bytes need none.
        while self
            .infos
            .get(self.next)
            .is_some_and(|i| i.bytes() == Some(0))
        {
            self.next += 1;
        }
        self.infos.get(self.next)
    }

    /// Writes bytes of the next tensor.
    ///
    /// # Errors
    /// They are more than is left of it, there is none, or the file cannot be written.
    pub fn part(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(info) = self.coming().cloned() else {
            return Err(Error::invalid(&self.path, "more bytes than were announced"));
        };
        let written = self.written.saturating_add(bytes.len());
        if info.bytes().is_none_or(|all| written > all) {
            info.check(written)?;
        }
        self.put(bytes)?;
        self.written = written;
        if info.bytes() == Some(written) {
            (self.next, self.written) = (self.next + 1, 0);
        }
        Ok(())
    }

    /// Ends the file and moves it into place.
    ///
    /// # Errors
    /// A tensor is not whole, or the file cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        if let Some(info) = self.coming() {
            let what = format!("tensor `{}` was announced but not written", info.name);
            return Err(Error::invalid(&self.path, what));
        }
        self.out.commit()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let path = &self.path;
        self.out.write_all(bytes).map_err(|e| Error::io(path, e))
    }
}

fn write_header(infos: &[TensorInfo], path: &Path) -> Result<String, Error> {
    let mut seen = HashSet::new();
    // The note is what transformers asks of a file.
    let mut header = format!(r#"{{"{NOTES}":{{"format":"pt"}}"#);
    let mut begin = 0;
    for info in infos {
        let TensorInfo { name, dtype, shape } = info;
        if name == NOTES || !seen.insert(name) {
            let what = format!("a tensor cannot be named `{name}` (again)");
            return Err(Error::invalid(path, what));
        }
        if !dtype.in_safetensors() {
            let what = format!("tensor `{name}`: safetensors has no number type {dtype}");
            return Err(Error::invalid(path, what));
        }
        let end = info.bytes().and_then(|n| n.checked_add(begin));
        let end = end.ok_or_else(|| {
            Error::invalid(path, format!("tensor `{name}`: {shape:?} has no size"))
        })?;
        let key = serde_json::Value::from(name.as_str());
        header.push_str(&format!(
            r#",{key}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
        begin = end;
    }
    header.push('}');
    // The buffer begins at a multiple of 8.
    while !header.len().is_multiple_of(LEN) {
        header.push(' ');
    }
    Ok(header)
}
