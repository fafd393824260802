//! The paged key-value cache.
//!
//! A page holds the keys and values of [`PAGE`] consecutive tokens of one sequence, for a group of
//! layers. Pages are allocated as they are used and may be shared by sequences with the same
//! prefix: [`Cache::fork`] shares, and a shared page is copied before it is written.
//!
//! Layers are of two groups. Those that see everything keep everything. Those with chunked attention
//! never look back beyond the start of a chunk of positions, so pages before it are given up, once
//! the sequence is so far beyond that some tokens can be taken back cheaply. Going back further goes
//! to the start of a chunk, from where nothing earlier is needed: [`Cache::truncate`] says how much is
//! still held.

use kernels::{KvLayout, KvType};

use crate::batch::Chunk;
use crate::config::Config;
use crate::error::{Error, Result};

/// Tokens a page.
pub const PAGE: usize = 32;

/// A sequence in a [`Cache`]. Handles of one cache mean nothing to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(u32);

/// How many tokens a sequence can be taken back, at most, without computing more than those anew:
/// what chunked layers see from there is kept.
const REWIND: usize = 1024;
/// Tokens of one pass for which [`Cache::bytes_for`] makes room in chunked layers.
const PASS: usize = 1024;

/// The groups of layers.
const FULL: usize = 0;
const CHUNKED: usize = 1;

#[derive(Debug, Default, Clone)]
struct Sequence {
    /// Of each group; `None` for what chunked layers have given up.
    pages: [Vec<Option<usize>>; 2],
    len: usize,
    segment: u32,
    /// First token of the current segment.
    segment_start: usize,
    /// Position of the token that would come next.
    next_position: usize,
    /// The first token that chunked layers still hold.
    held_from: usize,
}

impl Sequence {
    /// The first token that a row after `len` tokens sees in layers with chunks of `chunk`
    /// positions.
    fn window_start(&self, len: usize, chunk: usize) -> usize {
        let position = self.next_position.saturating_sub(self.len - len);
        let start = len.saturating_sub(position % chunk);
        start.max(self.segment_start.min(len))
    }
}

/// Pages of the layers of one group.
#[derive(Debug, Default)]
struct Group {
    layers: usize,
    pages: Vec<Page>,
    free: Vec<usize>,
}

impl Group {
    fn take(&mut self, layer_bytes: usize) -> usize {
        let page = self.free.pop().unwrap_or_else(|| {
            self.pages.push(Page::default());
            self.pages.len() - 1
        });
        let p = &mut self.pages[page];
        p.users = 1;
        p.bytes.resize(self.layers * layer_bytes, 0);
        page
    }

    fn release(&mut self, page: usize) {
        let p = &mut self.pages[page];
        p.users -= 1;
        if p.users == 0 {
            p.bytes = Vec::new();
            self.free.push(page);
        }
    }

    fn used(&self) -> usize {
        self.pages.len() - self.free.len()
    }
}

#[derive(Debug, Default)]
struct Page {
    /// The group's layers one after the other; empty while the page is free.
    bytes: Vec<u8>,
    /// Sequences that hold it, and a [`Block`].
    users: usize,
}

/// A full page of tokens that stays when its sequence ends, until [`Cache::give_up`]. Blocks of one
/// cache mean nothing to another.
#[derive(Debug)]
pub struct Block(usize);

/// Keys and values of any number of sequences. Keys are stored after rotation.
#[derive(Debug)]
pub struct Cache {
    layout: KvLayout,
    /// The group of each layer, and its place there.
    places: Vec<(usize, usize)>,
    groups: [Group; 2],
    /// Positions in a chunk of chunked layers; 0 if there are none.
    chunk: usize,
    max_pages: usize,
    sequences: Vec<Option<Sequence>>,
}

