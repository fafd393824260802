//! Named tensors: a name, a number type, a shape and a range of bytes.
//!
//! What it knows: that a tensor's bytes must be as many as its type and shape call for, and that
//! a name stands for one tensor.

use std::path::Path;

use crate::error::{Error, MEMORY};
use crate::{Blob, Dtype};

/// One tensor of a file. Its bytes lie in the file's map, row-major and little-endian, at any
/// alignment.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name in the file.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Slowest axis first: a weight matrix is `[out, in]`, and `in` is contiguous. (GGUF writes
    /// its dims the other way round; the reader turns them.)
    pub shape: Vec<usize>,
    /// The bytes: `dtype.bytes(&shape)` of them.
    pub data: Blob,
}

impl Tensor {
    /// A tensor over `data`.
    ///
    /// # Errors
    /// [`Error::Size`] if `data` has not as many bytes as type and shape call for.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: Vec<usize>,
        data: Blob,
    ) -> Result<Tensor, Error> {
        let info = TensorInfo {
            name: name.into(),
            dtype,
            shape,
        };
        info.check(data.len())?;
        Ok(Tensor {
            name: info.name,
            dtype,
            shape: info.shape,
            data,
        })
    }

    /// The tensor without its bytes.
    pub fn info(&self) -> TensorInfo {
        TensorInfo {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }
}

/// A tensor without its bytes: what a writer must know before the data comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Slowest axis first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes that the tensor takes; `None` on overflow, or if a row is not a whole number of
    /// blocks.
    pub fn bytes(&self) -> Option<usize> {
        self.dtype.bytes(&self.shape)
    }

    /// # Errors
    /// [`Error::Size`] if the tensor does not take exactly `found` bytes.
    pub(crate) fn check(&self, found: usize) -> Result<(), Error> {
        if self.bytes() == Some(found) {
            return Ok(());
        }
        Err(Error::Size {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            expected: self.bytes(),
            found,
        })
    }
}

/// The tensors of a model, in the order of the file, each name once.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    list: Vec<Tensor>,
    /// Positions in `list`, sorted by name. A map would hold every name twice.
    by_name: Vec<usize>,
}

impl Tensors {
    /// Keeps the order of `list`.
    ///
    /// # Errors
    /// Two tensors have the same name.
    pub fn new(list: Vec<Tensor>) -> Result<Tensors, Error> {
        Tensors::build(list, Path::new(MEMORY))
    }

    pub(crate) fn build(list: Vec<Tensor>, path: &Path) -> Result<Tensors, Error> {
        let mut by_name: Vec<usize> = (0..list.len()).collect();
        by_name.sort_unstable_by(|&a, &b| list[a].name.cmp(&list[b].name));
        if let Some(pair) = by_name
            .windows(2)
            .find(|pair| list[pair[0]].name == list[pair[1]].name)
        {
            let name = &list[pair[0]].name;
            return Err(Error::invalid(path, format!("two tensors named `{name}`")));
        }
        Ok(Tensors { list, by_name })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let found = self
            .by_name
            .binary_search_by(|&at| self.list[at].name.as_str().cmp(name));
        found.ok().map(|at| &self.list[self.by_name[at]])
    }

    /// All tensors, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Tensor> {
        self.list.iter()
    }

    /// All names, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|tensor| tensor.name.as_str())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.list.iter().map(|t| t.data.len() as u64).sum()
    }

    pub(crate) fn into_vec(self) -> Vec<Tensor> {
        self.list
    }
}

impl<'a> IntoIterator for &'a Tensors {
    type Item = &'a Tensor;
    type IntoIter = std::slice::Iter<'a, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str) -> Tensor {
        Tensor::new(name, Dtype::U8, vec![1], Blob::from_vec(vec![0])).expect("one byte")
    }

    #[test]
    fn keeps_the_order_and_finds_by_name() {
        let names = ["b", "c", "a", ""];
        let tensors = Tensors::new(names.map(tensor).to_vec()).expect("distinct");
        assert!(tensors.names().eq(names));
        for name in names {
            assert_eq!(tensors.get(name).expect("there").name, name);
        }
        assert!(tensors.get("d").is_none());
        let twice = Tensors::new(["b", "a", "b"].map(tensor).to_vec());
        let error = twice.expect_err("two of one name").to_string();
        assert!(error.contains("`b`"), "{error}");
    }

    #[test]
    fn data_must_have_the_right_length() {
        let error = Tensor::new("w", Dtype::Q8_0, vec![2, 32], Blob::from_vec(vec![0; 67]));
        let error = error.expect_err("68 needed").to_string();
        assert_eq!(error, "tensor `w` (Q8_0 [2, 32]) needs 68 bytes, not 67");
        let error = Tensor::new("w", Dtype::Q8_0, vec![2, 33], Blob::from_vec(vec![]));
        assert!(error.is_err(), "a row of 33 is no whole number of blocks");
    }
}
