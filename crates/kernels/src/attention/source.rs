//! Where the kernels read keys and values from: the pages of a cache, whatever their type, or a
//! block of them widened to floats.
//!
//! Widening is exact for every type (an 8-bit integer times an f16 scale fits an f32), so both give
//! the same bits.

use super::{BLOCK, Field};
use crate::kv::{GROUP, KvLayout, Q8_BLOCK};
use crate::simd::{LANES, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// Tokens from what is used to what is prefetched.
const AHEAD: usize = 64;

/// How 16 stored elements become a vector of floats.
pub(super) trait Element: Copy {
    /// 16 elements.
    type Lanes: Copy + 'static;
    /// They lie in memory that is worth asking for ahead of its use.
    const FAR: bool = true;
    /// Cuts stored bytes, or nothing for elements that are not stored.
    fn cut(bytes: &[u8]) -> &[Self::Lanes];
    /// 16 elements, times their scales.
    fn load<S: Simd>(s: S, lanes: &Self::Lanes, scale: S::F) -> S::F;
    /// The scales of 16 keys, from those of a group: block `b` of 32 dimensions.
    #[inline(always)]
    fn key_scales<S: Simd>(s: S, _scales: &[u8], _b: usize) -> S::F {
        s.splat(1.0)
    }
    /// Scale `i` among those of values, in all lanes.
    #[inline(always)]
    fn value_scale<S: Simd>(s: S, _scales: &[u8], _i: usize) -> S::F {
        s.splat(1.0)
    }
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $load:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Element for $name {
            type Lanes = [u8; $bytes];
            #[inline(always)]
            fn cut(bytes: &[u8]) -> &[[u8; $bytes]] {
                bytes.as_chunks().0
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, lanes: &[u8; $bytes], _scale: S::F) -> S::F {
                s.$load(lanes)
            }
        }
    };
}
element!(
    /// Stored f32.
    F32, 64, load_f32
);
element!(
    /// Stored f16.
    F16, 32, load_f16
);
element!(
    /// Stored bf16.
    Bf16, 32, load_bf16
);

/// Stored bytes with an f16 scale for each block of 32 dimensions.
#[derive(Clone, Copy)]
pub(super) struct Q8;
impl Element for Q8 {
    type Lanes = [u8; 16];
    #[inline(always)]
    fn cut(bytes: &[u8]) -> &[[u8; 16]] {
        bytes.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, lanes: &[u8; 16], scale: S::F) -> S::F {
        s.mul(s.load_i8(lanes), scale)
    }
    #[inline(always)]
    fn key_scales<S: Simd>(s: S, scales: &[u8], b: usize) -> S::F {
        s.load_f16(&scales.as_chunks().0[b])
    }
    #[inline(always)]
    fn value_scale<S: Simd>(s: S, scales: &[u8], i: usize) -> S::F {
        s.splat(s.f16(u16::from_le_bytes(scales.as_chunks().0[i])))
    }
}

/// Floats of a panel.
#[derive(Clone, Copy)]
pub(super) struct Wide;
impl Element for Wide {
    type Lanes = [f32; LANES];
    const FAR: bool = false;
    #[inline(always)]
    fn cut(_: &[u8]) -> &[[f32; LANES]] {
        &[]
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, lanes: &[f32; LANES], _scale: S::F) -> S::F {
        s.load(lanes)
    }
}

/// A group of 16 keys: one vector for each dimension.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a, E: Element> {
    pub(super) scales: &'a [u8],
    pub(super) elements: &'a [E::Lanes], // (head_dim)
    /// Lane of the key that was asked for, and how many keys follow in this group, it included.
    pub(super) lane: usize,
    pub(super) len: usize,
    /// Elements that will be wanted some pages later; to prefetch only.
    pub(super) ahead: *const E::Lanes,
}

/// Neighbouring rows of values, from the one that was asked for.
#[derive(Clone, Copy)]
pub(super) struct Values<'a, E: Element> {
    pub(super) scales: &'a [u8],
    pub(super) elements: &'a [E::Lanes], // (len, padded / 16)
    pub(super) len: usize,
    /// As with keys.
    pub(super) ahead: *const E::Lanes,
}

/// Keys and values of one key-value head, by token.
pub(super) trait Source<'a>: Copy {
    /// What they are stored as.
    type E: Element;
    /// Most queries of a tile: a multiple of what is cheap to widen at each use.
    const TILE: usize;
    /// The group of key `t`.
    fn keys(&self, t: usize) -> Keys<'a, Self::E>;
    /// The values from token `t` on.
    fn values(&self, t: usize) -> Values<'a, Self::E>;
}

/// The pages themselves.
#[derive(Clone, Copy)]
pub(super) struct Paged<'a, E> {
    layout: KvLayout,
    pages: &'a [&'a [u8]],
    kv_head: usize,
    of: PhantomData<E>,
}

impl<'a, E> Paged<'a, E> {
    #[inline(always)]
    pub(super) fn new(field: &Field<'a>, kv_head: usize) -> Self {
        Paged {
            layout: field.layout,
            pages: field.pages,
            kv_head,
            of: PhantomData,
        }
    }
}

