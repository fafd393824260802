//! A layer of LlamaForCausalLM.
//!
//! Written after the order of operations in meta-llama/llama-models `models/llama3/model.py`.

use crate::error::Result;
use crate::forward::{Pass, Room};
use crate::probe::Probe;
use crate::weights::{Layer, Mlp};

/// x += Wo attention(norm(x)); x += mlp(norm(x))
pub(crate) fn layer<P: Probe>(
    pass: &mut Pass<'_, P>,
    i: usize,
    layer: &Layer,
    x: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    pass.queries_keys_values(i, layer, x, room)?;
    pass.rotate(room);
    pass.attend(i, layer, false, x, room)?;
    mlp(pass, i, layer, x, room)
}

/// x += mlp(norm(x)), of one gated MLP or of several
pub(crate) fn mlp<P: Probe>(
    pass: &mut Pass<'_, P>,
    i: usize,
    layer: &Layer,
    x: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    pass.mlp_in(i, layer, x, room);
    match &layer.mlp {
        Mlp::Gated(mlp) => pass.gated_mlp(i, mlp, x, room),
        Mlp::Plain { up, down } => pass.plain_mlp(i, (up, down), x, room),
        Mlp::Experts(moe) => pass.experts(i, moe, x, room),
    }
}
