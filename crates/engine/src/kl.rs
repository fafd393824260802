//! Comparing two models by their log-probabilities on the same text.
//!
//! The first run saves the log-probabilities of every prediction that counts
//! ([`KlWriter`]); the second compares its own with them ([`KlComparison`]): mean, median and
//! 99th percentile of the Kullback-Leibler divergence KL(saved || own), and how often both find
//! the same token most likely.
//!
//! The file, all numbers little-endian:
//!
//! ```text
//! offset  size             what
//!      0  8                the bytes "PUNALOGP"
//!      8  4                version: 1
//!     12  4                storage of log-probabilities: 0 = f32, 1 = f16
//!     16  4                vocab: values in a row
//!     20  4                ctx: tokens in a chunk
//!     24  4                chunks
//!     28  4 * chunks * ctx the token ids, as tokenised (the BOS of each later chunk not put in)
//!         rows             chunks * (ctx - 1 - ctx/2) rows, as `perplexity` scores them:
//!                          u32 the most likely token, then vocab log-probabilities
//! ```
//!
//! Rounding to f16 moves a log-probability by up to 2^-11 of its size; rows are normalised again
//! when they are read, so that the divergence of a run from itself comes out near 1e-7.
//!
//! A file comes from outside: its length must be exactly what its header says before anything is
//! allocated, and rows that are no log-probabilities are refused.

use std::io::{Read, Write};

use half::f16;

use crate::error::Error;
use crate::filters;
use crate::perplexity::scored_per_chunk;
use crate::score::LogSoftmax;

const MAGIC: &[u8; 8] = b"PUNALOGP";
const VERSION: u32 = 1;
const HEADER: u64 = 28;

/// How log-probabilities are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlStorage {
    /// 4 bytes each, as computed.
    F32,
    /// 2 bytes each.
    F16,
}

impl KlStorage {
    /// The number in the file's header.
    fn tag(self) -> u32 {
        match self {
            KlStorage::F32 => 0,
            KlStorage::F16 => 1,
        }
    }

    fn bytes(self) -> usize {
        match self {
            KlStorage::F32 => 4,
            KlStorage::F16 => 2,
        }
    }
}

/// What a file of saved log-probabilities holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KlHeader {
    /// How values are stored.
    pub storage: KlStorage,
    /// Values in a row.
    pub vocab: usize,
    /// Tokens in a chunk.
    pub ctx: usize,
    /// The tokens of all chunks, `chunks * ctx` of them.
    pub ids: Vec<u32>,
}

impl KlHeader {
    /// For a run of [`crate::perplexity()`] over `ids`: a short last chunk is dropped.
    ///
    /// # Errors
    /// [`Error::TooShort`] if there is no chunk, [`Error::Parameter`] for numbers that the format
    /// cannot say.
    pub fn new(
        storage: KlStorage,
        vocab: usize,
        ctx: usize,
        ids: &[u32],
    ) -> Result<KlHeader, Error> {
        let fits = |n: usize| u32::try_from(n).is_ok();
        if ctx < 3 || vocab == 0 || !fits(ctx) || !fits(vocab) || !fits(ids.len()) {
            return Err(Error::Parameter {
                field: "ctx, vocab, ids",
                value: format!("{ctx}, {vocab}, {} ids", ids.len()),
                range: format!("from 3, from 1, and all at most {}", u32::MAX),
            });
        }
        let tokens = ids;
        let ids = &tokens[..tokens.len() / ctx * ctx];
        if ids.is_empty() {
            let tokens = tokens.len();
            return Err(Error::TooShort { tokens, ctx });
        }
        Ok(KlHeader {
            storage,
            vocab,
            ctx,
            ids: ids.to_vec(),
        })
    }

    /// Rows in the file.
    pub fn rows(&self) -> usize {
        self.ids.len() / self.ctx * scored_per_chunk(self.ctx)
    }
}

/// Writes a file of log-probabilities, row by row.
#[derive(Debug)]
pub struct KlWriter<W> {
    out: W,
    storage: KlStorage,
    vocab: usize,
    rows_left: usize,
    row: Vec<u8>,
}

