//! Checkpoints of karpathy/llama2.c: a header of numbers, then one array after the other.
//!
//! ```text
//! version 0:    config                                           | arrays
//! version 1, 2: "ak42" | version | config | shared u8 | group i32? | zeros up to 256 | arrays
//! config: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, each i32
//! ```
//! Arrays are little-endian f32; matrices are [out, in]. In version 2 a matrix is int8 followed by
//! an f32 scale for every `group` elements, which may run across rows. In version 0 a negative
//! vocab_size says that the head is not the embedding table, and two tables of rotary angles stand
//! where later versions have none.
//!
//! What it knows: this layout (`export.py` and `run.c` of that project). The tensors get the names
//! that Meta's checkpoints have. What it must not know: what the numbers of the header mean.

use std::path::Path;

use crate::bytes::Cursor;
use crate::{Blob, Dtype, Error, Tensor, Tensors};

/// "ak42" as a number: what versions 1 and up begin with.
pub(crate) const MAGIC: u32 = 0x616b_3432;

/// More blocks than any model has; each becomes nine tensors.
const MAX_LAYERS: usize = 4096;

/// Where the arrays begin in versions 1 and up.
const HEADER: usize = 256;

/// A checkpoint.
#[derive(Clone, Debug)]
pub struct Llama2c {
    /// 0, 1 or 2.
    pub version: u32,
    /// The numbers of its header.
    pub config: Header,
    /// The weights, under the names that Meta's checkpoints have. In version 2 a matrix `X.weight`
    /// is I8, and `X.scales` has one f32 for each [`Header::group`] of its elements.
    pub tensors: Tensors,
}

/// The numbers of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width of the model.
    pub dim: usize,
    /// Width of the feed-forward blocks.
    pub hidden_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Largest number of positions.
    pub seq_len: usize,
    /// Whether the head is the embedding table.
    pub shared: bool,
    /// Version 2: elements that share a scale.
    pub group: Option<usize>,
}

/// Maps the checkpoint at `path`.
///
/// # Errors
/// The file cannot be mapped or is not well-formed.
pub fn open(path: impl AsRef<Path>) -> Result<Llama2c, Error> {
    parse(Blob::map(path)?)
}

/// The checkpoint in `file`.
///
/// # Errors
/// The bytes are not well-formed.
pub fn parse(file: Blob) -> Result<Llama2c, Error> {
    let mut cursor = Cursor::new(&file, file.path());
    let version = match cursor.all().starts_with(&MAGIC.to_le_bytes()) {
        false => 0,
        true => {
            cursor.u32("the magic")?;
            cursor.u32("the version")?
        }
    };
    if version > 2 {
        let what = format!("version {version} of llama2.c's format; 0, 1 and 2 are known");
        return Err(cursor.wrong(4, what));
    }
    let config = header(&mut cursor, version)?;
    if version > 0 {
        cursor.seek(HEADER, "the first array")?;
    }
    let mut reader = Reader {
        file: &file,
        cursor,
        config,
        tensors: Vec::new(),
    };
    reader.arrays(version)?;
    let Reader {
        cursor, tensors, ..
    } = reader;
    if cursor.left() > 0 {
        let what = format!("{} bytes follow the last array", cursor.left());
        return Err(cursor.wrong(cursor.at(), what));
    }
    Ok(Llama2c {
        version,
        config,
        tensors: Tensors::build(tensors, file.path())?,
    })
}

fn header(cursor: &mut Cursor<'_>, version: u32) -> Result<Header, Error> {
    const NAMES: [&str; 7] = [
        "dim",
        "hidden_dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "vocab_size",
        "seq_len",
    ];
    let mut numbers = [0; 7];
    let mut shared = true;
    for (number, name) in numbers.iter_mut().zip(NAMES) {
        let at = cursor.at();
        let n = i32::from_le_bytes(cursor.array(name)?);
        if version == 0 && name == "vocab_size" {
            shared = n > 0;
        }
        let negative = n <= 0 && (version > 0 || name != "vocab_size" || n == 0);
        if negative || n == i32::MIN {
            return Err(cursor.wrong(at, format!("{name} is {n}")));
        }
        *number = n.unsigned_abs() as usize;
    }
    let [
        dim,
        hidden_dim,
        n_layers,
        n_heads,
        n_kv_heads,
        vocab_size,
        seq_len,
    ] = numbers;
    if n_layers > MAX_LAYERS {
        let what = format!("n_layers is {n_layers}, the limit is {MAX_LAYERS}");
        return Err(cursor.wrong(0, what));
    }
    if !dim.is_multiple_of(n_heads) {
        return Err(cursor.wrong(
            0,
            format!("dim {dim} is not a multiple of n_heads {n_heads}"),
        ));
    }
    if version > 0 {
        let at = cursor.at();
        shared = match cursor.array("whether the head is shared")? {
            [0] => false,
            [1] => true,
            [n] => {
                return Err(
                    cursor.wrong(at, format!("whether the head is shared is {n}, not 0 or 1"))
                );
            }
        };
    }
    let mut group = None;
    if version == 2 {
        let at = cursor.at();
        let n = i32::from_le_bytes(cursor.array("the group size")?);
        if n <= 0 {
            return Err(cursor.wrong(at, format!("the group size is {n}")));
        }
        group = Some(n.unsigned_abs() as usize);
    }
    Ok(Header {
        dim,
        hidden_dim,
        n_layers,
        n_heads,
        n_kv_heads,
        vocab_size,
        seq_len,
        shared,
        group,
    })
}

