//! GGUF, the model format of ggml and llama.cpp: versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | u32 version | u64 number of tensors | u64 number of keys
//! keys    x { string key | u32 value type | value }
//! tensors x { string name | u32 n_dims | u64 dims[n_dims], fastest first | u32 type | u64 offset }
//! zeros up to a multiple of ALIGN | tensor data, each tensor at a multiple of ALIGN
//! ```
//! A string is a u64 length and its bytes; a bool is one byte; an array is a u32 element type, a
//! u64 count and its elements. ALIGN is `general.alignment`, or 32. Offsets count from the first
//! aligned byte after the tensor list. There is no padding between fields.
//!
//! What it knows: this layout, and how a model is split over several files. What it must not
//! know: what any key or tensor means to a model, but for `general.alignment`,
//! `general.quantization_version` and `split.*`, which belong to the container.

mod metadata;
mod read;
mod split;
mod write;

use std::path::{Path, PathBuf};

pub use metadata::{Array, Metadata, Strings, Value};
pub use write::{FileWriter, Writer, write};

use crate::{Blob, Error, Tensors};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensor data is aligned if `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: usize = 32;

/// Arrays in arrays in arrays: deeper than any known file, shallow enough for any stack.
const MAX_DEPTH: usize = 8;

/// ggml's limit on the axes of a tensor.
const MAX_DIMS: usize = 4;

/// The specification's limit on a key in bytes; here on the name of a tensor as well.
const MAX_NAME: usize = 65_535;

/// Larger than any page. It bounds the padding that a file can call for.
const MAX_ALIGNMENT: u64 = 1 << 24;

/// What `general.alignment` may be.
fn valid_alignment(value: &Value) -> Result<usize, String> {
    match value.u64() {
        Some(n @ 8..=MAX_ALIGNMENT) if n.is_power_of_two() => Ok(n as usize),
        _ => Err(format!(
            "general.alignment is {value:?}: a power of two from 8 to {MAX_ALIGNMENT} is wanted"
        )),
    }
}

/// A GGUF file, or the parts of a split one put together.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// Keys and values, in the order of the file. Of a split model: those of its first part,
    /// without the `split.*` keys.
    pub metadata: Metadata,
    /// The tensors, in the order of the file (of the parts, one after the other).
    pub tensors: Tensors,
    /// The files that it was read from: one for each part; none for [`Gguf::parse`].
    pub files: Vec<PathBuf>,
}

impl Gguf {
    /// Maps and parses the model at `path`. Of a split model `path` may name any part; all parts
    /// must lie beside it, under the names `NAME-00001-of-000NN.gguf`.
    ///
    /// # Errors
    /// The file cannot be mapped, is not well-formed GGUF (the message has the byte offset), or a
    /// part is missing or does not belong to the others.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        split::open(path.as_ref())
    }

    /// Parses one GGUF file from its bytes. A part of a split model gives that part alone.
    ///
    /// # Errors
    /// The bytes are not well-formed GGUF; the message has the byte offset.
    pub fn parse(bytes: Blob) -> Result<Gguf, Error> {
        read::parse(bytes)
    }
}
