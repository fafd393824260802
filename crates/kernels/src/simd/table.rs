//! The roof over the levels: every algorithm, instantiated once per level, as a table of functions.

use crate::attention::{self, Field, Strip};
use crate::buffer::Scratch;
use crate::matmul::{self, Job};
use crate::ops::Rounded;
use crate::{Activation, Level, RopeLayout, exp, limits, ops};
use std::ops::Range;

/// Lists the algorithms once, for the struct and for the levels' wrappers.
macro_rules! algorithms {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) = $path:expr;)*) => {
        /// A level's functions. Arguments and results are those of the algorithms they wrap.
        ///
        /// # Safety
        /// Each may be called only on a processor that has the level's instructions, which
        /// `table` checks before it hands a table out.
        #[derive(Clone, Copy)]
        pub(crate) struct Table {
            $($(#[$doc])* pub(crate) $name: unsafe fn($($ty),*),)*
        }

        mod scalar {
            use super::*;
            use crate::simd::scalar::Scalar;
            $(fn $name($($arg: $ty),*) { ($path)(Scalar, $($arg),*) })*
            pub(super) const TABLE: Table = Table { $($name),* };
        }

        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            use crate::simd::avx2::Avx2;
            $(
                #[target_feature(enable = "avx2,fma,f16c")]
                fn $name($($arg: $ty),*) {
                    // SAFETY: this function has the features, so whoever runs it has them.
                    let proof = unsafe { Avx2::new() };
                    ($path)(proof, $($arg),*)
                }
            )*
            pub(super) const TABLE: Table = Table { $($name),* };
        }

        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            use crate::simd::avx512::Avx512;
            $(
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn $name($($arg: $ty),*) {
                    // SAFETY: this function has the features, so whoever runs it has them.
                    let proof = unsafe { Avx512::new() };
                    ($path)(proof, $($arg),*)
                }
            )*
            pub(super) const TABLE: Table = Table { $($name),* };
        }
    };
}

algorithms! {
    /// Rows of a product.
    matmul(job: &Job<'_>, scratch: &mut Scratch) = matmul::task;
    /// 16-bit activations of one token.
    round(x: &[f32], to: &mut Rounded<'_>) = ops::round_row;
    /// One row's norm.
    rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) = ops::rms_norm;
    /// One token's rotation.
    rotate(x: &mut [f32], dim: usize, layout: RopeLayout, cos: &[f32], sin: &[f32]) = ops::rotate;
    /// Sum of two vectors.
    add(x: &mut [f32], y: &[f32]) = ops::add;
    /// `x += scale * y`.
    add_scaled(x: &mut [f32], y: &[f32], scale: f32) = ops::add_scaled;
    /// Activation in place.
    activate(kind: Activation, x: &mut [f32]) = exp::activate;
    /// Gated activation in place.
    gated(kind: Activation, gate: &mut [f32], up: &[f32]) = exp::gated;
    /// Softmax of a row.
    softmax(x: &mut [f32]) = exp::softmax_row;
    /// Log-softmax of a row.
    log_softmax(x: &mut [f32]) = exp::log_softmax_row;
    /// Attention: a block of a strip, widened.
    pack(field: &Field<'_>, strip: &Strip, block: usize, panels: &mut [f32]) = attention::pack;
    /// Parts of a strip from a widened block.
    panel_parts(field: &Field<'_>, strip: &Strip, block: usize, panels: &[f32], scores: &mut [f32], parts: &mut [f32]) = attention::panel_parts;
    /// Parts of a strip from the pages of a block.
    page_parts(field: &Field<'_>, strip: &Strip, block: usize, scores: &mut [f32], parts: &mut [f32]) = attention::page_parts;
    /// Sums of parts.
    fold(sums: &mut [f32], parts: &[f32], size: usize) = attention::fold;
    /// Scores of one query.
    scores(field: &Field<'_>, query: (usize, usize), out: &mut [f32]) = attention::scores;
    /// Softmax of a row over its span.
    pattern(span: &Range<usize>, scores: &mut [f32]) = attention::pattern;
    /// Reads memory, for `limits`.
    read(data: &[[u8; 64]], sum: &mut [f32; 16]) = limits::read;
    /// Multiplies and adds in registers, for `limits`.
    multiply(rounds: usize, sum: &mut [f32; 16]) = limits::multiply;
    /// Sum of values of one query.
    mix(field: &Field<'_>, query: (usize, usize), weights: &[f32], sums: &mut [f32]) = attention::mix;
}

/// The functions of a level, if this machine has it.
///
/// The VNNI and BF16 levels share the tables below them. Their instructions would add a block's
/// product to an accumulator, but here a block is one multiply-add whose result meets its own scale
/// at once; they are told apart for `limits`, and for the kernels that will use them.
pub(crate) fn table(level: Level) -> Option<Table> {
    if !level.is_available() {
        return None;
    }
    Some(match level {
        Level::Scalar => scalar::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx2Vnni => avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 => avx512::TABLE,
        #[cfg(not(target_arch = "x86_64"))]
        _ => return None,
    })
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}
