//! Sessions on small real models: what is reused equals what is computed anew, bit by bit, and
//! both equal the references.

mod common;

use common::{Expected, session, weights};
use engine::{
    Error, Flow, LogSoftmax, PerplexityParams, Progress, ScoreOptions, filters, perplexity, score,
};
use proptest::prelude::*;

const GO_ON: fn(Progress) -> Flow = |_| Flow::Continue;

fn greedy(session: &mut engine::Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..n {
        let logits = session.advance(&all, &mut { GO_ON }).unwrap().logits;
        all.push(filters::greedy(&logits).unwrap());
    }
    all.split_off(prompt.len())
}

#[test]
fn greedy_continuations_equal_transformers() {
    for name in ["llama3", "llama2_gqa", "llama4_text", "opt"] {
        let weights = weights(&format!("models/{name}"));
        let expected = Expected::read(&format!("models/{name}/expected.safetensors"));
        let mut session = session(&weights, 512);
        let mut sequences = 0;
        while let Some(prompt) = expected.ids(sequences, "input_ids") {
            let due = expected.ids(sequences, "greedy").unwrap();
            let got = greedy(&mut session, &prompt, due.len());
            assert_eq!(got, due, "{name}, sequence {sequences}");
            sequences += 1;
        }
        assert!(sequences > 1);
    }
}

#[test]
fn log_probabilities_equal_llama_cpp() {
    let weights = weights("gguf/llama3.f32.gguf");
    let inputs = Expected::read("models/llama3/expected.safetensors");
    let expected = Expected::read("gguf/llama3.f32.expected.safetensors");
    let vocab = weights.config.vocab;
    let mut session = session(&weights, 512);
    let mut compared = 0;
    for i in 0.. {
        let Some(mut prefix) = inputs.ids(i, "input_ids") else {
            break;
        };
        let continuation = expected.ids(i, "llama_cpp.greedy").unwrap();
        let rows = expected.floats(i, "llama_cpp.logprobs");
        for (row, id) in rows.chunks_exact(vocab).zip(continuation) {
            let logits = session.advance(&prefix, &mut { GO_ON }).unwrap().logits;
            let softmax = LogSoftmax::new(&logits);
            for (logit, due) in logits.iter().zip(row).filter(|(_, due)| !due.is_nan()) {
                let off = (softmax.of(*logit) - f64::from(*due)).abs();
                assert!(off < 2e-4, "sequence {i}: off by {off}");
                compared += 1;
            }
            prefix.push(id);
        }
    }
    assert!(compared > 6 * vocab, "{compared}");
}

#[test]
fn what_is_cached_is_counted() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 64);
    let mut cached = |ids: &[u32]| session.advance(ids, &mut { GO_ON }).unwrap().cached;
    assert_eq!(cached(&[1, 2, 3, 4]), 0);
    assert_eq!(cached(&[1, 2, 3, 4, 5]), 4);
    // All of it is held: the last token runs again.
    assert_eq!(cached(&[1, 2, 3, 4, 5]), 4);
    assert_eq!(cached(&[1, 2, 9]), 2);
    assert_eq!(cached(&[1, 2]), 1);
    assert_eq!(cached(&[7]), 0);
    assert_eq!(session.held(), [7]);
}

/// Chunked attention has given up keys that a row far back would see: the session says what it
/// could reuse, and the logits are those of a session of its own.
#[test]
fn a_prefix_far_back_of_chunked_attention_runs_anew() {
    let weights = weights("models/llama4_text");
    let mut reused = session(&weights, 512);
    let ids: Vec<u32> = (0..120).map(|i| (i * 37 + 11) % 384).collect();
    let mut partly = 0;
    for (same, more) in [(0, 90), (88, 20), (25, 70), (90, 3), (60, 30), (47, 50)] {
        // As much of the same beginning, then other tokens.
        let tail = (0..more).map(|i| (i * 5 + same as u32) % 384);
        let prefix: Vec<u32> = ids[..same].iter().copied().chain(tail).collect();
        let got = reused.advance(&prefix, &mut { GO_ON }).unwrap();
        let fresh = session(&weights, 512).advance(&prefix, &mut { GO_ON });
        assert_eq!(got.logits, fresh.unwrap().logits, "{same}");
        assert_eq!(reused.held(), prefix);
        partly += usize::from(got.cached > 0);
        reused.advance(&ids, &mut { GO_ON }).unwrap();
    }
    assert!(partly > 3, "{partly}");
}

