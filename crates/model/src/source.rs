//! A model as what a file of it would hold: metadata, and tensors in that file's names and orders,
//! whatever file they come from.
//!
//! Rows of query and key projections lie as the file's rotary heads want them: in pairs
//! (interleaved) in GGUF, in halves in Hugging Face's files. A row is moved as bytes, so that any
//! storage type stays what it is.

use std::borrow::Cow;
use std::ops::Range;

use files::gguf::{Gguf, Metadata};
use files::{Blob, Dtype, Tensor, TensorInfo};
use kernels::Type;

use crate::merge::Merge;

/// A model to write.
#[derive(Debug, Clone)]
pub struct Source {
    /// Metadata of the GGUF that it is, or would be.
    pub metadata: Metadata,
    /// Its tensors, in the order of the file.
    pub tensors: Vec<Piece>,
}

/// One tensor of a model to write.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Its name in the new file; its bytes are those of the old one.
    pub(crate) tensor: Tensor,
    /// How its rows are to lie.
    pub(crate) order: Order,
    /// Adapters to merge into it.
    pub(crate) merges: Vec<Merge>,
}

/// How rows move on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// They stay.
    Same,
    /// Of each head's rows the first half becomes the even ones: halves to pairs. The number is the
    /// width of a head.
    Pairs(usize),
    /// The other way round.
    Halves(usize),
    /// They are columns: row r of a matrix is column `first` + r of a matrix as high as this one is
    /// wide, of which each row has `width` numbers.
    Turned { first: usize, width: usize },
}

impl Order {
    /// Where the row that comes to stand at `row` lies now.
    pub(crate) fn from(self, row: usize) -> usize {
        match self {
            Order::Same => row,
            Order::Pairs(head) => {
                let (first, at) = (row / head * head, row % head);
                first + at / 2 + at % 2 * (head / 2)
            }
            Order::Halves(head) => {
                let (first, at) = (row / head * head, row % head);
                first + at % (head / 2) * 2 + at / (head / 2)
            }
            Order::Turned { first, .. } => first + row,
        }
    }
}

impl Piece {
    /// A tensor as it is.
    pub(crate) fn same(tensor: Tensor) -> Piece {
        Piece {
            tensor,
            order: Order::Same,
            merges: Vec::new(),
        }
    }

    /// Name, type and shape.
    pub fn info(&self) -> TensorInfo {
        self.tensor.info()
    }

    /// Storage type in the old file.
    pub fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    /// Bytes in the old file.
    pub(crate) fn bytes_now(&self) -> u64 {
        match self.grain() {
            1 => self.info().bytes().unwrap_or_default() as u64,
            // Blocks lie along the old rows.
            _ => self.tensor.data.len() as u64,
        }
    }

    /// Rows that come out of blocks together: more than one where they are columns of blocks.
    pub(crate) fn grain(&self) -> usize {
        match self.order {
            Order::Turned { .. } => self.dtype().block_len(),
            _ => 1,
        }
    }

    /// Values in a row; 1 for a scalar, and for a bias whose values move as rows do.
    pub(crate) fn cols(&self) -> usize {
        match self.tensor.shape[..] {
            [_] if self.order != Order::Same => 1,
            _ => self.tensor.shape.last().copied().unwrap_or(1),
        }
    }

    /// Rows of all matrices.
    pub(crate) fn rows(&self) -> usize {
        let all: usize = self.tensor.shape.iter().product();
        all / self.cols().max(1)
    }

