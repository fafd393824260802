//! Against transformers and llama.cpp: `tests/fixtures/reference`, tolerances from its READMEs.

mod common;

use common::*;
use kernels::Compute;
use model::Site;

/// Logits, hidden states and attention of every folder, and of the Llamas' F32 conversions by
/// llama.cpp (interleaved rotary layout, `rope_freqs.weight`), for the whole prompt, in chunks and
/// one by one.
#[test]
fn models_match_transformers() {
    for name in all_models() {
        let expected = Expected::open(&format!("models/{name}/expected.safetensors"));
        assert!(expected.sequences().len() >= 3, "{name}");
        let gguf = format!("gguf/{name}.f32.gguf");
        let gguf = MODELS.contains(&name).then_some(gguf);
        for file in [format!("models/{name}")].into_iter().chain(gguf) {
            let w = open(&file, Compute::F32);
            let mut attention = 0;
            for s in expected.sequences() {
                let ids = expected.ids(&format!("{s}.input_ids"));
                for chunk in [ids.len(), 7, 3, 1] {
                    let sites = [Site::Embed, Site::ResidPost, Site::FinalNorm, Site::Pattern];
                    let mut probe = Capture::of(&sites);
                    let got = logits(&w, &ids, chunk, &mut probe);
                    let what = format!("{file} {s} in chunks of {chunk}");
                    let want = expected.f32(&format!("{s}.logits"));
                    assert_close(&what, &got, &want, 2e-4, 1e-4);
                    check_hidden(&what, &probe, &expected, &s, w.config.layers);
                    attention += check_attention(&what, &probe, &expected, &s, ids.len());
                }
            }
            assert_eq!(attention, w.config.layers * 4, "{file}: layers compared");
        }
    }
}

fn check_hidden(what: &str, probe: &Capture, expected: &Expected, s: &str, layers: usize) {
    let check = |key: (Site, usize), name: String| {
        assert_close(
            &format!("{what} {name}"),
            &probe.seen[&key],
            &expected.f32(&name),
            2e-4,
            1e-4,
        );
    };
    check((Site::Embed, 0), format!("{s}.hidden.0"));
    for l in 1..layers {
        check((Site::ResidPost, l - 1), format!("{s}.hidden.{l}"));
    }
    check((Site::ResidPost, layers - 1), format!("{s}.last_layer_out"));
    check((Site::FinalNorm, 0), format!("{s}.hidden.{layers}"));
}

/// The probe has `[rows, heads, keys]` per call, transformers `[heads, rows, n]`. Returns how many
/// layers there were to compare.
fn check_attention(what: &str, probe: &Capture, expected: &Expected, s: &str, n: usize) -> usize {
    let mut layers = 0;
    for (key, got) in probe.seen.iter().filter(|(key, _)| key.0 == Site::Pattern) {
        let name = format!("{s}.attn.{}", key.1);
        if !expected.has(&name) {
            continue;
        }
        layers += 1;
        let want = expected.f32(&name);
        let (mut row, mut rest) = (0, &got[..]);
        for shape in &probe.shapes[key] {
            let [rows, heads, keys] = shape[..] else {
                panic!("{what}: {shape:?}")
            };
            for at in 0..rows * heads {
                let (q, h) = (row + at / heads, at % heads);
                let want = &want[(h * n + q) * n..][..n];
                let (got, after) = rest.split_at(keys);
                rest = after;
                assert_close(&format!("{what} {name}"), got, &want[..keys], 1e-5, 0.0);
                assert!(want[keys..].iter().all(|p| *p == 0.0));
            }
            row += rows;
        }
        assert_eq!((row, rest.len()), (n, 0), "{what} {name}");
    }
    layers
}

