//! Who shares beginnings with whom, and why one was not found.

use std::borrow::Cow;

use model::PAGE;

use crate::session::Adaptation;

/// Whose sequences share with one another, and what shapes them besides their tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Root {
    /// The tenant: nothing is shared with another, nor betrayed by the time that it takes.
    pub scope: String,
    /// What a request adds, to share with requests of the same salt only.
    pub salt: String,
    /// Adapters and control vectors in use.
    pub adaptation: Adaptation,
    /// So many tokens of the beginning, in whole blocks, are shared with all scopes that say so of
    /// the same tokens; what follows is the scope's own.
    pub common: usize,
}

impl Root {
    /// Blocks that are shared with other scopes.
    pub(crate) fn blocks(&self) -> usize {
        self.common / PAGE
    }

    /// The root of its first block.
    pub(crate) fn first(&self) -> Cow<'_, Root> {
        match (self.common, self.blocks()) {
            (0, _) => Cow::Borrowed(self),
            (_, 0) => Cow::Owned(Root {
                common: 0,
                ..self.clone()
            }),
            _ => Cow::Owned(Root {
                scope: String::new(),
                common: PAGE,
                ..self.clone()
            }),
        }
    }

    /// Tokens that may be shared with another's sequences, at most.
    pub(crate) fn with(&self, other: &Root) -> usize {
        if self.first() != other.first() {
            return 0;
        }
        match self.blocks() == other.blocks() && self.scope == other.scope {
            true => usize::MAX,
            false => self.blocks().min(other.blocks()) * PAGE,
        }
    }
}

/// Why the rest of a prompt had to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The first token that was not shared, or that differs from what was seen in this scope.
    pub at: usize,
    /// Why.
    pub why: Why,
}

/// Why a prompt was not found from some token on. Whole blocks of [`PAGE`] tokens are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing that was seen goes on from there.
    New,
    /// What was seen goes on with another token there.
    Differs,
    /// It was there, and went when pages ran out.
    Evicted,
    /// Models with chunked attention share nothing.
    Unshared,
}

impl Why {
    /// `new`, `differs`, `evicted` or `unshared`.
    pub fn name(self) -> &'static str {
        match self {
            Why::New => "new",
            Why::Differs => "differs",
            Why::Evicted => "evicted",
            Why::Unshared => "unshared",
        }
    }
}
