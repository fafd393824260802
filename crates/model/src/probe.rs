//! Looking inside a forward pass, and writing there.
//!
//! A [`Probe`] is called between the stages of the pass, on the calling thread, with the rows of
//! one place in the model. It may change them; what it leaves is what the pass goes on with. The
//! kernels that compute a wanted place are those that compute it unwatched, so looking never
//! changes the bits.

use crate::cache::Seq;

/// A place in the model, with the names TransformerLens gave them. The shape is that of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Site {
    /// Token embeddings `[rows, hidden]`, before the first layer.
    Embed,
    /// Residual stream entering a layer `[rows, hidden]`.
    ResidPre,
    /// Normalised input of attention `[rows, hidden]`.
    AttnIn,
    /// Queries before rotation `[rows, heads, head_dim]`.
    Q,
    /// Keys before rotation `[rows, kv_heads, head_dim]`.
    K,
    /// Values `[rows, kv_heads, head_dim]`.
    V,
    /// Queries as they meet keys: after rotation (and norms) where there is one, in the model file's rotary layout `[rows, heads, head_dim]`.
    RotQ,
    /// Keys as they are cached: after rotation (and norms) where there is one, in the model file's rotary layout `[rows, kv_heads, head_dim]`.
    RotK,
    /// Scaled attention scores `[rows, heads, keys]`, one call per chunk, -inf where masked.
    Scores,
    /// Attention probabilities `[rows, heads, keys]`, one call per chunk.
    Pattern,
    /// Weighted values per head, before the output projection `[rows, heads, head_dim]`.
    Z,
    /// Output of attention `[rows, hidden]`.
    AttnOut,
    /// Residual stream between attention and MLP `[rows, hidden]`.
    ResidMid,
    /// Normalised input of the MLP `[rows, hidden]`.
    MlpIn,
    /// Gate projection before the activation `[rows, ffn]`; without a gate the up projection. Of a
    /// mixture of experts `[rows, experts used, ffn]`: the router's in the order of its choice, then
    /// the one that is always used. The next two likewise.
    MlpPre,
    /// Up projection `[rows, ffn]`, in MLPs with a gate.
    MlpPreLinear,
    /// activation(gate) * up, or activation(up) `[rows, ffn]`.
    MlpPost,
    /// Output of the MLP `[rows, hidden]`.
    MlpOut,
    /// Router logits of a mixture of experts `[rows, experts]`, in layers that have one.
    Router,
    /// Residual stream leaving a layer `[rows, hidden]`.
    ResidPost,
    /// Output of the final norm, for the rows that the batch wants out `[rows, hidden]`.
    FinalNorm,
    /// Logits, for the rows that the batch wants out `[rows, vocab]`.
    Logits,
}

/// Which token a row of activations belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its sequence in the cache.
    pub seq: Seq,
    /// Its position in that sequence.
    pub position: u32,
}

/// What a [`Probe`] is shown: where, and of which tokens.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The place.
    pub site: Site,
    /// The layer, 0 for places outside the layers.
    pub layer: usize,
    /// Shape of the values, rows first.
    pub shape: &'a [usize],
    /// The token of each row; as long as `shape[0]`.
    pub rows: &'a [Row],
}

/// A reader or writer of activations.
pub trait Probe {
    /// False removes every call at compile time.
    const ON: bool;
    /// Whether [`Probe::see`] is to be called for this place. Asked once per place and pass.
    fn wants(&self, site: Site, layer: usize) -> bool;
    /// Sees, and may change, the values of a place.
    fn see(&mut self, at: At, values: &mut [f32]);
}

/// No probe: costs nothing.
impl Probe for () {
    const ON: bool = false;
    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }
    fn see(&mut self, _: At, _: &mut [f32]) {}
}