impl<W: Write> KlWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(mut out: W, header: &KlHeader) -> Result<KlWriter<W>, Error> {
        let numbers = [
            VERSION,
            header.storage.tag(),
            header.vocab as u32,
            header.ctx as u32,
            (header.ids.len() / header.ctx) as u32,
        ];
        let mut bytes = MAGIC.to_vec();
        bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(header.ids.iter().flat_map(|id| id.to_le_bytes()));
        out.write_all(&bytes).map_err(writing)?;
        Ok(KlWriter {
            out,
            storage: header.storage,
            vocab: header.vocab,
            rows_left: header.rows(),
            row: Vec::new(),
        })
    }

    /// Writes the log-probabilities of a row of logits `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::LogitsShape`] for a row of another length; [`Error::KlMismatch`]
    /// for more rows than the header says; [`Error::BadLogit`].
    pub fn push(&mut self, logits: &[f32]) -> Result<(), Error> {
        let top = checked_top(logits, self.vocab)?;
        self.rows_left = self.rows_left.checked_sub(1).ok_or_else(too_many_rows)?;
        let softmax = LogSoftmax::new(logits);
        self.row.clear();
        self.row.extend(top.to_le_bytes());
        let values = logits.iter().map(|l| softmax.of(*l) as f32);
        match self.storage {
            KlStorage::F32 => self.row.extend(values.flat_map(f32::to_le_bytes)),
            KlStorage::F16 => {
                let half = |v: f32| f16::from_f32(at_least_f16(v)).to_le_bytes();
                self.row.extend(values.flat_map(half));
            }
        }
        self.out.write_all(&self.row).map_err(writing)
    }

    /// Flushes; the file is whole only if this succeeds.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::KlMismatch`] if rows are missing.
    pub fn finish(mut self) -> Result<W, Error> {
        if self.rows_left != 0 {
            return Err(Error::KlMismatch {
                what: format!("{} rows were never written", self.rows_left),
            });
        }
        self.out.flush().map_err(writing)?;
        Ok(self.out)
    }
}

/// Unlikely is not impossible: a finite value stays finite.
fn at_least_f16(value: f32) -> f32 {
    if value == f32::NEG_INFINITY {
        value
    } else {
        value.max(f16::MIN.to_f32())
    }
}

/// One saved prediction.
#[derive(Clone, Debug, Default)]
pub struct KlRow {
    /// The most likely token.
    pub top: u32,
    /// `[vocab]` log-probabilities; they add up to 1 only nearly.
    pub logprobs: Vec<f32>,
}

/// Reads a file of log-probabilities, row by row.
#[derive(Debug)]
pub struct KlReader<R> {
    input: R,
    header: KlHeader,
    rows_left: usize,
    offset: u64,
    bytes: Vec<u8>,
}

