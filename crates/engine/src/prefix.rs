//! Beginnings that sequences have in common, kept when their sequence ends.
//!
//! A tree of blocks of [`PAGE`] tokens. Its roots are what else shapes keys and values, and whom
//! they belong to ([`Root`]); below a root, the way to a block spells all tokens up to its end. So
//! a block is found by everything that shaped it, compared in full: no hash decides what is shared.
//! Where a beginning is shared by all scopes, each scope's own tree starts at the end of it.
//! (What shapes all sequences of a scheduler alike, as weights, cache type and compute mode, needs
//! no place here: the tree lives and dies with them.)
//!
//! A block stays until pages run out; then the leaf that was not used for longest goes first.
//!
//! With a folder beside it ([`Spill`]), a block that goes leaves its keys and values there, by a name
//! that is a hash of everything that shaped it, and is read back when it is asked for.
//!
//! Knows tokens and blocks of one [`Cache`]. Must not know requests.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Instant;

use model::{Adapter, Block, Cache, PAGE, Seq};

use crate::block_file::{self, Name};
use crate::root::{Miss, Root, Why};
use crate::session::Adaptation;
use crate::spill::{Spill, Wanted};

type Id = u64;

#[derive(Debug)]
struct Node {
    /// `None`: a root, or where a scope's own blocks start behind common ones.
    block: Option<Block>,
    /// The node before it, and this one's tokens.
    parent: Id,
    tokens: Box<[u32]>,
    children: BTreeMap<Box<[u32]>, Id>,
    /// Where the blocks of each scope start that this is the last common block of.
    own: BTreeMap<String, Id>,
    /// When it was last of use.
    used: u64,
    /// Of everything from the root on; only to remember what went.
    hash: u64,
    /// In the folder, if it may go there.
    name: Option<Name>,
}

/// Evicted blocks that are remembered, at most.
const REMEMBERED: usize = 1 << 14;

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    roots: HashMap<Root, Id>,
    nodes: HashMap<Id, Node>,
    /// Nodes with a block.
    blocks: usize,
    next: Id,
    now: u64,
    hashes: RandomState,
    evicted: HashSet<u64>,
    evicted_order: VecDeque<u64>,
    /// Blocks that went, in all.
    pub(crate) evictions: u64,
    folder: Option<Folder>,
}

/// Where blocks go that memory has no room for.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) spill: Arc<Spill>,
    /// Everything that shapes all blocks of this cache alike: the model, the cache's form, the
    /// kernels.
    pub(crate) common: Vec<String>,
    /// What `common` says of adapters: blocks of others stay in memory.
    pub(crate) adaptation: Adaptation,
    /// Blocks that went there.
    pub(crate) written: u64,
}

impl Folder {
    /// The name of what comes before all blocks of a root.
    fn root(&self, root: &Root) -> Option<Name> {
        if root.adaptation != self.adaptation {
            return None;
        }
        let words = self.common.iter().chain([&root.scope, &root.salt]);
        // Each with its length, so that no two lists are spelled alike.
        let spelled: Vec<u8> = words
            .flat_map(|word| {
                let length = (word.len() as u64).to_le_bytes();
                length.into_iter().chain(word.bytes()).collect::<Vec<u8>>()
            })
            .collect();
        let kind: &[u8] = if root.common > 0 { b"common" } else { b"root" };
        Some(block_file::keyed(self.spill.secret(), &[kind, &spelled]))
    }

    /// The name of what comes before a scope's own blocks behind a common one.
    fn own(&self, before: &Name, scope: &str) -> Name {
        let words: [&[u8]; 3] = [b"own", before, scope.as_bytes()];
        block_file::keyed(self.spill.secret(), &words)
    }

    /// The name of a block behind another.
    fn next(&self, before: &Name, tokens: &[u32]) -> Name {
        let tokens: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        block_file::keyed(self.spill.secret(), &[b"next", before, &tokens])
    }
}

impl Prefixes {
    /// With a folder for what memory has no room for.
    pub(crate) fn beside(folder: Option<Folder>) -> Prefixes {
        Prefixes {
            folder,
            ..Prefixes::default()
        }
    }

    /// Blocks that went to the folder.
    pub(crate) fn written(&self) -> u64 {
        self.folder.as_ref().map_or(0, |folder| folder.written)
    }

