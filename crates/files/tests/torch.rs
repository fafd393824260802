//! PyTorch checkpoints, directories of Meta's and llama2.c files: what is read is what lies there.
//! (That models in these formats compute the right thing is tested in `model`.)

use std::fs;
use std::path::PathBuf;

use files::hf::HfDir;
use files::meta::MetaDir;
use files::{Dtype, Tensor, Tensors, llama2c, safetensors, torch};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

fn same(a: &Tensor, b: &Tensor) {
    assert_eq!(a.info(), b.info());
    assert!(*a.data == *b.data, "{}", a.name);
}

#[test]
fn shards_of_pytorch_hold_what_those_of_safetensors_hold() {
    let ours = HfDir::open(fixture("formats/torch-shards"))
        .expect("open")
        .tensors;
    let theirs = safetensors::open_all(fixture("reference/models/llama_bf16_sharded"));
    let theirs = theirs.expect("open");
    assert_eq!(ours.len(), theirs.len());
    for tensor in &theirs {
        let found = ours.get(&tensor.name).expect("in the shards");
        same(found, tensor);
        let file = found.data.path().file_name().expect("a file");
        let file = file.to_string_lossy();
        assert!(file.starts_with("pytorch_model-0"), "a view of {file}");
    }
}

#[test]
fn tensors_may_share_a_storage_and_be_turned() {
    let path = fixture("formats/torch-shared/pytorch_model.bin");
    let tensors = torch::open(&path).expect("open");
    let turned = "model.layers.0.mlp.up_proj.weight";
    for tensor in &tensors {
        let viewed = tensor.data.path() == path;
        assert_eq!(viewed, tensor.name != turned, "{}", tensor.name);
    }
    let offsets: Vec<usize> = tensors
        .iter()
        .filter(|t| t.name != turned)
        .map(|t| t.data.offset())
        .collect();
    assert!(
        offsets.is_sorted() && offsets[0].is_multiple_of(64),
        "{offsets:?}"
    );
    assert_eq!(
        tensors.get("model.norm.weight").expect("a parameter").shape,
        [64]
    );
}

#[test]
fn parts_of_metas_make_a_whole() {
    let ours = MetaDir::open(fixture("formats/meta-llama1")).expect("open");
    assert_eq!((ours.parts, &ours.params["dim"]), (2, &64.into()));
    let theirs = safetensors::open(fixture("reference/models/llama1/model.safetensors"));
    let theirs = theirs.expect("open");
    let pairs = [
        ("tok_embeddings", "model.embed_tokens"),
        ("output", "lm_head"),
        ("layers.1.attention.wv", "model.layers.1.self_attn.v_proj"),
        ("layers.0.attention.wo", "model.layers.0.self_attn.o_proj"),
        ("layers.0.feed_forward.w1", "model.layers.0.mlp.gate_proj"),
        ("layers.1.feed_forward.w2", "model.layers.1.mlp.down_proj"),
        (
            "layers.0.ffn_norm",
            "model.layers.0.post_attention_layernorm",
        ),
    ];
    let get = |tensors: &Tensors, stem: &str| {
        let name = format!("{stem}.weight");
        tensors
            .get(&name)
            .unwrap_or_else(|| panic!("{name}"))
            .clone()
    };
    for (ours_is, theirs_is) in pairs {
        let (mut a, b) = (get(&ours.tensors, ours_is), get(&theirs, theirs_is));
        a.name.clone_from(&b.name);
        same(&a, &b);
    }
    // Nothing is copied when it is opened; what is cut by columns will be when it is computed with.
    let by_columns = ["tok_embeddings", "attention.wo", "feed_forward.w2"];
    let again = MetaDir::open(fixture("formats/meta-llama1")).expect("open");
    let mut copied = 0;
    for t in &again.tensors {
        let stem = t.name.trim_end_matches(".weight");
        let is_copied = by_columns.iter().any(|end| stem.ends_with(end));
        let parts = t.data.parts().map_or(0, <[_]>::len);
        let by_rows = t.shape.len() == 2 && !is_copied;
        assert_eq!(parts, if by_rows { 2 } else { 0 }, "{stem}");
        assert!(t.data.is_mapped(), "{stem}");
        let read = t.data[..].len();
        assert_eq!(
            (t.data.is_mapped(), read),
            (parts == 0 && !is_copied, t.data.len()),
            "{stem}"
        );
        copied += if is_copied { t.data.len() as u64 } else { 0 };
    }
    assert_eq!(ours.copied, copied);
    let foreseen = files::meta::joined_bytes(fixture("formats/meta-llama1"));
    assert_eq!(foreseen.expect("count"), copied);
    let norm = get(&ours.tensors, "norm");
    assert!(norm.data.path().ends_with("consolidated.00.pth"));
}

#[test]
fn one_part_is_not_copied() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let from = fixture("formats/meta-llama3");
    fs::copy(
        from.join("consolidated.00.pth"),
        dir.path().join("consolidated.pth"),
    )
    .expect("copy");
    fs::write(dir.path().join("params.json"), "{}").expect("write");
    let meta = MetaDir::open(dir.path()).expect("open");
    assert_eq!((meta.parts, meta.copied), (1, 0));
    assert_eq!(files::meta::joined_bytes(dir.path()).expect("count"), 0);
    assert!(meta.tensors.iter().all(|t| t.dtype == Dtype::BF16));
}

#[test]
fn llama2c_is_viewed_in_place() {
    for (folder, version, shared, group) in [
        ("llama2c-v0", 0, true, None),
        ("llama2c-v0-head", 0, false, None),
        ("llama2c-v1", 1, false, None),
        ("llama2c-v2-g64", 2, false, Some(64)),
    ] {
        let path = fixture(&format!("formats/{folder}/model.bin"));
        let file = llama2c::open(&path).expect(folder);
        let c = file.config;
        assert_eq!((file.version, c.shared, c.group), (version, shared, group));
        assert_eq!(
            [c.dim, c.hidden_dim, c.n_heads, c.n_kv_heads, c.vocab_size],
            [64, 96, 4, 2, 48]
        );
        assert_eq!(file.tensors.get("output.weight").is_some(), !shared);
        assert!(file.tensors.iter().all(|t| t.data.path() == path));
        let w2 = file
            .tensors
            .get("layers.0.feed_forward.w2.weight")
            .expect("w2");
        assert_eq!(w2.shape, [64, 96]);
        let scales = file.tensors.get("layers.0.feed_forward.w2.scales");
        assert_eq!(scales.map(|s| s.shape[0]), group.map(|g| 64 * 96 / g));
    }
}
