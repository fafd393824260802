//! What one forward pass is asked to compute.

use crate::cache::Seq;

/// The chunks computed together in one pass. Their results do not depend on one another.
#[derive(Debug, Default)]
pub struct Batch {
    /// In any order; each sequence at most once.
    pub chunks: Vec<Chunk>,
}

/// Consecutive rows of one sequence.
#[derive(Debug)]
pub struct Chunk {
    /// The sequence in the cache that these rows extend.
    pub seq: Seq,
    /// The document within the sequence. A row attends to rows of its own segment only; segments
    /// follow one another and never resume.
    pub segment: u32,
    /// What goes in.
    pub input: Input,
    /// Position of each row for the rotary embedding.
    pub positions: Vec<u32>,
    /// Low-rank adapters that these rows use, with the scale of each.
    pub adapters: Vec<(std::sync::Arc<crate::adapter::Adapter>, f32)>,
    /// Which rows are wanted out.
    pub rows: Rows,
    /// Whether logits of those rows are computed.
    pub logits: bool,
    /// Whether the final hidden states (after the final norm) of those rows are returned.
    pub hidden: bool,
}

/// The input rows of a [`Chunk`].
#[derive(Debug)]
pub enum Input {
    /// Token ids, looked up in the embedding table.
    Tokens(Vec<u32>),
    /// Ready rows `[n, hidden]`, as for images and soft prompts.
    Embeddings(Vec<f32>),
}

/// Which rows of a [`Chunk`] come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: only the cache is filled.
    None,
    /// The last one.
    Last,
    /// All of them.
    All,
}

impl Chunk {
    /// Tokens at consecutive positions from `start` on, in segment 0, without adapters.
    pub fn tokens(seq: Seq, start: u32, ids: &[u32], rows: Rows) -> Chunk {
        Chunk {
            seq,
            segment: 0,
            positions: (start..).take(ids.len()).collect(),
            input: Input::Tokens(ids.to_vec()),
            adapters: Vec::new(),
            rows,
            logits: true,
            hidden: false,
        }
    }

    /// Number of rows going in.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no rows go in.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Indices of the rows that come out.
    pub(crate) fn wanted(&self) -> std::ops::Range<usize> {
        let n = self.len();
        match self.rows {
            Rows::None => n..n,
            Rows::Last => n.saturating_sub(1)..n,
            Rows::All => 0..n,
        }
    }
}

/// What a forward pass returns: one entry per chunk, in the batch's order.
#[derive(Debug, Default)]
pub struct Outputs {
    /// In the order of [`Batch::chunks`].
    pub chunks: Vec<ChunkOut>,
}

/// The wanted rows of one chunk.
#[derive(Debug, Default)]
pub struct ChunkOut {
    /// `[rows, vocab]`; empty if logits were not wanted.
    pub logits: Vec<f32>,
    /// `[rows, hidden]` after the final norm; empty if hidden states were not wanted.
    pub hidden: Vec<f32>,
}
