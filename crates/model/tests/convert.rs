//! `convert` between Hugging Face directories and GGUF, against llama.cpp's converter.

mod common;

use std::path::Path;

use common::{Capture, Expected, MODELS, fixture, kernels, logits};
use files::gguf::{Gguf, Value};
use files::hf::HfDir;
use files::{Dtype, Tensor, Tensors};
use kernels::{Compute, Type};
use model::convert::{Input, write_safetensors};
use model::quantize::{Collector, Imatrix, Wanted, plan, write};
use model::{Config, Scaling, Site, Source};

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

fn to_gguf(source: &Source, ty: Option<&str>, out: &Path) -> Gguf {
    let wanted = wanted(ty);
    let plan = plan(source, &wanted).unwrap();
    write(source, &plan, &wanted, out, 2, &mut |_| true).unwrap();
    Gguf::open(out).unwrap()
}

/// A Hugging Face directory without its tokenizer.
fn to_hf(input: &Input, ty: Option<Type>, out: &Path) -> HfDir {
    let (config, source, steps) = input.hf(ty, Vec::new()).unwrap();
    std::fs::create_dir(out).unwrap();
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let weights = out.join("model.safetensors");
    write_safetensors(&source, &steps, &weights, 2, &mut |_| true).unwrap();
    HfDir::open(out).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    let ty: Type = t.dtype.name().parse().unwrap();
    let mut out = vec![0.0; t.shape.iter().product()];
    kernels::dequantize(ty, &t.data, &mut out).unwrap();
    out
}

fn assert_same(a: &Tensors, b: &Tensors, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for t in a {
        let other = b
            .get(&t.name)
            .unwrap_or_else(|| panic!("{what}: {}", t.name));
        assert_eq!(
            (t.dtype, &t.shape),
            (other.dtype, &other.shape),
            "{what} {}",
            t.name
        );
        if t.name == "rope_freqs.weight" {
            // The reference rounds to f32 in between.
            for (a, b) in t.data.chunks_exact(4).zip(other.data.chunks_exact(4)) {
                let [a, b] = [a, b].map(|x| f32::from_le_bytes(x.try_into().unwrap()));
                assert!((a / b - 1.0).abs() < 1e-6, "{what}: {a} {b}");
            }
            continue;
        }
        assert!(*t.data == *other.data, "{what} {}", t.name);
    }
}

#[test]
fn a_directory_becomes_the_reference_converters_gguf() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let dir = HfDir::open(fixture(&format!("models/{name}"))).unwrap();
        let theirs = Gguf::open(fixture(&format!("gguf/{name}.f32.gguf"))).unwrap();
        let source = Input::open(&dir.path).unwrap().gguf(Vec::new()).unwrap();
        let ours = to_gguf(&source, Some("F32"), &folder.path().join("m.gguf"));
        assert_same(&theirs.tensors, &ours.tensors, name);
        for (key, value) in theirs.metadata.iter() {
            if key.starts_with("llama.") || key == "general.architecture" {
                assert_eq!(ours.metadata.get(key), Some(value), "{name} {key}");
            }
        }
        assert_eq!(ours.metadata.get("general.file_type"), Some(&Value::U32(0)));
    }
}

#[test]
fn there_and_back_every_bit_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let path = fixture(&format!("models/{name}"));
        let dir = HfDir::open(&path).unwrap();
        let gguf = folder.path().join(format!("{name}.gguf"));
        let mixed = dir.tensors.iter().any(|t| t.dtype == Dtype::BF16);
        to_gguf(
            &Input::open(&path).unwrap().gguf(Vec::new()).unwrap(),
            None,
            &gguf,
        );
        // Vectors are f32 in a GGUF: a type for all brings them back.
        let ty = mixed.then_some(Type::BF16);
        let back = to_hf(&Input::open(&gguf).unwrap(), ty, &folder.path().join(name));
        let before = Config::from_hf(&dir.config).unwrap();
        let after = Config::from_hf(&back.config).unwrap();
        assert_eq!(
            before,
            Config {
                eos: before.eos.clone(),
                bos: before.bos,
                ..after
            }
        );
        assert_same(&dir.tensors, &back.tensors, name);
        // And the GGUF from the directory that came of a GGUF.
        let again = to_gguf(
            &Input::open(&back.path).unwrap().gguf(Vec::new()).unwrap(),
            None,
            &folder.path().join("b.gguf"),
        );
        assert_same(&Gguf::open(&gguf).unwrap().tensors, &again.tensors, name);
    }
}

