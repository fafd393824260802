//! Storage types of weights, as a table, and the borrowed matrix over their bytes.
//!
//! Knows block sizes. Knows neither files nor how blocks are decoded (see `blocks`).

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// How the values of a row are stored. Block layouts: `blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    non_camel_case_types,
    reason = "the field's own names for these formats"
)]
#[expect(
    missing_docs,
    reason = "the table `INFO` and the module `blocks` say what each one is"
)]
pub enum Type {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ1_S,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// (type, name, values in a block, bytes of a block), in the order of the enum.
const INFO: [(Type, &str, usize, usize); 28] = [
    (Type::F32, "F32", 1, 4),
    (Type::F16, "F16", 1, 2),
    (Type::BF16, "BF16", 1, 2),
    (Type::Q4_0, "Q4_0", 32, 18),
    (Type::Q4_1, "Q4_1", 32, 20),
    (Type::Q5_0, "Q5_0", 32, 22),
    (Type::Q5_1, "Q5_1", 32, 24),
    (Type::Q8_0, "Q8_0", 32, 34),
    (Type::Q2_K, "Q2_K", 256, 84),
    (Type::Q3_K, "Q3_K", 256, 110),
    (Type::Q4_K, "Q4_K", 256, 144),
    (Type::Q5_K, "Q5_K", 256, 176),
    (Type::Q6_K, "Q6_K", 256, 210),
    (Type::IQ4_NL, "IQ4_NL", 32, 18),
    (Type::IQ4_XS, "IQ4_XS", 256, 136),
    (Type::MXFP4, "MXFP4", 32, 17),
    (Type::IQ2_XXS, "IQ2_XXS", 256, 66),
    (Type::IQ2_XS, "IQ2_XS", 256, 74),
    (Type::IQ2_S, "IQ2_S", 256, 82),
    (Type::IQ3_XXS, "IQ3_XXS", 256, 98),
    (Type::IQ3_S, "IQ3_S", 256, 110),
    (Type::IQ1_S, "IQ1_S", 256, 50),
    (Type::IQ1_M, "IQ1_M", 256, 56),
    (Type::TQ1_0, "TQ1_0", 256, 54),
    (Type::TQ2_0, "TQ2_0", 256, 66),
    (Type::NVFP4, "NVFP4", 64, 36),
    (Type::Q1_0, "Q1_0", 128, 18),
    (Type::Q2_0, "Q2_0", 64, 18),
];

impl Type {
    /// Every storage type.
    pub const ALL: &'static [Type] = &{
        let mut all = [Type::F32; INFO.len()];
        let mut i = 0;
        while i < INFO.len() {
            all[i] = INFO[i].0;
            i += 1;
        }
        all
    };

    /// The field's name, e.g. `Q4_K`.
    pub fn name(self) -> &'static str {
        INFO[self as usize].1
    }

    /// Values in a block; a row holds a whole number of blocks.
    pub fn block_len(self) -> usize {
        INFO[self as usize].2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        INFO[self as usize].3
    }

    /// Bytes of a row of `cols` values; `None` if that is no whole number of blocks or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for F32, F16 and BF16: one value is one number, without a shared scale.
    pub fn is_float(self) -> bool {
        self.block_len() == 1
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Type {
    type Err = Error;

    fn from_str(s: &str) -> Result<Type, Error> {
        let found = INFO.iter().find(|info| info.1.eq_ignore_ascii_case(s));
        found.map(|info| info.0).ok_or_else(|| Error::Unknown {
            what: "storage type",
            given: s.to_owned(),
            expected: INFO.map(|info| info.1).join(", "),
        })
    }
}

/// The most parts that a matrix may lie in: the most machines that a model was split over.
pub const MAX_PARTS: usize = 16;

/// A borrowed weight matrix `[rows, cols]`, row-major, each row whole blocks of `ty`, in one stretch
/// of bytes or in several that hold as many rows each. The bytes may be unaligned.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    ty: Type,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// Rows of a part.
    part_rows: usize,
    /// The first row's part comes first; those that are not there are empty.
    parts: [&'a [u8]; MAX_PARTS],
}

impl<'a> Matrix<'a> {
    /// A view of `data`, which must be exactly `rows` rows of `cols` values.
    ///
    /// # Errors
    /// [`Error::Columns`] if a row is no whole number of blocks, [`Error::Bytes`] on a wrong length.
    pub fn new(ty: Type, rows: usize, cols: usize, data: &'a [u8]) -> Result<Matrix<'a>, Error> {
        Matrix::in_parts(ty, rows, cols, [data])
    }

    /// A view of rows that lie in up to [`MAX_PARTS`] parts, as many rows in each.
    ///
    /// # Errors
    /// [`Error::Columns`] if a row is no whole number of blocks, [`Error::Bytes`] if the parts are
    /// not equal shares of the bytes, or too many.
    pub fn in_parts(
        ty: Type,
        rows: usize,
        cols: usize,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Matrix<'a>, Error> {
        let (row_bytes, need) = matrix_bytes(ty, rows, cols)?;
        let (mut all, mut count, mut have) = ([&[][..]; MAX_PARTS], 0, 0usize);
        for part in parts {
            have = have.saturating_add(part.len());
            if let Some(place) = all.get_mut(count) {
                *place = part;
            }
            count += 1;
        }
        let even = all[..count.min(MAX_PARTS)]
            .iter()
            .all(|part| part.len() == all[0].len());
        let fits = (1..=MAX_PARTS).contains(&count) && rows.is_multiple_of(count) && even;
        if have != need || !fits {
            return Err(Error::Bytes {
                ty,
                rows,
                cols,
                need,
                have,
            });
        }
        Ok(Matrix {
            ty,
            rows,
            cols,
            row_bytes,
            part_rows: rows / count,
            parts: all,
        })
    }

    /// Storage type.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Rows: outputs of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one row. Inlined into the level functions, which call it row by row. Panics if `row` is not below `rows`.
    #[inline]
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(
            row < self.rows,
            "row {row} of a matrix with {} rows",
            self.rows
        );
        // Most matrices have one part: no division for them.
        let (part, row) = match row < self.part_rows {
            true => (0, row),
            false => (row / self.part_rows, row % self.part_rows),
        };
        &self.parts[part][row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

/// Bytes of a row and of the whole matrix.
pub(crate) fn matrix_bytes(ty: Type, rows: usize, cols: usize) -> Result<(usize, usize), Error> {
    if !cols.is_multiple_of(ty.block_len()) {
        return Err(Error::Columns {
            ty,
            cols,
            block: ty.block_len(),
        });
    }
    let too_large = || Error::TooLarge {
        what: format!("{ty} [{rows}, {cols}]"),
    };
    let row = ty.row_bytes(cols).ok_or_else(too_large)?;
    let all = row.checked_mul(rows).ok_or_else(too_large)?;
    Ok((row, all))
}
