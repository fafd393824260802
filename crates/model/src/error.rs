//! What can go wrong between a file's tensors and its logits.

/// An error of the `model` room; names and shapes are in the message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernels(#[from] kernels::Error),
    /// The architecture is not one that this version computes.
    #[error("architecture `{0}` is not implemented; this version runs {known}", known = known())]
    Architecture(String),
    /// A key of the configuration is missing, has the wrong type, or is out of range.
    #[error("model configuration: {0}")]
    Config(String),
    /// A name that is no type to quantise to.
    #[error("no type `{given}`; there are {known}")]
    Recipe {
        /// The name as given.
        given: String,
        /// All names.
        known: String,
    },
    /// A key or tensor would change the result and is not implemented.
    #[error("not implemented: {0}; refusing to compute something else")]
    NotImplemented(String),
    /// A tensor is absent, has another shape than the configuration says, or a storage type that
    /// cannot be computed with.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// Name in the file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor would be quantised a second time.
    #[error("tensor `{name}` is quantised already ({from})")]
    Requantize {
        /// Name in the file.
        name: String,
        /// Its storage type.
        from: &'static str,
    },
    /// A storage type of very few bits without an importance matrix.
    #[error(
        "tensor `{name}`: {ty} makes no sense without an importance matrix, and none speaks of it"
    )]
    NeedsImatrix {
        /// Name in the file.
        name: String,
        /// The type wanted.
        ty: kernels::Type,
    },
    /// Not a model this room can open.
    #[error("{path}: {what}")]
    Open {
        /// The path as given.
        path: String,
        /// What it is instead.
        what: String,
    },
    /// The batch contradicts itself, the model or the cache.
    #[error("batch: {0}")]
    Batch(String),
    /// The cache has no room for the rows of a batch.
    #[error("the cache holds {have} tokens; {need} are needed")]
    CacheFull {
        /// Tokens that would have to be held.
        need: usize,
        /// Tokens that fit.
        have: usize,
    },
}

/// The architectures, as their files name them.
fn known() -> String {
    let names = crate::arch::ARCHITECTURES.iter().map(|a| {
        let classes: Vec<&str> = a.classes.iter().map(|(class, _)| *class).collect();
        format!("`{}` ({})", a.name, classes.join(", "))
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Shorthand for results of this room.
pub type Result<T> = std::result::Result<T, Error>;