#[test]
fn quantised_files_become_directories() {
    let folder = tempfile::tempdir().unwrap();
    let input = Input::open(&fixture("gguf/q256.Q4_K_M.gguf")).unwrap();
    let dir = to_hf(&input, None, &folder.path().join("f16"));
    let types = |dir: &HfDir| -> Vec<&'static str> {
        let mut types: Vec<_> = dir.tensors.iter().map(|t| t.dtype.name()).collect();
        types.sort_unstable();
        types.dedup();
        types
    };
    assert_eq!(types(&dir), ["F16", "F32"]);
    assert_eq!(dir.config["torch_dtype"], "float16");
    let wide = to_hf(&input, Some(Type::F32), &folder.path().join("f32"));
    assert_eq!(types(&wide), ["F32"]);
    // The same model: f32 holds every quantised value.
    let ids = [5, 9, 200, 31, 77, 12];
    let a = model::open(&fixture("gguf/q256.Q4_K_M.gguf"), kernels(Compute::F32, 1)).unwrap();
    let b = model::open(&wide.path, kernels(Compute::F32, 1)).unwrap();
    let (a, b) = (logits(&a, &ids, 6, &mut ()), logits(&b, &ids, 6, &mut ()));
    common::assert_close("logits", &a, &b, 1e-4, 1e-4);
}

/// What other formats quantise is written as the numbers that it stands for, in either layout.
#[test]
fn quantised_checkpoints_become_their_exact_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let ids = [1, 7, 30, 2, 11];
    let of = |path: &Path| {
        let w = model::open(path, kernels(Compute::F32, 1)).unwrap();
        logits(&w, &ids, 5, &mut ())
    };
    for name in [
        "gptq-sym",
        "gptq-zeros",
        "gptq-v2",
        "gptq-order",
        "gptq-3",
        "gptq-8",
        "gptq-2",
        "awq",
        "bnb-nf4",
        "bnb-nf4-double",
        "bnb-fp4",
        "bnb-int8",
        "fp8-tensor",
        "fp8-row",
        "fp8-channel",
        "fp8-block",
        "fp8-e5m2",
        "fp8-powers",
    ] {
        let from = fixture(&format!("../formats/{name}"));
        let want = of(&from);
        let input = Input::open_on(&from, 2).unwrap();
        let gguf = folder.path().join(format!("{name}.gguf"));
        let written = to_gguf(&input.gguf(Vec::new()).unwrap(), None, &gguf);
        assert!(
            written.tensors.get("blk.0.attn_q.weight").is_some(),
            "{name}"
        );
        let dir = to_hf(&input, None, &folder.path().join(name));
        assert!(dir.config.get("quantization_config").is_none(), "{name}");
        let plain = [Dtype::F32, Dtype::F16, Dtype::BF16];
        assert!(
            dir.tensors.iter().all(|t| plain.contains(&t.dtype)),
            "{name}"
        );
        assert_eq!(dir.tensors.len(), 12, "{name}");
        for (what, path) in [("GGUF", &gguf), ("directory", &dir.path)] {
            common::assert_close(&format!("{name} as {what}"), &of(path), &want, 1e-5, 1e-5);
        }
        // Number by number.
        let again = to_gguf(
            &Input::open(&dir.path).unwrap().gguf(Vec::new()).unwrap(),
            Some("F32"),
            &folder.path().join("again.gguf"),
        );
        let wide = to_gguf(
            &input.gguf(Vec::new()).unwrap(),
            Some("F32"),
            &folder.path().join("wide.gguf"),
        );
        assert_same(&again.tensors, &wide.tensors, name);
    }
}

#[test]
fn what_the_other_layout_cannot_say_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("models/llama1");
    let write = |change: &dyn Fn(&mut serde_json::Value)| {
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut json = serde_json::from_str(&text).unwrap();
        change(&mut json);
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        let weights = folder.path().join("model.safetensors");
        std::fs::copy(from.join("model.safetensors"), weights).unwrap();
        Input::open(folder.path())?.gguf(Vec::new())
    };
    assert!(write(&|_| ()).is_ok());
    let error = write(&|json| json["hidden_act"] = "gelu".into()).unwrap_err();
    assert!(error.to_string().contains("silu"), "{error}");
    let scaling = serde_json::json!({"rope_type": "dynamic", "factor": 2.0});
    let error = write(&|json| json["rope_scaling"] = scaling.clone()).unwrap_err();
    assert!(error.to_string().contains("Dynamic"), "{error}");
}

