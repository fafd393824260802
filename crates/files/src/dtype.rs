//! Number types: what each is called in GGUF and safetensors, and how many bytes a block takes.
//!
//! A block is the smallest piece that can be read alone: one element for plain numbers, 32 to 256
//! for the quantised types, whose elements share scales inside a block. This module knows sizes
//! only; what the bits of a block mean is the business of `kernels`.

use std::fmt;
use std::str::FromStr;

/// The type of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    non_camel_case_types,
    reason = "these are the names that the formats use"
)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 4 bits; f16 scale.
    Q4_0,
    /// 4 bits; f16 scale and minimum.
    Q4_1,
    /// 5 bits; f16 scale.
    Q5_0,
    /// 5 bits; f16 scale and minimum.
    Q5_1,
    /// 8 bits; f16 scale.
    Q8_0,
    /// 8 bits, f16 scale and sum: ggml's activations, not meant for files.
    Q8_1,
    /// 2 bits; 16 sub-blocks with 4-bit scales and minima.
    Q2_K,
    /// 3 bits; 16 sub-blocks with 6-bit scales.
    Q3_K,
    /// 4 bits; 8 sub-blocks with 6-bit scales and minima.
    Q4_K,
    /// 5 bits; 8 sub-blocks with 6-bit scales and minima.
    Q5_K,
    /// 6 bits; 16 sub-blocks with 8-bit scales.
    Q6_K,
    /// 8 bits, f32 scale and sums: ggml's activations, not meant for files.
    Q8_K,
    /// 2.06 bits; codebook of 256 octets of elements.
    IQ2_XXS,
    /// 2.31 bits; codebook of 512.
    IQ2_XS,
    /// 3.06 bits; codebook of 256 quartets of elements.
    IQ3_XXS,
    /// 1.56 bits; codebook of 2048.
    IQ1_S,
    /// 4 bits through a table of uneven steps; f16 scale.
    IQ4_NL,
    /// 3.44 bits; codebook of 512.
    IQ3_S,
    /// 2.56 bits; codebook of 1024.
    IQ2_S,
    /// 4 bits through the table of IQ4_NL; 8 sub-blocks with 6-bit scales.
    IQ4_XS,
    /// 1.75 bits; codebook of 2048.
    IQ1_M,
    /// Ternary, five digits a byte; f16 scale.
    TQ1_0,
    /// Ternary, 2 bits each; f16 scale.
    TQ2_0,
    /// 4-bit floats (E2M1); power-of-two scale.
    MXFP4,
    /// 4-bit floats (E2M1); four 8-bit float scales.
    NVFP4,
    /// 1 bit; f16 scale.
    Q1_0,
    /// 2 bits; f16 scale.
    Q2_0,
    /// IEEE double precision.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
    /// One byte, 0 or 1.
    Bool,
    /// 8-bit float, 4 exponent bits, no infinity.
    F8_E4M3,
    /// 8-bit float, 5 exponent bits.
    F8_E5M2,
    /// A power of two, 8 exponent bits: the scales of MX formats.
    F8_E8M0,
}

/// What the formats say about one type.
struct Row {
    dtype: Dtype,
    name: &'static str,
    /// Elements in a block.
    len: usize,
    /// Bytes of a block.
    bytes: usize,
    /// The id in GGUF (`enum ggml_type`), if GGUF has the type.
    ggml: Option<u32>,
    /// Whether safetensors has the type, under the same name.
    safetensors: bool,
}

const fn row(
    dtype: Dtype,
    name: &'static str,
    len: usize,
    bytes: usize,
    ggml: Option<u32>,
    safetensors: bool,
) -> Row {
    Row {
        dtype,
        name,
        len,
        bytes,
        ggml,
        safetensors,
    }
}