impl<R: Read> KlReader<R> {
    /// Reads the header of a file that is `len` bytes long.
    ///
    /// # Errors
    /// [`Error::KlFile`] if it is no such file, or its length is not what its header says;
    /// [`Error::Io`].
    pub fn new(mut input: R, len: u64) -> Result<KlReader<R>, Error> {
        if len < HEADER {
            return Err(damaged(format!("{len} bytes are too few for a header"), 0));
        }
        let mut bytes = [0; HEADER as usize];
        input.read_exact(&mut bytes).map_err(reading)?;
        if bytes[..8] != MAGIC[..] {
            return Err(damaged("not a file of saved log-probabilities", 0));
        }
        let number = |i: usize| {
            let at = 8 + 4 * i;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if number(0) != VERSION {
            return Err(damaged(format!("version {} is not known", number(0)), 8));
        }
        let storage = match number(1) {
            0 => KlStorage::F32,
            1 => KlStorage::F16,
            other => return Err(damaged(format!("storage {other} is not known"), 12)),
        };
        let (vocab, ctx, chunks) = (number(2), number(3), number(4));
        if vocab == 0 || ctx < 3 || chunks == 0 {
            let what = format!("vocab {vocab}, ctx {ctx}, chunks {chunks}: nothing to compare");
            return Err(damaged(what, 16));
        }
        let due = file_len(storage, vocab, ctx, chunks);
        if due != Some(len) {
            let what = format!(
                "vocab {vocab}, ctx {ctx}, chunks {chunks} do not make {len} bytes: \
                 cut short, or its run did not finish"
            );
            return Err(damaged(what, 16));
        }
        // From here on every size is at most that of the file.
        let mut ids = vec![0; chunks as usize * ctx as usize * 4];
        input.read_exact(&mut ids).map_err(reading)?;
        let offset = HEADER + ids.len() as u64;
        let ids: Vec<u32> = ids
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        if let Some(i) = ids.iter().position(|id| *id >= vocab) {
            let what = format!("token {} is beyond the vocabulary of {vocab}", ids[i]);
            return Err(damaged(what, HEADER + 4 * i as u64));
        }
        let (vocab, ctx) = (vocab as usize, ctx as usize);
        let header = KlHeader {
            storage,
            vocab,
            ctx,
            ids,
        };
        Ok(KlReader {
            rows_left: header.rows(),
            input,
            header,
            offset,
            bytes: Vec::new(),
        })
    }

    /// What the file holds.
    pub fn header(&self) -> &KlHeader {
        &self.header
    }

    /// Reads the next row; false after the last one.
    ///
    /// # Errors
    /// [`Error::KlFile`] if it holds no log-probabilities; [`Error::Io`].
    pub fn next_row(&mut self, row: &mut KlRow) -> Result<bool, Error> {
        if self.rows_left == 0 {
            return Ok(false);
        }
        let (vocab, storage) = (self.header.vocab, self.header.storage);
        self.bytes.resize(4 + vocab * storage.bytes(), 0);
        self.input.read_exact(&mut self.bytes).map_err(reading)?;
        let (top, values) = self.bytes.split_at(4);
        row.top = u32::from_le_bytes([top[0], top[1], top[2], top[3]]);
        row.logprobs.clear();
        match storage {
            KlStorage::F32 => row.logprobs.extend(
                values
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ),
            KlStorage::F16 => row.logprobs.extend(
                values
                    .chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            ),
        }
        if row.top as usize >= vocab {
            let what = format!("token {} is beyond the vocabulary of {vocab}", row.top);
            return Err(damaged(what, self.offset));
        }
        // 0.01 leaves room for rounding: nothing is more likely than certain.
        if let Some(i) = row.logprobs.iter().position(|l| l.is_nan() || *l > 0.01) {
            let what = format!("{} is no log-probability", row.logprobs[i]);
            return Err(damaged(
                what,
                self.offset + 4 + (i * storage.bytes()) as u64,
            ));
        }
        if row.logprobs.iter().all(|l| *l == f32::NEG_INFINITY) {
            return Err(damaged("a row in which nothing is possible", self.offset));
        }
        self.offset += self.bytes.len() as u64;
        self.rows_left -= 1;
        Ok(true)
    }
}

/// Length of a file; `None` if it is beyond what 64 bits can say.
fn file_len(storage: KlStorage, vocab: u32, ctx: u32, chunks: u32) -> Option<u64> {
    let ids = u64::from(chunks).checked_mul(u64::from(ctx))?;
    let scored = u64::try_from(scored_per_chunk(ctx as usize)).ok()?;
    let rows = u64::from(chunks).checked_mul(scored)?;
    let row = u64::from(vocab)
        .checked_mul(storage.bytes() as u64)?
        .checked_add(4)?;
    let body = ids.checked_mul(4)?.checked_add(rows.checked_mul(row)?)?;
    body.checked_add(HEADER)
}

/// How far one model is from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlStats {
    /// Mean divergence, in nats.
    pub mean: f64,
    /// Half of the predictions diverge less.
    pub median: f64,
    /// 99 % of the predictions diverge less.
    pub p99: f64,
    /// The largest divergence.
    pub max: f64,
    /// Share of predictions in which both find the same token most likely.
    pub same_top: f64,
    /// Predictions compared.
    pub tokens: usize,
}

/// Compares a run with a saved one, row by row.
#[derive(Debug)]
pub struct KlComparison<R> {
    saved: KlReader<R>,
    row: KlRow,
    divergences: Vec<f64>,
    same_top: usize,
}

