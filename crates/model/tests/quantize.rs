//! `quantize` from a file to a file.

mod common;

use std::path::Path;

use common::{fixture, kernels};
use files::gguf::{Gguf, Metadata, Strings, Value, write as write_gguf};
use files::{Blob, Dtype, Tensor};
use kernels::{Compute, Deviation, Type};
use model::Source;
use model::quantize::{Imatrix, Plan, Wanted, plan, write};

fn wanted(recipe: &str) -> Wanted<'_> {
    Wanted {
        recipe: (recipe != "COPY").then(|| recipe.parse().unwrap()),
        imatrix: None,
        special: &|_| None,
        pure: false,
        head: None,
        embedding: None,
        leave_head: false,
        requantize: false,
    }
}

fn q256() -> Gguf {
    Gguf::open(fixture("gguf/q256.F32.gguf")).unwrap()
}

fn run(source: &Source, wanted: &Wanted<'_>, out: &Path, threads: usize) -> Plan {
    let plan = plan(source, wanted).unwrap();
    let done = write(source, &plan, wanted, out, threads, &mut |_| true).unwrap();
    done.unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    let mut out = vec![0.0; t.shape.iter().product()];
    let ty: Type = t.dtype.name().parse().unwrap();
    kernels::dequantize(ty, &t.data, &mut out).unwrap();
    out
}

#[test]
fn a_file_is_what_the_plan_says() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (q256(), dir.path().join("q.gguf"));
    let done = run(&Source::from_gguf(&source), &wanted("q4_k_m"), &out, 2);
    let file = Gguf::open(&out).unwrap();
    assert_eq!(file.metadata.u64("general.file_type"), Some(15));
    assert_eq!(file.metadata.u64("general.quantization_version"), Some(2));
    for (key, value) in source.metadata.iter() {
        if key != "general.file_type" {
            assert_eq!(file.metadata.get(key), Some(value), "{key}");
        }
    }
    let mut types = std::collections::BTreeSet::new();
    for ((step, t), old) in done.steps.iter().zip(&file.tensors).zip(&source.tensors) {
        assert_eq!((&step.info, step.bytes.1), (&t.info(), t.data.len() as u64));
        let error = Deviation::of(&values(old), &values(t));
        match step.deviation {
            None => assert_eq!(*old.data, *t.data, "{}", t.name),
            Some(d) => assert!((d.rmse() / error.rmse() - 1.0).abs() < 1e-9, "{}", t.name),
        }
        types.insert(t.dtype.name());
    }
    assert!(types.into_iter().eq(["F32", "Q4_K", "Q6_K"]));
    assert!(done.bits_per_weight() < 5.0);
    model::open(&out, kernels(Compute::Fast, 2)).unwrap();
    // Nothing else lies in the folder, and the bytes do not depend on the threads.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let again = dir.path().join("again.gguf");
    run(&Source::from_gguf(&source), &wanted("Q4_K_M"), &again, 7);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn every_kind_of_file_that_needs_no_imatrix_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::from_gguf(&q256());
    for recipe in model::quantize::recipes() {
        if plan(&source, &wanted(recipe.name)).is_err() {
            assert!(recipe.name.starts_with("IQ") || recipe.name == "Q2_K_S");
            continue;
        }
        let out = dir.path().join(format!("{}.gguf", recipe.name));
        run(&source, &wanted(recipe.name), &out, 2);
        model::open(&out, kernels(Compute::Fast, 2)).unwrap();
    }
}