impl Cache {
    /// An empty cache for `max_tokens` tokens over all sequences (rounded up to whole pages).
    /// Nothing is allocated until tokens arrive.
    pub fn new(config: &Config, ty: KvType, max_tokens: usize) -> Result<Cache> {
        let layout = KvLayout::new(ty, config.kv_heads, config.head_dim, PAGE)?;
        let mut groups: [Group; 2] = Default::default();
        let place = |layer: usize| {
            let group = if config.is_chunked(layer) {
                CHUNKED
            } else {
                FULL
            };
            groups[group].layers += 1;
            (group, groups[group].layers - 1)
        };
        let places = (0..config.layers).map(place).collect();
        let chunk = config.llama4.as_ref().map_or(0, |l| l.chunk);
        Ok(Cache {
            layout,
            places,
            chunk: if groups[CHUNKED].layers > 0 { chunk } else { 0 },
            groups,
            max_pages: max_tokens.div_ceil(PAGE),
            sequences: Vec::new(),
        })
    }

    /// Bytes that `tokens` tokens of one sequence take at most in a cache of this type, if they come
    /// in passes of usual size.
    pub fn bytes_for(config: &Config, ty: KvType, tokens: usize) -> Result<u64> {
        let layout = KvLayout::new(ty, config.kv_heads, config.head_dim, PAGE)?;
        let chunked = (0..config.layers).filter(|i| config.is_chunked(*i)).count();
        let chunk = config.llama4.as_ref().map_or(0, |l| l.chunk);
        let near = chunk.saturating_add(chunk.min(REWIND)).saturating_add(PASS);
        let bytes = |layers: usize, tokens: usize| {
            (layout.page_bytes() as u64)
                .saturating_mul(layers as u64)
                .saturating_mul(tokens.div_ceil(PAGE) as u64)
        };
        let full = bytes(config.layers - chunked, tokens);
        Ok(full.saturating_add(bytes(chunked, tokens.min(near))))
    }

    /// Starts an empty sequence.
    pub fn open(&mut self) -> Seq {
        self.place(Sequence::default())
    }

    /// Starts a sequence that shares the first `len` tokens of another, or as many as
    /// [`Cache::truncate`] would leave.
    ///
    /// # Panics
    /// If `seq` is not open or holds fewer than `len` tokens.
    pub fn fork(&mut self, seq: Seq, len: usize) -> Seq {
        let mut new = self.sequence(seq).clone();
        assert!(len <= new.len, "fork of {len} tokens from {}", new.len);
        self.cut(&mut new, len);
        for (group, pages) in self.groups.iter_mut().zip(&new.pages) {
            for page in pages.iter().flatten() {
                group.pages[*page].users += 1;
            }
        }
        self.place(new)
    }

    /// Ends a sequence; its pages are free once no other sequence shares them.
    pub fn close(&mut self, seq: Seq) {
        self.truncate(seq, 0);
        self.sequences[seq.0 as usize] = None;
    }

    /// How keys and values are stored.
    pub fn kv(&self) -> KvType {
        self.layout.ty
    }

