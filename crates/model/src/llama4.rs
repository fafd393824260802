//! A layer of Llama 4's text model.
//!
//! Most layers rotate queries and keys and see only their own chunk of positions; every few layers
//! one does neither and sees everything, with queries that grow with their position (arXiv:2501.19399).
//! Some layers have a mixture of experts in place of the MLP.
//!
//! Written after the order of operations in meta-llama/llama-models `models/llama4/model.py`.

use std::ops::Range;

use crate::batch::Chunk;
use crate::error::Result;
use crate::forward::{Pass, Room};
use crate::llama;
use crate::probe::Probe;
use crate::weights::Layer;

/// x += Wo attention(norm(x)); x += mlp(norm(x))
pub(crate) fn layer<P: Probe>(
    pass: &mut Pass<'_, P>,
    i: usize,
    layer: &Layer,
    x: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    let c = &pass.w.config;
    let kind = c.llama4.as_ref();
    let rotates = kind.is_none_or(|l| l.rotates.get(i).is_some_and(|on| *on));
    pass.queries_keys_values(i, layer, x, room)?;
    if rotates {
        pass.rotate(room);
        if kind.is_some_and(|l| l.qk_norm) {
            pass.k.unit_rms_norm(&mut room.q, c.head_dim, c.norm_eps);
            pass.k.unit_rms_norm(&mut room.k, c.head_dim, c.norm_eps);
        }
    } else if let Some(t) = kind.and_then(|l| l.temperature) {
        let factors: Vec<f32> = pass.plan.positions.iter().map(|p| t.at(*p)).collect();
        pass.k.scale_rows(&mut room.q, c.q_dim(), &factors);
    }
    pass.attend(i, layer, c.is_chunked(i), x, room)?;
    llama::mlp(pass, i, layer, x, room)
}

/// The keys that rows see in layers with chunked attention: of those in `spans`, the ones in the
/// same `chunk` of positions as the row, taken to be consecutive.
pub(crate) fn windows(
    chunks: &[Chunk],
    spans: &[Vec<Range<usize>>],
    chunk: usize,
) -> Vec<Vec<Range<usize>>> {
    let window = |(span, position): (&Range<usize>, &u32)| {
        let inside = *position as usize % chunk + 1;
        span.start.max(span.end.saturating_sub(inside))..span.end
    };
    let all = chunks.iter().zip(spans);
    all.map(|(c, spans)| spans.iter().zip(&c.positions).map(window).collect())
        .collect()
}
