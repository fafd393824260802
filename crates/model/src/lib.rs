//! A Llama model: its configuration, its weights as views of a file, the cache, and one forward
//! pass per architecture.
//!
//! Knows: names of tensors and configuration keys, the order of operations. Must not know: text,
//! prompts, sampling, HTTP. Does no arithmetic on activations of its own: that is `kernels`.

mod adapter;
mod arch;
mod batch;
mod cache;
mod config;
mod config_gguf;
mod config_hf;
mod config_llama4;
mod config_meta;
mod config_opt;
mod control;
pub mod convert;
mod error;
mod expected;
mod experts;
mod footprint;
mod forward;
mod llama;
mod llama4;
mod lora;
mod merge;
mod names;
mod opt;
mod probe;
pub mod quantize;
mod repack;
mod rope;
mod shape;
mod source;
mod tensors;
mod weights;

pub use adapter::{Adapter, AdapterInfo, Target};
pub use arch::{ARCHITECTURES, About, Arch};
pub use batch::{Batch, Chunk, ChunkOut, Input, Logits, Outputs, Rows};
pub use cache::{Block, Cache, PAGE, Seq};
pub use config::{Config, Experts, Llama4, RopeConfig, Scaling, Temperature, Yarn};
pub use control::{ControlVector, Directions};
pub use error::{Error, Result};
pub use footprint::{bytes_to_open, bytes_to_work, head};
pub use forward::forward;
pub use lora::Lora;
pub use probe::{At, Probe, Row, Site};
pub use shape::{Mix, Shape, shapes, synthesize};
pub use source::{Piece, Source};
pub use weights::{Weights, open};
