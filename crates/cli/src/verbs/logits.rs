//! `puna logits`: what the model says at every position, and what it looked like on the way there.
//!
//! One forward pass, read by a probe where hidden states or attention are wanted. The chunk size
//! changes how much is computed at once and no bit of the result.

use std::path::Path;

use anyhow::Result;
use engine::{Flow, ScoreOptions, score_with, top_logprobs};
use files::{Dtype, safetensors};
use model::{At, Probe, Site, Weights};
use serde_json::json;
use text::{Special, Tokenizer};

use crate::args::LogitsArgs;
use crate::exit::{Code, failure, usage};
use crate::machine::{available_memory, size};
use crate::{load, out};

/// How many of the likeliest tokens are reported.
const TOP: usize = 10;
/// How many of them the text form shows.
const SHOWN: usize = 5;

pub fn run(args: &LogitsArgs) -> Result<()> {
    let loaded = load::weights(Some(&args.model), &args.load)?;
    let weights = &*loaded.weights;
    let tokenizer = Tokenizer::open(&loaded.path);
    let ids = match (&args.ids, &args.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => tokenizer
            .as_ref()
            .map_err(|e| failure(Code::Invalid, e.to_string(), "give the tokens with --ids"))?
            .encode_prompt(text.as_deref().unwrap_or_default(), Special::Text)?,
    };
    check(args, weights, &ids)?;
    let mut session = load::session(&loaded, Some(args.load.ctx.unwrap_or(ids.len())))?;
    let options = ScoreOptions {
        chunk: args.chunk,
        from: 0,
    };
    let mut capture = Capture::new(args, weights, ids.len());
    let (mut logits, mut top) = (Vec::new(), Vec::with_capacity(ids.len()));
    let mut keep = |_: usize, row: &[f32]| {
        if args.out.is_some() {
            push(&mut logits, row);
        }
        top.push(top_logprobs(row, TOP));
        Ok(Flow::Continue)
    };
    match capture.is_on() {
        true => score_with(&mut session, &ids, options, &mut capture, &mut keep)?,
        false => score_with(&mut session, &ids, options, &mut (), &mut keep)?,
    }
    if let Some(path) = &args.out {
        write(path, weights, &ids, &logits, &capture)?;
    }
    let answer =
        json!({ "model": loaded.name, "ids": ids, "context": session.context(), "top": top });
    out::print(args.format.format, &answer, || {
        table(&ids, &top, tokenizer.as_ref().ok())
    })
}

/// What cannot be computed is refused before anything is.
fn check(args: &LogitsArgs, weights: &Weights, ids: &[u32]) -> Result<()> {
    let config = &weights.config;
    if ids.is_empty() {
        return Err(usage(
            "there are no tokens",
            "give at least one id, or a text that is not empty",
        ));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
        let what = format!(
            "token {id} is not in the vocabulary of {} tokens",
            config.vocab
        );
        return Err(usage(what, "ids count from 0"));
    }
    if let Some(ctx) = args.load.ctx.filter(|&ctx| ids.len() > ctx) {
        let what = format!("{} tokens do not fit into --ctx {ctx}", ids.len());
        return Err(usage(what, "leave --ctx out, or give fewer tokens"));
    }
    if let Some(path) = &args.out {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let what = format!("{} is no folder to write into", folder.display());
            return Err(failure(Code::Failed, what, "make it first"));
        }
        let n = ids.len() as u64;
        let (vocab, hidden) = (config.vocab as u64, config.hidden as u64);
        let (layers, heads) = (config.layers as u64, config.heads as u64);
        let states = if args.hidden {
            (layers + 1) * hidden
        } else {
            0
        };
        let patterns = if args.attention {
            layers.saturating_mul(heads).saturating_mul(n)
        } else {
            0
        };
        let need = vocab
            .saturating_add(states)
            .saturating_add(patterns)
            .saturating_mul(4 * n);
        if let Some(free) = available_memory().filter(|&free| need > free) {
            let what = format!(
                "the output takes {} and {} are free",
                size(need),
                size(free)
            );
            return Err(failure(Code::Memory, what, "give fewer tokens"));
        }
    }
    Ok(())
}

/// Keeps residual streams and attention patterns as the pass goes by.
struct Capture {
    hidden: Vec<Vec<u8>>,    // (layers + 1) of f32, little-endian (n, hidden)
    attention: Vec<Vec<u8>>, // (layers) of f32, little-endian (heads, n, n)
    tokens: usize,
}

impl Capture {
    fn new(args: &LogitsArgs, weights: &Weights, tokens: usize) -> Capture {
        let c = &weights.config;
        let hidden = if args.hidden { c.layers + 1 } else { 0 };
        let attention = if args.attention { c.layers } else { 0 };
        Capture {
            hidden: vec![Vec::new(); hidden],
            attention: vec![vec![0; 4 * c.heads * tokens * tokens]; attention],
            tokens,
        }
    }

