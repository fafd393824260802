//! PyTorch checkpoints (`torch.save`): tensors that lie in a ZIP archive, under names in a pickle.
//!
//! ```text
//! NAME/data.pkl    a dictionary: tensor name -> a call that builds the tensor
//! NAME/data/KEY    the bytes of a storage; several tensors may share one
//! NAME/byteorder   "little", in newer files
//! ```
//! The call that builds a tensor names its storage, the offset of its first element there, its
//! shape and its strides. Where the elements lie one after the other, the tensor is a view of the
//! map; where they do not (a transposed matrix), they are copied into their order.
//!
//! What it knows: which functions and classes such a pickle names, and what they are told. Nothing
//! of a pickle is run. What it must not know: what a tensor is for.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::bytes::Cursor;
use crate::pickle::{self, Globals, Id, Node, Pickle};
use crate::shards::Format;
use crate::{Blob, Dtype, Error, Kind, Tensor, Tensors, detect_bytes, zip};

/// The weights of a Hugging Face directory, as PyTorch saved them.
pub(crate) const FORMAT: Format = Format {
    single: "pytorch_model.bin",
    index: "pytorch_model.bin.index.json",
    open: |path| open(path),
};

/// The largest pickle that is read: 200 bytes a tensor are usual.
const MAX_PICKLE: usize = 16 << 20;

/// More axes than any tensor has.
const MAX_DIMS: usize = 8;

/// Wrappers around a tensor (a parameter, a subclass) that are looked through.
const MAX_WRAPPERS: usize = 4;

/// What a checkpoint's pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    /// A dictionary that keeps its order.
    Dict,
    /// A storage of numbers of this type; the element type of a tensor (`of bytes`: the tensor says).
    Storage(Option<Dtype>),
    /// The type of a tensor's numbers, where the storage is of bytes.
    Numbers(Dtype),
    /// (storage, offset, shape, strides, requires_grad, hooks, notes?)
    Tensor,
    /// (storage, offset, shape, strides, requires_grad, hooks, dtype, notes?)
    TypedTensor,
    /// (tensor, requires_grad, hooks)
    Parameter,
    /// (function, class, arguments, attributes)
    Subclass,
    /// A class of tensors.
    Class,
    /// (tuple): a shape.
    Size,
}

#[rustfmt::skip]
const GLOBALS: &Globals<Global> = &[
    ("collections", "OrderedDict", Global::Dict),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::TypedTensor),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::Subclass),
    ("torch", "Tensor", Global::Class),
    ("torch.nn.parameter", "Parameter", Global::Class),
    ("torch", "Size", Global::Size),
    ("torch.storage", "UntypedStorage", Global::Storage(None)),
    ("torch", "DoubleStorage", Global::Storage(Some(Dtype::F64))),
    ("torch", "FloatStorage", Global::Storage(Some(Dtype::F32))),
    ("torch", "HalfStorage", Global::Storage(Some(Dtype::F16))),
    ("torch", "BFloat16Storage", Global::Storage(Some(Dtype::BF16))),
    ("torch", "LongStorage", Global::Storage(Some(Dtype::I64))),
    ("torch", "IntStorage", Global::Storage(Some(Dtype::I32))),
    ("torch", "ShortStorage", Global::Storage(Some(Dtype::I16))),
    ("torch", "CharStorage", Global::Storage(Some(Dtype::I8))),
    ("torch", "ByteStorage", Global::Storage(Some(Dtype::U8))),
    ("torch", "BoolStorage", Global::Storage(Some(Dtype::Bool))),
    ("torch", "float64", Global::Numbers(Dtype::F64)),
    ("torch", "float32", Global::Numbers(Dtype::F32)),
    ("torch", "float16", Global::Numbers(Dtype::F16)),
    ("torch", "bfloat16", Global::Numbers(Dtype::BF16)),
    ("torch", "float8_e4m3fn", Global::Numbers(Dtype::F8_E4M3)),
    ("torch", "float8_e5m2", Global::Numbers(Dtype::F8_E5M2)),
    ("torch", "float8_e8m0fnu", Global::Numbers(Dtype::F8_E8M0)),
    ("torch", "int64", Global::Numbers(Dtype::I64)),
    ("torch", "int32", Global::Numbers(Dtype::I32)),
    ("torch", "int16", Global::Numbers(Dtype::I16)),
    ("torch", "int8", Global::Numbers(Dtype::I8)),
    ("torch", "uint8", Global::Numbers(Dtype::U8)),
    ("torch", "uint16", Global::Numbers(Dtype::U16)),
    ("torch", "uint32", Global::Numbers(Dtype::U32)),
    ("torch", "uint64", Global::Numbers(Dtype::U64)),
    ("torch", "bool", Global::Numbers(Dtype::Bool)),
];

