//! A layer of OPTForCausalLM, of which Galactica is one: LayerNorm, no rotation (positions are added
//! to the embeddings), an MLP without a gate.
//!
//! Written after the order of operations in Zhang et al. 2022 (arXiv:2205.01068) and the formulas of
//! Taylor et al. 2022 (arXiv:2211.09085).

use crate::adapter::Target;
use crate::error::Result;
use crate::forward::{Pass, Room};
use crate::llama;
use crate::probe::{Probe, Site};
use crate::weights::{Layer, Linear};

/// x += Wo attention(norm(x)); x += mlp(norm(x))
pub(crate) fn layer<P: Probe>(
    pass: &mut Pass<'_, P>,
    i: usize,
    layer: &Layer,
    x: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    pass.queries_keys_values(i, layer, x, room)?;
    pass.attend(i, layer, false, x, room)?;
    llama::mlp(pass, i, layer, x, room)
}

impl<P: Probe> Pass<'_, P> {
    /// x += Wdown act(Wup a)
    pub(crate) fn plain_mlp(
        &mut self,
        i: usize,
        (up, down): (&Linear, &Linear),
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let c = &self.w.config;
        let Room { a, up: h, .. } = room;
        self.project(i, a, &mut [(Target::Up, up, &mut *h)])?;
        self.see(Site::MlpPre, i, &[c.ffn], h);
        self.k.activate(c.activation, h);
        self.see(Site::MlpPost, i, &[c.ffn], h);
        self.project(i, h, &mut [(Target::Down, down, &mut *a)])?;
        self.mlp_out(i, x, a);
        Ok(())
    }
}