impl<'a, E: Element> Source<'a> for Paged<'a, E> {
    type E = E;
    const TILE: usize = 4;

    #[inline(always)]
    fn keys(&self, t: usize) -> Keys<'a, E> {
        let l = &self.layout;
        let slot = t % l.page;
        let at = self.kv_head * l.key_head_bytes() + slot / GROUP * l.group_bytes();
        let group = &self.pages[t / l.page][at..][..l.group_bytes()];
        let (scales, elements) = group.split_at(l.group_scale_bytes());
        let lane = slot % GROUP;
        let ahead = self.ahead(t).wrapping_add(at);
        lines(ahead, scales.len());
        Keys {
            scales,
            elements: E::cut(elements),
            lane,
            len: (GROUP - lane).min(l.page - slot),
            ahead: ahead.wrapping_add(scales.len()).cast(),
        }
    }

    #[inline(always)]
    fn values(&self, t: usize) -> Values<'a, E> {
        let l = &self.layout;
        let slot = t % l.page;
        let head = l.kv_heads * l.key_head_bytes() + self.kv_head * l.value_head_bytes();
        let bytes = &self.pages[t / l.page][head..][..l.value_head_bytes()];
        let (scales, elements) = bytes.split_at(l.value_scale_bytes());
        let ahead = self.ahead(t).wrapping_add(head);
        lines(ahead, scales.len());
        let at = scales.len() + slot * l.padded() * l.ty.bytes();
        Values {
            scales: if scales.is_empty() {
                scales
            } else {
                &scales[2 * slot * l.blocks()..]
            },
            elements: &E::cut(elements)[slot * l.padded() / LANES..],
            len: l.page - slot,
            ahead: ahead.wrapping_add(at).cast(),
        }
    }
}

impl<E> Paged<'_, E> {
    /// The start of the page that follows that of token `t` by about [`AHEAD`] tokens, or its own.
    #[inline(always)]
    fn ahead(&self, t: usize) -> *const u8 {
        let page = t / self.layout.page;
        let ahead = self.pages.get(page + AHEAD.div_ceil(self.layout.page));
        ahead.unwrap_or(&self.pages[page]).as_ptr()
    }
}

/// Prefetches some bytes.
#[inline(always)]
fn lines(at: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        prefetch(at.wrapping_add(line));
    }
}

/// Asks for memory that will be read: pages lie far apart, and the processor's own prefetching starts
/// anew in each.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that accesses nothing; every x86-64 processor has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Keys and values of one block, widened: groups of 16 keys, then rows of values.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    /// Token of the first key; the number of tokens.
    first: usize,
    len: usize,
    dim: usize,
    keys: &'a [[f32; LANES]],   // (len / 16, head_dim)
    values: &'a [[f32; LANES]], // (len, padded / 16)
}

impl<'a> Panels<'a> {
    /// Panels of `len` tokens, a multiple of 16, from token `first` on.
    pub(super) fn new(layout: &KvLayout, first: usize, len: usize, floats: &'a [f32]) -> Self {
        let (keys, values) = floats.split_at(len * layout.head_dim);
        Panels {
            first,
            len,
            dim: layout.head_dim,
            keys: keys.as_chunks().0,
            values: values[..len * layout.padded()].as_chunks().0,
        }
    }
}

/// Widens tokens of the block that starts with token `first` into its panels.
#[inline(always)]
pub(super) fn widen<S: Simd, E: Element>(
    pages: Paged<'_, E>,
    s: S,
    first: usize,
    tokens: Range<usize>,
    panels: &mut [f32],
) {
    let (dim, padded) = (pages.layout.head_dim, pages.layout.padded());
    let (keys, values) = panels.split_at_mut(BLOCK * dim);
    let keys = keys.as_chunks_mut::<LANES>().0;
    let values = values.as_chunks_mut::<LANES>().0;
    let mut t = tokens.start;
    while t < tokens.end {
        let group = pages.keys(t);
        let at = t - first;
        for d in 0..dim {
            let scale = E::key_scales(s, group.scales, d / Q8_BLOCK);
            let key = E::load(s, &group.elements[d], scale);
            if group.lane == at % LANES {
                // The rest of the group is either overwritten after this, or not used.
                s.store(key, &mut keys[at / LANES * dim + d]);
            } else {
                // Pages of a size that is no multiple of 16.
                let mut all = [0.0; LANES];
                s.store(key, &mut all);
                for j in 0..group.len.min(tokens.end - t) {
                    keys[(at + j) / LANES * dim + d][(at + j) % LANES] = all[group.lane + j];
                }
            }
        }
        t += group.len;
    }
    let mut t = tokens.start;
    while t < tokens.end {
        let rows = pages.values(t);
        let vectors = padded / LANES;
        let take = rows.len.min(tokens.end - t);
        let to = &mut values[(t - first) * vectors..][..take * vectors];
        for (i, (to, from)) in to.iter_mut().zip(rows.elements).enumerate() {
            // Two vectors make a block of 32.
            s.store(E::load(s, from, E::value_scale(s, rows.scales, i / 2)), to);
        }
        t += take;
    }
}

impl<'a> Source<'a> for Panels<'a> {
    type E = Wide;
    const TILE: usize = 6;

    #[inline(always)]
    fn keys(&self, t: usize) -> Keys<'a, Wide> {
        let at = t - self.first;
        let lane = at % LANES;
        Keys {
            scales: &[],
            elements: &self.keys[at / LANES * self.dim..][..self.dim],
            lane,
            len: LANES - lane,
            ahead: std::ptr::null(),
        }
    }

    #[inline(always)]
    fn values(&self, t: usize) -> Values<'a, Wide> {
        let at = t - self.first;
        Values {
            scales: &[],
            elements: &self.values[at * (self.values.len() / self.len)..],
            len: self.len - at,
            ahead: std::ptr::null(),
        }
    }
}