/// One row a type, in the order of the enum (a test holds it to that).
/// Sizes: `ggml-common.h` for the block types, safetensors' README for the rest.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    //  type               name       len  bytes  ggml      safetensors
    row(Dtype::F32,      "F32",     1,   4,    Some(0),  true),
    row(Dtype::F16,      "F16",     1,   2,    Some(1),  true),
    row(Dtype::BF16,     "BF16",    1,   2,    Some(30), true),
    row(Dtype::Q4_0,     "Q4_0",    32,  18,   Some(2),  false),
    row(Dtype::Q4_1,     "Q4_1",    32,  20,   Some(3),  false),
    row(Dtype::Q5_0,     "Q5_0",    32,  22,   Some(6),  false),
    row(Dtype::Q5_1,     "Q5_1",    32,  24,   Some(7),  false),
    row(Dtype::Q8_0,     "Q8_0",    32,  34,   Some(8),  false),
    row(Dtype::Q8_1,     "Q8_1",    32,  36,   Some(9),  false),
    row(Dtype::Q2_K,     "Q2_K",    256, 84,   Some(10), false),
    row(Dtype::Q3_K,     "Q3_K",    256, 110,  Some(11), false),
    row(Dtype::Q4_K,     "Q4_K",    256, 144,  Some(12), false),
    row(Dtype::Q5_K,     "Q5_K",    256, 176,  Some(13), false),
    row(Dtype::Q6_K,     "Q6_K",    256, 210,  Some(14), false),
    row(Dtype::Q8_K,     "Q8_K",    256, 292,  Some(15), false),
    row(Dtype::IQ2_XXS,  "IQ2_XXS", 256, 66,   Some(16), false),
    row(Dtype::IQ2_XS,   "IQ2_XS",  256, 74,   Some(17), false),
    row(Dtype::IQ3_XXS,  "IQ3_XXS", 256, 98,   Some(18), false),
    row(Dtype::IQ1_S,    "IQ1_S",   256, 50,   Some(19), false),
    row(Dtype::IQ4_NL,   "IQ4_NL",  32,  18,   Some(20), false),
    row(Dtype::IQ3_S,    "IQ3_S",   256, 110,  Some(21), false),
    row(Dtype::IQ2_S,    "IQ2_S",   256, 82,   Some(22), false),
    row(Dtype::IQ4_XS,   "IQ4_XS",  256, 136,  Some(23), false),
    row(Dtype::IQ1_M,    "IQ1_M",   256, 56,   Some(29), false),
    row(Dtype::TQ1_0,    "TQ1_0",   256, 54,   Some(34), false),
    row(Dtype::TQ2_0,    "TQ2_0",   256, 66,   Some(35), false),
    row(Dtype::MXFP4,    "MXFP4",   32,  17,   Some(39), false),
    row(Dtype::NVFP4,    "NVFP4",   64,  36,   Some(40), false),
    row(Dtype::Q1_0,     "Q1_0",    128, 18,   Some(41), false),
    row(Dtype::Q2_0,     "Q2_0",    64,  18,   Some(42), false),
    row(Dtype::F64,      "F64",     1,   8,    Some(28), true),
    row(Dtype::I8,       "I8",      1,   1,    Some(24), true),
    row(Dtype::I16,      "I16",     1,   2,    Some(25), true),
    row(Dtype::I32,      "I32",     1,   4,    Some(26), true),
    row(Dtype::I64,      "I64",     1,   8,    Some(27), true),
    row(Dtype::U8,       "U8",      1,   1,    None,     true),
    row(Dtype::U16,      "U16",     1,   2,    None,     true),
    row(Dtype::U32,      "U32",     1,   4,    None,     true),
    row(Dtype::U64,      "U64",     1,   8,    None,     true),
    row(Dtype::Bool,     "BOOL",    1,   1,    None,     true),
    row(Dtype::F8_E4M3,  "F8_E4M3", 1,   1,    None,     true),
    row(Dtype::F8_E5M2,  "F8_E5M2", 1,   1,    None,     true),
    row(Dtype::F8_E8M0,  "F8_E8M0", 1,   1,    None,     true),
];

