//! Adapters beside the weights and merged into them, against PEFT.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use files::gguf::Gguf;
use kernels::{Compute, KvType};
use model::convert::{Input, write_safetensors};
use model::quantize::{Wanted, plan, write};
use model::{Adapter, Batch, Cache, Chunk, Lora, Rows, Weights};

const TRAINED: [&str; 3] = ["lora", "rslora_qv", "dora"];

/// Folder of `fixtures/adapters` and its base.
const SAVED: [(&str, &str); 6] = [
    ("patterns", "llama2_gqa"),
    ("tables", "llama1"),
    ("bias", "llama_bias"),
    ("tied", "llama3_2_tied"),
    ("opt", "opt"),
    ("llama4", "llama4_text"),
];

fn saved(name: &str) -> PathBuf {
    fixture("../adapters").join(name)
}

fn adapted(w: &Weights, ids: &[u32], chunk: usize, adapters: &[Arc<Adapter>]) -> Vec<f32> {
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let seq = cache.open();
    let mut out = Vec::new();
    for part in ids.chunks(chunk) {
        let start = cache.len(seq) as u32;
        let chunks = vec![Chunk {
            adapters: adapters.to_vec(),
            ..Chunk::tokens(seq, start, part, Rows::All)
        }];
        let done = model::forward(w, &Batch { chunks }, &mut cache, &mut ()).unwrap();
        out.extend_from_slice(&done.chunks[0].logits);
    }
    out
}

fn one(w: &Weights, path: &Path, scale: f32) -> Vec<Arc<Adapter>> {
    let adapter = Adapter::open(path, w, scale);
    vec![Arc::new(
        adapter.unwrap_or_else(|e| panic!("{}: {e}", path.display())),
    )]
}

/// Each row of ids of an expectation with its logits.
fn rows(e: &Expected) -> Vec<(Vec<u32>, Vec<f32>)> {
    let (ids, logits) = (e.ids("input_ids"), e.f32("logits"));
    let [n, len] = e.0.get("input_ids").unwrap().shape[..] else {
        panic!("a matrix")
    };
    let each = logits.len() / n;
    ids.chunks(len)
        .map(<[u32]>::to_vec)
        .zip(logits.chunks(each).map(<[f32]>::to_vec))
        .collect()
}

fn check(what: &str, w: &Weights, adapters: &[Arc<Adapter>], expected: &str) {
    for (ids, want) in rows(&Expected::open(expected)) {
        assert_close(what, &adapted(w, &ids, 99, adapters), &want, 2e-4, 1e-4);
        let bare = logits(w, &ids, 99, &mut ());
        assert!(max_difference(&bare, &want) > 1e-3, "{what} does something");
    }
}

fn wanted(ty: Option<&str>) -> Wanted<'_> {
    Wanted {
        recipe: ty.map(|ty| ty.parse().unwrap()),
        imatrix: None,
        special: &|_| None,
        pure: false,
        head: None,
        embedding: None,
        leave_head: false,
        requantize: true,
    }
}

/// A GGUF of a model, with adapters merged.
fn gguf(base: &Path, adapters: &[(&Path, f32)], ty: Option<&str>, out: &Path) {
    let input = Input::open(base).unwrap();
    let config = input.config().unwrap();
    let adapters = adapters.iter();
    let adapters = adapters.map(|(path, s)| (Lora::open(path, &config).unwrap(), *s));
    let source = input.gguf(adapters.collect()).unwrap();
    let wanted = wanted(ty);
    let plan = plan(&source, &wanted).unwrap();
    write(&source, &plan, &wanted, out, 2, &mut |_| true).unwrap();
}

/// A Hugging Face directory of a model, with adapters merged.
fn hf(base: &Path, adapters: &[(&Path, f32)], out: &Path) {
    let input = Input::open(base).unwrap();
    let config = input.config().unwrap();
    let adapters = adapters.iter();
    let adapters = adapters.map(|(path, s)| (Lora::open(path, &config).unwrap(), *s));
    let (json, source, steps) = input.hf(None, adapters.collect()).unwrap();
    std::fs::create_dir(out).unwrap();
    std::fs::write(out.join("config.json"), json.to_string()).unwrap();
    let weights = out.join("model.safetensors");
    write_safetensors(&source, &steps, &weights, 2, &mut |_| true).unwrap();
}

#[test]
fn beside_the_weights_they_give_pefts_logits() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("training/model");
    let file = folder.path().join("base.gguf");
    gguf(&base, &[], None, &file);
    for (compute, path) in [
        (Compute::F32, &base),
        (Compute::F32, &file),
        (Compute::Fast, &base),
    ] {
        let w = model::open(path, kernels(compute, 2)).unwrap();
        for name in TRAINED {
            let adapter = one(&w, &fixture(&format!("training/{name}/final")), 1.0);
            check(
                name,
                &w,
                &adapter,
                &format!("training/{name}/merged.safetensors"),
            );
        }
    }
    for (name, base) in SAVED {
        let w = open(&format!("models/{base}"), Compute::F32);
        let expected = format!("../adapters/{name}/expected.safetensors");
        check(name, &w, &one(&w, &saved(name), 1.0), &expected);
    }
}

