//! How keys and values lie in a page of the cache. Only this module and `attention` know.
//!
//! A page holds the keys and values of `page` tokens of one layer. Keys are stored in groups of 16
//! tokens, dimension by dimension, so that a vector of 16 lanes is one dimension of 16 keys and a
//! score needs no sum across lanes. Values are stored token by token, padded to whole vectors.
//!
//! ```text
//! page  = keys of head 0, keys of head 1, ..., values of head 0, values of head 1, ...
//! keys  = group 0 (tokens 0..16), group 1, ...
//! group = [Q8_0 only: scales f16 [ceil(head_dim/32)][16]] elements [head_dim][16]
//! value = [Q8_0 only: scales f16 [tokens][padded/32]] elements [tokens][padded]
//! ```

use crate::Error;
use crate::level::by_name;
use crate::simd::{LANES, Simd};
use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// Storage type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 signed bytes along the head's dimensions with one f16 scale. A last block of a
    /// head whose dimension is no multiple of 32 is simply shorter.
    Q8_0,
}

const KV_TYPES: [(KvType, &str, usize); 4] = [
    (KvType::F32, "f32", 4),
    (KvType::F16, "f16", 2),
    (KvType::Bf16, "bf16", 2),
    (KvType::Q8_0, "q8_0", 1),
];

impl KvType {
    /// The name used in flags and reports.
    pub fn name(self) -> &'static str {
        KV_TYPES[self as usize].1
    }

    /// Bytes of one stored element, without scales.
    pub(crate) fn bytes(self) -> usize {
        KV_TYPES[self as usize].2
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(s: &str) -> Result<KvType, Error> {
        by_name("cache type", &KV_TYPES.map(|k| (k.0, k.1)), s)
    }
}

/// Tokens in a group of keys: the lanes of a vector.
pub(crate) const GROUP: usize = 16;
/// Values that share a scale in `KvType::Q8_0`, and the unit to which value rows are padded.
pub(crate) const Q8_BLOCK: usize = 32;

/// The shape of one layer's cache page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvLayout {
    /// Storage type.
    pub ty: KvType,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Tokens in a page; a multiple of 16 wastes nothing.
    pub page: usize,
}

impl KvLayout {
    /// A layout whose page size is known to be possible.
    ///
    /// # Errors
    /// [`Error::KvLayout`] if a dimension is zero or the page would exceed 2^48 bytes.
    pub fn new(
        ty: KvType,
        kv_heads: usize,
        head_dim: usize,
        page: usize,
    ) -> Result<KvLayout, Error> {
        let layout = KvLayout {
            ty,
            kv_heads,
            head_dim,
            page,
        };
        let possible = kv_heads > 0 && head_dim > 0 && page > 0;
        if !possible || layout.page_bytes() >= 1 << 48 {
            return Err(Error::KvLayout {
                kv_heads,
                head_dim,
                page,
            });
        }
        Ok(layout)
    }

    /// Bytes of a page: one layer's keys and values of `page` tokens. Saturates on impossible sizes.
    pub fn page_bytes(&self) -> usize {
        self.key_head_bytes()
            .saturating_add(self.value_head_bytes())
            .saturating_mul(self.kv_heads)
    }

    /// Blocks of 32 along a head.
    pub(crate) fn blocks(&self) -> usize {
        self.head_dim.div_ceil(Q8_BLOCK)
    }

    /// Elements in a stored row of values.
    pub(crate) fn padded(&self) -> usize {
        self.blocks().saturating_mul(Q8_BLOCK)
    }

    /// Bytes of scales at the head of a group of keys.
    pub(crate) fn group_scale_bytes(&self) -> usize {
        if self.ty == KvType::Q8_0 {
            self.blocks().saturating_mul(2 * GROUP)
        } else {
            0
        }
    }

    /// Bytes of a group of 16 keys.
    pub(crate) fn group_bytes(&self) -> usize {
        let elements = self.head_dim.saturating_mul(GROUP * self.ty.bytes());
        elements.saturating_add(self.group_scale_bytes())
    }

    /// Bytes of one head's keys in a page.
    pub(crate) fn key_head_bytes(&self) -> usize {
        self.group_bytes().saturating_mul(self.page.div_ceil(GROUP))
    }

    /// Bytes of scales at the head of one head's values.
    pub(crate) fn value_scale_bytes(&self) -> usize {
        if self.ty == KvType::Q8_0 {
            self.blocks().saturating_mul(2).saturating_mul(self.page)
        } else {
            0
        }
    }