    /// What the folder has of the blocks at the beginning of `tokens` that follow those that are
    /// here: at most `most` bytes, but one block at least.
    pub(crate) fn in_folder(
        &self,
        cache: &Cache,
        root: &Root,
        tokens: &[u32],
        most: usize,
    ) -> Vec<Wanted> {
        let Some(folder) = self.folder.as_ref().filter(|_| cache.holds_blocks()) else {
            return Vec::new();
        };
        let path = self.path(root, tokens);
        let last = path.last().map(|id| self.nodes[id].name);
        let Some(mut name) = last.unwrap_or_else(|| folder.root(&root.first())) else {
            return Vec::new();
        };
        let bytes = cache.block_bytes();
        let blocks = tokens[path.len() * PAGE..tokens.len().saturating_sub(1)].chunks_exact(PAGE);
        let mut wanted = Vec::new();
        let blocks = blocks.take((most / bytes.max(1)).max(1));
        for (at, block) in (path.len()..).zip(blocks) {
            if at > 0 && at == root.blocks() {
                name = folder.own(&name, &root.scope);
            }
            name = folder.next(&name, block);
            if !folder.spill.has(&name) {
                break;
            }
            wanted.push(Wanted {
                name,
                tokens: block.into(),
                bytes,
            });
        }
        wanted
    }

    /// Takes back a block from the folder: the one behind the first `at` blocks of `tokens`. False
    /// if those are not here, or there is no page for it.
    pub(crate) fn restore(
        &mut self,
        cache: &mut Cache,
        root: &Root,
        tokens: &[u32],
        at: usize,
        bytes: Vec<u8>,
    ) -> bool {
        let path = self.path(root, tokens);
        if path.len() != at || tokens.len() < (at + 1) * PAGE {
            return path.len() > at;
        }
        while cache.free_pages() == 0 {
            // What it stands behind must not go for it.
            self.now += 1;
            self.touch(&path);
            if !self.evict(cache) {
                return false;
            }
        }
        let Some(block) = cache.put(bytes) else {
            return false;
        };
        if self.path(root, tokens).len() != at {
            cache.give_up(block);
            return false;
        }
        self.now += 1;
        let before = self.grow(root, &path);
        self.append(before, &tokens[at * PAGE..(at + 1) * PAGE], block);
        true
    }

    /// Writes everything that is kept to the folder, what was used last at the end; not beyond
    /// `end`.
    pub(crate) fn save(&mut self, cache: &Cache, end: Instant) {
        let Some(folder) = &mut self.folder else {
            return;
        };
        let mut nodes: Vec<(&Id, &Node)> = self.nodes.iter().collect();
        // Of one use, blocks after those that stand behind them.
        nodes.sort_unstable_by_key(|(id, node)| (node.used, std::cmp::Reverse(**id)));
        for (_, node) in nodes {
            let (Some(name), Some(block)) = (node.name, &node.block) else {
                continue;
            };
            if folder.spill.has(&name) {
                continue;
            }
            folder.spill.wait(end);
            if Instant::now() >= end {
                return;
            }
            let bytes = cache.block(block).to_vec();
            let written = folder.spill.write(name, node.tokens.clone(), bytes);
            folder.written += u64::from(written);
        }
    }

    /// Blocks held.
    pub(crate) fn len(&self) -> usize {
        self.blocks
    }

    /// Blocks that no sequence has: most of them can be given up.
    pub(crate) fn unused(&self, cache: &Cache) -> usize {
        let blocks = self.nodes.values().filter_map(|n| n.block.as_ref());
        blocks.filter(|b| !cache.is_shared(b)).count()
    }

    /// Blocks at the beginning of `tokens` that a running sequence has as well: they cost nothing.
    pub(crate) fn in_use(&self, cache: &Cache, root: &Root, tokens: &[u32]) -> usize {
        let path = self.path(root, tokens);
        let blocks = path.iter().filter_map(|id| self.nodes[id].block.as_ref());
        blocks.filter(|b| cache.is_shared(b)).count()
    }

    /// Blocks at the beginning of `tokens` that are there.
    pub(crate) fn matched(&self, root: &Root, tokens: &[u32]) -> usize {
        self.path(root, tokens).len()
    }

    /// Nodes of the whole blocks at the beginning of `tokens`, but for the last token, which must
    /// run to say what follows.
    fn path(&self, root: &Root, tokens: &[u32]) -> Vec<Id> {
        let mut path = Vec::new();
        for block in tokens[..tokens.len().saturating_sub(1)].chunks_exact(PAGE) {
            let before = self.before(root, &path);
            match before.and_then(|id| self.nodes[&id].children.get(block)) {
                Some(&child) => path.push(child),
                None => break,
            }
        }
        path
    }