/// Sums of squares at the places, by hand.
#[test]
fn an_importance_matrix_is_the_mean_square_of_inputs() {
    let path = fixture("gguf/llama3.f32.gguf");
    let weights = model::open(&path, kernels(Compute::F32, 2)).unwrap();
    let ids: Vec<u32> = (0..48).map(|i| (i * 37 + 11) % 300).collect();
    let mut collector = Collector::new(true);
    logits(&weights, &ids, 7, &mut collector);
    collector.chunks = (3, 16);
    let places = [
        (Site::AttnIn, "attn_k"),
        (Site::Z, "attn_output"),
        (Site::MlpIn, "ffn_up"),
        (Site::MlpPost, "ffn_down"),
    ];
    let mut capture = Capture::of(&places.map(|p| p.0));
    logits(&weights, &ids, 48, &mut capture);
    let folder = tempfile::tempdir().unwrap();
    let (new, old) = (folder.path().join("i.gguf"), folder.path().join("i.dat"));
    collector.write(&new, "ids", false).unwrap();
    collector.write(&old, "ids", true).unwrap();
    let (file, list) = (
        Gguf::open(&new).unwrap(),
        files::imatrix::read(&old).unwrap(),
    );
    // Seven matrices a layer, and the head.
    assert_eq!(list.entries.len(), 7 * weights.config.layers + 1);
    assert_eq!((list.chunks, list.dataset.as_str()), (3, "ids"));
    for ((site, part), layer) in places
        .iter()
        .flat_map(|p| (0..weights.config.layers).map(move |l| (p, l)))
    {
        let seen = &capture.seen[&(*site, layer)];
        let cols = seen.len() / ids.len();
        let name = format!("blk.{layer}.{part}.weight");
        let sums = file.tensors.get(&format!("{name}.in_sum2")).unwrap();
        let counts = file.tensors.get(&format!("{name}.counts")).unwrap();
        assert_eq!(
            (&sums.shape[..], &counts.shape[..]),
            (&[1, cols][..], &[1, 1][..])
        );
        assert_eq!(*counts.data, 48f32.to_le_bytes());
        let entry = list.entries.iter().find(|e| e.name == name).unwrap();
        assert_eq!(entry.calls, 3);
        for (c, sum) in sums.data.as_chunks::<4>().0.iter().enumerate() {
            let column = seen.iter().skip(c).step_by(cols);
            let want: f64 = column.map(|x| f64::from(*x).powi(2)).sum();
            let close = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-6 * want;
            assert!(close(f32::from_le_bytes(*sum), want), "{name} {c}");
            assert!(close(entry.values[c], want * 3.0 / 48.0), "{name} {c}");
        }
    }
    assert_eq!(
        Imatrix::open(&new).unwrap().len(),
        Imatrix::open(&old).unwrap().len()
    );
}

/// Logits of a Mixtral that transformers computed, from its directory and from the GGUF made of it.
#[test]
fn mixtral_directories_match_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("../experts/mixtral");
    let expected = Expected::open("../experts/mixtral/expected.safetensors");
    let gguf = folder.path().join("mixtral.gguf");
    let source = Input::open(&path).unwrap().gguf(Vec::new()).unwrap();
    let written = to_gguf(&source, None, &gguf);
    let stack = written.tensors.get("blk.1.ffn_down_exps.weight").unwrap();
    assert_eq!(stack.shape, [4, 32, 32]);
    for file in [&path, &gguf] {
        for compute in [Compute::F32, Compute::Fast] {
            let w = model::open(file, kernels(compute, 2)).unwrap();
            for s in expected.sequences() {
                let ids = expected.ids(&format!("{s}.input_ids"));
                let got = logits(&w, &ids, 99, &mut ());
                let want = expected.f32(&format!("{s}.logits"));
                common::assert_close(&s, &got, &want, 2e-4, 1e-4);
            }
        }
    }
    // And quantised, experts as slices of one tensor.
    to_gguf(&source, Some("Q8_0"), &gguf);
    let [a, b] = [&path, &gguf].map(|file| {
        let w = model::open(file, kernels(Compute::F32, 2)).unwrap();
        logits(&w, &[1, 7, 30], 3, &mut ())
    });
    let scale = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    common::assert_close("q8_0", &a, &b, 0.1 * scale, 0.0);
    // And a directory made of the quantised file: its experts are cut out of one tensor.
    let wide = to_hf(
        &Input::open(&gguf).unwrap(),
        Some(Type::F32),
        &folder.path().join("wide"),
    );
    let w = model::open(&wide.path, kernels(Compute::F32, 2)).unwrap();
    common::assert_close(
        "widened",
        &logits(&w, &[1, 7, 30], 3, &mut ()),
        &b,
        1e-4,
        1e-4,
    );
}

