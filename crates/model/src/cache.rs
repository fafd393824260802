//! The paged key-value cache.
//!
//! A page holds the keys and values of [`PAGE`] consecutive tokens of one sequence, for every
//! layer. Pages are allocated as they are used and may be shared by sequences with the same
//! prefix: [`Cache::fork`] shares, and a shared page is copied before it is written.

use kernels::{KvLayout, KvType};

use crate::batch::Chunk;
use crate::config::Config;
use crate::error::{Error, Result};

/// Tokens a page.
pub const PAGE: usize = 32;

/// A sequence in a [`Cache`]. Handles of one cache mean nothing to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(u32);

#[derive(Debug, Default, Clone)]
struct Sequence {
    pages: Vec<usize>,
    len: usize,
    segment: u32,
    /// First token of the current segment.
    segment_start: usize,
}

#[derive(Debug, Default)]
struct Page {
    /// All layers one after the other; empty while the page is free.
    bytes: Vec<u8>,
    /// Sequences that hold it.
    users: usize,
}

/// Keys and values of any number of sequences. Keys are stored after rotation.
#[derive(Debug)]
pub struct Cache {
    layout: KvLayout,
    layers: usize,
    max_pages: usize,
    pages: Vec<Page>,
    free: Vec<usize>,
    sequences: Vec<Option<Sequence>>,
}

impl Cache {
    /// An empty cache for `max_tokens` tokens over all sequences (rounded up to whole pages).
    /// Nothing is allocated until tokens arrive.
    pub fn new(config: &Config, ty: KvType, max_tokens: usize) -> Result<Cache> {
        let layout = KvLayout::new(ty, config.kv_heads, config.head_dim, PAGE)?;
        Ok(Cache {
            layout,
            layers: config.layers,
            max_pages: max_tokens.div_ceil(PAGE),
            pages: Vec::new(),
            free: Vec::new(),
            sequences: Vec::new(),
        })
    }

    /// Bytes that `tokens` tokens take in a cache of this type.
    pub fn bytes_for(config: &Config, ty: KvType, tokens: usize) -> Result<u64> {
        let layout = KvLayout::new(ty, config.kv_heads, config.head_dim, PAGE)?;
        Ok((layout.page_bytes() as u64)
            .saturating_mul(config.layers as u64)
            .saturating_mul(tokens.div_ceil(PAGE) as u64))
    }

    /// Starts an empty sequence.
    pub fn open(&mut self) -> Seq {
        self.place(Sequence::default())
    }

    /// Starts a sequence that shares the first `len` tokens of another.
    ///
    /// # Panics
    /// If `seq` is not open or holds fewer than `len` tokens.
    pub fn fork(&mut self, seq: Seq, len: usize) -> Seq {
        let mut new = self.sequence(seq).clone();
        assert!(len <= new.len, "fork of {len} tokens from {}", new.len);
        new.pages.truncate(len.div_ceil(PAGE));
        new.len = len;
        new.segment_start = new.segment_start.min(len);
        for &page in &new.pages {
            self.pages[page].users += 1;
        }
        self.place(new)
    }

    /// Ends a sequence; its pages are free once no other sequence shares them.
    pub fn close(&mut self, seq: Seq) {
        self.truncate(seq, 0);
        self.sequences[seq.0 as usize] = None;
    }

