//! A smaller model with the same vocabulary, which guesses for any number of answers at once.
//!
//! Each answer has a [`Shadow`] here: a sequence that follows it. All who want guesses get them in
//! the same passes: a row for each, and parts of what a shadow has not read yet. Whatever goes
//! wrong (a full context, no pages), the answer goes on without guesses.
//!
//! Beginnings that shadows leave behind are kept like those of the answers, so that a conversation
//! that goes on is not read anew.

use std::collections::HashSet;
use std::sync::Arc;

use kernels::KvType;
use model::{Batch, Cache, Chunk, ChunkOut, PAGE, Rows, Seq, Weights};
use text::Tokenizer;

use crate::error::Error;
use crate::prefix::{Prefixes, agreement};
use crate::root::Root;
use crate::sampler::Sampler;
use crate::session::Adaptation;

/// Tokens of one shadow in one pass.
const CHUNK: usize = 256;

/// The smaller model.
#[derive(Debug)]
pub(crate) struct Helper {
    weights: Arc<Weights>,
    cache: Cache,
    context: usize,
    adaptation: Adaptation,
    prefixes: Prefixes,
}

/// What the helper holds for one answer.
#[derive(Debug)]
pub(crate) struct Shadow {
    seq: Seq,
    /// The tokens whose keys and values its sequence has.
    held: Vec<u32>,
    root: Root,
    /// It cannot go on: the answer does without it.
    failed: bool,
}

impl Shadow {
    /// Whether there is any use in asking.
    pub(crate) fn is_well(&self) -> bool {
        !self.failed
    }

    /// Another answer begins.
    pub(crate) fn restart(&mut self) {
        self.failed = false;
    }

    /// Tokens of its answer that it has read.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

/// What is to be guessed for one answer.
pub(crate) struct Wish<'a> {
    pub(crate) shadow: &'a mut Shadow,
    pub(crate) sampler: &'a mut Sampler,
    /// Prompt and answer, which the sampler looks at.
    pub(crate) all: &'a [u32],
    /// What the model sees of them.
    pub(crate) view: &'a [u32],
    /// Nothing follows these.
    pub(crate) ends: &'a HashSet<u32>,
    /// Most tokens.
    pub(crate) most: usize,
}

/// A guess in the making.
struct Draft<'w, 'a> {
    wish: &'w mut Wish<'a>,
    /// What the model sees, and what the sampler sees, each with the guess so far.
    prefix: Vec<u32>,
    history: Vec<u32>,
    done: bool,
}

impl Draft<'_, '_> {
    fn guessed(&self) -> usize {
        self.prefix.len() - self.wish.view.len()
    }

    fn fail(&mut self) {
        (self.wish.shadow.failed, self.done) = (true, true);
    }

    fn missing(&self) -> &[u32] {
        &self.prefix[self.wish.shadow.held.len()..]
    }

    /// Draws the next token.
    fn draw(&mut self, logits: &[f32]) {
        match self.wish.sampler.sample(logits, &self.history) {
            Ok(id) => {
                self.prefix.push(id);
                self.history.push(id);
                self.done = self.guessed() >= self.wish.most || self.wish.ends.contains(&id);
            }
            Err(_) => self.fail(),
        }
    }
}

impl Helper {
    /// A helper that holds at most `context` tokens of one answer and `cache` tokens of all.
    pub(crate) fn new(
        weights: Arc<Weights>,
        kv: KvType,
        context: usize,
        cache: usize,
    ) -> Result<Helper, Error> {
        let cache = Cache::new(&weights.config, kv, cache)?;
        Ok(Helper {
            context: context.min(cache.capacity()),
            weights,
            cache,
            adaptation: Adaptation::default(),
            prefixes: Prefixes::default(),
        })
    }

    /// The same, adapted.
    pub(crate) fn adapted(self, adaptation: Adaptation) -> Helper {
        Helper { adaptation, ..self }
    }

    /// Bytes of weights that a pass of one row reads.
    pub(crate) fn bytes(&self) -> u64 {
        self.weights.bytes_per_token()
    }

    /// Pages of its cache in use, and how many there are.
    pub(crate) fn pages(&self) -> (usize, usize) {
        let total = self.cache.capacity() / PAGE;
        (total - self.cache.free_pages(), total)
    }

    /// Begins to follow an answer that sees these tokens.
    pub(crate) fn open(&mut self, root: &Root, view: &[u32]) -> Shadow {
        // What it computes does not depend on the answer's adapters, and must not hold them.
        let root = Root {
            scope: root.scope.clone(),
            salt: root.salt.clone(),
            ..Root::default()
        };
        let (seq, cached, _) = self.prefixes.open(&mut self.cache, &root, view);
        Shadow {
            seq,
            held: view[..cached].to_vec(),
            root,
            failed: false,
        }
    }

    /// Ends a shadow; what it has read stays while there is room.
    pub(crate) fn close(&mut self, shadow: Shadow) {
        let Shadow {
            seq, held, root, ..
        } = shadow;
        self.prefixes.keep(&mut self.cache, &root, &held, seq);
        self.cache.close(seq);
    }