#[test]
fn greedy_continuations_match_transformers() {
    for name in all_models() {
        let w = open(&format!("models/{name}"), Compute::F32);
        let expected = Expected::open(&format!("models/{name}/expected.safetensors"));
        for s in expected.sequences() {
            let want = expected.ids(&format!("{s}.greedy"));
            let got = greedy(&w, &expected.ids(&format!("{s}.input_ids")), want.len());
            assert_eq!(got, want, "{name} {s}");
        }
    }
}

/// The configurations of transformers 4 and 5 say the same.
#[test]
fn both_forms_of_config_json_are_read_alike() {
    let read = |name: &str, file: &str| {
        let text = std::fs::read(fixture(&format!("models/{name}/{file}"))).unwrap();
        model::Config::from_hf(&serde_json::from_slice(&text).unwrap()).unwrap()
    };
    for name in all_models() {
        assert_eq!(
            read(name, "config.json"),
            read(name, "config.v5.json"),
            "{name}"
        );
    }
}

/// Greedy continuations and log-probabilities of the F32 conversions in llama.cpp.
#[test]
fn gguf_conversions_match_llama_cpp() {
    for name in MODELS.iter().chain(&["llama4_text"]) {
        let w = open(&format!("gguf/{name}.f32.gguf"), Compute::F32);
        let model = Expected::open(&format!("models/{name}/expected.safetensors"));
        let gguf = Expected::open(&format!("gguf/{name}.f32.expected.safetensors"));
        for s in model.sequences() {
            let ids = model.ids(&format!("{s}.input_ids"));
            let want = gguf.ids(&format!("{s}.llama_cpp.greedy"));
            assert_eq!(greedy(&w, &ids, want.len()), want, "{name} {s}");
            let first = gguf.f32(&format!("{s}.llama_cpp.logprobs"));
            let worst = worst_logprob(&w, &ids, &want, &first);
            assert!(worst < 2e-4, "{name} {s}: {worst}");
        }
    }
}

/// Largest difference to given log-probabilities `[steps, vocab]` along a continuation; rows of
/// NaN are not compared.
fn worst_logprob(w: &model::Weights, ids: &[u32], next: &[u32], want: &[f32]) -> f32 {
    let vocab = w.config.vocab;
    let steps = (want.len() / vocab).min(next.len() + 1);
    let all: Vec<u32> = ids.iter().chain(&next[..steps - 1]).copied().collect();
    let got = logits(w, &all, all.len(), &mut ());
    let mut worst = 0f32;
    for step in 0..steps {
        let want = &want[step * vocab..][..vocab];
        if want[0].is_nan() {
            continue;
        }
        let got = log_softmax(&got[(ids.len() - 1 + step) * vocab..][..vocab]);
        worst = worst.max(max_difference(&got, want));
    }
    worst
}

const QUANTISED: &[(&str, [f32; 3])] = &[
    ("F32", [1e-05, 1e-05, 1e-05]),
    ("F16", [0.00383, 0.00345, 0.00356]),
    ("BF16", [0.03818, 0.03247, 0.03139]),
    ("Q8_0", [0.12041, 0.10205, 0.14319]),
    ("Q4_0", [0.13122, 0.14292, 0.1242]),
    ("Q4_1", [0.13968, 0.13308, 0.11787]),
    ("Q5_0", [0.12699, 0.13099, 0.1827]),
    ("Q5_1", [0.14802, 0.10569, 0.1319]),
    ("Q2_K", [0.15498, 0.16421, 0.16881]),
    ("Q3_K_M", [0.16165, 0.23031, 0.17195]),
    ("Q4_K_M", [0.1494, 0.1628, 0.16253]),
    ("Q5_K_M", [0.15234, 0.17655, 0.23537]),
    ("Q6_K", [0.19237, 0.15389, 0.19538]),
    ("IQ4_NL", [0.19958, 0.13428, 0.12134]),
    ("IQ4_XS", [0.21706, 0.24701, 0.17647]),
];

