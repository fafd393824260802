//! Mixtures of experts: against a plain computation, quantised, seen and written by a probe, and
//! what is refused.

mod common;

use common::*;
use files::gguf::Gguf;
use files::{Blob, Dtype, Tensor, Tensors};
use kernels::{Compute, KvType};
use model::{At, Cache, Probe, Rows, Site, Weights};

const FILE: &str = "../experts/experts.gguf";
/// Of `FILE`.
const EXPERTS: usize = 5;

#[test]
fn softmax_routers_match_a_plain_computation() {
    let expected = Expected::open("../experts/experts.expected.safetensors");
    for compute in [Compute::F32, Compute::Fast] {
        let w = open(FILE, compute);
        for s in expected.sequences() {
            let ids = expected.ids(&format!("{s}.input_ids"));
            for chunk in [ids.len(), 3, 1] {
                let mut probe = Capture::of(&[Site::ResidPost, Site::Router]);
                let got = logits(&w, &ids, chunk, &mut probe);
                let check = |got: &[f32], name: String| {
                    assert_close(&name, got, &expected.f32(&name), 2e-4, 1e-4);
                };
                check(&got, format!("{s}.logits"));
                for layer in 0..w.config.layers {
                    let hidden = &probe.seen[&(Site::ResidPost, layer)];
                    check(hidden, format!("{s}.hidden.{}", layer + 1));
                    let router = &probe.seen[&(Site::Router, layer)];
                    check(router, format!("{s}.router.{layer}"));
                }
            }
        }
    }
}

/// The matrices of Llama 4's conversion in blocks of 8 bits, but for the router, as llama-quantize
/// leaves it.
fn quantised_llama4() -> Gguf {
    let mut g = Gguf::open(fixture("gguf/llama4_text.f32.gguf")).unwrap();
    let tensors = g.tensors.iter().map(|t| {
        if t.shape.len() < 2 || t.name.contains("ffn_gate_inp") {
            return t.clone();
        }
        let values = t.data.chunks_exact(4);
        let values: Vec<f32> = values
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let mut bytes = Vec::new();
        for block in values.chunks_exact(32) {
            let max = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = half::f16::from_f32(max / 127.0);
            bytes.extend(scale.to_le_bytes());
            bytes.extend(
                block
                    .iter()
                    .map(|x| (x / scale.to_f32()).round() as i8 as u8),
            );
        }
        let data = Blob::from_vec(bytes);
        Tensor::new(t.name.clone(), Dtype::Q8_0, t.shape.clone(), data).unwrap()
    });
    g.tensors = Tensors::new(tensors.collect()).unwrap();
    g
}

/// Sends rows through the experts that another pass has chosen.
struct Same(Capture);

impl Probe for Same {
    const ON: bool = true;
    fn wants(&self, site: Site, _: usize) -> bool {
        site == Site::Router
    }
    fn see(&mut self, at: At, values: &mut [f32]) {
        values.copy_from_slice(&self.0.seen[&(Site::Router, at.layer)]);
    }
}

/// Experts that are slices of quantised tensors, with 8-bit activations: close to the f32 mode as
/// far as rows go through the same experts, and the same bits whatever the threads and the chunks.
#[test]
fn quantised_experts_in_fast_mode() {
    let g = quantised_llama4();
    let load = |compute, threads| Weights::from_gguf(&g, kernels(compute, threads)).unwrap();
    let (fast, exact) = (load(Compute::Fast, 1), load(Compute::F32, 1));
    let original = open("gguf/llama4_text.f32.gguf", Compute::F32);
    let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 384).collect();
    let mut same = Same(Capture::of(&[Site::Router]));
    let plain = logits(&original, &ids, 60, &mut same.0);
    let want = logits(&exact, &ids, 60, &mut same);
    // The error relative to the logits: 8 bits cost each of the 30 products about half a percent.
    let off = |a: &[f32], b: &[f32]| {
        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
        let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
        (difference / square(&mut b.iter().copied())).sqrt()
    };
    let storage = off(&want, &plain);
    assert!(storage < 0.045, "8-bit weights: {storage}");
    let activations = off(&logits(&fast, &ids, 60, &mut same), &want);
    assert!(activations < 0.045, "8-bit activations: {activations}");
    let got = logits(&fast, &ids, 60, &mut ());
    for threads in [1, 3] {
        let w = load(Compute::Fast, threads);
        for chunk in [1, 7, 60] {
            assert!(
                logits(&w, &ids, chunk, &mut ()) == got,
                "{threads}, {chunk}"
            );
        }
    }
}

