//! Log-probabilities of given tokens.
//!
//! [`score`] runs tokens through the model and hands each position's logits to its caller, a
//! chunk at a time: `[n, vocab]` is never held. [`LogSoftmax`] turns a row into log-probabilities.

use model::{Probe, Rows};

use crate::error::Error;
use crate::session::{Flow, Session};

/// The log-softmax of one row of logits, computed in f64 over the whole row.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax {
    /// `ln(sum(exp(logit)))`
    log_mass: f64,
}

impl LogSoftmax {
    /// Of a row `[vocab]`. For an empty row, or one of minus infinities, nothing is likely.
    pub fn new(logits: &[f32]) -> LogSoftmax {
        let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        if best == f64::NEG_INFINITY {
            return LogSoftmax { log_mass: best };
        }
        let mass: f64 = logits.iter().map(|&l| (f64::from(l) - best).exp()).sum();
        LogSoftmax {
            log_mass: best + mass.ln(),
        }
    }

    /// Natural log-probability of a token with this logit.
    pub fn of(&self, logit: f32) -> f64 {
        if logit == f32::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        f64::from(logit) - self.log_mass
    }
}

/// The `k` most likely tokens of a row with their natural log-probabilities, most likely first,
/// of equal ones the lower id first.
pub fn top_logprobs(logits: &[f32], k: usize) -> Vec<(u32, f64)> {
    top_of(logits, &LogSoftmax::new(logits), k)
}

fn top_of(logits: &[f32], softmax: &LogSoftmax, k: usize) -> Vec<(u32, f64)> {
    if k == 0 {
        return Vec::new();
    }
    let mut best = crate::filters::collect_top_k(logits, k);
    crate::filters::sort(&mut best);
    best.truncate(k);
    best.iter().map(|c| (c.id, softmax.of(c.logit))).collect()
}

/// The log-probability of one token, and of its rivals: natural logarithms of the softmax over
/// the model's whole row, before biases, penalties, filters and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token that was chosen, or given.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f64,
    /// The most likely tokens with their log-probabilities, as [`top_logprobs`] sorts them.
    pub top: Vec<(u32, f64)>,
}

impl TokenLogprob {
    /// Of token `id` in a row `[vocab]`, with its `k` strongest rivals. An id beyond the row has
    /// no probability.
    pub fn new(logits: &[f32], id: u32, k: usize) -> TokenLogprob {
        let softmax = LogSoftmax::new(logits);
        let logit = logits.get(id as usize).copied();
        TokenLogprob {
            id,
            logprob: softmax.of(logit.unwrap_or(f32::NEG_INFINITY)),
            top: top_of(logits, &softmax, k),
        }
    }
}

/// How [`score`] runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreOptions {
    /// Tokens in one pass through the model; the default keeps the logits of a pass near 32 MiB.
    /// The bits of the results do not depend on it.
    pub chunk: Option<usize>,
    /// First position whose logits are wanted; the ones before only fill the cache.
    pub from: usize,
}

/// Takes a position and its logits `[vocab]`.
pub type OnRow<'a> = dyn FnMut(usize, &[f32]) -> Result<Flow, Error> + 'a;

/// Runs `ids` from position 0 and calls `on_row(position, logits)` for each position from
/// `options.from` on: `logits` `[vocab]` predict the token at `position + 1`.
///
/// What the session held before is forgotten.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::ContextFull`], [`Error::Cancelled`] if `on_row` stops the
/// run, [`Error::NotFinite`] for a row with a value that is no number, an error that `on_row`
/// returns, and the model's.
pub fn score(
    session: &mut Session,
    ids: &[u32],
    options: ScoreOptions,
    on_row: &mut OnRow,
) -> Result<(), Error> {
    score_with(session, ids, options, &mut (), on_row)
}

/// [`score`] with a probe that sees (and may change) what goes on inside the model.
///
/// # Errors
/// As [`score`].
pub fn score_with<P: Probe>(
    session: &mut Session,
    ids: &[u32],
    options: ScoreOptions,
    probe: &mut P,
    on_row: &mut OnRow,
) -> Result<(), Error> {
    session.check_fits(ids)?;
    session.truncate(0);
    let vocab = session.weights().config.vocab;
    let chunk = options.chunk.unwrap_or_else(|| default_chunk(vocab)).max(1);
    let mut start = 0;
    while start < ids.len() {
        let (end, rows) = stage(start, ids.len(), options.from, chunk);
        let logits = session.extend(&ids[start..end], rows, probe)?;
        if rows == Rows::All {
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                check_finite(start + i, row)?;
                if on_row(start + i, row)? == Flow::Stop {
                    return Err(Error::Cancelled);
                }
            }
        }
        start = end;
    }
    Ok(())
}

/// Refuses a row of logits of which nothing can be said: of a position, `[vocab]`.
pub(crate) fn check_finite(position: usize, row: &[f32]) -> Result<(), Error> {
    match row.iter().position(|l| !l.is_finite()) {
        None => Ok(()),
        Some(id) => Err(Error::NotFinite {
            position,
            id,
            value: row[id],
        }),
    }
}

/// Where a chunk of `chunk` tokens at most ends that begins at `start` of `len`, and which rows it
/// wants if those from `from` on are wanted: all of them or none.
pub(crate) fn stage(start: usize, len: usize, from: usize, chunk: usize) -> (usize, Rows) {
    let (limit, rows) = match start < from {
        true => (from.min(len), Rows::None),
        false => (len, Rows::All),
    };
    (start.saturating_add(chunk).min(limit), rows)
}

/// Tokens whose logits take 32 MiB or so.
pub(crate) fn default_chunk(vocab: usize) -> usize {
    const FLOATS: usize = 8 << 20;
    (FLOATS / vocab.max(1)).clamp(16, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_is_normalised_and_stable() {
        let row = [1000.0, 999.0, 0.0, f32::NEG_INFINITY];
        let softmax = LogSoftmax::new(&row);
        let sum: f64 = row.iter().map(|l| softmax.of(*l).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((softmax.of(1000.0) + 0.313_261_687_518_222_8).abs() < 1e-12);
        assert_eq!(softmax.of(f32::NEG_INFINITY), f64::NEG_INFINITY);
    }

    #[test]
    fn top_is_sorted_with_ties_by_id() {
        let row = [1.0, 2.0, 0.0, 2.0, -1.0];
        let ids = |k| {
            top_logprobs(&row, k)
                .iter()
                .map(|t| t.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(0), Vec::<u32>::new());
        assert_eq!(ids(1), [1]);
        assert_eq!(ids(3), [1, 3, 0]);
        assert_eq!(ids(9), [1, 3, 0, 2, 4]);
    }

    #[test]
    fn chunks_stay_within_bounds() {
        assert_eq!(default_chunk(49_152), 170);
        assert_eq!(default_chunk(128_256), 65);
        assert_eq!(default_chunk(0), 512);
        assert_eq!(default_chunk(usize::MAX), 16);
    }
}