    /// The node that the block behind those of `path` hangs on.
    fn before(&self, root: &Root, path: &[Id]) -> Option<Id> {
        match path.last() {
            None => self.roots.get(&*root.first()).copied(),
            Some(last) if path.len() == root.blocks() => {
                self.nodes[last].own.get(&root.scope).copied()
            }
            Some(last) => Some(*last),
        }
    }

    /// [`Prefixes::before`], which may be new.
    fn grow(&mut self, root: &Root, path: &[Id]) -> Id {
        let Some(last) = path.last() else {
            return self.root(&root.first());
        };
        if let Some(id) = self.before(root, path) {
            return id;
        }
        let node = &self.nodes[last];
        let hash = self.hashes.hash_one((node.hash, &root.scope));
        let folder = self.folder.as_ref().zip(node.name.as_ref());
        let name = folder.map(|(folder, before)| folder.own(before, &root.scope));
        let id = self.insert(None, *last, [].into(), (hash, name));
        if let Some(node) = self.nodes.get_mut(last) {
            node.own.insert(root.scope.clone(), id);
        }
        id
    }

    /// Starts a sequence with as much of `tokens` as is there. Returns it, the number of tokens that
    /// it has, and why it is not more.
    pub(crate) fn open(
        &mut self,
        cache: &mut Cache,
        root: &Root,
        tokens: &[u32],
    ) -> (Seq, usize, Option<Miss>) {
        let path = self.path(root, tokens);
        self.now += 1;
        self.touch(&path);
        let miss = self.miss(cache, root, &path, tokens);
        let blocks = path.iter().filter_map(|id| self.nodes[id].block.as_ref());
        let seq = cache.open_with(blocks);
        (seq, path.len() * PAGE, miss)
    }

    fn touch(&mut self, path: &[Id]) {
        for id in path {
            if let Some(node) = self.nodes.get_mut(id) {
                node.used = self.now;
            }
        }
    }

    fn miss(&self, cache: &Cache, root: &Root, path: &[Id], tokens: &[u32]) -> Option<Miss> {
        let at = path.len() * PAGE;
        // None if all whole blocks are there.
        let block = tokens[at..tokens.len().saturating_sub(1)]
            .chunks_exact(PAGE)
            .next()?;
        if !cache.holds_blocks() {
            let why = Why::Unshared;
            return Some(Miss { at, why });
        }
        let last = self.before(root, path);
        let before = match (last, path.last()) {
            (Some(id), _) => self.nodes[&id].hash,
            (None, Some(id)) => self.hashes.hash_one((self.nodes[id].hash, &root.scope)),
            (None, None) => self.hashes.hash_one(&*root.first()),
        };
        if self
            .evicted
            .contains(&self.hashes.hash_one((before, block)))
        {
            let why = Why::Evicted;
            return Some(Miss { at, why });
        }
        // In sorted order the sibling that agrees longest stands next to it.
        let same = last.map_or(0, |id| {
            let siblings = &self.nodes[&id].children;
            let before = siblings.range::<[u32], _>((Unbounded, Excluded(block)));
            let after = siblings.range::<[u32], _>((Excluded(block), Unbounded));
            let near = before.last().into_iter().chain(after.take(1));
            near.map(|(tokens, _)| agreement(tokens, block))
                .max()
                .unwrap_or(0)
        });
        Some(Miss {
            at: at + same,
            why: if same > 0 { Why::Differs } else { Why::New },
        })
    }

    /// Keeps the whole blocks of a sequence that holds `tokens`.
    pub(crate) fn keep(&mut self, cache: &mut Cache, root: &Root, tokens: &[u32], seq: Seq) {
        if tokens.len() < PAGE || !cache.holds_blocks() {
            return;
        }
        self.now += 1;
        let mut path = Vec::new();
        for (i, block) in tokens.chunks_exact(PAGE).enumerate() {
            let before = self.before(root, &path);
            let id = match before.and_then(|id| self.nodes[&id].children.get(block)) {
                Some(&child) => child,
                None => {
                    let Some(held) = cache.hold(seq, i) else {
                        return;
                    };
                    let before = self.grow(root, &path);
                    self.append(before, block, held)
                }
            };
            self.touch(&[id]);
            path.push(id);
        }
    }

    /// The node of a root, which may be new.
    fn root(&mut self, root: &Root) -> Id {
        if let Some(id) = self.roots.get(root) {
            return *id;
        }
        let hash = self.hashes.hash_one(root);
        let name = self.folder.as_ref().and_then(|folder| folder.root(root));
        let id = self.insert(None, 0, [].into(), (hash, name));
        self.roots.insert(root.clone(), id);
        id
    }