#[test]
fn mixtral_there_and_back_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("../experts/mixtral");
    let dir = HfDir::open(&path).unwrap();
    let gguf = folder.path().join("mixtral.gguf");
    to_gguf(
        &Input::open(&path).unwrap().gguf(Vec::new()).unwrap(),
        None,
        &gguf,
    );
    let back = to_hf(
        &Input::open(&gguf).unwrap(),
        None,
        &folder.path().join("back"),
    );
    assert_same(&dir.tensors, &back.tensors, "mixtral");
    let [before, after] = [&dir, &back].map(|d| Config::from_hf(&d.config).unwrap());
    assert_eq!(
        before,
        Config {
            eos: before.eos.clone(),
            bos: before.bos,
            ..after
        }
    );
    assert_eq!(back.config["architectures"][0], "MixtralForCausalLM");
    // Stacks that are not what the configuration says.
    let mut other = Gguf::open(&gguf).unwrap();
    let list: Vec<Tensor> = other.tensors.iter().cloned().collect();
    let list = list.into_iter().map(|t| match t.name.as_str() {
        "blk.1.ffn_up_exps.weight" => {
            Tensor::new(t.name, t.dtype, vec![2, 64, 32], t.data).unwrap()
        }
        _ => t,
    });
    other.tensors = Tensors::new(list.collect()).unwrap();
    let error = Input::Gguf(Box::new(other))
        .hf(None, Vec::new())
        .unwrap_err();
    assert!(error.to_string().contains("ffn_up_exps"), "{error}");
}

/// The experts of each layer are turned round and put together again; from blocks too.
#[test]
fn llama4_there_and_back_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let dir = HfDir::open(fixture("models/llama4_text")).unwrap();
    let gguf = Gguf::open(fixture("gguf/llama4_text.f32.gguf")).unwrap();
    let input = Input::Gguf(Box::new(gguf));
    let back = to_hf(&input, None, &folder.path().join("back"));
    assert_same(&dir.tensors, &back.tensors, "llama4");
    let before = input.config().unwrap();
    let after = Config::from_hf(&back.config).unwrap();
    let rope = before.rope.clone();
    assert_eq!(
        before,
        Config {
            eos: before.eos.clone(),
            bos: before.bos,
            rope,
            ..after.clone()
        }
    );
    let divisors = |c: &Config| match &c.rope.scaling {
        Scaling::Divisors(d) => d.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(after.rope.theta, before.rope.theta);
    assert!(back.config["floor_scale"].is_u64(), "transformers insists");
    let again = Input::open(&folder.path().join("back")).unwrap();
    let again = to_gguf(
        &again.gguf(Vec::new()).unwrap(),
        None,
        &folder.path().join("again.gguf"),
    );
    let again = Config::from_gguf(&again).unwrap();
    assert_eq!(divisors(&again), divisors(&before));

    for recipe in ["Q8_0", "Q4_K_M"] {
        let path = folder.path().join(format!("{recipe}.gguf"));
        let source = input.gguf(Vec::new()).unwrap();
        let blocks = to_gguf(&source, Some(recipe), &path);
        let quantised = blocks.tensors.get("blk.1.ffn_gate_exps.weight").unwrap();
        assert!(quantised.dtype.is_quantized(), "{recipe}");
        let out = folder.path().join(recipe);
        let plain = to_hf(&Input::open(&path).unwrap(), Some(Type::F32), &out);
        let [d, f] = [64, 96];
        for (layer, (name, parts)) in [1, 3].into_iter().flat_map(|i| {
            [
                ("gate_up_proj", vec!["gate", "up"]),
                ("down_proj", vec!["down"]),
            ]
            .map(|p| (i, p))
        }) {
            let got = plain
                .tensors
                .get(&format!("model.layers.{layer}.feed_forward.experts.{name}"))
                .unwrap();
            let (out, width) = if parts.len() == 2 { (f, d) } else { (d, f) };
            assert_eq!(got.shape, [4, width, parts.len() * out]);
            let got = values(got);
            for (p, part) in parts.iter().enumerate() {
                let t = blocks
                    .tensors
                    .get(&format!("blk.{layer}.ffn_{part}_exps.weight"));
                let due = values(t.unwrap());
                for (i, x) in due.into_iter().enumerate() {
                    let (expert, row, col) = (i / (out * width), i / width % out, i % width);
                    let at = (expert * width + col) * parts.len() * out + p * out + row;
                    assert_eq!(got[at], x, "{recipe} {layer} {part} {i}");
                }
            }
        }
    }
}

