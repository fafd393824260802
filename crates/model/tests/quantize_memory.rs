//! What `quantize` keeps in memory of a model with 70B's shapes, whatever its number of layers. Slow
//! and large on disk (a new file of 4 GB), so it runs only where `PUNA_TEST_ALL` is set.

use std::path::Path;

use files::gguf::{Gguf, Metadata, Value, Writer};
use files::{Dtype, TensorInfo};
use model::Source;
use model::quantize::{Wanted, plan, write};

const HIDDEN: usize = 8192;
const KV: usize = 1024;
const FFN: usize = 28672;
const VOCAB: usize = 128_256;

/// A file of so many layers in BF16: its data are a hole, which takes no room but is mapped and read
/// as any other. The tables are in F32, so that one tensor alone is above the limit.
fn sparse(path: &Path, layers: usize) {
    let matrix = |name: String, dtype, rows| TensorInfo {
        name,
        dtype,
        shape: vec![rows, HIDDEN],
    };
    let mut infos = vec![matrix("token_embd.weight".into(), Dtype::F32, VOCAB)];
    for i in 0..layers {
        for (part, rows) in [("attn_q", HIDDEN), ("attn_k", KV), ("ffn_gate", FFN)] {
            infos.push(matrix(format!("blk.{i}.{part}.weight"), Dtype::BF16, rows));
        }
    }
    let mut m = Metadata::new();
    m.set("general.architecture", Value::String("llama".into()));
    m.set("llama.block_count", Value::U32(layers as u32));
    let mut header = Vec::new();
    Writer::new(&mut header, &m, infos.clone()).unwrap();
    let data: usize = infos.iter().map(|t| t.bytes().unwrap()).sum();
    std::fs::write(path, &header).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((header.len() + data) as u64).unwrap();
}

/// The most bytes that this process was resident with, pages of mapped files counted.
fn most_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_does_not_grow_with_the_model() {
    if std::env::var_os("PUNA_TEST_ALL").is_none() || !cfg!(target_os = "linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        folder.path().join("in.gguf"),
        folder.path().join("out.gguf"),
    );
    let wanted = Wanted {
        recipe: Some("Q4_0".parse().unwrap()),
        imatrix: None,
        special: &|_| None,
        pure: true,
        head: None,
        embedding: None,
        leave_head: false,
        requantize: false,
    };
    let most = [4, 8].map(|layers| {
        sparse(&from, layers);
        let source = Source::from_gguf(&Gguf::open(&from).unwrap());
        let plan = plan(&source, &wanted).unwrap();
        write(&source, &plan, &wanted, &to, 2, &mut |_| true).unwrap();
        let most = most_resident();
        println!("{layers} layers: {} MB resident at most", most / 1_000_000);
        most
    });
    assert!(most[1] < 1_000_000_000, "{most:?}");
    assert!(most[1] < most[0] + most[0] / 10, "{most:?}");
}
