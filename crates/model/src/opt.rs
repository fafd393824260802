//! A layer of OPTForCausalLM, of which Galactica is one: LayerNorm, no rotation (positions are added
//! to the embeddings), an MLP without a gate.
//!
//! Written after the order of operations in Zhang et al. 2022 (arXiv:2205.01068) and the formulas of
//! Taylor et al. 2022 (arXiv:2211.09085).

use crate::adapter::Target;
use crate::error::Result;
use crate::forward::{Pass, Room, multiply};
use crate::llama;
use crate::probe::{Probe, Site};
use crate::weights::{Layer, Linear, Norm};

/// x += Wo attention(norm(x)); x += mlp(norm(x))
///
/// OPT 350M has its norms behind each sum instead: x = norm(x + Wo attention(x)), x = norm(x + mlp(x)).
pub(crate) fn layer<P: Probe>(
    pass: &mut Pass<'_, P>,
    i: usize,
    layer: &Layer,
    x: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    pass.queries_keys_values(i, layer, x, room)?;
    pass.attend(i, layer, false, x, room)?;
    pass.norm_after(&layer.attn_norm, x, &mut room.a);
    llama::mlp(pass, i, layer, x, room)?;
    pass.norm_after(&layer.mlp_norm, x, &mut room.a);
    Ok(())
}

impl<P: Probe> Pass<'_, P> {
    /// out = norm(x), or x where norms stand behind what they belong to.
    pub(crate) fn norm_before(&self, norm: &Norm, x: &[f32], out: &mut [f32]) {
        match self.w.config.norm_after() {
            true => out.copy_from_slice(x),
            false => self.norm(norm, x, out),
        }
    }

    /// x = norm(x), where norms stand behind what they belong to. `room` is overwritten.
    pub(crate) fn norm_after(&self, norm: &Norm, x: &mut [f32], room: &mut [f32]) {
        if self.w.config.norm_after() {
            self.norm(norm, x, room);
            x.copy_from_slice(room);
        }
    }

    /// Values of so many rows of an embedding table of another width than the hidden size; 0 where it has
    /// the same.
    pub(crate) fn narrow(&self, rows: usize) -> usize {
        self.w
            .project
            .as_ref()
            .map_or(0, |[inward, _]| rows * inward.cols)
    }

    /// x = Wout x for rows of hidden width, where the head has another.
    pub(crate) fn outward(&self, x: &mut Vec<f32>) -> Result<()> {
        if let Some([_, outward]) = &self.w.project {
            let mut out = vec![0.0; x.len() / outward.cols * outward.rows];
            multiply(self.k, x, [(outward, &mut out[..])])?;
            *x = out;
        }
        Ok(())
    }

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