#[test]
fn tokens_that_cannot_run_are_refused() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 4);
    let mut advance = |ids: &[u32]| session.advance(ids, &mut { GO_ON }).map(|a| a.logits.len());
    assert!(matches!(advance(&[]), Err(Error::EmptyPrompt)));
    let error = advance(&[1, 2, 3, 4, 5]).unwrap_err();
    let full = matches!(
        error,
        Error::ContextFull {
            needed: 5,
            context: 4
        }
    );
    assert!(full, "{error}");
    let unknown = weights.config.vocab as u32;
    assert!(matches!(
        advance(&[1, unknown]),
        Err(Error::UnknownToken { id, .. }) if id == unknown
    ));
    assert_eq!(advance(&[1, 2, 3, 4]).unwrap(), weights.config.vocab);
    assert!(engine::Session::new(weights, kernels::KvType::F16, 0).is_err());
}

#[test]
fn reading_a_prompt_stops_between_chunks() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 64);
    session.set_chunk(3);
    let ids: Vec<u32> = (0..10).collect();
    let mut seen = Vec::new();
    let stopped = session.advance(&ids, &mut |progress| {
        seen.push(progress.done);
        if progress.done == 6 {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(seen, [0, 3, 6]);
    assert_eq!(session.held(), &ids[..6]);
    // The next call goes on from there, to the same bits.
    let resumed = session.advance(&ids, &mut { GO_ON }).unwrap();
    assert_eq!(resumed.cached, 6);
    let fresh = common::session(&weights, 64)
        .advance(&ids, &mut { GO_ON })
        .unwrap();
    assert_eq!(resumed.logits, fresh.logits);
}

fn all_rows(
    session: &mut engine::Session,
    ids: &[u32],
    options: ScoreOptions,
) -> Vec<(usize, Vec<f32>)> {
    let mut rows = Vec::new();
    score(session, ids, options, &mut |position, logits| {
        rows.push((position, logits.to_vec()));
        Ok(Flow::Continue)
    })
    .unwrap();
    rows
}

#[test]
fn scores_do_not_depend_on_chunks() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 128);
    let ids: Vec<u32> = (0..70).map(|i| (i * 37) % 500).collect();
    let whole = all_rows(&mut session, &ids, ScoreOptions::default());
    assert_eq!(whole.len(), 70);
    for chunk in [1, 3, 7, 64] {
        for from in [0, 1, 35, 69, 70, 99] {
            let options = ScoreOptions {
                chunk: Some(chunk),
                from,
            };
            let rows = all_rows(&mut session, &ids, options);
            assert_eq!(rows, whole[from.min(70)..], "chunk {chunk}, from {from}");
        }
    }
    for end in [1, 33, 70] {
        let logits = session.advance(&ids[..end], &mut { GO_ON }).unwrap().logits;
        assert_eq!(logits, whole[end - 1].1);
    }
}

#[test]
fn scores_equal_transformers() {
    let weights = weights("models/llama3");
    let expected = Expected::read("models/llama3/expected.safetensors");
    let mut session = session(&weights, 512);
    for i in 0.. {
        let Some(ids) = expected.ids(i, "input_ids") else {
            break;
        };
        let due = expected.floats(i, "logits");
        let rows = all_rows(&mut session, &ids, ScoreOptions::default());
        let got: Vec<f32> = rows.into_iter().flat_map(|(_, row)| row).collect();
        assert_eq!(got.len(), due.len());
        for (a, b) in got.iter().zip(&due) {
            assert!((a - b).abs() <= 2e-4 + 1e-4 * b.abs(), "{a} for {b}");
        }
    }
}

