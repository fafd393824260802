//! The roof over the levels: every algorithm, instantiated once per level, as a table of functions.

use crate::activations::{self, Tasks};
use crate::attention::{self, Field, Strip};
use crate::buffer::Buffer;
use crate::floats::{self, Floats, Halves};
use crate::integers::few::{self, Blocks};
use crate::integers::many::{self, Panel};
use crate::integers::{self, Stage, one};
use crate::layout::Part;
use crate::matmul::{Job, Next};
use crate::simd::Simd;
use crate::{Activation, KvLayout, Level, RopeLayout, exp, kv, limits, ops};
use std::ops::Range;

/// `activations::prepare` as a function of the table, all of which are unsafe.
#[inline(always)]
fn prepare_rows<S: Simd>(s: S, tasks: &Tasks<'_>, tokens: Range<usize>) {
    // SAFETY: callers of the table's functions keep the contract of what these wrap.
    unsafe { activations::prepare(s, tasks, tokens) }
}

/// The functions of one x86-64 level.
macro_rules! level {
    ($level:ident, $proof:ty, $features:literal, $($name:ident ( $($arg:ident : $ty:ty),* ) = $path:expr;)* $(.. $below:expr)?) => {
        #[cfg(target_arch = "x86_64")]
        mod $level {
            use super::*;
            $(
                #[target_feature(enable = $features)]
                fn $name($($arg: $ty),*) {
                    // SAFETY: this function has the features, so whoever runs it has them.
                    let proof = unsafe { <$proof>::new() };
                    ($path)(proof, $($arg),*)
                }
            )*
            pub(super) const TABLE: Table = Table { $($name,)* $(..$below)? };
        }
    };
}

/// Lists the algorithms once, for the struct and for the levels' wrappers.
macro_rules! algorithms {
    (
        $($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) = $path:expr;)*
        // Those that differ between a level and the one that adds dot products to it.
        ; products $($(#[$pdoc:meta])* $pname:ident ( $($parg:ident : $pty:ty),* ) = $ppath:expr;)*
    ) => {
        /// A level's functions. Arguments and results are those of the algorithms they wrap.
        ///
        /// # Safety
        /// Each may be called only on a processor that has the level's instructions, which
        /// `table` checks before it hands a table out.
        #[derive(Clone, Copy)]
        pub(crate) struct Table {
            $($(#[$doc])* pub(crate) $name: unsafe fn($($ty),*),)*
            $($(#[$pdoc])* pub(crate) $pname: unsafe fn($($pty),*),)*
        }

        mod scalar {
            use super::*;
            use crate::simd::scalar::Scalar;
            $(fn $name($($arg: $ty),*) { ($path)(Scalar, $($arg),*) })*
            $(fn $pname($($parg: $pty),*) { ($ppath)(Scalar, $($parg),*) })*
            pub(super) const TABLE: Table = Table { $($name,)* $($pname),* };
        }

        level!(avx2, crate::simd::avx2::Avx2<false>, "avx2,fma,f16c",
            $($name ( $($arg : $ty),* ) = $path;)* $($pname ( $($parg : $pty),* ) = $ppath;)*);
        level!(avx2vnni, crate::simd::avx2::Avx2<true>, "avx2,fma,f16c,avxvnni",
            $($pname ( $($parg : $pty),* ) = $ppath;)* ..avx2::TABLE);
        level!(avx512, crate::simd::avx512::Avx512<0>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
            $($name ( $($arg : $ty),* ) = $path;)* $($pname ( $($parg : $pty),* ) = $ppath;)*);
        level!(avx512vnni, crate::simd::avx512::Avx512<1>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
            $($pname ( $($parg : $pty),* ) = $ppath;)* ..avx512::TABLE);
        level!(avx512bf16, crate::simd::avx512::Avx512<2>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
            half_rows(job: &Job<'_>) = floats::half_rows;
            half_tiles(job: &Job<'_>, panel: &Halves<'_>, sums: &mut Buffer<f32>) = floats::half_tiles;
            ..avx512vnni::TABLE);
    };
}

algorithms! {
    /// Unpacked rows as floats.
    dequantize(panel: &Panel<'_>, to: &mut Floats<'_>) = many::dequantize;
    /// Widens rows of floats.
    float_panel(job: &Job<'_>, rows: Range<usize>, panel: &mut Floats<'_>) = floats::fill;
    /// All tokens over rows of floats.
    float_tiles(job: &Job<'_>, panel: &Floats<'_>, sums: &mut Buffer<f32>) = floats::tiles;
    /// Unpacks a part of quantised rows, a block to a lane.
    integer_blocks(job: &Job<'_>, rows: Range<usize>, part: &Part, to: &mut Blocks<'_>, stage: &mut Stage<'_>) = few::unpack_rows;
    /// The same, a row to a lane.
    integer_turn(part: &Part, from: &Blocks<'_>, stage: &Stage<'_>, to: &mut [[u8; 64]]) = many::turn;
    /// Sums of the products of rows with one or few tokens.
    integer_sums(job: &Job<'_>, row: usize, stage: &Stage<'_>) = integers::sums;
    /// Some tokens' activations in the forms that products need.
    prepare(tasks: &Tasks<'_>, tokens: Range<usize>) = prepare_rows;
    /// One row's norm.
    rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) = ops::rms_norm;
    /// One token's rotation.
    rotate(x: &mut [f32], dim: usize, layout: RopeLayout, cos: &[f32], sin: &[f32]) = ops::rotate;
    /// One token's keys and values into a page.
    store(layout: &KvLayout, page: &mut [u8], slot: usize, k: &[f32], v: &[f32]) = kv::store;
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
    ; products
    /// Products of quantised rows with one token.
    integer_products(job: &Job<'_>, rows: Range<usize>, stage: &mut Stage<'_>) = one::products;
    /// Products of unpacked rows with few tokens.
    integer_some(job: &Job<'_>, part: &Part, blocks: &Blocks<'_>, stage: &mut Stage<'_>, next: Option<Next>) = few::some;
    /// All tokens over unpacked rows.
    integer_tiles(job: &Job<'_>, panel: &Panel<'_>, next: Option<Next>) = many::tiles;
    /// Rows of bfloat16 with one token; only for the level that multiplies such pairs.
    half_rows(job: &Job<'_>) = floats::half_rows;
    /// All tokens over rows of bfloat16; likewise.
    half_tiles(job: &Job<'_>, panel: &Halves<'_>, sums: &mut Buffer<f32>) = floats::half_tiles;
}

/// The functions of a level, if this machine has it.
pub(crate) fn table(level: Level) -> Option<Table> {
    if !level.is_available() {
        return None;
    }
    Some(match level {
        Level::Scalar => scalar::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Vnni => avx2vnni::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => avx512vnni::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => avx512bf16::TABLE,
        #[cfg(not(target_arch = "x86_64"))]
        _ => return None,
    })
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}