    /// Bytes of one head's values in a page.
    pub(crate) fn value_head_bytes(&self) -> usize {
        let row = self.padded().saturating_mul(self.ty.bytes());
        row.saturating_mul(self.page)
            .saturating_add(self.value_scale_bytes())
    }
}

/// Writes one token's keys and values, each `[kv_heads * head_dim]`, into `slot` of a page; floats
/// are rounded to nearest, ties to even. Panics if a length does not fit.
#[inline(always)]
pub(crate) fn store<S: Simd>(
    s: S,
    layout: &KvLayout,
    page: &mut [u8],
    slot: usize,
    k: &[f32],
    v: &[f32],
) {
    let KvLayout {
        kv_heads, head_dim, ..
    } = *layout;
    let values = kv_heads.saturating_mul(head_dim);
    assert!(
        head_dim > 0 && k.len() == values && v.len() == values,
        "keys and values of {layout:?}"
    );
    assert!(
        slot < layout.page,
        "slot {slot} of a page of {}",
        layout.page
    );
    assert_eq!(
        page.len(),
        layout.page_bytes(),
        "bytes of a page of {layout:?}"
    );
    let (key_pages, value_pages) = page.split_at_mut(kv_heads * layout.key_head_bytes());
    for (page, k) in key_pages
        .chunks_exact_mut(layout.key_head_bytes())
        .zip(k.chunks_exact(head_dim))
    {
        let group = &mut page[slot / GROUP * layout.group_bytes()..][..layout.group_bytes()];
        let (scales, elements) = group.split_at_mut(layout.group_scale_bytes());
        // Element d of this key lies 16 elements after element d - 1.
        let lane = slot % GROUP;
        let scale_at = |block: usize| block * GROUP + lane;
        write(s, layout.ty, k, scales, scale_at, elements, |d| {
            d * GROUP + lane
        });
    }
    for (page, v) in value_pages
        .chunks_exact_mut(layout.value_head_bytes())
        .zip(v.chunks_exact(head_dim))
    {
        let (scales, elements) = page.split_at_mut(layout.value_scale_bytes());
        let first = slot * layout.padded();
        let scale_at = |block: usize| slot * layout.blocks() + block;
        write(s, layout.ty, v, scales, scale_at, elements, |d| first + d);
    }
}

/// Stores one head's `x` with value i as element `at(i)` and, for Q8_0, the scale of block b as
/// half `scale_at(b)`.
#[inline(always)]
fn write<S: Simd>(
    s: S,
    ty: KvType,
    x: &[f32],
    scales: &mut [u8],
    scale_at: impl Fn(usize) -> usize,
    elements: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    match ty {
        KvType::F32 => spread(x, elements.as_chunks_mut().0, at, f32::to_le_bytes),
        KvType::F16 => {
            let elements = elements.as_chunks_mut().0;
            for (i, x) in x.chunks(LANES).enumerate() {
                let (mut sixteen, mut halves) = ([0.0; LANES], [[0; 2]; LANES]);
                sixteen[..x.len()].copy_from_slice(x);
                s.store_f16(s.load(&sixteen), &mut halves);
                for (j, half) in halves.iter().enumerate().take(x.len()) {
                    elements[at(i * LANES + j)] = *half;
                }
            }
        }
        KvType::Bf16 => spread(x, elements.as_chunks_mut().0, at, |x| {
            bf16::from_f32(x).to_le_bytes()
        }),
        KvType::Q8_0 => {
            for (b, block) in x.chunks(Q8_BLOCK).enumerate() {
                let largest = block
                    .iter()
                    .fold(0.0, |m: f32, x| if x.abs() > m { x.abs() } else { m });
                // A NaN is passed over by the comparison; it must not be lost.
                let poison = block.iter().any(|x| x.is_nan());
                let scale = if poison {
                    f16::NAN
                } else {
                    f16::from_f32(largest / 127.0)
                };
                scales.as_chunks_mut().0[scale_at(b)] = scale.to_le_bytes();
                let d = scale.to_f32();
                let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
                let at = |i| at(b * Q8_BLOCK + i);
                // The cast saturates: a scale rounded down may give 127.06.
                spread(block, elements.as_chunks_mut().0, at, |x| {
                    ((x * inverse).round_ties_even() as i8).to_le_bytes()
                });
            }
        }
    }
}

#[inline(always)]
fn spread<const N: usize>(
    x: &[f32],
    to: &mut [[u8; N]],
    at: impl Fn(usize) -> usize,
    bytes: impl Fn(f32) -> [u8; N],
) {
    for (i, x) in x.iter().enumerate() {
        to[at(i)] = bytes(*x);
    }
}