/// The configuration of a directory changed, its other files as they are.
fn reconfigured(from: &Path, to: &Path, change: impl Fn(&mut serde_json::Value)) {
    std::fs::create_dir(to).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    std::fs::write(to.join("config.json"), json.to_string()).unwrap();
    std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
}

/// Llama 4 as llama.cpp's converter writes it: the experts of a layer turned round and apart. What a
/// GGUF has no keys for must be as in the releases.
#[test]
fn llama4_becomes_the_reference_converters_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let (from, released) = (
        fixture("models/llama4_text"),
        folder.path().join("released"),
    );
    let error = Input::open(&from).unwrap().gguf(Vec::new()).unwrap_err();
    assert!(error.to_string().contains("8192"), "{error}");
    reconfigured(&from, &released, |json| {
        json["attention_chunk_size"] = 8192.into();
        json["floor_scale"] = 8192.into();
    });
    let theirs = Gguf::open(fixture("gguf/llama4_text.f32.gguf")).unwrap();
    let input = Input::open(&released).unwrap();
    let source = input.gguf(Vec::new()).unwrap();
    let ours = to_gguf(&source, Some("F32"), &folder.path().join("m.gguf"));
    assert_same(&theirs.tensors, &ours.tensors, "llama4");
    for (key, value) in theirs.metadata.iter() {
        if key.starts_with("llama4.") || key == "general.architecture" {
            assert_eq!(ours.metadata.get(key), Some(value), "{key}");
        }
    }
    let before = input.config().unwrap();
    let after = Config::from_gguf(&ours).unwrap();
    assert_eq!(
        (before.experts, before.llama4),
        (after.experts, after.llama4)
    );
    for (key, value) in [
        ("attn_scale", serde_json::json!(0.2)),
        ("use_qk_norm", serde_json::json!(false)),
        ("no_rope_layers", serde_json::json!([1, 0, 1, 0])),
        ("moe_layers", serde_json::json!([0, 3])),
    ] {
        let to = folder.path().join(key);
        reconfigured(&released, &to, |json| json[key] = value.clone());
        let error = Input::open(&to).unwrap().gguf(Vec::new()).unwrap_err();
        assert!(error.to_string().contains("in a GGUF"), "{key}: {error}");
    }
}

#[test]
fn experts_that_do_not_fit_are_refused_when_they_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    for (at, name, key, value, named) in [
        (
            0,
            "../experts/mixtral",
            "num_local_experts",
            5,
            "block_sparse_moe.gate.weight",
        ),
        (
            1,
            "../experts/mixtral",
            "num_local_experts",
            3,
            "block_sparse_moe.gate.weight",
        ),
        (
            2,
            "../experts/mixtral",
            "intermediate_size",
            33,
            "experts.0.w1.weight",
        ),
        (
            3,
            "models/llama4_text",
            "num_local_experts",
            5,
            "feed_forward.router.weight",
        ),
    ] {
        let to = folder.path().join(at.to_string());
        reconfigured(&fixture(name), &to, |json| {
            json["attention_chunk_size"] = 8192.into();
            json["floor_scale"] = 8192.into();
            json[key] = value.into();
        });
        let error = Input::open(&to).unwrap().gguf(Vec::new()).unwrap_err();
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}
