//! safetensors: the reference models are read as their shapes say, alone and sharded.

use std::fs;
use std::path::PathBuf;

use files::hf::HfDir;
use files::{Dtype, Error, safetensors};

fn reference(name: &str) -> PathBuf {
    let root = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    );
    PathBuf::from(root).join(name)
}

#[test]
fn every_reference_file_is_read() {
    let mut folders = vec![reference("")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors") {
                let tensors = safetensors::open(&path).expect("open");
                let length = fs::metadata(&path).expect("metadata").len();
                assert!(tensors.bytes() <= length - 8, "{}", path.display());
                assert!(!tensors.is_empty(), "{}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 40, "only {count} files");
}

#[test]
fn values_lie_where_the_header_says() {
    // That the bytes are the right ones is shown by a conversion to GGUF, in `tests/gguf.rs`.
    let file = safetensors::open(reference("models/llama1/expected.safetensors")).expect("open");
    let ids = file.get("seq0.input_ids").expect("ids");
    assert_eq!(
        (ids.dtype, &*ids.shape, ids.data.len()),
        (Dtype::I32, &[1][..], 4)
    );
    let logits = file.get("seq0.logits").expect("logits");
    assert_eq!((logits.dtype, logits.shape[0]), (Dtype::F32, 1));
    let offsets = file.iter().map(|tensor| tensor.data.offset());
    assert!(offsets.is_sorted(), "in the order of the data");
    let last = file.iter().last().expect("one");
    let end = last.data.offset() + last.data.len();
    let path = reference("models/llama1/expected.safetensors");
    assert_eq!(end as u64, fs::metadata(path).expect("metadata").len());
}

#[test]
fn shards_are_one_model() {
    let dir = reference("models/llama_bf16_sharded");
    let tensors = safetensors::open_all(&dir).expect("open");
    let shards = fs::read_dir(&dir).expect("list").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with("model-0")
    });
    let of_shards = shards.map(|shard| {
        let shard = safetensors::open(shard.expect("an entry").path()).expect("a shard");
        for tensor in &shard {
            let found = tensors.get(&tensor.name).expect("in the model");
            assert_eq!(found.info(), tensor.info());
            assert_eq!(found.data.path(), tensor.data.path());
            assert_eq!(found.data.offset(), tensor.data.offset());
        }
        shard.len()
    });
    assert_eq!(of_shards.sum::<usize>(), tensors.len());
    assert!(tensors.iter().all(|tensor| tensor.dtype == Dtype::BF16));
    assert!(tensors.get("model.embed_tokens.weight").is_some());
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("x.safetensors");
    let every: Vec<(String, Dtype, Vec<u8>)> = Dtype::all()
        .filter(|dtype| dtype.in_safetensors())
        .enumerate()
        .map(|(i, dtype)| {
            (
                format!("t\"{i}é\n"),
                dtype,
                vec![i as u8; 6 * dtype.block_bytes()],
            )
        })
        .collect();
    let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> = every
        .iter()
        .map(|(name, dtype, bytes)| (name.as_str(), *dtype, &[2, 3][..], bytes.as_slice()))
        .collect();
    tensors.push(("scalar", Dtype::F32, &[], &[1, 2, 3, 4]));
    tensors.push(("nothing", Dtype::F32, &[0, 5], &[]));
    safetensors::write(&path, &tensors).expect("write");
    let read = safetensors::open(&path).expect("open");
    assert_eq!(read.len(), tensors.len());
    for (name, dtype, shape, bytes) in tensors {
        let tensor = read.get(name).expect(name);
        assert_eq!(
            (tensor.dtype, &*tensor.shape, &*tensor.data),
            (dtype, shape, bytes)
        );
        assert!(
            tensor.data.offset().is_multiple_of(dtype.block_bytes()),
            "{dtype} is aligned"
        );
    }
    // The format's own crate reads it as well.
    let file = fs::read(&path).expect("read");
    let theirs = ::safetensors::SafeTensors::deserialize(&file).expect("sound");
    assert_eq!(theirs.len(), read.len());
}

#[test]
fn the_writer_refuses_what_the_format_cannot_hold() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("x.safetensors");
    let refused = |tensors: &[(&str, Dtype, &[usize], &[u8])], says: &str| {
        let error = safetensors::write(&path, tensors)
            .expect_err(says)
            .to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    };
    refused(
        &[("a", Dtype::Q8_0, &[32], &[0; 34])],
        "no number type Q8_0",
    );
    refused(&[("a", Dtype::F32, &[2], &[0; 7])], "needs 8 bytes, not 7");
    refused(&[("__metadata__", Dtype::U8, &[1], &[0])], "`__metadata__`");
    refused(
        &[("a", Dtype::U8, &[1], &[0]), ("a", Dtype::U8, &[1], &[0])],
        "`a`",
    );
}

#[test]
fn a_model_directory_has_its_side_files() {
    let dir = reference("models/llama3_1");
    let hf = HfDir::open(&dir).expect("open");
    assert_eq!(hf.config["model_type"], "llama");
    assert!(
        hf.generation_config
            .expect("generation_config.json")
            .is_object()
    );
    assert_eq!(hf.tokenizer, Some(dir.join("tokenizer.json")));
    assert!(hf.tokenizer_config.is_some() && hf.special_tokens_map.is_some());
    let template = fs::read_to_string(dir.join("chat_template.jinja")).expect("read");
    assert_eq!(hf.chat_template, Some(template));
    assert!(hf.tensors.get("model.norm.weight").is_some());

    let dir = reference("models/llama1");
    let hf = HfDir::open_without_weights(&dir).expect("open");
    assert_eq!(hf.tokenizer, Some(dir.join("tokenizer.model")));
    assert!(hf.chat_template.is_none() && hf.tensors.is_empty());
}

#[test]
fn templates_are_found_in_their_places() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::write(dir.path().join("config.json"), "{}").expect("write");
    let template = || {
        HfDir::open_without_weights(dir.path())
            .expect("open")
            .chat_template
    };
    assert_eq!(template(), None);
    let places = [
        (
            "chat_template.json",
            r#"{"chat_template": "oldest"}"#,
            "oldest",
        ),
        ("chat_templates/default.jinja", "third", "third"),
        (
            "additional_chat_templates/default.jinja",
            "second",
            "second",
        ),
        ("chat_template.jinja", "first", "first"),
    ];
    for (name, text, wanted) in places {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create");
        fs::write(path, text).expect("write");
        assert_eq!(template().as_deref(), Some(wanted));
    }
}

#[test]
fn side_files_have_a_limit() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("config.json");
    let padded = |length: usize| format!("{{{}}}", " ".repeat(length - 2));
    fs::write(&path, padded(1 << 20)).expect("write");
    assert!(HfDir::open_without_weights(dir.path()).is_ok(), "just fits");
    fs::write(&path, padded((1 << 20) + 1)).expect("write");
    match HfDir::open_without_weights(dir.path()) {
        Err(Error::TooLarge { path: named, limit }) => {
            assert_eq!((named, limit), (path.clone(), 1 << 20));
        }
        other => panic!("{other:?}"),
    }
    // A tokenizer of 1 TB that takes no room on the disk.
    fs::write(&path, "{}").expect("write");
    let tokenizer = fs::File::create(dir.path().join("tokenizer.json")).expect("create");
    if tokenizer.set_len(1 << 40).is_ok() {
        let opened = HfDir::open_without_weights(dir.path());
        assert!(matches!(opened, Err(Error::TooLarge { .. })), "{opened:?}");
    }
}
