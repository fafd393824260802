//! A Llama model: its configuration, its weights as views of a file, the cache, and one forward
//! pass per architecture.
//!
//! Knows: names of tensors and configuration keys, the order of operations. Must not know: text,
//! prompts, sampling, HTTP. Does no arithmetic on activations of its own: that is `kernels`.

mod adapter;
mod batch;
mod cache;
mod config;
mod config_gguf;
mod config_hf;
pub mod convert;
mod error;
mod llama;
mod probe;
pub mod quantize;
mod rope;
mod shape;
mod source;
mod weights;

pub use adapter::{Adapter, Target};
pub use batch::{Batch, Chunk, ChunkOut, Input, Outputs, Rows};
pub use cache::{Cache, PAGE, Seq};
pub use config::{Config, RopeConfig, Scaling, Yarn};
pub use error::{Error, Result};
pub use llama::forward;
pub use probe::{At, Probe, Row, Site};
pub use shape::{Mix, Shape, shapes, synthesize};
pub use source::{Piece, Source};
pub use weights::{Weights, open};
