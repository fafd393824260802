//! GGUF: the reference files are read as their writer meant them, and written back byte by byte.

use std::fs;
use std::path::PathBuf;

use files::gguf::{Gguf, Metadata, Writer};
use files::{Blob, Dtype, Tensor, TensorInfo};

fn reference(folder: &str) -> PathBuf {
    let root = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    );
    PathBuf::from(root).join(folder)
}

fn reference_ggufs() -> Vec<PathBuf> {
    let folder = fs::read_dir(reference("gguf")).expect("the reference folder");
    let paths = folder.map(|entry| entry.expect("an entry").path());
    let mut ggufs: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    ggufs.sort();
    assert!(ggufs.len() >= 20, "only {} reference files", ggufs.len());
    ggufs
}

fn write_back(gguf: &Gguf) -> Vec<u8> {
    let infos = gguf.tensors.iter().map(Tensor::info).collect();
    let mut writer = Writer::new(Vec::new(), &gguf.metadata, infos).expect("header");
    for tensor in &gguf.tensors {
        writer.tensor(&tensor.data).expect("tensor");
    }
    writer.finish().expect("finish")
}

#[test]
fn reference_files_are_read_and_written_back_byte_by_byte() {
    for path in reference_ggufs() {
        let gguf = Gguf::open(&path).expect("open");
        assert_eq!(gguf.version, 3, "{}", path.display());
        assert_eq!(gguf.files, [path.clone()]);
        let source = fs::read(&path).expect("read");
        assert!(write_back(&gguf) == source, "{} differs", path.display());
    }
}