    /// The bytes of some rows, in their new order.
    pub(crate) fn bytes(&self, rows: Range<usize>) -> Cow<'_, [u8]> {
        let data = &self.tensor.data;
        let each = self.bytes_now() as usize / self.rows().max(1);
        match self.order {
            Order::Same => data.read(rows.start * each..rows.end * each),
            Order::Turned { width, .. } => Cow::Owned(self.turned(rows, each, width)),
            order => {
                let mut out = Vec::with_capacity(rows.len() * each);
                for row in rows.map(|r| order.from(r)) {
                    out.extend_from_slice(&data.read(row * each..(row + 1) * each));
                }
                Cow::Owned(out)
            }
        }
    }

    /// Rows of so many bytes that are columns of the old file's matrices.
    fn turned(&self, rows: Range<usize>, each: usize, width: usize) -> Vec<u8> {
        let (high, size) = (self.matrix_rows(), each / self.cols().max(1));
        let mut out = vec![0; rows.len() * each];
        let mut done = rows.start;
        while done < rows.end {
            let (matrix, row) = (done / high, done % high);
            let count = (high - row).min(rows.end - done);
            let out = &mut out[(done - rows.start) * each..][..count * each];
            for col in 0..self.cols() {
                let at = (matrix * self.cols() + col) * width + self.order.from(row);
                let line = self.tensor.data.read(at * size..(at + count) * size);
                for (row, number) in out.chunks_exact_mut(each).zip(line.chunks_exact(size)) {
                    row[col * size..][..size].copy_from_slice(number);
                }
            }
            done += count;
        }
        out
    }

    /// The values of some rows, in their new order. Where the [`Piece::grain`] is more than one, they
    /// are whole grains of one matrix.
    pub(crate) fn values(
        &self,
        ty: Type,
        rows: Range<usize>,
        to: &mut [f32],
    ) -> Result<(), kernels::Error> {
        let (grain, wide) = (self.grain(), self.cols());
        let Order::Turned { first, width } = self.order else {
            return kernels::dequantize(ty, &self.bytes(rows), to);
        };
        if grain == 1 {
            return kernels::dequantize(ty, &self.bytes(rows), to);
        }
        let (matrix, row) = (
            rows.start / self.matrix_rows(),
            rows.start % self.matrix_rows(),
        );
        let bytes = |values: usize| values / grain * self.dtype().block_bytes();
        let mut line = vec![0.0; rows.len()];
        for col in 0..wide {
            let at = bytes((matrix * wide + col) * width) + bytes(first + row);
            let read = self.tensor.data.read(at..at + bytes(rows.len()));
            kernels::dequantize(ty, &read, &mut line)?;
            let column = to.iter_mut().skip(col).step_by(wide);
            column.zip(&line).for_each(|(to, x)| *to = *x);
        }
        Ok(())
    }

    /// Rows of one matrix.
    pub(crate) fn matrix_rows(&self) -> usize {
        let above = self.tensor.shape.iter().rev().nth(1);
        above.copied().unwrap_or(1).max(1)
    }

    /// Gives back the pages of rows that have been read: of columns, only once no column of their
    /// matrix is left.
    pub(crate) fn release(&self, rows: Range<usize>) {
        let all = self.rows().max(1);
        let (unit, count) = match self.order {
            Order::Turned { .. } => (self.matrix_rows(), all / self.matrix_rows()),
            _ => (1, all),
        };
        let each = self.tensor.data.len() / count.max(1);
        let read = self
            .tensor
            .data
            .slice(rows.start / unit * each..rows.end / unit * each);
        read.iter().for_each(Blob::release);
    }
}

impl Source {
    /// A GGUF as it is, of any architecture.
    pub fn from_gguf(gguf: &Gguf) -> Source {
        let mut metadata = gguf.metadata.clone();
        // The new file is in one part.
        metadata.retain(|key| !key.starts_with("split."));
        Source {
            metadata,
            tensors: gguf.tensors.iter().cloned().map(Piece::same).collect(),
        }
    }

    /// Whether it has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|p| p.tensor.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_orders_undo_each_other() {
        let pairs: Vec<usize> = (0..16).map(|r| Order::Pairs(8).from(r)).collect();
        assert_eq!(
            pairs,
            [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
        );
        let back: Vec<usize> = (0..16).map(|r| pairs[Order::Halves(8).from(r)]).collect();
        assert!(back.into_iter().eq(0..16));
    }
}