impl<R: Read> KlComparison<R> {
    /// Checks that the saved run was made over the same tokens.
    ///
    /// # Errors
    /// [`Error::KlMismatch`].
    pub fn new(
        saved: KlReader<R>,
        vocab: usize,
        ctx: usize,
        ids: &[u32],
    ) -> Result<KlComparison<R>, Error> {
        let header = saved.header();
        let differs = |what: &str, saved: usize, here: usize| Error::KlMismatch {
            what: format!("its {what} is {saved}, here it is {here}"),
        };
        if header.vocab != vocab {
            return Err(differs("vocabulary", header.vocab, vocab));
        }
        if header.ctx != ctx {
            return Err(differs("ctx", header.ctx, ctx));
        }
        let ids = &ids[..ids.len() / ctx * ctx];
        if header.ids.len() != ids.len() {
            return Err(differs("number of tokens", header.ids.len(), ids.len()));
        }
        if let Some(i) = header.ids.iter().zip(ids).position(|(a, b)| a != b) {
            let what = format!("token at index {i}");
            return Err(differs(&what, header.ids[i] as usize, ids[i] as usize));
        }
        Ok(KlComparison {
            saved,
            row: KlRow::default(),
            divergences: Vec::new(),
            same_top: 0,
        })
    }

    /// Compares the next row of logits `[vocab]` with the saved one.
    ///
    /// # Errors
    /// [`Error::KlMismatch`] if no saved row is left, [`Error::LogitsShape`],
    /// [`Error::BadLogit`], and those of reading.
    pub fn push(&mut self, logits: &[f32]) -> Result<(), Error> {
        let top = checked_top(logits, self.saved.header.vocab)?;
        if !self.saved.next_row(&mut self.row)? {
            return Err(too_many_rows());
        }
        self.divergences
            .push(divergence(&self.row.logprobs, logits));
        self.same_top += usize::from(top == self.row.top);
        Ok(())
    }

    /// The statistics over all rows compared so far; `None` before the first.
    pub fn stats(&self) -> Option<KlStats> {
        let mut sorted = self.divergences.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let tokens = sorted.len();
        Some(KlStats {
            max: *sorted.last()?,
            mean: sorted.iter().sum::<f64>() / tokens as f64,
            median: quantile(&sorted, 0.5),
            p99: quantile(&sorted, 0.99),
            same_top: self.same_top as f64 / tokens as f64,
            tokens,
        })
    }
}

/// KL(saved || own) in nats; both are normalised first.
fn divergence(saved: &[f32], logits: &[f32]) -> f64 {
    let (p, q) = (LogSoftmax::new(saved), LogSoftmax::new(logits));
    let terms = saved.iter().zip(logits).map(|(&s, &l)| {
        let log_p = p.of(s);
        if log_p == f64::NEG_INFINITY {
            return 0.0;
        }
        log_p.exp() * (log_p - q.of(l))
    });
    // Rounding may take it below its true minimum.
    terms.sum::<f64>().max(0.0)
}

/// By linear interpolation between the two nearest of a sorted, non-empty list.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// The most likely token of a row that is fit to be saved or compared.
fn checked_top(logits: &[f32], vocab: usize) -> Result<u32, Error> {
    if logits.len() != vocab {
        let (got, expected) = (logits.len(), vocab);
        return Err(Error::LogitsShape { got, expected });
    }
    let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    if let Some(id) = logits.iter().position(bad) {
        let value = logits[id];
        return Err(Error::BadLogit { id, value });
    }
    filters::greedy(logits).ok_or(Error::NoCandidates)
}

fn too_many_rows() -> Error {
    Error::KlMismatch {
        what: "there are more predictions than its header says".into(),
    }
}

fn damaged(what: impl Into<String>, offset: u64) -> Error {
    let what = what.into();
    Error::KlFile { what, offset }
}

fn reading(source: std::io::Error) -> Error {
    let what = "reading saved log-probabilities".into();
    Error::Io { what, source }
}

fn writing(source: std::io::Error) -> Error {
    let what = "writing log-probabilities".into();
    Error::Io { what, source }
}