/// Makes every router choose one expert above all others.
struct Choose(usize, Vec<f32>);

impl Probe for Choose {
    const ON: bool = true;
    fn wants(&self, site: Site, layer: usize) -> bool {
        site == Site::Router || site == Site::MlpOut && layer == 0
    }
    fn see(&mut self, at: At, values: &mut [f32]) {
        match at.site {
            Site::Router => {
                assert_eq!(at.shape, [at.rows.len(), EXPERTS]);
                for row in values.chunks_mut(EXPERTS) {
                    row[self.0] = 1e4;
                }
            }
            _ => self.1 = values.to_vec(),
        }
    }
}

/// What is written to the router decides, and places inside experts are shown row by row in the
/// order of the choice.
#[test]
fn a_probe_sees_and_writes_inside_experts() {
    let w = open(FILE, Compute::F32);
    let ids: Vec<u32> = (0..9).map(|i| i * 7 % 64).collect();
    let outputs: Vec<Vec<f32>> = (0..EXPERTS)
        .map(|e| {
            let mut probe = Choose(e, Vec::new());
            logits(&w, &ids, 99, &mut probe);
            probe.1
        })
        .collect();
    for (a, b) in outputs.iter().zip(&outputs[1..]) {
        assert!(max_difference(a, b) > 1e-2);
    }
    let sites = [
        Site::MlpPre,
        Site::MlpPreLinear,
        Site::MlpPost,
        Site::MlpOut,
    ];
    let mut all = Capture::of(&sites);
    let plain = logits(&w, &ids, 99, &mut all);
    for site in [Site::MlpPre, Site::MlpPreLinear, Site::MlpPost] {
        assert_eq!(all.shapes[&(site, 1)], [[9, 2, 48]], "{site:?}");
    }
    // One row alone goes through the same.
    let mut cache = Cache::new(&w.config, KvType::F32, 64).unwrap();
    let seq = cache.open();
    let mut first = Capture::of(&sites);
    logits_in_chunks(&w, &mut cache, seq, &ids[..1], 1, Rows::All, &mut first);
    for site in [Site::MlpPre, Site::MlpPreLinear, Site::MlpPost] {
        let (one, all) = (&first.seen[&(site, 0)], &all.seen[&(site, 0)]);
        assert_eq!(one[..], all[..one.len()], "{site:?}");
    }
    for site in [
        Site::Router,
        Site::MlpPre,
        Site::MlpPreLinear,
        Site::MlpPost,
    ] {
        let mut write = Write(site);
        assert_ne!(logits(&w, &ids, 99, &mut write), plain, "{site:?}");
    }
    let llama4 = open("models/llama4_text", Compute::F32);
    let mut shapes = Capture::of(&[Site::MlpPost, Site::Router]);
    logits(&llama4, &ids, 99, &mut shapes);
    assert_eq!(shapes.shapes[&(Site::MlpPost, 0)], [[9, 160]], "no experts");
    assert_eq!(
        shapes.shapes[&(Site::MlpPost, 1)],
        [[9, 2, 96]],
        "one and one"
    );
    assert!(!shapes.shapes.contains_key(&(Site::Router, 2)));
}

/// Turns a place upside down.
struct Write(Site);

impl Probe for Write {
    const ON: bool = true;
    fn wants(&self, site: Site, layer: usize) -> bool {
        site == self.0 && layer == 0
    }
    fn see(&mut self, _: At, values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = -*x);
    }
}

