//! Perplexity of a text, by llama.cpp's protocol.
//!
//! The tokens are cut into chunks of `ctx` that do not overlap (a short last one is dropped).
//! Each chunk runs on its own from position 0; if the model adds BOS, it stands in place of the
//! chunk's first token. Only predictions with half a chunk of context behind them count: those
//! made at positions `ctx/2 .. ctx-2`. Perplexity is the exponential of their mean negative
//! log-likelihood, its standard error that of the mean carried through the exponential.

use crate::error::Error;
use crate::score::{LogSoftmax, ScoreOptions, score};
use crate::session::{Flow, Session};

/// How the measurement runs.
#[derive(Clone, Copy, Debug)]
pub struct PerplexityParams {
    /// Tokens in a chunk, at least 3.
    pub ctx: usize,
    /// The token that replaces the first one of each chunk, if the model adds BOS.
    pub bos: Option<u32>,
    /// Tokens in one pass through the model, see [`ScoreOptions::chunk`].
    pub chunk: Option<usize>,
}

/// One prediction that counts.
#[derive(Clone, Copy, Debug)]
pub struct ScoredRow<'a> {
    /// Number of its chunk.
    pub chunk: usize,
    /// Its position in the chunk.
    pub position: usize,
    /// The token that did follow.
    pub target: u32,
    /// `[vocab]`
    pub logits: &'a [f32],
    /// Their log-softmax.
    pub softmax: LogSoftmax,
}

/// A measurement, or its state after some chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp(nll)`
    pub perplexity: f64,
    /// Standard error of the perplexity.
    pub stderr: f64,
    /// Mean negative log-likelihood, natural logarithm.
    pub nll: f64,
    /// Predictions counted.
    pub tokens_scored: usize,
    /// Chunks run.
    pub chunks: usize,
}

/// How many of a chunk's predictions count.
pub fn scored_per_chunk(ctx: usize) -> usize {
    ctx.saturating_sub(1).saturating_sub(ctx / 2)
}

/// Measures the perplexity of `ids` (the whole text, tokenised once, with BOS in front if the model adds one).
///
/// `on_row` sees each prediction that counts, `on_chunk` the measurement after each chunk and
/// the number of chunks there are in all; it may stop the run.
///
/// # Errors
/// [`Error::TooShort`], [`Error::ContextFull`] if the session is smaller than a chunk,
/// [`Error::Parameter`], [`Error::Cancelled`], what `on_row` returns, and the model's.
pub fn perplexity(
    session: &mut Session,
    ids: &[u32],
    params: PerplexityParams,
    on_row: &mut dyn FnMut(&ScoredRow) -> Result<(), Error>,
    on_chunk: &mut dyn FnMut(&Perplexity, usize) -> Flow,
) -> Result<Perplexity, Error> {
    let ctx = params.ctx;
    if ctx < 3 {
        return Err(Error::Parameter {
            field: "ctx",
            value: ctx.to_string(),
            range: "3 tokens or more".into(),
        });
    }
    if session.context() < ctx {
        let (needed, context) = (ctx, session.context());
        return Err(Error::ContextFull { needed, context });
    }
    let chunks = ids.len() / ctx;
    if chunks == 0 {
        let tokens = ids.len();
        return Err(Error::TooShort { tokens, ctx });
    }
    let mut sums = Sums::default();
    for (chunk, original) in ids.chunks_exact(ctx).enumerate() {
        let mut tokens = original.to_vec();
        if let Some(bos) = params.bos {
            tokens[0] = bos;
        }
        let options = ScoreOptions {
            chunk: params.chunk,
            from: ctx / 2,
        };
        // The last token only serves as a target.
        score(
            session,
            &tokens[..ctx - 1],
            options,
            &mut |position, logits| {
                let target = tokens[position + 1];
                let softmax = LogSoftmax::new(logits);
                let logit = logits.get(target as usize).copied();
                sums.add(-softmax.of(logit.unwrap_or(f32::NEG_INFINITY)));
                on_row(&ScoredRow {
                    chunk,
                    position,
                    target,
                    logits,
                    softmax,
                })?;
                Ok(Flow::Continue)
            },
        )?;
        sums.chunks += 1;
        if on_chunk(&sums.result(), chunks) == Flow::Stop {
            return Err(Error::Cancelled);
        }
    }
    Ok(sums.result())
}

#[derive(Default)]
struct Sums {
    nll: f64,
    nll_squared: f64,
    count: usize,
    chunks: usize,
}

impl Sums {
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.nll_squared += nll * nll;
        self.count += 1;
    }

    fn result(&self) -> Perplexity {
        let n = self.count as f64;
        let nll = self.nll / n;
        let variance = (self.nll_squared / n - nll * nll).max(0.0);
        let error_of_mean = if self.count > 1 {
            (variance / (n - 1.0)).sqrt()
        } else {
            0.0
        };
        Perplexity {
            perplexity: nll.exp(),
            stderr: error_of_mean * nll.exp(),
            nll,
            tokens_scored: self.count,
            chunks: self.chunks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_standard_error() {
        let mut sums = Sums::default();
        for nll in [1.0, 2.0, 3.0, 4.0] {
            sums.add(nll);
        }
        let result = sums.result();
        assert!((result.nll - 2.5).abs() < 1e-12);
        assert!((result.perplexity - 2.5f64.exp()).abs() < 1e-9);
        // Population variance 1.25, over n - 1 = 3.
        let expected = (1.25f64 / 3.0).sqrt() * 2.5f64.exp();
        assert!((result.stderr - expected).abs() < 1e-9);
    }

    #[test]
    fn half_a_chunk_counts() {
        assert_eq!(scored_per_chunk(512), 255);
        assert_eq!(scored_per_chunk(3), 1);
        assert_eq!(scored_per_chunk(0), 0);
    }
}