    /// Guesses for all who wish it; fewer tokens or none where it cannot. Of what the shadows have
    /// not read yet, `budget` tokens are read at most; whoever is not in step then gets no guess.
    pub(crate) fn guess(&mut self, wishes: &mut [Wish<'_>], mut budget: usize) -> Vec<Vec<u32>> {
        let mut drafts: Vec<Draft> = wishes.iter_mut().map(|w| self.begin(w)).collect();
        loop {
            let parts = self.plan(&mut drafts, &mut budget);
            if parts.is_empty() {
                break;
            }
            match self.pass(&drafts, &parts) {
                Ok(outs) => {
                    for ((i, tokens), out) in parts.into_iter().zip(outs) {
                        let draft = &mut drafts[i];
                        let held = draft.wish.shadow.held.len();
                        let read = &draft.prefix[held..held + tokens];
                        draft.wish.shadow.held.extend_from_slice(read);
                        if draft.missing().is_empty() {
                            draft.draw(&out.logits);
                        }
                    }
                }
                Err(_) => {
                    for (i, _) in parts {
                        let shadow = &mut drafts[i].wish.shadow;
                        // Whatever a failed pass left behind is not what it holds.
                        let left = self.cache.truncate(shadow.seq, shadow.held.len());
                        shadow.held.truncate(left);
                        drafts[i].fail();
                    }
                }
            }
        }
        let guessed = drafts
            .into_iter()
            .map(|mut d| d.prefix.split_off(d.wish.view.len()));
        guessed.collect()
    }

    /// Takes a shadow back to what its answer still says.
    fn begin<'w, 'a>(&mut self, wish: &'w mut Wish<'a>) -> Draft<'w, 'a> {
        let shadow = &mut wish.shadow;
        let same = agreement(&shadow.held, wish.view).min(wish.view.len().saturating_sub(1));
        let left = self.cache.truncate(shadow.seq, same);
        shadow.held.truncate(left);
        let done = shadow.failed || wish.most == 0 || wish.view.is_empty();
        Draft {
            prefix: wish.view.to_vec(),
            history: wish.all.to_vec(),
            done,
            wish,
        }
    }

    /// Whose tokens run in the next pass, and how many.
    fn plan(&mut self, drafts: &mut [Draft], budget: &mut usize) -> Vec<(usize, usize)> {
        let (mut parts, mut pages) = (Vec::new(), 0);
        for (i, draft) in drafts.iter_mut().enumerate().filter(|(_, d)| !d.done) {
            let missing = draft.missing().len();
            if draft.prefix.len() > self.context {
                self.cache.truncate(draft.wish.shadow.seq, 0);
                draft.wish.shadow.held.clear();
                draft.fail();
                continue;
            }
            let mut tokens = missing.min(CHUNK);
            if missing > 1 {
                tokens = tokens.min(*budget);
                *budget -= tokens;
            }
            if tokens == 0 {
                draft.done = true;
                continue;
            }
            let seq = draft.wish.shadow.seq;
            let more = self.cache.pages_for(seq, tokens);
            while pages + more > self.cache.free_pages() && self.prefixes.evict(&mut self.cache) {}
            if pages + more > self.cache.free_pages() {
                self.cache.truncate(seq, 0);
                draft.wish.shadow.held.clear();
                draft.fail();
                continue;
            }
            pages += more;
            parts.push((i, tokens));
        }
        parts
    }

    fn pass(&mut self, drafts: &[Draft], parts: &[(usize, usize)]) -> Result<Vec<ChunkOut>, Error> {
        let chunk = |&(i, tokens): &(usize, usize)| {
            let (missing, shadow) = (drafts[i].missing(), &drafts[i].wish.shadow);
            let last = tokens == missing.len();
            let rows = if last { Rows::Last } else { Rows::None };
            // Contexts are far below it.
            let start = u32::try_from(shadow.held.len()).unwrap_or(u32::MAX);
            let Adaptation { adapters, control } = self.adaptation.clone();
            Chunk {
                adapters,
                control,
                ..Chunk::tokens(shadow.seq, start, &missing[..tokens], rows)
            }
        };
        let batch = Batch {
            chunks: parts.iter().map(chunk).collect(),
        };
        Ok(model::forward(&self.weights, &batch, &mut self.cache, &mut ())?.chunks)
    }
}

/// Refuses a helper whose tokens are not those of the model that it is to help.
///
/// `vocab` and `helper_vocab`: rows of logits that the models give.
pub(crate) fn check_vocabulary(
    tokenizer: &Tokenizer,
    vocab: usize,
    helper: &Tokenizer,
    helper_vocab: usize,
) -> Result<(), Error> {
    let used = vocab.min(tokenizer.len());
    let differ = |what: String| Err(Error::DraftVocabulary { what });
    let there = helper_vocab.min(helper.len());
    if helper.len() != tokenizer.len() || there < used {
        return differ(format!(
            "it has {there} tokens, and the model {}",
            tokenizer.len()
        ));
    }
    let ids = (0..used).map_while(|id| u32::try_from(id).ok());
    for id in ids {
        let (own, its) = (tokenizer.piece(id), helper.piece(id));
        if own != its || tokenizer.is_special(id) != helper.is_special(id) {
            let show = |piece: Option<std::borrow::Cow<'_, [u8]>>| {
                String::from_utf8_lossy(&piece.unwrap_or_default()).into_owned()
            };
            return differ(format!(
                "its token {id} is {:?}, and the model's {:?}",
                show(its),
                show(own)
            ));
        }
    }
    Ok(())
}