/// Ids that ggml used once and gave up, with the names they had.
const RETIRED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

impl Dtype {
    /// Every type.
    pub fn all() -> impl Iterator<Item = Dtype> {
        TABLE.iter().map(|row| row.dtype)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The name in both formats: "F32", "Q4_K", "BOOL", ...
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements in a block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        self.row().len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// Whether elements share scales inside a block.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of one row of `cols` elements; `None` if that is not a whole number of blocks, or
    /// more than a `usize` holds.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of `shape`, slowest axis first; a scalar has the shape `[]`. `None` if a
    /// row (the last axis) is not a whole number of blocks, or on overflow.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (&cols, outer) = shape.split_last().unwrap_or((&1, &[]));
        let rows = outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        rows.checked_mul(self.row_bytes(cols)?)
    }

    /// The id in GGUF (`enum ggml_type`), if GGUF can hold the type.
    pub fn ggml_id(self) -> Option<u32> {
        self.row().ggml
    }

    /// The type with this GGUF id, if it is in use. See [`Dtype::retired`] for the gaps.
    pub fn from_ggml_id(id: u32) -> Option<Dtype> {
        let row = TABLE.iter().find(|row| row.ggml == Some(id))?;
        Some(row.dtype)
    }

    /// The name that a GGUF id had before ggml gave it up.
    pub fn retired(id: u32) -> Option<&'static str> {
        RETIRED.iter().find(|row| row.0 == id).map(|row| row.1)
    }

    /// Whether safetensors can hold the type.
    pub fn in_safetensors(self) -> bool {
        self.row().safetensors
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = String;

    /// The type with this name, whatever the case of its letters.
    fn from_str(name: &str) -> Result<Dtype, String> {
        let row = TABLE
            .iter()
            .find(|row| row.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("unknown number type `{name}`"))?;
        Ok(row.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum_and_unambiguous() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, i, "{}", row.name);
            assert_eq!(row.name.parse(), Ok(row.dtype));
            assert_eq!(row.name.to_lowercase().parse(), Ok(row.dtype));
            if let Some(id) = row.ggml {
                assert_eq!(Dtype::from_ggml_id(id), Some(row.dtype));
                assert_eq!(Dtype::retired(id), None, "{}", row.name);
            }
        }
        for (id, name) in RETIRED {
            assert_eq!(Dtype::from_ggml_id(*id), None, "{name}");
        }
        let known = (0..43).filter(|&id| Dtype::from_ggml_id(id).is_some());
        assert_eq!(
            known.count() + RETIRED.len(),
            43,
            "each id is one or the other"
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(Dtype::Q4_K.bytes(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(Dtype::Q4_K.bytes(&[3, 300]), None, "half a block");
        assert_eq!(Dtype::F32.bytes(&[]), Some(4), "a scalar");
        assert_eq!(Dtype::F32.bytes(&[0, 7]), Some(0));
        assert_eq!(Dtype::F32.bytes(&[usize::MAX / 2, 4]), None, "overflow");
        assert_eq!(Dtype::F64.row_bytes(usize::MAX), None, "overflow");
    }

    #[test]
    fn bits_a_weight_as_published() {
        for (dtype, bits) in [
            (Dtype::Q4_0, 4.5),
            (Dtype::Q3_K, 3.4375),
            (Dtype::Q6_K, 6.5625),
            (Dtype::IQ2_XXS, 2.0625),
            (Dtype::IQ4_XS, 4.25),
            (Dtype::TQ1_0, 1.6875),
            (Dtype::MXFP4, 4.25),
            (Dtype::NVFP4, 4.5),
            (Dtype::Q1_0, 1.125),
            (Dtype::Q2_0, 2.25),
        ] {
            let found = dtype.block_bytes() as f64 * 8.0 / dtype.block_len() as f64;
            assert_eq!(found, bits, "{dtype}");
        }
    }
}
