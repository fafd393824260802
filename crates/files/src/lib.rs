//! Model files (GGUF, safetensors, PyTorch, llama2.c; directories of Hugging Face, PEFT and Meta) as
//! named tensors over one mmap.
//!
//! What it is: the room that turns bytes on disk into names, types, shapes and byte ranges, and
//! back again. A file is mapped once; a [`Tensor`] borrows its range of that map, so that opening
//! a model copies no weights.
//!
//! What it knows: container formats, their limits, and how many bytes a block of each number type
//! takes ([`Dtype`]).
//!
//! What it must not know: what a tensor means, how a block is decoded, what a config says. It does
//! no arithmetic on weights.
//!
//! Every file is hostile until it has been checked: each count and length is compared with the
//! bytes that are left before anything is allocated, arithmetic is checked, depth is capped, and
//! an error names the file, the byte and what was wrong there.

mod bytes;
mod create;
mod detect;
mod dtype;
mod error;
pub mod gguf;
pub mod hf;
pub mod imatrix;
mod json;
pub mod llama2c;
mod map;
pub mod meta;
pub mod peft;
mod pickle;
pub mod safetensors;
mod shards;
mod tensor;
pub mod torch;
mod zip;

pub use detect::{Kind, detect, detect_bytes};
pub use dtype::Dtype;
pub use error::Error;
pub use map::Blob;
pub use tensor::{Tensor, TensorInfo, Tensors};
