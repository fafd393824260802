//! Floor 1: numbers. Block layouts, the scalar reference, vector kernels, the thread pool.
//!
//! Knows rows of numbers, how they are stored and how they are multiplied. Knows no model, no
//! tensor name, no file format and no tokens.
//!
//! From the ground up: `types` and `blocks` (storage types, the plain reference of each), `simd`
//! (vectors of 16 lanes per processor level, and at its top the table of functions), `layout` and
//! `unpack` (the common form of quantised rows), `activations`, `tiles`, `integers`, `floats` and
//! `matmul` (products), `ops`, `rows`, `exp`, `attention` and `kv`, each algorithm written once, `pool`
//! and `buffer` (threads and memory), `repack` (weights of other formats), `quantize` (the way back
//! from f32), and `roof`: [`Kernels`], through which all of it is used.

#![expect(
    unsafe_code,
    reason = "vector instructions, and one output written by several threads"
)]

mod activations;
mod attention;
mod blocks;
mod buffer;
mod error;
mod exp;
mod floats;
mod integers;
mod kv;
mod layout;
mod level;
pub mod limits;
mod matmul;
mod ops;
mod pool;
mod quantize;
pub mod repack;
mod roof;
mod rope;
mod rows;
mod simd;
mod synth;
mod tiles;
mod types;
mod unpack;

/// Raised whenever the order of operations of a product or of attention changes, and with it the bits of
/// what was computed and kept before.
pub const ARITHMETIC: &str = "2";

pub use activations::Activations;
pub use attention::Attend;
pub use blocks::dequantize;
pub use buffer::Workspace;
pub use error::Error;
pub use kv::{KvLayout, KvType};
pub use level::{Compute, Level};
pub use ops::same_bits;
pub use quantize::{Deviation, add_squares, quantize};
pub use roof::{Activation, Kernels, Product};
pub use rope::{Rope, RopeLayout};
pub use rows::{Gate, Routes};
pub use synth::synthesize;
pub use types::{MAX_PARTS, Matrix, Type};