/// Maps the checkpoint at `path`; its tensors come in the order of its dictionary.
///
/// # Errors
/// The file cannot be mapped, or is no checkpoint of nothing but tensors.
pub fn open(path: impl AsRef<Path>) -> Result<Tensors, Error> {
    parse(Blob::map(path)?)
}

/// The tensors of a checkpoint from its bytes, in the order of its dictionary.
///
/// # Errors
/// As for [`open`].
pub fn parse(file: Blob) -> Result<Tensors, Error> {
    if detect_bytes(&file, file.len() as u64) != Kind::TorchZip {
        return Err(Error::malformed(file.path(), 0, no_archive(&file)));
    }
    let archive = Archive::new(&file)?;
    let range = archive.pickle.clone();
    if range.len() > MAX_PICKLE {
        let what = format!(
            "data.pkl has {} bytes, the limit is {MAX_PICKLE}",
            range.len()
        );
        return Err(Error::malformed(file.path(), range.start, what));
    }
    let mut cursor = Cursor::new(&file, file.path()).limited(range.end, "data.pkl");
    cursor.seek(range.start, "data.pkl")?;
    let pickle = pickle::read(cursor, GLOBALS, Global::Dict)?;
    let mut reader = Reader {
        file: &file,
        archive,
        pickle,
        copied: 0,
    };
    Tensors::build(reader.tensors()?, file.path())
}

fn no_archive(file: &Blob) -> String {
    let tar = file.get(257..262) == Some(b"ustar");
    match detect_bytes(file, file.len() as u64) {
        _ if tar => "a checkpoint of PyTorch before 0.1.10 (tar)".to_string() + OLD,
        Kind::Pickle => "a checkpoint of PyTorch before 1.6 (a bare pickle)".to_string() + OLD,
        Kind::Empty | Kind::Unknown => "not a PyTorch checkpoint: no ZIP archive".to_string(),
        kind => format!(
            "not a PyTorch checkpoint: it looks like {}",
            kind.describe()
        ),
    }
}

const OLD: &str =
    ", which cannot be read without running it; load it with PyTorch and save it again";

/// Where the pickle and the storages of a checkpoint lie.
struct Archive {
    pickle: Range<usize>,
    storages: HashMap<String, Range<usize>>,
}

impl Archive {
    fn new(file: &Blob) -> Result<Archive, Error> {
        let wrong = |what: String| Error::invalid(file.path(), what);
        let entries = zip::entries(file)?;
        let root = |name: &str| {
            name.strip_suffix("/data.pkl")
                .map(|root| format!("{root}/"))
        };
        let mut roots = entries
            .iter()
            .filter_map(|e| root(&e.name))
            .filter(|r| r.matches('/').count() == 1);
        let root = match (roots.next(), roots.next()) {
            (Some(root), None) => root,
            (None, _) => {
                return Err(wrong(
                    "a ZIP archive, but no PyTorch checkpoint: it has no data.pkl".into(),
                ));
            }
            (Some(_), Some(_)) => return Err(wrong("the archive has two data.pkl".into())),
        };
        let mut all = HashMap::with_capacity(entries.len());
        for entry in entries {
            let Some(name) = entry.name.strip_prefix(&root) else {
                return Err(wrong(format!(
                    "entry `{}` lies outside `{root}`",
                    entry.name
                )));
            };
            if all.insert(name.to_string(), entry.data).is_some() {
                return Err(wrong(format!("two entries named `{}`", entry.name)));
            }
        }
        if let Some(range) = all.get("byteorder")
            && file[range.clone()] != *b"little"
        {
            return Err(wrong("its numbers are not little-endian".into()));
        }
        let Some(pickle) = all.remove("data.pkl") else {
            return Err(wrong("the archive has no data.pkl".into()));
        };
        Ok(Archive {
            pickle,
            storages: all,
        })
    }
}

