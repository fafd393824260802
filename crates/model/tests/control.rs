//! Control vectors against transformers with directions added by hooks.

mod common;

use std::ops::RangeInclusive;
use std::sync::Arc;

use common::*;
use files::gguf::{Gguf, Metadata, Value};
use files::{Blob, Dtype, Tensor, Tensors};
use kernels::{Compute, KvType};
use model::{Batch, Cache, Chunk, ControlVector, Directions, Rows, Weights};

fn sum(
    w: &Weights,
    all: &[(&str, f32)],
    range: Option<RangeInclusive<usize>>,
) -> Arc<ControlVector> {
    let open = |(name, scale): &(&str, f32)| {
        let path = fixture(&format!("../adapters/steer-{name}.gguf"));
        (Directions::open(&path, &w.config).unwrap(), *scale)
    };
    let all: Vec<_> = all.iter().map(open).collect();
    Arc::new(ControlVector::sum(w.kernels(), &w.config, &all, range).unwrap())
}

fn steered(w: &Weights, ids: &[u32], chunk: usize, control: &Arc<ControlVector>) -> Vec<f32> {
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let seq = cache.open();
    let mut out = Vec::new();
    for part in ids.chunks(chunk) {
        let chunks = vec![Chunk {
            control: Some(control.clone()),
            ..Chunk::tokens(seq, cache.len(seq) as u32, part, Rows::All)
        }];
        let done = model::forward(w, &Batch { chunks }, &mut cache, &mut ()).unwrap();
        out.extend_from_slice(&done.chunks[0].logits);
    }
    out
}

#[test]
fn directions_are_added_behind_their_layers() {
    let expected = Expected::open("../adapters/steer.safetensors");
    let ids = expected.ids("input_ids");
    for path in ["models/llama2_gqa", "gguf/llama2_gqa.f32.gguf"] {
        let w = open(path, Compute::F32);
        for (name, all, range) in [
            ("all", &[("all", 1.0)][..], None),
            ("first", &[("all", -0.5)], Some(1..=1)),
            ("both", &[("all", 0.5), ("last", 2.0)], None),
        ] {
            let control = sum(&w, all, range);
            let want = expected.f32(name);
            for (ids, want) in ids.chunks(12).zip(want.chunks(want.len() / 2)) {
                assert_close(name, &steered(&w, ids, 99, &control), want, 2e-4, 1e-4);
                assert!(max_difference(&logits(&w, ids, 99, &mut ()), want) > 1e-2);
            }
        }
    }
}

#[test]
fn chunks_threads_and_other_sequences_change_no_bit() {
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 300).collect();
    for compute in [Compute::Fast, Compute::F32] {
        let w = open("gguf/llama2_gqa.f32.gguf", compute);
        let control = sum(&w, &[("all", 1.5)], None);
        let want = steered(&w, &ids, 99, &control);
        for (chunk, threads) in [(1, 2), (7, 1), (16, 3)] {
            let other = w.with_kernels(kernels(compute, threads));
            assert_eq!(steered(&other, &ids, chunk, &control), want);
        }
        let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
        let chunks = [None, Some(control)].map(|control| Chunk {
            control,
            ..Chunk::tokens(cache.open(), 0, &ids, Rows::All)
        });
        let batch = Batch {
            chunks: chunks.into(),
        };
        let out = model::forward(&w, &batch, &mut cache, &mut ()).unwrap();
        assert_eq!(out.chunks[0].logits, logits(&w, &ids, 99, &mut ()));
        assert_eq!(out.chunks[1].logits, want);
        // Nothing of it is the bare model.
        let none = sum(&w, &[("all", 0.0)], None);
        assert_eq!(out.chunks[0].logits, steered(&w, &ids, 99, &none));
    }
    let other = open("models/llama1", Compute::F32);
    let control = sum(
        &open("models/llama2_gqa", Compute::F32),
        &[("last", 1.0)],
        None,
    );
    let mut cache = Cache::new(&other.config, KvType::F32, 64).unwrap();
    let chunks = vec![Chunk {
        control: Some(control),
        ..Chunk::tokens(cache.open(), 0, &ids, Rows::Last)
    }];
    let error = model::forward(&other, &Batch { chunks }, &mut cache, &mut ());
    assert!(error.unwrap_err().to_string().contains("64 wide"));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let w = open("models/llama2_gqa", Compute::F32);
    let (layers, hidden) = (w.config.layers, w.config.hidden);
    let refused = |arch: &str, name: &str, dtype: Dtype, shape: Vec<usize>, fill: u8| {
        let bytes = dtype.bytes(&shape).unwrap();
        let t = Tensor::new(name, dtype, shape, Blob::from_vec(vec![fill; bytes])).unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", Value::String(arch.into()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.gguf");
        let tensors = Tensors::new(vec![t]).unwrap();
        files::gguf::write(&path, &metadata, &tensors).unwrap();
        match Directions::from_gguf(&Gguf::open(&path).unwrap(), &w.config) {
            Ok(_) => panic!("{name}: opened"),
            Err(error) => error.to_string(),
        }
    };
    let good = "controlvector";
    let row = vec![hidden];
    for (error, says) in [
        (
            refused("llama", "direction.1", Dtype::F32, row.clone(), 0),
            "not `controlvector`",
        ),
        (
            refused(good, "direction.0", Dtype::F32, row.clone(), 0),
            "`direction.0`",
        ),
        (
            refused(good, "direction.01", Dtype::F32, row.clone(), 0),
            "`direction.01`",
        ),
        (
            refused(good, "direction.-1", Dtype::F32, row.clone(), 0),
            "`direction.-1`",
        ),
        (
            refused(good, "other.1", Dtype::F32, row.clone(), 0),
            "`other.1`",
        ),
        (
            refused(
                good,
                &format!("direction.{layers}"),
                Dtype::F32,
                row.clone(),
                0,
            ),
            "layers 1 to",
        ),
        (
            refused(good, "direction.1", Dtype::F32, vec![hidden + 1], 0),
            "wide",
        ),
        (
            refused(good, "direction.1", Dtype::F32, vec![1, hidden], 0),
            "shape",
        ),
        (
            refused(good, "direction.1", Dtype::Q8_0, row.clone(), 0),
            "not F32",
        ),
        (
            refused(good, "direction.1", Dtype::I32, row.clone(), 0),
            "I32",
        ),
        (refused(good, "direction.1", Dtype::F32, row, 0xff), "NaN"),
    ] {
        assert!(error.contains(says), "{error}: no {says}");
    }
}
