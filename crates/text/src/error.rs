//! The one error type of this room. It knows what a tokenizer file or a chat template can get wrong; it
//! prints nothing.

use std::path::PathBuf;

/// What can go wrong while a tokenizer or a chat template is read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file or directory that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model file could not be opened or is damaged.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The bytes are not what their format promises.
    #[error("{format}: {what}")]
    Malformed {
        /// The format that was being read, e.g. `tokenizer.model (SentencePiece)`.
        format: &'static str,
        /// What is wrong and where.
        what: String,
    },
    /// The file is well-formed, but asks for something that is not implemented and would change the result.
    #[error("{format}: {what} is not supported")]
    Unsupported {
        /// The format that was being read.
        format: &'static str,
        /// The feature, with its name as the file spells it.
        what: String,
    },
    /// A text is longer than the tokenizer takes at once.
    #[error("text of {len} bytes is too long: at most {max} bytes can be tokenized at once")]
    TooLong {
        /// Bytes in the text.
        len: usize,
        /// The most that is taken.
        max: usize,
    },
    /// A tokenizer read from tokenizer.json refused a text.
    #[error("tokenizer.json: {0}")]
    Encode(String),
    /// A chat template cannot be compiled or fails while it renders.
    #[error("chat template{}: {what}", line.map_or(String::new(), |n| format!(", line {n}")))]
    Template {
        /// What is wrong.
        what: String,
        /// The line of the template, from 1, where it is known.
        line: Option<usize>,
    },
    /// The chat template itself refuses these messages (`raise_exception`).
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// A chat template asks for more work, memory or text than a template may.
    #[error("chat template: {what}")]
    TemplateLimit {
        /// Which limit was met.
        what: String,
    },
    /// The model has no chat template.
    #[error(
        "the model has no chat template; use --raw to give it text as it is, or --template FILE to bring one"
    )]
    NoTemplate,
    /// The model fills no gaps.
    #[error(
        "this model was not made for infill: its vocabulary has no marks for prefix, suffix and middle"
    )]
    NoInfill,
}

impl Error {
    pub(crate) fn malformed(format: &'static str, what: impl Into<String>) -> Error {
        Error::Malformed {
            format,
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(format: &'static str, what: impl Into<String>) -> Error {
        Error::Unsupported {
            format,
            what: what.into(),
        }
    }
}