struct Reader<'a> {
    file: &'a Blob,
    cursor: Cursor<'a>,
    config: Header,
    tensors: Vec<Tensor>,
}

/// The matrices of a block in the order of the file, with the norms where version 0 has them.
const MATRICES: [&str; 7] = [
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
];
const NORMS: [&str; 2] = ["attention_norm", "ffn_norm"];

impl Reader<'_> {
    fn arrays(&mut self, version: u32) -> Result<(), Error> {
        let Header {
            dim, vocab_size, ..
        } = self.config;
        let table = [vocab_size, dim];
        if version == 0 {
            self.array("tok_embeddings", &table)?;
            self.layers(NORMS[0])?;
            MATRICES[..4]
                .iter()
                .try_for_each(|part| self.layers(part))?;
            self.layers(NORMS[1])?;
            MATRICES[4..]
                .iter()
                .try_for_each(|part| self.layers(part))?;
            self.array("norm", &[dim])?;
            // cos and sin of every position; they follow from the rest.
            let angles = self.bytes(
                Dtype::F32,
                &[self.config.seq_len, dim / self.config.n_heads],
            )?;
            self.cursor.take(angles, "the tables of rotary angles")?;
        } else {
            NORMS.iter().try_for_each(|part| self.layers(part))?;
            self.array("norm", &[dim])?;
            self.array("tok_embeddings", &table)?;
            MATRICES.iter().try_for_each(|part| self.layers(part))?;
        }
        match self.config.shared {
            true => Ok(()),
            false => self.array("output", &table),
        }
    }

    /// The array of every layer for one part of a block.
    fn layers(&mut self, part: &str) -> Result<(), Error> {
        let c = &self.config;
        let kv = (c.dim / c.n_heads).saturating_mul(c.n_kv_heads);
        let shape = match part {
            "attention.wq" | "attention.wo" => vec![c.dim, c.dim],
            "attention.wk" | "attention.wv" => vec![kv, c.dim],
            "feed_forward.w2" => vec![c.dim, c.hidden_dim],
            "feed_forward.w1" | "feed_forward.w3" => vec![c.hidden_dim, c.dim],
            _ => vec![c.dim],
        };
        (0..c.n_layers).try_for_each(|i| self.array(&format!("layers.{i}.{part}"), &shape))
    }

    fn array(&mut self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let weight = format!("{name}.weight");
        let Some(group) = self.config.group.filter(|_| shape.len() == 2) else {
            return self.tensor(weight, Dtype::F32, shape);
        };
        let elements = self.bytes(Dtype::I8, shape)?;
        if !elements.is_multiple_of(group) {
            let what =
                format!("`{weight}`: {elements} elements are no whole number of groups of {group}");
            return Err(self.cursor.wrong(self.cursor.at(), what));
        }
        self.tensor(weight, Dtype::I8, shape)?;
        self.tensor(format!("{name}.scales"), Dtype::F32, &[elements / group])
    }

    fn tensor(&mut self, name: String, dtype: Dtype, shape: &[usize]) -> Result<(), Error> {
        let bytes = self.bytes(dtype, shape)?;
        let at = self.cursor.at();
        self.cursor.take(bytes, format_args!("`{name}`"))?;
        let data = self.file.slice(at..at + bytes);
        let data = data.ok_or_else(|| self.cursor.wrong(at, "an array beyond the file"))?;
        self.tensors
            .push(Tensor::new(name, dtype, shape.to_vec(), data)?);
        Ok(())
    }

    fn bytes(&self, dtype: Dtype, shape: &[usize]) -> Result<usize, Error> {
        let bytes = dtype.bytes(shape);
        bytes.ok_or_else(|| {
            self.cursor
                .wrong(self.cursor.at(), format!("an array {shape:?} has no size"))
        })
    }
}
