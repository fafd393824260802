//! What this room refuses, with the names and shapes that explain it.

use crate::{Level, Type};

/// Errors of this room. Wrong slice lengths passed by the caller's code are programmer errors and
/// panic; everything that can depend on a file, a flag or the machine is one of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is none of the known ones.
    #[error("unknown {what} `{given}` (one of: {expected})")]
    Unknown {
        /// What was named, e.g. "SIMD level".
        what: &'static str,
        /// The name as given.
        given: String,
        /// The names that exist, comma-separated.
        expected: String,
    },
    /// A row of this many columns cannot be stored in whole blocks.
    #[error("{ty} stores blocks of {block} values; a row of {cols} is not a whole number of them")]
    Columns {
        /// Storage type.
        ty: Type,
        /// Values in a row.
        cols: usize,
        /// Values in a block.
        block: usize,
    },
    /// The bytes given are not the bytes that the shape needs.
    #[error("{ty} [{rows}, {cols}] needs {need} bytes, got {have}")]
    Bytes {
        /// Storage type.
        ty: Type,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Bytes that the shape needs.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// A shape whose size in bytes does not fit the address space.
    #[error("{what} is too large for this machine's address space")]
    TooLarge {
        /// The thing and its shape.
        what: String,
    },
    /// The processor lacks this level.
    #[error("this processor has no `{level}` (available: {available})")]
    LevelMissing {
        /// Level asked for.
        level: Level,
        /// Levels that exist here, comma-separated.
        available: String,
    },
    /// A thread count of zero or beyond the pool's limit.
    #[error("{given} threads asked for, 1 to {max} are possible")]
    Threads {
        /// Count asked for.
        given: usize,
        /// Largest count.
        max: usize,
    },
    /// The operating system refused to start a worker thread.
    #[error("cannot start worker thread: {reason}")]
    Spawn {
        /// The system's words.
        reason: String,
    },
    /// A row index outside the table.
    #[error("row {id} asked of a table with {rows} rows")]
    Row {
        /// Row asked for.
        id: u32,
        /// Rows in the table.
        rows: usize,
    },
    /// A key-value layout with a zero dimension or an impossible size.
    #[error("key-value layout {kv_heads} heads x {head_dim} x {page} tokens is not possible")]
    KvLayout {
        /// Key-value heads.
        kv_heads: usize,
        /// Values per head.
        head_dim: usize,
        /// Tokens per page.
        page: usize,
    },
}