    /// Tokens held for a sequence.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn len(&self, seq: Seq) -> usize {
        self.sequence(seq).len
    }

    /// Forgets all but the first `len` tokens of a sequence.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn truncate(&mut self, seq: Seq, len: usize) {
        let s = self.sequences[seq.0 as usize]
            .as_mut()
            .expect("an open sequence");
        if len >= s.len {
            return;
        }
        s.len = len;
        s.segment_start = s.segment_start.min(len);
        for page in s.pages.split_off(len.div_ceil(PAGE)) {
            release(&mut self.pages, &mut self.free, page);
        }
    }

    /// Tokens that the cache can hold in all.
    pub fn capacity(&self) -> usize {
        self.max_pages * PAGE
    }

    /// Bytes allocated now.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|p| p.bytes.len() as u64).sum()
    }

    pub(crate) fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn is_open(&self, seq: Seq) -> bool {
        matches!(self.sequences.get(seq.0 as usize), Some(Some(_)))
    }

    /// First key that a chunk's rows may see: where its segment starts. An error if the segment
    /// went by before.
    pub(crate) fn segment_start(&self, chunk: &Chunk) -> Result<usize> {
        let s = self.sequence(chunk.seq);
        match chunk.segment.cmp(&s.segment) {
            std::cmp::Ordering::Equal => Ok(s.segment_start),
            std::cmp::Ordering::Greater => Ok(s.len),
            std::cmp::Ordering::Less if s.len == 0 => Ok(0),
            std::cmp::Ordering::Less => Err(Error::Batch(format!(
                "segment {} comes after segment {} of the same sequence",
                chunk.segment, s.segment
            ))),
        }
    }

    /// Makes room for the rows of all chunks, or for none of them.
    pub(crate) fn reserve(&mut self, chunks: &[Chunk]) -> Result<()> {
        let mut new_pages = 0;
        for c in chunks {
            let s = self.sequence(c.seq);
            new_pages += (s.len + c.len()).div_ceil(PAGE) - s.pages.len();
            new_pages += usize::from(self.shared_tail(s, c.len()).is_some());
        }
        let used = self.pages.len() - self.free.len();
        if used + new_pages > self.max_pages {
            return Err(Error::CacheFull {
                need: (used + new_pages) * PAGE,
                have: self.capacity(),
            });
        }
        for c in chunks {
            let mut s = self.sequence(c.seq).clone();
            if let Some(slot) = self.shared_tail(&s, c.len()) {
                let old = s.pages[slot];
                let new = self.take_page();
                let bytes = self.pages[old].bytes.clone();
                self.pages[new].bytes = bytes;
                release(&mut self.pages, &mut self.free, old);
                s.pages[slot] = new;
            }
            while s.pages.len() < (s.len + c.len()).div_ceil(PAGE) {
                s.pages.push(self.take_page());
            }
            self.sequences[c.seq.0 as usize] = Some(s);
        }
        Ok(())
    }

    /// The bytes of one layer of the page that holds token `token`, to write to, and its slot.
    pub(crate) fn slot_mut(&mut self, seq: Seq, layer: usize, token: usize) -> (&mut [u8], usize) {
        let page = self.sequence(seq).pages[token / PAGE];
        let size = self.layout.page_bytes();
        let bytes = &mut self.pages[page].bytes[layer * size..(layer + 1) * size];
        (bytes, token % PAGE)
    }

    /// The pages of one layer that hold the first `tokens` tokens of a sequence.
    pub(crate) fn pages(&self, seq: Seq, layer: usize, tokens: usize) -> Vec<&[u8]> {
        let size = self.layout.page_bytes();
        self.sequence(seq).pages[..tokens.div_ceil(PAGE)]
            .iter()
            .map(|&p| &self.pages[p].bytes[layer * size..(layer + 1) * size])
            .collect()
    }

    /// Counts a chunk's rows as held, once every layer has stored them.
    pub(crate) fn advance(&mut self, chunk: &Chunk, segment_start: usize) {
        if let Some(s) = self.sequences[chunk.seq.0 as usize].as_mut() {
            s.len += chunk.len();
            s.segment = chunk.segment;
            s.segment_start = segment_start;
        }
    }

    fn sequence(&self, seq: Seq) -> &Sequence {
        self.sequences[seq.0 as usize]
            .as_ref()
            .expect("an open sequence")
    }

    fn place(&mut self, s: Sequence) -> Seq {
        let slot = self
            .sequences
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.sequences.push(None);
                self.sequences.len() - 1
            });
        self.sequences[slot] = Some(s);
        Seq(slot as u32)
    }

    /// Index of the half-filled last page of `s` if it must be copied before `more` rows go in.
    fn shared_tail(&self, s: &Sequence, more: usize) -> Option<usize> {
        let slot = s.len / PAGE;
        let partial = more > 0 && !s.len.is_multiple_of(PAGE);
        (partial && self.pages[s.pages[slot]].users > 1).then_some(slot)
    }

    fn take_page(&mut self) -> usize {
        let page = self.free.pop().unwrap_or_else(|| {
            self.pages.push(Page::default());
            self.pages.len() - 1
        });
        let p = &mut self.pages[page];
        p.users = 1;
        p.bytes.resize(self.layers * self.layout.page_bytes(), 0);
        page
    }
}

fn release(pages: &mut [Page], free: &mut Vec<usize>, page: usize) {
    let p = &mut pages[page];
    p.users -= 1;
    if p.users == 0 {
        p.bytes = Vec::new();
        free.push(page);
    }
}