#[test]
fn scoring_stops_when_told() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 64);
    let stopped = score(
        &mut session,
        &[1, 2, 3],
        ScoreOptions::default(),
        &mut |_, _| Ok(Flow::Stop),
    );
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn perplexity_is_that_of_the_protocol() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 16);
    let ids: Vec<u32> = (0..53).map(|i| (i * i * 31) % 500).collect();
    for bos in [None, Some(504)] {
        let params = PerplexityParams {
            ctx: 16,
            bos,
            chunk: Some(5),
        };
        let mut rows = 0;
        let mut after = Vec::new();
        let got = perplexity(
            &mut session,
            &ids,
            params,
            &mut |row| {
                assert!((8..15).contains(&row.position));
                assert_eq!(row.target, ids[row.chunk * 16 + row.position + 1]);
                rows += 1;
                Ok(())
            },
            &mut |so_far, chunks| {
                after.push((so_far.chunks, chunks, so_far.perplexity));
                Flow::Continue
            },
        )
        .unwrap();
        // As the protocol reads: each prediction from a prefix of its own.
        let mut nlls = Vec::new();
        for chunk in ids.chunks_exact(16) {
            let mut chunk = chunk.to_vec();
            chunk[0] = bos.unwrap_or(chunk[0]);
            for position in 8..15 {
                let mut fresh = common::session(&weights, 16);
                let row = fresh
                    .advance(&chunk[..=position], &mut { GO_ON })
                    .unwrap()
                    .logits;
                let target = chunk[position + 1] as usize;
                nlls.push(-LogSoftmax::new(&row).of(row[target]));
            }
        }
        let n = nlls.len() as f64;
        let mean = nlls.iter().sum::<f64>() / n;
        let variance = nlls.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        assert_eq!(
            (got.tokens_scored, got.chunks, rows),
            (nlls.len(), 3, nlls.len())
        );
        assert!((got.nll - mean).abs() < 1e-9);
        assert!((got.perplexity - mean.exp()).abs() < 1e-6 * mean.exp());
        let stderr = (variance / (n - 1.0)).sqrt() * mean.exp();
        assert!((got.stderr - stderr).abs() < 1e-6 * stderr);
        assert_eq!(after.len(), 3);
        assert_eq!(after[2], (3, 3, got.perplexity));
    }
}

#[test]
fn perplexity_refuses_what_it_cannot_measure() {
    let weights = weights("models/llama3");
    let mut session = session(&weights, 16);
    let mut run = |ids: &[u32], ctx| {
        let params = PerplexityParams {
            ctx,
            bos: None,
            chunk: None,
        };
        perplexity(&mut session, ids, params, &mut |_| Ok(()), &mut |_, _| {
            Flow::Stop
        })
    };
    assert!(matches!(run(&[1; 15], 16), Err(Error::TooShort { .. })));
    assert!(matches!(run(&[1; 40], 17), Err(Error::ContextFull { .. })));
    assert!(matches!(run(&[1; 40], 2), Err(Error::Parameter { .. })));
    assert!(matches!(run(&[1; 40], 16), Err(Error::Cancelled)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// However a session came to a prefix, the logits are those of a fresh one.
    #[test]
    fn cached_equals_recomputed(
        prefixes in prop::collection::vec(
            (prop::collection::vec(0u32..4, 1..90), prop::sample::select(vec![1usize, 3, 7, 64, 512])),
            1..4,
        ),
    ) {
        let weights = weights("models/llama3");
        let mut session = session(&weights, 96);
        for (prefix, chunk) in prefixes {
            session.set_chunk(chunk);
            let reused = session.advance(&prefix, &mut { GO_ON }).unwrap();
            let fresh = common::session(&weights, 96).advance(&prefix, &mut { GO_ON }).unwrap();
            prop_assert_eq!(fresh.cached, 0);
            let bits = |row: &[f32]| row.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&reused.logits), bits(&fresh.logits));
        }
    }
}

/// What changes a model is loaded and unloaded beside the weights, for one session of several.
#[test]
fn adapters_come_and_go_without_the_base() {
    let weights = weights("training/model");
    let adapter = |scale| {
        let path = common::path("training/lora/final");
        std::sync::Arc::new(model::Adapter::open(&path, &weights, scale).unwrap())
    };
    let ids: Vec<u32> = (0..20).map(|i| i * 13 % 320).collect();
    let (mut one, mut other) = (session(&weights, 64), session(&weights, 64));
    let run = |s: &mut engine::Session| s.advance(&ids, &mut { GO_ON }).unwrap();
    let bare = run(&mut one).logits;
    one.adapt(engine::Adaptation {
        adapters: vec![adapter(1.0)],
        control: None,
    });
    assert_eq!(one.adaptation().adapters.len(), 1);
    let adapted = run(&mut one);
    assert_eq!(adapted.cached, 0, "the cache was of another model");
    assert_ne!(adapted.logits, bare);
    assert_eq!(run(&mut other).logits, bare);
    // A prefix that the cache holds was computed with the adapter too.
    one.truncate(7);
    let again = run(&mut one);
    assert_eq!((again.cached, again.logits), (7, adapted.logits));
    one.adapt(engine::Adaptation::default());
    assert_eq!(run(&mut one).logits, bare);
}
