//! What one forward pass is asked to compute.

use std::ops::{Deref, Range};
use std::sync::Arc;

use kernels::Workspace;

use crate::adapter::Adapter;
use crate::cache::{Cache, Seq};
use crate::config::Config;
use crate::control::ControlVector;
use crate::error::{Error, Result};

/// The chunks computed together in one pass. Their results do not depend on one another.
#[derive(Debug, Default)]
pub struct Batch {
    /// In any order; each sequence at most once.
    pub chunks: Vec<Chunk>,
}

impl Batch {
    /// Everything that could make a batch fail, before anything is changed.
    pub(crate) fn check(&self, c: &Config, cache: &Cache) -> Result<()> {
        let wrong = |what: String| Err(Error::Batch(what));
        let mut seen = std::collections::HashSet::new();
        for (i, chunk) in self.chunks.iter().enumerate() {
            if !cache.is_open(chunk.seq) || !seen.insert(chunk.seq) {
                return wrong(format!(
                    "chunk {i}: its sequence is not open, or stands twice in the batch"
                ));
            }
            if chunk.is_empty() {
                return wrong(format!("chunk {i} has no rows"));
            }
            let rows = match &chunk.input {
                Input::Tokens(ids) => match ids.iter().find(|id| **id as usize >= c.vocab) {
                    Some(id) => {
                        return wrong(format!(
                            "token {id} is outside the vocabulary of {}",
                            c.vocab
                        ));
                    }
                    None => ids.len(),
                },
                Input::Embeddings(x) if x.len().is_multiple_of(c.hidden) => x.len() / c.hidden,
                Input::Embeddings(x) => {
                    return wrong(format!(
                        "chunk {i}: {} values are not rows of {}",
                        x.len(),
                        c.hidden
                    ));
                }
            };
            if rows != chunk.len() {
                return wrong(format!(
                    "chunk {i}: {rows} rows with {} positions",
                    chunk.len()
                ));
            }
            Adapter::check_order(&chunk.adapters)?;
            if chunk
                .control
                .as_ref()
                .is_some_and(|v| v.width() != c.hidden)
            {
                return wrong(format!(
                    "chunk {i}: its control vector is not {} wide",
                    c.hidden
                ));
            }
            if let Some(limit) = c.position_limit()
                && let Some(p) = chunk.positions.iter().find(|p| **p as usize >= limit)
            {
                return Err(Error::NotImplemented(format!(
                    "position {p} of this model, whose positions are defined below {limit}"
                )));
            }
        }
        Ok(())
    }
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
    /// Low-rank adapters that these rows use, one after the other.
    pub adapters: Vec<Arc<Adapter>>,
    /// Directions added to what blocks put out for these rows.
    pub control: Option<Arc<ControlVector>>,
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
    /// Tokens at consecutive positions from `start` on, in segment 0, without adapters or directions.
    pub fn tokens(seq: Seq, start: u32, ids: &[u32], rows: Rows) -> Chunk {
        Chunk {
            seq,
            segment: 0,
            positions: (start..).take(ids.len()).collect(),
            input: Input::Tokens(ids.to_vec()),
            adapters: Vec::new(),
            control: None,
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
    pub logits: Logits,
    /// `[rows, hidden]` after the final norm; empty if hidden states were not wanted.
    pub hidden: Vec<f32>,
}

/// Rows of logits, a part of those of a pass: its memory is used again once nobody holds any of them.
#[derive(Clone, Default)]
pub struct Logits {
    all: Option<Arc<Workspace>>,
    rows: Range<usize>,
}

impl Logits {
    /// A part of the logits of a pass.
    pub(crate) fn new(all: &Arc<Workspace>, rows: Range<usize>) -> Logits {
        Logits {
            all: Some(all.clone()),
            rows,
        }
    }
}

impl Deref for Logits {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.all.as_ref().map_or(&[], |all| &all[self.rows.clone()])
    }
}

impl PartialEq for Logits {
    fn eq(&self, other: &Logits) -> bool {
        self[..] == other[..]
    }
}

impl PartialEq<Vec<f32>> for Logits {
    fn eq(&self, other: &Vec<f32>) -> bool {
        self[..] == other[..]
    }
}

impl std::fmt::Debug for Logits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self[..].fmt(f)
    }
}