/// Adapter and base may each lie in either order of rotary rows.
#[test]
fn a_gguf_adapter_is_the_same_adapter() {
    for (name, base) in [("patterns", "llama2_gqa"), ("tables", "llama1")] {
        let adapter = saved(name).join("adapter.gguf");
        let expected = format!("../adapters/{name}/expected.safetensors");
        for path in [format!("models/{base}"), format!("gguf/{base}.f32.gguf")] {
            let w = open(&path, Compute::F32);
            check(&path, &w, &one(&w, &adapter, 1.0), &expected);
            check(&path, &w, &one(&w, &saved(name), 1.0), &expected);
        }
    }
    // Its rows lie in pairs in every format.
    let (folder, base) = (
        tempfile::tempdir().unwrap(),
        fixture("gguf/llama4_text.f32.gguf"),
    );
    let merged = folder.path().join("merged.gguf");
    gguf(&base, &[(&saved("llama4"), 1.0)], None, &merged);
    let [w, merged] = [base, merged].map(|p| model::open(&p, kernels(Compute::F32, 2)).unwrap());
    let ids: Vec<u32> = (0..12).map(|i| i * 31 % 300).collect();
    let got = adapted(&w, &ids, 99, &one(&w, &saved("llama4"), 1.0));
    assert_close(
        "llama4",
        &got,
        &logits(&merged, &ids, 99, &mut ()),
        1e-4,
        1e-4,
    );
}

#[test]
fn merged_they_give_pefts_weights_and_logits() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("training/model");
    for name in TRAINED {
        let adapter = fixture(&format!("training/{name}/final"));
        let expected = Expected::open(&format!("training/{name}/merged.safetensors"));
        let (dir, file) = (
            folder.path().join(name),
            folder.path().join(format!("{name}.gguf")),
        );
        hf(&base, &[(&adapter, 1.0)], &dir);
        gguf(&base, &[(&adapter, 1.0)], None, &file);
        let ours = Expected(files::hf::HfDir::open(&dir).unwrap().tensors);
        for t in expected.0.names().filter(|n| n.starts_with("merged.")) {
            let got = ours.f32(&t["merged.".len()..]);
            assert_close(t, &got, &expected.f32(t), 1e-6, 0.0);
        }
        for path in [&dir, &file] {
            let w = model::open(path, kernels(Compute::F32, 2)).unwrap();
            for (ids, want) in rows(&expected) {
                assert_close(name, &logits(&w, &ids, 99, &mut ()), &want, 1e-4, 1e-4);
            }
        }
    }
    for (name, base) in [
        ("patterns", "llama2_gqa"),
        ("tables", "llama1"),
        ("bias", "llama_bias"),
        ("tied", "llama3_2_tied"),
    ] {
        let expected = Expected::open(&format!("../adapters/{name}/expected.safetensors"));
        let from_gguf = fixture(&format!("gguf/{base}.f32.gguf"));
        let (dir, file) = (
            folder.path().join(name),
            folder.path().join(format!("{name}.gguf")),
        );
        // From each layout to the other.
        hf(&from_gguf, &[(&saved(name), 1.0)], &dir);
        gguf(
            &fixture(&format!("models/{base}")),
            &[(&saved(name), 1.0)],
            None,
            &file,
        );
        for path in [&dir, &file] {
            let w = model::open(path, kernels(Compute::F32, 2)).unwrap();
            for (ids, want) in rows(&expected) {
                assert_close(name, &logits(&w, &ids, 99, &mut ()), &want, 2e-4, 1e-4);
            }
        }
    }
}