    /// A new block behind a node.
    fn append(&mut self, before: Id, tokens: &[u32], block: Block) -> Id {
        let parent = &self.nodes[&before];
        let hash = self.hashes.hash_one((parent.hash, tokens));
        let folder = self.folder.as_ref().zip(parent.name.as_ref());
        let name = folder.map(|(folder, before)| folder.next(before, tokens));
        self.evicted.remove(&hash);
        self.insert(Some(block), before, tokens.into(), (hash, name))
    }

    fn insert(
        &mut self,
        block: Option<Block>,
        parent: Id,
        tokens: Box<[u32]>,
        (hash, name): (u64, Option<Name>),
    ) -> Id {
        let id = self.next;
        self.next += 1;
        self.blocks += usize::from(block.is_some());
        if block.is_some()
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children.insert(tokens.clone(), id);
        }
        let node = Node {
            block,
            parent,
            tokens,
            children: BTreeMap::new(),
            own: BTreeMap::new(),
            used: self.now,
            hash,
            name,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Gives up the block that was not used for longest, of those that nothing follows and no
    /// sequence has. False if there is none.
    pub(crate) fn evict(&mut self, cache: &mut Cache) -> bool {
        let unused = |node: &Node| {
            let block = node.block.as_ref();
            let leaf = node.children.is_empty() && node.own.is_empty();
            leaf && block.is_some_and(|b| !cache.is_shared(b))
        };
        let leaves = self.nodes.iter().filter(|(_, node)| unused(node));
        let oldest = leaves.min_by_key(|(id, node)| (node.used, **id));
        let Some(id) = oldest.map(|(id, _)| *id) else {
            return false;
        };
        self.remove(cache, id);
        true
    }

    /// Gives up what only this tree still knows the adapters of: nobody can ask for it any more, and
    /// the adapters themselves take memory.
    pub(crate) fn forget_unloaded(&mut self, cache: &mut Cache) {
        let mut held: HashMap<*const Adapter, usize> = HashMap::new();
        for adapter in self.roots.keys().flat_map(|r| &r.adaptation.adapters) {
            *held.entry(Arc::as_ptr(adapter)).or_default() += 1;
        }
        let unloaded = |a: &Arc<Adapter>| Arc::strong_count(a) == held[&Arc::as_ptr(a)];
        let gone = |root: &Root| root.adaptation.adapters.iter().any(unloaded);
        let gone: Vec<&Root> = self.roots.keys().filter(|r| gone(r)).collect();
        // Copies count as users: they are made when all is counted.
        let gone: Vec<Root> = gone.into_iter().cloned().collect();
        for root in gone {
            let mut due: Vec<Id> = self.roots.remove(&root).into_iter().collect();
            while let Some(id) = due.pop() {
                let Some(node) = self.nodes.remove(&id) else {
                    continue;
                };
                due.extend(node.children.values().chain(node.own.values()));
                if let Some(block) = node.block {
                    self.blocks -= 1;
                    cache.give_up(block);
                }
            }
        }
    }

    /// Gives up everything.
    pub(crate) fn clear(&mut self, cache: &mut Cache) {
        for (_, node) in self.nodes.drain() {
            if let Some(block) = node.block {
                self.evictions += 1;
                cache.give_up(block);
            }
        }
        self.blocks = 0;
        self.roots.clear();
    }

    fn remove(&mut self, cache: &mut Cache, id: Id) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        if let Some(block) = node.block {
            self.blocks -= 1;
            self.evictions += 1;
            let bytes = cache.take(block);
            let folder = self.folder.as_mut().zip(node.name);
            if let (Some((folder, name)), Some(bytes)) = (folder, bytes) {
                let written = folder.spill.write(name, node.tokens.clone(), bytes);
                folder.written += u64::from(written);
            }
            // It may not come back from there.
            self.remember(node.hash);
        }
        let Some(parent) = self.nodes.get_mut(&node.parent) else {
            return;
        };
        parent.children.remove(&node.tokens);
        if parent.block.is_none() && parent.children.is_empty() {
            let common = parent.parent;
            self.nodes.remove(&node.parent);
            self.roots.retain(|_, id| *id != node.parent);
            if let Some(common) = self.nodes.get_mut(&common) {
                common.own.retain(|_, id| *id != node.parent);
            }
        }
    }

    fn remember(&mut self, hash: u64) {
        if self.evicted.insert(hash) {
            self.evicted_order.push_back(hash);
        }
        while self.evicted_order.len() > REMEMBERED {
            if let Some(old) = self.evicted_order.pop_front() {
                self.evicted.remove(&old);
            }
        }
    }
}

/// Leading tokens that are the same.
pub(crate) fn agreement(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