struct Reader<'a> {
    file: &'a Blob,
    archive: Archive,
    pickle: Pickle<'a, Global>,
    /// Bytes that were brought into their order, which are no more than the file has.
    copied: usize,
}

/// Where a tensor's elements lie, as the pickle says.
struct View {
    dtype: Dtype,
    /// Bytes of the storage in the file.
    storage: Range<usize>,
    /// All four in elements.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn tensors(&mut self) -> Result<Vec<Tensor>, Error> {
        let Node::Dict(items) = self.pickle.node(self.pickle.root) else {
            return Err(self.wrong("the checkpoint is no dictionary of tensors"));
        };
        let items = items.clone();
        let mut list = Vec::with_capacity(items.len());
        for (key, value) in items {
            let Node::Text(name) = *self.pickle.node(key) else {
                return Err(self.wrong("a key of the checkpoint is no text"));
            };
            let of_tensor = |what: String| self.wrong(format!("`{name}`: {what}"));
            let view = self.view(value).map_err(of_tensor)?;
            let data = self
                .data(&view)
                .map_err(|what| self.wrong(format!("`{name}`: {what}")))?;
            list.push(Tensor::new(name, view.dtype, view.shape, data)?);
        }
        Ok(list)
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(self.file.path(), what)
    }

    /// Reads the call that builds a tensor, through the wrappers around it.
    fn view(&self, mut id: Id) -> Result<View, String> {
        for _ in 0..MAX_WRAPPERS {
            let Node::Call(function, args) = *self.pickle.node(id) else {
                break;
            };
            match (function, self.tuple(args)?) {
                (Global::Parameter, [tensor, ..]) => id = *tensor,
                (Global::Subclass, [function, _, args, ..]) => {
                    return match self.pickle.node(*function) {
                        Node::Global(function @ (Global::Tensor | Global::TypedTensor)) => {
                            self.tensor(*function, self.tuple(*args)?)
                        }
                        _ => Err("a tensor that is built in an unknown way".into()),
                    };
                }
                (function @ (Global::Tensor | Global::TypedTensor), args) => {
                    return self.tensor(function, args);
                }
                _ => break,
            }
        }
        Err("is no tensor; only a flat dictionary of tensors is read".into())
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.pickle.node(id) {
            Node::Tuple(list) => Ok(list),
            _ => Err("a tuple is wanted".into()),
        }
    }

    fn tensor(&self, function: Global, args: &[Id]) -> Result<View, String> {
        let [storage, offset, shape, strides, _, _, rest @ ..] = args else {
            return Err(format!("a tensor of {} arguments", args.len()));
        };
        let (numbers, notes) = match (function, rest) {
            (Global::Tensor, notes) => (None, notes),
            (_, [numbers, notes @ ..]) => match self.pickle.node(*numbers) {
                Node::Global(Global::Numbers(dtype)) => (Some(*dtype), notes),
                _ => return Err("its number type is not known".into()),
            },
            _ => return Err("its number type is missing".into()),
        };
        // Notes say that the numbers are conjugate or negated.
        let plain = |id: &Id| match self.pickle.node(*id) {
            Node::None => true,
            Node::Dict(items) => items.is_empty(),
            _ => false,
        };
        if !notes.iter().all(plain) {
            return Err("has notes that would change its numbers".into());
        }
        let (storage, stored) = self.storage(*storage)?;
        let dtype = match (stored, numbers) {
            (Some(a), Some(b)) if a != b => return Err(format!("is {b} in a storage of {a}")),
            (Some(dtype), _) | (None, Some(dtype)) => dtype,
            (None, None) => return Err("its number type is missing".into()),
        };
        let view = View {
            dtype,
            storage,
            offset: self.count(*offset)?,
            shape: self.counts(*shape)?,
            strides: self.counts(*strides)?,
        };
        match view.shape.len() == view.strides.len() {
            true => Ok(view),
            false => Err(format!(
                "has {} dims and {} strides",
                view.shape.len(),
                view.strides.len()
            )),
        }
    }

    /// The bytes of a storage, and the type of its numbers (`None`: the tensor says).
    fn storage(&self, id: Id) -> Result<(Range<usize>, Option<Dtype>), String> {
        let Node::Persistent(id) = *self.pickle.node(id) else {
            return Err("has no storage".into());
        };
        let parts = self.tuple(id)?;
        let [kind, class, key, _, numel] = parts else {
            return Err(format!("a storage of {} parts", parts.len()));
        };
        let node = |id: &Id| self.pickle.node(*id);
        let (Node::Text("storage"), Node::Global(Global::Storage(dtype)), Node::Text(key)) =
            (node(kind), node(class), node(key))
        else {
            return Err("a storage of an unknown kind".into());
        };
        let shown: String = key.chars().take(40).collect();
        let Some(range) = self.archive.storages.get(&format!("data/{key}")) else {
            return Err(format!("its storage `data/{shown}` is not in the archive"));
        };
        let numel = self.count(*numel)?;
        let size = dtype.map_or(1, Dtype::block_bytes);
        if numel.checked_mul(size) != Some(range.len()) {
            return Err(format!(
                "its storage `data/{shown}` has {} bytes, not {numel} numbers of {size}",
                range.len()
            ));
        }
        Ok((range.clone(), *dtype))
    }

    fn count(&self, id: Id) -> Result<usize, String> {
        match self.pickle.node(id) {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("{n} where a count is wanted")),
            _ => Err("a count is wanted".into()),
        }
    }

    /// A tuple of counts, or a `torch.Size` of one.
    fn counts(&self, id: Id) -> Result<Vec<usize>, String> {
        let list = match *self.pickle.node(id) {
            Node::Call(Global::Size, args) => match self.tuple(args)? {
                [list] => self.tuple(*list)?,
                _ => return Err("a shape is wanted".into()),
            },
            _ => self.tuple(id)?,
        };
        if list.len() > MAX_DIMS {
            return Err(format!("has {} dims, the limit is {MAX_DIMS}", list.len()));
        }
        list.iter().map(|id| self.count(*id)).collect()
    }

    /// The tensor's bytes: a view of the file, or a copy in its order.
    fn data(&mut self, view: &View) -> Result<Blob, String> {
        let View {
            dtype,
            storage,
            offset,
            shape,
            strides,
        } = view;
        let size = dtype.block_bytes();
        let beyond = || {
            format!(
                "{dtype} {shape:?} with strides {strides:?} from {offset} on ends beyond its storage"
            )
        };
        let bytes = dtype.bytes(shape).ok_or_else(beyond)?;
        if bytes == 0 {
            return self
                .file
                .slice(storage.start..storage.start)
                .ok_or_else(beyond);
        }
        let mut last = *offset;
        for (dim, stride) in shape.iter().zip(strides) {
            let step = (dim - 1).checked_mul(*stride);
            last = step
                .and_then(|step| last.checked_add(step))
                .ok_or_else(beyond)?;
        }
        if last >= storage.len() / size {
            return Err(beyond());
        }
        let start = storage.start + offset * size;
        if is_contiguous(shape, strides) {
            return self.file.slice(start..start + bytes).ok_or_else(beyond);
        }
        self.copied = self.copied.saturating_add(bytes);
        if bytes > storage.len() || self.copied > self.file.len() {
            return Err("repeats its numbers; no weight does".into());
        }
        Ok(Blob::from_vec(gather(
            &self.file[start..storage.end],
            size,
            shape,
            strides,
            bytes,
        )))
    }
}

/// Whether the elements lie one after the other. The stride of an axis of one element means nothing.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    for (dim, stride) in shape.iter().zip(strides).rev() {
        if *dim != 1 && *stride != step {
            return false;
        }
        step *= dim;
    }
    true
}

/// Copies elements of `size` bytes into row-major order. They were checked to lie in `from`.
fn gather(from: &[u8], size: usize, shape: &[usize], strides: &[usize], bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    while out.len() < bytes {
        out.extend_from_slice(&from[at * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