/// `FILE` with its tensors changed one by one; `None` drops a tensor.
fn changed(change: impl Fn(&Tensor) -> Option<Tensor>) -> String {
    let mut g = Gguf::open(fixture(FILE)).unwrap();
    g.tensors = Tensors::new(g.tensors.iter().filter_map(change).collect()).unwrap();
    let w = Weights::from_gguf(&g, kernels(Compute::F32, 1));
    w.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn experts_that_do_not_fit_are_refused_by_name() {
    let zeros = |name: &str, shape: &[usize]| {
        let data = Blob::from_vec(vec![0; shape.iter().product::<usize>() * 4]);
        Some(Tensor::new(name, Dtype::F32, shape.to_vec(), data).unwrap())
    };
    for name in ["blk.1.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight"] {
        let error = changed(|t| (t.name != name).then(|| t.clone()));
        assert!(error.contains(name), "{error}");
        let error = changed(|t| match t.name == name {
            true => zeros(name, &[4, 48, 32]),
            false => Some(t.clone()),
        });
        assert!(
            error.contains(name) && error.contains("[4, 48, 32]"),
            "{error}"
        );
    }
    // An expert that is always used is another model.
    let error = changed(|t| match t.name == "output_norm.weight" {
        true => zeros("blk.0.ffn_up_shexp.weight", &[48, 32]),
        false => Some(t.clone()),
    });
    assert!(error.contains("output_norm.weight"), "{error}");
    let mut g = Gguf::open(fixture(FILE)).unwrap();
    let shared = zeros("blk.0.ffn_up_shexp.weight", &[48, 32]);
    g.tensors = Tensors::new(g.tensors.iter().cloned().chain(shared).collect()).unwrap();
    let error = Weights::from_gguf(&g, kernels(Compute::F32, 1)).unwrap_err();
    assert!(error.to_string().contains("ffn_up_shexp"), "{error}");
    for used in [0u32, 6] {
        let mut g = Gguf::open(fixture(FILE)).unwrap();
        g.metadata.set("llama.expert_used_count", used);
        let error = model::Config::from_gguf(&g).unwrap_err().to_string();
        assert!(error.contains("experts used"), "{error}");
    }
}

/// Files of 2023 have a tensor for each expert.
#[test]
fn experts_may_be_tensors_of_their_own() {
    let mut g = Gguf::open(fixture(FILE)).unwrap();
    let apart = g.tensors.iter().flat_map(|t| {
        let Some((before, _)) = t.name.split_once("_exps") else {
            return vec![t.clone()];
        };
        let size = t.data.len() / EXPERTS;
        let one = |n: usize| {
            let data = t.data.slice(n * size..(n + 1) * size).unwrap();
            let name = format!("{before}.{n}.weight");
            Tensor::new(name, t.dtype, t.shape[1..].to_vec(), data).unwrap()
        };
        (0..EXPERTS).map(one).collect()
    });
    g.tensors = Tensors::new(apart.collect()).unwrap();
    let w = Weights::from_gguf(&g, kernels(Compute::F32, 2)).unwrap();
    let ids = [3, 1, 4, 1, 5];
    let stacked = open(FILE, Compute::F32);
    assert_eq!(
        logits(&w, &ids, 99, &mut ()),
        logits(&stacked, &ids, 99, &mut ())
    );
    // One too few, and one too many.
    for (count, named) in [(6u32, "ffn_gate.5.weight"), (4, "ffn_")] {
        let mut g = g.clone();
        g.metadata.set("llama.expert_count", count);
        let router = g
            .tensors
            .iter()
            .map(|t| match t.name.ends_with("gate_inp.weight") {
                true => {
                    let bytes = vec![0; count as usize * 32 * 4];
                    let shape = vec![count as usize, 32];
                    Tensor::new(t.name.clone(), Dtype::F32, shape, Blob::from_vec(bytes)).unwrap()
                }
                false => t.clone(),
            });
        g.tensors = Tensors::new(router.collect()).unwrap();
        let error = Weights::from_gguf(&g, kernels(Compute::F32, 1)).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

/// Only the experts that a token goes through are read for it.
#[test]
fn bytes_of_a_token_count_used_experts() {
    let w = open(FILE, Compute::F32);
    let expert = 3 * 48 * 32 * 4;
    let idle = w.config.layers as u64 * 3 * expert;
    assert_eq!(w.bytes() - w.bytes_per_token(), idle + 64 * 32 * 4);
}
