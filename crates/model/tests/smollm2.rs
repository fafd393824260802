//! The real default model against transformers and llama.cpp in f32. The file is not in the
//! repository: `PUNA_TEST_MODEL` names it (`.ci/run` pulls it once).

mod common;

use std::path::PathBuf;

use common::*;
use kernels::{Compute, KvType};
use model::{Cache, Rows, Site, Weights};
use serde_json::Value;

/// The model, or `None` where the test may be skipped.
fn weights(test: &str, compute: Compute) -> Option<Weights> {
    let Some(path) = std::env::var_os("PUNA_TEST_MODEL").map(PathBuf::from) else {
        let allowed = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/allowed-skips.txt"
        ))
        .unwrap_or_default();
        let listed = allowed.lines().any(|l| l.starts_with(&format!("{test}:")));
        assert!(
            std::env::var_os("CI").is_none() || listed,
            "{test}: PUNA_TEST_MODEL is not set"
        );
        eprintln!("SKIPPED {test}: PUNA_TEST_MODEL is not set");
        return None;
    };
    Some(model::open(&path, kernels(compute, 2)).unwrap())
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn hidden_states_and_logits_match_transformers() {
    let Some(w) = weights("hidden_states_and_logits_match_transformers", Compute::F32) else {
        return;
    };
    let expected = Expected::open("smollm2/forward.safetensors");
    let mut probe = Capture::of(&[Site::Embed, Site::ResidPost, Site::FinalNorm]);
    let got = logits(&w, &expected.ids("input_ids"), 4096, &mut probe);
    let last = &got[got.len() - 8 * w.config.vocab..];
    let want = expected.f32("logits_last8");
    for (g, w) in last.chunks(w.config.vocab).zip(want.chunks(w.config.vocab)) {
        let worst = max_difference(&log_softmax(g), &log_softmax(w));
        assert!(worst < 2e-3, "{worst}");
    }
    for l in 0..=30 {
        let key = match l {
            0 => (Site::Embed, 0),
            30 => (Site::FinalNorm, 0),
            l => (Site::ResidPost, l - 1),
        };
        let want = expected.f32(&format!("hidden.{l}"));
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = max_difference(&probe.seen[&key], &want);
        assert!(worst < 1e-3 * largest, "hidden.{l}: {worst} of {largest}");
    }
}

/// Same greedy tokens except where the two best differ by less than 5e-3; log-probabilities
/// within 2e-3 while the texts agree.
#[test]
fn generation_matches_both_f32_engines() {
    let Some(w) = weights("generation_matches_both_f32_engines", Compute::F32) else {
        return;
    };
    let cases = json("smollm2/generation.json");
    let cases = cases["prompts"].as_array().unwrap().clone();
    assert!(cases.len() >= 20);
    for case in &cases {
        for engine in ["transformers", "llama_cpp_f32"] {
            compare_with(&w, &ids(&case["ids"]), &case[engine], engine);
        }
    }
}

fn compare_with(w: &Weights, prompt: &[u32], want: &Value, engine: &str) {
    let vocab = w.config.vocab;
    let next = ids(&want["ids"]);
    let all: Vec<u32> = prompt.iter().chain(&next).copied().collect();
    let got = logits(w, &all, 512, &mut ());
    for (step, &token) in next.iter().enumerate() {
        let row = log_softmax(&got[(prompt.len() - 1 + step) * vocab..][..vocab]);
        let best = argmax(&row) as usize;
        assert!(
            row[best] - row[token as usize] < 5e-3,
            "{engine} step {step}: {best} is better than {token}"
        );
        let Some(top) = want["steps"][step]["top"].as_array() else {
            continue;
        };
        for pair in top {
            let (id, logprob) = (
                pair[0].as_u64().unwrap() as usize,
                pair[1].as_f64().unwrap() as f32,
            );
            assert!(
                (row[id] - logprob).abs() < 2e-3,
                "{engine} step {step}: token {id} {} is not {logprob}",
                row[id]
            );
        }
    }
}

/// Protocol of llama-perplexity, see the fixture's README, over the first `chunks` chunks.
fn perplexity(w: &Weights, chunks: usize) -> f64 {
    let ids = Expected::open("smollm2/ppl_ids.safetensors").ids("input_ids");
    let (mut sum, mut count) = (0.0, 0);
    let vocab = w.config.vocab;
    for chunk in ids.chunks_exact(512).take(chunks) {
        let mut cache = Cache::new(&w.config, KvType::F32, 512).unwrap();
        let seq = cache.open();
        logits_in_chunks(w, &mut cache, seq, &chunk[..256], 256, Rows::None, &mut ());
        let got = logits_in_chunks(w, &mut cache, seq, &chunk[256..], 64, Rows::All, &mut ());
        for (row, &next) in got.chunks_exact(vocab).zip(&chunk[257..]) {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let norm: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
            sum += norm.ln() - f64::from(row[next as usize] - max);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

/// 4 chunks of 48; all of them with `PUNA_TEST_ALL` (`.ci/slow`).
#[test]
fn perplexity_is_that_of_the_references() {
    let Some(f32) = weights("perplexity_is_that_of_the_references", Compute::F32) else {
        return;
    };
    let chunks = if std::env::var_os("PUNA_TEST_ALL").is_some() {
        48
    } else {
        4
    };
    let running = &json("smollm2/perplexity.json")["transformers_f32"]["running"];
    let want = running[chunks - 1].as_f64().unwrap();
    let got = perplexity(&f32, chunks);
    assert!((got / want - 1.0).abs() < 5e-4, "f32: {got} is not {want}");
    let fast = perplexity(&f32.with_kernels(kernels(Compute::Fast, 2)), chunks);
    assert!((fast / got - 1.0).abs() < 1e-2, "fast: {fast} is not {got}");
    eprintln!("perplexity of {chunks} chunks: f32 {got}, fast {fast}, transformers {want}");
}