#[test]
fn wishes_beat_rules() {
    let source = Source::from_gguf(&q256());
    let of = |plan: &Plan, name: &str| {
        let step = plan.steps.iter().find(|s| s.info.name == name).unwrap();
        step.info.dtype
    };
    let special = |name: &str| name.contains("ffn_up").then_some(Type::Q8_0);
    let mut w = wanted("Q4_K_M");
    w.special = &special;
    w.head = Some(Type::F16);
    w.embedding = Some(Type::Q5_1);
    let found = plan(&source, &w).unwrap();
    assert_eq!(of(&found, "blk.1.ffn_up.weight"), Dtype::Q8_0);
    assert_eq!(of(&found, "blk.1.attn_v.weight"), Dtype::Q6_K);
    assert_eq!(of(&found, "output.weight"), Dtype::F16);
    assert_eq!(of(&found, "token_embd.weight"), Dtype::Q5_1);
    let mut w = wanted("Q4_K_M");
    (w.pure, w.leave_head) = (true, true);
    let found = plan(&source, &w).unwrap();
    assert_eq!(of(&found, "blk.1.attn_v.weight"), Dtype::Q4_K);
    assert_eq!(of(&found, "output.weight"), Dtype::F32);
    assert_eq!(of(&found, "blk.0.attn_norm.weight"), Dtype::F32);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let quantised = Gguf::open(fixture("gguf/q256.Q4_0.gguf")).unwrap();
    let source = Source::from_gguf(&quantised);
    let error = plan(&source, &wanted("Q2_K")).unwrap_err().to_string();
    assert!(error.contains("quantised already (Q4_0)"), "{error}");
    let mut w = wanted("Q2_K");
    w.requantize = true;
    assert!(plan(&source, &w).is_ok());
    // What has the type already is copied.
    assert!(plan(&source, &wanted("COPY")).is_ok());
    let source = Source::from_gguf(&q256());
    let error = plan(&source, &wanted("IQ2_XS")).unwrap_err().to_string();
    assert!(error.contains("importance matrix"), "{error}");
    // Stopped in the middle, nothing is left.
    let dir = tempfile::tempdir().unwrap();
    let (w, mut told) = (wanted("Q8_0"), 0);
    let plan = plan(&source, &w).unwrap();
    let stop = &mut |_: &model::quantize::Step| {
        told += 1;
        told < 3
    };
    let out = dir.path().join("q.gguf");
    assert!(write(&source, &plan, &w, &out, 1, stop).unwrap().is_none());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn floats(x: &[f32]) -> Blob {
    Blob::from_vec(x.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn f32s(name: &str, shape: &[usize], x: &[f32]) -> Tensor {
    Tensor::new(name, Dtype::F32, shape.to_vec(), floats(x)).unwrap()
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut x = vec![0.5; 512];
    x[300] = f32::INFINITY;
    let path = dir.path().join("m.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::String("llama".into()));
    write_gguf(
        &path,
        &metadata,
        &[f32s("blk.0.ffn_up.weight", &[2, 256], &x)],
    )
    .unwrap();
    let source = Source::from_gguf(&Gguf::open(&path).unwrap());
    let w = wanted("Q4_K_M");
    let plan = plan(&source, &w).unwrap();
    let out = dir.path().join("q.gguf");
    let error = write(&source, &plan, &w, &out, 1, &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("blk.0.ffn_up.weight"), "{error}");
    assert!(!out.exists());
}

/// Both forms of file, for a matrix of two experts: each expert's own columns count.
#[test]
fn importance_matrices_are_read_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let name = "blk.0.ffn_up_exps.weight";
    let x: Vec<f32> = (0..2 * 4 * 256)
        .map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1)
        .collect();
    let w: Vec<f32> = (0..512)
        .map(|i| if (i / 256 + i) % 2 == 0 { 8.0 } else { 0.5 })
        .collect();
    // Sums over 2 and 4 rows.
    let sums: Vec<f32> = (0..512).map(|i| w[i] * [2.0, 4.0][i / 256]).collect();
    let mut metadata = Metadata::new();
    metadata.set("general.type", Value::String("imatrix".into()));
    let mut datasets = Strings::default();
    datasets.push("text.txt");
    metadata.set(
        "imatrix.datasets",
        Value::Array(files::gguf::Array::String(datasets)),
    );
    metadata.set("imatrix.chunk_count", Value::U32(4));
    let new = dir.path().join("imatrix.gguf");
    let tensors = [
        f32s(&format!("{name}.in_sum2"), &[2, 256], &sums),
        f32s(&format!("{name}.counts"), &[2, 1], &[2.0, 4.0]),
    ];
    write_gguf(&new, &metadata, &tensors).unwrap();
    let old = dir.path().join("imatrix.dat");
    let entry = files::imatrix::Entry {
        name: name.into(),
        calls: 4,
        values: w.iter().map(|w| w * 4.0).collect(),
    };
    let matrix = files::imatrix::Imatrix {
        entries: vec![entry],
        chunks: 4,
        dataset: "text.txt".into(),
    };
    files::imatrix::write(&old, &matrix).unwrap();

    let source = dir.path().join("m.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::String("llama".into()));
    write_gguf(&source, &metadata, &[f32s(name, &[2, 4, 256], &x)]).unwrap();
    let source = Source::from_gguf(&Gguf::open(&source).unwrap());
    let mut written = Vec::new();
    for path in [&new, &old] {
        let imatrix = Imatrix::open(path).unwrap();
        assert_eq!((imatrix.len(), imatrix.chunks), (1, 4));
        let mut wanted = wanted("IQ2_XS");
        wanted.imatrix = Some((&imatrix, "the file"));
        let out = dir.path().join("q.gguf");
        let done = run(&source, &wanted, &out, 2);
        assert!(done.steps[0].weighted);
        let file = Gguf::open(&out).unwrap();
        let m = &file.metadata;
        assert_eq!(m.str("quantize.imatrix.file"), Some("the file"));
        assert_eq!(m.str("quantize.imatrix.dataset"), Some("text.txt"));
        assert_eq!(m.u64("quantize.imatrix.chunks_count"), Some(4));
        written.push(values(file.tensors.get(name).unwrap()));
    }
    assert_eq!(written[0], written[1]);
    let mut expected = vec![0; Type::IQ2_XS.row_bytes(x.len()).unwrap()];
    let half = expected.len() / 2;
    for e in 0..2 {
        let (x, w) = (&x[e * 1024..][..1024], &w[e * 256..][..256]);
        kernels::quantize(
            Type::IQ2_XS,
            256,
            x,
            Some(w),
            &mut expected[e * half..][..half],
        )
        .unwrap();
    }
    let mut wide = vec![0.0; x.len()];
    kernels::dequantize(Type::IQ2_XS, &expected, &mut wide).unwrap();
    assert_eq!(written[0], wide);

    let bad = dir.path().join("bad.dat");
    let mut matrix = matrix;
    matrix.entries[0].values[3] = f32::NAN;
    files::imatrix::write(&bad, &matrix).unwrap();
    let error = Imatrix::open(&bad).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("NaN"), "{error}");
    // Fewer columns than the tensor has.
    matrix.entries[0].values = vec![1.0; 256];
    files::imatrix::write(&bad, &matrix).unwrap();
    let imatrix = Imatrix::open(&bad).unwrap();
    let mut wanted = wanted("IQ2_XS");
    wanted.imatrix = Some((&imatrix, "x"));
    let error = plan(&source, &wanted).unwrap_err().to_string();
    assert!(error.contains("256 importances"), "{error}");
    assert!(Imatrix::open(&fixture("gguf/q256.F32.gguf")).is_err());
}
