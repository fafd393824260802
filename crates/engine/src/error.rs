//! What can go wrong in this room.
//!
//! One enum for the whole room: every message names the thing, its value and what would have
//! been right. Errors of the rooms below pass through unchanged.

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sampling or generation parameter lies outside its range.
    #[error("{field} is {value}, but must be {range}")]
    Parameter {
        /// The field's name, as in [`crate::SamplerParams`] or [`crate::GenerateParams`].
        field: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        range: String,
    },
    /// A key of generation_config.json has a value that means nothing.
    #[error("generation_config.json: {key} is {value}, but must be {expected}")]
    GenerationConfig {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A token id that the vocabulary does not have.
    #[error("{what} names token {id}, but the vocabulary has {vocab} tokens")]
    UnknownToken {
        /// Where the id stands.
        what: &'static str,
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A draft model that speaks in other tokens.
    #[error("the draft model's vocabulary is another one: {what}")]
    DraftVocabulary {
        /// The first difference.
        what: String,
    },
    /// Nothing to run: a model needs at least one token.
    #[error("there are no tokens to run: the prompt is empty and the model adds no BOS")]
    EmptyPrompt,
    /// The tokens do not fit in the context.
    #[error("{needed} tokens are needed, but the context holds {context}")]
    ContextFull {
        /// Tokens that would have to fit.
        needed: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// The model returned a row of another length than its vocabulary, or none.
    #[error("the model returned {got} logits, expected {expected}")]
    LogitsShape {
        /// Length of what came.
        got: usize,
        /// Length that was due.
        expected: usize,
    },
    /// The model's logits hold a value that no sampler can use: its weights are damaged.
    #[error("the logit of token {id} is {value}: the model's weights are damaged")]
    BadLogit {
        /// The token.
        id: usize,
        /// NaN or +infinity.
        value: f32,
    },
    /// A row of logits that is to be scored holds a value that is no number.
    #[error(
        "at position {position} the logit of token {id} is {value}, of which no likelihood can be \
         computed: the model's weights are damaged, or too large for the way they are computed with"
    )]
    NotFinite {
        /// Of the row.
        position: usize,
        /// The token.
        id: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// Logit biases ban every token.
    #[error("no token is left to choose from: the logit biases ban the whole vocabulary")]
    NoCandidates,
    /// A text is too short for a measurement.
    #[error("the text has {tokens} tokens, but one chunk of {ctx} is needed at least")]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens in a chunk.
        ctx: usize,
    },
    /// A file of saved log-probabilities is damaged.
    #[error("saved log-probabilities: {what} (at byte {offset})")]
    KlFile {
        /// What is wrong.
        what: String,
        /// Where, in bytes from the start of the file.
        offset: u64,
    },
    /// Two runs that are to be compared were made differently.
    #[error("saved log-probabilities do not belong to this run: {what}")]
    KlMismatch {
        /// The difference.
        what: String,
    },
    /// As many requests wait as may.
    #[error("{waiting} requests wait already, which is as many as may; try again later")]
    Busy {
        /// Requests in line.
        waiting: usize,
    },
    /// A request's time was over before it was complete.
    #[error("the request's deadline has passed")]
    Deadline,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// The run was stopped by its caller.
    #[error("cancelled")]
    Cancelled,
    /// A folder that cannot have kept beginnings.
    #[error("{}: the folder {what}", folder.display())]
    CacheDir {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// From the model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// From the tokenizer.
    #[error(transparent)]
    Text(#[from] text::Error),
}
