//! Text to tokens and back, and chat templates.
//!
//! What lives here: the tokenizers of every Llama and its relatives ([`Tokenizer`]), the streaming detokenizer
//! ([`Decoder`]), and the rendering of conversations by a model's template.
//!
//! What this room must not know: models, sampling, HTTP, terminals. It reads vocabularies through `files`.
//!
//! Every input is hostile: tokenizer files and templates come from strangers, texts from users. Nothing that a user
//! types becomes a special token unless the caller asks for it with [`Special::Parse`].

mod bpe;
mod byte_level;
mod chars;
pub mod chat;
mod convert;
mod decode;
mod error;
mod filters;
mod find;
mod formats;
mod gguf;
mod guard;
mod hf_json;
mod infill;
mod json_bpe;
mod layout;
mod llama2c;
mod merge;
mod methods;
mod open;
pub mod pretokenize;
mod python;
mod rewrite;
mod sentencepiece;
mod sequences;
mod source;
mod special;
mod spm;
mod template;
mod tiktoken;
mod tojson;
mod tokenizer;
mod tokens;
mod variadic;
mod vocab;
mod words;
mod wrap;

pub use convert::{gguf_keys, hf_files};
pub use decode::Decoder;
pub use error::Error;
pub use find::{TemplateSources, find_template};
pub use formats::{format, formats};
pub use infill::{Gap, gap};
pub use template::{ChatTemplate, RenderOptions};
pub use tokenizer::{MAX_TEXT, Special, Tokenizer};