    fn is_on(&self) -> bool {
        !(self.hidden.is_empty() && self.attention.is_empty())
    }
}

impl Probe for Capture {
    const ON: bool = true;

    fn wants(&self, site: Site, layer: usize) -> bool {
        match site {
            Site::ResidPre => layer == 0 && !self.hidden.is_empty(),
            Site::ResidPost => !self.hidden.is_empty(),
            Site::Pattern => !self.attention.is_empty(),
            _ => false,
        }
    }

    fn see(&mut self, at: At, values: &mut [f32]) {
        match at.site {
            Site::ResidPre => push(&mut self.hidden[0], values),
            Site::ResidPost => push(&mut self.hidden[at.layer + 1], values),
            Site::Pattern => {
                let [_, heads, keys] = *at.shape else { return };
                let n = self.tokens;
                // A chunk sees only the keys up to its own end: the rest of each row stays 0.
                for (row, of_row) in at.rows.iter().zip(values.chunks_exact(heads * keys)) {
                    for (head, pattern) in of_row.chunks_exact(keys).enumerate() {
                        let begin = 4 * (head * n + row.position as usize) * n;
                        let place = &mut self.attention[at.layer][begin..begin + 4 * keys];
                        for (bytes, x) in place.chunks_exact_mut(4).zip(pattern) {
                            bytes.copy_from_slice(&x.to_le_bytes());
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

fn push(bytes: &mut Vec<u8>, values: &[f32]) {
    bytes.reserve(values.len() * 4);
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
}

fn write(
    path: &Path,
    weights: &Weights,
    ids: &[u32],
    logits: &[u8],
    capture: &Capture,
) -> Result<()> {
    let (c, n) = (&weights.config, ids.len());
    let ids: Vec<u8> = ids
        .iter()
        .flat_map(|&id| i64::from(id).to_le_bytes())
        .collect();
    let named = |what: &str, list: &[Vec<u8>]| -> Vec<String> {
        (0..list.len()).map(|l| format!("{what}.{l}")).collect()
    };
    let (hidden, attention) = (
        named("hidden", &capture.hidden),
        named("attention", &capture.attention),
    );
    let (count, rows, states, patterns) = ([n], [n, c.vocab], [n, c.hidden], [c.heads, n, n]);
    let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> = vec![
        ("ids", Dtype::I64, &count, &ids),
        ("logits", Dtype::F32, &rows, logits),
    ];
    for (name, bytes) in hidden.iter().zip(&capture.hidden) {
        tensors.push((name, Dtype::F32, &states, bytes));
    }
    for (name, bytes) in attention.iter().zip(&capture.attention) {
        tensors.push((name, Dtype::F32, &patterns, bytes));
    }
    // Whatever is missing here, it is not the model.
    safetensors::write(path, &tensors).map_err(|e| failure(Code::Failed, e.to_string(), ""))
}

/// One line a position: the token, then the likeliest next ones.
fn table(ids: &[u32], top: &[Vec<(u32, f64)>], tokenizer: Option<&Tokenizer>) -> String {
    let name = |id: u32| {
        let piece = tokenizer.and_then(|t| t.piece(id));
        piece.map_or_else(
            || id.to_string(),
            |bytes| format!("{:?}", String::from_utf8_lossy(&bytes)),
        )
    };
    let mut text = format!(
        "{:>5} {:>7}  {:<16}  likeliest next, with log-probability",
        "at", "id", "token"
    );
    for (at, (&id, row)) in ids.iter().zip(top).enumerate() {
        text.push_str(&format!("\n{at:>5} {id:>7}  {:<16}", name(id)));
        for &(next, logprob) in row.iter().take(SHOWN) {
            text.push_str(&format!("  {} {logprob:.3}", name(next)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_chunk_fills_its_own_rows() {
        let mut capture = Capture {
            hidden: Vec::new(),
            attention: vec![vec![0; 4 * 2 * 3 * 3]],
            tokens: 3,
        };
        let mut cache = model::Cache::new(
            &model::shapes()[0].config().unwrap(),
            kernels::KvType::F32,
            32,
        )
        .unwrap();
        let rows = [model::Row {
            seq: cache.open(),
            position: 1,
        }];
        let at = At {
            site: Site::Pattern,
            layer: 0,
            shape: &[1, 2, 2],
            rows: &rows,
        };
        capture.see(at, &mut [0.25, 0.75, 0.5, 0.5]);
        let want = [
            0., 0., 0., 0.25, 0.75, 0., 0., 0., 0., 0., 0., 0., 0.5, 0.5, 0., 0., 0., 0.,
        ];
        let mut bytes = Vec::new();
        push(&mut bytes, &want);
        assert_eq!(capture.attention[0], bytes);
    }
}