/// The same inputs as the fixture's: the sequences of the f32 model `q256`.
#[test]
fn quantised_models_match_transformers() {
    for (ty, bounds) in QUANTISED {
        let name = format!("gguf/q256.{ty}");
        let expected = Expected::open(&format!("{name}.expected.safetensors"));
        for compute in [Compute::F32, Compute::Fast] {
            let w = open(&format!("{name}.gguf"), compute);
            let vocab = w.config.vocab;
            let mut total = 0.0;
            for (s, bound) in expected.sequences().iter().zip(bounds) {
                let ids = expected.ids(&format!("{s}.input_ids"));
                let want = expected.f32(&format!("{s}.transformers.logits"));
                let what = format!("{name} {s} {compute:?}");
                match compute {
                    Compute::F32 => {
                        assert_close(
                            &what,
                            &logits(&w, &ids, ids.len(), &mut ()),
                            &want,
                            1e-3,
                            0.0,
                        );
                        let want = expected.ids(&format!("{s}.transformers.greedy"));
                        assert_eq!(greedy(&w, &ids, want.len()), want, "{what}");
                    }
                    // At llama.cpp's own steps no further from f32 than llama.cpp is, whose
                    // activations have 8 bits too: chance may decide single sequences.
                    Compute::Fast => {
                        let own = expected.ids(&format!("{s}.llama_cpp.greedy"));
                        let theirs = expected.f32(&format!("{s}.llama_cpp.logprobs"));
                        let all = [ids.clone(), own].concat();
                        let all = &all[..ids.len() + theirs.len() / vocab - 1];
                        let reference = open(&format!("{name}.gguf"), Compute::F32);
                        let got = logits(&w, all, all.len(), &mut ());
                        let want = logits(&reference, all, all.len(), &mut ());
                        let from = (ids.len() - 1) * vocab;
                        let rows = got[from..].chunks(vocab).zip(want[from..].chunks(vocab));
                        let worst = rows
                            .zip(theirs.chunks(vocab))
                            .filter(|(_, theirs)| !theirs[0].is_nan())
                            .map(|((g, w), _)| max_difference(&log_softmax(g), &log_softmax(w)))
                            .fold(0.0, f32::max);
                        assert!(
                            worst <= 1.05 * *bound,
                            "{what}: {worst} is above llama.cpp's {bound}"
                        );
                        eprintln!("{what}: {worst} (llama.cpp {bound})");
                        total += worst;
                    }
                }
            }
            let theirs: f32 = bounds.iter().sum();
            assert!(
                total <= 1.01 * theirs,
                "{name}: {total}, llama.cpp {theirs}"
            );
        }
    }
}

/// OPT 350M's kind: norms behind attention and MLP, none at the end, a table of another width.
#[test]
fn opts_of_the_other_kind_match_transformers() {
    for kind in ["after", "before"] {
        let expected = Expected::open(&format!("../opt/{kind}/expected.safetensors"));
        assert_eq!(expected.sequences().len(), 3, "{kind}");
        for compute in [Compute::F32, Compute::Fast] {
            let w = open(&format!("../opt/{kind}"), compute);
            for s in expected.sequences() {
                let ids = expected.ids(&format!("{s}.input_ids"));
                for chunk in [ids.len(), 3, 1] {
                    let mut probe = Capture::of(&[Site::Embed, Site::ResidPost]);
                    let got = logits(&w, &ids, chunk, &mut probe);
                    let want = expected.f32(&format!("{s}.logits"));
                    assert_close(&format!("{kind} {s}"), &got, &want, 2e-4, 1e-4);
                    for layer in 0..w.config.layers {
                        let seen = match layer {
                            0 => &probe.seen[&(Site::Embed, 0)],
                            l => &probe.seen[&(Site::ResidPost, l - 1)],
                        };
                        let name = format!("{s}.hidden.{layer}");
                        assert_close(&name, seen, &expected.f32(&name), 2e-4, 1e-4);
                    }
                }
            }
        }
    }
}