    /// Tokens held for a sequence.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn len(&self, seq: Seq) -> usize {
        self.sequence(seq).len
    }

    /// Forgets all but the first `len` tokens of a sequence, and returns how many it still holds:
    /// fewer if chunked layers have given up what a row after them would see, then up to the start
    /// of that chunk of positions.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn truncate(&mut self, seq: Seq, len: usize) -> usize {
        let mut s = self.sequence(seq).clone();
        let rest = self.cut(&mut s, len);
        let left = s.len;
        self.sequences[seq.0 as usize] = Some(s);
        for (group, pages) in self.groups.iter_mut().zip(rest) {
            pages
                .into_iter()
                .flatten()
                .for_each(|page| group.release(page));
        }
        left
    }

    /// Takes a sequence back to `len` tokens or fewer; returns the pages that it no longer has.
    fn cut(&self, s: &mut Sequence, len: usize) -> [Vec<Option<usize>>; 2] {
        let len = self.resumable(s, len.min(s.len));
        s.next_position = s.next_position.saturating_sub(s.len - len);
        s.len = len;
        s.segment_start = s.segment_start.min(len);
        s.held_from = s.held_from.min(len);
        let pages = len.div_ceil(PAGE);
        let cut = |list: &mut Vec<Option<usize>>| list.split_off(pages.min(list.len()));
        [cut(&mut s.pages[FULL]), cut(&mut s.pages[CHUNKED])]
    }

    /// The most tokens up to `len` after which a sequence can go on.
    fn resumable(&self, s: &Sequence, len: usize) -> usize {
        let first = s.held_from;
        if len == s.len || self.chunk == 0 || first == 0 {
            return len;
        }
        // Positions of an earlier segment are not known any more.
        if len < s.segment_start {
            return 0;
        }
        match s.window_start(len, self.chunk) {
            start if start >= first => len,
            start => start,
        }
    }

    /// Whether pages can outlive their sequences: not where layers have chunked attention, because
    /// those give up what a later sequence would need.
    pub fn holds_blocks(&self) -> bool {
        self.chunk == 0
    }

    /// Holds the page of tokens `index * PAGE ..` of a sequence, if the sequence has filled it and
    /// [`Cache::holds_blocks`]. What they mean is up to the caller: they belong to the tokens before
    /// them, at positions from 0 on.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn hold(&mut self, seq: Seq, index: usize) -> Option<Block> {
        let s = self.sequence(seq);
        let full = index < s.len / PAGE && self.holds_blocks();
        let page = (*s.pages[FULL].get(index)?).filter(|_| full)?;
        self.groups[FULL].pages[page].users += 1;
        Some(Block(page))
    }

    /// Starts a sequence of the tokens of these blocks, shared with whoever else has them.
    pub fn open_with<'b>(&mut self, blocks: impl IntoIterator<Item = &'b Block>) -> Seq {
        let pages: Vec<_> = blocks.into_iter().map(|b| Some(b.0)).collect();
        for page in pages.iter().flatten() {
            self.groups[FULL].pages[*page].users += 1;
        }
        let len = pages.len() * PAGE;
        self.place(Sequence {
            pages: [pages, Vec::new()],
            len,
            next_position: len,
            ..Sequence::default()
        })
    }

    /// Whether a sequence has this block, too: then giving it up frees nothing yet.
    pub fn is_shared(&self, block: &Block) -> bool {
        self.groups[FULL].pages[block.0].users > 1
    }

    /// Holds a block no longer.
    pub fn give_up(&mut self, block: Block) {
        self.groups[FULL].release(block.0);
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.groups[FULL].layers * self.layout.page_bytes()
    }

    /// The keys and values of a block.
    pub fn block(&self, block: &Block) -> &[u8] {
        &self.groups[FULL].pages[block.0].bytes
    }

    /// [`Cache::give_up`]; the keys and values of a block that nobody else has.
    pub fn take(&mut self, block: Block) -> Option<Vec<u8>> {
        let page = &mut self.groups[FULL].pages[block.0];
        let bytes = (page.users == 1).then(|| std::mem::take(&mut page.bytes));
        self.give_up(block);
        bytes
    }

    /// A block of keys and values that [`Cache::take`] gave, of a cache of this form. `None` if they
    /// are none, or no page is free.
    pub fn put(&mut self, bytes: Vec<u8>) -> Option<Block> {
        let sound = self.holds_blocks() && bytes.len() == self.block_bytes();
        if !sound || self.free_pages() == 0 {
            return None;
        }
        let page = self.groups[FULL].take(0);
        self.groups[FULL].pages[page].bytes = bytes;
        Some(Block(page))
    }

    /// Pages of [`PAGE`] tokens that can still be taken.
    pub fn free_pages(&self) -> usize {
        self.max_pages - self.groups[FULL].used()
    }

    /// Pages that `more` tokens of a sequence would take.
    ///
    /// # Panics
    /// If `seq` is not open.
    pub fn pages_for(&self, seq: Seq, more: usize) -> usize {
        let s = self.sequence(seq);
        let new = (s.len + more).div_ceil(PAGE) - s.pages[FULL].len();
        new + usize::from(self.tail(s, FULL, more).is_some())
    }

    /// Tokens that the cache can hold in all.
    pub fn capacity(&self) -> usize {
        self.max_pages * PAGE
    }

    /// Bytes allocated now.
    pub fn bytes(&self) -> u64 {
        let pages = self.groups.iter().flat_map(|g| &g.pages);
        pages.map(|p| p.bytes.len() as u64).sum()
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

    /// The first token that rows of chunked layers may see.
    pub(crate) fn first_held(&self, seq: Seq) -> usize {
        self.sequence(seq).held_from
    }

    /// Makes room for the rows of all chunks, or for none of them.
    pub(crate) fn reserve(&mut self, chunks: &[Chunk]) -> Result<()> {
        let new_pages = chunks.iter().map(|c| self.pages_for(c.seq, c.len()));
        let new_pages: usize = new_pages.sum();
        // Chunked layers never have more pages than the others.
        let used = self.groups[FULL].used();
        if used + new_pages > self.max_pages {
            return Err(Error::CacheFull {
                need: (used + new_pages) * PAGE,
                have: self.capacity(),
            });
        }
        let bytes = self.layout.page_bytes();
        for c in chunks {
            let mut s = self.sequence(c.seq).clone();
            for group in [FULL, CHUNKED] {
                if group == CHUNKED && self.chunk == 0 {
                    continue;
                }
                let tail = self.tail(&s, group, c.len());
                let g = &mut self.groups[group];
                if let Some((slot, old)) = tail {
                    let new = g.take(bytes);
                    if let Some(old) = old {
                        g.pages[new].bytes = g.pages[old].bytes.clone();
                        g.release(old);
                    }
                    s.pages[group][slot] = Some(new);
                }
                while s.pages[group].len() < (s.len + c.len()).div_ceil(PAGE) {
                    s.pages[group].push(Some(g.take(bytes)));
                }
            }
            self.sequences[c.seq.0 as usize] = Some(s);
        }
        Ok(())
    }

    /// The bytes of one layer of the page that holds token `token`, to write to, and its slot.
    pub(crate) fn slot_mut(&mut self, seq: Seq, layer: usize, token: usize) -> (&mut [u8], usize) {
        let (group, at) = self.places[layer];
        let page = self.sequence(seq).pages[group][token / PAGE].expect("a page that is held");
        let size = self.layout.page_bytes();
        let bytes = &mut self.groups[group].pages[page].bytes[at * size..(at + 1) * size];
        (bytes, token % PAGE)
    }

    /// The pages of one layer that hold the first `tokens` tokens of a sequence. In place of those
    /// that were given up, which no row sees, stands another.
    pub(crate) fn pages(&self, seq: Seq, layer: usize, tokens: usize) -> Vec<&[u8]> {
        let (group, at) = self.places[layer];
        let size = self.layout.page_bytes();
        let pages = &self.sequence(seq).pages[group][..tokens.div_ceil(PAGE)];
        let other = pages.iter().flatten().next();
        let of = |page: usize| &self.groups[group].pages[page].bytes[at * size..(at + 1) * size];
        let held = pages.iter().filter_map(|page| page.or(other.copied()));
        held.map(of).collect()
    }

    /// Counts a chunk's rows as held, once every layer has stored them, and gives up what chunked
    /// layers will not see again.
    pub(crate) fn advance(&mut self, chunk: &Chunk, segment_start: usize) {
        let Some(s) = self.sequences[chunk.seq.0 as usize].as_mut() else {
            return;
        };
        s.len += chunk.len();
        s.segment = chunk.segment;
        s.segment_start = segment_start;
        s.next_position = chunk.positions.last().map_or(0, |p| *p as usize + 1);
        if self.chunk == 0 {
            return;
        }
        let back = s.len.saturating_sub(REWIND.min(self.chunk));
        let keep = s.window_start(back, self.chunk) / PAGE;
        s.held_from = s.held_from.max(keep * PAGE);
        let gone = s.pages[CHUNKED]
            .iter_mut()
            .take(keep)
            .filter_map(Option::take);
        gone.for_each(|page| self.groups[CHUNKED].release(page));
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

    /// The half-filled last page of `s` in a group, if it must be made anew before `more` rows go
    /// in: its slot, and the page to copy if there is one.
    fn tail(&self, s: &Sequence, group: usize, more: usize) -> Option<(usize, Option<usize>)> {
        let slot = s.len / PAGE;
        if more == 0 || s.len.is_multiple_of(PAGE) {
            return None;
        }
        match s.pages[group].get(slot).copied().flatten() {
            Some(page) if self.groups[group].pages[page].users > 1 => Some((slot, Some(page))),
            Some(_) => None,
            None => Some((slot, None)),
        }
    }
}