#[test]
fn several_at_scales_are_what_merging_them_gives() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("training/model");
    let [lora, rslora, dora] = TRAINED.map(|n| fixture(&format!("training/{n}/final")));
    let w = model::open(&base, kernels(Compute::F32, 2)).unwrap();
    let ids: Vec<u32> = (0..30).map(|i| i * 7 % 320).collect();
    let all = [(&dora, 0.5), (&lora, -1.5), (&rslora, 2.0), (&lora, 0.25)];
    let all = all.map(|(path, s)| (path.as_path(), s));
    let merged = folder.path().join("merged");
    hf(&base, &all, &merged);
    let want = model::open(&merged, kernels(Compute::F32, 2)).unwrap();
    let want = logits(&want, &ids, 99, &mut ());
    let beside: Vec<_> = all.iter().flat_map(|(path, s)| one(&w, path, *s)).collect();
    assert_close(
        "several",
        &adapted(&w, &ids, 99, &beside),
        &want,
        1e-4,
        1e-4,
    );
    // A scale may be set later.
    let later: Vec<_> = all
        .iter()
        .map(|(path, s)| Arc::new(one(&w, path, 1.0)[0].at(*s).unwrap()))
        .collect();
    assert_eq!(
        adapted(&w, &ids, 99, &later),
        adapted(&w, &ids, 99, &beside)
    );
    // Nothing of an adapter is the bare model.
    let none = adapted(&w, &ids, 99, &one(&w, &lora, 0.0));
    assert_eq!(none, logits(&w, &ids, 99, &mut ()));

    let mut cache = Cache::new(&w.config, KvType::F32, 64).unwrap();
    let chunks = vec![Chunk {
        adapters: [one(&w, &lora, 1.0), one(&w, &dora, 1.0)].concat(),
        ..Chunk::tokens(cache.open(), 0, &ids, Rows::Last)
    }];
    let error = model::forward(&w, &Batch { chunks }, &mut cache, &mut ());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("must be the first"), "{error}");
}

/// The bits of a row depend on nothing but its own prefix and adapters.
#[test]
fn chunks_threads_and_other_sequences_change_no_bit() {
    let base = "gguf/llama2_gqa.f32.gguf";
    let path = saved("patterns");
    for compute in [Compute::Fast, Compute::F32] {
        let w = open(base, compute);
        let adapter = one(&w, &path, 1.0);
        let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 300).collect();
        let want = adapted(&w, &ids, 99, &adapter);
        for chunk in [1, 3, 16] {
            assert_eq!(adapted(&w, &ids, chunk, &adapter), want);
        }
        for threads in [1, 3] {
            let other = w.with_kernels(kernels(compute, threads));
            assert_eq!(adapted(&other, &ids, 7, &adapter), want);
        }
        let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
        let twice: Vec<_> = [&adapter[..], &one(&w, &path, -0.5)].concat();
        let chunks = [vec![], adapter.clone(), twice].map(|adapters| Chunk {
            adapters,
            ..Chunk::tokens(cache.open(), 0, &ids, Rows::All)
        });
        let batch = Batch {
            chunks: chunks.into(),
        };
        let out = model::forward(&w, &batch, &mut cache, &mut ()).unwrap();
        assert_eq!(out.chunks[0].logits, logits(&w, &ids, 99, &mut ()));
        assert_eq!(out.chunks[1].logits, want);
        assert_ne!(out.chunks[2].logits, want);
    }
}

/// A quantised base under an adapter is that base's numbers under it.
#[test]
fn a_quantised_base_is_adapted_as_its_numbers_are() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixture("training/model");
    let q8 = folder.path().join("q8.gguf");
    gguf(&base, &[], Some("Q8_0"), &q8);
    for name in TRAINED {
        let adapter = fixture(&format!("training/{name}/final"));
        let w = model::open(&q8, kernels(Compute::F32, 2)).unwrap();
        let ids: Vec<u32> = (0..30).map(|i| i * 11 % 320).collect();
        let got = adapted(&w, &ids, 99, &one(&w, &adapter, 1.0));
        let merged = folder.path().join("merged.gguf");
        gguf(&q8, &[(&adapter, 1.0)], Some("F32"), &merged);
        let want = model::open(&merged, kernels(Compute::F32, 2)).unwrap();
        assert_close(name, &got, &logits(&want, &ids, 99, &mut ()), 1e-4, 1e-4);
        // In the base's own type what is merged is rounded once more.
        gguf(&q8, &[(&adapter, 1.0)], None, &merged);
        let again = Gguf::open(&merged).unwrap();
        let types = again
            .tensors
            .iter()
            .filter(|t| t.dtype == files::Dtype::Q8_0);
        assert_eq!(types.count(), 16, "as before");
        let rounded = model::open(&merged, kernels(Compute::F32, 2)).unwrap();
        assert_close(name, &got, &logits(&rounded, &ids, 99, &mut ()), 0.1, 0.0);
    }
}

/// PEFT wrote `adapter_model.bin` before it wrote safetensors, and still does when it is told to.
#[test]
fn an_adapter_may_be_pytorchs_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.bin"] {
        std::fs::copy(saved("tied").join(name), folder.path().join(name)).unwrap();
    }
    let w = open("models/llama3_2_tied", Compute::F32);
    let adapter = one(&w, folder.path(), 1.0);
    check("bin", &w, &adapter, "../adapters/tied/expected.safetensors");
    // What is cut is refused.
    let bytes = std::fs::read(saved("tied").join("adapter_model.bin")).unwrap();
    for keep in [0, 100, bytes.len() - 1] {
        std::fs::write(folder.path().join("adapter_model.bin"), &bytes[..keep]).unwrap();
        assert!(
            Adapter::open(folder.path(), &w, 1.0).is_err(),
            "{keep} bytes"
        );
    }
}
