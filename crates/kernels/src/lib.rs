//! Floor 1: numbers. Block layouts, the scalar reference, vector kernels, the thread pool.
//!
//! Knows rows of numbers, how they are stored and how they are multiplied. Knows no model, no
//! tensor name, no file format and no tokens.

mod error;
mod kv;
mod level;
mod roof;
mod types;

pub use error::Error;
pub use kv::{KvLayout, KvType};
pub use level::{Compute, Level};
pub use roof::*;
pub use types::{Matrix, Type};
